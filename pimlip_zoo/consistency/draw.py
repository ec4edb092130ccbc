"""What a weak step looks at: structures of the batch and of a pool, displacements, all from (seed, step)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, Batch, Labels, Predictions, collate, graph_to, sum_by_structure
from pimlip_zoo.losses.copies import join
from pimlip_zoo.losses.perturbation import remove_mean
from pimlip_zoo.losses.residuals import ORIGIN, Point

__all__ = ["Draw", "Pool", "choose_structures", "join_unlabelled", "random_unit", "step_generator"]


class Pool:
    """Unlabelled structures, some of which every step looks at.

    Args:
        samples: graphs with lists as wide as the training's; their labels are not looked at.
        batch_size: structures per step.
    """

    def __init__(self, samples: Sequence[Batch], batch_size: int) -> None:
        if not samples:
            raise InputError("there is no structure in it", key="weak.unlabelled")
        self.samples, self.batch_size = samples, min(batch_size, len(samples))

    def draw(self, generator: torch.Generator) -> Batch:
        """A batch without repetition."""
        order = torch.randperm(len(self.samples), generator=generator)[: self.batch_size]
        return collate([self.samples[index] for index in order.tolist()])


@dataclass
class Draw:
    """What one step looks at."""

    labelled: Batch
    """The batch of the step."""
    whole: Batch
    """With structures of the pool behind it."""
    structure: Tensor | None
    """(M,) bool, which of the whole the weak losses look at; None: all."""
    batch: Batch
    """Those."""
    d: Tensor
    """(N, 3) Å, their displacements."""
    p: Tensor
    """(N, 3) Å, a second one."""
    generator: torch.Generator
    predictions: Predictions | None
    """On the undisplaced structures, where they are known."""
    energy: dict[Point, Tensor] = field(default_factory=dict)
    """Of copies that have been evaluated already."""
    forces: dict[Point, Tensor] = field(default_factory=dict)

    def known(self) -> tuple[dict[Point, Tensor], dict[Point, Tensor]]:
        """Energies and forces that need no evaluation."""
        energy, forces = dict(self.energy), dict(self.forces)
        if self.predictions is not None:
            energy[ORIGIN] = self.predictions.energy
            if len(self.predictions.forces) == len(self.batch.graph.positions):
                forces[ORIGIN] = self.predictions.forces
        return energy, forces


def step_generator(seed: int, rank: int, step: int) -> torch.Generator:
    """A stream that is determined by these numbers. They are hashed: torch's generator looks at 32 bits."""
    digest = hashlib.blake2b(f"{seed} {rank} {step}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def random_unit(graph: AtomGraph, generator: torch.Generator) -> Tensor:
    """(N, 3) random directions without mean, of unit norm over each structure."""
    normal = torch.randn(
        graph.positions.shape, generator=generator, device=generator.device, dtype=torch.float64
    )
    v = remove_mean(normal.to(graph.positions.device, graph.positions.dtype), graph)
    square = sum_by_structure(v.square().sum(dim=1), graph)
    return v / square.clamp_min(1e-300).sqrt()[graph.batch].unsqueeze(1)


def choose_structures(graph: AtomGraph, fraction: float, generator: torch.Generator) -> Tensor | None:
    """A random part of the structures, at least one: (M,) bool; None if that is all of them."""
    total = graph.num_graphs
    keep = max(1, round(fraction * total))
    if keep >= total:
        return None
    structure = torch.zeros(total, dtype=torch.bool)
    structure[torch.randperm(total, generator=generator)[:keep]] = True
    return structure.to(graph.batch.device)


def join_unlabelled(batch: Batch, pool: Batch) -> Batch:
    """The batch followed by structures of a pool, whose labels are taken away."""
    graph = graph_to(pool.graph, batch.graph.positions.device)
    nan = float("nan")
    energy = torch.full((graph.num_graphs,), nan, dtype=torch.float64, device=graph.positions.device)
    labels = Labels(
        energy,
        torch.full_like(graph.positions, nan),
        torch.full_like(graph.cell, nan),
        torch.ones_like(energy),
    )
    both = [torch.cat(pair) for pair in zip(batch.labels, labels, strict=True)]
    return Batch(join([batch.graph, graph]), Labels(*both))
