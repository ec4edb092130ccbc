"""What chemistry knows of a species: its atomic number and its covalent radius."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pimlip_zoo.errors import InputError, did_you_mean


def atomic_numbers(species: Sequence[str]) -> Tensor:
    """Chemical symbols -> (S,) int64.

    Raises:
        InputError: for a symbol that is no element's.
    """
    from ase.data import atomic_numbers as known

    for symbol in species:
        if known.get(symbol, 0) < 1:
            elements = [name for name, number in known.items() if number > 0]
            raise InputError(
                f"{symbol!r} is not a chemical element", key="species", hint=did_you_mean(symbol, elements)
            )
    return torch.tensor([known[symbol] for symbol in species], dtype=torch.int64)


def covalent_radii(species: Sequence[str]) -> Tensor:
    """Chemical symbols -> (S,) float64, Å (Cordero et al., Dalton Trans. 2832, 2008; 0.2 Å where none is known).

    Raises:
        InputError: for a symbol that is no element's.
    """
    from ase.data import covalent_radii as radii

    numbers = atomic_numbers(species)
    return torch.tensor([float(radii[number]) for number in numbers.tolist()], dtype=torch.float64)
