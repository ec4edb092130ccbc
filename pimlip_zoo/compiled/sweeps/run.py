"""Runs the four sweeps of a traced model."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pimlip_zoo.compiled.kernels import or_reference
from pimlip_zoo.compiled.kernels.build import CompilerError
from pimlip_zoo.compiled.kernels.edges import edge_lists
from pimlip_zoo.compiled.kernels.geometry import edge_geometry
from pimlip_zoo.compiled.kernels.library import Noted, build_together, rehearsal
from pimlip_zoo.compiled.kernels.memory import keep_freed_memory
from pimlip_zoo.compiled.sweeps.block import Part
from pimlip_zoo.compiled.sweeps.pairs import share_radial
from pimlip_zoo.compiled.sweeps.trace import Step, Trace, Value, numbers_in, trace_model
from pimlip_zoo.graph import AtomGraph

Values = list[Any]


_known: WeakKeyDictionary[nn.Module, dict[tuple[torch.dtype, bool], Sweeps | None]] = WeakKeyDictionary()
_tracing = threading.Lock()


def sweeps_of(model: nn.Module, dtype: torch.dtype) -> Sweeps | None:
    """The sweeps of a model in one precision, traced and compiled when they are first asked for.

    Returns:
        None where the model's code cannot be traced, or kernels cannot be compiled.

    Raises:
        InputError: when compiled kernels were asked for by name and cannot be had.
    """
    sweeps = _traced(model, dtype)
    if sweeps is None:
        return None
    training = torch.is_grad_enabled() and any(p.requires_grad for p in sweeps.parameters())
    return or_reference(lambda: sweeps.prepare(training=training))


def compile_ahead(model: nn.Module, dtype: torch.dtype) -> None:
    """Begin to compile what a training step needs, for somebody who has other things to do before it.

    Whoever asks for kernels that are being compiled waits for them; what cannot be compiled is said then.
    """
    sweeps = _traced(model, dtype)
    if sweeps is not None:
        threading.Thread(target=_build_quietly, args=(sweeps.kernels(training=True),)).start()


def _build_quietly(kernels: Noted) -> None:
    with suppress(CompilerError, OSError):
        build_together(kernels)


def _traced(model: nn.Module, dtype: torch.dtype) -> Sweeps | None:
    """The sweeps of a model as it is now, if it can be traced; traced once, whichever threads ask."""
    key = (dtype, model.training)
    sweeps = _known.get(model, {}).get(key)
    if sweeps is not None and sweeps.are_of(model):
        return sweeps
    with _tracing:
        return _traced_alone(model, key)


def _traced_alone(model: nn.Module, key: tuple[torch.dtype, bool]) -> Sweeps | None:
    known = _known.setdefault(model, {})
    sweeps = known.get(key)
    if sweeps is not None and sweeps.are_of(model):
        return sweeps
    if sweeps is not None:
        if not all(isinstance(value, nn.Parameter) for value in sweeps.present(model)):
            return None  # tensors stand in for parameters for a while, as in torch.func.functional_call
        del known[key]
    if key not in known:
        trace = trace_model(model)
        known[key] = None if trace is None else Sweeps(model, trace)
    sweeps = known[key]
    return sweeps if sweeps is not None and sweeps.are_of(model) else None


class _Cotangents:
    """Cotangents of all values, added up as they come."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self.sums: Values = [None] * len(values)
        self.owned: set[int] = set()
        """Values whose sum was made here and is seen by nobody else, so that it may be added to in place."""

    def add(self, number: int, part: Tensor | Part, *, fresh: bool = False) -> None:
        """Add to the cotangent of a value; what is fresh may be added to itself."""
        known = self.sums[number]
        if isinstance(part, Part):
            self._add_part(number, part)
        elif known is None:
            self.sums[number] = part
            if fresh:
                self.owned.add(number)
        elif number in self.owned:
            known += part
        elif fresh:
            self.sums[number] = part.add_(known)
            self.owned.add(number)
        else:
            self.sums[number] = known + part
            self.owned.add(number)

    def _add_part(self, number: int, part: Part) -> None:
        known, g = self.sums[number], part.g
        if known is None:
            self.sums[number] = known = torch.zeros(part.shape, dtype=g.dtype, device=g.device)
            known[part.index] = g
        elif number in self.owned:
            known[part.index] += g
        else:
            self.sums[number] = known = known.clone()
            known[part.index] += g
        self.owned.add(number)

    def of(self, results: Sequence[int]) -> Any:
        """Those of a step's results; None where all are zero. Of several, missing ones become zeros."""
        if len(results) == 1:
            return self.sums[results[0]]
        parts = [self.sums[number] for number in results]
        if all(part is None for part in parts):
            return None
        filled = zip(results, parts, strict=True)
        return tuple(torch.zeros_like(self.values[n]) if part is None else part for n, part in filled)


@dataclass
class Tape:
    """What one evaluation leaves for the sweeps that follow."""

    values: Values
    saved: list[Any]
    cotangents: _Cotangents | None = None


