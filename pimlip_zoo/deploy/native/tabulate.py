"""Replaces what a model makes of lengths alone by tables, as fine as an error that is asked for needs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pimlip_zoo.compiled.sweeps.block import Call
from pimlip_zoo.compiled.sweeps.table import HarmonicsBlock, Table, TableBlock
from pimlip_zoo.compiled.sweeps.trace import Step, Trace, Value, values_in
from pimlip_zoo.deploy.native.evaluation import evaluation, steps_of
from pimlip_zoo.deploy.native.lengths import LengthFunctions, ancestors, find_length_functions
from pimlip_zoo.deploy.selfcheck import check_structures, close_structures, from_edges, pair_style_inputs
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, Predictions
from pimlip_zoo.nn.edges import EdgeEmbedding

if TYPE_CHECKING:
    from pimlip_zoo.models.potential import Potential

Predict = Callable[[AtomGraph], Predictions]

_FIRST_KNOT = 0.02
"""Of the cutoff: 0.1 Å where that is 5 Å."""
_FEWEST, _MOST = 32, 4096
"""Intervals."""
_MOST_BYTES = 2**30
_ROWS = 1 << 14
"""Lengths that are worked on at once."""


@dataclass(frozen=True)
class Errors:
    """Largest deviations from the exact model; in structures with large forces or energies, parts of the largest."""

    energy: float
    """eV, of an atom's energy; relative where energies beside the references exceed 1 eV."""
    force: float
    """eV/Å, of a component; relative where forces exceed 1 eV/Å."""

    @property
    def largest(self) -> float:
        """The larger of the two deviations."""
        return max(self.energy, self.force)


@dataclass(frozen=True)
class Tabulated:
    """A model whose functions of lengths are tables."""

    trace: Trace
    intervals: int
    functions: int
    """How many, for each pair of species that has its own."""
    pairs: int
    """Pairs of species with tables of their own; 1 where they share one."""


def tabulated(potential: Potential, tolerance: float) -> Tabulated:
    """Replace what a model makes of lengths by tables.

    The number of knots is doubled until, in float64, energies of atoms and forces are off by at most half of what is
    asked for; the rest is left to rounding.

    Args:
        potential: in the precision of the export.
        tolerance: what :class:`Errors` may be.

    Raises:
        InputError: when there is nothing to tabulate, or the error cannot be had.
    """
    if not tolerance > 0:
        raise InputError(
            f"a table with an error of {tolerance} cannot be made", key="table", hint="1e-4, say"
        )
    trace = steps_of(potential)
    exact = copy.deepcopy(potential).set_dtype(torch.float64)
    functions = find_length_functions(exact, trace)
    if not functions.values:
        raise InputError(
            "nothing in this model is a function of distances alone",
            key="table",
            hint="export without --table",
        )
    expected = by_steps(exact, steps_of(exact))
    ends = _ends(exact, functions)
    intervals = _FEWEST
    while True:
        _refuse_large(functions, len(ends), intervals, potential.model.dtype)
        tables = _tables(functions, ends, intervals, len(potential.species))
        found = by_steps(exact, _with_tables(steps_of(exact), functions, tables))
        errors = deviation(exact, expected, found)
        if errors.largest <= 0.5 * tolerance:
            break
        if intervals == _MOST:
            raise InputError(
                f"tables of {intervals} intervals are off by {errors.energy:.1e} eV and {errors.force:.1e} eV/Å",
                key="table",
                hint=f"give {3 * errors.largest:.0e}, or export without --table",
            )
        intervals *= 2
    dtype = potential.model.dtype
    tables = [replace(t, values=t.values.to(dtype), ends=t.ends.to(dtype)) for t in tables]
    width = sum(t.values.shape[3] for t in tables)
    return Tabulated(_with_tables(trace, functions, tables), intervals, width, len(ends))


def deviation(potential: Potential, expected: Predict, found: Predict) -> Errors:
    """How far two ways to compute a potential are apart on the self check's structures, and on closer ones."""
    energy = force = 0.0
    sizes = (potential.cutoff, len(potential.species))
    for _, graph in (*check_structures(*sizes), *close_structures(*sizes)):
        with torch.no_grad():
            one, other = expected(graph), found(graph)
            references = potential.energy_references[graph.species]
        energies = (one.atomic_energy - references, other.atomic_energy - references)
        energy, force = max(energy, _largest(*energies)), max(force, _largest(one.forces, other.forces))
    return Errors(energy, force)


def by_steps(potential: Potential, trace: Trace) -> Predict:
    """A potential evaluated by these steps of its model."""
    evaluate = evaluation(potential, trace)

    def predict(graph: AtomGraph) -> Predictions:
        energy, gradient = evaluate(*pair_style_inputs(graph).values())
        return Predictions(
            **from_edges(graph, {"atomic_energy": energy.unsqueeze(1), "edge_gradient": gradient})
        )

    return predict


