"""Charge and spin of a structure as features of its atoms."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pimlip_zoo.graph import AtomGraph

__all__ = ["ElectronEmbedding", "FixedElectrons"]


class ElectronEmbedding(nn.Module):
    """An MLP of a structure's charge and number of unpaired electrons, the same for all of its atoms.

    It has no biases: what it adds to the atoms of a neutral structure without unpaired electrons is zero. Total
    charges are no property of an atom's surroundings; two distant ions are beyond what it can describe.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Plain products and not a ScalarMLP: a handful of rows is not worth a kernel.
        self.into = nn.Parameter(torch.randn(2, channels))
        self.out = nn.Parameter(torch.randn(channels, channels))
        self.scale = math.sqrt(2.0 / channels)

    def forward(self, graph: AtomGraph, like: Tensor) -> Tensor:
        """(N, C) in the dtype of ``like``; ``graph.electrons`` has to be there."""
        electrons = graph.electrons
        assert electrons is not None
        return self.of_structures(electrons.to(like.dtype))[graph.batch]

    def of_structures(self, electrons: Tensor) -> Tensor:
        """(M, 2) charges and unpaired electrons -> (M, C)."""
        hidden = torch.nn.functional.silu(torch.mm(electrons, self.into))
        return torch.mm(hidden, self.out * self.scale)

    def fixed(self, charge: int, multiplicity: int, num_species: int) -> FixedElectrons:
        """What it adds for one charge and multiplicity, as a constant."""
        with torch.no_grad():
            state = self.into.new_tensor([[charge, multiplicity - 1]])
            return FixedElectrons(self.of_structures(state).expand(num_species, -1).clone())


class FixedElectrons(nn.Module):
    """The features of one charge and multiplicity, for deployed models.

    Args:
        table: (S, C), a row for each species; all are equal.
    """

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table, requires_grad=False)

    def forward(self, graph: AtomGraph, like: Tensor) -> Tensor:  # noqa: ARG002
        """(N, C)."""
        return self.table[graph.species]
