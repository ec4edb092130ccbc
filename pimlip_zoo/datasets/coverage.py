"""Which labels the structures of a set have, and isolated atoms among them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError

_ISOLATED = {"isolatedatom", "isolated"}


@dataclass(frozen=True)
class Coverage:
    """How many structures there are and how many of them have each label."""

    structures: int
    atoms: int
    energy: int
    forces: int
    """Structures with at least one labelled atom."""
    stress: int
    periodic: int
    """Structures with a cell in at least one direction."""
    species: tuple[str, ...]
    """Chemical symbols, by atomic number."""


def coverage(frames: Iterable[Frame]) -> Coverage:
    """Count structures, atoms and labels in one pass.

    >>> import numpy as np
    >>> coverage([Frame(numbers=np.array([8]), positions=np.zeros((1, 3)), energy=-1.0)]).energy
    1
    """
    from ase.data import chemical_symbols

    structures = atoms = energy = forces = stress = periodic = 0
    present = np.zeros(len(chemical_symbols), dtype=bool)
    for frame in frames:
        structures += 1
        atoms += len(frame.numbers)
        energy += frame.energy is not None
        forces += frame.forces is not None and not bool(np.isnan(frame.forces).all())
        stress += frame.stress is not None
        periodic += bool(frame.pbc.any())
        present[frame.numbers] = True
    species = tuple(chemical_symbols[z] for z in np.flatnonzero(present))
    return Coverage(structures, atoms, energy, forces, stress, periodic, species)


def is_isolated_atom(frame: Frame) -> bool:
    """One atom without a cell, or one that its ``config_type`` calls isolated."""
    if len(frame.numbers) != 1:
        return False
    kind = str(frame.info.get("config_type", "")).lower().replace("_", "").replace(" ", "").replace("-", "")
    return kind in _ISOLATED or not bool(frame.pbc.any())


def isolated_atom_energies(frames: Iterable[Frame]) -> dict[str, float]:
    """Energies in eV of the isolated atoms among the frames, by chemical symbol.

    Raises:
        InputError: for two different energies of one element.
    """
    from ase.data import chemical_symbols

    energies: dict[str, float] = {}
    for index, frame in enumerate(frames):
        if not is_isolated_atom(frame) or frame.energy is None or frame.info.get("charge"):
            continue  # an ion apart is no reference
        symbol = chemical_symbols[int(frame.numbers[0])]
        known = energies.setdefault(symbol, frame.energy)
        if abs(known - frame.energy) > 1e-6:
            raise InputError(
                f"isolated {symbol} has energy {frame.energy:.8g} eV, an earlier frame says {known:.8g} eV",
                frame=index,
                key="energy",
                hint="keep one of them",
            )
    return energies
