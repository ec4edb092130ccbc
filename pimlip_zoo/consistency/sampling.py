"""What the consistency losses of a run look at: structures of the batch and of a pool, displacements, a teacher.

All that is random follows from (seed, rank, batch), so that a resumed run goes on as it would have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from pimlip_zoo.consistency.displaced import choose, trim_edges
from pimlip_zoo.consistency.displacements import (
    Context,
    Displacement,
    RandomStrain,
    random_direction,
    remove_mean,
)
from pimlip_zoo.consistency.surface import Reads, Surface
from pimlip_zoo.consistency.teacher import EmaTeacher
from pimlip_zoo.graph import AtomGraph, Batch, Labels, Predictions, collate, graph_to, sum_by_structure
from pimlip_zoo.losses.base import PotentialLike, Step
from pimlip_zoo.losses.pool import Pool, step_generator


@dataclass(frozen=True)
class Draw:
    """What one step looks at."""

    whole: Batch
    """The labelled structures, and those of a pool behind them."""
    structure: Tensor | None
    """(M,) bool, which of the whole are looked at; None: all."""
    batch: Batch
    """The structures that are looked at."""
    surface: Surface
    """Around them."""


class ConsistencySampling(nn.Module):
    """What the consistency losses of a run share.

    Args:
        displacements: how atoms are displaced.
        strain: how cells are strained.
        fraction: share of the structures that is looked at.
        pool: unlabelled structures.
        teacher: takes the target side.
        reads: what all losses of the run look at: what is drawn does not depend on which of them count at a step.
        seed: of everything random.
    """

    def __init__(
        self,
        displacements: Displacement,
        *,
        reads: Reads | None = None,
        strain: RandomStrain | None = None,
        fraction: float = 1.0,
        pool: Pool | None = None,
        teacher: EmaTeacher | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.displacements, self.strain, self.fraction = displacements, strain, fraction
        self.pool, self.teacher, self.seed, self.reads = pool, teacher, seed, reads or Reads()
        self._followed: int | None = None

    def amplitude(self, reads: Reads) -> float:
        """The ε that weights in units of lambda refer to: of the strains where these are looked at, else in Å."""
        if reads.strained and self.strain is not None:
            return self.strain.amplitude
        return self.displacements.amplitude

    def follow(self, potential: PotentialLike, step: Step) -> None:
        """Let the teacher follow, once in an optimiser step."""
        if self.training and self.teacher is not None and self._followed != step.number:
            self.teacher.update(cast("nn.Module", potential), step.number)
            self._followed = step.number

    def draw(
        self,
        potential: PotentialLike,
        batch: Batch,
        step: Step,
        predictions: Predictions | None = None,
    ) -> Draw:
        """This step's structures and displacements.

        Args:
            potential: the one that is trained.
            batch: the labelled structures.
            step: how far the training is.
            predictions: of the potential on the labelled structures, where displacements depend on them.
        """
        generator = step_generator(self.seed, step.batch if self.training else -1)
        whole, start = batch, predictions
        if self.pool is not None:
            whole, start = join_unlabelled(batch, self.pool.draw(generator)), None
        structure = choose_structures(whole.graph, self.fraction, generator)
        part, base = choose(whole, start, structure)
        context = None
        if self.displacements.needs_predictions:
            if base is None:
                base = potential(trim_edges(part.graph, potential.cutoff), forces=True, virial=False)
            context = Context(potential, part, base)
        d, *others = self.displacements.sample_several(1 + self.reads.p, part.graph, generator, context)
        strain = self.strain.sample(part.graph, generator) if self.reads.strained and self.strain else None
        surface = Surface(
            potential,
            part.graph,
            d,
            others[0] if others else None,
            strain=strain,
            direction=random_unit(part.graph, generator) if self.reads.direction else None,
            labels=part.labels,
            teacher=self.teacher,
            base=base,
        )
        return Draw(whole, structure, part, surface)


def random_unit(graph: AtomGraph, generator: torch.Generator) -> Tensor:
    """(N, 3) random directions without mean, of unit norm over each structure."""
    v = remove_mean(random_direction(graph, generator), graph)
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
        torch.ones((graph.num_graphs, 3), dtype=torch.float64, device=energy.device),
    )
    return collate([batch, Batch(graph, labels)])
