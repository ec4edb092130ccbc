"""Watches a model being evaluated on graphs of several sizes and writes down what it did.

Whatever the model is made of, an evaluation is a list of calls of compiled kernels and of operations of torch between
them. The list is the same for every graph, and all sizes in it are of the form ``a + b N + c E + d P``: recorded on
graphs with different numbers of atoms N, edges E and pairs of opposite edges P, it is a program for any graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Of every call of torch only a dispatch mode tells, and its arguments are trees; torch's notes on extending it say so.
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from pimlip_zoo.compiled.kernels.edges import EdgeLists, EdgePairs
from pimlip_zoo.compiled.kernels.watch import KernelCall, watched_by
from pimlip_zoo.compiled.native.fuse import without_copies
from pimlip_zoo.compiled.native.program import (
    INPUTS,
    OUTPUTS,
    KernelOp,
    ListsOp,
    Operation,
    Program,
    Size,
    TensorOp,
    View,
)
from pimlip_zoo.errors import InputError

Evaluate = Callable[..., tuple[Tensor, ...]]
"""(vectors, edge_index, species, is_local) -> energies (N,) and edge gradient (E, 3), float64."""

_SIZES = ((5, 26, 21), (8, 26, 21), (5, 32, 21), (5, 26, 23), (11, 50, 33))
"""Atoms, edges and pairs of the graphs: each but the last differs from the first in one, the last one checks."""
MEND = "use --format torchscript or aot"


@dataclass
class _Call:
    """One thing that happened."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reads: list[Tensor]
    writes: list[Tensor]
    event: Any = None
    """A kernel's call, or lists that were made."""


