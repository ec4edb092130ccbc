"""Frames that stay in their store: read one at a time, counted and measured by the index alone.

See :class:`~pimlip_zoo.datasets.frames.Frames`; memory grows by the index, some hundred bytes a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pimlip_zoo.datasets.frame import LABELS, Frame, without_uncounted
from pimlip_zoo.datasets.frames import Frames
from pimlip_zoo.datasets.indices import whole_numbers
from pimlip_zoo.datasets.lmdb import FrameStore
from pimlip_zoo.datasets.lmdb.index import FRAME
from pimlip_zoo.datasets.lmdb.record import ENERGY, FORCES, STRESS
from pimlip_zoo.datasets.readers import (
    all_usable,
    check_chosen,
    check_frame,
    open_source,
    parse_spec,
    window_of,
)
from pimlip_zoo.datasets.readers.inside import StoreFile
from pimlip_zoo.datasets.summary import Facts
from pimlip_zoo.errors import InputError

__all__ = ["LABELS", "StoredFrames", "estimate_edges", "open_frames"]

_READ_AT_ONCE = 256


class StoredFrames(Frames):
    """Frames of a store by number, or some of them, with all their labels or some of them.

    Args:
        store: the store.
        indices: which frames, in which order, counted from 0; None for all.
        labels: which labels they are given with.
        nan: as in :func:`~pimlip_zoo.datasets.readers.check_frame`.
        counted: labels of weight 0 are left out.

    Raises:
        InputError: for an index that the store does not have.
    """

    def __init__(
        self,
        store: FrameStore,
        indices: ArrayLike | None = None,
        labels: Sequence[str] = LABELS,
        nan: str = "error",
        *,
        counted: bool = False,
    ) -> None:
        self.store, self.labels, self.nan, self.counted = store, tuple(labels), nan, counted
        self.indices: NDArray[np.int64] = (
            np.arange(len(store))
            if indices is None
            else whole_numbers(indices, "index", least=0, count=len(store), file=store.path, key="indices")
        )

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> list[Frame]: ...
    def __getitem__(self, index: int | slice) -> Frame | list[Frame]:
        """A frame, or a list of them.

        Raises:
            InputError: for a damaged frame, or one that cannot be used.
        """
        if isinstance(index, slice):
            return self.read(range(*index.indices(len(self))))
        return self.read([index])[0]

    def __iter__(self) -> Iterator[Frame]:
        for start in range(0, len(self), _READ_AT_ONCE):
            yield from self[start : start + _READ_AT_ONCE]

    def read(self, positions: Sequence[int]) -> list[Frame]:
        """Some of the frames.

        Raises:
            InputError: for a damaged frame, or one that cannot be used.
        """
        numbers = self.indices[np.asarray(positions, dtype=np.int64)].tolist()
        frames = [self.store[number] for number in numbers]
        if not all_usable(frames):
            place = str(self.store.path)
            frames = [
                check_frame(frame, file=place, index=number, nan=self.nan)
                for number, frame in zip(numbers, frames, strict=True)
            ]
        if self.counted:
            frames = [frame if len(frame.numbers) == 1 else without_uncounted(frame) for frame in frames]
        if self.labels == LABELS:
            return frames
        gone: dict[str, Any] = {name: None for name in LABELS if name not in self.labels}
        return [replace(frame, **gone) for frame in frames]

    def records(self, positions: Sequence[int]) -> list[bytes]:
        """The bytes of some of the frames, with all their labels, as they stand in the file."""
        return self.store.raw_many(self.indices[np.asarray(positions, dtype=np.int64)].tolist())

    def subset(self, positions: ArrayLike) -> StoredFrames:
        """Some of these frames by their position among them."""
        chosen = self.indices[np.asarray(positions, dtype=np.int64)]
        return StoredFrames(self.store, chosen, self.labels, self.nan, counted=self.counted)

    @property
    def source(self) -> str:
        """The store."""
        return str(self.store.path)

    def with_labels(self, labels: Sequence[str]) -> StoredFrames:
        """The same frames without their other labels."""
        kept = [name for name in self.labels if name in labels]
        return StoredFrames(self.store, self.indices, kept, self.nan, counted=self.counted)

    def counting(self, keep: Callable[[Frame], bool]) -> StoredFrames:
        """The frames that have a weight, with those labels that have one; single atoms have all of theirs.

        Args:
            keep: says of a single atom without a weight whether it stays.
        """
        entries = self.store.index[self.indices]
        there = entries["uncounted"] & FRAME == 0
        for position in np.flatnonzero(~there & (entries["natoms"] == 1)).tolist():
            there[position] = keep(self[position])
        return StoredFrames(self.store, self.indices[there], self.labels, self.nan, counted=True)

    def single_atoms(self) -> list[int]:
        """From the index."""
        return np.flatnonzero(self.facts.natoms == 1).tolist()

    def sample(self, count: int) -> tuple[Sequence[int], int]:
        """Evenly spread: each frame has to be opened."""
        step = max(1, -(-len(self) // count))
        return range(0, len(self), step), step

    def uncharged(self) -> bool:
        """As the writer noted."""
        return all(meta.get("charged") is False for meta in self.store.meta)

    def place(self, position: int) -> dict[str, Any]:
        """The store, and the frame's number there."""
        return {"file": self.store.path, "frame": int(self.indices[position])}

    def fingerprint(self) -> str:
        """Of the index, of the frames' checksums where the store has them, and of some of the frames in full."""
        digest = sha256(self.store.index[self.indices].tobytes())
        checksums = self.store.checksums()
        if checksums is not None:
            digest.update(checksums[self.indices].tobytes())
        digest.update(np.ascontiguousarray(self.store.compositions).tobytes())
        places = np.unique(np.linspace(0, len(self) - 1, min(len(self), _READ_AT_ONCE)).astype(int))
        for record in self.records(places.tolist()):
            digest.update(record)
        return digest.hexdigest()

    @cached_property
    def facts(self) -> Facts:
        """Sizes, compositions and labels, from the index."""
        entries = self.store.index[self.indices]
        mask = entries["labels"]
        if self.counted:
            mask = np.where(entries["natoms"] == 1, mask, mask & ~entries["uncounted"].astype(mask.dtype))
        with_energy = (mask & ENERGY > 0) & ("energy" in self.labels)
        forces = (mask & FORCES > 0) & ("forces" in self.labels)
        return Facts(
            natoms=entries["natoms"].astype(np.int64),
            composition=entries["composition"].astype(np.int64),
            compositions=self.store.compositions,
            energy=np.where(with_energy, entries["energy"], np.nan),
            force_square=entries["force_square"] * forces,
            force_atoms=entries["force_atoms"].astype(np.int64) * forces,
            stress=(mask & STRESS > 0) & ("stress" in self.labels),
            periodic=entries["periodic"] > 0,
        )

    def sizes(self, cutoff: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Edges are estimated from the index."""
        entries = self.store.index[self.indices]
        atoms = entries["natoms"].astype(np.int64)
        return atoms, estimate_edges(
            entries["edges"], atoms, entries["periodic"], self.store.index_cutoff, cutoff
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "facts"}


def open_frames(spec: str) -> StoredFrames | None:
    """The frames of a DATA specification where they are in one store; None for everything else.

    Raises:
        InputError: for a store that cannot be read, or no frames.
    """
    sources = parse_spec(spec)
    if len(sources) != 1 or sources[0].is_builtin:
        return None
    source = sources[0]
    file = open_source(source)
    if not isinstance(file, StoreFile):
        return None
    window = window_of(source.frames, file)
    indices = np.arange(window.start, min(window.stop, file.count()), window.step)
    if source.indices is not None:
        check_chosen(source, file.count())
        indices = indices[np.isin(indices, np.fromiter(source.indices, dtype=np.int64))]
    if not len(indices):
        raise InputError("there are no frames", file=spec)
    return StoredFrames(file.store, indices, nan=source.options.nan)


def estimate_edges(
    edges: NDArray[Any], natoms: NDArray[np.int64], periodic: NDArray[Any], counted: float, cutoff: float
) -> NDArray[np.int64]:
    """Edges within a cutoff from those that were counted within another.

    They grow with the volume of the sphere; in a molecule there are at most N (N - 1).
    """
    scaled = np.ceil(np.asarray(edges, dtype=np.float64) * (cutoff / counted) ** 3).astype(np.int64)
    most = np.where(np.asarray(periodic) > 0, np.iinfo(np.int64).max, natoms * (natoms - 1))
    estimate: NDArray[np.int64] = np.minimum(scaled, most)
    return estimate
