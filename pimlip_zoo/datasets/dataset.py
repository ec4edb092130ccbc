"""Torch data sets: frames in memory or in a store, handed out as graph samples.

Neighbour lists are made where samples are asked for, that is in the workers of a loader. A cache keeps samples
as long as they fit, so that small sets pay for their neighbour lists once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.lmdb import FrameStore
from pimlip_zoo.datasets.lmdb.index import count_edges
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import Batch

__all__ = ["FrameDataset", "StoreDataset", "estimate_edges"]

_BYTES_PER_ATOM, _BYTES_PER_EDGE = 64, 40


class _CachedSamples(Dataset[Batch]):
    """Samples by index, kept up to a number of bytes."""

    def __init__(self, species: Sequence[str], cutoff: float, cache_bytes: int) -> None:
        self.species, self.cutoff = tuple(species), float(cutoff)
        self._room = cache_bytes
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
            raise InputError(
                error.message, file=self._name(), frame=index, key=error.key, mend=error.mend
            ) from error
        size = (
            _BYTES_PER_ATOM * len(sample.graph.positions) + _BYTES_PER_EDGE * sample.graph.edge_index.shape[1]
        )
        if size <= self._room:
            self._room -= size
            self._kept[index] = sample
        return sample

    def _frame(self, index: int) -> Frame:
        raise NotImplementedError

    def _name(self) -> object:
        return None

    def __getstate__(self) -> dict[str, Any]:
        # Spawned workers fill caches of their own; sending the parent's would take longer than making them.
        return {**self.__dict__, "_kept": {}}


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

    def sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Atoms and edges of each structure, for a sampler."""
        atoms = np.array([len(frame.numbers) for frame in self.frames], dtype=np.int64)
        edges = np.array([count_edges(frame, self.cutoff) for frame in self.frames], dtype=np.int64)
        return atoms, edges

    def _frame(self, index: int) -> Frame:
        return self.frames[index]


class StoreDataset(_CachedSamples):
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
        super().__init__(species, cutoff, cache_bytes)
        self.store = FrameStore(path)
        self.indices = np.arange(len(self.store)) if indices is None else np.asarray(indices, dtype=np.int64)
        if len(self.indices) and not 0 <= self.indices.min() <= self.indices.max() < len(self.store):
            raise InputError(f"an index is beyond its {len(self.store)} frames", file=path, key="indices")
        unknown = [symbol for symbol in self.store.coverage().species if symbol not in self.species]
        if unknown:
            raise InputError(
                f"the model does not know {', '.join(unknown)}",
                file=path,
                key="species",
                mend=f"it knows {', '.join(self.species)}",
            )

    def __len__(self) -> int:
        return len(self.indices)

    def sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Atoms and estimated edges of each structure, from the index alone."""
        entries = self.store.index[self.indices]
        atoms = entries["natoms"].astype(np.int64)
        edges = estimate_edges(
            entries["edges"], atoms, entries["periodic"], self.store.index_cutoff, self.cutoff
        )
        return atoms, edges

    def _frame(self, index: int) -> Frame:
        return self.store[int(self.indices[index])]

    def _name(self) -> object:
        return self.store.path


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
