"""Losses on labels: energy, energy per atom, forces, stress. Missing labels (NaN) do not count."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal, NamedTuple

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import Batch, Predictions, stress_from_virial
from pimlip_zoo.losses.base import (
    LOSSES,
    Evaluated,
    LossInfo,
    LossOptions,
    LossTerm,
    LossValue,
    Requests,
    Step,
)

Distance = Literal["mse", "mae", "huber"]
Quantity = Literal["energy", "energy_per_atom", "forces", "stress"]
"""What can be labelled."""


class LabelErrors(NamedTuple):
    """Prediction minus label of one quantity, R rows."""

    error: Tensor
    """(R, D), NaN where a label is missing; D is 1 for energies (eV, or eV per atom), 3 for forces (eV/Å), 9 for stress
    (eV/Å³)."""
    weight: Tensor
    """(R,) of each row's structure."""
    factor: Tensor
    """(R,) of the structure's label."""
    missing: Tensor
    """(R,) where labels are missing."""


def label_errors(quantity: Quantity, batch: Batch, predictions: Predictions) -> LabelErrors:
    """Prediction minus label of one quantity."""
    graph, labels = batch.graph, batch.labels
    name, column = _LABEL[quantity]
    weight, factor = labels.weight, labels.label_weights[:, column]
    if quantity == "forces":
        error = predictions.forces - labels.forces
        weight, factor = weight[graph.batch], factor[graph.batch]
    elif quantity == "stress":
        error = (stress_from_virial(predictions.virial, graph.cell) - labels.stress).flatten(1)
    else:
        error = (predictions.energy - labels.energy).unsqueeze(-1)
        if quantity == "energy_per_atom":
            error = error / atom_counts(batch).unsqueeze(-1)
    missing = torch.isnan(getattr(labels, name)).reshape(len(error), -1).any(dim=1)
    return LabelErrors(error, weight, factor, missing)


_LABEL: dict[Quantity, tuple[str, int]] = {
    "energy": ("energy", 0),
    "energy_per_atom": ("energy", 0),
    "forces": ("forces", 1),
    "stress": ("stress", 2),
}
"""The label of a quantity, and the column of its weight."""


def atom_counts(batch: Batch) -> Tensor:
    """(M,) float64 number of atoms of each structure."""
    counts = torch.bincount(batch.graph.batch, minlength=batch.graph.num_graphs)
    return counts.to(torch.float64).clamp_min(1.0)


class SupervisedOptions(LossOptions):
    """The options of a distance between prediction and label."""

    distance: Distance = "mse"
    """Mean square, mean absolute, or Huber distance of prediction and label."""
    delta: PositiveFloat = 0.01
    """Of Huber, in the unit of the label: errors above it count linearly."""

    def unread(self) -> Mapping[str, str]:
        """See :class:`LossOptions`."""
        return {} if self.distance == "huber" else {"delta": f"the distance is {self.distance}, not huber"}


class TotalEnergyOptions(SupervisedOptions):
    """Those of total energies."""

    weight: NonNegativeFloat = 0.0
    """Factor in the total loss; 0: not trained on."""


class StressLossOptions(SupervisedOptions):
    """Those of stresses, whose numbers are small."""

    weight: NonNegativeFloat = 100.0
    """Factor in the total loss; 0: not trained on."""


class SupervisedTerm(LossTerm):
    """Distance between prediction and label, averaged over labelled components, weighted by structure.

    The weight of a structure's label is a factor of its distance alone, and does not enter what the average divides by:
    as in mace-torch, a weight of 10 on all labels of a kind is a weight of 10 on that loss.

    Args:
        quantity: energy (eV), energy_per_atom (eV), forces (eV/Å, by component), stress (eV/Å³, by component).
        weight: factor in the total loss.
        distance: mse ``d²``, mae ``|d|``, or huber ``d²/2`` below delta and ``delta (|d| - delta/2)`` above.
        delta: of the Huber distance, in the unit of the quantity.
    """

    def __init__(
        self, quantity: Quantity, weight: float = 1.0, distance: Distance = "mse", delta: float = 0.01
    ) -> None:
        super().__init__(quantity, weight)
        if distance not in ("mse", "mae", "huber"):
            raise InputError(f"no distance is called {distance!r}", hint="mse, mae or huber")
        if not delta > 0:
            raise InputError(f"delta is {delta}", key=f"loss.{quantity}.delta", hint="give a number > 0")
        self.quantity: Quantity = quantity
        self.distance: Distance = distance
        self.delta = float(delta)

    def requests(self, batch: Batch, step: Step) -> Requests:  # noqa: ARG002
        """See :class:`LossTerm`."""
        return Requests(forces=self.quantity == "forces", virial=self.quantity == "stress")

    def forward(self, evaluated: Evaluated) -> LossValue:
        """See :class:`LossTerm`."""
        error, weight, factor, missing = label_errors(self.quantity, evaluated.batch, evaluated.predictions)
        # Zeros and not a selection, which would have to wait for the number of its rows.
        error, weight = error.masked_fill(missing.unsqueeze(-1), 0.0), weight.masked_fill(missing, 0.0)
        if self.distance == "mse":
            values = error.square()
        elif self.distance == "mae":
            values = error.abs()
        else:
            size = error.abs()
            values = torch.where(
                size < self.delta, 0.5 * size.square(), self.delta * (size - 0.5 * self.delta)
            )
        return LossValue((weight * factor) @ values.sum(dim=1), weight.sum() * error.shape[1])


_SAYS: dict[Quantity, str] = {
    "energy": "Distance of total energies.",
    "energy_per_atom": "Distance of energies divided by the number of atoms.",
    "forces": "Distance of force components.",
    "stress": "Distance of stress components.",
}
_OPTIONS: dict[Quantity, type[SupervisedOptions]] = {
    "energy": TotalEnergyOptions,
    "stress": StressLossOptions,
}
for _quantity, _says in _SAYS.items():
    _make = partial(SupervisedTerm, _quantity)
    _make.__doc__ = _says
    _info = LossInfo(_quantity, _make, _OPTIONS.get(_quantity, SupervisedOptions), _LABEL[_quantity][0])
    LOSSES.add(_quantity, _info, SupervisedTerm)
