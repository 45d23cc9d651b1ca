"""``errata run --embedded`` killed by SIGKILL at every crash point, then run again on its data folder."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from tests.pipeline.case_builder import dump
from tests.pipeline.chain_builder import (
    EVERY_POINT,
    KEY,
    apply_tables,
    census_lines,
    chain,
    odd_lines,
    packaged_tagger,
    passed_on,
)

from errata.adapters.aead import KEY_FILE
from errata.contracts import Contract, Reference
from errata.runtime.crash_points import VARIABLE
from errata_services.bootstrap import CATALOGUE_FILE, REDACTION_KEY_FILE, Parts, embedded_parts
from errata_services.demo.stream import Planted
from errata_services.embedded import Embedded

pytestmark = pytest.mark.whole

KILLED_BATCH = 250


def run_command(file: Path, data: Path, crash: str | None) -> None:
    """What the console script does, in a process of its own."""
    if crash is not None:
        os.environ[VARIABLE] = crash
    sys.argv = ["errata", *command(file, data)]
    from errata_services.cli import main

    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        main()


def command(file: Path, data: Path) -> list[str]:
    return ["run", "--embedded", "--input", str(file), "--data", str(data), "--batch-size", str(KILLED_BATCH)]


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Each process begins as a copy of one that has read the code already: reading it takes longer than the run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["errata_services.cli"])
    return context


@pytest.fixture(scope="module")
def blank(census_contract: Contract, census_reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with keys, contract and reference, and no event yet."""
    data = tmp_path_factory.mktemp("blank") / "data"
    data.mkdir()
    for name in (KEY_FILE, REDACTION_KEY_FILE):
        (data / name).write_bytes(KEY)
        (data / name).chmod(0o600)
    with embedded_parts(data) as parts:
        apply_tables(parts.transport, census_contract, census_reference)
    return data


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    good = census_lines(800, Planted("schl_absent", 250, 200))
    path = tmp_path_factory.mktemp("input") / "events.jsonl"
    path.write_bytes(b"".join([*good, *odd_lines(good, "a")]))
    return path


def resume(file: Path, data: Path) -> tuple[bytes, bytes]:
    """Go on in this process, to the end; all that was made."""
    with embedded_parts(data) as parts:
        embedded = _chain(parts)
        with file.open("rb") as stream:
            embedded.run(stream, path=file)
        embedded.close()
        return dump(data / CATALOGUE_FILE), passed_on(parts)


def _chain(parts: Parts) -> Embedded:
    return chain(parts, KILLED_BATCH, tagger=packaged_tagger())


@pytest.fixture(scope="module")
def whole(file: Path, blank: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    data = tmp_path_factory.mktemp("whole") / "data"
    shutil.copytree(blank, data)
    return resume(file, data)


@pytest.mark.parametrize(("stage", "point"), EVERY_POINT)
def test_a_killed_run_goes_on_where_it_stopped(
    stage: str,
    point: str,
    file: Path,
    blank: Path,
    whole: tuple[bytes, bytes],
    processes: ForkServerContext,
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    shutil.copytree(blank, data)
    process = processes.Process(target=run_command, args=(file, data, f"{stage}:{point}:1"))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert dump(data / CATALOGUE_FILE) != whole[0]  # it died before its end
    assert resume(file, data) == whole


def test_the_command_itself_dies_and_goes_on(
    file: Path, blank: Path, whole: tuple[bytes, bytes], tmp_path: Path
) -> None:
    """Once with the installed command, as a person starts it."""
    data = tmp_path / "data"
    shutil.copytree(blank, data)
    errata = [str(Path(sys.executable).with_name("errata")), *command(file, data)]
    armed = os.environ | {VARIABLE: "tagger:AFTER_PRODUCE:2"}
    assert subprocess.run(errata, env=armed, capture_output=True, timeout=60).returncode == -signal.SIGKILL
    again = subprocess.run(errata, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0, again.stderr
    assert "bytes were read before" in again.stdout
    assert resume(file, data) == whole


def test_a_crash_point_that_is_never_passed_kills_nothing(
    file: Path, blank: Path, whole: tuple[bytes, bytes], processes: ForkServerContext, tmp_path: Path
) -> None:
    """The control: the runs before this one died of their crash points."""
    data = tmp_path / "data"
    shutil.copytree(blank, data)
    process = processes.Process(target=run_command, args=(file, data, "tagger:AFTER_STEP:9999"))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert dump(data / CATALOGUE_FILE) == whole[0]
