"""Edges times the matrices of their centres, as a step of a model."""

from __future__ import annotations

from typing import Any

from pimlip_zoo.compiled.kernels.edges import edge_lists
from pimlip_zoo.compiled.kernels.product.cpu import ProductOperation, cpu_edge_product
from pimlip_zoo.compiled.sweeps.block import Call, NotCovered, blocks
from pimlip_zoo.compiled.sweeps.operation import Bound, OperationBlock
from pimlip_zoo.nn.contraction import EdgeProduct

__all__ = ["ProductBlock"]


@blocks(EdgeProduct)
class ProductBlock(OperationBlock):
    """(features, matrices, centre) -> products, bilinear in the first two."""

    operands = (0, 1)

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.module: EdgeProduct = call.target
        if len(call.active) != 2 or not self.module.entries:
            raise NotCovered

    def bind(self, *args: Any) -> Bound:
        features, matrices, centre = args
        module = self.module
        channels, dtype = int(features.shape[2]), features.dtype
        kernels = cpu_edge_product(module.entries, module.dim_in, module.dim_out, channels, dtype)
        return ProductOperation(kernels, edge_lists(centre, int(matrices.shape[0]))), (features, matrices)
