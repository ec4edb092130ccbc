"""Edges times their centre, component by component: the sparse product at the heart of Allegro, compiled.

``S = sum over edges ij, channels c, entries r: v[ij, a_r, c] m[i, r, c] g[ij, k_r, c]``; what is wanted is
always a derivative of S. With respect to g or v it is one row per edge, with respect to m a sum at the centres.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.edges import EdgeLists
from pimlip_zoo.compiled.kernels.generate import Target, channel_segments, kernel_head, prelude
from pimlip_zoo.compiled.kernels.library import KernelLibrary

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


class CpuEdgeProduct(KernelLibrary):
    """The kernels of one set of entries for one number of channels and one dtype.

    Args:
        entries: (component of v, component of the result) of each row of m, sorted.
        dim_in: components of v.
        dim_out: components of the result.
        channels: C.
        dtype: float32 or float64.
    """

    value = EdgeRows("out", ((0, 0),))

    def __init__(
        self, entries: Entries, dim_in: int, dim_out: int, channels: int, dtype: torch.dtype
    ) -> None:
        super().__init__(dtype)
        self.entries, self.dim_in, self.dim_out, self.channels = entries, dim_in, dim_out, channels

    def source(self, kernel: Hashable, machine: Target) -> str:
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
        self.call(
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