class _Recorder(TorchDispatchMode):
    """Everything that happens, in order. Tensors are kept, so that no storage is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        reads = _tensors((args, kwargs))
        # Only its schema, which has no public name, says what an operation writes to.
        written = [
            value
            for place, argument in zip(args, func._schema.arguments, strict=False)  # noqa: SLF001
            if argument.alias_info is not None and argument.alias_info.is_write
            for value in _tensors(place)
        ]
        known = {_storage(t) for t in reads}
        written += [t for t in _tensors(out) if _storage(t) not in known]
        name = func._schema.name.split("::")[1]  # noqa: SLF001
        self.calls.append(_Call(name, tuple(args), dict(kwargs), reads, written))
        return out

    def called(self, call: KernelCall) -> None:
        """A kernel was."""
        inputs = [t for t in (*call.lists, *call.operands) if t is not None]
        outputs = [t for t in call.results if t is not None]
        self.calls.append(_Call("kernel", (), {}, inputs, outputs, call))

    def made(self, lists: object, source: Tensor | None, rows: int) -> None:
        """Lists were."""
        reads = [] if source is None else [source]
        self.calls.append(_Call("lists", (source, rows), {}, reads, [], lists))


def record(evaluate: Evaluate, dtype: torch.dtype, *, cutoff: float, num_species: int) -> Program:
    """An evaluation as a program.

    Args:
        evaluate: what is recorded; it computes by compiled kernels and in float64 or ``dtype``.
        dtype: of the kernels.
        cutoff: Å, the graphs' edges are shorter.
        num_species: how many species there are.

    Raises:
        InputError: when it cannot be written as one.
    """
    samples = [_Sample(evaluate, cutoff, num_species, *sizes) for sizes in _SIZES]
    program = _Merge(samples).program()
    program.dtype, program.num_species = dtype, num_species
    return without_copies(program)


class _Sample:
    """One evaluation."""

    def __init__(
        self, evaluate: Evaluate, cutoff: float, num_species: int, atoms: int, edges: int, pairs: int
    ) -> None:
        random = torch.Generator().manual_seed(atoms + edges + pairs)
        direction = torch.randn((pairs, 3), generator=random, dtype=torch.float64)
        length = cutoff * (0.4 + 0.5 * torch.rand((pairs, 1), generator=random, dtype=torch.float64))
        vectors = direction / direction.norm(dim=1, keepdim=True) * length
        centre = (torch.arange(pairs) * atoms) // pairs
        step = torch.randint(1, atoms, (pairs,), generator=random)
        index = torch.stack([centre, (centre + step) % atoms])
        both = slice(0, edges - pairs)
        vectors, index = torch.cat([vectors, -vectors[both]]), torch.cat([index, index[:, both].flip(0)], 1)
        order = torch.argsort(index[0], stable=True)
        self.inputs = {
            "vectors": vectors[order],
            "edge_index": index[:, order].contiguous(),
            "species": torch.arange(atoms) % num_species,
            "is_local": torch.ones(atoms, dtype=torch.float64),
        }
        recorder = _Recorder()
        with torch.no_grad(), watched_by(recorder), recorder:
            self.outputs = evaluate(*self.inputs.values())
        self.calls = recorder.calls
        self.storages: dict[int, int] = {}
        self.by_number: list[Tensor] = []
        for tensor in self.inputs.values():
            self.number(tensor)
        self.lists = [self._lists(call) for call in self.calls]
        for call in self.calls:
            for tensor in (*call.reads, *call.writes):
                self.number(tensor)

    def number(self, tensor: Tensor) -> int:
        """Of a tensor's storage, in the order in which they appear."""
        key = _storage(tensor)
        if key not in self.storages:
            self.storages[key] = len(self.storages)
            self.by_number.append(tensor)
        return self.storages[key]

    def _lists(self, call: _Call) -> dict[str, Tensor]:
        if call.name != "lists":
            return {}
        found: dict[str, Tensor | None]
        made = call.event
        if isinstance(made, EdgePairs):
            found = {"of_edge": made.of_edge, "both": made.both, "slot_c": made.by_centre[2]}
            call.reads = [made.by_centre[0]]
            if "by_neighbour" in made.__dict__:
                slot = made.edges.by_neighbour[2]
                assert slot is not None
                found["slot_n"] = made.by_neighbour[2]
                call.reads.append(slot)
        elif isinstance(made, EdgeLists):
            found = {"centre": made.centre, "neighbour": made.neighbour}
            for name, key in (("by_centre", "c"), ("by_neighbour", "n")):
                if name in made.__dict__:
                    parts = zip(("first", "row", "slot"), made.__dict__[name], strict=True)
                    found.update({f"{part}_{key}": tensor for part, tensor in parts})
            if found.pop("slot_c", None) is not None:
                raise InputError("edges that are not sorted by centre have no native form", hint=MEND)
            found.pop("row_c", None)  # the neighbours themselves
        else:
            found = {"first": made.first, "order": made.order, "species": made.species}
        out = {name: tensor for name, tensor in found.items() if tensor is not None}
        call.writes = list(out.values())
        return out


