"""Sweeps of sums over neighbours: the trilinear form with operands replaced by tangents and cotangents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.convolution.cpu import CpuConvolution, cpu_convolution
from pimlip_zoo.compiled.kernels.convolution.form import EdgeSum, NodeSum, TrilinearForm
from pimlip_zoo.compiled.kernels.convolution.operation import (
    FORWARD,
    gradient_kernels,
    second_kernels,
    tangent_kernel,
)
from pimlip_zoo.compiled.kernels.edges import EdgeLists, edge_lists
from pimlip_zoo.compiled.sweeps.block import Block, Call, NotCovered, Tensors, blocks
from pimlip_zoo.nn.contraction import EdgeEnvironment, EdgeTensors
from pimlip_zoo.nn.convolution import Convolution

__all__ = ["ConvolutionBlock", "EnvironmentBlock", "TensorsBlock"]

Kernel = NodeSum | EdgeSum
AnyKernel = TypeVar("AnyKernel", NodeSum, EdgeSum)


class TrilinearBlock(Block):
    """``z = dS/dg`` of the form ``S(x, Y, w, g)``; which of x, Y, w are active is the subclass's to say.

    Sets of flags are in the order (x, Y, w).
    """

    fresh = True
    operands: tuple[int, ...] = (0, 1, 2)
    """Which operand each active argument is."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.form: TrilinearForm = call.target.form
        if not self.form.terms:
            raise NotCovered
        self.geometric = self._by_operand(call.geometric)
        self.trainable = self._by_operand(call.trainable)

    def _by_operand(self, flags: Sequence[bool]) -> tuple[bool, bool, bool]:
        out = [False, False, False]
        for place, flag in zip(self._active_operands(), flags, strict=True):
            out[place] = flag
        return out[0], out[1], out[2]

    def _active_operands(self) -> tuple[int, ...]:
        """Which operands the active arguments are."""
        return tuple(self.operands[place[0]] for place in self.call.active)

    def _kernels(self, channels: int) -> CpuConvolution:
        return cpu_convolution(self.form, channels, self.call.dtype)

    def run(self, edges: EdgeLists, x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Any]:
        """The first sweep."""
        op = self._kernels(int(w.shape[2]))
        x, y, w = x.contiguous(), y.contiguous(), w.contiguous()
        kernel = _for_rows(FORWARD, _is_paired(edges, w))
        out = op.node_sum(kernel, edges, (x, None), (y, None), (w, None), (None, None))
        return out, (op, edges, x, y, w)

    def adjoint(self, saved: Any, g: Tensor) -> Tensors:
        op, edges, x, y, w = saved
        operands = ((x, None), (y, None), (w, None), (g.contiguous(), None))
        return self._run(op, edges, gradient_kernels(self.geometric), operands)

    def tangent(self, saved: Any, tangents: Tensors) -> Tensor:
        op, edges, x, y, w = saved
        t = self._tangents(tangents)
        present = (t[0] is not None, t[1] is not None, t[2] is not None)
        kernel = _for_rows(tangent_kernel(present), _is_paired(edges, w))
        return op.node_sum(kernel, edges, (x, t[0]), (y, t[1]), (w, t[2]), (None, None))

    def second(self, saved: Any, tangents: Tensors, g: Any, h: Tensor) -> tuple[Tensors, Tensors]:
        op, edges, x, y, w = saved
        t = self._tangents(tangents)
        present = (t[0] is not None, t[1] is not None, t[2] is not None)
        cotangents = (h.contiguous(), None) if g is None else (g.contiguous(), h.contiguous())
        operands = ((x, t[0]), (y, t[1]), (w, t[2]), cotangents)
        wanted = self.trainable
        kernels = gradient_kernels(wanted) if g is None else second_kernels(present, wanted, adds=True)
        return self._run(op, edges, kernels, operands), ()

    def _tangents(self, tangents: Tensors) -> list[Tensor | None]:
        out: list[Tensor | None] = [None, None, None]
        for place, t in zip(self._active_operands(), tangents, strict=True):
            out[place] = None if t is None else t.contiguous()
        return out

    def _run(self, op: CpuConvolution, edges: EdgeLists, kernels: Sequence[Kernel], operands: Any) -> Tensors:
        found: list[Tensor | None] = [None, None, None]
        paired = _is_paired(edges, operands[2][0])
        for each in kernels:
            kernel = _for_rows(each, paired)
            if isinstance(kernel, NodeSum):
                found[0] = op.node_sum(kernel, edges, *operands)
            else:
                found[2], found[1] = op.edge_sum(kernel, edges, *operands)
        return tuple(found[place] for place in self._active_operands())


@cache
def _for_rows(kernel: AnyKernel, paired: bool) -> AnyKernel:
    """The kernel for weights of pairs of edges, or of edges."""
    return replace(kernel, paired=paired)


def _is_paired(edges: EdgeLists, w: Tensor) -> bool:
    """Whether there is a row of weights for each pair of edges, and not for each edge."""
    return int(w.shape[0]) != edges.num_edges


@blocks(Convolution)
class ConvolutionBlock(TrilinearBlock):
    """(x, harmonics, weights, edge_index) -> sums at the centres."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        x, y, w, edge_index = args
        return self.run(edge_lists(edge_index, int(x.shape[0])), x, y, w)


@blocks(EdgeEnvironment)
class EnvironmentBlock(TrilinearBlock):
    """(harmonics, weights, edge_index, num_atoms) -> sums at the centres; x is one."""

    operands = (1, 2)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        y, w, edge_index, atoms = args
        ones = torch.ones((atoms, 1, w.shape[2]), dtype=w.dtype)
        return self.run(edge_lists(edge_index, atoms), ones, y, w)


@blocks(EdgeTensors)
class TensorsBlock(TrilinearBlock):
    """(harmonics, weights) -> their product for every edge, which is a sum of one term: each edge is a centre."""

    operands = (1, 2)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        y, w = args
        count = int(y.shape[0])
        each = torch.arange(count)
        ones = torch.ones((1, 1, w.shape[2]), dtype=w.dtype)
        edges = EdgeLists(torch.stack([each, torch.zeros_like(each)]), count)
        return self.run(edges, ones, y, w)
