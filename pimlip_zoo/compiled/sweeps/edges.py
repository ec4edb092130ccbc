"""Sweeps of radial functions and harmonics."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.edges import edge_lists
from pimlip_zoo.compiled.kernels.embedding import CpuEmbedding, EmbeddingOperation, cpu_embedding
from pimlip_zoo.compiled.kernels.pairs import pair_up
from pimlip_zoo.compiled.sweeps.block import Call, NotCovered, Tensors, blocks
from pimlip_zoo.compiled.sweeps.operation import Bound, OperationBlock
from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.nn.edges import EdgeEmbedding

__all__ = ["EmbeddingBlock"]


@blocks(EdgeEmbedding)
class EmbeddingBlock(OperationBlock):
    """(vectors, graph) -> (radial functions, harmonics); no parameters.

    Where all that is done with radial functions is done row by row until they weigh a sum over neighbours
    (``pairs.share_radial``), an edge and its opposite share them: there is a row for each pair, and their derivative
    is that by the first edge of each.
    """

    outputs = 2

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.module: EdgeEmbedding = call.target
        if self.module.form is None or len(call.args) != 2:
            raise NotCovered
        self.form = self.module.form
        self.shared = False

    @property
    def symmetric(self) -> bool:
        """Whether opposite edges have equal radial functions."""
        return not self.module.by_pair

    @cached_property
    def kernels(self) -> CpuEmbedding:
        """Compiled when asked for."""
        return cpu_embedding(self.form, self.call.dtype)

    def bind(self, *args: Any) -> Bound:
        vectors, graph = args
        return EmbeddingOperation(self.kernels, self._inverse(vectors, graph)), (vectors,)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        (radial, harmonics), saved = super().forward(*args, **kwargs)
        first = self._first_edges(args[1]) if self.shared else None
        return (_of_pairs(radial, first), harmonics), (*saved, first)

    @staticmethod
    def _first_edges(graph: AtomGraph) -> Tensor | None:
        pairs = pair_up(edge_lists(graph.edge_index, len(graph.species)), graph.edge_shift)
        return None if pairs is None else pairs.first

    def _inverse(self, vectors: Tensor, graph: AtomGraph) -> Tensor:
        """(E,) inverse cutoffs."""
        if not self.module.by_pair:
            return torch.full((vectors.shape[0],), 1.0 / self.module.cutoff, dtype=vectors.dtype)
        return self.module.reduced_length(vectors.new_ones(vectors.shape[0]), graph)

    def adjoint(self, saved: Any, g: Any) -> Tensors:
        (_, (vectors,), first), (radial, harmonics) = saved, g
        if first is not None:
            radial = radial.new_zeros((vectors.shape[0], radial.shape[1])).index_copy_(0, first, radial)
        return super().adjoint(saved, (radial, harmonics))

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        radial, harmonics = super().tangent(saved, tangents)
        return _of_pairs(radial, saved[2]), harmonics


def _of_pairs(radial: Tensor, first: Tensor | None) -> Tensor:
    """The rows of the first edge of each pair; all where there are no pairs."""
    return radial if first is None else radial.index_select(0, first)
