"""Torch data sets: frames in memory or in a store, handed out as graph samples.

Neighbour lists are made where samples are asked for, that is in the workers of a loader. A cache keeps samples
as long as they fit, so that small sets pay for their neighbour lists once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pimlip_zoo.datasets.device_neighbours import BatchWithoutEdges, batch_without_edges
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.frames import as_frames
from pimlip_zoo.datasets.molecules import batch_of_records
from pimlip_zoo.datasets.neighbours import frame_to_sample, frames_to_batch
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import Batch, collate

_BYTES_PER_ATOM, _BYTES_PER_EDGE = 64, 40


class Samples(Protocol):
    """Graph samples by number: there already, or made when they are asked for from memory or from a store."""

    @property
    def list_cutoff(self) -> float | None:
        """Å, of neighbour lists that can also be made later, from :meth:`without_edges`; None: they are there."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int, /) -> Batch:
        """The sample with a number."""

    def __iter__(self) -> Iterator[Batch]:
        """One after the other."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """Some samples as one batch."""

    def without_edges(self, indices: Sequence[int]) -> BatchWithoutEdges:
        """Some structures as one batch without edges, where :attr:`list_cutoff` says that there is such a thing."""

    def sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Atoms and edges of each, for a sampler; edges that are not made yet are estimated."""


class MadeSamples(list[Batch]):
    """Samples with their neighbour lists, in memory."""

    list_cutoff = None

    def batch(self, indices: Sequence[int]) -> Batch:
        """See :class:`Samples`."""
        return collate([self[index] for index in indices])

    def without_edges(self, indices: Sequence[int]) -> BatchWithoutEdges:
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


class FrameDataset(Dataset[Batch]):
    """Samples that are made when they are asked for, and kept up to a number of bytes.

    Args:
        frames: the structures, in memory or in a store.
        species: chemical symbols in the model's order.
        cutoff: Å, of the neighbour lists.
        cache_bytes: how much memory samples may take in each process; 0 makes every neighbour list anew.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        species: Sequence[str],
        cutoff: float,
        *,
        cache_bytes: int = 1 << 30,
    ) -> None:
        self.frames, self.species, self.cutoff = as_frames(frames), tuple(species), float(cutoff)
        self._room = self._cache_bytes = cache_bytes
        self._kept: dict[int, Batch] = {}

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Batch:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        try:
            sample = frame_to_sample(self.frames[index], self.species, self.cutoff)
        except InputError as error:
            if error.frame is not None:
                raise
            raise error.at(**self.frames.place(index)) from error
        size = (
            _BYTES_PER_ATOM * len(sample.graph.positions) + _BYTES_PER_EDGE * sample.graph.edge_index.shape[1]
        )
        if size <= self._room:
            self._room -= size
            self._kept[index] = sample
        return sample

    def __iter__(self) -> Iterator[Batch]:
        for index in range(len(self)):
            yield self[index]

    def __getstate__(self) -> dict[str, Any]:
        # Spawned workers fill caches of their own; sending the parent's would take longer than making them.
        return {**self.__dict__, "_kept": {}, "_room": self._cache_bytes}

    @property
    def list_cutoff(self) -> float | None:
        """See :class:`Samples`."""
        return self.cutoff

    def without_edges(self, indices: Sequence[int]) -> BatchWithoutEdges:
        """See :class:`Samples`."""
        return batch_without_edges(self.frames.read(indices), self.species)

    def batch(self, indices: Sequence[int]) -> Batch:
        """See :class:`Samples`; what stands in a file is made together, unless the cache can keep all of the set."""
        if self._made_together:
            try:
                records = self.frames.records(indices)
                assert records is not None
                made = batch_of_records(records, self.species, self.cutoff, self.frames.labels)
                if made is not None:
                    return made
                return frames_to_batch(self.frames.read(indices), self.species, self.cutoff)
            except InputError:
                pass  # below it is said which frame it is
        return collate([self[index] for index in indices])

    @cached_property
    def _made_together(self) -> bool:
        if self.frames.source is None:
            return False
        atoms, edges = self.sizes()
        return int(atoms.sum()) * _BYTES_PER_ATOM + int(edges.sum()) * _BYTES_PER_EDGE > self._cache_bytes

    def sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See :class:`Samples`."""
        return self.frames.sizes(self.cutoff)
