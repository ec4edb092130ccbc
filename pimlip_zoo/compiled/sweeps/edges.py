"""Sweeps of radial functions and harmonics."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.edges import edge_lists
from pimlip_zoo.compiled.kernels.embedding import CpuEmbedding, cpu_embedding
from pimlip_zoo.compiled.kernels.pairs import pair_up
from pimlip_zoo.compiled.sweeps.block import Block, Call, NotCovered, Tensors, blocks
from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.nn.edges import EdgeEmbedding

__all__ = ["EmbeddingBlock"]


@blocks(EdgeEmbedding)
class EmbeddingBlock(Block):
    """(vectors, graph) -> (radial functions, harmonics); no parameters.

    Where all that is done with radial functions is done row by row until they weigh a sum over neighbours
    (``pairs.share_radial``), an edge and its opposite share them: there is a row for each pair, and their derivative
    is that by the first edge of each.
    """

    outputs = 2
    fresh = True

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

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        vectors, graph = args
        vectors = vectors.contiguous()
        inverse = self._inverse(vectors, graph)
        radial, harmonics = self.kernels.run(0, vectors, inverse)
        first = self._first_edges(graph) if self.shared else None
        return (radial if first is None else radial.index_select(0, first), harmonics), (
            vectors,
            inverse,
            first,
        )

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
        vectors, inverse, first = saved
        radial, harmonics = g
        if first is not None:
            radial = radial.new_zeros((vectors.shape[0], radial.shape[1])).index_copy_(0, first, radial)
        return (self.kernels.run(1, vectors, inverse, radial.contiguous(), harmonics.contiguous())[0],)

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        vectors, inverse, first = saved
        direction = tangents[0]
        assert direction is not None
        radial, harmonics = self.kernels.run(2, vectors, inverse, direction)
        return radial if first is None else radial.index_select(0, first), harmonics
