"""Potentials whose properties are known, and some that have none."""

from __future__ import annotations

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT


class Single(EMT):
    """EMT as a potential in single precision gives it."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {
            key: np.asarray(value, dtype=np.float32).astype(float) for key, value in self.results.items()
        }
        self.results["energy"] = float(self.results["energy"])


class Repulsion(Calculator):
    """Atoms that only push each other: no crystal, no molecule."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        from ase.neighborlist import neighbor_list

        i, _, d, vectors = neighbor_list("ijdD", self.atoms, 6.0)
        slopes = -10 * np.exp(-d)
        forces = np.zeros((len(self.atoms), 3))
        np.add.at(forces, i, slopes[:, None] * vectors / d[:, None])
        stress = np.einsum("e,ea,eb->ab", slopes / d, vectors, vectors) / 2
        self.results = {"energy": float(10 * np.exp(-d).sum() / 2), "forces": forces}
        if self.atoms.cell.rank == 3:
            stress /= self.atoms.get_volume()
            self.results["stress"] = stress.reshape(9)[[0, 4, 8, 5, 2, 1]]


class Springs(Calculator):
    """Springs between all pairs of a molecule but one, whose turn costs ``height (1 - cos φ)``; it may jump."""

    implemented_properties = ("energy", "forces")

    def __init__(self, atoms, turn, height, jump_at=None):
        super().__init__()
        self.turn, self.height, self.jump_at = turn, height, jump_at
        self.pairs = [(a, b) for a in range(len(atoms)) for b in range(a) if {a, b} != {turn[0], turn[3]}]
        self.lengths = [atoms.get_distance(a, b) for a, b in self.pairs]
        self.start = atoms.get_dihedral(*turn)

    def energy_of(self, atoms):
        energy = sum(
            5 * (atoms.get_distance(a, b) - length) ** 2
            for (a, b), length in zip(self.pairs, self.lengths, strict=True)
        )
        energy += self.height * (1 - np.cos(np.deg2rad(atoms.get_dihedral(*self.turn) - self.start)))
        if self.jump_at is not None and atoms.get_distance(self.turn[1], self.turn[2]) > self.jump_at:
            energy += 0.3
        return energy

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        forces = np.zeros((len(self.atoms), 3))
        jump, self.jump_at = self.jump_at, None
        for index in np.ndindex(forces.shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = self.atoms.copy()
                moved.positions[index] += step
                values.append(self.energy_of(moved))
            forces[index] = (values[1] - values[0]) / 2e-5
        self.jump_at = jump
        self.results = {"energy": self.energy_of(self.atoms), "forces": forces}
