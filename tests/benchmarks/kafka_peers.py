"""Stages in other people's frameworks, each in an environment of its own that is made when it is first needed."""

import fcntl
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from tests.benchmarks.kafka_rig import Round, Taken, child

PEERS = Path(__file__).parent / "peers"
CACHE = Path(__file__).parents[2] / ".bench"
MAKE_TIMEOUT_S = 600.0


class PeerError(Exception):
    """The environment of a peer cannot be made."""


def environment_of(name: str) -> Path:
    """The interpreter of ``peers/<name>.txt``; made once for each content of that file and each Python."""
    requirements = PEERS / f"{name}.txt"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = CACHE / f"{name}-{python}-{sha256(requirements.read_bytes()).hexdigest()[:12]}"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            _make(folder, requirements)
    return folder / "bin" / "python"


def _make(folder: Path, requirements: Path) -> None:
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    interpreter = str(folder / "bin" / "python")
    _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], requirements)
    _run([uv, "pip", "install", "--quiet", "--python", interpreter, "-r", str(requirements)], requirements)
    (folder / "complete").touch()


def _run(command: list[str], requirements: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=MAKE_TIMEOUT_S, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{requirements.name}: its environment cannot be made: {error}") from None
    if done.returncode != 0:
        raise PeerError(f"{requirements.name}: its environment cannot be made: {done.stderr.strip()[-500:]}")


def faust(round_: Round, events: int) -> Taken:
    """An agent that only reads."""
    script = PEERS / "faust_noop.py"
    return child([str(environment_of("faust")), str(script), round_.address, round_.topic, str(events)], round_.folder)


def quixstreams(round_: Round, events: int) -> Taken:
    """A map that sends one of a hundred."""
    script, target = PEERS / "quixstreams_map.py", round_.new_topic("quixstreams.out")
    command = [str(environment_of("quixstreams")), str(script), round_.address, round_.topic, target, str(events)]
    return child(command, round_.folder)
