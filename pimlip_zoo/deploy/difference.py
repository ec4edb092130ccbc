"""A potential that learnt the difference to a cheap calculator, as an ASE calculator of the sum."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from ase.calculators.mixing import SumCalculator

from pimlip_zoo.deploy.properties import changes_of_parts, common_numbers
from pimlip_zoo.deploy.turns import InTurns, Turns
from pimlip_zoo.errors import InputError
from pimlip_zoo.weak_labels.calculators import find_cheap_calculator

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator


class _Sum(InTurns, SumCalculator):
    """Looks at what its parts look at: a charge in ``info`` changes the energy of the cheap calculator.

    Args:
        parts: the cheap calculator, and what is added to it.
        baseline: the name that a copy's cheap calculator is made from; None: it is copied.
    """

    def __init__(self, parts: Sequence[Calculator], baseline: str | None = None) -> None:
        super().__init__(list(parts))
        self.baseline, self.correction = baseline, parts[1]
        self.turns = Turns()
        self.of_correction = tuple(getattr(self.correction, "its_own", ()))
        """Properties that the cheap calculator has nothing to do with: uncertainties."""
        self.implemented_properties = [*self.mixer.implemented_properties, *self.of_correction]

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        changes: list[str] = super().check_state(atoms, tol)
        return changes or changes_of_parts(self.mixer.calcs, atoms, tol)

    def calculate(self, atoms: Atoms, properties: Sequence[str], system_changes: Sequence[str]) -> None:
        """Sums, and the correction's own properties where they are asked for or there."""
        sums = [name for name in properties if name not in self.of_correction]
        super().calculate(atoms, sums or ["energy"], system_changes)
        for name in self.of_correction:
            if name in properties or name in self.correction.results:
                self.results[name] = self.correction.get_property(name, atoms)

    def __getstate__(self) -> dict[str, Any]:
        """With a cheap calculator made anew where a name says all of it: ASE's EMT cannot be pickled once used."""
        state = super().__getstate__()
        if self.baseline is not None:
            parts = [find_cheap_calculator(self.baseline).make(), self.correction]
            state["mixer"] = type(self.mixer)(parts, self.mixer.weights)
        return state


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
    found = find_cheap_calculator(baseline, trust=trust)
    parts = [found.make(), calculator]
    total = _Sum(parts, baseline if found.by_name else None)
    allowed = common_numbers(parts)
    if allowed is not None:
        total.allowed_atomic_numbers = allowed
    return total
