"""How long evaluations take, from a few of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pimlip_zoo.physics.property import Work

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

_LARGE = 64  # atoms
_SHIFT = 1e-3  # Å: ASE does not compute the same structure twice


@dataclass(frozen=True)
class Rate:
    """Seconds of one evaluation: a part that is always there, and one for each atom."""

    start: float
    per_atom: float

    def seconds(self, work: Sequence[Work]) -> float:
        """About how long it takes."""
        return sum(each.evaluations * (self.start + self.per_atom * each.atoms) for each in work)


def measure_rate(atoms: Atoms, calculator: Calculator) -> Rate:
    """The rate from one structure, and from a larger one where it can be repeated.

    Args:
        atoms: not moved.
        calculator: to be measured; the first evaluation, which may compile something, does not count.
    """
    small = _seconds(atoms, calculator)
    numbers = [1, 1, 1]
    axes = [axis for axis in range(3) if atoms.pbc[axis]]
    while axes and len(atoms) * numbers[0] * numbers[1] * numbers[2] < _LARGE:
        shortest = min(axes, key=lambda axis: numbers[axis] * float(atoms.cell.lengths()[axis]))
        numbers[shortest] += 1
    larger = atoms.repeat(numbers)
    if len(larger) == len(atoms):
        return Rate(0.0, small / len(atoms))
    large = _seconds(larger, calculator)
    per_atom = max(0.0, (large - small) / (len(larger) - len(atoms)))
    return Rate(max(0.0, small - per_atom * len(atoms)), per_atom)


def _seconds(atoms: Atoms, calculator: Calculator) -> float:
    moved = atoms.copy()
    moved.calc = calculator
    moved.get_forces()
    started = time.perf_counter()
    for count in (1, 2):
        moved.positions[0, 0] += _SHIFT * count
        moved.get_forces()
    return (time.perf_counter() - started) / 2
