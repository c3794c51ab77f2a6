"""How a figure is written for people: in a sentence, a table, a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NONE = "n/a"


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; None where it cannot be had.

    Attributes:
        value: the figure, as a fraction where it is a share.
        low, high: the interval's ends.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def text(self) -> str:
        """As a table has it: ``0.971 [0.962, 0.979]``."""
        return f"{self.figure} {self.bounds}".strip()

    @property
    def figure(self) -> str:
        """Without the interval: ``0.971``."""
        return NONE if self.value is None else f"{self.value:.3f}"

    @property
    def bounds(self) -> str:
        """The interval alone: ``[0.962, 0.979]``, or "" if there is none."""
        if self.low is None or self.high is None:
            return ""
        return f"[{self.low:.3f}, {self.high:.3f}]"

    @property
    def percent(self) -> str:
        """As a sentence has it: ``97.1 %``."""
        return NONE if self.value is None else percent(self.value)

    @property
    def range(self) -> str:
        """The interval in per cent, ``95 % CI 96.2 to 97.9``, or "" if there is none."""
        if self.low is None or self.high is None:
            return ""
        ends = [percent(end).removesuffix(_SIGN) for end in (self.low, self.high)]
        return f"95{_SIGN} CI {ends[0]} to {ends[1]}"

    @property
    def with_range(self) -> str:
        """Per cent with the interval, as a sentence has it."""
        return f"{self.percent} ({self.range})" if self.range else self.percent


_SIGN = "\N{NO-BREAK SPACE}%"


Cell = str | int | Estimate  # of a table for people


def as_text(cell: Cell) -> str:
    """Return a cell as it is read."""
    if isinstance(cell, Estimate):
        return cell.text
    return cell if isinstance(cell, str) else f"{cell:,}"


def estimate(figures: Mapping[str, Any], name: str, *, interval: str = "") -> Estimate:
    """Return a figure of a JSON object that keeps intervals under ``confidence_interval_95``.

    Args:
        figures: the object; a figure that is not in it is None.
        name: the figure's.
        interval: the interval's name, where it is another.
    """
    bounds = (figures.get("confidence_interval_95") or {}).get(interval or name)
    return make_estimate(figures.get(name), bounds)


def make_estimate(value: float | None, bounds: Any) -> Estimate:
    """Return a figure with ``(low, high)``, or without if that is None."""
    return Estimate(value) if bounds is None or value is None else Estimate(value, *bounds)


def percent(share: float) -> str:
    """Return a share with one decimal; nothing short of all is 100 %, and no few are 0 %."""
    digits = f"{100 * share:.1f}"
    if digits == "100.0" and share < 1:
        digits = ">99.9"
    elif digits == "0.0" and share > 0:
        digits = "<0.1"
    elif share in (0, 1):
        digits = digits[:-2]
    return digits + _SIGN


def count(number: int, one: str, many: str = "") -> str:
    """Return ``no cell``, ``1 cell``, ``2,386 cells``."""
    if number == 0:
        return f"no {one}"
    return f"{number:,} {one if number == 1 else many or one + 's'}"
