"""Whether the energy is smooth along bonds, and the forces its slope."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from pimlip_zoo.datasets.neighbour_list import neighbour_distances
from pimlip_zoo.physics.crystal import repeats
from pimlip_zoo.physics.molecule import relaxed_molecule
from pimlip_zoo.physics.property import Findings, NotPossibleError, Options, Work, register_property

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray

    from pimlip_zoo.physics.task import Task

_REACH = 6.0  # Å
_WIDTH, _MOST = 7.0, 64
_FEW = 8  # atoms
_JUMP = 0.02  # eV
_WIGGLE = 1e-3  # eV/Å


class BondOptions(Options):
    """Of the scans along bonds."""

    shorter: float = Field(default=0.3, gt=0, lt=1)
    """Å, by which the bond is compressed."""
    longer: float | None = Field(default=None, gt=0)
    """Å, by which it is stretched; None: 0.5 in molecules, elsewhere, where neighbours are behind, as much as it is
    compressed."""
    spacing: float = Field(default=0.02, gt=0)
    """Å, between points."""


def _shifts(kind: str, options: BondOptions) -> NDArray[np.float64]:
    longer = options.longer or (0.5 if kind == "molecule" else options.shorter)
    return np.linspace(-options.shorter, longer, round((options.shorter + longer) / options.spacing) + 1)


def _cost(task: Task, options: BondOptions) -> list[Work]:
    structure = _structure(task.sketch() if task.kind == "crystal" else task.structure, task.kind)
    return [Work(len(_shortest(structure)) * len(_shifts(task.kind, options)), len(structure))]


@register_property(
    "bonds", kinds=("crystal", "liquid", "slab", "chain", "molecule"), cost=_cost, options=BondOptions
)
def bonds(task: Task, options: BondOptions, found: Findings) -> None:
    """Smoothness along bonds: jumps of the energy, turning points of the force, forces against energies.

    Of each pair of elements the shortest bond is scanned: one of its atoms moves along it, the others stay. On a
    smooth conservative energy, the force along the scan turns around a few times at most, and its integral is the
    difference of the energies.
    """
    if task.kind == "molecule":
        start = relaxed_molecule(task, found)
    elif task.kind == "crystal":
        start = _structure(task.crystal(found).atoms, task.kind)
    else:
        start = _structure(task.structure, task.kind)
    shifts = _shifts(task.kind, options)
    spacing = float(shifts[1] - shifts[0])
    found.series["shifts"] = shifts.tolist()
    pairs = _shortest(start)
    if not pairs:
        raise NotPossibleError(f"no two atoms are nearer than {_REACH:g} Å")
    for name, (_, moved, vector) in pairs.items():
        length = float(np.linalg.norm(vector))
        direction = vector / length
        energies, slopes = np.zeros(len(shifts)), np.zeros(len(shifts))
        for place, shift in enumerate(shifts):
            atoms = task.asked(start)
            atoms.positions[moved] += shift * direction
            energies[place] = atoms.get_potential_energy()
            slopes[place] = -float(atoms.get_forces()[moved] @ direction)
        found.series |= {
            f"energies_{name}": (energies - energies.min()).tolist(),
            f"slopes_{name}": slopes.tolist(),
        }
        found.add(f"length_{name}", length, "Å")
        # The error of the trapezoid is of third order in the spacing: what is left over is a jump.
        jumps = np.diff(energies) - spacing * (slopes[1:] + slopes[:-1]) / 2
        expected = _third_order(slopes, spacing)
        jump = float(np.abs(jumps + expected).max())
        found.add(f"jump_{name}", jump, "eV")
        turns = _turning_points(slopes)
        found.add(f"turning_points_{name}", turns)
        scale = float(np.ptp(energies))
        if jump > max(_JUMP, 0.02 * scale):
            found.doubts.append(
                f"{name}: the energy jumps by {1000 * jump:.0f} meV, or the forces are not its derivative"
            )
        if turns > 4:
            found.doubts.append(f"{name}: the force along the bond turns around {turns} times")


def _structure(atoms: Atoms, kind: str) -> Atoms:
    """What is periodic is repeated, so that an atom moves without its own images."""
    if kind == "crystal":
        return atoms.repeat(repeats(atoms, _WIDTH, _MOST))
    if atoms.pbc.any() and len(atoms) < _FEW:
        return atoms.repeat([3 if periodic else 1 for periodic in atoms.pbc])
    return atoms


def _shortest(atoms: Atoms) -> dict[str, tuple[int, int, NDArray[np.float64]]]:
    """Of each pair of elements that are neighbours: fixed atom, moved atom, vector between them.

    Neighbours are nearer than 1.3 times the sum of covalent radii; without any, the nearest pair of all is taken.
    """
    from ase.data import chemical_symbols, covalent_radii

    edges, vectors, lengths = neighbour_distances(atoms, _REACH)
    radii = covalent_radii[atoms.numbers]
    other = edges[0] != edges[1]
    near = other & (lengths < 1.3 * (radii[edges[0]] + radii[edges[1]]))
    candidates = np.flatnonzero(near if near.any() else other)
    if len(candidates) == 0:
        return {}
    if not near.any():
        candidates = candidates[[int(np.argmin(lengths[candidates]))]]
    found: dict[str, tuple[int, int, NDArray[np.float64]]] = {}
    # The lighter atom moves; ties in length go to the first pair.
    for place in candidates[np.argsort(np.round(lengths[candidates], 6), kind="stable")]:
        first, second = (int(index) for index in edges[:, place])
        if atoms.numbers[first] < atoms.numbers[second]:
            continue
        name = f"{chemical_symbols[atoms.numbers[first]]}-{chemical_symbols[atoms.numbers[second]]}"
        found.setdefault(name, (first, second, vectors[place]))
    return found


def _third_order(slopes: NDArray[np.float64], spacing: float) -> NDArray[np.float64]:
    """``h³/12 E'''`` of each interval, from second differences of the slopes."""
    second = np.zeros(len(slopes))
    second[1:-1] = slopes[2:] - 2 * slopes[1:-1] + slopes[:-2]
    second[0], second[-1] = second[1], second[-2]
    middle: NDArray[np.float64] = spacing * (second[1:] + second[:-1]) / 24
    return middle


def _turning_points(slopes: NDArray[np.float64]) -> int:
    """How often the force goes from rising to falling and back."""
    steps = np.diff(slopes)
    steps = steps[np.abs(steps) > _WIGGLE]
    return int(np.count_nonzero(np.diff(np.sign(steps))))