class _Merge:
    """Several evaluations made one program."""

    def __init__(self, samples: Sequence[_Sample]) -> None:
        self.samples = samples
        self.first = samples[0]
        names = [call.name for call in self.first.calls]
        if any([call.name for call in sample.calls] != names for sample in samples):
            raise InputError("what the model does depends on the structure", key="format", hint=MEND)
        self.count = len(self.first.by_number)
        numbers = [[[s.number(t) for t in (*c.reads, *c.writes)] for c in s.calls] for s in samples]
        if any(each != numbers[0] for each in numbers):
            raise InputError("how the model uses memory depends on the structure", key="format", hint=MEND)
        self.reads = [{self.first.number(t) for t in c.reads} for c in self.first.calls]
        self.writes = [{self.first.number(t) for t in c.writes} for c in self.first.calls]
        self.of_lists = {
            self.first.number(t): (index, name)
            for index, lists in enumerate(self.first.lists)
            for name, t in lists.items()
        }

    def program(self) -> Program:
        """The operations that the outputs need; what depends on weights alone is a constant."""
        variable = self._variable()
        outputs = [self.first.number(t) for t in self.first.outputs]
        live, kept = set(outputs), []
        for index in reversed(range(len(self.first.calls))):
            call = self.first.calls[index]
            writes = self.writes[index] & live & variable
            if not writes or (call.name != "lists" and writes <= self.of_lists.keys()):
                continue
            live |= self.reads[index]
            kept.append(index)
        self.tiles = {index: n for n, index in enumerate(i for i in reversed(kept) if self.first.lists[i])}
        operations = [op for index in reversed(kept) if (op := self._operation(index, live)) is not None]
        program = Program(
            torch.float32,
            operations,
            {},
            {n: self._content(n) for n in live - variable},
            {name: self._view([s.inputs[name] for s in self.samples]) for name in INPUTS},
            {
                name: self._view([s.outputs[place] for s in self.samples])
                for place, name in enumerate(OUTPUTS)
            },
        )
        for operation in operations:
            # Kernels may write, too, what nothing reads.
            for view in program.views(operation):
                if view.buffer in variable and view.buffer not in self.of_lists:
                    program.buffers[view.buffer] = self._bytes(view.buffer)
            if isinstance(operation, ListsOp):
                sizes = _list_sizes(operation)
                program.buffers.update({view.buffer: sizes[name] for name, view in operation.out.items()})
        return program

    def _variable(self) -> set[int]:
        """Storages that depend on the structure."""
        variable = {self.first.number(t) for t in self.first.inputs.values()} | self.of_lists.keys()
        shapes = list(
            zip(*([t.untyped_storage().nbytes() for t in s.by_number] for s in self.samples), strict=True)
        )
        variable |= {n for n, sizes in enumerate(shapes) if len(set(sizes)) > 1}
        while True:
            before = len(variable)
            for reads, writes in zip(self.reads, self.writes, strict=True):
                if (reads | writes) & variable:
                    variable |= writes
            if len(variable) == before:
                return variable

    def _operation(self, index: int, live: set[int]) -> Operation | None:
        calls = [sample.calls[index] for sample in self.samples]
        if calls[0].name == "kernel":
            return self._kernel([call.event for call in calls])
        if calls[0].name == "lists":
            return self._lists(index, calls, live)
        out = [call.writes[0] for call in calls]
        if calls[0].name.startswith("empty") or calls[0].name == "new_empty":
            return None
        args = self._fill([call.args for call in calls])
        if calls[0].name == "copy_" and args[0] == args[1]:  # what Python does after `x[i] += y`
            return None
        kwargs = self._fill([call.kwargs for call in calls])
        return TensorOp(calls[0].name.strip("_"), args, kwargs, self._view(out))

    def _kernel(self, events: list[KernelCall]) -> KernelOp:
        first = events[0]
        columns = list(zip(*((*e.lists, *e.operands, *e.results) for e in events), strict=True))
        views = tuple(None if column[0] is None else self._view(list(column)) for column in columns)
        tiles = self.of_lists.get(self.first.number(first.lists[0])) if first.lists[0] is not None else None
        rows: Size | int = (
            self.tiles[tiles[0]]
            if tiles is not None and tiles[1] == "first"
            else self._fit([e.rows for e in events])
        )
        work = None if first.work is None else self._fit([e.work or 0 for e in events])
        return KernelOp(first.library, first.kernel, rows, work, views)

    def _lists(self, index: int, calls: list[_Call], live: set[int]) -> ListsOp:
        names = [name for name, t in self.first.lists[index].items() if self.first.number(t) in live]
        out = {
            name: View(self.first.number(self.first.lists[index][name]), torch.int32, (), (), Size(0))
            for name in names
        }
        kinds = {EdgeLists: "edges", EdgePairs: "pairs"}
        kind = kinds.get(type(calls[0].event), "tiles")
        source = None if calls[0].args[0] is None else self._view([call.args[0] for call in calls])
        given = {
            self.of_lists[number][1]: self._view([tensor])
            for tensor in (calls[0].reads if kind == "pairs" else [])
            if (number := self.first.number(tensor)) in self.of_lists
        }
        rows = self._fit([call.args[1] for call in calls])
        return ListsOp(kind, self.tiles[index], source, rows, out, given)

    def _fill(self, values: list[Any]) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            return self._view(values)
        if isinstance(first, dict):
            return {key: self._fill([value[key] for value in values]) for key in first}
        if isinstance(first, (list, tuple)):
            return tuple(self._fill(list(column)) for column in zip(*values, strict=True))
        if any(value != first for value in values) and all(isinstance(value, int) for value in values):
            return self._fit(values)
        if any(value != first for value in values):
            raise InputError("a number in the model depends on the structure", key="format", hint=MEND)
        return first

    def _view(self, tensors: Sequence[Tensor]) -> View:
        first = tensors[0]
        number = self.first.number(first)
        if self.of_lists.get(number, (0, "both"))[1] != "both":  # of a type and size of their own
            return View(number, first.dtype, (), (), Size(0))
        sizes = tuple(self._fit([int(t.shape[d]) for t in tensors]) for d in range(first.dim()))
        strides = tuple(
            Size(0) if size == Size(1) else self._fit([t.stride(d) for t in tensors])
            for d, size in enumerate(sizes)
        )
        return View(
            number, first.dtype, sizes, strides, self._fit([int(t.storage_offset()) for t in tensors])
        )

    def _bytes(self, number: int) -> Size:
        return self._fit([s.by_number[number].untyped_storage().nbytes() for s in self.samples]).bound

    def _content(self, number: int) -> Tensor:
        contents = [_flat(sample.by_number[number]) for sample in self.samples]
        if not all(torch.equal(contents[0], other) for other in contents[1:]):
            raise InputError("a constant of the model depends on the structure", key="format", hint=MEND)
        return contents[0].clone()

    def _fit(self, values: Sequence[int]) -> Size:
        """The size that is these for the samples."""
        base, *others = _SIZES
        factors, rests = [], []
        for k in range(3):
            factor, rest = divmod(values[k + 1] - values[0], others[k][k] - base[k])
            factors.append(factor)
            rests.append(rest)
        size = Size(values[0] - sum(f * n for f, n in zip(factors, base, strict=True)), *factors)
        checked = size.constant + sum(f * n for f, n in zip(factors, others[-1], strict=True))
        if any(rests) or checked != values[-1]:
            raise InputError(
                "a size in the model is not a sum of atoms, edges and pairs", key="format", hint=MEND
            )
        return size


