"""The convolution's sums over edges on a CPU, compiled."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.convolution.form import FORWARD, EdgeSum, NodeSum, Operands, TrilinearForm
from pimlip_zoo.compiled.kernels.convolution.source import edge_sum_source, node_sum_source
from pimlip_zoo.compiled.kernels.edges import EdgeLists, EdgePairs
from pimlip_zoo.compiled.kernels.generate import Target
from pimlip_zoo.compiled.kernels.library import FormLibrary


class CpuConvolution(FormLibrary[TrilinearForm]):
    """The kernels of one trilinear form for one number of channels and one dtype."""

    value = FORWARD

    def source(self, kernel: Hashable, machine: Target) -> str:
        if isinstance(kernel, NodeSum):
            return node_sum_source(self.form, kernel, self.channels, machine)
        assert isinstance(kernel, EdgeSum)
        return edge_sum_source(self.form, kernel, self.channels, machine)

    def node_sum(
        self, kernel: NodeSum, edges: EdgeLists, x: Operands, y: Operands, w: Operands, g: Operands
    ) -> Tensor:
        """Run a :class:`NodeSum`; operands are pairs (itself, tangent), None where it is not read."""
        inward, lists = kernel.side == "in", _lists(kernel, edges)
        dim = (self.form.rows_in if inward else self.form.rows_out)[-1]
        out = torch.empty((edges.num_nodes, dim, self.channels), dtype=self.dtype)
        self.call(
            kernel,
            rows=edges.num_nodes,
            work=edges.num_edges * self.form.rows_path[-1] * self.channels,
            lists=lists.by_neighbour if inward else lists.by_centre,
            operands=(*x, *y, *w, *g),
            results=(out, None, None),
        )
        return out

    def edge_sum(
        self, kernel: EdgeSum, edges: EdgeLists, x: Operands, y: Operands, w: Operands, g: Operands
    ) -> tuple[Tensor | None, Tensor | None]:
        """Run an :class:`EdgeSum`: gradients of w (E, P, C) and of Y (E, K_edge), None where not wanted."""
        form, lists = self.form, _lists(kernel, edges)
        rows, both = (
            (edges.num_edges, None) if isinstance(lists, EdgeLists) else (lists.num_pairs, lists.both)
        )
        shape_w, shape_y = (rows, form.rows_path[-1], self.channels), (edges.num_edges, form.dim_edge)
        out_w = torch.empty(shape_w, dtype=self.dtype) if kernel.weights else None
        out_y = torch.empty(shape_y, dtype=self.dtype) if kernel.harmonics else None
        self.call(
            kernel,
            rows=rows,
            work=edges.num_edges * form.rows_path[-1] * self.channels,
            lists=(both, edges.neighbour, edges.centre),
            operands=(*x, *y, *w, *g),
            results=(out_w, out_y, None),
        )
        return out_w, out_y


def _lists(kernel: NodeSum | EdgeSum, edges: EdgeLists) -> EdgeLists | EdgePairs:
    if not kernel.paired:
        return edges
    if edges.pairs is None:
        raise ValueError("the opposite edges are not known")
    return edges.pairs


@cache
def cpu_convolution(form: TrilinearForm, channels: int, dtype: torch.dtype) -> CpuConvolution:
    """The kernels of a form, shared by all modules that compute it."""
    return CpuConvolution(form, dtype, channels)
