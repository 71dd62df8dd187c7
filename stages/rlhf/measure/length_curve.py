"""The length curve as it lies on disk and is subtracted from scores; `length_bias` fits it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from stages.rlhf.measure.ranked_groups import Unit


@dataclass(frozen=True)
class LengthCurve:
    """f at rising lengths, linear between them and level beyond the ends."""

    lengths: tuple[float, ...]
    offsets: tuple[float, ...]  # in units of the score; their mean over the fitted answers is 0
    unit: Unit = "characters"

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ValueError(f"length curve: unit {self.unit!r}; one of {get_args(Unit)} expected")
        if not self.lengths or len(self.lengths) != len(self.offsets):
            raise ValueError(
                f"length curve: {len(self.lengths)} lengths and {len(self.offsets)} offsets; "
                "as many of both, at least one, were expected"
            )
        for name in ("lengths", "offsets"):
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"length curve: {name} {getattr(self, name)} are not all finite")
        if (np.diff(self.lengths) <= 0).any():
            raise ValueError(f"length curve: lengths {self.lengths} do not rise")

    def at(self, lengths: Sequence[float] | np.ndarray) -> np.ndarray:
        """(N,) lengths -> (N,) offsets, to be subtracted from the scores."""
        return np.interp(np.asarray(lengths, dtype=float), self.lengths, self.offsets)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON."""
        return {
            "unit": self.unit,
            "lengths": list(self.lengths),
            "offsets": list(self.offsets),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "LengthCurve":
        """The curve of `to_dict`. Raises ValueError naming what is wrong with it."""
        expected = {"unit", "lengths", "offsets"}
        if set(plain) != expected:
            raise ValueError(f"length curve: keys {sorted(plain)}; {sorted(expected)} expected")
        knots = {}
        for name in ("lengths", "offsets"):
            try:
                knots[name] = tuple(float(value) for value in plain[name])
            except (TypeError, ValueError) as error:
                raise ValueError(f"length curve: {name} must be a list of numbers") from error
        return cls(unit=plain["unit"], **knots)
