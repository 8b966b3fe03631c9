"""A measured value with its 95% interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from scipy.special import stdtrit


@dataclass(frozen=True)
class Score(float):
    """A measured value with its 95% interval. It behaves as the float `value` in arithmetic.

    Attributes:
        value: The value, in percent where papers give percent.
        low: Lower end of the 95% interval, None if there is no interval.
        high: Upper end of the 95% interval.
        std: Sample standard deviation over the trials, whose mean is `value`; None for a single trial.
        trials: Number of seeds or drawn samples.
        over: What the interval is over: `images` (bootstrap of the test set), `trials` (Student's t of their mean).
    """

    value: float
    low: float | None = None
    high: float | None = None
    std: float | None = None
    trials: int = 1
    over: str | None = None

    def __new__(cls, value: float, *_: object, **__: object):
        """A float of the value; the other arguments become attributes."""
        return super().__new__(cls, value)

    __hash__ = float.__hash__

    def __eq__(self, other: object) -> bool:
        return asdict(self) == asdict(other) if isinstance(other, Score) else float(self) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ends of the 95% interval, None if there is none."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @classmethod
    def over_images(cls, value: float, interval: tuple[float, float]) -> Score:
        """A value with the bootstrap interval of its test set; without one if an end is not finite."""
        low, high = map(float, interval)
        return cls(float(value), low, high, over="images") if math.isfinite(low + high) else cls(float(value))

    @classmethod
    def over_trials(cls, values: Sequence[float]) -> Score:
        """The mean of trials with their sample standard deviation and Student's 95% interval of the mean.

        Args:
            values: One value for each trial. A single value has neither deviation nor interval.

        Returns:
            mean +- t(0.975, n - 1) * std / sqrt(n).
        """
        values, count = [float(value) for value in values], len(values)
        mean = statistics.fmean(values)
        if count < 2:
            return cls(mean)
        std = statistics.stdev(values)
        reach = float(stdtrit(count - 1, 0.975)) * std / math.sqrt(count)
        return cls(mean, mean - reach, mean + reach, std, count, "trials")
