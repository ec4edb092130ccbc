"""Torch data sets: frames in memory or in a store, handed out as graph samples.

Neighbour lists are made where samples are asked for, that is in the workers of a loader. A cache keeps samples
as long as they fit, so that small sets pay for their neighbour lists once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.linking import Unlinked, frames_to_unlinked
from pimlip_zoo.datasets.lmdb import FrameStore
from pimlip_zoo.datasets.lmdb.index import count_edges
from pimlip_zoo.datasets.molecules import batch_of_records
from pimlip_zoo.datasets.neighbours import frame_to_sample, frames_to_batch
from pimlip_zoo.datasets.stored import StoredFrames, estimate_edges
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import Batch, collate

__all__ = [
    "FrameDataset",
    "MadeSamples",
    "Samples",
    "StoreDataset",
    "StoredSamples",
    "as_samples",
    "estimate_edges",
]

_BYTES_PER_ATOM, _BYTES_PER_EDGE = 64, 40


class Samples(Protocol):
    """Graph samples by number: there already, or made when they are asked for from memory or from a store."""

    @property
    def list_cutoff(self) -> float | None:
        """Å, of neighbour lists that can also be made later, from :meth:`unlinked`; None: they are there already."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int, /) -> Batch:
        """The sample with a number."""

    def __iter__(self) -> Iterator[Batch]:
        """One after the other."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """Some samples as one batch."""

    def unlinked(self, indices: Sequence[int]) -> Unlinked:
        """Some structures as one batch without edges, where :attr:`list_cutoff` says that there is such a thing."""

    def sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Atoms and edges of each, for a sampler; edges that are not made yet are estimated."""


class MadeSamples(list[Batch]):
    """Samples with their neighbour lists, in memory."""

    list_cutoff = None

    def batch(self, indices: Sequence[int]) -> Batch:
        """See :class:`Samples`."""
        return collate([self[index] for index in indices])

    def unlinked(self, indices: Sequence[int]) -> Unlinked:
        """Never asked for: the lists are there."""
        raise NotImplementedError

    def sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See :class:`Samples`."""
        graphs = [sample.graph for sample in self]
        return (
            np.array([len(graph.positions) for graph in graphs], dtype=np.int64),
            np.array([graph.edge_index.shape[1] for graph in graphs], dtype=np.int64),
        )


def as_samples(samples: Samples | Sequence[Batch]) -> Samples:
    """Samples as everything that trains asks them; a plain list of them becomes :class:`MadeSamples`."""
    return cast("Samples", samples) if hasattr(samples, "batch") else MadeSamples(samples)


class _CachedSamples(Dataset[Batch]):
    """Samples by index, kept up to a number of bytes."""

    def __init__(self, species: Sequence[str], cutoff: float, cache_bytes: int) -> None:
        self.species, self.cutoff = tuple(species), float(cutoff)
        self._room = self._cache_bytes = cache_bytes
        self._kept: dict[int, Batch] = {}

    def __getitem__(self, index: int) -> Batch:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        try:
            sample = frame_to_sample(self._frame(index), self.species, self.cutoff)
        except InputError as error:
            if error.frame is not None:
                raise
            raise InputError(error.message, **self._place(index), key=error.key, mend=error.mend) from error
        size = (
            _BYTES_PER_ATOM * len(sample.graph.positions) + _BYTES_PER_EDGE * sample.graph.edge_index.shape[1]
        )
        if size <= self._room:
            self._room -= size
            self._kept[index] = sample
        return sample

    def _frame(self, index: int) -> Frame:
        """The structure of a sample; each kind of set has its own."""
        raise NotImplementedError

    def _place(self, index: int) -> dict[str, Any]:
        return {"frame": index}

    def __iter__(self) -> Iterator[Batch]:
        for index in range(len(self)):
            yield self[index]

    def __len__(self) -> int:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        # Spawned workers fill caches of their own; sending the parent's would take longer than making them.
        return {**self.__dict__, "_kept": {}, "_room": self._cache_bytes}


class FrameDataset(_CachedSamples):
    """Frames in memory.

    Args:
        frames: the structures.
        species: chemical symbols in the model's order.
        cutoff: Å, of the neighbour lists.
        cache_bytes: how much memory samples may take; 0 makes every neighbour list anew.
    """

    def __init__(
        self, frames: Sequence[Frame], species: Sequence[str], cutoff: float, *, cache_bytes: int = 1 << 30
    ) -> None:
        super().__init__(species, cutoff, cache_bytes)
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def list_cutoff(self) -> float | None:
        """See :class:`Samples`."""
        return self.cutoff

    def unlinked(self, indices: Sequence[int]) -> Unlinked:
        """See :class:`Samples`."""
        return frames_to_unlinked([self.frames[index] for index in indices], self.species)

    def batch(self, indices: Sequence[int]) -> Batch:
        """See :class:`Samples`."""
        return collate([self[index] for index in indices])

    def sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See :class:`Samples`."""
        atoms = np.array([len(frame.numbers) for frame in self.frames], dtype=np.int64)
        edges = np.array([count_edges(frame, self.cutoff) for frame in self.frames], dtype=np.int64)
        return atoms, edges

    def _frame(self, index: int) -> Frame:
        return self.frames[index]


