"""Several potentials as one: the mean is what is simulated, the spread says how far it can be trusted."""

from __future__ import annotations

import logging
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.calculators.calculator import Calculator, all_changes

from pimlip_zoo.datasets.unseen import UnseenElectrons
from pimlip_zoo.deploy.properties import changes_of_parts, common_numbers
from pimlip_zoo.deploy.turns import InTurns, Turns
from pimlip_zoo.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms
    from numpy.typing import NDArray

    from pimlip_zoo.datasets.electrons import Electrons


log = logging.getLogger("pimlip_zoo")

_WEAK = 1e-3  # eV/Å; weaker forces may be equal by symmetry
_EQUAL = 1e-5
"""Relative; what is left of single precision."""


class CommitteeCalculator(InTurns, Calculator):
    """ASE calculator of the mean of several calculators and of their standard deviation.

    The mean energy, forces and stress belong together: the forces are the derivative of the mean energy. The
    standard deviations are those of a sample (n - 1); ``results`` has them as

    - ``energy_std``: eV,
    - ``forces_std``: (N,) eV/Å, ``sqrt(sum_k |F_k - F|^2 / (n - 1))`` of each atom,
    - ``stress_std``: (6,) eV/Å³, where the members have stress,
    - ``member_energies``: (n,) eV, ``member_forces``: (n, N, 3) eV/Å.

    A spread among models trained on the same data tells where they extrapolate; it is no error bar
    (H. S. Seung, M. Opper, H. Sompolinsky, COLT 1992; C. Schran et al., J. Chem. Phys. 153, 104105 (2020)).

    Args:
        members: at least two calculators.

    Raises:
        InputError: for fewer than two.
    """

    def __init__(self, members: Sequence[Calculator]) -> None:
        super().__init__()
        self.turns = Turns()
        self.members = list(members)
        if len(self.members) < 2:
            raise InputError(
                f"a committee of {len(self.members)} has no spread", hint="give two or more trained runs"
            )
        self._compared = False
        allowed = common_numbers(self.members)
        if allowed is not None:
            self.allowed_atomic_numbers = allowed
        self._say_once()
        self.implemented_properties = ["energy", "free_energy", "energy_std"]
        for name in ("forces", "stress"):
            if all(name in member.implemented_properties for member in self.members):
                self.implemented_properties += [name, f"{name}_std"]

    def _say_once(self) -> None:
        """Members share what they say of charges that they do not see."""
        first: dict[Electrons | None, UnseenElectrons] = {}
        for member in self.members:
            unseen = getattr(member, "unseen", None)
            if isinstance(unseen, UnseenElectrons):
                member.unseen = first.setdefault(unseen.fixed, unseen)

    def _say_equal(self, forces: NDArray[np.float64]) -> None:
        """Say of two members that are one model, such as a run and what was exported from it."""
        largest = np.abs(forces).max(initial=0.0)
        if self._compared or largest < _WEAK:
            return
        self._compared = True
        for first, second in combinations(range(len(forces)), 2):
            if np.abs(forces[first] - forces[second]).max() <= _EQUAL * largest:
                log.warning(
                    "members %d and %d of the committee agree to %.0e of the forces: is it one model twice? Their "
                    "spread says nothing",
                    *(first + 1, second + 1, _EQUAL),
                )

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last evaluation, also in what the members alone look at, such as ``info``."""
        changes: list[str] = super().check_state(atoms, tol)
        return changes or changes_of_parts(self.members, atoms, tol)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Ask every member; called by ASE."""
        super().calculate(atoms, list(properties), list(system_changes))
        energies = self._ask("energy")
        self.results = {
            "energy": float(energies.mean()),
            "free_energy": float(energies.mean()),
            "energy_std": float(energies.std(ddof=1)),
            "member_energies": energies,
        }
        if "forces" in self.implemented_properties:
            forces = self._ask("forces")
            self._say_equal(forces)
            self.results |= {
                "forces": forces.mean(axis=0),
                "forces_std": np.sqrt(forces.var(axis=0, ddof=1).sum(axis=-1)),
                "member_forces": forces,
            }
        if {"stress", "stress_std"} & set(properties):
            stress = self._ask("stress")
            self.results |= {"stress": stress.mean(axis=0), "stress_std": stress.std(axis=0, ddof=1)}

    def _ask(self, name: str) -> NDArray[np.float64]:
        answers: list[Any] = [member.get_property(name, self.atoms) for member in self.members]
        return np.array(answers, dtype=np.float64)
