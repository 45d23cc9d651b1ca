"""Settings: all faults at once, a guess for a name nobody knows, values never repeated."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from errata.errors import Misconfigured
from errata.settings import EmbeddedSettings, ServiceSettings, read_service_settings, read_settings, variables


def test_without_any_variable_the_defaults_hold() -> None:
    settings = read_settings({})
    assert (settings.data, settings.instance, settings.batch_size, settings.crash) == (None, "0", 500, None)


def test_variables_are_read() -> None:
    settings = read_settings({"ERRATA_DATA": "/x/y", "ERRATA_INSTANCE": "a", "ERRATA_BATCH_SIZE": "7", "HOME": "/root"})
    assert (settings.data, settings.instance, settings.batch_size) == (Path("/x/y"), "a", 7)


def test_an_unknown_variable_is_a_fault_with_a_guess() -> None:
    with pytest.raises(Misconfigured, match=r"^ERRATA_BACH_SIZE: .*did you mean ERRATA_BATCH_SIZE\?$"):
        read_settings({"ERRATA_BACH_SIZE": "7"})
    with pytest.raises(Misconfigured) as unlike:
        read_settings({"ERRATA_QQQQQQ": "7"})
    assert "did you mean" not in str(unlike.value)


def test_variables_of_tests_are_left_alone() -> None:
    assert read_settings({"ERRATA_TEST_KAFKA": "localhost:9092"}).instance == "0"


def test_all_faults_are_named_at_once_and_no_value() -> None:
    with pytest.raises(Misconfigured) as fault:
        read_settings({"ERRATA_BATCH_SIZE": "9999", "ERRATA_INSTANCE": "", "ERRATA_FOO_BAR": "hunter2"})
    text = str(fault.value)
    assert "\n" not in text
    assert all(name in text for name in ("ERRATA_BATCH_SIZE", "ERRATA_INSTANCE", "ERRATA_FOO_BAR"))
    assert "hunter2" not in text
    assert "9999" not in text
    assert fault.value.exit_code == 78


@pytest.mark.parametrize("size", ["0", "5001", "many", "1.5", ""])
def test_a_batch_holds_1_to_5_000_lines(size: str) -> None:
    with pytest.raises(Misconfigured, match="ERRATA_BATCH_SIZE"):
        read_settings({"ERRATA_BATCH_SIZE": size})


def test_settings_are_frozen_and_each_variable_has_a_meaning() -> None:
    settings = read_settings({})
    with pytest.raises(ValidationError):
        settings.instance = "b"  # type: ignore[misc]
    assert all(variables().values())
    fields = {*EmbeddedSettings.model_fields, *ServiceSettings.model_fields} - {"kafka"}
    named = {name for name in variables() if not name.startswith("ERRATA_KAFKA__")}
    assert named == {f"ERRATA_{name.upper()}" for name in fields}


def test_any_property_of_the_kafka_client_can_be_given() -> None:
    settings = read_service_settings(
        {"ERRATA_KAFKA__BOOTSTRAP_SERVERS": "a:9092,b:9092", "ERRATA_KAFKA__SASL_MECHANISMS": "SCRAM-SHA-512"}
    )
    assert settings.kafka == {"bootstrap.servers": "a:9092,b:9092", "sasl.mechanisms": "SCRAM-SHA-512"}


def test_a_service_stays_in_its_group_unless_it_is_told_to_leave() -> None:
    assert not read_service_settings({}).leave
    assert read_service_settings({"ERRATA_LEAVE": "true"}).leave
    with pytest.raises(Misconfigured, match="ERRATA_LEAVE"):
        read_service_settings({"ERRATA_LEAVE": "at once"})


def test_secrets_may_stand_in_files(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://u:hunter2@db/errata\n")
    (tmp_path / "password").write_text("hunter3\n")
    settings = read_service_settings(
        {
            "ERRATA_DATABASE_URL_FILE": str(tmp_path / "url"),
            "ERRATA_KAFKA__SASL_PASSWORD_FILE": str(tmp_path / "password"),
        }
    )
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql://u:hunter2@db/errata"
    assert settings.kafka == {"sasl.password": "hunter3"}
    assert "hunter2" not in repr(settings)


def test_a_file_that_is_not_there_and_a_secret_given_twice_are_faults(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="ERRATA_KEY_FILE: the file cannot be read"):
        read_service_settings({"ERRATA_KEY_FILE": str(tmp_path / "none")})
    (tmp_path / "key").write_text("k" * 32)
    with pytest.raises(Misconfigured, match="ERRATA_KEY: given twice"):
        read_service_settings({"ERRATA_KEY_FILE": str(tmp_path / "key"), "ERRATA_KEY": "k" * 32})


def test_one_underscore_too_few_is_told() -> None:
    with pytest.raises(Misconfigured, match=r"did you mean ERRATA_KAFKA__BOOTSTRAP_SERVERS\?"):
        read_service_settings({"ERRATA_KAFKA_BOOTSTRAP_SERVERS": "a:9092"})