class StoredSamples(FrameDataset):
    """Frames of a store, read when they are asked for.

    Args:
        frames: the structures, or some of them.
        species: as :class:`FrameDataset`.
        cutoff: as :class:`FrameDataset`.
        cache_bytes: as :class:`FrameDataset`, in each process.
    """

    def __init__(
        self, frames: StoredFrames, species: Sequence[str], cutoff: float, *, cache_bytes: int = 1 << 30
    ) -> None:
        super().__init__(frames, species, cutoff, cache_bytes=cache_bytes)
        self.stored = frames

    def unlinked(self, indices: Sequence[int]) -> Unlinked:
        """See :class:`Samples`."""
        return frames_to_unlinked(self.stored.read(indices), self.species)

    def batch(self, indices: Sequence[int]) -> Batch:
        """See :class:`Samples`; made together unless the cache can keep all samples of the set."""
        if self._keeps_all:
            return super().batch(indices)
        frames = self.stored
        try:
            made = batch_of_records(frames.records(indices), self.species, self.cutoff, frames.labels)
            if made is not None:
                return made
            return frames_to_batch(frames.read(indices), self.species, self.cutoff)
        except InputError:
            return super().batch(indices)  # says which frame it is

    @cached_property
    def _keeps_all(self) -> bool:
        if not self._cache_bytes:
            return False
        atoms, edges = self.sizes()
        return int(atoms.sum()) * _BYTES_PER_ATOM + int(edges.sum()) * _BYTES_PER_EDGE <= self._cache_bytes

    def sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See :class:`Samples`; estimated from the index."""
        return self.stored.sizes(self.cutoff)

    def _place(self, index: int) -> dict[str, Any]:
        return {"file": self.stored.store.path, "frame": int(self.stored.indices[index])}


class StoreDataset(StoredSamples):
    """Frames of an LMDB store, or some of them; nothing is held but the index.

    Args:
        path: the store.
        species: chemical symbols in the model's order.
        cutoff: Å, of the neighbour lists.
        indices: which frames, from a split; None for all.
        cache_bytes: how much memory samples may take in each process.

    Raises:
        InputError: for a store with elements that the model does not know, or indices beyond it.
    """

    def __init__(
        self,
        path: str | Path,
        species: Sequence[str],
        cutoff: float,
        *,
        indices: NDArray[np.int64] | None = None,
        cache_bytes: int = 0,
    ) -> None:
        frames = StoredFrames(FrameStore(path), indices)
        super().__init__(frames, species, cutoff, cache_bytes=cache_bytes)
        unknown = [symbol for symbol in frames.store.coverage().species if symbol not in self.species]
        if unknown:
            raise InputError(
                f"the model does not know {', '.join(unknown)}",
                file=path,
                key="species",
                mend=f"it knows {', '.join(self.species)}",
            )
