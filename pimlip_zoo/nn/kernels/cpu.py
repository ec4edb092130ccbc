"""The convolution on a CPU through compiled sums over edges, differentiable to any order."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pimlip_zoo.nn.kernels.build import compile_library, target
from pimlip_zoo.nn.kernels.edges import EdgeLists
from pimlip_zoo.nn.kernels.form import EdgeSum, NodeSum, TrilinearForm
from pimlip_zoo.nn.kernels.generate import edge_sum_source, node_sum_source

__all__ = ["CpuConvolution", "cpu_convolution"]

_FORWARD = NodeSum("out", ((0, 0, 0),))
_BACKWARD_X = NodeSum("in", ((0, 0, 0),))
_BACKWARD_EDGE = EdgeSum(((0, 0, 0),), ((0, 0, 0),))
_SMALL = 1 << 16  # below this many numbers, starting threads costs more than it saves

Operands = tuple[Tensor | None, ...]


class CpuConvolution:
    """The kernels of one trilinear form for one number of channels and one dtype.

    Args:
        form: what is computed.
        channels: C.
        dtype: float32 or float64.

    Raises:
        CompilerError: when the first kernel cannot be built.
    """

    def __init__(self, form: TrilinearForm, channels: int, dtype: torch.dtype) -> None:
        self.form, self.channels, self.dtype = form, channels, dtype
        self._functions: dict[NodeSum | EdgeSum, Callable[..., None]] = {}
        self.build(_FORWARD)

    def build(self, *kernels: NodeSum | EdgeSum) -> None:
        """Have these kernels compiled, several at a time."""
        missing = [kernel for kernel in dict.fromkeys(kernels) if kernel not in self._functions]
        if len(missing) > 1:
            with ThreadPoolExecutor(len(missing)) as pool:
                built = list(pool.map(self._compile, missing))
        else:
            built = [self._compile(kernel) for kernel in missing]
        self._functions.update(zip(missing, built, strict=True))

    def _compile(self, kernel: NodeSum | EdgeSum) -> Callable[..., None]:
        machine = target(self.dtype)
        if isinstance(kernel, NodeSum):
            source = node_sum_source("kernel", self.form, kernel, self.channels, machine)
        else:
            source = edge_sum_source("kernel", self.form, kernel, self.channels, machine)
        function = compile_library(source).kernel
        function.argtypes = [ctypes.c_int64] * 2 + [ctypes.c_void_p] * 13
        function.restype = None
        return function

    def node_sum(
        self, kernel: NodeSum, edges: EdgeLists, x: Operands, y: Operands, w: Operands, g: Operands
    ) -> Tensor:
        """Run a :class:`NodeSum`; operands are pairs (itself, tangent), None where it is not read."""
        inward = kernel.side == "in"
        first, row, slot = edges.by_neighbour if inward else edges.by_centre
        dim = self.form.dim_in if inward else self.form.dim_out
        out = torch.empty((edges.num_nodes, dim, self.channels), dtype=self.dtype)
        self._run(kernel, edges.num_nodes, edges, (first, row, slot), (*x, *y, *w, *g), (out, None))
        return out

    def edge_sum(
        self, kernel: EdgeSum, edges: EdgeLists, x: Operands, y: Operands, w: Operands, g: Operands
    ) -> tuple[Tensor | None, Tensor | None]:
        """Run an :class:`EdgeSum`: gradients of w (E, P, C) and of Y (E, K_edge), None where not wanted."""
        rows = edges.num_edges
        out_w = (
            torch.empty((rows, self.form.num_paths, self.channels), dtype=self.dtype)
            if kernel.weights
            else None
        )
        out_y = torch.empty((rows, self.form.dim_edge), dtype=self.dtype) if kernel.harmonics else None
        lists = (None, edges.neighbour, edges.centre)
        self._run(kernel, rows, edges, lists, (*x, *y, *w, *g), (out_w, out_y))
        return out_w, out_y

    def _run(
        self,
        kernel: NodeSum | EdgeSum,
        rows: int,
        edges: EdgeLists,
        lists: Sequence[Tensor | None],
        operands: Operands,
        results: Sequence[Tensor | None],
    ) -> None:
        if kernel not in self._functions:
            self.build(kernel)
        work = edges.num_edges * self.form.num_paths * self.channels
        threads = torch.get_num_threads() if work > _SMALL else 1
        kept = [None if t is None else t.contiguous() for t in operands]
        pointers = [None if t is None else t.data_ptr() for t in (*lists, *kept, *results)]
        self._functions[kernel](rows, threads, *pointers)


@cache
def cpu_convolution(form: TrilinearForm, channels: int, dtype: torch.dtype) -> CpuConvolution:
    """The kernels of a form, shared by all modules that compute it."""
    return CpuConvolution(form, channels, dtype)


def convolve(op: CpuConvolution, edges: EdgeLists, x: Tensor, harmonics: Tensor, weights: Tensor) -> Tensor:
    """(N, K_in, C), (E, K_edge), (E, P, C) -> (N, K_out, C)."""
    return _Convolve.apply(op, edges, x, harmonics, weights)  # type: ignore[no-any-return,no-untyped-call]


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: CpuConvolution, edges: EdgeLists, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        ctx.op, ctx.edges = op, edges
        ctx.save_for_backward(x, y, w)
        if any(ctx.needs_input_grad):
            op.build(_FORWARD, _BACKWARD_X, _BACKWARD_EDGE)
        return op.node_sum(_FORWARD, edges, (x, None), (y, None), (w, None), (None, None))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, y, w = ctx.saved_tensors
        needs = tuple(ctx.needs_input_grad[2:])
        return (None, None, *_gradients(ctx.op, ctx.edges, needs, x, y, w, g))


def _gradients(
    op: CpuConvolution, edges: EdgeLists, needs: tuple[bool, ...], x: Tensor, y: Tensor, w: Tensor, g: Tensor
) -> tuple[Tensor | None, ...]:
    return _Backward.apply(op, edges, needs, x, y, w, g)  # type: ignore[no-any-return,no-untyped-call]


class _Backward(torch.autograd.Function):
    """Gradients of the convolution as a function of its operands and of the incoming gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        op: CpuConvolution,
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
        needs = tuple(ctx.needs_input_grad[3:])
        second = _second_composed if torch.is_grad_enabled() else _second_fused
        return (None, None, None, *second(ctx.op, ctx.edges, needs, (x, y, w, g), (hx, hy, hw)))


def _second_fused(
    op: CpuConvolution, edges: EdgeLists, needs: tuple[bool, ...], base: Sequence[Tensor], tangents: Operands
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
    op.build(*(k for k in kernels if (k.terms if isinstance(k, NodeSum) else k.weights + k.harmonics)))
    gg = op.node_sum(NodeSum("out", out), edges, *operands) if needs[3] and out else None
    gx = op.node_sum(NodeSum("in", into_x), edges, *operands) if needs[0] and into_x else None
    gw, gy = op.edge_sum(edge, edges, *operands) if edge.weights or edge.harmonics else (None, None)
    return gx, gy, gw, gg


def _terms(*candidates: tuple[int, int, int, bool]) -> tuple[tuple[int, int, int], ...]:
    return tuple((a, b, c) for a, b, c, present in candidates if present)


def _second_composed(
    op: CpuConvolution, edges: EdgeLists, needs: tuple[bool, ...], base: Sequence[Tensor], tangents: Operands
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
