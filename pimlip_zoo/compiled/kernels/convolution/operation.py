"""The convolution differentiable to any order, whoever computes its sums over edges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Protocol

from torch import Tensor

from pimlip_zoo.compiled.kernels.bridge import Operation, Tensors, differentiable
from pimlip_zoo.compiled.kernels.convolution.form import EdgeSum, NodeSum, Term
from pimlip_zoo.compiled.kernels.edges import EdgeLists

__all__ = [
    "FORWARD",
    "ConvolutionSums",
    "Operands",
    "convolve",
    "gradient_kernels",
    "second_kernels",
    "tangent_kernel",
]

Flags = tuple[bool, bool, bool]
"""Of x, Y and w."""
Terms = tuple[Term, ...]
_ONE: Terms = ((0, 0, 0),)
FORWARD = NodeSum("out", _ONE)

Operands = tuple[Tensor | None, ...]


class ConvolutionSums(Protocol):
    """The sums of one trilinear form by one backend; operands are pairs (itself, tangent), None where not read."""

    def prepare(self, *kernels: NodeSum | EdgeSum) -> None:
        """Compile what will be asked for, together, where that is quicker."""
        ...

    def node_sum(
        self, kernel: NodeSum, edges: EdgeLists, x: Operands, y: Operands, w: Operands, g: Operands
    ) -> Tensor:
        """(N, K, C), the sum over each atom's edges."""
        ...

    def edge_sum(
        self, kernel: EdgeSum, edges: EdgeLists, x: Operands, y: Operands, w: Operands, g: Operands
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of w (E, P, C) and of Y (E, K_edge), None where not wanted."""
        ...


def convolve(
    sums: ConvolutionSums, edges: EdgeLists, x: Tensor, harmonics: Tensor, weights: Tensor
) -> Tensor:
    """(N, K_in, C), (E, K_edge), (E, P, C) -> (N, K_out, C), differentiable to any order."""
    out: Tensor = differentiable(_Convolution(sums, edges), x, harmonics, weights)
    return out


@cache
def gradient_kernels(wanted: Flags) -> tuple[NodeSum | EdgeSum, ...]:
    """``d<g, dS/dg>`` by those of (x, Y, w) that are wanted."""
    return _kernels(_ONE, _ONE, _ONE, wanted)


@cache
def tangent_kernel(present: Flags) -> NodeSum:
    """The convolution's derivative along the tangents of (x, Y, w) that are there."""
    terms: list[Term] = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    return NodeSum("out", tuple(term for term, here in zip(terms, present, strict=True) if here))


@cache
def second_kernels(present: Flags, wanted: Flags, *, adds: bool) -> tuple[NodeSum | EdgeSum, ...]:
    """Derivatives of ``<g, tangent>`` by (x, Y, w) and, with ``adds``, of ``<h, dS/dg>``, h the second variant of g."""
    x, y, w = present
    # Terms name variants of (g, Y, w), of (x, Y, g) and of (x, w, g).
    into_x = [(1, 0, 0)] * adds + [(0, 1, 0)] * y + [(0, 0, 1)] * w
    into_w = [(0, 0, 1)] * adds + [(1, 0, 0)] * x + [(0, 1, 0)] * y
    into_y = [(0, 0, 1)] * adds + [(1, 0, 0)] * x + [(0, 1, 0)] * w
    return _kernels(tuple(into_x), tuple(into_w), tuple(into_y), wanted)


def _kernels(into_x: Terms, into_w: Terms, into_y: Terms, wanted: Flags) -> tuple[NodeSum | EdgeSum, ...]:
    """Those that have something to sum and are wanted."""
    node = NodeSum("in", into_x if wanted[0] else ())
    edge = EdgeSum(into_w if wanted[2] else (), into_y if wanted[1] else ())
    return (node,) * bool(node.terms) + (edge,) * bool(edge.weights or edge.harmonics)


class _Convolution(Operation):
    """``dS/dg`` of (x, Y, w)."""

    multilinear = True

    def __init__(self, sums: ConvolutionSums, edges: EdgeLists) -> None:
        self.sums, self.edges = sums, edges

    def expect(self, wanted: Sequence[bool]) -> None:
        self.sums.prepare(FORWARD, *gradient_kernels((True, True, True)))

    def forward(self, *x: Tensor) -> Tensor:
        features, harmonics, weights = ((each, None) for each in x)
        return self.sums.node_sum(FORWARD, self.edges, features, harmonics, weights, (None, None))

    def adjoint(self, x: Sequence[Tensor], g: Sequence[Tensor], wanted: Sequence[bool]) -> Tensors:
        return self._run(gradient_kernels(_flags(wanted)), x, g, (None,) * 3)

    def second(self, x: Sequence[Tensor], g: Sequence[Tensor], h: Tensors, wanted: Sequence[bool]) -> Tensors:
        present = _flags(each is not None for each in h)
        kernels = second_kernels(present, _flags(wanted[:3]), adds=False)
        tangent = tangent_kernel(present)
        self.sums.prepare(*kernels, *[tangent] * wanted[3])
        by_g = None
        if wanted[3]:
            of_x, of_y, of_w = zip(x, h, strict=True)
            by_g = self.sums.node_sum(tangent, self.edges, of_x, of_y, of_w, (None, None))
        return (*self._run(kernels, x, g, h), by_g)

    def _run(
        self, kernels: Sequence[NodeSum | EdgeSum], x: Sequence[Tensor], g: Sequence[Tensor], h: Tensors
    ) -> Tensors:
        operands = [(each, t) for each, t in zip((*x, *g), (*h, None), strict=True)]
        by_x = by_y = by_w = None
        for kernel in kernels:
            if isinstance(kernel, NodeSum):
                by_x = self.sums.node_sum(kernel, self.edges, *operands)
            else:
                by_w, by_y = self.sums.edge_sum(kernel, self.edges, *operands)
        return by_x, by_y, by_w


def _flags(given: Iterable[bool]) -> Flags:
    x, y, w = given
    return x, y, w
