"""Which labels the structures of a set have, and isolated atoms among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "Coverage",
    "coverage",
    "coverage_table",
    "is_isolated_atom",
    "isolated_atom_energies",
    "require_labels",
    "separate_isolated_atoms",
]

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

    def as_dict(self) -> dict[str, int]:
        """Counts of labels by name."""
        return {"energy": self.energy, "forces": self.forces, "stress": self.stress}


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


def coverage_table(splits: Mapping[str, Coverage]) -> Table:
    """A table of the label coverage of each split, for the terminal."""
    from rich.table import Table

    table = Table(title="Labels", title_justify="left")
    for name in ("split", "structures", "atoms", "species", "energy", "forces", "stress"):
        table.add_column(name, justify="left" if name in ("split", "species") else "right")
    for split, counts in splits.items():
        cells = [_share(count, counts.structures) for count in counts.as_dict().values()]
        table.add_row(split, str(counts.structures), str(counts.atoms), " ".join(counts.species), *cells)
    return table


def require_labels(counts: Coverage, labels: Sequence[str], *, file: object) -> None:
    """Refuse data in which a label that was asked for is nowhere.

    Raises:
        InputError: naming the label, and what there is instead.
    """
    have = counts.as_dict()
    for label in labels:
        if not have[label]:
            found = [f"{name} in {count}" for name, count in have.items() if count]
            raise InputError(
                f"none of {counts.structures} structures has {label}",
                file=file,
                key=label,
                mend=f"found: {', '.join(found) or 'no labels'}; name another key with ?{label}_key=...",
            )


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
                mend="keep one of them",
            )
    return energies


def separate_isolated_atoms(frames: Iterable[Frame]) -> tuple[list[Frame], dict[str, float]]:
    """Structures to train on, and the energies of the isolated atoms that stood among them.

    Raises:
        InputError: for two different energies of one element.
    """
    frames = list(frames)
    energies = isolated_atom_energies(frames)
    return [frame for frame in frames if not is_isolated_atom(frame) or frame.energy is None], energies


def _share(count: int, total: int) -> str:
    if count in (0, total):
        return "all" if count and total else "none"
    return f"{count} ({100 * count / total:.1f} %)"
