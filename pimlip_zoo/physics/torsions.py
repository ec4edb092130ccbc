"""Energy against the angle of a bond about which a molecule turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from pimlip_zoo.physics.molecule import bonds_of, relaxed_molecule, rotors, side_of
from pimlip_zoo.physics.property import Findings, Options, Work, register_property

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray

    from pimlip_zoo.physics.task import Task

_RELAXATION = 40
_UNEVEN = 0.005  # eV


class TorsionOptions(Options):
    """Of the torsion scans."""

    points: int = Field(default=36, ge=12)
    """Angles of a full turn."""
    most: int = Field(default=4, ge=1)
    """Bonds that are scanned."""


def _obstacle(task: Task, options: Any) -> str | None:  # noqa: ARG001
    return None if rotors(task.structure) else "there is no bond to turn about"


def _cost(task: Task, options: TorsionOptions) -> list[Work]:
    scans = min(options.most, len(rotors(task.structure)))
    return [Work(_RELAXATION + scans * options.points, len(task.structure))]


@register_property("torsions", kinds=("molecule",), cost=_cost, options=TorsionOptions, obstacle=_obstacle)
def torsions(task: Task, options: TorsionOptions, found: Findings) -> None:
    """Barriers of rigid turns about single bonds, and whether the forces are the slope of the energy.

    One side of the relaxed molecule is turned as it is; a relaxed barrier is lower.
    """
    atoms = relaxed_molecule(task, found)
    turns = rotors(atoms)
    if len(turns) > options.most:
        found.notes.append(f"{options.most} of {len(turns)} bonds; torsions.most takes more")
    bonds = bonds_of(atoms)
    angles = np.arange(options.points + 1) * 360 / options.points
    found.series["angles"] = angles.tolist()
    for turn in turns[: options.most]:
        # The smaller side turns.
        sides = [side_of(bonds, turn[1], turn[2]), side_of(bonds, turn[2], turn[1])]
        first, second = turn[1], turn[2]
        side = sides[0] or set()
        if sides[1] is not None and len(sides[1]) < len(side):
            first, second, side = turn[2], turn[1], sides[1]
        name = "-".join(f"{atoms.symbols[index]}{index}" for index in turn)
        energies, slopes = [], []
        for angle in angles:
            turned = task.asked(_turned(atoms, first, second, side, float(angle)))
            energies.append(turned.get_potential_energy())
            slopes.append(-torque(turned, first, second, side))
        values = np.array(energies)
        found.series[f"energies_{name}"] = (values - values.min()).tolist()
        found.add(f"barrier_{name}", np.ptp(values), "eV")
        step = np.deg2rad(360 / options.points)
        expected = np.concatenate(([0.0], np.cumsum((np.array(slopes[1:]) + slopes[:-1]) / 2 * step)))
        error = float(np.abs(values - values[0] - expected).max())
        found.add(f"force_mismatch_{name}", error, "eV")
        if error > max(_UNEVEN, 0.1 * float(np.ptp(values))):
            found.doubts.append(
                f"{name}: energies differ from the integral of the forces by up to {1000 * error:.0f} meV: "
                "the energy is not smooth, or the forces are not its derivative"
            )


def torque(atoms: Atoms, first: int, second: int, side: set[int]) -> float:
    """Torque in eV per radian of the forces on one side of a molecule about the bond from ``first`` to ``second``."""
    chosen = sorted(side)
    axis = atoms.positions[second] - atoms.positions[first]
    axis = axis / np.linalg.norm(axis)
    arms = atoms.positions[chosen] - atoms.positions[second]
    moments: NDArray[np.float64] = np.cross(arms, atoms.get_forces()[chosen])
    return float((moments @ axis).sum())


def _turned(atoms: Atoms, first: int, second: int, side: set[int], angle: float) -> Atoms:
    moved = atoms.copy()
    part = moved[sorted(side)]
    part.rotate(angle, moved.positions[second] - moved.positions[first], center=moved.positions[second])
    moved.positions[sorted(side)] = part.positions
    return moved
