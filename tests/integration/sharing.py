"""One server for all workers of a test run: the first that needs it starts it, and stops it when the last has left."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

LEAVE_TIMEOUT_S = 1_800.0  # the longest the first worker waits for the others, at its own end
POLL_S = 0.1


@contextmanager
def shared(folder: Path, name: str, start: Callable[[], AbstractContextManager[str]]) -> Iterator[str]:
    """The address of server ``name``, the same in every process that shares ``folder``.

    The server belongs to the process that started it and dies with it; a later one then starts its own.
    """
    users = folder / f"{name}.users"
    users.mkdir(exist_ok=True)
    entry, me = folder / f"{name}.json", users / str(os.getpid())
    with ExitStack() as stack:
        with _locked(folder, name):
            address = _address(entry)
            if address is None:
                address = stack.enter_context(start())
                entry.write_text(json.dumps({"owner": os.getpid(), "address": address}))
                stack.callback(_await_others, folder, name, users, entry)
            else:
                me.touch()
                stack.callback(me.unlink)
        yield address


def _address(entry: Path) -> str | None:
    if not entry.exists():
        return None
    kept = json.loads(entry.read_text())
    return str(kept["address"]) if _alive(kept["owner"]) else None


def _await_others(folder: Path, name: str, users: Path, entry: Path) -> None:
    deadline_s = time.monotonic() + LEAVE_TIMEOUT_S
    while True:
        with _locked(folder, name):
            if time.monotonic() > deadline_s or not any(_alive(int(user.name)) for user in users.iterdir()):
                entry.unlink()  # from here on a newcomer starts its own
                return
        time.sleep(POLL_S)


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
