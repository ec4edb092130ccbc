"""Edges times their centre as triton functions: a program for each edge, or for each atom where edges are summed."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.edges import EdgeLists
from pimlip_zoo.compiled.kernels.launch import Block, Launcher, Source, indented
from pimlip_zoo.compiled.kernels.product.cpu import CentreSum, EdgeRows, Entries, Operands

_ACCUMULATORS = 32  # rows of the matrices that one program sums


class TritonEdgeProduct:
    """The derivatives of S for one set of entries, one number of channels and one dtype.

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
        self.channels, self.dtype, self._block = channels, dtype, Block(channels, dtype)
        self._launcher = Launcher(self.source, self._block)

    def prepare(self, *kernels: EdgeRows | CentreSum) -> None:
        """Nothing: triton compiles at the first launch."""

    def source(self, kernel: EdgeRows | CentreSum) -> Source:
        """The triton function of a kernel."""
        return self._centre_sum(kernel) if isinstance(kernel, CentreSum) else self._edge_rows(kernel)

    def _edge_rows(self, kernel: EdgeRows) -> Source:
        block, width = self._block, self.channels
        inward = kernel.side == "in"
        name, read, written = ("g", self.dim_out, self.dim_in) if inward else ("x", self.dim_in, self.dim_out)
        read_variants, m_variants = (sorted({term[place] for term in kernel.terms}) for place in (0, 1))
        lines = [
            "e = tl.program_id(0).to(tl.int64)",
            f"c = tl.program_id(1) * {block.size} + tl.arange(0, {block.size})",
            "i = tl.load(centre + e).to(tl.int64)",
            *[f"pm{v} = m{v} + i * {len(self.entries) * width} + c" for v in m_variants],
            *[f"p{v} = {name}{v} + e * {read * width} + c" for v in read_variants],
            *[f"s{v}_{k} = {block.load(f'p{v}', k)}" for v in read_variants for k in range(read)],
            f"po = out0 + e * {written * width} + c",
        ]
        for result in range(written):
            parts = [
                f"s{v}_{k if inward else a} * {block.load(f'pm{m}', row)}"
                for row, (a, k) in enumerate(self.entries)
                if (a if inward else k) == result
                for v, m in kernel.terms
            ]
            lines.append(block.store("po", result, " + ".join(parts) or block.zeros()))
        names = [f"{name}{v}" for v in read_variants] + [f"m{v}" for v in m_variants]
        return Source(("centre", *names, "out0"), tuple(lines))

    def _centre_sum(self, kernel: CentreSum) -> Source:
        block, width = self._block, self.channels
        lines = [
            "i = tl.program_id(0).to(tl.int64)",
            f"c = tl.program_id(1) * {block.size} + tl.arange(0, {block.size})",
            f"po = out0 + i * {len(self.entries) * width} + c",
            "begin = tl.load(first + i)",
            "end = tl.load(first + i + 1)",
        ]
        x_variants, g_variants = (sorted({term[place] for term in kernel.terms}) for place in (0, 1))
        rows = list(enumerate(self.entries))
        groups = [rows[start : start + _ACCUMULATORS] for start in range(0, len(rows), _ACCUMULATORS)]
        for number, group in enumerate(groups):
            firsts, seconds = sorted({a for _, (a, _) in group}), sorted({k for _, (_, k) in group})
            edge = ["e = tl.load(slot + s).to(tl.int64)"]
            for v in x_variants:
                edge.append(f"px{v} = x{v} + e * {self.dim_in * width} + c")
                edge += [f"x{v}_{a} = {block.load(f'px{v}', a)}" for a in firsts]
            for v in g_variants:
                edge.append(f"pg{v} = g{v} + e * {self.dim_out * width} + c")
                edge += [f"g{v}_{k} = {block.load(f'pg{v}', k)}" for k in seconds]
            for row, (a, k) in group:
                edge.append(f"r{row} += " + " + ".join(f"x{v}_{a} * g{g}_{k}" for v, g in kernel.terms))
            sums = [f"r{row} = {block.zeros()}" for row, _ in group]
            stores = [block.store("po", row, f"r{row}") for row, _ in group]
            work = [*sums, "for s in range(begin, end):", *indented(edge), *stores]
            lines += [f"if tl.program_id(2) == {number}:", *indented(work)]
        names = [f"x{v}" for v in x_variants] + [f"g{v}" for v in g_variants]
        return Source(("first", "slot", *names, "out0"), tuple(lines), len(groups))

    def run(
        self, kernel: EdgeRows | CentreSum, edges: EdgeLists, v: Operands, m: Operands, g: Operands
    ) -> Tensor:
        """One derivative of S; operands are pairs (itself, tangent), None where it is not read."""
        device = edges.centre.device
        if isinstance(kernel, CentreSum):
            rows, dim = edges.num_nodes, len(self.entries)
            first, _, slot = edges.by_centre
            lists = {"first": first, "slot": edges.every if slot is None else slot}
        else:
            rows, dim = edges.num_edges, self.dim_in if kernel.side == "in" else self.dim_out
            lists = {"centre": edges.centre}
        out = torch.empty((rows, dim, self.channels), dtype=self.dtype, device=device)
        operands = {"x0": v[0], "x1": v[1], "m0": m[0], "m1": m[1], "g0": g[0], "g1": g[1]}
        self._launcher.run(kernel, rows, {**lists, **operands, "out0": out})
        return out


@cache
def triton_edge_product(
    entries: Entries, dim_in: int, dim_out: int, channels: int, dtype: torch.dtype
) -> TritonEdgeProduct:
    """The kernels of these entries, shared by all modules that use them."""
    return TritonEdgeProduct(entries, dim_in, dim_out, channels, dtype)
