"""One labelled structure as it stands in a file, before any model's species list or cutoff."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ase import Atoms

NO_CELL = np.zeros((3, 3))
"""The cell of a structure that is periodic nowhere; for all of them."""
OPEN = np.zeros(3, dtype=bool)
"""Its periodic directions."""
NO_CELL.flags.writeable = OPEN.flags.writeable = False

LABELS = ("energy", "forces", "stress")
EVEN = (1.0, 1.0, 1.0)
"""The weights of these labels in a structure of which nothing else is said."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A structure with the labels it has; what readers yield and stores keep.

    Every quantity is in Å and eV (see ``docs/concepts/conventions.md``); a missing label is None.
    """

    numbers: NDArray[np.int64]
    """(N,) atomic numbers."""
    positions: NDArray[np.float64]
    """(N, 3) Å."""
    cell: NDArray[np.float64] = field(default_factory=lambda: NO_CELL)
    """(3, 3) Å, rows are lattice vectors; zero rows where there is none."""
    pbc: NDArray[np.bool_] = field(default_factory=lambda: OPEN)
    """(3,) which directions are periodic."""
    energy: float | None = None
    """eV."""
    forces: NDArray[np.float64] | None = None
    """(N, 3) eV/Å; single NaN rows are atoms without a label."""
    stress: NDArray[np.float64] | None = None
    """(3, 3) eV/Å³, ``dE/dε / V``."""
    weight: float = 1.0
    """How much the structure counts in every loss; one of weight 0 is not trained on."""
    label_weights: tuple[float, float, float] = EVEN
    """Factors of the losses on its energy, forces and stress; a label of weight 0 is as if it were not there."""
    info: dict[str, Any] = field(default_factory=dict)
    """What else the file said of it (config_type and the like): short strings and numbers."""
    initial: dict[str, NDArray[np.float64]] | None = None
    """Where a reference calculation starts from, by ASE's names: (N,) ``initial_charges``, (N,) or (N, 3)
    ``initial_magmoms``. A store has no place for them, and no model looks at them."""


def without_uncounted(frame: Frame) -> Frame:
    """The frame without its labels of weight 0."""
    if all(frame.label_weights):
        return frame
    gone = {label: None for label, weight in zip(LABELS, frame.label_weights, strict=True) if not weight}
    return replace(frame, **gone)  # type: ignore[arg-type]


def frame_to_atoms(frame: Frame) -> Atoms:
    """The frame as ASE atoms, its labels in a single-point calculator."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = Atoms(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
    results: dict[str, Any] = {}
    if frame.energy is not None:
        results["energy"] = frame.energy
    if frame.forces is not None:
        results["forces"] = frame.forces
    if frame.stress is not None:
        results["stress"] = frame.stress.reshape(9)[[0, 4, 8, 5, 2, 1]]
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info.update(frame.info)
    if frame.weight != 1.0:
        atoms.info["config_weight"] = frame.weight
    for label, weight in zip(LABELS, frame.label_weights, strict=True):
        if weight != 1.0:
            atoms.info[f"config_{label}_weight"] = weight
    return atoms
