"""How many plain labels do what some labels do with a recipe, read off learning curves.

The plain runs' errors at several numbers of labels make a curve, a broken line in the logarithms of both, made to
fall (more labels harm only by chance). Where it reaches the error of the recipe's run is the number of plain labels
that do the same. The interval is a bootstrap over the seeds. Beyond the curve's ends nothing is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTITIES = {
    "energies": "energy_per_atom_rmse",
    "forces": "forces_rmse",
    "stress": "stress_rmse",
    "stability": "stable_ps",
}
"""What is compared, and the column of a curve's rows that it is in; all are better when lower but the last."""
PLAIN = "none"
COVERED = 0.9
"""Share of the bootstrap's draws that the interval holds."""
_SAME_TIME = 1.25

_Logs = dict[int, dict[int, float]]
"""Logarithm of the error by number of labels and seed."""


@dataclass(frozen=True)
class Equivalence:
    """So many labels with a recipe do what so many plain ones do."""

    test: str
    weak: str
    size: int
    """Labelled structures with the recipe."""
    quantity: str
    """One of :data:`QUANTITIES`."""
    equal: float
    """Plain labelled structures; the curve's end where it lies beyond."""
    beyond: int
    """1: more than ``equal``, the largest number that was run; -1: fewer than the smallest; 0: between."""
    low: float | None
    """Ends of the interval; None with fewer than two seeds. At an end of the curve it may be wider."""
    high: float | None
    ends: tuple[float, float]
    """The smallest and the largest number of plain labels."""
    seeds: int
    time: float | None
    """CPU time of the recipe's runs over that of the plain ones that are as good; None where it is not known."""

    @property
    def number(self) -> str:
        """Such as ``= 210 [150, >400]``."""
        sign = {1: "> ", -1: "< ", 0: ""}[self.beyond]
        text = f"{sign}{_round(self.equal)}"
        if self.low is None or self.high is None:
            return text
        low = f"<{_round(self.low)}" if self.low <= self.ends[0] else _round(self.low)
        high = f">{_round(self.high)}" if self.high >= self.ends[1] else _round(self.high)
        return f"{text} [{low}, {high}]"

    @property
    def same_time(self) -> bool:
        """Whether both took about as long."""
        return self.time is not None and 1 / _SAME_TIME <= self.time <= _SAME_TIME

    @property
    def sentence(self) -> str:
        """One line for people."""
        relation = "= " if self.beyond == 0 else ""
        text = f"{self.size} labels with {self.weak} {relation}{self.number} plain labels in {self.quantity}"
        if self.low is None:
            text += " (one seed: no interval)"
        if self.time is None:
            return text
        return text + (
            " at equal time" if self.same_time else f", at {self.time:.2g} times the computing time"
        )


def equivalences(rows: Sequence[Mapping[str, Any]], *, draws: int = 2000, seed: int = 0) -> list[Equivalence]:
    """What every run with a recipe equals, by test set, recipe, number of labels and quantity.

    Args:
        rows: single runs: ``test``, ``weak``, ``size``, ``seed``, ``cpu_seconds`` and columns of :data:`QUANTITIES`;
            those of plain runs have ``weak`` "none" and at least two sizes, or nothing can be said.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        Nothing for test sets and quantities without a plain curve.
    """
    found = []
    tests = sorted({row["test"] for row in rows})
    recipes = sorted({row["weak"] for row in rows} - {PLAIN})
    for test in tests:
        for weak in recipes:
            for quantity, column in QUANTITIES.items():
                plain = _logs(rows, test, PLAIN, column)
                if len(plain) < 2:
                    continue
                for size, errors in sorted(_logs(rows, test, weak, column).items()):
                    result = _equal(plain, errors, np.random.default_rng(seed), draws)
                    took = _ratio(rows, test, weak, size, result[0])
                    seeds = min(len(errors), *(len(each) for each in plain.values()))
                    ends = (float(min(plain)), float(max(plain)))
                    found.append(Equivalence(test, weak, size, quantity, *result, ends, seeds, took))
    return found


