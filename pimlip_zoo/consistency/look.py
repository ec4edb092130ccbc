"""What the consistency losses of a run look at: structures of the batch and of a pool, displacements, a teacher.

All that is random follows from (seed, rank, batch), so that a resumed run goes on as it would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from pimlip_zoo.consistency.displaced import choose, join, trim_edges
from pimlip_zoo.consistency.displacements import Context, Displacement, RandomStrain, remove_mean
from pimlip_zoo.consistency.surface import ORIGIN, Reads, Surface, cut, sort_points
from pimlip_zoo.consistency.teacher import EmaTeacher
from pimlip_zoo.graph import AtomGraph, Batch, Labels, Predictions, graph_to, sum_by_structure
from pimlip_zoo.losses.base import LossTerm, PotentialLike, Requests, Seen, Step
from pimlip_zoo.losses.pool import Pool, step_generator

__all__ = ["FEW_EDGES", "Look", "choose_structures", "join_unlabelled", "random_unit", "see"]

FEW_EDGES = 1000
"""Below this a forward costs about the same whatever its size: energies of copies are then evaluated with forces."""


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


class Look(nn.Module):
    """What the consistency losses of a run share.

    Args:
        displacements: how atoms are displaced.
        strain: how cells are strained.
        fraction: share of the structures that is looked at.
        pool: unlabelled structures.
        teacher: takes the target side.
        ensemble: potentials for displacements along their variance.
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
        ensemble: Sequence[PotentialLike] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.displacements, self.strain, self.fraction = displacements, strain, fraction
        self.pool, self.teacher, self.seed, self.reads = pool, teacher, seed, reads or Reads()
        self._ensemble = tuple(ensemble)
        self._followed: int | None = None
        self.error: float | None = None
        """Running mean of the supervised squared error, (eV/atom)² + (eV/Å)²."""

    def get_extra_state(self) -> dict[str, Any]:
        """What a resumed run needs beside the weights of the teacher."""
        return {"error": self.error}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """See :meth:`get_extra_state`."""
        self.error = state["error"]

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

    def follow_error(self, batch: Batch, predictions: Predictions) -> None:
        """Keep the running mean of the supervised error."""
        if not self.training:
            return
        with torch.no_grad():
            labels, graph = batch.labels, batch.graph
            atoms = torch.bincount(graph.batch, minlength=graph.num_graphs).clamp_min(1)
            error = ((predictions.energy - labels.energy) / atoms).square().nanmean().nan_to_num()
            if len(predictions.forces) == len(labels.forces):
                error = error + (predictions.forces - labels.forces).square().nanmean().nan_to_num()
        now = float(error)
        self.error = now if self.error is None else 0.98 * self.error + 0.02 * now

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
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        generator = step_generator(self.seed, rank, step.batch if self.training else -1)
        whole, start = batch, predictions
        if self.pool is not None:
            whole, start = join_unlabelled(batch, self.pool.draw(generator)), None
        structure = choose_structures(whole.graph, self.fraction, generator)
        part, base = choose(whole, start, structure)
        context = None
        if self.displacements.needs_predictions:
            if base is None:
                base = potential(trim_edges(part.graph, potential.cutoff), forces=True, virial=False)
            context = Context(potential, part, base, self._ensemble)
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


def see(
    potential: PotentialLike,
    batch: Batch,
    terms: Sequence[LossTerm],
    step: Step | None = None,
    *,
    forces: bool = False,
    virial: bool = False,
) -> Seen:
    """Evaluate what the terms of a loss want to see, labelled structures and copies in one forward.

    One forward instead of two or three is what makes a step with consistency losses cheap: small batches are bound by
    the number of operations, not by their size.

    Args:
        potential: the one that is trained.
        batch: the labelled structures, their lists as wide as the copies need them.
        terms: of the loss.
        step: how far the training is.
        forces: forces are wanted, whatever the terms say.
        virial: virials are wanted, whatever the terms say.
    """
    step = step or Step()
    requests = [term.requests(batch, step) for term in terms]
    forces = forces or any(request.forces for request in requests)
    virial = virial or any(request.virial for request in requests)
    looks = list(
        {id(request.look): request.look for request in requests if request.look is not None}.values()
    )
    if not looks:
        return Seen(batch, potential(batch.graph, forces=forces, virial=virial), potential, None, step)
    if len(looks) > 1:
        raise ValueError("the terms of a loss have to look at the same copies")
    look, reads = looks[0], _wanted(requests)
    needs_first = reads is not None and look.displacements.needs_predictions
    draw = None
    if reads is None or needs_first:
        graph = trim_edges(batch.graph, potential.cutoff)
        wanted = virial or (reads is not None and ORIGIN in (reads.own | reads.target).virials)
        predictions = potential(graph, forces=forces or needs_first, virial=wanted)
        if reads is not None:
            draw = look.draw(potential, batch, step, predictions)
    else:
        draw = look.draw(potential, batch, step)
        predictions = _together(potential, batch, draw, reads, forces=forces, virial=virial)
    look.follow(potential, step)
    if any(request.error for request in requests):
        look.follow_error(batch, predictions)
    if draw is not None and reads is not None:
        draw.surface.evaluate(reads, few_edges=FEW_EDGES)
    return Seen(batch, predictions, potential, None if draw is None else draw.surface, step)


def _wanted(requests: Sequence[Requests]) -> Reads | None:
    """What all of them look at; None: nothing at this step."""
    found = None
    for request in requests:
        if request.reads is not None:
            found = request.reads if found is None else found | request.reads
    return found


def _together(
    potential: PotentialLike, batch: Batch, draw: Draw, reads: Reads, *, forces: bool, virial: bool
) -> Predictions:
    """Predictions on the labelled structures; what they share a forward with is left in the surface."""
    copies, taught = draw.surface.copies, draw.surface.taught is not None
    points = reads.own if taught else reads.own | reads.target
    forces, virial = forces or bool(points.forces), virial or bool(points.virials)
    small = draw.whole.graph.edge_index.shape[1] < FEW_EDGES
    # Copies of which only the energy is needed join in where that is cheaper than a forward of their own.
    cheap = small or potential.is_direct or not (forces or virial)
    joined = sort_points((points.everywhere if cheap else points.forces | points.virials) - {ORIGIN})
    origin = draw.whole if ORIGIN in points.everywhere else batch
    graph = trim_edges(copies.at(joined, first=origin.graph), potential.cutoff)
    result = potential(graph, forces=forces, virial=virial)
    copies.split(joined, result, skip=origin.graph)
    whole = cut(result, 0, origin.graph.num_graphs, 0, len(origin.graph.positions))
    if origin is draw.whole:
        copies.know(cast("Predictions", choose(draw.whole, whole, draw.structure)[1]))
    return cut(whole, 0, batch.graph.num_graphs, 0, len(batch.graph.positions))


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
