"""Finds the values of a model that are functions of an edge's length and pair of species, and nothing else.

Weights are fixed in an export, so it is enough to look: on a structure in which every length occurs twice for every
pair of species, in other directions and among other neighbours, such a value has the same rows for both.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pimlip_zoo.compiled.kernels import use_kernels
from pimlip_zoo.compiled.sweeps.run import Sweeps, filler, put
from pimlip_zoo.compiled.sweeps.trace import Step, Trace, trace_model, values_in
from pimlip_zoo.graph import AtomGraph

if TYPE_CHECKING:
    from pimlip_zoo.models.potential import Potential

_SAME = 1e-10
"""Relative to the largest number of a value: what differs less is equal, in float64."""
_LENGTHS = (0.31, 0.52, 0.83)
"""Of the cutoff."""


@dataclass(frozen=True)
class LengthFunctions:
    """Values of a traced model that depend on an edge's length and pair of species alone."""

    values: tuple[int, ...]
    """Those that something else needs, in the order of the trace, and that parameters enter."""
    shapes: tuple[tuple[int, ...], ...]
    """Of one edge."""
    by_species: bool
    """Whether species matter."""
    evaluate: Callable[[Tensor, Sequence[int]], tuple[Tensor, ...]]
    """(pairs, K) lengths in Å, numbers of the pairs of species -> values (pairs, K, W), float64."""


def find_length_functions(potential: Potential, trace: Trace) -> LengthFunctions:
    """Those of a potential in float64.

    Args:
        potential: in float64.
        trace: of its model.
    """
    count = len(potential.species)
    graph, vectors, twins = _twins(potential.cutoff, count)
    own = trace_model(potential.model)
    assert own is not None  # since there is a trace of it
    with torch.no_grad():
        values = (
            Sweeps(potential.model, own, share=False).prepare(training=False).forward(graph, vectors).values
        )
    found = {number for number, value in enumerate(values) if _is_of_length(value, twins)}
    learned = _learned(trace, found)
    wanted = [
        number
        for number in sorted(found & learned & trace.geometric)
        if any(number in values_in(step) and not found.issuperset(step.results) for step in trace.steps)
        or number == trace.result
    ]
    by_species = any(not _same_for_all(values[number], twins, count) for number in wanted)
    return LengthFunctions(
        tuple(wanted),
        tuple(tuple(values[number].shape[1:]) for number in wanted),
        by_species,
        lambda lengths, pairs: _evaluate(potential, own, wanted, lengths, pairs),
    )


def _edges_of(lengths: Tensor, pairs: Sequence[int], num_species: int) -> tuple[AtomGraph, Tensor]:
    """A graph with edges of these (pairs, K) lengths, centre * S + neighbour the number of a pair; their vectors."""
    pair, every = torch.tensor(pairs), torch.arange(len(pairs))
    species = torch.stack([pair // num_species, pair % num_species], 1).reshape(-1)
    centre = (2 * every).repeat_interleave(lengths.shape[1])
    direction = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64) / 3.0
    vectors = lengths.reshape(-1, 1) * direction
    return _graph(species, torch.stack([centre, centre + 1]), vectors), vectors


def _graph(species: Tensor, edge_index: Tensor, vectors: Tensor) -> AtomGraph:
    zeros = torch.zeros((len(species), 3), dtype=torch.float64)
    cell = torch.zeros((1, 3, 3), dtype=torch.float64)
    return AtomGraph(zeros, species, edge_index, vectors.detach(), cell, torch.zeros_like(species), 1)


def _twins(cutoff: float, count: int) -> tuple[AtomGraph, Tensor, Tensor]:
    """Atoms of every species twice with edges to all species at all lengths, among others; (2, M) edges and twins."""
    random = torch.Generator().manual_seed(0)
    a, b, k = torch.meshgrid(
        torch.arange(count), torch.arange(count), torch.arange(len(_LENGTHS)), indexing="ij"
    )
    a, b, length = a.reshape(-1), b.reshape(-1), torch.tensor(_LENGTHS, dtype=torch.float64)[k.reshape(-1)]
    others = torch.randint(0, 2 * count, (2, 3 * count), generator=random)
    index = torch.cat([torch.stack([a, b]), torch.stack([a, b]) + count, others], 1)
    more = 0.25 + 0.7 * torch.rand(3 * count, generator=random, dtype=torch.float64)
    lengths = cutoff * torch.cat([length, length, more])
    direction = torch.randn((len(lengths), 3), generator=random, dtype=torch.float64)
    vectors = direction / direction.norm(dim=1, keepdim=True) * lengths[:, None]
    order = torch.argsort(index[0], stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    graph = _graph(torch.arange(2 * count) % count, index[:, order].contiguous(), vectors[order])
    return graph, vectors[order], place[: 2 * len(a)].view(2, -1)


def _is_of_length(value: object, twins: Tensor) -> bool:
    """Whether rows of edges that have only length and species in common are the same."""
    edges = int(twins.max()) + 1
    if (
        not isinstance(value, Tensor)
        or value.dim() == 0
        or len(value) < edges
        or not value.is_floating_point()
    ):
        return False
    one, other = value[twins[0]], value[twins[1]]
    return bool((one - other).abs().max() <= _SAME * value.abs().max())


def _same_for_all(value: Tensor, twins: Tensor, count: int) -> bool:
    """Whether rows of edges of one length are the same, whatever their species."""
    rows = value[twins[0]].view(count * count, len(_LENGTHS), -1)
    return bool((rows - rows[:1]).abs().max() <= _SAME * value.abs().max())


def _learned(trace: Trace, found: set[int]) -> set[int]:
    """Values of lengths that a module with parameters has worked on."""
    learned: set[int] = set()
    for step in trace.steps:
        target = step.call.target
        own = isinstance(target, nn.Module) and any(True for _ in target.parameters())
        if own or learned.intersection(values_in(step)):
            learned.update(found.intersection(step.results))
    return learned


def ancestors(trace: Trace, wanted: Sequence[int]) -> list[Step]:
    """The steps that make these values, in order."""
    needed, kept = set(wanted), []
    for step in reversed(trace.steps):
        if needed.intersection(step.results):
            needed.update(values_in(step))
            kept.append(step)
    return kept[::-1]


def _evaluate(
    potential: Potential, trace: Trace, wanted: Sequence[int], lengths: Tensor, pairs: Sequence[int]
) -> tuple[Tensor, ...]:
    """By the modules themselves in plain torch, differentiable as often as wanted."""
    graph, vectors = _edges_of(lengths, pairs, len(potential.species))
    values: list[Any] = [None] * trace.size
    values[trace.places["vectors"]] = vectors
    for name, field in zip(AtomGraph._fields, graph, strict=True):
        values[trace.places[name]] = field
    for number, name in trace.constants.items():
        values[number] = operator.attrgetter(name)(potential.model)
    with use_kernels("reference"):
        for step in ancestors(trace, wanted):
            args, kwargs = filler(step.call.args)(values), filler(step.call.kwargs)(values)
            put(values, step.results, step.call.invoke(args, kwargs))
    return tuple(values[number].reshape(*lengths.shape, -1) for number in wanted)
