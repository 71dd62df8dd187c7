"""The fitted length curve: saved as JSON, subtracted from scores; `length_bias` fits it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from stages.rlhf.records import LengthUnit


@dataclass(frozen=True)
class LengthCurve:
    """f at ascending lengths, interpolated linearly and constant beyond the ends."""

    lengths: tuple[float, ...]
    offsets: tuple[float, ...]  # in units of the score; mean 0 over the answers of the fit
    unit: LengthUnit = "characters"

    def __post_init__(self) -> None:
        if self.unit not in get_args(LengthUnit):
            raise ValueError(
                f"length curve: unit {self.unit!r}; expected one of {get_args(LengthUnit)}"
            )
        if not self.lengths or len(self.lengths) != len(self.offsets):
            raise ValueError(
                f"length curve: {len(self.lengths)} lengths and {len(self.offsets)} offsets; "
                "expected equal numbers, at least one"
            )
        for name in ("lengths", "offsets"):
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"length curve: {name} {getattr(self, name)} are not all finite")
        if (np.diff(self.lengths) <= 0).any():
            raise ValueError(f"length curve: lengths {self.lengths} are not strictly ascending")

    def at(self, lengths: Sequence[float] | np.ndarray) -> np.ndarray:
        """(N,) lengths -> (N,) offsets, to be subtracted from the scores."""
        return np.interp(np.asarray(lengths, dtype=float), self.lengths, self.offsets)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "unit": self.unit,
            "lengths": list(self.lengths),
            "offsets": list(self.offsets),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "LengthCurve":
        """Inverse of `to_dict`. Raises ValueError naming what is wrong."""
        expected = {"unit", "lengths", "offsets"}
        if set(plain) != expected:
            raise ValueError(f"length curve: keys {sorted(plain)}; expected {sorted(expected)}")
        knots = {}
        for name in ("lengths", "offsets"):
            try:
                knots[name] = tuple(float(value) for value in plain[name])
            except (TypeError, ValueError) as error:
                raise ValueError(f"length curve: {name} must be a list of numbers") from error
        return cls(unit=plain["unit"], **knots)
