"""One forward for the labelled structures of a training step and for all copies that its losses want to see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from pimlip_zoo.consistency.displaced import choose, trim_edges
from pimlip_zoo.consistency.sampling import Draw
from pimlip_zoo.consistency.surface import ORIGIN, Reads, cut, sort_points
from pimlip_zoo.graph import Batch, Predictions
from pimlip_zoo.losses.base import Evaluated, LossTerm, PotentialLike, Requests, Step

FEW_EDGES = 1000
"""Below this a forward costs about the same whatever its size: energies of copies are then evaluated with forces."""


def evaluate_step(
    potential: PotentialLike,
    batch: Batch,
    terms: Sequence[LossTerm],
    step: Step | None = None,
    *,
    forces: bool = False,
    virial: bool = False,
) -> Evaluated:
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
    samplings = list(
        {
            id(request.sampling): request.sampling for request in requests if request.sampling is not None
        }.values()
    )
    if not samplings:  # supervised terms alone: no copies
        return Evaluated(batch, potential(batch.graph, forces=forces, virial=virial), potential, None, step)
    if len(samplings) > 1:
        raise ValueError("the terms of a loss have to look at the same copies")
    sampling, reads = samplings[0], _wanted(requests)
    needs_first = reads is not None and sampling.displacements.needs_predictions
    draw = None
    if reads is None or needs_first:
        # No term counts at this step, so that nothing is drawn; or displacements follow the predicted forces, and the
        # labelled structures are evaluated alone before their copies are known.
        graph = trim_edges(batch.graph, potential.cutoff)
        wanted = virial or (reads is not None and ORIGIN in (reads.own | reads.target).virials)
        predictions = potential(graph, forces=forces or needs_first, virial=wanted)
        if reads is not None:
            draw = sampling.draw(potential, batch, step, predictions)
    else:  # the usual case: copies are drawn first, and those that need forces join the labelled structures
        draw = sampling.draw(potential, batch, step)
        predictions = _together(potential, batch, draw, reads, forces=forces, virial=virial)
    sampling.follow(potential, step)
    if (
        draw is not None and reads is not None
    ):  # points that no forward has seen yet, the teacher's among them
        draw.surface.evaluate(reads, few_edges=FEW_EDGES)
    return Evaluated(batch, predictions, potential, None if draw is None else draw.surface, step)


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
