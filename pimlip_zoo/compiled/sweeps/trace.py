"""An architecture as a list of steps: traced once, then run without autograd."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pimlip_zoo.compiled.sweeps.block import Block, Call, Place, is_block
from pimlip_zoo.compiled.sweeps.fallback import block_for
from pimlip_zoo.compiled.sweeps.tracer import LocalTracer
from pimlip_zoo.graph import AtomGraph

_SHAPES = {"size", "new_zeros", "new_ones", "new_full", "dim", getattr, torch.zeros_like, torch.ones_like}
_COMPARISONS = {operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne}
_CONSTANT = _SHAPES | _COMPARISONS
"""Calls whose result does not depend on what a tensor holds, or has no derivative."""


@dataclass(frozen=True)
class Step:
    """One operation between numbered values."""

    block: Block | None
    """None: neither geometry nor parameters enter, the call is just made."""
    call: Call
    """What is called; places of values hold :class:`Value`."""
    inputs: tuple[int, ...]
    """Values of the active arguments."""
    results: tuple[int, ...]
    """Values that it makes."""


@dataclass(frozen=True)
class Value:
    """The place of a numbered value in the arguments of a call."""

    number: int


@dataclass(frozen=True)
class Trace:
    """The steps of one model in one precision, and what its values depend on."""

    steps: tuple[Step, ...]
    places: dict[str, int]
    """Values of the inputs: vectors and the fields of the graph."""
    constants: dict[int, str]
    """Values that are parameters or buffers, by their names in the model."""
    result: int
    """The value that is the atomic energies."""
    geometric: frozenset[int]
    """Values that depend on the vectors."""
    trainable: frozenset[int]
    """Values that depend on parameters."""
    size: int
    """Number of values."""


def values_in(step: Step) -> set[int]:
    """All values that a step reads, active or not."""
    return numbers_in((step.call.args, step.call.kwargs))


def numbers_in(arguments: Any) -> set[int]:
    """All values in the arguments of a call."""
    found: set[int] = set()
    stack: list[Any] = [arguments]
    while stack:
        item = stack.pop()
        if isinstance(item, Value):
            found.add(item.number)
        elif isinstance(item, dict):
            stack += item.values()
        elif isinstance(item, (tuple, list)):
            stack += item
        elif isinstance(item, slice):
            stack += (item.start, item.stop, item.step)
    return found


class _Root(nn.Module):
    """The model with the fields of its graph as arguments of their own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        vectors: Tensor,
        positions: Tensor,
        species: Tensor,
        edge_index: Tensor,
        edge_shift: Tensor,
        cell: Tensor,
        batch: Tensor,
        num_graphs: int,
        electrons: Tensor,
    ) -> Tensor:
        graph = AtomGraph(positions, species, edge_index, edge_shift, cell, batch, num_graphs, electrons)
        out: Tensor = self.model(graph, vectors)
        return out


def trace_model(model: nn.Module) -> Trace | None:
    """The steps of ``model(graph, vectors)``.

    Args:
        model: an architecture of one precision, in training or not: what its code asks of itself is asked once.

    Returns:
        None where nothing is gained, since no module is a block, or where the code depends on what tensors hold.
    """
    if not any(is_block(module) for module in model.modules()):
        return None
    root = _Root(model)
    try:
        graph = LocalTracer(is_block).trace(root)
    except (fx.proxy.TraceError, TypeError, RuntimeError, AttributeError, ValueError, NameError):
        return None
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return _Builder(root, graph).trace()


class _Builder:
    """Numbers the values of a traced graph and finds out what they depend on."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.root, self.graph = root, graph
        self.dtype = next((p.dtype for p in root.parameters()), torch.get_default_dtype())
        self.number: dict[fx.Node, int] = {}
        self.split: dict[fx.Node, tuple[int, ...]] = {}  # values of a block with several outputs
        self.geometric: set[int] = set()
        self.trainable: set[int] = set()
        self.constants: dict[int, str] = {}
        self.places: dict[str, int] = {}
        self.steps: list[Step] = []
        self.size = 0

    def trace(self) -> Trace | None:
        """Go through the nodes in order."""
        result = None
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.places[node.target] = self._new(node)
                if node.target == "vectors":
                    self.geometric.add(self.number[node])
            elif node.op == "get_attr":
                if not node.target.startswith("model."):
                    return None  # made while tracing: it would be another one in every call
                value = operator.attrgetter(node.target)(self.root)
                self.constants[self._new(node)] = node.target.removeprefix("model.")
                if isinstance(value, nn.Parameter):
                    self.trainable.add(self.number[node])
            elif node.op == "output":
                (result,) = node.args
            elif not self._takes_output(node) and not self._call(node):
                return None
        if not isinstance(result, fx.Node):
            return None
        return Trace(
            tuple(self.steps),
            self.places,
            self.constants,
            self.number[result],
            frozenset(self.geometric),
            frozenset(self.trainable),
            self.size,
        )

    def _new(self, node: fx.Node) -> int:
        self.number[node] = self.size
        self.size += 1
        return self.number[node]

    def _takes_output(self, node: fx.Node) -> bool:
        """Whether the node is one output of a block with several, which needs no step."""
        if node.target is operator.getitem and node.args[0] in self.split:
            self.number[node] = self.split[node.args[0]][node.args[1]]  # type: ignore[index]
            return True
        return False

    def _call(self, node: fx.Node) -> bool:
        target = self.root.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        active = [] if target in _CONSTANT else self._active(node)
        if active is None:
            return False
        inputs = tuple(self.number[value] for _, value in active)
        own = isinstance(target, nn.Module) and any(True for _ in target.parameters())
        call = Call(
            target,
            self._fill(node.args),
            self._fill(node.kwargs),
            active=tuple(place for place, _ in active),
            geometric=tuple(number in self.geometric for number in inputs),
            trainable=tuple(number in self.trainable for number in inputs),
            dtype=self.dtype,
        )
        block = block_for(call) if active or own else None
        if block is not None and block.outputs > 1:
            results = tuple(range(self.size, self.size + block.outputs))
            self.split[node] = results
            self.size += block.outputs
        else:
            results = (self._new(node),)
        if block is not None:
            if self.geometric & set(inputs):
                self.geometric.update(results)
            if own or self.trainable & set(inputs):
                self.trainable.update(results)
        self.steps.append(Step(block, call, inputs, results))
        return True

    def _active(self, node: fx.Node) -> list[tuple[Place, fx.Node]] | None:
        """Active arguments with their places; None where one stands in a place that blocks do not know."""
        found: list[tuple[Place, fx.Node]] = []
        for i, argument in enumerate(node.args):
            if isinstance(argument, fx.Node):
                found.append(((i,), argument))
            elif isinstance(argument, (list, tuple)) and not hasattr(argument, "_fields"):
                found += [((i, j), each) for j, each in enumerate(argument) if isinstance(each, fx.Node)]
        found = [(place, each) for place, each in found if self._is_active(each)]
        named = [each for each in node.all_input_nodes if self._is_active(each)]
        if {each for _, each in found} != set(named):
            return None
        return found

    def _is_active(self, node: fx.Node) -> bool:
        number = self.number.get(node)
        return number is not None and (number in self.geometric or number in self.trainable)

    def _fill(self, arguments: Any) -> Any:
        number: Any = lambda node: Value(self.number[node])  # noqa: E731
        return fx.map_arg(arguments, number)
