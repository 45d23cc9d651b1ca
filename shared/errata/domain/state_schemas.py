"""The versions of state records, and how an older one is brought to this release's form.

A release reads every version from which upgrades lead to its own, and no newer one. The rule for going back: release
N−1 reads what release N writes, so a version is raised one release after it can be read; where that cannot be, the
state gets a new epoch, which is another topic, filled by ``errata state rebuild``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from errata.errors import StateDamaged

Upgrade = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Schema:
    """A kind of state record. ``upgrades[v]`` makes content of version v + 1 from that of v.

    >>> Schema("count", 2, {1: lambda found: {**found, "of": "ids"}}).read(1, {"taken": 7})
    {'taken': 7, 'of': 'ids'}
    """

    kind: str
    version: int
    upgrades: Mapping[int, Upgrade] = field(default_factory=dict)

    def read(self, version: int, content: Any) -> Any:
        """Content in the form of this release. Raises ``StateDamaged`` (``schema_newer``, ``schema_older``)."""
        if version > self.version:
            raise StateDamaged(
                f"schema_newer: its {self.kind} is of version {version}, this release reads up to {self.version}; run"
                " the newer release, or errata state rebuild"
            )
        for at in range(version, self.version):
            if at not in self.upgrades:
                raise StateDamaged(
                    f"schema_older: its {self.kind} is of version {version}, which this release (version"
                    f" {self.version}) cannot bring up to date; run the release between them first, or errata state"
                    " rebuild"
                )
            content = self.upgrades[at](content)
        return content