def _list_sizes(operation: ListsOp) -> dict[str, Size]:
    """Bytes."""
    rows = operation.rows
    if operation.kind == "tiles":
        order = Size(*(4 * part for part in rows))
        return {
            "first": Size(8 * rows.constant + 1024, 8 * rows.atoms, 8 * rows.edges),
            "order": order,
            "species": order._replace(constant=order.constant + 1024),
        }
    if operation.kind == "pairs":
        each = Size(0, 0, 4)
        double = Size(0, 0, 8)
        return {"of_edge": each, "both": Size(0, 0, 16), "slot_c": double, "slot_n": double}
    assert operation.source is not None
    each = Size(*(4 * part for part in operation.source.sizes[-1]))
    first = Size(8 * rows.constant + 8, 8 * rows.atoms, 8 * rows.edges)
    return {
        "centre": each,
        "neighbour": each,
        "first_c": first,
        "first_n": first,
        "row_n": each,
        "slot_n": each,
    }


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map_only(Tensor, found.append, value)
    return found


def _storage(tensor: Tensor) -> int:
    # Which storage it is: the public address of one without numbers is nothing.
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001


def _flat(tensor: Tensor) -> Tensor:
    """All that is in a tensor's storage."""
    storage = tensor.detach().untyped_storage()
    out = torch.empty(0, dtype=tensor.dtype)
    return out.set_(storage)
