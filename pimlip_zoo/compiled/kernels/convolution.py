"""The convolution differentiable to any order, whoever computes its sums over edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.edges import EdgeLists
from pimlip_zoo.compiled.kernels.form import EdgeSum, NodeSum
from pimlip_zoo.compiled.kernels.scope import is_useful

__all__ = ["FORWARD", "ConvolutionSums", "Operands", "convolve"]

FORWARD = NodeSum("out", ((0, 0, 0),))
_BACKWARD_X = NodeSum("in", ((0, 0, 0),))
_BACKWARD_EDGE = EdgeSum(((0, 0, 0),), ((0, 0, 0),))

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


def convolve(op: ConvolutionSums, edges: EdgeLists, x: Tensor, harmonics: Tensor, weights: Tensor) -> Tensor:
    """(N, K_in, C), (E, K_edge), (E, P, C) -> (N, K_out, C)."""
    return _Convolve.apply(op, edges, x, harmonics, weights)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: ConvolutionSums, edges: EdgeLists, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        ctx.op, ctx.edges = op, edges
        ctx.save_for_backward(x, y, w)
        if any(ctx.needs_input_grad):
            op.prepare(FORWARD, _BACKWARD_X, _BACKWARD_EDGE)
        return op.node_sum(FORWARD, edges, (x, None), (y, None), (w, None), (None, None))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, y, w = ctx.saved_tensors
        need_x, need_y, need_w = ctx.needs_input_grad[2:]
        needs = (need_x, is_useful(need_y, y), need_w)
        return (None, None, *_gradients(ctx.op, ctx.edges, needs, x, y, w, g))


def _gradients(
    op: ConvolutionSums, edges: EdgeLists, needs: tuple[bool, ...], x: Tensor, y: Tensor, w: Tensor, g: Tensor
) -> tuple[Tensor | None, ...]:
    return _Backward.apply(op, edges, needs, x, y, w, g)


class _Backward(torch.autograd.Function):
    """Gradients of the convolution as a function of its operands and of the incoming gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        op: ConvolutionSums,
        edges: EdgeLists,
        needs: tuple[bool, ...],
        x: Tensor,
        y: Tensor,
        w: Tensor,
        g: Tensor,
    ) -> tuple[Tensor | None, ...]:
        ctx.op, ctx.edges = op, edges
        ctx.save_for_backward(x, y, w, g)
        ctx.set_materialize_grads(False)
        operands = ((x, None), (y, None), (w, None), (g, None))
        gx = op.node_sum(_BACKWARD_X, edges, *operands) if needs[0] else None
        gw, gy = None, None
        if needs[1] or needs[2]:
            one = ((0, 0, 0),)
            gw, gy = op.edge_sum(EdgeSum(one if needs[2] else (), one if needs[1] else ()), edges, *operands)
        return gx, gy, gw

    @staticmethod
    def backward(
        ctx: Any, hx: Tensor | None, hy: Tensor | None, hw: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, y, w, g = ctx.saved_tensors
        need_x, need_y, need_w, need_g = ctx.needs_input_grad[3:]
        needs = (need_x, is_useful(need_y, y), need_w, need_g)
        second = _second_composed if torch.is_grad_enabled() else _second_fused
        return (None, None, None, *second(ctx.op, ctx.edges, needs, (x, y, w, g), (hx, hy, hw)))


def _second_fused(
    op: ConvolutionSums, edges: EdgeLists, needs: tuple[bool, ...], base: Sequence[Tensor], tangents: Operands
) -> tuple[Tensor | None, ...]:
    """Derivatives of ``<hx, dS/dx> + <hy, dS/dY> + <hw, dS/dw>``, one kernel for each operand."""
    (x, y, w, g), (hx, hy, hw) = base, tangents
    has_x, has_y, has_w = hx is not None, hy is not None, hw is not None
    operands = ((x, hx), (y, hy), (w, hw), (g, None))
    out = _terms((1, 0, 0, has_x), (0, 1, 0, has_y), (0, 0, 1, has_w))
    into_x = _terms((0, 1, 0, has_y), (0, 0, 1, has_w))
    into_y = _terms((1, 0, 0, has_x), (0, 1, 0, has_w))
    into_w = _terms((1, 0, 0, has_x), (0, 1, 0, has_y))
    edge = EdgeSum(into_w if needs[2] else (), into_y if needs[1] else ())
    kernels = [NodeSum("out", out)] * needs[3] + [NodeSum("in", into_x)] * needs[0] + [edge]
    op.prepare(*(k for k in kernels if (k.terms if isinstance(k, NodeSum) else k.weights + k.harmonics)))
    gg = op.node_sum(NodeSum("out", out), edges, *operands) if needs[3] and out else None
    gx = op.node_sum(NodeSum("in", into_x), edges, *operands) if needs[0] and into_x else None
    gw, gy = op.edge_sum(edge, edges, *operands) if edge.weights or edge.harmonics else (None, None)
    return gx, gy, gw, gg


def _terms(*candidates: tuple[int, int, int, bool]) -> tuple[tuple[int, int, int], ...]:
    return tuple((a, b, c) for a, b, c, present in candidates if present)


def _second_composed(
    op: ConvolutionSums, edges: EdgeLists, needs: tuple[bool, ...], base: Sequence[Tensor], tangents: Operands
) -> tuple[Tensor | None, ...]:
    """The same out of differentiable pieces, for derivatives beyond the second."""
    (x, y, w, g), (hx, hy, hw) = base, tangents
    total: list[Tensor | None] = [None, None, None, None]
    for place, h in enumerate((hx, hy, hw)):
        if h is None:
            continue
        trio = [x, y, w]
        trio[place] = h
        wanted = tuple(needs[i] and i != place for i in range(3))
        parts = [
            *(
                _gradients(op, edges, wanted, trio[0], trio[1], trio[2], g)
                if any(wanted)
                else (None, None, None)
            )
        ]
        parts.append(convolve(op, edges, *trio) if needs[3] else None)
        for i, part in enumerate(parts):
            if part is not None:
                sofar = total[i]
                total[i] = part if sofar is None else sofar + part
    return tuple(total)
