"""Which structures are measured when none is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pimlip_zoo.datasets.frame import Frame, frame_to_atoms
from pimlip_zoo.physics.kinds import find_kind

if TYPE_CHECKING:
    from ase import Atoms

_MOST_FRAMES = 2000
_ALIKE = 0.03  # eV per atom


def typical_structures(frames: Sequence[Frame], most: int = 2) -> dict[str, Atoms]:
    """Of each of the commonest substances in labelled data, the smallest structure near the lowest energy.

    Slabs, chains and single atoms are left out. A substance is a composition and a kind; more frequent ones come first,
    elements before compounds of the same frequency.

    Args:
        frames: at most 2,000 are looked at, evenly chosen.
        most: substances.
    """
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(_MOST_FRAMES, len(frames))).astype(int))
    groups: dict[str, list[Frame]] = {}
    for index in chosen:
        frame = frames[int(index)]
        if len(frame.numbers) > 1 or frame.pbc.all():
            groups.setdefault(_composition(frame), []).append(frame)
    order = sorted(groups, key=lambda name: (-len(groups[name]), len(name), name))
    found: dict[str, Atoms] = {}
    for name in order:
        if len(found) == most:
            break
        labelled = [frame for frame in groups[name] if frame.energy is not None] or groups[name]
        energies = np.array([(frame.energy or 0.0) / len(frame.numbers) for frame in labelled])
        near = [
            frame
            for frame, energy in zip(labelled, energies, strict=True)
            if energy < energies.min() + _ALIKE
        ]
        for frame in sorted(near, key=lambda frame: len(frame.numbers)):
            atoms = frame_to_atoms(frame)
            atoms.calc = None
            if find_kind(atoms)[0] in ("crystal", "liquid", "molecule"):
                found[name] = atoms
                break
    return found


def _composition(frame: Frame) -> str:
    """The reduced formula of what is periodic, the formula of what is not."""
    from ase.data import chemical_symbols

    counts = Counter(frame.numbers.tolist())
    divisor = int(np.gcd.reduce(list(counts.values()))) if frame.pbc.any() else 1
    return "".join(
        f"{chemical_symbols[number]}{count // divisor if count > divisor else ''}"
        for number, count in sorted(counts.items(), key=lambda item: chemical_symbols[item[0]])
    )
