"""What it costs to cut a crystal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from pimlip_zoo.deploy.relax import relax
from pimlip_zoo.physics.crystal import conventional
from pimlip_zoo.physics.property import Findings, NotPossibleError, Options, Work, register_property
from pimlip_zoo.physics.vacancy import compound

if TYPE_CHECKING:
    from ase import Atoms

    from pimlip_zoo.physics.crystal import Crystal
    from pimlip_zoo.physics.task import Task

_RELAXATION = 15
_FAR = 1.0  # Å
_VACUUM = 7.5  # Å on either side


class SurfaceOptions(Options):
    """Of the surfaces."""

    miller: tuple[tuple[int, int, int], ...] | None = None
    """Of the conventional cell; None: (100), (110) and (111) of cubic crystals, (001) and (100) of others."""
    thickness: float = Field(default=14.0, gt=0)
    """Å, least thickness of the slab."""
    most_atoms: int = Field(default=300, ge=2)
    """Of a slab; a larger one is not computed."""
    fmax: float = Field(default=0.01, gt=0)
    """eV/Å, the largest force that is left."""


def _planes(family: str, options: SurfaceOptions) -> tuple[tuple[int, int, int], ...]:
    if options.miller is not None:
        return options.miller
    return ((1, 0, 0), (1, 1, 0), (1, 1, 1)) if family == "cubic" else ((0, 0, 1), (1, 0, 0))


def _cost(task: Task, options: SurfaceOptions) -> list[Work]:
    atoms = task.sketch()
    area = (atoms.get_volume() / len(atoms)) ** (2 / 3) * 1.3
    count = max(
        2, round(len(atoms) / atoms.get_volume() * options.thickness * area * (1 if len(atoms) == 1 else 2))
    )
    planes = len(options.miller) if options.miller is not None else 3
    return [Work(planes * (_RELAXATION + 1), count)]


@register_property("surfaces", kinds=("crystal",), cost=_cost, options=SurfaceOptions, obstacle=compound)
def surfaces(task: Task, options: SurfaceOptions, found: Findings) -> None:
    """Energies of low-index surfaces of an elemental crystal, relaxed in the bulk's cell.

    ``(E_slab - N E_bulk) / 2A`` of a slab that is open along its normal.
    """
    from ase import units

    crystal = task.crystal(found)
    bulk_energy = crystal.energy / len(crystal.atoms)
    per_square_metre = units._e * 1e20  # noqa: SLF001 - eV/Å² in J/m²
    computed = 0
    for plane in _planes(crystal.lattice.crystal_family, options):
        name = "".join(map(str, plane))
        slab = _slab(crystal, plane, options.thickness)
        if len(slab) > options.most_atoms:
            found.doubts.append(f"({name}): a slab of {len(slab)} atoms is more than surfaces.most_atoms")
            continue
        area = float(np.linalg.norm(np.cross(slab.cell[0], slab.cell[1])))
        slab = task.asked(slab)
        cut = slab.get_potential_energy() - len(slab) * bulk_energy
        found.add(f"unrelaxed_{name}", cut / 2 / area * per_square_metre, "J/m²")
        start = slab.get_positions()
        result = relax(slab, fmax=options.fmax, steps=200, optimiser="LBFGS")
        if not result.converged:
            found.doubts.append(
                f"({name}): not relaxed: forces up to {result.largest_force:.2g} eV/Å are left"
            )
        moved = float(np.linalg.norm(slab.get_positions() - start, axis=1).max())
        if moved > _FAR:
            found.doubts.append(f"({name}): an atom moved by {moved:.1f} Å: the surface is another one")
        energy = (result.energy - len(slab) * bulk_energy) / 2 / area * per_square_metre
        found.add(f"energy_{name}", energy, "J/m²")
        if energy <= 0:
            found.doubts.append(f"({name}): cutting lowers the energy: the crystal is not stable")
        computed += 1
    if not computed:
        raise NotPossibleError("no slab is small enough; raise surfaces.most_atoms")


def _slab(crystal: Crystal, plane: tuple[int, int, int], thickness: float) -> Atoms:
    """The smallest cell of a slab that is at least so thick."""
    from ase.build import surface

    from pimlip_zoo.physics.crystal import primitive, widths

    cell = conventional(crystal)
    one = surface(cell, plane, 1, periodic=True)
    height = float(widths(one)[2])
    slab = surface(cell, plane, max(1, int(np.ceil(thickness / height))), vacuum=_VACUUM)
    slab.pbc = (True, True, False)
    smaller = primitive(slab)
    if smaller is not None and len(smaller) < len(slab):
        return _open_along_normal(smaller, slab)
    return slab


def _open_along_normal(smaller: Atoms, slab: Atoms) -> Atoms:
    """A primitive cell of a slab with its open vector last; the slab itself where that is not one of the vectors."""
    normal = np.cross(slab.cell[0], slab.cell[1])
    normal /= np.linalg.norm(normal)
    along = np.abs(np.array(smaller.cell) @ normal)
    lying = np.flatnonzero(along < 1e-6)
    standing = int(np.argmax(along))
    if len(lying) != 2:
        return slab
    result = smaller.copy()
    order = [int(lying[0]), int(lying[1]), standing]
    vectors = np.array(smaller.cell)[order]
    vectors[2] = (vectors[2] @ normal) * normal
    result.set_cell(vectors, scale_atoms=False)
    result.pbc = (True, True, False)
    result.wrap()
    return result
