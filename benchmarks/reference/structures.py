"""The structures that reference packages are evaluated on: rattled organic molecules and a skewed crystal.

Made here from ASE's own geometries, so that every script in this folder uses the same ones.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import molecule

SPECIES = ["H", "C", "N", "O"]


def molecules() -> dict[str, Atoms]:
    """Rattled open molecules of H, C, N and O, as they occur in organic chemistry data sets."""
    chosen = {"acetamide": "CH3CONH2", "nitromethane": "CH3NO2", "pyridine": "C5H5N"}
    atoms = {name: molecule(formula) for name, formula in chosen.items()}
    for seed, each in enumerate(atoms.values()):
        each.rattle(stdev=0.08, seed=seed)
        each.set_cell(np.zeros((3, 3)))
        each.pbc = False
    return atoms


def crystal() -> Atoms:
    """Eleven atoms of four species in a triclinic cell that is thinner than a 4 Å cutoff."""
    rng = np.random.default_rng(5)
    cell = np.array([[4.6, 0.3, -0.2], [1.4, 5.1, 0.4], [-0.9, 1.1, 3.6]])
    fractional: list[np.ndarray] = []
    while len(fractional) < 11:
        trial = rng.random(3)
        distances = [_distance(trial - other, cell) for other in fractional]
        if min(distances, default=9.0) > 1.05:
            fractional.append(trial)
    return Atoms("H4C3N2O2", scaled_positions=fractional, cell=cell, pbc=True)


def structures() -> dict[str, Atoms]:
    """All of them by name."""
    return {**molecules(), "crystal": crystal()}


def _distance(difference: np.ndarray, cell: np.ndarray) -> float:
    images = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), axis=-1).reshape(-1, 3)
    return float(np.linalg.norm((difference - np.round(difference) + images) @ cell, axis=1).min())
