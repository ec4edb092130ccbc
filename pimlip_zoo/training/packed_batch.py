"""A batch as one tensor, to send it from a worker to the process that trains.

Each tensor that is sent costs the receiver a file descriptor and a mapping of shared memory, some 0.2 ms: for small
molecules a batch of eleven took longer to receive than to make.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pimlip_zoo.graph import AtomGraph, Batch, Labels


class PackedBatch(NamedTuple):
    """All numbers of a batch, which have 8 bytes each, one tensor after the other."""

    words: Tensor
    """int64; the bits of float64 where the tensor has those."""
    tensors: tuple[tuple[bool, tuple[int, ...]], ...]
    """Whether it is float64, and its shape, of each tensor of graph and labels."""
    num_graphs: int
    electrons: bool = False
    """Whether the graph has charges; they come after its other tensors."""

    def linked(self, link: object) -> Batch:  # noqa: ARG002
        """The batch, whose lists are there."""
        return unpack(self)


def pack(batch: Batch) -> PackedBatch:
    """The batch as one tensor."""
    *geometry, num_graphs, electrons = batch.graph
    tensors = [*geometry, *(() if electrons is None else (electrons,)), *batch.labels]
    return PackedBatch(
        torch.cat([tensor.reshape(-1).view(torch.int64) for tensor in tensors]),
        tuple((tensor.is_floating_point(), tuple(tensor.shape)) for tensor in tensors),
        num_graphs,
        electrons is not None,
    )


def unpack(packed: PackedBatch) -> Batch:
    """The batch, bit by bit; its tensors are views of the one that was sent."""
    parts = packed.words.split([math.prod(shape) for _, shape in packed.tensors])
    tensors = [
        (part.view(torch.float64) if floating else part).view(shape)
        for part, (floating, shape) in zip(parts, packed.tensors, strict=True)
    ]
    inputs = len(AtomGraph._fields) - 2
    electrons = tensors.pop(inputs) if packed.electrons else None
    graph = AtomGraph(*tensors[:inputs], packed.num_graphs, electrons)  # type: ignore[call-arg]
    return Batch(graph, Labels(*tensors[inputs:]))
