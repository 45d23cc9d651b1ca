"""Settings: all faults at once, a guess for a name nobody knows, values never repeated."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from errata.errors import Misconfigured
from errata.settings import read_settings, variables


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
    assert set(variables()) == {f"ERRATA_{name.upper()}" for name in type(settings).model_fields}
