"""What a weak step looks at: structures of the batch and of a pool, displacements, all from (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pimlip_zoo.consistency.displaced import join
from pimlip_zoo.consistency.displacements import remove_mean
from pimlip_zoo.consistency.residuals import ORIGIN, Point
from pimlip_zoo.graph import AtomGraph, Batch, Labels, Predictions, graph_to, sum_by_structure

__all__ = ["Draw", "choose_structures", "join_unlabelled", "random_unit"]


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
