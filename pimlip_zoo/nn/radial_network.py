"""Weights of an edge from its length and the species at its ends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pimlip_zoo.graph import AtomGraph

LAYER_NORM_EPS = 1e-5
"""Added to the variance."""


class LayerNorm(nn.Module):
    """``w (x - mean) / sqrt(variance + eps) + b`` over the last axis (Ba et al., arXiv:1607.06450).

    In sums and products, of which native models are made, too.

    Args:
        width: H.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.per_row, self.eps = 1.0 / width, LAYER_NORM_EPS

    def forward(self, x: Tensor) -> Tensor:
        """(rows, H) -> (rows, H)."""
        x = x - x.sum(1, keepdim=True) * self.per_row
        variance = (x * x).sum(1, keepdim=True) * self.per_row
        return x * torch.rsqrt(variance + self.eps) * self.weight + self.bias


class RadialNetwork(nn.Module):
    """An MLP of the radial functions and both species, with biases and layer norms before its activations.

    ``W [radial, one-hot of the centre, one-hot of the neighbour]``, then for every further layer
    ``W silu(LayerNorm(x)) + b``. The columns of the species are tables that edges look up, and are the first layer's
    biases. What it returns does not vanish at the cutoff: multiply it with one.

    Args:
        num_basis: B, radial functions.
        hidden: widths of the hidden layers, at least one.
        num_out: O.
        num_species: S.
    """

    def __init__(self, num_basis: int, hidden: Sequence[int], num_out: int, num_species: int) -> None:
        super().__init__()
        self.radial = nn.Parameter(torch.randn(num_basis, hidden[0]))
        self.centre = nn.Parameter(torch.randn(num_species, hidden[0]))
        self.neighbour = nn.Parameter(torch.randn(num_species, hidden[0]))
        self.scale_in = 1.0 / math.sqrt(num_basis + 2)
        widths = (*hidden, num_out)
        self.norms = nn.ModuleList(LayerNorm(width) for width in hidden)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(a, b)) for a, b in itertools.pairwise(widths)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in widths[1:])
        self.scales = [1.0 / math.sqrt(width) for width in hidden]

    def forward(self, radial: Tensor, graph: AtomGraph) -> Tensor:
        """(E, B) -> (E, O)."""
        centre, neighbour = graph.species[graph.edge_index[0]], graph.species[graph.edge_index[1]]
        x = torch.mm(radial, self.radial) + self.centre[centre] + self.neighbour[neighbour]
        x = x * self.scale_in
        layer = 0
        for norm, weight, bias in zip(self.norms, self.weights, self.biases):  # noqa: B905  (TorchScript)
            x = torch.mm(torch.nn.functional.silu(norm(x)), weight * self.scales[layer]) + bias
            layer += 1  # noqa: SIM113  (TorchScript does not enumerate a ParameterList)
        return x
