"""Frames to a file, by the ending of its name."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pimlip_zoo.datasets.frame import Frame, frame_to_atoms
from pimlip_zoo.files import replacing

if TYPE_CHECKING:
    from ase import Atoms

log = logging.getLogger("pimlip_zoo")

_KINDS = {"initial_charges": "charges of atoms", "initial_magmoms": "magnetic moments of atoms"}


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

            kinds: set[str] = set()
            write_store(temporary, _watched(frames, kinds), meta=meta)
            if kinds:
                log.warning(
                    "%s: not kept, because a store has no place for it: %s (extended XYZ has one)",
                    *(out, " and ".join(sorted(kinds))),
                )
        else:
            from ase.io import write

            write(str(temporary), [_with_initial(frame) for frame in frames], format="extxyz")


def _with_initial(frame: Frame) -> Atoms:
    atoms = frame_to_atoms(frame)
    for name, values in (frame.initial or {}).items():
        atoms.set_array(name, values)
    return atoms


def _watched(frames: Iterable[Frame], kinds: set[str]) -> Iterator[Frame]:
    """The frames; the kinds of what calculations with them start from are noted."""
    for frame in frames:
        kinds.update(_KINDS[name] for name, values in (frame.initial or {}).items() if values.any())
        yield frame
