"""A publisher's project with its own ``shared`` and ``services`` installs the wheel and publishes to a real broker."""

import os
import shutil
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.integration.published import make_topics, records
from tests.repository import test_packaging

from errata.contracts import PredictionEvent
from errata.contracts.topics import PARTITIONS, PREDICTIONS
from errata.domain.partitioner import partition_of

pytestmark = [pytest.mark.servers, pytest.mark.whole]

wheel = test_packaging.wheel

PROJECT = {
    "shared/__init__.py": "",
    "shared/client.py": "NAME = 'credit'\n",
    "services/__init__.py": "",
    "services/scoring.py": """
import errata
from errata.client import KafkaPublisher
from shared.client import NAME

with KafkaPublisher() as publisher:
    assert publisher.prediction(model=NAME, prediction="ok", event_id="e-1", features={"income": 52_000})
assert publisher.stats.delivered == 1, publisher.stats
print(errata.__file__)
""",
}


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and its Kafka client, and nothing else of ours."""
    place = tmp_path_factory.mktemp("environment")
    uv = shutil.which("uv")
    venv.create(place, with_pip=uv is None)
    interpreter = place / "bin" / "python"
    pip = [uv, "pip", "--offline"] if uv else [str(interpreter), "-m", "pip"]
    place_option = ["--python", str(interpreter)] if uv else []
    subprocess.run(
        [*pip, "install", *place_option, "--no-index", "--no-deps", str(wheel)], check=True, timeout=120, cwd=place
    )
    (site,) = place.glob("lib/python*/site-packages")
    for name in ("confluent_kafka", "confluent_kafka.libs"):  # installed from here: tests fetch nothing
        (site / name).symlink_to(packages_folder() / name)
    return interpreter


def packages_folder() -> Path:
    found = find_spec("confluent_kafka")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parents[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in PROJECT.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return tmp_path


def run(python: Path, project: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ERRATA_"))}
    return subprocess.run(
        [str(python), "-W", "error", *arguments],
        cwd=project,
        env=environment | more,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_foreign_project_publishes_with_the_wheel(kafka_address: str, python: Path, project: Path) -> None:
    prefix = make_topics(kafka_address)
    variables = {"ERRATA_KAFKA__BOOTSTRAP_SERVERS": kafka_address, "ERRATA_TOPIC_PREFIX": prefix}
    done = run(python, project, "-m", "services.scoring", **variables)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(python.parents[1])
    (message,) = records(kafka_address, prefix + PREDICTIONS)
    assert (message.key(), message.partition()) == (b"credit", partition_of(b"credit", PARTITIONS))
    taken = PredictionEvent.model_validate_json(message.value() or b"")
    assert (taken.event_id, taken.prediction, taken.features) == ("e-1", "ok", {"income": 52_000})


def test_control_there_is_nothing_else_in_its_environment(python: Path, project: Path) -> None:
    done = run(python, project, "-c", "import errata.contracts")
    assert done.returncode == 1
    assert "No module named 'pydantic'" in done.stderr
    assert sys.prefix not in run(python, project, "-c", "import sys; print(sys.path)").stdout