def _logs(rows: Sequence[Mapping[str, Any]], test: str, weak: str, column: str) -> _Logs:
    sign = -1.0 if column == QUANTITIES["stability"] else 1.0
    logs: _Logs = {}
    for row in rows:
        value = row.get(column)
        if row["test"] == test and row["weak"] == weak and value is not None and float(value) > 0:
            logs.setdefault(int(row["size"]), {})[int(row["seed"])] = sign * math.log(float(value))
    return logs


def _equal(
    plain: _Logs, errors: dict[int, float], rng: np.random.Generator, draws: int
) -> tuple[float, int, float | None, float | None]:
    """The number, whether it is beyond an end, and the interval."""
    sizes = np.log(np.array(sorted(plain), dtype=np.float64))
    cells = [plain[size] for size in sorted(plain)]
    means = np.array([np.mean(list(cell.values())) for cell in cells])
    target = float(np.mean(list(errors.values())))
    number, beyond = _cross(sizes, means, target)
    if min(len(cell) for cell in (errors, *cells)) < 2:
        return number, beyond, None, None
    seeds = np.array(sorted(set(errors).union(*cells)))
    drawn = []
    for _ in range(draws):
        # A seed chooses the structures, too: a lucky choice is lucky for all that are trained on it.
        chosen = rng.choice(seeds, len(seeds))
        values = np.array([_mean(cell, chosen) for cell in cells])
        drawn.append(_cross(sizes, values, _mean(errors, chosen))[0])
    tail = (1.0 - COVERED) / 2
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return number, beyond, min(float(low), number), max(float(high), number)


def _mean(cell: Mapping[int, float], chosen: NDArray[np.int64]) -> float:
    """Of the chosen seeds; its distance from the mean of all is widened, since few seeds spread too little."""
    mean = float(np.mean(list(cell.values())))
    values = [cell[seed] for seed in chosen.tolist() if seed in cell]
    if not values:
        return mean
    return mean + math.sqrt(len(cell) / (len(cell) - 1)) * (float(np.mean(values)) - mean)


def _cross(sizes: NDArray[np.float64], means: NDArray[np.float64], target: float) -> tuple[float, int]:
    """Where a falling broken line reaches the target, as a number of labels, and whether that is beyond an end."""
    line = falling(means)
    if target >= line[0]:
        return _number(sizes[0]), -1 if target > line[0] else 0
    if target < line[-1]:
        return _number(sizes[-1]), 1
    after = int(np.argmax(line <= target))
    before = after - 1
    part = (line[before] - target) / (line[before] - line[after])
    return _number(sizes[before] + part * (sizes[after] - sizes[before])), 0


def _number(logarithm: float) -> float:
    """Whole numbers as they were before their logarithm was taken."""
    return round(math.exp(logarithm), 9)


def falling(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest sequence, in least squares, that never rises."""
    from scipy.optimize import isotonic_regression  # type: ignore[import-untyped]

    line: NDArray[np.float64] = isotonic_regression(values, increasing=False).x
    return line


def _ratio(rows: Sequence[Mapping[str, Any]], test: str, weak: str, size: int, equal: float) -> float | None:
    """CPU time of the recipe over that of plain runs with so many labels, between the sizes that were run."""

    def times(name: str) -> dict[int, float]:
        by_size: dict[int, list[float]] = {}
        for row in rows:
            seconds = row.get("cpu_seconds")
            if row["test"] == test and row["weak"] == name and seconds:
                by_size.setdefault(int(row["size"]), []).append(float(seconds))
        return {n: float(np.mean(each)) for n, each in sorted(by_size.items())}

    own, plain = times(weak).get(size), times(PLAIN)
    if own is None or not plain:
        return None
    sizes = np.log(np.array(list(plain), dtype=np.float64))
    return own / float(np.exp(np.interp(math.log(equal), sizes, np.log(list(plain.values())))))


def _round(number: float) -> str:
    """Two digits of what was interpolated, whole below 100."""
    if number < 100:
        return f"{number:.0f}"
    step = 10.0 ** (math.floor(math.log10(number)) - 1)
    return f"{round(number / step) * step:.0f}"
