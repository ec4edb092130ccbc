"""Errors of predictions, accumulated exactly: sums and counts, divided once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pimlip_zoo.graph import Batch, Predictions
from pimlip_zoo.losses.supervised import Quantity, label_errors

QUANTITIES: tuple[Quantity, ...] = ("energy", "energy_per_atom", "forces", "stress")


class ErrorStatistics:
    """Mean absolute and root mean square errors over any number of batches.

    Energies in eV, forces in eV/Å by component, stress in eV/Å³ by component. Structures without a label do not
    count; a quantity without any label has no error.

    Args:
        species: chemical symbols, for the errors of forces by species.
    """

    def __init__(self, species: Sequence[str]) -> None:
        self.species = tuple(species)
        self._sums: dict[str, tuple[float, float, int]] = dict.fromkeys(QUANTITIES, (0.0, 0.0, 0))
        self._by_species = torch.zeros(len(self.species), 3, dtype=torch.float64)
        self.num_structures = 0
        self.num_atoms = 0

    def update(self, batch: Batch, predictions: Predictions) -> None:
        """Add a batch; quantities that were not predicted (empty) are left out."""
        self.num_structures += batch.graph.num_graphs
        self.num_atoms += len(batch.graph.positions)
        for quantity in QUANTITIES:
            if _is_missing(quantity, predictions, batch):
                continue
            found = label_errors(quantity, batch, predictions)
            error = found.error[~found.missing]
            absolute, square, count = self._sums[quantity]
            self._sums[quantity] = (
                absolute + float(error.abs().sum()),
                square + float(error.square().sum()),
                count + error.numel(),
            )
        if not _is_missing("forces", predictions, batch):
            self._update_species(batch, predictions)

    def _update_species(self, batch: Batch, predictions: Predictions) -> None:
        error = (predictions.forces - batch.labels.forces).detach()
        labelled = ~torch.isnan(error).any(dim=1)
        error, species = error[labelled].cpu(), batch.graph.species[labelled].cpu()
        rows = torch.stack(
            [error.abs().sum(1), error.square().sum(1), torch.full((len(error),), 3.0, dtype=error.dtype)], 1
        )
        self._by_species.index_add_(0, species, rows.to(torch.float64))

    def result(self, quantity: str) -> dict[str, float] | None:
        """``{"mae", "rmse"}`` of a quantity, None where no label was seen."""
        return _errors(*self._sums[quantity])

    def by_species(self) -> dict[str, dict[str, float]]:
        """Errors of the forces by species."""
        result = {}
        for symbol, (absolute, square, count) in zip(self.species, self._by_species.tolist(), strict=True):
            errors = _errors(absolute, square, count)
            if errors is not None:
                result[symbol] = errors
        return result

    def summary(self) -> dict[str, Any]:
        """Everything, in eV and Å, as ``eval --json`` writes it."""
        return {
            "n_structures": self.num_structures,
            "n_atoms": self.num_atoms,
            **{quantity: self.result(quantity) for quantity in QUANTITIES},
            "per_species": {symbol: {"forces": errors} for symbol, errors in self.by_species().items()},
        }


def _errors(absolute: float, square: float, count: float) -> dict[str, float] | None:
    return {"mae": absolute / count, "rmse": (square / count) ** 0.5} if count else None


def _is_missing(quantity: str, predictions: Predictions, batch: Batch) -> bool:
    predicted: dict[str, Tensor] = {"forces": predictions.forces, "stress": predictions.virial}
    wanted = {"forces": len(batch.graph.positions), "stress": batch.graph.num_graphs}
    return quantity in predicted and len(predicted[quantity]) != wanted[quantity]
