"""The perceptrons of a model's readouts, in whose last weights its energies are linear."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.nn.mlp import ScalarMLP

if TYPE_CHECKING:
    from pimlip_zoo.models.base import AtomicEnergyModel


def readout_perceptrons(model: AtomicEnergyModel) -> list[ScalarMLP]:
    """Those with one output.

    Raises:
        InputError: for a model whose readouts are not known.
    """
    named = [getattr(model, name) for name in model.readout_modules]
    found = [
        module
        for part in named
        if part is not None
        for module in part.modules()
        if isinstance(module, ScalarMLP) and module.sizes[-1] == 1
    ]
    if not found:
        raise InputError(
            f"the readouts of {type(model).__name__} are not known",
            hint="name them in readout_modules; they have to be ScalarMLP",
        )
    return found


def last_weights(model: AtomicEnergyModel) -> Tensor:
    """(D,) float64, those of all readouts one after the other."""
    parts = [readout.weights[-1].detach().reshape(-1) for readout in readout_perceptrons(model)]
    return torch.cat(parts).double()


def set_last_weights(model: AtomicEnergyModel, weights: Tensor) -> None:
    """Write what :func:`last_weights` reads."""
    first = 0
    with torch.no_grad():
        for readout in readout_perceptrons(model):
            last = readout.weights[-1]
            last.copy_(weights[first : first + last.numel()].reshape(last.shape))
            first += last.numel()
