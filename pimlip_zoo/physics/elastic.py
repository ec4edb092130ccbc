"""Elastic constants from stress."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from pimlip_zoo.deploy.relax import relax
from pimlip_zoo.physics.property import Findings, Options, Work, register_property

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray

    from pimlip_zoo.physics.task import Task

_STILL = 1e-4  # eV/Å
_SPREAD = 0.02
_LEAST_SPREAD = 0.5  # GPa
_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
_EQUIVALENT = {
    "cubic": {
        "C11": [(0, 0), (1, 1), (2, 2)],
        "C12": [(0, 1), (0, 2), (1, 2)],
        "C44": [(3, 3), (4, 4), (5, 5)],
    },
    "hexagonal": {
        "C11": [(0, 0), (1, 1)],
        "C12": [(0, 1)],
        "C13": [(0, 2), (1, 2)],
        "C33": [(2, 2)],
        "C44": [(3, 3), (4, 4)],
    },
    "tetragonal": {
        "C11": [(0, 0), (1, 1)],
        "C12": [(0, 1)],
        "C13": [(0, 2), (1, 2)],
        "C33": [(2, 2)],
        "C44": [(3, 3), (4, 4)],
        "C66": [(5, 5)],
    },
}


class ElasticOptions(Options):
    """Of the elastic constants."""

    strain: float = Field(default=0.005, gt=0, le=0.05)
    """Of the cell, in both directions."""


def _cost(task: Task, options: ElasticOptions) -> list[Work]:  # noqa: ARG001
    atoms = task.sketch()
    return [Work(13 if len(atoms) == 1 else 80, len(atoms))]


def _obstacle(task: Task, options: Any) -> str | None:  # noqa: ARG001
    return None if "stress" in task.judge.implemented_properties else "the calculator has no stress"


@register_property("elastic", kinds=("crystal",), cost=_cost, options=ElasticOptions, obstacle=_obstacle)
def elastic(task: Task, options: ElasticOptions, found: Findings) -> None:
    """Elastic constants with relaxed atoms, averages over directions, and whether the crystal is stable.

    ``C_ij = dσ_i / dε_j`` by central differences of the stress. Moduli are the averages of Voigt, Reuss and Hill
    (R. Hill, Proc. Phys. Soc. A 65, 349 (1952)). Axes are those of the lattice: cubic ones along the cube.
    """
    from ase import units

    crystal = task.crystal(found)
    matrix, unrelaxed = stiffness(task.asked(crystal.atoms), options.strain)
    if unrelaxed:
        found.doubts.append(f"the atoms do not relax in {unrelaxed} of the strained cells")
    matrix = matrix / units.GPa
    symmetric = (matrix + matrix.T) / 2
    found.series |= {"tensor": symmetric.tolist(), "unit": "GPa"}
    _add_constants(symmetric, crystal.lattice.crystal_family, found)
    uneven = float(np.abs(matrix - matrix.T).max())
    if uneven > max(_LEAST_SPREAD, _SPREAD * float(np.abs(matrix).max())):
        found.doubts.append(
            f"C_ij and C_ji differ by up to {uneven:.2g} GPa: the stress is no derivative of an energy"
        )
    lowest = float(np.linalg.eigvalsh(symmetric)[0])
    found.add("lowest_eigenvalue", lowest, "GPa")
    if lowest <= 0:
        found.doubts.append(
            f"the crystal is mechanically unstable: the lowest eigenvalue of its elastic constants is {lowest:.3g} GPa"
        )
        return  # averages of Reuss and Hill have no meaning
    _add_moduli(symmetric, found)


def stiffness(atoms: Atoms, strain: float) -> tuple[NDArray[np.float64], int]:
    """``dσ_i / dε_j`` in Voigt's notation, (6, 6) eV/Å³, with the atoms relaxed in every strained cell.

    Args:
        atoms: with a calculator of stress; not moved.
        strain: of the differences.

    Returns:
        The matrix, not symmetrised, and in how many cells the atoms did not relax.
    """
    cell, failures = np.array(atoms.cell), 0
    matrix = np.zeros((6, 6))
    for column, (a, b) in enumerate(_VOIGT):
        stresses = []
        for sign in (1, -1):
            deformation = np.eye(3)
            # Voigt's shears are twice the component of the symmetric tensor.
            deformation[a, b] += sign * strain * (1.0 if a == b else 0.5)
            deformation[b, a] = deformation[a, b]
            strained = atoms.copy()
            strained.calc = atoms.calc
            strained.set_cell(cell @ deformation, scale_atoms=True)
            if len(atoms) > 1 and np.abs(strained.get_forces()).max() > _STILL:
                failures += not relax(strained, fmax=_STILL, steps=200).converged
            stresses.append(strained.get_stress())
        matrix[:, column] = (stresses[0] - stresses[1]) / (2 * strain)
    return matrix, failures


def _add_constants(tensor: NDArray[np.float64], family: str, found: Findings) -> None:
    """The independent constants by name; all 21 where the lattice has no equal ones."""
    groups = _EQUIVALENT.get(family)
    if groups is None:
        groups = {f"C{i + 1}{j + 1}": [(i, j)] for i in range(6) for j in range(i, 6)}
    spread = 0.0
    for name, places in groups.items():
        values = np.array([tensor[place] for place in places])
        spread = max(spread, float(np.ptp(values)))
        found.add(name, values.mean(), "GPa")
    if spread > max(_LEAST_SPREAD, _SPREAD * float(np.abs(tensor).max())):
        found.doubts.append(
            f"constants that a {family} lattice makes equal differ by up to {spread:.2g} GPa: "
            "the atoms in the cell, or the potential, lack its symmetry"
        )


def _add_moduli(tensor: NDArray[np.float64], found: Findings) -> None:
    compliance = np.linalg.inv(tensor)
    voigt_bulk = tensor[:3, :3].sum() / 9
    reuss_bulk = 1 / compliance[:3, :3].sum()
    normal, mixed, shear = (
        np.trace(tensor[:3, :3]),
        tensor[0, 1] + tensor[0, 2] + tensor[1, 2],
        np.trace(tensor[3:, 3:]),
    )
    voigt_shear = (normal - mixed + 3 * shear) / 15
    soft = 4 * np.trace(compliance[:3, :3]) - 4 * (compliance[0, 1] + compliance[0, 2] + compliance[1, 2])
    reuss_shear = 15 / (soft + 3 * np.trace(compliance[3:, 3:]))
    bulk, rigidity = (voigt_bulk + reuss_bulk) / 2, (voigt_shear + reuss_shear) / 2
    found.add("bulk_modulus", bulk, "GPa")
    found.add("shear_modulus", rigidity, "GPa")
    found.add("young_modulus", 9 * bulk * rigidity / (3 * bulk + rigidity), "GPa")
    found.add("poisson_ratio", (3 * bulk - 2 * rigidity) / (2 * (3 * bulk + rigidity)))
    found.series["bulk_modulus_voigt"] = float(voigt_bulk)
