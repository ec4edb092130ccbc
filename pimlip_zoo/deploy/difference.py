"""A potential that learnt the difference to a cheap calculator, as an ASE calculator of the sum."""

from __future__ import annotations

import pickle
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
        baseline: name of the cheap calculator.
        cheap: made from it.
        correction: what is added.
    """

    def __init__(self, baseline: str, cheap: Calculator, correction: Calculator) -> None:
        super().__init__([cheap, correction])
        self.baseline, self.correction = baseline, correction
        self.turns = Turns()
        self.of_correction = tuple(getattr(correction, "its_own", ()))
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
        """With another cheap calculator of the same name where this one cannot be pickled, as ASE's EMT once used."""
        state = super().__getstate__()
        cheap, correction = self.mixer.calcs
        try:
            pickle.dumps(cheap)
        except Exception:  # noqa: BLE001  (each class has its own way of not being pickled)
            fresh = find_cheap_calculator(
                self.baseline, trust=True
            ).make()  # it was called in this process before
            state["mixer"] = type(self.mixer)([fresh, correction], self.mixer.weights)
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
    cheap = find_cheap_calculator(baseline, trust=trust).make()
    total = _Sum(baseline, cheap, calculator)
    allowed = common_numbers([cheap, calculator])
    if allowed is not None:
        total.allowed_atomic_numbers = allowed
    return total
