"""Sums over neighbours as steps of a model: which arguments are the operands of the trilinear form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.convolution.cpu import cpu_convolution
from pimlip_zoo.compiled.kernels.convolution.form import TrilinearForm
from pimlip_zoo.compiled.kernels.convolution.operation import ConvolutionOperation
from pimlip_zoo.compiled.kernels.edges import EdgeLists, edge_lists
from pimlip_zoo.compiled.sweeps.block import Call, NotCovered, blocks
from pimlip_zoo.compiled.sweeps.operation import Bound, OperationBlock
from pimlip_zoo.nn.contraction import EdgeEnvironment, EdgeTensors
from pimlip_zoo.nn.convolution import Convolution

__all__ = ["ConvolutionBlock", "EnvironmentBlock", "TensorsBlock"]


class TrilinearBlock(OperationBlock):
    """``z = dS/dg`` of the form ``S(x, Y, w, g)``."""

    def __init__(self, call: Call) -> None:
        self.form: TrilinearForm = call.target.form
        if not self.form.terms:
            raise NotCovered
        super().__init__(call)

    def bound(self, edges: EdgeLists, x: Tensor, y: Tensor, w: Tensor) -> Bound:
        """The form with these operands; w has a row for each edge or for each pair of opposite ones."""
        sums = cpu_convolution(self.form, int(w.shape[2]), self.call.dtype)
        return ConvolutionOperation(sums, edges, paired=int(w.shape[0]) != edges.num_edges), (x, y, w)


@blocks(Convolution)
class ConvolutionBlock(TrilinearBlock):
    """(x, harmonics, weights, edge_index) -> sums at the centres."""

    operands = (0, 1, 2)

    def bind(self, *args: Any) -> Bound:
        x, y, w, edge_index = args
        return self.bound(edge_lists(edge_index, int(x.shape[0])), x, y, w)


@blocks(EdgeEnvironment)
class EnvironmentBlock(TrilinearBlock):
    """(harmonics, weights, edge_index, num_atoms) -> sums at the centres; x is one."""

    operands = (1, 2)

    def bind(self, *args: Any) -> Bound:
        y, w, edge_index, atoms = args
        ones = torch.ones((atoms, 1, w.shape[2]), dtype=w.dtype)
        return self.bound(edge_lists(edge_index, atoms), ones, y, w)


@blocks(EdgeTensors)
class TensorsBlock(TrilinearBlock):
    """(harmonics, weights) -> their product for every edge, which is a sum of one term: each edge is a centre."""

    operands = (1, 2)

    def bind(self, *args: Any) -> Bound:
        y, w = args
        count = int(y.shape[0])
        each = torch.arange(count)
        ones = torch.ones((1, 1, w.shape[2]), dtype=w.dtype)
        edges = EdgeLists(torch.stack([each, torch.zeros_like(each)]), count)
        return self.bound(edges, ones, y, w)
