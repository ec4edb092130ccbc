"""Which structures a run has seen: errors on these say nothing of new ones.

The record of a run's data has a short hash of each training and validation structure, of 10,000 of them at most, spread
over the set. Geometries are compared to 1e-4 Å, so that a set that was converted to another format is recognised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.frames import as_frames, electrons_bytes

_MOST = 10_000
_DIGITS = 4
_HEX = 12


def geometry_hashes(frames: Iterable[Frame]) -> list[str]:
    """A hash of each structure: elements, positions, cell, periodicity, charge and multiplicity."""
    return [_hash(frame) for frame in frames]


def _hash(frame: Frame) -> str:
    digest = sha256(np.ascontiguousarray(frame.numbers, dtype=np.int64).tobytes())
    for array in (frame.positions, frame.cell):
        rounded = np.round(np.asarray(array, dtype=np.float64), _DIGITS) + 0.0  # no negative zero
        digest.update(rounded.tobytes())
    digest.update(np.ascontiguousarray(frame.pbc, dtype=np.bool_).tobytes())
    digest.update(electrons_bytes(frame))
    return digest.hexdigest()[:_HEX]


def recorded_hashes(frames: Sequence[Frame]) -> str:
    """What is kept of the structures of a part, in one line."""
    count = len(frames)
    places = np.unique(np.linspace(0, max(count - 1, 0), min(count, _MOST)).astype(int)).tolist()
    return " ".join(geometry_hashes(as_frames(frames).read(places)))


def seen_of(record: Mapping[str, Mapping[str, Any]], frames: Iterable[Frame]) -> dict[str, int]:
    """How many structures a run has seen: ``training`` and ``validation``, and ``structures``, how many there are.

    Args:
        record: of the run's data, as ``data.json`` has it; one that an older version wrote has no hashes.
        frames: that are looked at.
    """
    given = geometry_hashes(frames)
    found = {"structures": len(given)}
    left = set(given)
    for part in ("training", "validation"):
        text = record.get(part, {}).get("geometries", "")
        known = set(text.split() if isinstance(text, str) else ()) & left
        found[part] = sum(one in known for one in given)
        left -= known
    return found


def seen_sentence(found: Mapping[str, int]) -> str | None:
    """What has to be said of it; None: nothing."""
    trained, validated, count = found["training"], found["validation"], found["structures"]
    if not trained + validated:
        return None
    parts = [f"{trained:,} were trained on"] if trained else []
    parts += [f"{validated:,} validated the run"] if validated else []
    whole = "nothing" if trained + validated == count else "little"
    return (
        f"this run has seen {trained + validated:,} of these {count:,} structures ({', '.join(parts)}): "
        f"the errors say {whole} of new ones"
    )
