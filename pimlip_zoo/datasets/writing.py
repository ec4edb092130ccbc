"""Frames to a file, by the ending of its name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pimlip_zoo.datasets.frame import Frame, frame_to_atoms
from pimlip_zoo.files import replacing


def write_frames(out: Path, frames: Iterable[Frame], meta: dict[str, Any] | None = None) -> None:
    """Write frames as a store (``.lmdb``), anything else as extended XYZ; in eV and Å, all of it or nothing.

    Args:
        out: the file, which is replaced.
        frames: the structures.
        meta: what a store says of itself.

    Raises:
        InputError: when it cannot be written.
    """
    with replacing(out) as temporary:
        if out.suffix == ".lmdb":
            from pimlip_zoo.datasets.lmdb import write_store

            write_store(temporary, frames, meta=meta)
        else:
            from ase.io import write

            write(str(temporary), [frame_to_atoms(frame) for frame in frames], format="extxyz")
