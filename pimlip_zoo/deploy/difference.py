"""A potential that learnt the difference to a cheap calculator, as an ASE calculator of the sum."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from ase.calculators.mixing import SumCalculator

from pimlip_zoo.deploy.properties import changes_of_parts, common_numbers
from pimlip_zoo.deploy.turns import InTurns, Turns
from pimlip_zoo.errors import InputError
from pimlip_zoo.weak_labels.calculators import find_cheap_calculator

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator


class _Sum(InTurns, SumCalculator):
    """Looks at what its parts look at: a charge in ``info`` changes the energy of the cheap calculator."""

    def __init__(self, parts: list[Calculator]) -> None:
        super().__init__(parts)
        self.turns = Turns()

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        changes: list[str] = super().check_state(atoms, tol)
        return changes or changes_of_parts(self.mixer.calcs, atoms, tol)


def with_baseline(
    calculator: Calculator, baselines: Collection[str | None], *, trust: bool = False
) -> Calculator:
    """The calculator, plus the cheap one that it is a correction to.

    Args:
        calculator: of one run, or a committee of several.
        baselines: the baseline of each run; None: a run that stands alone.
        trust: call the function that a run names as its baseline, unless that is a calculator of this package.

    Raises:
        InputError: when the runs have different baselines, or the cheap calculator is not installed or not trusted.
    """
    different = set(baselines)
    if len(different) > 1:
        names = ", ".join(sorted(str(name) for name in different))
        raise InputError(
            f"the runs are corrections to different levels: {names}", hint="use runs of one kind"
        )
    (baseline,) = different
    if baseline is None:
        return calculator
    parts = [find_cheap_calculator(baseline, trust=trust).make(), calculator]
    total = _Sum(parts)
    allowed = common_numbers(parts)
    if allowed is not None:
        total.allowed_atomic_numbers = allowed
    return total