def _largest(expected: Tensor, found: Tensor) -> float:
    worst = float((expected - found).abs().max() / expected.abs().max().clamp(min=1.0))
    return float("inf") if math.isnan(worst) else worst


def _ends(potential: Potential, functions: LengthFunctions) -> Tensor:
    """(pairs,) Å, where the functions of each pair of species end."""
    if not functions.by_species:
        return torch.tensor([potential.cutoff], dtype=torch.float64)
    own = [m for m in potential.model.modules() if isinstance(m, EdgeEmbedding) and m.by_pair]
    if len(own) == 1:
        inverse: Tensor = own[0].inverse_cutoffs  # type: ignore[assignment]
        return inverse.to(torch.float64).reciprocal()
    # With several embeddings there is no one end; the tables then become fine enough, or are refused.
    return torch.full((len(potential.species) ** 2,), potential.cutoff, dtype=torch.float64)


def _refuse_large(functions: LengthFunctions, pairs: int, intervals: int, dtype: torch.dtype) -> None:
    width = sum(math.prod(shape) for shape in functions.shapes)
    size = pairs * (intervals + 1) * 3 * width * dtype.itemsize
    if size > _MOST_BYTES:
        raise InputError(
            f"tables for {pairs} pairs of species would take {size / 1e9:.1f} GB",
            key="table",
            hint="ask for less precision, or export without --table",
        )


def _tables(functions: LengthFunctions, ends: Tensor, intervals: int, num_species: int) -> list[Table]:
    """In float64; derivatives at the knots are exact ones."""
    start = _FIRST_KNOT * float(ends.max())
    step = (ends - start) / intervals
    knots = start + step.unsqueeze(1) * torch.arange(intervals + 1, dtype=torch.float64)
    chunk = max(1, _ROWS // (intervals + 1))
    parts = [
        _derivatives(functions, knots[first : first + chunk], range(first, min(first + chunk, len(ends))))
        for first in range(0, len(ends), chunk)
    ]
    ranges = torch.cat([torch.tensor([start], dtype=torch.float64), 1.0 / step])
    powers = torch.stack([torch.ones_like(step), step, step.square()], 1)[:, None, :, None]
    tables = []
    for place, shape in enumerate(functions.shapes):
        values = torch.cat([part[place] for part in parts]) * powers
        tables.append(Table(values, ranges, shape, num_species if functions.by_species else 1))
    return tables


def _derivatives(functions: LengthFunctions, lengths: Tensor, pairs: Sequence[int]) -> list[Tensor]:
    """(pairs, K, 3, W) of each value: itself, first and second derivative by the length."""
    one = torch.ones_like(lengths)

    def value(r: Tensor) -> tuple[Tensor, ...]:
        return functions.evaluate(r, pairs)

    def slope(r: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return _along(value, r, one)

    (values, slopes), (_, curvatures) = _along(slope, lengths, one)
    return [torch.stack(each, 2).detach() for each in zip(values, slopes, curvatures, strict=True)]


def _along(function: Callable[[Tensor], Any], at: Tensor, direction: Tensor) -> tuple[Any, Any]:
    """What a function returns, and its derivative along a direction."""
    found = torch.func.jvp(function, (at,), (direction,))
    return found[0], found[1]


def _with_tables(trace: Trace, functions: LengthFunctions, tables: Sequence[Table]) -> Trace:
    """A trace whose functions of lengths are looked up; what only made them is left out."""
    by_number = dict(zip(functions.values, tables, strict=True))
    steps: list[Step] = []
    for step in trace.steps:
        replaced = [number for number in step.results if number in by_number]
        if not replaced:
            steps.append(step)
        steps += [_look_up(trace, number, by_number[number]) for number in replaced]
    return replace(trace, steps=tuple(_needed(steps, trace.result)))


def _look_up(trace: Trace, number: int, table: Table) -> Step:
    names = ("vectors", "species", "edge_index", "edge_shift")
    arguments = tuple(Value(trace.places[name]) for name in names)
    call = Call(table, arguments, {}, ((0,),), (True,), (False,), table.values.dtype)
    shared = any(step.block is not None and bool(step.block.shared) for step in ancestors(trace, [number]))
    return Step(TableBlock(call, shared=shared), call, (trace.places["vectors"],), (number,))


def _needed(steps: Sequence[Step], result: int) -> list[Step]:
    """Those that the result needs, embeddings reduced to harmonics where that is all."""
    needed, kept = {result}, []
    for step in reversed(steps):
        if not needed.intersection(step.results):
            continue
        target = step.call.target
        if isinstance(target, EdgeEmbedding) and step.results[0] not in needed and target.harmonics.l_max > 0:
            block = HarmonicsBlock(step.call, target.harmonics.couplings())
            kept.append(replace(step, block=block))
            needed.add(step.call.args[0].number)
            continue
        needed.update(values_in(step))
        kept.append(step)
    return kept[::-1]
