"""Labelled structures as one compact ``.npz``: fixed-point geometry and forces, no pickle.

Positions are stored as int32 counts of 1e-6 Å and forces as counts of 1e-7 eV/Å; energies, cells and
stresses are float64 as they are. ``scripts/builtin_data`` writes such files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from pimlip_zoo.datasets.frame import Frame

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

POSITION_RESOLUTION = 1e-6
"""Å."""
FORCE_RESOLUTION = 1e-7
"""eV/Å."""
FORMAT = 1


@dataclass(frozen=True)
class PackedSet:
    """Splits of labelled structures and what is known of them."""

    splits: Mapping[str, Sequence[Frame]]
    """Frames by the name of the split."""
    atom_energies: Mapping[str, float]
    """Energy in eV of the isolated atom of each element, same level of theory as the labels."""
    provenance: Mapping[str, Any]
    """How the set was made: level of theory, units, licence, counts."""


def read_packed(file: Path | IO[bytes]) -> PackedSet:
    """Read the splits of a file, and what it says of them.

    Raises:
        ValueError: for another format version, or arrays that need pickle.
    """
    with np.load(file, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    meta = json.loads(arrays["meta"].tobytes().decode())
    if meta["format"] != FORMAT:
        raise ValueError(f"format {meta['format']} of packed structures is unknown, {FORMAT} is expected")
    frames = _unpack(arrays)
    splits, start = {}, 0
    for name, count in meta["splits"].items():
        splits[name] = frames[start : start + count]
        start += count
    return PackedSet(splits, meta["atom_energies"], meta["provenance"])


def _unpack(arrays: Mapping[str, NDArray[Any]]) -> list[Frame]:
    ends = np.cumsum(arrays["natoms"])
    numbers = arrays["numbers"].astype(np.int64)
    positions = from_grid(arrays["positions"], POSITION_RESOLUTION)
    forces = from_grid(arrays["forces"], FORCE_RESOLUTION)
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


def from_grid(counts: NDArray[np.int32], resolution: float) -> NDArray[np.float64]:
    """Numbers from their counts of the resolution."""
    # Dividing by an integer gives the double nearest to the decimal number; multiplying by 1e-6 would not.
    return counts / float(round(1 / resolution))
