"""What a process holds, as the system counts it."""

import os
import platform
from pathlib import Path

import pytest

# Under CI the tests run, and fail where the system is another.
counted = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists() and os.environ.get("CI") != "true",
    reason="this system does not tell what a process holds",
)
of_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" and os.environ.get("CI") != "true",
    reason="only glibc can be asked for what it keeps",
)


def resident_mb(pid: int | str = "self", kind: str = "Rss") -> float:
    """Resident memory of a process in MB; ``kind`` Anonymous: only what is no file's.

    Counted page by page: what ``/proc/<pid>/status`` says is up to 64 pages of each processor off, from Linux 6.2 on.
    """
    pages = Path(f"/proc/{pid}/smaps_rollup").read_text()
    (line,) = (line for line in pages.splitlines() if line.startswith(f"{kind}:"))
    return int(line.split()[1]) / 1_024
