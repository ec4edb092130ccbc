"""Normal modes of a molecule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pimlip_zoo.physics.molecule import in_one_piece, relaxed_molecule
from pimlip_zoo.physics.property import Findings, Options, Work, register_property

if TYPE_CHECKING:
    from pimlip_zoo.physics.task import Task

_RELAXATION = 40
_SOFT = 50.0  # 1/cm


def _cost(task: Task, options: Any) -> list[Work]:  # noqa: ARG001
    count = len(task.structure)
    return [Work(_RELAXATION + 6 * count, count)]


@register_property("vibrations", kinds=("molecule",), cost=_cost)
def vibrations(task: Task, options: Options, found: Findings) -> None:  # noqa: ARG001
    """Vibrational frequencies and zero-point energy of a relaxed molecule.

    Translations and rotations, which have no frequency at a minimum, are left out; the largest of theirs is given.
    """
    from pimlip_zoo.deploy.vibrations import vibrations as modes_of

    relaxed = relaxed_molecule(task, found)
    atoms = task.asked(relaxed)
    # With the calculator itself, which may know its second derivatives exactly.
    atoms.calc = task.judge.inner
    modes = modes_of(atoms)
    frequencies = np.asarray(modes.get_frequencies())
    signed = np.where(np.abs(frequencies.imag) > 1e-12, -np.abs(frequencies.imag), frequencies.real)
    inert = in_one_piece(relaxed).get_moments_of_inertia()  # a molecule in a box turns freely, too
    rigid = 5 if inert[0] < 1e-3 * max(inert[-1], 1e-12) else 6
    order = np.argsort(np.abs(signed))
    internal = np.sort(signed[order[rigid:]])
    found.add("frequencies", internal, "1/cm")
    found.add("rigid_residual", np.abs(signed[order[:rigid]]).max(), "1/cm")
    imaginary = internal[internal < 0]
    if len(imaginary):
        word, less = ("frequency", "") if len(imaginary) == 1 else ("frequencies", " and less")
        found.doubts.append(
            f"no minimum: {len(imaginary)} imaginary {word}, {-imaginary.min():.0f}i 1/cm{less}; no zero-point "
            "energy is given"
        )
        return
    if len(internal) and internal[0] < np.abs(signed[order[:rigid]]).max():
        found.doubts.append("the lowest vibration cannot be told from a rotation")
    from ase import units

    found.add("zero_point_energy", internal.sum() / 2 * units.invcm, "eV")
    if np.abs(signed[order[:rigid]]).max() > _SOFT:
        found.doubts.append("translations or rotations have a frequency: the structure is no minimum")
