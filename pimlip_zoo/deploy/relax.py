"""Relaxed geometries and cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pimlip_zoo.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ase import Atoms

OPTIMISERS = ("BFGS", "LBFGS", "FIRE", "BFGSLineSearch")


@dataclass(frozen=True, kw_only=True)
class RelaxResult:
    """How a relaxation ended."""

    converged: bool
    steps: int
    energy: float
    """eV."""
    largest_force: float
    """eV/Å, on atoms that are free to move."""
    largest_stress: float | None
    """eV/Å³, difference to the target pressure; None where the cell was kept."""


def relax(
    atoms: Atoms,
    *,
    cell: bool = False,
    pressure: float = 0.0,
    keep_shape: bool = False,
    fmax: float = 0.01,
    steps: int = 500,
    optimiser: str = "BFGS",
    trajectory: Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> RelaxResult:
    """Move the atoms, and the cell where asked for, to a minimum of the energy (enthalpy under pressure).

    The cell moves along its logarithmic strain (ASE's ``FrechetCellFilter``); only components between
    periodic directions are free, so that the vacuum of a slab stays. Atoms that constraints hold keep their fractional
    coordinates where the cell moves.

    Args:
        atoms: with a calculator; moved in place.
        cell: relax the cell, too.
        pressure: GPa, external.
        keep_shape: let the cell change its volume only.
        fmax: eV/Å, the largest force that is left; for a cell, in eV, the largest row of the virial per
            atom, too.
        steps: at most so many.
        optimiser: one of :data:`OPTIMISERS`.
        trajectory: an ASE ``.traj`` file of all steps.
        progress: called with the step and the largest force.

    Raises:
        InputError: for an unknown optimiser, or a cell to be relaxed of a structure that has none.
    """
    import ase.optimize

    if optimiser not in OPTIMISERS:
        hint = did_you_mean(optimiser, OPTIMISERS)
        raise InputError(f"there is no optimiser {optimiser!r}", key="optimiser", hint=hint)
    if len(atoms) == 0:
        raise InputError("the structure has no atoms", key="structure")
    target: Any = _cell_filter(atoms, pressure, keep_shape=keep_shape) if cell else atoms
    minimiser = getattr(ase.optimize, optimiser)(
        target, logfile=None, trajectory=None if trajectory is None else str(trajectory)
    )
    if progress is not None:
        minimiser.attach(lambda: progress(minimiser.nsteps, _largest(atoms.get_forces())))
    converged = bool(minimiser.run(fmax=fmax, steps=steps))
    return RelaxResult(
        converged=converged,
        steps=int(minimiser.nsteps),
        energy=float(atoms.get_potential_energy()),
        largest_force=_largest(atoms.get_forces()),
        largest_stress=_stress_left(atoms, pressure, keep_shape=keep_shape) if cell else None,
    )


def _cell_filter(atoms: Atoms, pressure: float, *, keep_shape: bool) -> Any:
    from ase import units
    from ase.filters import FrechetCellFilter

    if not atoms.pbc.any() or atoms.cell.rank < 3:
        raise InputError(
            "has no cell to relax", key="structure", hint="give a periodic structure with three cell vectors"
        )
    if keep_shape and not atoms.pbc.all():
        raise InputError("a cell open in a direction cannot keep its shape", key="keep_shape")
    return FrechetCellFilter(
        atoms,
        mask=_free_strains(atoms),
        hydrostatic_strain=keep_shape,
        scalar_pressure=pressure * units.GPa,
    )


def _free_strains(atoms: Atoms) -> list[bool]:
    """xx, yy, zz, yz, xz, xy; open directions are taken to lie along an axis."""
    if atoms.pbc.all():
        return [True] * 6
    open_vectors = np.array(atoms.cell)[~atoms.pbc]
    along = (np.abs(open_vectors) > 1e-8).any(axis=0)  # which axes the open directions touch
    free = ~along
    pairs = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    return [bool(free[a] and free[b]) for a, b in pairs]


def _stress_left(atoms: Atoms, pressure: float, *, keep_shape: bool) -> float:
    from ase import units

    stress = atoms.get_stress() + pressure * units.GPa * np.array([1, 1, 1, 0, 0, 0])
    if keep_shape:
        return float(abs(stress[:3].mean()))
    return float(np.abs(stress[_free_strains(atoms)]).max(initial=0.0))


def _largest(forces: Any) -> float:
    return float(np.linalg.norm(forces, axis=1).max())
