"""Sweeps of edges times the matrices of their centres."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pimlip_zoo.compiled.kernels.edges import edge_lists
from pimlip_zoo.compiled.kernels.product.cpu import CentreSum, EdgeRows, cpu_edge_product
from pimlip_zoo.compiled.sweeps.block import Block, Call, NotCovered, Tensors, blocks
from pimlip_zoo.nn.contraction import EdgeProduct

__all__ = ["ProductBlock"]

_PLAIN = ((0, 0),)
_BOTH = ((1, 0), (0, 1))


@blocks(EdgeProduct)
class ProductBlock(Block):
    """(features, matrices, centre) -> products, bilinear in the first two."""

    fresh = True

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.module: EdgeProduct = call.target
        if len(call.active) != 2 or not self.module.entries:
            raise NotCovered

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        features, matrices, centre = args
        module = self.module
        op = cpu_edge_product(
            module.entries, module.dim_in, module.dim_out, int(features.shape[2]), features.dtype
        )
        edges = edge_lists(centre, int(matrices.shape[0]))
        features, matrices = features.contiguous(), matrices.contiguous()
        out = op.run(EdgeRows("out", _PLAIN), edges, (features, None), (matrices, None), (None, None))
        return out, (op, edges, features, matrices)

    def adjoint(self, saved: Any, g: Tensor) -> Tensors:
        op, edges, v, m = saved
        operands = ((v, None), (m, None), (g.contiguous(), None))
        return op.run(EdgeRows("in", _PLAIN), edges, *operands), op.run(CentreSum(_PLAIN), edges, *operands)

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        op, edges, v, m = saved
        terms = tuple(term for term, t in zip(_BOTH, tangents, strict=True) if t is not None)
        tv, tm = (None if t is None else t.contiguous() for t in tangents)
        return op.run(EdgeRows("out", terms), edges, (v, tv), (m, tm), (None, None))

    def second(self, saved: Any, tangents: Tensors, g: Any, h: Tensor) -> tuple[Tensors, Tensors]:
        if g is None:
            return self.adjoint(saved, h), ()
        op, edges, v, m = saved
        tv, tm = (None if t is None else t.contiguous() for t in tangents)
        operands = ((v, tv), (m, tm), (g.contiguous(), h.contiguous()))
        # Variants of (g, matrices) and of (features, g): h with the values, g with the tangents.
        into_v = ((1, 0), *([(0, 1)] if tm is not None else []))
        into_m = ((0, 1), *([(1, 0)] if tv is not None else []))
        return (
            op.run(EdgeRows("in", into_v), edges, *operands),
            op.run(CentreSum(into_m), edges, *operands),
        ), ()
