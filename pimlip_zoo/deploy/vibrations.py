"""Second derivatives: the Hessian, vibrations of molecules, phonons of crystals."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pimlip_zoo.deploy.ase import PimlipCalculator
from pimlip_zoo.deploy.constraints import held_coordinates
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, graph_to

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms
    from ase.phonons import Phonons
    from ase.vibrations import VibrationsData
    from numpy.typing import NDArray

    from pimlip_zoo.models.potential import Potential


def hessian(atoms: Atoms, *, step: float | None = None) -> NDArray[np.float64]:
    """``d²E / dr_ia dr_jb`` of any calculator: exact, or by central differences of the forces.

    The error of differences is of the order of ``step²`` and of the noise of the forces over ``step``; a
    float32 model wants a step of 0.01-0.02 Å.

    Args:
        atoms: with a calculator; not moved.
        step: Å, of the differences; by default :func:`exact_hessian` where the calculator is that of a
            conservative potential of this package, else differences of 0.005 Å.

    Returns:
        (3N, 3N) eV/Å², symmetrised.

    Raises:
        InputError: for a step that is not positive.
    """
    if step is None and isinstance(atoms.calc, PimlipCalculator) and not atoms.calc.potential.is_direct:
        graph = atoms.calc.neighbours.graph(atoms, atoms.calc.potential.species)
        return exact_hessian(atoms.calc.potential, graph_to(graph, atoms.calc.device))
    step = 0.005 if step is None else step
    if not step > 0:
        raise InputError(f"{step} Å is not possible", key="step", hint="more than 0")
    count = 3 * len(atoms)
    rows = np.zeros((count, count))
    moved = atoms.copy()
    moved.set_constraint()
    moved.calc = atoms.calc
    start = atoms.get_positions()
    for row in range(count):
        ahead, behind = (_forces_at(moved, start, row, sign * step) for sign in (1, -1))
        rows[row] = (behind - ahead) / (2 * step)
    return _symmetrised(rows)


def exact_hessian(potential: Potential, graph: AtomGraph) -> NDArray[np.float64]:
    """``d²E / dr_ia dr_jb`` by differentiating the energy twice, one row at a time.

    Args:
        potential: conservative; in float64 the result is exact to rounding.
        graph: one structure.

    Returns:
        (3N, 3N) eV/Å², symmetrised.

    Raises:
        InputError: for several structures, or a direct force head, whose forces are no energy's derivative.
    """
    if graph.num_graphs != 1:
        raise InputError(f"{graph.num_graphs} structures have no common Hessian", hint="give one")
    if potential.is_direct:
        raise InputError(
            "a potential with direct forces has no Hessian of its own", hint="use differences of its forces"
        )
    # The energy is differentiated by the positions themselves, so that the potential's own derivative by edge
    # vectors stays inside of the graph that is differentiated again.
    positions = graph.positions.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        forces = potential(graph._replace(positions=positions), virial=False).forces.reshape(-1)
        rows = []
        for row in range(len(forces)):
            if not forces.requires_grad:
                rows.append(torch.zeros_like(positions))
                continue
            (gradient,) = torch.autograd.grad(forces[row], positions, retain_graph=True, allow_unused=True)
            rows.append(torch.zeros_like(positions) if gradient is None else -gradient)
    count = 3 * len(positions)
    return _symmetrised(torch.stack(rows).reshape(count, count).numpy(force=True).astype(np.float64))


def vibrations(atoms: Atoms, *, step: float | None = None) -> VibrationsData:
    """Normal modes of a structure that is at a minimum, as ASE's ``VibrationsData``.

    ``vibrations(atoms).get_frequencies()`` is in 1/cm, imaginary along directions that lead downhill.

    Atoms that ``FixAtoms`` holds do not vibrate: the modes are those of the others.

    Args:
        atoms: with a calculator; not moved.
        step: as of :func:`hessian`.

    Raises:
        InputError: for other constraints, or where no atom is free.
    """
    from ase.vibrations import VibrationsData

    held = held_coordinates(atoms)
    if (held.any(axis=1) & ~held.all(axis=1)).any():
        raise InputError(
            "modes of atoms of which single coordinates are held are not defined here",
            key="structure",
            hint="hold whole atoms with FixAtoms, or take the constraint away",
        )
    free = np.flatnonzero(~held.all(axis=1))
    if len(free) == 0:
        raise InputError("no atom is free to vibrate", key="structure", hint="take constraints away")
    count = len(atoms)
    plain = atoms.copy()
    plain.set_constraint()
    full = hessian(atoms, step=step).reshape(count, 3, count, 3)
    return VibrationsData(plain, full[free][:, :, free], indices=free)


def phonons(
    atoms: Atoms, *, supercell: Sequence[int] = (3, 3, 3), step: float = 0.01, acoustic: bool = True
) -> Phonons:
    """Force constants of a crystal by the method of small displacements, as ASE's ``Phonons``.

    The result gives ``get_band_structure(path)`` and ``get_dos(kpts)``. The supercell has to be wider than
    twice the reach of the model for the force constants to be complete.

    Args:
        atoms: the unit cell, periodic, with a calculator; not moved.
        supercell: how often it is repeated.
        step: Å.
        acoustic: impose the acoustic sum rule.

    Raises:
        InputError: for a structure that is not periodic in all directions, or has constraints.
    """
    from ase.phonons import Phonons

    if not (atoms.pbc.all() and atoms.cell.rank == 3):
        raise InputError("phonons need a cell that is periodic in all directions", key="structure")
    if atoms.constraints:
        raise InputError("phonons are of atoms that all move", key="structure", hint="remove the constraints")
    with tempfile.TemporaryDirectory(prefix="pimlip-phonons-") as folder:
        result: Phonons = Phonons(
            atoms, atoms.calc, supercell=tuple(supercell), delta=step, name=str(Path(folder, "phonon"))
        )
        result.run()
        result.read(acoustic=acoustic)
    return result


def _forces_at(moved: Atoms, start: NDArray[np.float64], row: int, shift: float) -> NDArray[np.float64]:
    positions = start.copy()
    positions[row // 3, row % 3] += shift
    moved.set_positions(positions)
    forces: NDArray[np.float64] = np.array(moved.get_forces(), dtype=np.float64).reshape(-1)
    return forces


def _symmetrised(matrix: NDArray[Any]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = (matrix + matrix.T) / 2
    return result
