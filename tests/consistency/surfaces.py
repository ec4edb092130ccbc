"""Surfaces whose consistency is known, as architectures."""

import numpy as np
import torch
from torch import nn

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.graph import collate
from pimlip_zoo.models.base import AtomicEnergyModel, ModelConfig
from pimlip_zoo.models.potential import Potential

SPECIES = ("H", "C", "O")


def switch(distance, cutoff):
    """One at zero, zero from the cutoff on, smooth."""
    x = (distance / cutoff).clamp(max=1.0)
    return (1.0 - x * x) ** 3


class PairModel(AtomicEnergyModel):
    """A sum over pairs; ``strength`` is its one parameter."""

    def __init__(self, config=None, species=SPECIES):
        super().__init__(config or ModelConfig(cutoff=4.0), species)
        self.strength = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def forward(self, graph, vectors):
        distance = torch.linalg.vector_norm(vectors, dim=1)
        pair = 0.5 * self.strength * self.pair(distance)
        return pair.new_zeros(len(graph.positions)).index_add(0, graph.edge_index[0], pair)


class Morse(PairModel):
    """Morse, cut smoothly."""

    def pair(self, r):
        return ((1.0 - torch.exp(-1.8 * (r - 1.2))) ** 2 - 1.0) * switch(r, self.cutoff)


class OneBody(AtomicEnergyModel):
    """A field that acts on each atom: not invariant, but exactly linear or harmonic in the positions.

    Each atom's position is taken relative to where it was when it was made (the model keeps that).
    """

    def __init__(self, count, *, harmonic, direct=False):
        super().__init__(ModelConfig(cutoff=30.0, force_head="direct" if direct else "conservative"), SPECIES)
        generator = torch.Generator().manual_seed(3)
        self.force = nn.Parameter(torch.randn(count * 3, generator=generator, dtype=torch.float64))
        root = torch.randn(count * 3, count * 3, generator=generator, dtype=torch.float64)
        self.hessian = root @ root.T if harmonic else torch.zeros_like(root)
        self.count = count

    def coordinates(self, graph, vectors):
        """Positions relative to the first atom of a structure, from its edges to all others."""
        first = graph.edge_index[0] % self.count == 0
        out = vectors.new_zeros(graph.num_graphs * self.count, 3)
        return out.index_add(0, graph.edge_index[1][first], vectors[first]).reshape(graph.num_graphs, -1)

    def forward(self, graph, vectors):
        x = self.coordinates(graph, vectors)
        energy = -(x @ self.force) + 0.5 * ((x @ self.hessian) * x).sum(dim=1)
        atoms = vectors.new_zeros(graph.num_graphs, self.count)
        return torch.cat([energy.unsqueeze(1), atoms[:, 1:]], dim=1).flatten()


class Swirl(PairModel):
    """A direct head: the Morse forces plus ``swirl`` times a rotation about the neighbours' axis ``z``."""

    def __init__(self, swirl=0.0, config=None, species=SPECIES):
        super().__init__(config or ModelConfig(cutoff=4.0, force_head="direct"), species)
        self.swirl = nn.Parameter(torch.tensor(float(swirl), dtype=torch.float64))

    def pair(self, r):
        return Morse.pair(self, r)

    def energies_and_forces(self, graph, vectors):
        distance = torch.linalg.vector_norm(vectors, dim=1)
        decay = torch.exp(-1.8 * (distance - 1.2))
        x = (distance / self.cutoff).clamp(max=1.0)
        value = (1.0 - decay) ** 2 - 1.0
        slope = 2.0 * 1.8 * (1.0 - decay) * decay * switch(distance, self.cutoff)
        slope = slope + value * 3.0 * (1.0 - x * x) ** 2 * (-2.0 * x / self.cutoff)
        push = (self.strength * slope / distance).unsqueeze(1) * vectors
        axis = vectors.new_tensor([0.0, 0.0, 1.0]).expand_as(vectors)
        push = push + (self.swirl * switch(distance, self.cutoff)).unsqueeze(1) * torch.linalg.cross(
            axis, vectors
        )
        forces = torch.zeros_like(graph.positions).index_add(0, graph.edge_index[0], push)
        return self(graph, vectors), forces


def potential(model):
    return Potential(model, energy_references=torch.tensor([-13.0, -1030.0, -2040.0]), scale=1.0)


def molecule(count=5, seed=0, cell=None, spacing=1.15):
    """A frame of atoms that do not overlap."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    points = grid[rng.permutation(len(grid))[:count]] * spacing + rng.normal(0, 0.05, (count, 3))
    numbers = np.array([1, 6, 8])[rng.integers(0, 3, count)]
    pbc = np.zeros(3, bool) if cell is None else np.ones(3, bool)
    return Frame(
        numbers=numbers,
        positions=points,
        cell=np.zeros((3, 3)) if cell is None else cell,
        pbc=pbc,
        energy=float(rng.normal()),
        forces=rng.normal(size=(count, 3)),
    )


SKEWED = np.array([[4.9, 0.0, 0.0], [1.3, 5.1, 0.0], [-0.7, 0.9, 5.3]])


def batch_of(frames, cutoff):
    return collate([frame_to_sample(frame, SPECIES, cutoff) for frame in frames])


def mixed_batch(cutoff=4.6, seed=0):
    """Structures of unequal size, one of a single atom, one periodic in a skewed cell."""
    return batch_of(
        [molecule(5, seed), molecule(1, seed + 1), molecule(8, seed + 2, SKEWED), molecule(3, seed + 3)],
        cutoff,
    )
