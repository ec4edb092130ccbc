"""Frames of a run as everything that prepares it asks them: held in memory, or left in their store."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pimlip_zoo.datasets.electrons import stated
from pimlip_zoo.datasets.frame import EVEN, LABELS, Frame, without_uncounted
from pimlip_zoo.datasets.lmdb.index import count_edges


class Frames(Sequence[Frame]):
    """A sequence of frames that answers for itself."""

    labels: tuple[str, ...]
    """Which labels they are given with."""

    @property
    @abstractmethod
    def source(self) -> str | None:
        """The file from which frames are read as needed; None: they are in memory."""

    @abstractmethod
    def read(self, positions: Sequence[int]) -> list[Frame]:
        """Some of the frames at once."""

    @abstractmethod
    def records(self, positions: Sequence[int]) -> list[bytes] | None:
        """Their bytes with all their labels, as they stand in the file; None: they stand in none."""

    @abstractmethod
    def subset(self, positions: ArrayLike) -> Frames:
        """Some of the frames by position."""

    @abstractmethod
    def with_labels(self, labels: Sequence[str]) -> Frames:
        """The frames without their other labels."""

    @abstractmethod
    def counting(self, keep: Callable[[Frame], bool]) -> Frames:
        """The frames that have a weight, with those labels that have one; what ``keep`` says stays as it is."""

    @abstractmethod
    def single_atoms(self) -> list[int]:
        """The positions of frames of one atom."""

    @abstractmethod
    def sample(self, count: int) -> tuple[Sequence[int], int]:
        """Positions to look at, and every how manieth that is: all where they are at hand, else some ``count``."""

    @abstractmethod
    def uncharged(self) -> bool:
        """Whether it is known, without looking at a frame, that none states a charge or a multiplicity."""

    @abstractmethod
    def sizes(self, cutoff: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Atoms and edges within a cutoff (Å) of each frame."""

    @abstractmethod
    def place(self, position: int) -> dict[str, Any]:
        """Where a frame is, for messages: ``file`` and ``frame``."""

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of everything that is trained on."""


class HeldFrames(list[Frame], Frames):
    """Frames in memory."""

    source, labels = None, LABELS

    def read(self, positions: Sequence[int]) -> list[Frame]:
        """Those at the positions."""
        return [self[position] for position in positions]

    def records(self, positions: Sequence[int]) -> None:
        """There are none."""

    def subset(self, positions: ArrayLike) -> HeldFrames:
        """Those at the positions."""
        return HeldFrames(self.read(np.asarray(positions, dtype=np.int64).tolist()))

    def with_labels(self, labels: Sequence[str]) -> HeldFrames:
        """Copies without the other labels."""
        gone: dict[str, Any] = {name: None for name in LABELS if name not in labels}
        return HeldFrames(replace(frame, **gone) for frame in self)

    def counting(self, keep: Callable[[Frame], bool]) -> HeldFrames:
        """Looks at every frame."""
        return HeldFrames(
            frame if keep(frame) else without_uncounted(frame)
            for frame in self
            if frame.weight > 0 or keep(frame)
        )

    def single_atoms(self) -> list[int]:
        """Looks at every frame."""
        return [i for i, frame in enumerate(self) if len(frame.numbers) == 1]

    def sample(self, count: int) -> tuple[Sequence[int], int]:  # noqa: ARG002
        """All of them."""
        return range(len(self)), 1

    def uncharged(self) -> bool:
        """Has to be looked at."""
        return False

    def sizes(self, cutoff: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Edges are counted."""
        atoms = np.array([len(frame.numbers) for frame in self], dtype=np.int64)
        return atoms, np.array([count_edges(frame, cutoff) for frame in self], dtype=np.int64)

    def place(self, position: int) -> dict[str, Any]:
        """No file."""
        return {"frame": position}

    def fingerprint(self) -> str:
        """Of every array, of charge and multiplicity, and of weights of labels."""
        digest = sha256()
        for frame in self:
            digest.update(geometry_bytes(frame))
            for array in (frame.energy, frame.forces, frame.stress, frame.weight):
                digest.update(b"-" if array is None else np.ascontiguousarray(array, np.float64).tobytes())
            digest.update(electrons_bytes(frame))
            if frame.label_weights != EVEN:  # hashes of data without them stay as they were
                digest.update(b"weights" + np.array(frame.label_weights, dtype="<f8").tobytes())
        return digest.hexdigest()


def as_frames(frames: Sequence[Frame]) -> Frames:
    """Frames as they are asked; a plain sequence becomes :class:`HeldFrames`."""
    return cast("Frames", frames) if hasattr(frames, "fingerprint") else HeldFrames(frames)


def geometry_bytes(frame: Frame) -> bytes:
    """Elements, positions and cell, for a hash."""
    arrays = (frame.numbers, np.int64), (frame.positions, float), (frame.cell, float), (frame.pbc, np.bool_)
    return b"".join(np.ascontiguousarray(array, dtype=kind).tobytes() for array, kind in arrays)


def electrons_bytes(frame: Frame) -> bytes:
    """What a frame states of charge and multiplicity, for a hash; nothing where it states nothing."""
    electrons = stated(frame)
    return json.dumps(electrons, sort_keys=True).encode() if electrons else b""