class Sweeps:
    """The four sweeps of one model.

    Args:
        model: the architecture.
        trace: its steps.
        share: let opposite edges share what is made from their length, where that is possible.
    """

    def __init__(self, model: nn.Module, trace: Trace, *, share: bool = True) -> None:
        if share:
            share_radial(trace)
        # Not the model itself: whoever knows its sweeps by the model would keep it alive.
        self.trace = trace
        self._fills = [(filler(step.call.args), filler(step.call.kwargs)) for step in trace.steps]
        self._constants = {number: _getter(model, name) for number, name in trace.constants.items()}
        self._prepared: set[bool] = set()
        self._preparing = threading.Lock()
        geometric = [s.block is not None and not trace.geometric.isdisjoint(s.inputs) for s in trace.steps]
        trainable = [s.block is not None and not trace.trainable.isdisjoint(s.results) for s in trace.steps]
        # Which steps the sweeps after the first one go over, with their place on the tape.
        self._geometric = [(n, s) for n, s in enumerate(trace.steps) if geometric[n]]
        self._trainable = [(n, s) for n, s in reversed([*enumerate(trace.steps)]) if trainable[n]]
        self._names = [name for number, name in trace.constants.items() if number in trace.trainable]
        self._found = self.present(model)
        self._owners = list({id(p): p for p in self._found}.values())
        places = {id(p): i for i, p in enumerate(self._owners)}
        self._places = [
            [places[id(p)] for p in s.block.parameters()] if s.block is not None else [] for s in trace.steps
        ]
        self._trained = [
            (number, places[id(get())])
            for number, get in self._constants.items()
            if number in trace.trainable
        ]

    def present(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters that the steps have now."""
        found = [p for step in self.trace.steps if step.block is not None for p in step.block.parameters()]
        return found + [operator.attrgetter(name)(model) for name in self._names]

    def are_of(self, model: nn.Module) -> bool:
        """Whether the model still has the parameters that it was traced with."""
        present = self.present(model)
        return len(present) == len(self._found) and all(map(operator.is_, present, self._found))

    def parameters(self) -> list[nn.Parameter]:
        """Of all steps, each once."""
        return self._owners

    def prepare(self, *, training: bool) -> Sweeps:
        """Compile what the sweeps need together, unless that was done before.

        Raises:
            CompilerError: when a kernel cannot be built.
        """
        if training in self._prepared:
            return self
        with self._preparing:  # threads that share a model compile its kernels once
            if training not in self._prepared:
                build_together(self.kernels(training=training))
                keep_freed_memory()
                self._prepared.add(training)
        return self

    def kernels(self, *, training: bool) -> Noted:
        """What the sweeps for a loss on energies and forces call, or those of a prediction."""
        with rehearsal() as noted:
            self._rehearse(training=training)
        return noted

    def _rehearse(self, *, training: bool) -> None:
        """Go through the sweeps for two atoms; what they would compute is not looked at."""
        dtype = next((step.call.dtype for step in self.trace.steps), torch.get_default_dtype())
        vectors = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], dtype=dtype)
        none = torch.zeros(2, dtype=torch.int64)
        graph = AtomGraph(
            positions=torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64),
            species=none,
            edge_index=torch.tensor([[0, 1], [1, 0]]),
            edge_shift=torch.zeros((2, 3), dtype=torch.float64),
            cell=torch.eye(3, dtype=torch.float64)[None],
            batch=none,
            num_graphs=1,
            electrons=torch.zeros((1, 2), dtype=torch.float64),
        )
        modules = [step.call.target for step in self.trace.steps if isinstance(step.call.target, nn.Module)]
        buffers = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            edges, geometry = edge_lists(graph.edge_index, 2), edge_geometry(dtype)
            geometry.vectors(graph, edges)
            tape = self.forward(graph, vectors)
            geometry.forces(self.adjoint(tape, torch.ones(2, dtype=dtype)), edges)
            if training:
                geometry.differences(graph.positions, edges)
                self.second(tape, self.tangent(tape, vectors), torch.ones_like(self.energies(tape)))
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)

    def forward(self, graph: AtomGraph, vectors: Tensor) -> Tape:
        """First sweep."""
        trace = self.trace
        values: Values = [None] * trace.size
        values[trace.places["vectors"]] = vectors
        for name, field in zip(AtomGraph._fields, graph, strict=True):
            values[trace.places[name]] = field
        for number, get in self._constants.items():
            values[number] = get()
        saved: list[Any] = []
        for step, (fill_args, fill_kwargs) in zip(trace.steps, self._fills, strict=True):
            args, kwargs = fill_args(values), fill_kwargs(values)
            if step.block is None:
                out = step.call.invoke(args, kwargs)
                saved.append(None)
            else:
                out, kept = step.block.forward(*args, **kwargs)
                saved.append(kept)
            put(values, step.results, out)
        return Tape(values, saved)

    def energies(self, tape: Tape) -> Tensor:
        """(N,) what the first sweep is for."""
        found: Tensor = tape.values[self.trace.result]
        return found

    def adjoint(self, tape: Tape, scale: Tensor) -> Tensor:
        """Second sweep: the gradient by the vectors. Cotangents stay on the tape."""
        trace = self.trace
        tape.cotangents = cotangents = _Cotangents(tape.values)
        cotangents.add(trace.result, scale)
        for place, step in reversed(self._geometric):
            g = cotangents.of(step.results)
            if g is None or step.block is None:
                continue
            for number, part in zip(step.inputs, step.block.adjoint(tape.saved[place], g), strict=True):
                if part is not None and number in trace.geometric:
                    cotangents.add(number, part, fresh=step.block.fresh)
        vectors = trace.places["vectors"]
        found = cotangents.of((vectors,))
        return torch.zeros_like(tape.values[vectors]) if found is None else found

    def tangent(self, tape: Tape, direction: Tensor | None) -> Values:
        """Third sweep: tangents of all values along a direction of the vectors; without one all are None."""
        trace = self.trace
        tangents: Values = [None] * trace.size
        if direction is None:
            return tangents
        tangents[trace.places["vectors"]] = direction
        for place, step in self._geometric:
            if step.block is not None and self._reached(tape, step):
                inputs = tuple([tangents[number] for number in step.inputs])
                if any(t is not None for t in inputs):
                    put(tangents, step.results, step.block.tangent(tape.saved[place], inputs))
        return tangents

    def second(self, tape: Tape, tangents: Values, h: Tensor) -> list[Tensor | None]:
        """Fourth sweep: the gradient of a loss by the parameters.

        Args:
            tape: after the first sweep and, where the loss has the gradient in it, the second.
            tangents: along the derivative of the loss by the gradient; all None without.
            h: (N,) derivative of the loss by the energies.
        """
        trace = self.trace
        gradients: list[Tensor | None] = [None] * len(self._owners)
        bars = _Cotangents(tape.values)
        bars.add(trace.result, h)
        for place, step in self._trainable:
            incoming = bars.of(step.results)
            if incoming is None or step.block is None:
                continue
            inputs, g = self._along(tape, tangents, step)
            by_input, by_parameter = step.block.second(tape.saved[place], inputs, g, incoming)
            for number, part in zip(step.inputs, by_input, strict=True):
                if part is not None and number in trace.trainable:
                    bars.add(number, part, fresh=step.block.fresh)
            for owner, part in zip(self._places[place], by_parameter, strict=True):
                _collect(gradients, owner, part)
        for number, owner in self._trained:
            _collect(gradients, owner, bars.of((number,)))
        return gradients

    def _along(self, tape: Tape, tangents: Values, step: Step) -> tuple[tuple[Tensor | None, ...], Any]:
        """A step's tangents and the forces' cotangent of its results; None where geometry does not enter."""
        inputs = tuple([tangents[number] for number in step.inputs])
        if tape.cotangents is None or all(t is None for t in inputs):
            return (None,) * len(inputs), None
        g = tape.cotangents.of(step.results)
        return (None,) * len(inputs) if g is None else inputs, g

    @staticmethod
    def _reached(tape: Tape, step: Step) -> bool:
        cotangents = tape.cotangents
        return cotangents is None or any(cotangents.sums[number] is not None for number in step.results)


def _collect(gradients: list[Tensor | None], place: int, part: Tensor | None) -> None:
    known = gradients[place]
    gradients[place] = part if known is None else known if part is None else known + part


def _getter(model: nn.Module, name: str) -> Callable[[], Any]:
    """Reads a parameter or buffer; that of the model itself, who must not be kept, once and for all."""
    path, _, attribute = name.rpartition(".")
    if not path:
        value = getattr(model, attribute)
        return lambda: value
    holder = model.get_submodule(path)
    return lambda: getattr(holder, attribute)


def filler(template: Any) -> Callable[[Values], Any]:
    """A function that puts values into the arguments of a call."""
    if isinstance(template, Value):
        return operator.itemgetter(template.number)
    if not numbers_in(template):
        return lambda _: template
    if isinstance(template, dict):
        items = {key: filler(value) for key, value in template.items()}
        return lambda values: {key: fill(values) for key, fill in items.items()}
    if isinstance(template, slice):
        parts = filler((template.start, template.stop, template.step))
        return lambda values: slice(*parts(values))
    if isinstance(template, (tuple, list)):
        fills = [filler(part) for part in template]
        make = getattr(template, "_make", list if isinstance(template, list) else tuple)
        return lambda values: make([fill(values) for fill in fills])
    raise TypeError(f"a value in {template!r} cannot be reached")


def put(values: Values, results: Sequence[int], out: Any) -> None:
    """Keep what a step returned under the numbers of its results."""
    if len(results) == 1:
        values[results[0]] = out
    else:
        for number, part in zip(results, out, strict=True):
            values[number] = part
