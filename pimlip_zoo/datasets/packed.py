"""Labelled structures as one compact ``.npz``: fixed-point geometry and forces, no pickle.

Positions are stored as int32 counts of 1e-6 Å and forces as counts of 1e-7 eV/Å; energies, cells and
stresses are float64 as they are. Labels are exact for the stored geometry when the geometry was put on
the grid (:func:`snap`) before it was labelled.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.files import replacing, writing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["FORCE_RESOLUTION", "POSITION_RESOLUTION", "PackedSet", "read_packed", "snap", "write_packed"]

POSITION_RESOLUTION = 1e-6
"""Å."""
FORCE_RESOLUTION = 1e-7
"""eV/Å."""
_FORMAT = 1


@dataclass(frozen=True)
class PackedSet:
    """Splits of labelled structures and what is known of them."""

    splits: Mapping[str, Sequence[Frame]]
    """Frames by the name of the split."""
    atom_energies: Mapping[str, float]
    """Energy in eV of the isolated atom of each element, same level of theory as the labels."""
    provenance: Mapping[str, Any]
    """How the set was made: level of theory, units, licence, counts."""


def snap(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions on the grid of the file: what is read back is equal to this, bit by bit."""
    return _from_grid(_to_grid(positions, POSITION_RESOLUTION), POSITION_RESOLUTION)


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
        "format": _FORMAT,
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


def read_packed(file: Path | IO[bytes]) -> PackedSet:
    """Read what :func:`write_packed` wrote.

    Raises:
        ValueError: for another format version, or arrays that need pickle.
    """
    with np.load(file, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    meta = json.loads(arrays["meta"].tobytes().decode())
    if meta["format"] != _FORMAT:
        raise ValueError(f"format {meta['format']} of packed structures is unknown, {_FORMAT} is expected")
    frames = _unpack(arrays)
    splits, start = {}, 0
    for name, count in meta["splits"].items():
        splits[name] = frames[start : start + count]
        start += count
    return PackedSet(splits, meta["atom_energies"], meta["provenance"])


def _unpack(arrays: Mapping[str, NDArray[Any]]) -> list[Frame]:
    ends = np.cumsum(arrays["natoms"])
    numbers = arrays["numbers"].astype(np.int64)
    positions = _from_grid(arrays["positions"], POSITION_RESOLUTION)
    forces = _from_grid(arrays["forces"], FORCE_RESOLUTION)
    info = {key.removeprefix("info."): arrays[key].tolist() for key in arrays if key.startswith("info.")}
    has_forces = arrays.get("has_forces", np.ones(len(ends), dtype=bool))
    of_forces = np.cumsum(np.where(has_forces, arrays["natoms"], 0))
    frames = []
    for i, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        stress = arrays["stress"][i]
        frames.append(
            Frame(
                numbers=numbers[start:end].copy(),
                positions=positions[start:end].copy(),
                cell=arrays["cell"][i].copy(),
                pbc=arrays["pbc"][i].copy(),
                energy=float(arrays["energy"][i]),
                forces=forces[of_forces[i] - (end - start) : of_forces[i]].copy() if has_forces[i] else None,
                stress=None if np.isnan(stress).any() else stress.copy(),
                info={key: values[i] for key, values in info.items()},
            )
        )
    return frames


def _to_grid(values: NDArray[np.float64], resolution: float) -> NDArray[np.int32]:
    counts = np.rint(np.asarray(values, dtype=np.float64) * round(1 / resolution))
    if not (np.abs(counts) < 2**31).all():
        raise ValueError(f"values beyond the range of ±{2**31 * resolution:.0f} of the fixed-point format")
    return counts.astype(np.int32)


def _from_grid(counts: NDArray[np.int32], resolution: float) -> NDArray[np.float64]:
    # Dividing by an integer gives the double nearest to the decimal number; multiplying by 1e-6 would not.
    return counts / float(round(1 / resolution))
