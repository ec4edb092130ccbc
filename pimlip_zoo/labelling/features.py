"""What structures look like to a potential: features of atoms, and gradients by all weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import batches_of, frame_to_sample
from pimlip_zoo.labelling.last_layer import LastLayer
from pimlip_zoo.models.potential import Potential

_BATCH = 16
_SKETCH = 256
_CUTOFF = 5.0
"""Å, of a potential that was not trained."""
_SMALLEST = 1e-6


def untrained(frames: Sequence[Frame]) -> Potential:
    """A potential with random weights for the elements of these structures: its features need no training.

    They are random nonlinear functions of an atom's neighbourhood, invariant under rotations and of high body order.
    """
    from ase.data import chemical_symbols

    from pimlip_zoo.registry import get_model

    numbers = np.unique(np.concatenate([frame.numbers for frame in frames]))
    species = tuple(chemical_symbols[z] for z in numbers)
    info = get_model("mace")
    neighbours = []
    for frame in frames[:: max(1, len(frames) // 20)]:
        sample = frame_to_sample(frame, species, _CUTOFF)
        neighbours.append(sample.graph.edge_index.shape[1] / max(len(frame.numbers), 1))
    mean = max(float(np.mean(neighbours)), 1.0)
    state = torch.get_rng_state()
    try:
        torch.manual_seed(0)
        config = info.configure("small", channels=64, cutoff=_CUTOFF, avg_num_neighbors=mean)
        model = info.model(config, species)
    finally:
        torch.set_rng_state(state)
    return Potential(model).eval().requires_grad_(False)


def atom_features(potential: Potential, frames: Sequence[Frame]) -> list[NDArray[np.float64]]:
    """(N, D) of each structure: what the readouts of the potential look at."""
    layer = LastLayer(potential)
    found: list[NDArray[np.float64]] = []
    for batch in batches_of(frames, potential.species, potential.cutoff, _BATCH):
        features = layer.features(batch.graph).numpy()
        ends = np.cumsum(np.bincount(batch.graph.batch.numpy(), minlength=batch.graph.num_graphs))[:-1]
        found += np.split(features, ends)
    return found


def whitened(features: Sequence[NDArray[np.float64]], frames: Sequence[Frame]) -> list[NDArray[np.float64]]:
    """The features of atoms, of each element with zero mean, uncorrelated and with unit variance in all."""
    numbers = np.concatenate([frame.numbers for frame in frames])
    rows = np.concatenate(list(features))
    result = np.zeros_like(rows)
    for z in np.unique(numbers):
        mine = numbers == z
        centred = rows[mine] - rows[mine].mean(axis=0)
        _, size, axes = np.linalg.svd(centred, full_matrices=False)
        # Weak directions are noise: they are not blown up to the size of the strong ones.
        scale = size / np.sqrt(max(int(mine.sum()), 1))
        result[mine, : len(size)] = centred @ axes.T / np.maximum(scale, 0.05 * scale.max(initial=_SMALLEST))
    return np.split(result, np.cumsum([len(frame.numbers) for frame in frames])[:-1])


def gradient_features(potential: Potential, frames: Sequence[Frame]) -> NDArray[np.float64]:
    """(M, 256) random projections of the derivative of each energy per atom by all weights of the model.

    Their scalar products approximate the neural tangent kernel (D. Holzmueller, V. Zaverkin, J. Kaestner,
    I. Steinwart, J. Mach. Learn. Res. 24, 164 (2023)).
    """
    import copy

    model = copy.deepcopy(potential)
    parameters = [p.requires_grad_(True) for p in model.model.parameters()]
    generator = torch.Generator().manual_seed(0)
    size = sum(p.numel() for p in parameters)
    projection = torch.randn((size, _SKETCH), generator=generator) / _SKETCH**0.5
    rows = []
    for frame in frames:
        sample = frame_to_sample(frame, potential.species, potential.cutoff)
        energy = model(sample.graph, forces=False, virial=False).energy.sum() / max(len(frame.numbers), 1)
        gradients = torch.autograd.grad(energy, parameters, allow_unused=True)
        flat = torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).reshape(-1).float()
                for p, g in zip(parameters, gradients, strict=True)
            ]
        )
        rows.append((flat @ projection).double().numpy())
    return np.array(rows).reshape(len(frames), _SKETCH)


def force_information(potential: Potential, frames: Sequence[Frame]) -> NDArray[np.float64]:
    """(M, D, D): ``sum_c g g^T`` over the components of the forces of each structure, per atom, eV²/Å²."""
    layer = LastLayer(potential)
    unit = torch.eye(len(layer), dtype=torch.float64)
    found = []
    for batch in batches_of(frames, potential.species, potential.cutoff, _BATCH):
        changes = layer.forces(batch.graph, unit)  # (D, N, 3)
        for structure in range(batch.graph.num_graphs):
            mine = batch.graph.batch == structure
            rows = changes[:, mine].reshape(len(layer), -1)
            found.append((rows @ rows.T / max(int(mine.sum()), 1)).numpy())
    return np.array(found).reshape(len(frames), len(layer), len(layer))
