"""Sweeps of radial functions and harmonics."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.nn.edges import EdgeEmbedding
from pimlip_zoo.nn.kernels.embedding import CpuEmbedding, cpu_embedding
from pimlip_zoo.nn.sweeps.block import Block, Call, NotCovered, Tensors, blocks

__all__ = ["EmbeddingBlock"]


@blocks(EdgeEmbedding)
class EmbeddingBlock(Block):
    """(vectors, graph) -> (radial functions, harmonics); no parameters."""

    outputs = 2

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.module: EdgeEmbedding = call.target
        if self.module.form is None or len(call.args) != 2:
            raise NotCovered
        self.form = self.module.form

    @property
    def kernels(self) -> CpuEmbedding:
        """Compiled when asked for."""
        return cpu_embedding(self.form, self.call.dtype)

    def prepare(self, *, training: bool) -> Mapping[Hashable, Callable[[], None]]:
        wanted = (0, 1, 2) if training else (0, 1)
        return {(self.form, kernel): partial(self._build, kernel) for kernel in wanted}

    def _build(self, kernel: Hashable) -> None:
        self.kernels.library.build(kernel)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        vectors, graph = args
        vectors = vectors.contiguous()
        inverse = self._inverse(vectors, graph)
        return self.kernels.run(0, vectors, inverse), (vectors, inverse)

    def _inverse(self, vectors: Tensor, graph: AtomGraph) -> Tensor:
        """(E,) inverse cutoffs."""
        if not self.module.by_pair:
            return torch.full((vectors.shape[0],), 1.0 / self.module.cutoff, dtype=vectors.dtype)
        return self.module.reduced_length(vectors.new_ones(vectors.shape[0]), graph)

    def adjoint(self, saved: Any, g: Any) -> Tensors:
        return (self.kernels.run(1, *saved, g[0].contiguous(), g[1].contiguous())[0],)

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        direction = tangents[0]
        assert direction is not None
        return self.kernels.run(2, *saved, direction)
