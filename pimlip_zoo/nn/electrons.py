"""Charge and spin of a structure as features of its atoms."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph


class StateEmbedding(nn.Module):
    """Features of a structure's charge and number of unpaired electrons, the same for all of its atoms.

    Total charges are no property of an atom's surroundings; two distant ions are beyond what it can describe.
    """

    def forward(self, graph: AtomGraph, like: Tensor) -> Tensor:
        """(N, C) in the dtype of ``like``; ``graph.electrons`` has to be there."""
        electrons = graph.electrons
        assert electrons is not None
        return self.of_structures(electrons.to(like.dtype))[graph.batch]

    def of_structures(self, electrons: Tensor) -> Tensor:
        """(M, 2) charges and unpaired electrons -> (M, C)."""
        raise NotImplementedError

    def check(self, electrons: Tensor) -> None:
        """Refuse charges and numbers of unpaired electrons that it has no features for; none unless it says so."""

    def fixed(self, charge: int, multiplicity: int, num_species: int) -> FixedElectrons:
        """What it adds for one charge and multiplicity, as a constant."""
        with torch.no_grad():
            weight = next(self.parameters())
            state = weight.new_tensor([[charge, multiplicity - 1]])
            self.check(state)
            table = self.of_structures(state).expand(num_species, -1).clone()
            return FixedElectrons(table, charge, multiplicity)


class ElectronEmbedding(StateEmbedding):
    """An MLP without biases: what it adds to the atoms of a neutral structure without unpaired electrons is zero.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Plain products and not a ScalarMLP: a handful of rows is not worth a kernel.
        self.into = nn.Parameter(torch.randn(2, channels))
        self.out = nn.Parameter(torch.randn(channels, channels))
        self.scale = math.sqrt(2.0 / channels)

    def of_structures(self, electrons: Tensor) -> Tensor:
        """(M, 2) charges and unpaired electrons -> (M, C)."""
        hidden = torch.nn.functional.silu(torch.mm(electrons, self.into))
        return torch.mm(hidden, self.out * self.scale)


class ElectronTables(StateEmbedding):
    """A row for every charge and one for every multiplicity: ``silu(a[charge] + b[multiplicity])``.

    Charges that no training structure had keep the rows that they began with. A neutral structure without unpaired
    electrons gets features, too.

    Args:
        channels: C.
        max_charge: charges from minus to plus this have a row.
        max_multiplicity: multiplicities 2S + 1 from one to this have a row.
    """

    def __init__(self, channels: int, max_charge: int, max_multiplicity: int) -> None:
        super().__init__()
        self.max_charge, self.max_multiplicity = max_charge, max_multiplicity
        self.of_charge = nn.Parameter(torch.randn(2 * max_charge + 1, channels))
        self.of_multiplicity = nn.Parameter(torch.randn(max_multiplicity, channels))

    def of_structures(self, electrons: Tensor) -> Tensor:
        """(M, 2) charges and unpaired electrons -> (M, C)."""
        rows = electrons.round().to(torch.int64)
        charge, unpaired = rows[:, 0] + self.max_charge, rows[:, 1]
        return torch.nn.functional.silu(self.of_charge[charge] + self.of_multiplicity[unpaired])

    def check(self, electrons: Tensor) -> None:
        """Refuse charges and multiplicities without a row.

        Raises:
            InputError: naming the first.
        """
        for charge, unpaired in electrons.tolist():
            if abs(charge) > self.max_charge:
                self._refuse("charge", f"{charge:+g}", f"-{self.max_charge} to {self.max_charge}")
            if not 0 <= unpaired < self.max_multiplicity:
                self._refuse("multiplicity", f"{unpaired + 1:g}", f"1 to {self.max_multiplicity}")

    @staticmethod
    def _refuse(key: str, given: str, known: str) -> None:
        raise InputError(
            f"a structure has the {key} {given}, and the model knows {known}",
            key=key,
            hint="leave the structure out",
        )


class FixedElectrons(nn.Module):
    """The features of one charge and multiplicity, for deployed models.

    Args:
        table: (S, C), a row for each species; all are equal.
        charge: that it is for.
        multiplicity: likewise.
    """

    def __init__(self, table: Tensor, charge: int, multiplicity: int) -> None:
        super().__init__()
        self.charge, self.multiplicity = charge, multiplicity
        self.table = nn.Parameter(table, requires_grad=False)

    def forward(self, graph: AtomGraph, like: Tensor) -> Tensor:  # noqa: ARG002
        """(N, C)."""
        return self.table[graph.species]
