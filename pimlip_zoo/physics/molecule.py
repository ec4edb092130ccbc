"""A molecule's bonds and its relaxed form, which several properties share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pimlip_zoo.deploy.relax import relax
from pimlip_zoo.physics.property import Findings, NotPossibleError

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray

    from pimlip_zoo.physics.task import Task

_FMAX, _STEPS, _USABLE = 1e-3, 500, 0.02  # eV/Å
_BONDED = 1.25  # times the sum of covalent radii
_STRETCHED = 0.25
"""A bond of the molecule given that is longer by a quarter when relaxed is none any more."""


def bonds_of(atoms: Atoms, factor: float = _BONDED) -> list[tuple[int, int]]:
    """Pairs of atoms that are nearer than a factor times the sum of their covalent radii, each once.

    Atoms and their periodic images count as neighbours in a box only where the box is wide enough for that.
    """
    from ase.data import covalent_radii

    radii = covalent_radii[atoms.numbers]
    near = atoms.get_all_distances(mic=bool(atoms.pbc.any())) < factor * (radii[:, None] + radii)
    return [(int(i), int(j)) for i, j in np.argwhere(near) if i < j]


def relaxed_molecule(task: Task, found: Findings) -> Atoms:
    """The molecule at a minimum of the potential, without a calculator.

    Raises:
        NotPossibleError: when it does not relax, or falls apart.
    """

    def make() -> tuple[Atoms, str | None]:
        atoms = task.asked(task.structure)
        result = relax(atoms, fmax=_FMAX, steps=_STEPS)
        left = f"after {result.steps} steps forces up to {result.largest_force:.2g} eV/Å are left"
        if not result.converged and result.largest_force > _USABLE:
            raise NotPossibleError(f"the molecule does not relax: {left}")
        for first, second in bonds_of(task.structure):
            before = task.structure.get_distance(first, second, mic=True)
            after = atoms.get_distance(first, second, mic=True)
            if after > (1 + _STRETCHED) * before:
                names = f"{atoms.symbols[first]}{first}-{atoms.symbols[second]}{second}"
                raise NotPossibleError(
                    f"the molecule falls apart: {names} went from {before:.2f} to {after:.2f} Å in the relaxation"
                )
        relaxed = atoms.copy()
        relaxed.calc = None
        return relaxed, None if result.converged else f"not relaxed to the end: {left}"

    atoms, doubt = task.shared("molecule", make)
    if doubt is not None and doubt not in found.doubts:
        found.doubts.append(doubt)
    return atoms


def in_one_piece(atoms: Atoms) -> Atoms:
    """A copy without periodicity, that no border of its box cuts: its images begin behind the widest gap."""
    result = atoms.copy()
    result.pbc = False
    if not atoms.pbc.any():
        return result
    fractions = atoms.get_scaled_positions(wrap=True)
    for axis in np.flatnonzero(atoms.pbc):
        ordered = np.sort(fractions[:, axis])
        first = ordered[(np.argmax(np.diff(np.append(ordered, ordered[0] + 1.0))) + 1) % len(ordered)]
        fractions[:, axis] = first + (fractions[:, axis] - first) % 1.0
    result.set_scaled_positions(fractions)
    return result


def side_of(bonds: list[tuple[int, int]], first: int, second: int) -> set[int] | None:
    """The atoms beyond ``second`` when the bond to ``first`` is cut; None where a ring keeps them together."""
    neighbours: dict[int, set[int]] = {}
    for i, j in bonds:
        neighbours.setdefault(i, set()).add(j)
        neighbours.setdefault(j, set()).add(i)
    seen, waiting = {second}, [second]
    while waiting:
        current = waiting.pop()
        for other in neighbours.get(current, ()):
            if {current, other} == {first, second}:
                continue
            if other == first:
                return None
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return seen


def rotors(atoms: Atoms) -> list[tuple[int, int, int, int]]:
    """Four atoms in a row for each bond about which a part of the molecule can be turned.

    Both ends have further neighbours, no ring holds them, and the four are not on a line.
    """
    bonds = bonds_of(atoms)
    neighbours: dict[int, list[int]] = {}
    for i, j in bonds:
        neighbours.setdefault(i, []).append(j)
        neighbours.setdefault(j, []).append(i)
    found = []
    for second, third in bonds:
        if side_of(bonds, second, third) is None:
            continue
        before = _bent(atoms, second, third, neighbours)
        after = _bent(atoms, third, second, neighbours)
        if before is not None and after is not None:
            found.append((before, second, third, after))
    return found


def _bent(atoms: Atoms, centre: int, other: int, neighbours: dict[int, list[int]]) -> int | None:
    """A neighbour of an end that is not in line with the bond, a heavy one first."""
    chosen = [
        each
        for each in neighbours[centre]
        if each != other and 10 < float(atoms.get_angle(each, centre, other)) < 170
    ]
    numbers: NDArray[np.int64] = atoms.numbers
    return min(chosen, key=lambda each: (-int(numbers[each]), each)) if chosen else None
