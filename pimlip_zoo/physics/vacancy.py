"""What it costs to take an atom out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from pimlip_zoo.deploy.relax import relax
from pimlip_zoo.physics.crystal import conventional, repeats
from pimlip_zoo.physics.property import Findings, Options, Work, register_property

if TYPE_CHECKING:
    from pimlip_zoo.physics.task import Task

_RELAXATION = 15
_FAR = 1.0  # Å


class VacancyOptions(Options):
    """Of the vacancy."""

    width: float = Field(default=10.0, gt=0)
    """Å, least width of the supercell."""
    most_atoms: int = Field(default=300, ge=2)
    """Of the supercell, which is made narrower for it."""
    fmax: float = Field(default=0.01, gt=0)
    """eV/Å, the largest force that is left."""


def compound(task: Task, options: Any) -> str | None:  # noqa: ARG001
    """Why energies of atoms that are added or missing have no meaning here; None: they have."""
    if len(task.elements) == 1:
        return None
    return "of a compound it depends on where the atoms come from or go to"


def _cost(task: Task, options: VacancyOptions) -> list[Work]:
    atoms = task.sketch()
    per_volume = len(atoms) / atoms.get_volume()
    count = min(options.most_atoms, max(8, round(per_volume * options.width**3 * 1.2)))
    return [Work(_RELAXATION + 1, count)]


@register_property("vacancy", kinds=("crystal",), cost=_cost, options=VacancyOptions, obstacle=compound)
def vacancy(task: Task, options: VacancyOptions, found: Findings) -> None:
    """Formation energy of a vacancy in an elemental crystal, the atoms relaxed in a fixed cell.

    ``E(N - 1) - (N - 1)/N E(N)``, of the first atom in the cell.
    """
    crystal = task.crystal(found)
    cell = conventional(crystal)
    whole = cell.repeat(repeats(cell, options.width, options.most_atoms))
    if len(whole) < 8:
        found.doubts.append(f"{len(whole)} atoms are too few to be apart from the next vacancy")
    perfect = task.asked(whole).get_potential_energy()
    without = whole.copy()
    del without[0]
    without = task.asked(without)
    share = (len(whole) - 1) / len(whole)
    found.add("unrelaxed_energy", without.get_potential_energy() - share * perfect, "eV")
    start = without.get_positions()
    result = relax(without, fmax=options.fmax, steps=200, optimiser="LBFGS")
    if not result.converged:
        found.doubts.append(f"not relaxed: forces up to {result.largest_force:.2g} eV/Å are left")
    moved = float(np.linalg.norm(without.get_positions() - start, axis=1).max())
    if moved > _FAR:
        found.doubts.append(f"an atom moved by {moved:.1f} Å: this is another defect")
    energy = result.energy - share * perfect
    found.add("formation_energy", energy, "eV")
    found.series["atoms"] = len(without)
    if energy <= 0:
        found.doubts.append("a vacancy lowers the energy: the crystal is not stable")
