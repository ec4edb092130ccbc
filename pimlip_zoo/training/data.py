"""Batches for training: their order depends on the seed and the step alone, so that a run can be resumed exactly."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from pimlip_zoo.datasets.dataset import Samples, as_samples
from pimlip_zoo.datasets.device_neighbours import BatchWithoutEdges
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import Batch
from pimlip_zoo.training.packed_batch import PackedBatch, pack

_T = TypeVar("_T")

Joined = Batch | PackedBatch | BatchWithoutEdges | InputError
"""What a loader hands out: packed for the way where a worker made it."""


class SampleList(Dataset[Joined]):
    """Samples with their neighbour lists; index ``-1 - i`` is sample i without weight.

    A structure that cannot be read is handed out as its error: raised in a worker, it would arrive with the
    worker's traceback as its message.

    Args:
        samples: a list, or a data set.
        linked: False leaves the edges of a data set's batches to the training.
    """

    def __init__(self, samples: Samples | Sequence[Batch], *, linked: bool = True) -> None:
        self.samples, self.linked = as_samples(samples), linked

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Joined:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Joined]:
        """What a loader asks for: the samples as one batch, the only element of a list."""
        plain = [index if index >= 0 else -1 - index for index in indices]
        counts = torch.tensor([float(index >= 0) for index in indices], dtype=torch.float64)
        try:
            if not self.linked and self.samples.list_cutoff is not None:
                return [self.samples.without_edges(plain).weighted(counts)]
            batch = self.samples.batch(plain)
        except InputError as error:
            return [error]
        if min(indices) < 0:
            batch = batch.weighted(counts)
        return [pack(batch) if get_worker_info() is not None else batch]


def only(batches: Sequence[Joined]) -> Joined:
    """What :class:`SampleList` gave for one batch."""
    (batch,) = batches
    return batch


class StepSampler(Sampler[list[int]]):
    """The indices of each training step, as a function of (seed, step).

    A pass over the data is a permutation drawn from (seed, pass), cut into batches; the last batch of a pass may
    be smaller. The stream starts at :attr:`first_step`, which a resumed run sets to the steps that it has done.

    Args:
        size: number of samples.
        batch_size: samples per step, over all ranks.
        steps: length of the training.
        seed: of the permutations.
        rank: this process.
        ranks: number of processes; each takes every ``ranks``-th sample of a batch.
    """

    def __init__(
        self, size: int, batch_size: int, steps: int, seed: int, rank: int = 0, ranks: int = 1
    ) -> None:
        self.size, self.batch_size, self.steps, self.seed = size, min(batch_size, size), steps, seed
        self.rank, self.ranks = rank, ranks
        self.steps_per_pass = -(-size // self.batch_size)
        self.first_step = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        order = np.empty(0, dtype=np.int64)
        current = -1
        for step in range(self.first_step, self.steps):
            number, batch = divmod(step, self.steps_per_pass)
            if number != current:
                # A hash of both numbers: torch's generator on the CPU knows 32 bits of a seed only.
                order = np.random.default_rng([self.seed, number]).permutation(self.size)
                current = number
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()
            # A rank without a sample takes part with one that does not count.
            yield indices[self.rank :: self.ranks] or [-1 - indices[0]]


def in_bursts(batches: Iterator[_T], seconds: float = 0.005, most: int = 16) -> Iterator[_T]:
    """The same batches in the same order, several made at once where that takes no longer than some milliseconds.

    Between two training steps the processor's caches have gone cold, and a batch of small molecules takes more than
    twice as long to make as the one after it.
    """
    failure: Exception | None = None
    while failure is None:
        burst: list[_T] = []
        end = time.perf_counter() + seconds
        try:
            for batch in islice(batches, most):
                burst.append(batch)
                if time.perf_counter() >= end:
                    break
        except Exception as error:  # noqa: BLE001, what came before it is trained on first
            failure = error
        if not burst:
            break
        yield from burst
    if failure is not None:
        raise failure


class _Batches(DataLoader[Joined]):
    """A loader that makes batches in bursts where it makes them itself."""

    def __iter__(self) -> Any:
        batches = super().__iter__()
        return batches if self.num_workers else in_bursts(batches)


def training_loader(
    samples: SampleList, sampler: Sampler[list[int]], num_workers: int = 0
) -> DataLoader[Joined]:
    """Batches in the order of the sampler."""
    return _Batches(
        samples,
        batch_sampler=sampler,
        collate_fn=only,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )


def evaluation_loader(samples: SampleList, batch_size: int, num_workers: int = 0) -> DataLoader[Joined]:
    """Batches in the order of the data."""
    return DataLoader(
        samples,
        batch_size=batch_size,
        collate_fn=only,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
