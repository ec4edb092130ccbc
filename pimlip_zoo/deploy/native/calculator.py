"""A native model as an ASE calculator; needs no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from ase.calculators.calculator import Calculator, all_changes

from pimlip_zoo.datasets.neighbour_list import species_indices
from pimlip_zoo.datasets.unseen import UnseenElectrons
from pimlip_zoo.deploy.native.library import NativeModel
from pimlip_zoo.deploy.properties import VOIGT, numbers_of, stresses_of_atoms
from pimlip_zoo.deploy.skin import SkinnedPairs, check_finite, check_result
from pimlip_zoo.deploy.turns import InTurns, Turns
from pimlip_zoo.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray

_FEW_ATOMS = 200
"""Up to so many atoms without periodic images, the model looks at all distances itself."""


class NativeCalculator(InTurns, Calculator):
    """Energy, atomic energies, forces and stress of a native model, in ASE's units (eV, Å).

    A native model is a program: its C is compiled and run with the rights of whoever makes the calculator. Load only
    files of people whom you trust.

    Args:
        path: a file of ``pimlip-zoo export --format native``.
        skin: Å, how far neighbour lists reach beyond the cutoff, to be used again in molecular dynamics.
        threads: ``$OMP_NUM_THREADS``, or as many as there are cores, by default.
        uncertainty: also ``results["forces_uncertainty"]``, (N,) eV/Å, of a file that was exported with it.
    """

    implemented_properties: ClassVar[list[str]] = [
        *("energy", "free_energy", "energies", "forces"),
        *("stress", "stresses"),  # where the cell has a volume
    ]

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        skin: float = 0.5,
        threads: int | None = None,
        uncertainty: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.turns = Turns()
        self.model = NativeModel(path, threads=threads)
        self.neighbours = SkinnedPairs(self.model.cutoff, skin)
        self.unseen = UnseenElectrons(self.model.fixed_electrons)
        self.uncertainty = uncertainty
        if uncertainty and not self.model.has_uncertainty:
            raise InputError(
                "does not know how certain it is",
                file=path,
                hint="export it again with --uncertainty",
            )

    @property
    def allowed_atomic_numbers(self) -> set[int]:
        """Of the elements that the model knows."""
        return numbers_of(self.model.species)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last evaluation; a charge that is stated is looked at here, too."""
        self.unseen.look(atoms)
        changes: list[str] = super().check_state(atoms, tol)
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy", "forces"),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute everything; called by ASE."""
        super().calculate(atoms, properties, system_changes)
        structure = self.atoms
        species = species_indices(structure.numbers, self.model.species)
        pairs = None
        if len(structure) > _FEW_ATOMS or structure.pbc.any():
            pairs = self.neighbours.pairs(structure)
        else:
            check_finite(structure)
        cell = structure.cell.array
        found = self.model.structure(structure.positions, species, cell, pairs)
        energy = float(found.energies.sum())
        check_result(energy, found.forces, structure)
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": found.energies,
            "forces": found.forces,
        }
        if self.uncertainty:
            self.results["forces_uncertainty"] = self.model.forces_uncertainty(
                structure.positions, species, cell, pairs
            )
        volume = abs(np.linalg.det(cell)) if cell.any() else 0.0
        if volume > 0:
            self.results["stress"] = -found.virial.reshape(9)[VOIGT] / volume
        if volume > 0 and "stresses" in properties:
            self.results["stresses"] = self._stresses(structure, species, volume)

    def _stresses(self, structure: Atoms, species: NDArray[np.int64], volume: float) -> NDArray[np.float64]:
        edge_index, shift = self.neighbours.pairs(structure)
        vectors = np.diff(structure.positions[edge_index], axis=0)[0] + shift @ structure.cell.array
        near = np.square(vectors).sum(axis=1) < self.model.cutoff**2
        vectors, edge_index = vectors[near], np.ascontiguousarray(edge_index[:, near])
        _, gradient = self.model.evaluate(vectors, edge_index, species, np.ones(len(structure)))
        return stresses_of_atoms(vectors, gradient, edge_index, len(structure), volume)
