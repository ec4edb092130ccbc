"""Energies of atoms that bring total energies near zero, and how well they are determined."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class AtomEnergyFit:
    """A least-squares fit of E = sum of atomic energies."""

    energies: dict[str, float]
    """eV by chemical symbol; the solution of smallest norm where the data do not determine it."""
    rank: int
    """Of the matrix of compositions; less than the number of elements: energies can be shifted between them."""
    residual: NDArray[np.float64]
    """(M,) eV per atom, energy less the fitted sum; NaN for frames without energy."""

    @property
    def determined(self) -> bool:
        """Whether the data determine every energy."""
        return self.rank == len(self.energies)


def fit_atom_energies(
    table: NDArray[np.int64], composition: NDArray[np.int64], energies: NDArray[np.float64]
) -> AtomEnergyFit:
    """Fit one energy per element to total energies per atom.

    Args:
        table: (C, 119) atoms of each element in each composition.
        composition: (M,) which of them a frame has.
        energies: (M,) eV; NaN where there is none.
    """
    from ase.data import chemical_symbols

    known = np.isfinite(energies)
    residual = np.full(len(energies), np.nan)
    present = np.flatnonzero(table[np.unique(composition[known])].any(axis=0))
    if not len(present):
        return AtomEnergyFit({}, 0, residual)
    shares = table[:, present] / table.sum(axis=1, keepdims=True)
    per_atom = energies[known] / table.sum(axis=1)[composition[known]]
    rows = shares[composition[known]]
    solution, _, rank, _ = np.linalg.lstsq(rows, per_atom, rcond=1e-10)
    residual[known] = per_atom - rows @ solution
    symbols = [chemical_symbols[z] for z in present]
    return AtomEnergyFit(dict(zip(symbols, solution.tolist(), strict=True)), int(rank), residual)
