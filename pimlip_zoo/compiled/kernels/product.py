"""Edges times their centre, component by component: the sparse product at the heart of Allegro, compiled.

``S = sum over edges ij, channels c, entries r: v[ij, a_r, c] m[i, r, c] g[ij, k_r, c]``; what is wanted is
always a derivative of S. With respect to g or v it is one row per edge, with respect to m a sum at the centres.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.edges import EdgeLists
from pimlip_zoo.compiled.kernels.generate import Target, channel_segments, kernel_head, prelude
from pimlip_zoo.compiled.kernels.library import KernelLibrary

__all__ = [
    "CentreSum",
    "CpuEdgeProduct",
    "EdgeProductKernels",
    "EdgeRows",
    "cpu_edge_product",
    "edge_product",
]

Entries = tuple[tuple[int, int], ...]
Operands = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class EdgeRows:
    """``dS/dg`` (side ``out``: reads v) or ``dS/dv`` (``in``: reads g), summed over variants (edge, m)."""

    side: str
    terms: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class CentreSum:
    """``dS/dm``, summed over variants (v, g)."""

    terms: tuple[tuple[int, int], ...]


_FORWARD, _BACKWARD_V = EdgeRows("out", ((0, 0),)), EdgeRows("in", ((0, 0),))
_BACKWARD_M = CentreSum(((0, 0),))


class EdgeProductKernels(Protocol):
    """The derivatives of S by one backend."""

    def prepare(self, *kernels: EdgeRows | CentreSum) -> None:
        """Compile what will be asked for, together, where that is quicker."""
        ...

    def run(
        self, kernel: EdgeRows | CentreSum, edges: EdgeLists, v: Operands, m: Operands, g: Operands
    ) -> Tensor:
        """One derivative of S; operands are pairs (itself, tangent), None where it is not read."""
        ...


class CpuEdgeProduct:
    """The kernels of one set of entries for one number of channels and one dtype.

    Args:
        entries: (component of v, component of the result) of each row of m, sorted.
        dim_in: components of v.
        dim_out: components of the result.
        channels: C.
        dtype: float32 or float64.
    """

    def __init__(
        self, entries: Entries, dim_in: int, dim_out: int, channels: int, dtype: torch.dtype
    ) -> None:
        self.entries, self.dim_in, self.dim_out = entries, dim_in, dim_out
        self.channels, self.dtype = channels, dtype
        self.library = KernelLibrary(self._source, dtype)

    def prepare(self, *kernels: EdgeRows | CentreSum) -> None:
        """Compile these kernels, several at a time."""
        self.library.build(*kernels)

    def prepared(self) -> CpuEdgeProduct:
        """Itself, with the first kernel built.

        Raises:
            CompilerError: when it cannot be.
        """
        self.library.build(_FORWARD)
        return self

    def _source(self, kernel: Hashable, machine: Target) -> str:
        segments = channel_segments(self.channels, machine.lanes)
        lines = [*prelude(machine, [lanes for _, _, lanes in segments]), *kernel_head()]
        lines += [
            "#pragma omp parallel for num_threads(threads) if(threads > 1) schedule(dynamic, 16)",
            "for (int64_t i = 0; i < rows; i++) {",
        ]
        for start, stop, lanes in segments:
            lines.append(f"for (int c = {start}; c < {stop}; c += {lanes}) {{")
            lines += self._centre_sum(kernel, f"v{lanes}") if isinstance(kernel, CentreSum) else []
            lines += self._edge_rows(kernel, f"v{lanes}") if isinstance(kernel, EdgeRows) else []
            lines.append("}")
        return "\n".join([*lines, "}}", ""])

    def _edge_rows(self, kernel: EdgeRows, vector: str) -> list[str]:
        inward = kernel.side == "in"
        source, width, dim = ("g", self.dim_out, self.dim_in) if inward else ("x", self.dim_in, self.dim_out)
        lines = [
            f"const T *restrict b{m} = y{m} + i * {len(self.entries) * self.channels} + c;"
            for m in sorted({m for _, m in kernel.terms})
        ]
        lines += _edge_loop()
        lines += self._loads(source, sorted({v for v, _ in kernel.terms}), width, vector)
        lines.append(f"T *restrict o = out0 + e * {dim * self.channels} + c;")
        for result in range(dim):
            parts = [
                f"{source}{v}_{a if not inward else k} * *(const {vector} *)(b{m} + {row * self.channels})"
                for row, (a, k) in enumerate(self.entries)
                if (a if inward else k) == result
                for v, m in kernel.terms
            ]
            zero = "0" if vector == "v1" else f"({vector}){{0}}"
            lines.append(f"*({vector} *)(o + {result * self.channels}) = {' + '.join(parts) or zero};")
        return [*lines, "}"]

    def _centre_sum(self, kernel: CentreSum, vector: str) -> list[str]:
        lines = []
        for start in range(0, len(self.entries), 12):  # as many sums as stay in registers
            group = list(enumerate(self.entries))[start : start + 12]
            zero = "0" if vector == "v1" else "{0}"
            lines += ["{", *(f"{vector} r{row} = {zero};" for row, _ in group), *_edge_loop()]
            firsts, seconds = sorted({a for _, (a, _) in group}), sorted({k for _, (_, k) in group})
            lines += self._loads("x", sorted({v for v, _ in kernel.terms}), self.dim_in, vector, firsts)
            lines += self._loads("g", sorted({g for _, g in kernel.terms}), self.dim_out, vector, seconds)
            for row, (a, k) in group:
                lines.append(
                    f"r{row} += " + " + ".join(f"x{v}_{a} * g{g}_{k}" for v, g in kernel.terms) + ";"
                )
            lines.append("}")
            target = f"out0 + i * {len(self.entries) * self.channels} + c"
            lines += [f"*({vector} *)({target} + {row * self.channels}) = r{row};" for row, _ in group]
            lines.append("}")
        return lines

    def _loads(
        self, name: str, variants: Sequence[int], width: int, vector: str, wanted: Sequence[int] | None = None
    ) -> list[str]:
        lines = []
        for v in variants:
            lines.append(f"const T *restrict p{name}{v} = {name}{v} + e * {width * self.channels} + c;")
            lines += [
                f"const {vector} {name}{v}_{k} = *(const {vector} *)(p{name}{v} + {k * self.channels});"
                for k in (range(width) if wanted is None else wanted)
            ]
        return lines

    def run(
        self, kernel: EdgeRows | CentreSum, edges: EdgeLists, v: Operands, m: Operands, g: Operands
    ) -> Tensor:
        """One derivative of S; operands are pairs (itself, tangent), None where it is not read."""
        if isinstance(kernel, CentreSum):
            shape = (edges.num_nodes, len(self.entries), self.channels)
        else:
            shape = (edges.num_edges, self.dim_in if kernel.side == "in" else self.dim_out, self.channels)
        out = torch.empty(shape, dtype=self.dtype)
        first, _, slot = edges.by_centre
        self.library.run(
            kernel,
            rows=edges.num_nodes,
            work=edges.num_edges * len(self.entries) * self.channels,
            lists=(first, None, slot),
            operands=(*v, *m, None, None, *g),
            results=(out, None, None),
        )
        return out


def _edge_loop() -> list[str]:
    return [
        "for (int64_t s = first[i]; s < first[i + 1]; s++) {",
        "const int64_t e = slot ? slot[s] : s;",
    ]


@cache
def cpu_edge_product(
    entries: Entries, dim_in: int, dim_out: int, channels: int, dtype: torch.dtype
) -> CpuEdgeProduct:
    """The kernels of these entries, shared by all modules that use them."""
    return CpuEdgeProduct(entries, dim_in, dim_out, channels, dtype)


def edge_product(op: EdgeProductKernels, edges: EdgeLists, features: Tensor, matrices: Tensor) -> Tensor:
    """(E, K_in, C), (N, R, C) -> (E, K_out, C), differentiable to any order."""
    return _Product.apply(op, edges, features, matrices)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: EdgeProductKernels, edges: EdgeLists, v: Tensor, m: Tensor) -> Tensor:
        ctx.op, ctx.edges = op, edges
        ctx.save_for_backward(v, m)
        if any(ctx.needs_input_grad):
            op.prepare(_FORWARD, _BACKWARD_V, _BACKWARD_M)
        return op.run(_FORWARD, edges, (v, None), (m, None), (None, None))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        v, m = ctx.saved_tensors
        return (None, None, *_gradients(ctx.op, ctx.edges, tuple(ctx.needs_input_grad[2:]), v, m, g))


def _gradients(
    op: EdgeProductKernels, edges: EdgeLists, needs: tuple[bool, ...], v: Tensor, m: Tensor, g: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    return _ProductBackward.apply(op, edges, needs, v, m, g)


class _ProductBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        op: EdgeProductKernels,
        edges: EdgeLists,
        needs: tuple[bool, ...],
        v: Tensor,
        m: Tensor,
        g: Tensor,
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.op, ctx.edges = op, edges
        ctx.save_for_backward(v, m, g)
        ctx.set_materialize_grads(False)
        operands = ((v, None), (m, None), (g, None))
        gv = op.run(_BACKWARD_V, edges, *operands) if needs[0] else None
        gm = op.run(_BACKWARD_M, edges, *operands) if needs[1] else None
        return gv, gm

    @staticmethod
    def backward(ctx: Any, hv: Tensor | None, hm: Tensor | None) -> tuple[Tensor | None, ...]:
        """Derivatives of ``<hv, dS/dv> + <hm, dS/dm> = S(hv, m, g) + S(v, hm, g)``."""
        op, edges, (v, m, g) = ctx.op, ctx.edges, ctx.saved_tensors
        need_v, need_m, need_g = ctx.needs_input_grad[3:]
        gv, gm, gg = None, None, None
        if torch.is_grad_enabled():
            if hv is not None:
                gm = _gradients(op, edges, (False, True), hv, m, g)[1] if need_m else None
                gg = edge_product(op, edges, hv, m) if need_g else None
            if hm is not None:
                gv = _gradients(op, edges, (True, False), v, hm, g)[0] if need_v else None
                other = edge_product(op, edges, v, hm) if need_g else None
                gg = other if gg is None else gg if other is None else gg + other
            return None, None, None, gv, gm, gg
        operands = ((v, hv), (m, hm), (g, None))
        terms = ((1, 0),) * (hv is not None) + ((0, 1),) * (hm is not None)
        if need_v and hm is not None:
            gv = op.run(EdgeRows("in", ((0, 1),)), edges, *operands)
        if need_m and hv is not None:
            gm = op.run(CentreSum(((1, 0),)), edges, *operands)
        if need_g and terms:
            gg = op.run(EdgeRows("out", terms), edges, *operands)
        return None, None, None, gv, gm, gg
