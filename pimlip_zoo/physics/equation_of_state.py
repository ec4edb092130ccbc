"""Energy against volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from pimlip_zoo.deploy.relax import relax
from pimlip_zoo.physics.property import Findings, NotPossibleError, Options, Work, register_property

if TYPE_CHECKING:
    from pimlip_zoo.physics.task import Task

_STILL = 1e-3  # eV/Å
_SMOOTH = 1e-3  # eV per atom, from the fitted curve


class EquationOfStateOptions(Options):
    """Of the energy against the volume."""

    strain: float = Field(default=0.06, gt=0, le=0.3)
    """By how much the volume is made smaller and larger, as a fraction."""
    points: int = Field(default=11, ge=5)
    """How many volumes."""


def _cost(task: Task, options: EquationOfStateOptions) -> list[Work]:
    atoms = task.sketch()
    return [Work(options.points * (1 if len(atoms) == 1 else 4), len(atoms))]


@register_property("equation_of_state", kinds=("crystal",), cost=_cost, options=EquationOfStateOptions)
def equation_of_state(task: Task, options: EquationOfStateOptions, found: Findings) -> None:
    """Bulk modulus, its pressure derivative and the volume at rest, from energies alone.

    The equation of F. Birch, Phys. Rev. 71, 809 (1947), third order, is fitted to the energies of the relaxed
    crystal whose cell is scaled, its atoms relaxed in it.
    """
    from ase import units
    from ase.eos import EquationOfState

    crystal = task.crystal(found)
    count = len(crystal.atoms)
    scales = np.linspace(1 - options.strain, 1 + options.strain, options.points)
    volumes, energies = [], []
    for scale in scales:
        atoms = task.asked(crystal.atoms)
        atoms.set_cell(crystal.atoms.cell * scale ** (1 / 3), scale_atoms=True)
        if np.abs(atoms.get_forces()).max() > _STILL and not relax(atoms, fmax=_STILL, steps=200).converged:
            found.doubts.append(f"the atoms do not relax at {100 * (scale - 1):+.1f} % of the volume")
        volumes.append(atoms.get_volume() / count)
        energies.append(atoms.get_potential_energy() / count)
    found.series |= {"volumes": volumes, "energies": energies}
    equation = EquationOfState(volumes, energies, eos="birchmurnaghan")
    try:
        rest, lowest, modulus = equation.fit(warn=False)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise NotPossibleError(f"no equation of state fits the energies: {error}") from error
    if not (min(volumes) < rest < max(volumes)) or modulus <= 0:
        raise NotPossibleError("the energy has no minimum among these volumes")
    found.add("volume", rest, "Å³/atom")
    found.add("bulk_modulus", modulus / units.GPa, "GPa")
    found.add("pressure_derivative", equation.eos_parameters[2])
    fitted = np.array([equation.func(volume, *equation.eos_parameters) for volume in volumes])
    off = float(np.sqrt(np.square(fitted - energies).mean()))
    found.series |= {"fitted": fitted.tolist(), "lowest": float(lowest)}
    if off > _SMOOTH:
        found.doubts.append(f"the energies are off the fitted curve by {1000 * off:.1f} meV/atom")
