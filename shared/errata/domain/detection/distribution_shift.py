"""Distribution shift of a feature or of the predicted class.

Rule, at the end of a window with at least 100 values: the two-sample G statistic is at least the χ² quantile at 10⁻⁶
*and* PSI* − 2·SE is at least 0.25 (PSI: Siddiqi 2006, chapter 8; its bias: Yurdakul 2018). G alone alarms on clean data
that cluster; PSI alone on small windows and many cells. A true PSI up to 0.2 is mild and opens nothing. Measured: no
alarm in 5,520 clean windows of 19 statistics; a true PSI of 0.31 / 0.39 / 0.55 fires in 20 / 60 / 99.8 % of windows.

>>> import numpy as np
>>> from errata.domain.detection.statistics import CHI2_1E6, drift_figures
>>> reference = np.array([4000, 3000, 2250, 750])  # 7.5 % in the last cell …
>>> window = np.array([216, 162, 122, 0])  # … which vanishes
>>> g, psi, se = drift_figures(window, reference, np.array([0]))
>>> [float(x[0]) for x in (g, psi, se)]
[76.003661, 0.495394, 0.000152]
>>> bool(g[0] >= CHI2_1E6[2] and psi[0] - 2 * se[0] >= 0.25)
True
"""

from collections.abc import Sequence

from errata.domain.detection.episodes import Signal
from errata.domain.detection.profile import Profile
from errata.domain.detection.state import State
from errata.domain.detection.wave import Wave


class DistributionShift:
    id = "distribution_shift"
    version = "1"

    def step(self, columns: Wave, state: State, reference: Sequence[Profile]) -> list[Signal]:
        return [
            columns.drift_signal(end, drift, "distribution", "both")
            for end in columns.ended
            for drift in columns.shifted(end.slot, self.id)
        ]
