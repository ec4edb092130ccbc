"""Sweeps of what was tabulated: functions of an edge's length, and of its pair of species, with fixed weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.edges import edge_lists
from pimlip_zoo.compiled.kernels.embedding import (
    CpuEmbedding,
    EmbeddingForm,
    EmbeddingOperation,
    cpu_embedding,
)
from pimlip_zoo.compiled.kernels.pairs import pair_up
from pimlip_zoo.compiled.kernels.table import TableForm, cpu_table
from pimlip_zoo.compiled.sweeps.block import Block, Call, Tensors
from pimlip_zoo.compiled.sweeps.operation import Bound, OperationBlock


@dataclass(frozen=True)
class Table:
    """Functions of the length at equally distant knots; see ``kernels.table``."""

    values: Tensor
    """(pairs, K + 1, 3, W) value, first and second derivative times one and two powers of the knots' distance."""
    ends: Tensor
    """(1 + pairs,) the first knot in Å, and for each pair the inverse distance of its knots."""
    shape: tuple[int, ...]
    """Of the value of one edge; its product is W."""
    num_species: int
    """S where there are S² pairs, (centre, neighbour); 1 where species do not matter."""

    @property
    def form(self) -> TableForm:
        """For the kernels."""
        return TableForm(self.values.shape[3], self.values.shape[1] - 1, self.num_species > 1)


class TableBlock(Block):
    """(vectors, species, edge_index, edge_shift) -> a row for each edge, or for each pair of opposite edges.

    For evaluation only: there are no parameters, and no sweeps of the training.

    Args:
        call: whose target is a :class:`Table`.
        shared: whether opposite edges share rows, as in ``EmbeddingBlock``.
    """

    def __init__(self, call: Call, *, shared: bool) -> None:
        super().__init__(call)
        self.table: Table = call.target
        self.shared = shared
        self.kernels = cpu_table(self.table.form, call.dtype)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        vectors, species, edge_index, edge_shift = args
        first = pair = None
        if self.shared:
            pairs = pair_up(edge_lists(edge_index, len(species)), edge_shift)
            first = None if pairs is None else pairs.first
        if self.table.num_species > 1:
            pair = species[edge_index[0]] * self.table.num_species + species[edge_index[1]]
            pair = pair.to(torch.int32)
        vectors = vectors.contiguous()
        out = self.kernels.values(vectors, self.table.values, self.table.ends, first, pair)
        return out.view(len(out), *self.table.shape), (vectors, first, pair)

    def adjoint(self, saved: Any, g: Tensor) -> Tensors:
        vectors, first, pair = saved
        g = g.reshape(len(g), self.table.form.width).contiguous()
        return (self.kernels.gradient(vectors, self.table.values, self.table.ends, first, pair, g),)


class HarmonicsBlock(OperationBlock):
    """Harmonics of edge vectors alone, where nothing asks for the radial functions that an embedding makes, too.

    Args:
        call: of an ``EdgeEmbedding``.
        couplings: of its harmonics.
    """

    outputs = 2

    def __init__(self, call: Call, couplings: tuple[tuple[tuple[int, int, int, float], ...], ...]) -> None:
        super().__init__(call)
        self.form = EmbeddingForm(0, 1.0, 2, couplings)

    @cached_property
    def kernels(self) -> CpuEmbedding:
        """Compiled when asked for."""
        return cpu_embedding(self.form, self.call.dtype)

    def bind(self, *args: Any) -> Bound:
        vectors = args[0]
        inverse = vectors.new_zeros(vectors.shape[0])  # no cutoff enters
        return EmbeddingOperation(self.kernels, inverse), (vectors,)

    def adjoint(self, saved: Any, g: Any) -> Tensors:
        (vectors,) = saved[1]
        return super().adjoint(saved, (vectors.new_zeros((vectors.shape[0], 0)), g[1]))
