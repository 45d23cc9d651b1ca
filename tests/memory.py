"""What a process holds, as the system counts it."""

from pathlib import Path

import pytest

counted = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="this system does not tell what a process holds"
)


def resident_mb(pid: int | str = "self", kind: str = "VmRSS") -> float:
    """Resident memory of a process in MB; ``kind`` RssAnon: only what is no file's."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(f"{kind}:"))
    return int(line.split()[1]) / 1_024
