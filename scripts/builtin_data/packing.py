"""Writing the form that built-in sets are shipped in: fixed-point geometry and forces.

Labels are exact for the stored geometry when the geometry was put on the grid (:func:`snap`) before it was labelled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pimlip_zoo.datasets.builtin_format import (
    FORCE_RESOLUTION,
    FORMAT,
    POSITION_RESOLUTION,
    PackedSet,
    from_grid,
)
from pimlip_zoo.files import replacing, writing

if TYPE_CHECKING:
    from numpy.typing import NDArray


def snap(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions on the grid of the file: what is read back is equal to this, bit by bit."""
    return from_grid(_to_grid(positions, POSITION_RESOLUTION), POSITION_RESOLUTION)


def write_packed(path: Path, data: PackedSet) -> None:
    """Write the set; the same set gives the same bytes with the same NumPy and zlib.

    Every frame needs an energy and positions on the grid; forces and stress may be missing.

    Raises:
        ValueError: for a missing label, a position off the grid, a value beyond the fixed-point range.
    """
    frames = [frame for split in data.splits.values() for frame in split]
    if not frames:
        raise ValueError("there is no frame to write")
    if any(frame.energy is None for frame in frames):
        raise ValueError("every frame needs an energy")
    positions = np.concatenate([frame.positions for frame in frames])
    if not np.array_equal(snap(positions), positions):
        raise ValueError(f"positions are off the grid of {POSITION_RESOLUTION} Å: snap them before labelling")
    meta = {
        "format": FORMAT,
        "splits": {name: len(split) for name, split in data.splits.items()},
        "atom_energies": dict(data.atom_energies),
        "provenance": dict(data.provenance),
    }
    no_stress = np.full((3, 3), np.nan)
    arrays: dict[str, NDArray[Any]] = {
        "meta": np.frombuffer(json.dumps(meta, ensure_ascii=False).encode(), dtype=np.uint8),
        "natoms": np.array([len(frame.numbers) for frame in frames], dtype=np.int32),
        "numbers": np.concatenate([frame.numbers for frame in frames]).astype(np.uint8),
        "positions": _to_grid(positions, POSITION_RESOLUTION),
        "cell": np.array([frame.cell for frame in frames], dtype=np.float64),
        "pbc": np.array([frame.pbc for frame in frames], dtype=bool),
        "energy": np.array([frame.energy for frame in frames], dtype=np.float64),
        "forces": _to_grid(
            np.concatenate([np.zeros((0, 3)), *(f.forces for f in frames if f.forces is not None)]),
            FORCE_RESOLUTION,
        ),
        "stress": np.array([no_stress if f.stress is None else f.stress for f in frames], dtype=np.float64),
    }
    if any(frame.forces is None for frame in frames):
        arrays["has_forces"] = np.array([frame.forces is not None for frame in frames], dtype=bool)
    for key in frames[0].info:
        arrays[f"info.{key}"] = np.array([frame.info[key] for frame in frames])
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _to_grid(values: NDArray[np.float64], resolution: float) -> NDArray[np.int32]:
    counts = np.rint(np.asarray(values, dtype=np.float64) * round(1 / resolution))
    if not (np.abs(counts) < 2**31).all():
        raise ValueError(f"values beyond the range of ±{2**31 * resolution:.0f} of the fixed-point format")
    return counts.astype(np.int32)
