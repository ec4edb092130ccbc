"""Errors are exact over batches, and count labels only."""

import numpy as np
import pytest
import torch

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.graph import Predictions, collate
from pimlip_zoo.training.metrics import ErrorStatistics

SPECIES = ("H", "O")


def sample(rng, atoms, **labels):
    numbers = np.resize([1, 8], atoms)
    return frame_to_sample(
        Frame(numbers=numbers, positions=3.0 * rng.normal(size=(atoms, 3)), **labels), SPECIES, 2.0
    )


def predictions_of(batch, rng):
    atoms = len(batch.graph.positions)
    return Predictions(
        torch.as_tensor(rng.normal(size=batch.graph.num_graphs)),
        torch.as_tensor(rng.normal(size=(atoms, 3))),
        torch.zeros((0, 3, 3), dtype=torch.float64),
        torch.zeros(atoms, dtype=torch.float64),
    )


def test_batches_of_unequal_size_give_the_error_over_all_values():
    rng = np.random.default_rng(0)
    statistics = ErrorStatistics(SPECIES)
    energy_errors, force_errors = [], []
    for size in (1, 3, 2):
        batch = collate(
            [
                sample(rng, atoms, energy=rng.normal(), forces=rng.normal(size=(atoms, 3)))
                for atoms in range(2, 2 + size)
            ]
        )
        predictions = predictions_of(batch, rng)
        statistics.update(batch, predictions)
        energy_errors.append((predictions.energy - batch.labels.energy).numpy())
        force_errors.append((predictions.forces - batch.labels.forces).numpy().ravel())
    energies, forces = np.concatenate(energy_errors), np.concatenate(force_errors)
    assert statistics.result("energy") == {
        "mae": pytest.approx(np.abs(energies).mean(), rel=1e-12),
        "rmse": pytest.approx(np.sqrt((energies**2).mean()), rel=1e-12),
    }
    assert statistics.result("forces")["rmse"] == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-12)
    by_species = statistics.by_species()
    assert set(by_species) == {"H", "O"}
    assert statistics.summary()["n_structures"] == 6


def test_what_has_no_label_has_no_error():
    rng = np.random.default_rng(1)
    statistics = ErrorStatistics(SPECIES)
    batch = collate([sample(rng, 2), sample(rng, 3, energy=1.0)])
    predictions = predictions_of(batch, rng)
    statistics.update(batch, predictions)
    assert statistics.result("forces") is None
    assert statistics.result("stress") is None
    assert statistics.result("energy")["mae"] == pytest.approx(abs(float(predictions.energy[1]) - 1.0))
