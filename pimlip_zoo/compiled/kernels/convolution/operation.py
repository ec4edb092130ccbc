"""The convolution differentiable to any order, whoever computes its sums over edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import TypeVar

from torch import Tensor

from pimlip_zoo.compiled.kernels import cueq
from pimlip_zoo.compiled.kernels.bridge import Given, Operation, Tensors, Wanted, differentiable
from pimlip_zoo.compiled.kernels.convolution.cpu import CpuConvolution, cpu_convolution
from pimlip_zoo.compiled.kernels.convolution.form import (
    FORWARD,
    EdgeSum,
    NodeSum,
    Operands,
    Term,
    TrilinearForm,
)
from pimlip_zoo.compiled.kernels.convolution.gpu import TritonConvolution, triton_convolution
from pimlip_zoo.compiled.kernels.dispatch import compiled_operation
from pimlip_zoo.compiled.kernels.edges import EdgeLists, edge_lists

AnyKernel = TypeVar("AnyKernel", NodeSum, EdgeSum)
Flags = tuple[bool, bool, bool]
"""Of x, Y and w."""
Terms = tuple[Term, ...]
_ONE: Terms = ((0, 0, 0),)
ConvolutionSums = CpuConvolution | TritonConvolution
"""The sums of one trilinear form by one backend."""


_CONVOLVE = compiled_operation("convolve", cpu=cpu_convolution, triton=triton_convolution, cueq=cueq.convolve)


def convolve(
    form: TrilinearForm,
    reference: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    harmonics: Tensor,
    weights: Tensor,
    edge_index: Tensor,
) -> Tensor:
    """The convolution by the backend in force.

    ``auto`` takes compiled kernels for float32 and float64 on the CPU, with a C compiler, and
    the reference for everything else: other dtypes, a graph that is being traced or compiled.

    Args:
        form: what is computed.
        reference: the same in plain torch.
        x: (N, K_in, C) features.
        harmonics: (E, K_edge).
        weights: (E, P, C).
        edge_index: (2, E) centre and neighbour.

    Returns:
        (N, K_out, C).
    """
    backend = _CONVOLVE.backend(x, harmonics, weights, cpu_only=bool(form.widths), nothing=not form.terms)
    if backend == "cueq":
        return cueq.convolve(form, x, harmonics, weights, edge_index)
    sums = _CONVOLVE.kernels(backend, form, int(x.shape[2]), x.dtype)
    if sums is None:
        return reference(x, harmonics, weights, edge_index)
    edges = edge_lists(edge_index, int(x.shape[0]))
    return _convolve(sums, edges, x.contiguous(), harmonics.contiguous(), weights.contiguous())


def _convolve(
    sums: ConvolutionSums, edges: EdgeLists, x: Tensor, harmonics: Tensor, weights: Tensor
) -> Tensor:
    """(N, K_in, C), (E, K_edge), (E, P, C) -> (N, K_out, C), differentiable to any order."""
    out: Tensor = differentiable(ConvolutionOperation(sums, edges), x, harmonics, weights)
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


class ConvolutionOperation(Operation):
    """``dS/dg`` of (x, Y, w).

    Args:
        sums: of the form, by one backend.
        edges: where the edges of each atom lie.
        paired: w has a row for each pair of opposite edges, and not for each edge.
    """

    multilinear = True

    def __init__(self, sums: ConvolutionSums, edges: EdgeLists, *, paired: bool = False) -> None:
        self.sums, self.edges, self.paired = sums, edges, paired

    def expect(self, wanted: Wanted) -> None:
        self.sums.prepare(FORWARD, *gradient_kernels((True, True, True)))

    def forward(self, *x: Tensor) -> Tensor:
        return self._at_nodes(FORWARD, x, (None,) * 3)

    def adjoint(self, x: Given, g: Given, wanted: Wanted) -> Tensors:
        return self._run(gradient_kernels((wanted[0], wanted[1], wanted[2])), x, (None,) * 3, (g[0], None))

    def second(self, x: Given, g: Tensors, h: Tensors, wanted: Wanted, more: Tensor | None = None) -> Tensors:
        present = (h[0] is not None, h[1] is not None, h[2] is not None)
        kernels = second_kernels(present, (wanted[0], wanted[1], wanted[2]), adds=more is not None)
        if not wanted[3]:
            return (*self._run(kernels, x, h, (g[0], more)), None)
        tangent = tangent_kernel(present)
        if kernels:
            self.sums.prepare(*kernels, tangent)
        return (*self._run(kernels, x, h, (g[0], more)), self._at_nodes(tangent, x, h))

    def _at_nodes(self, kernel: NodeSum, x: Sequence[Tensor], t: Tensors) -> Tensor:
        of_x, of_y, of_w = zip(x, t, strict=True)
        return self.sums.node_sum(_for_rows(kernel, self.paired), self.edges, of_x, of_y, of_w, (None, None))

    def _run(
        self, kernels: Sequence[NodeSum | EdgeSum], x: Sequence[Tensor], t: Tensors, g: Operands
    ) -> Tensors:
        of_x, of_y, of_w = zip(x, t, strict=True)
        by_x = by_y = by_w = None
        for each in kernels:
            kernel = _for_rows(each, self.paired)
            if isinstance(kernel, NodeSum):
                by_x = self.sums.node_sum(kernel, self.edges, of_x, of_y, of_w, g)
            else:
                by_w, by_y = self.sums.edge_sum(kernel, self.edges, of_x, of_y, of_w, g)
        return by_x, by_y, by_w


@cache
def _for_rows(kernel: AnyKernel, paired: bool) -> AnyKernel:
    """The kernel for weights of pairs of edges, or of edges."""
    return replace(kernel, paired=paired)
