"""Edges times their centre differentiable to any order, whoever computes the derivatives of S."""

from __future__ import annotations

from functools import cache
from typing import Protocol

from torch import Tensor

from pimlip_zoo.compiled.kernels import cueq
from pimlip_zoo.compiled.kernels.bridge import Given, Operation, Tensors, Wanted, differentiable
from pimlip_zoo.compiled.kernels.dispatch import compiled_operation
from pimlip_zoo.compiled.kernels.edges import EdgeLists, edge_lists
from pimlip_zoo.compiled.kernels.product.cpu import (
    CentreSum,
    CpuEdgeProduct,
    EdgeRows,
    Operands,
    cpu_edge_product,
)
from pimlip_zoo.compiled.kernels.product.gpu import TritonEdgeProduct, triton_edge_product

EdgeProductKernels = CpuEdgeProduct | TritonEdgeProduct
"""The derivatives of S by one backend."""

_rows, _sum = cache(EdgeRows), cache(CentreSum)
_FORWARD, _BACKWARD_V = EdgeRows("out", ((0, 0),)), EdgeRows("in", ((0, 0),))
_BACKWARD_M = CentreSum(((0, 0),))


_MULTIPLY_EDGES = compiled_operation(
    "multiply_edges", cpu=cpu_edge_product, triton=triton_edge_product, cueq=cueq.multiply_edges
)


class EdgeProductLike(Protocol):
    """What :func:`multiply_edges` has to know."""

    entries: tuple[tuple[int, int], ...]
    dim_in: int
    dim_out: int

    def reference(self, features: Tensor, matrices: Tensor, centre: Tensor) -> Tensor:
        """The same in plain torch."""
        ...


def multiply_edges(module: EdgeProductLike, features: Tensor, matrices: Tensor, centre: Tensor) -> Tensor:
    """Each edge's features times the sparse matrix of its centre, by the backend in force.

    Args:
        module: says which components meet, and computes the same in plain torch.
        features: (E, K_in, C).
        matrices: (N, R, C), one row for each pair of components that meet.
        centre: (E,).

    Returns:
        (E, K_out, C).
    """
    form = (module.entries, module.dim_in, module.dim_out)
    backend = _MULTIPLY_EDGES.backend(features, matrices, nothing=not module.entries)
    if backend == "cueq":
        return cueq.multiply_edges(*form, features, matrices, centre)
    kernels = _MULTIPLY_EDGES.kernels(backend, *form, int(features.shape[2]), features.dtype)
    if kernels is None:
        return module.reference(features, matrices, centre)
    edges = edge_lists(centre, int(matrices.shape[0]))
    return edge_product(kernels, edges, features.contiguous(), matrices.contiguous())


def edge_product(op: EdgeProductKernels, edges: EdgeLists, features: Tensor, matrices: Tensor) -> Tensor:
    """(E, K_in, C), (N, R, C) -> (E, K_out, C), differentiable to any order."""
    out: Tensor = differentiable(ProductOperation(op, edges), features, matrices)
    return out


class ProductOperation(Operation):
    """``dS/dg`` of (v, m)."""

    multilinear = True

    def __init__(self, kernels: EdgeProductKernels, edges: EdgeLists) -> None:
        self.kernels, self.edges = kernels, edges

    def expect(self, wanted: Wanted) -> None:
        self.kernels.prepare(_FORWARD, _BACKWARD_V, _BACKWARD_M)

    def forward(self, *x: Tensor) -> Tensor:
        return self._run(_FORWARD, x, (None, None), (None, None))

    def adjoint(self, x: Given, g: Given, wanted: Wanted) -> Tensors:
        by_v = self._run(_BACKWARD_V, x, (None, None), (g[0], None)) if wanted[0] else None
        by_m = self._run(_BACKWARD_M, x, (None, None), (g[0], None)) if wanted[1] else None
        return by_v, by_m

    def second(self, x: Given, g: Tensors, h: Tensors, wanted: Wanted, more: Tensor | None = None) -> Tensors:
        """Derivatives of ``<hv, dS/dv> + <hm, dS/dm> = S(hv, m, g) + S(v, hm, g)``, and of ``S(v, m, more)``."""
        hv, hm = (each is not None for each in h)
        adds, both = more is not None, (g[0], more)
        # Variants of (g, matrices), of (features, g) and of (features, matrices).
        into_v, into_m = ((1, 0),) * adds + ((0, 1),) * hm, ((0, 1),) * adds + ((1, 0),) * hv
        by_v = self._run(_rows("in", into_v), x, h, both) if wanted[0] and into_v else None
        by_m = self._run(_sum(into_m), x, h, both) if wanted[1] and into_m else None
        along = ((1, 0),) * hv + ((0, 1),) * hm
        by_g = self._run(_rows("out", along), x, h, (None, None)) if wanted[2] else None
        return by_v, by_m, by_g

    def _run(self, kernel: EdgeRows | CentreSum, x: Given, h: Tensors, g: Operands) -> Tensor:
        return self.kernels.run(kernel, self.edges, (x[0], h[0]), (x[1], h[1]), g)
