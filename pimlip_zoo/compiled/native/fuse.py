"""Takes copies out of a program: what is only moved is read where it is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pimlip_zoo.compiled.kernels.mlp import MLPSweep
from pimlip_zoo.compiled.native.program import KernelOp, ListsOp, Operation, Program, Size, TensorOp, View

_OPERANDS = ("first", "row", "slot", "x0", "x1", "y0", "y1", "w0", "w1", "g0", "g1")
"""A kernel's views, before its three results."""
_ZEROS = {"zeros", "new_zeros", "zeros_like"}


def without_copies(program: Program) -> Program:
    """The same program with fewer copies.

    - What is computed again from the same is computed once.
    - A perceptron reads what comes in from the arrays that were joined, or added to zeros, to make it.
    - An array that is copied and not used any more becomes the copy.
    - What nothing reads is not computed.
    """
    operations = _once(program.operations, program)
    operations = _read_in_pieces(_join_in_zeros(operations))
    operations = _take_over(_needed(operations, program), program)
    out = replace(program, operations=operations)
    used = {view.buffer for operation in operations for view in program.views(operation)}
    used |= {view.buffer for view in program.outputs.values()}
    out.buffers = {number: size for number, size in program.buffers.items() if number in used}
    out.constants = {number: value for number, value in program.constants.items() if number in used}
    return out


def written(operation: Operation) -> set[int]:
    """Buffers that an operation writes to."""
    if isinstance(operation, TensorOp):
        return {operation.out.buffer}
    if isinstance(operation, KernelOp):
        return {view.buffer for view in operation.views[-3:] if view is not None}
    return {view.buffer for view in operation.out.values()}


def _read(operation: Operation) -> set[int]:
    """Buffers that an operation reads from."""
    if isinstance(operation, KernelOp):
        return {view.buffer for view in operation.views[:-3] if view is not None}
    views = list(Program.views(operation))
    if isinstance(operation, TensorOp):
        views = [view for view in views if view is not operation.out]
    else:
        views = [view for view in views if view not in operation.out.values()]
    return {view.buffer for view in views}


def _needed(operations: Sequence[Operation], program: Program) -> list[Operation]:
    """Those whose results are read, in place or by another, or are the program's."""
    live = {view.buffer for view in program.outputs.values()}
    kept: list[Operation] = []
    for operation in reversed(operations):
        if live & written(operation):
            live |= _read(operation)
            kept.append(operation)
    return kept[::-1]


def _read_in_pieces(operations: list[Operation]) -> list[Operation]:
    """Perceptrons whose input was joined from up to four arrays read these."""
    out: list[Operation] = []
    joined: dict[View, tuple[View, ...]] = {}
    for operation in operations:
        changed = written(operation)
        for whole in [w for w, parts in joined.items() if changed & {w.buffer, *(p.buffer for p in parts)}]:
            del joined[whole]
        if isinstance(operation, TensorOp) and operation.name == "cat" and _by_columns(operation):
            parts = tuple(p for view in operation.args[0] for p in joined.get(view, (view,)))
            joined[operation.out] = parts
        out.append(_in_pieces(operation, joined))
    return out


def _by_columns(operation: TensorOp) -> bool:
    """Whether rows of numbers are joined to longer rows."""
    dim = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim", 0)
    views = (operation.out, *operation.args[0])
    plain = all(
        len(view.sizes) == 2
        and view.dtype == operation.out.dtype
        and view.strides[1] == Size(1)
        and view.strides[0].fixed
        and view.sizes[1].fixed
        for view in views
    )
    return dim in (1, -1) and plain and operation.out.contiguous


def _in_pieces(operation: Operation, joined: dict[View, tuple[View, ...]]) -> Operation:
    if not isinstance(operation, KernelOp) or not isinstance(operation.kernel, MLPSweep):
        return operation
    kernel = operation.kernel
    if kernel.pieces or (kernel.kind and not kernel.keeps):
        return operation
    places = [_OPERANDS.index(name) for name in kernel.incoming]
    whole = operation.views[places[0]]
    parts = None if whole is None else joined.get(whole)
    if parts is None or len(parts) > len(places):
        return operation
    views = list(operation.views)
    for place, part in zip(places, parts, strict=False):
        views[place] = part
    pieces = tuple((part.sizes[1].constant, part.strides[0].constant) for part in parts)
    return replace(operation, kernel=replace(kernel, pieces=pieces), views=tuple(views))


def _join_in_zeros(operations: Sequence[Operation]) -> list[Operation]:
    """Columns that are added to zeros, all of them once, are joined instead."""
    out: dict[int, Operation] = dict(enumerate(operations))
    for start, operation in enumerate(operations):
        if not isinstance(operation, TensorOp) or operation.name not in _ZEROS:
            continue
        parts = _added_columns(operations, start, operation.out)
        if parts:
            for place in (start, *parts):
                del out[place]
            columns = tuple(
                op.args[1] for _, op in sorted(parts.items(), key=lambda part: part[1].out.offset)
            )
            out[max(parts)] = TensorOp("cat", (columns, 1), {}, _as_rows(operation.out))
    return [operation for _, operation in sorted(out.items())]


def _added_columns(operations: Sequence[Operation], start: int, zeros: View) -> dict[int, TensorOp]:
    """What adds columns to zeros; empty unless these are all columns and nothing else happens in between."""
    if len(zeros.sizes) < 2 or not zeros.contiguous or not all(size.fixed for size in zeros.sizes[1:]):
        return {}
    width = math.prod(size.constant for size in zeros.sizes[1:])
    parts: dict[int, TensorOp] = {}
    sources: set[int] = set()
    for place in range(start + 1, len(operations)):
        operation = operations[place]
        if zeros.buffer in {view.buffer for view in Program.views(operation)}:
            if not isinstance(operation, TensorOp) or not _adds_column(operation, width):
                return {}
            parts[place] = operation
            sources.add(operation.args[1].buffer)
        elif sources & written(operation):
            return {}
        if sum(part.out.sizes[1].constant for part in parts.values()) >= width:
            break
    end = 0
    for out in sorted((part.out for part in parts.values()), key=lambda view: view.offset):
        if out.offset.constant != end:
            return {}
        end += out.sizes[1].constant
    return parts if end == width else {}


def _adds_column(operation: TensorOp, width: int) -> bool:
    """Whether rows are added to some columns of rows of this width."""
    if operation.name != "add" or operation.args[0] != operation.out or operation.kwargs.get("alpha", 1) != 1:
        return False
    out, added = operation.out, operation.args[1]
    return (
        isinstance(added, View)
        and (added.sizes, added.dtype) == (out.sizes, out.dtype)
        and added.buffer != out.buffer
        and len(out.sizes) == 2
        and out.strides == (Size(width), Size(1))
        and added.strides[0].fixed
        and added.strides[1] == Size(1)
        and out.sizes[1].fixed
        and out.offset.fixed
    )


def _as_rows(view: View) -> View:
    width = Size(math.prod(size.constant for size in view.sizes[1:]))
    return replace(view, sizes=(view.sizes[0], width), strides=(width, Size(1)))


def _take_over(operations: list[Operation], program: Program) -> list[Operation]:
    """An array that is copied whole and not used after that becomes the copy."""
    fixed = {view.buffer for view in (*program.inputs.values(), *program.outputs.values())} | set(
        program.constants
    )
    out: list[Operation] = []
    names: dict[int, int] = {}
    for place, each in enumerate(operations):
        operation = _renamed(each, names)
        later = {
            view.buffer for other in operations[place + 1 :] for view in program.views(_renamed(other, names))
        }
        if isinstance(operation, TensorOp) and operation.name == "clone":
            source, copy = operation.args[0], operation.out
            if (
                not {source.buffer, copy.buffer} & fixed
                and source.buffer not in later
                and source == replace(copy, buffer=source.buffer)
                and source.contiguous
                and program.buffers.get(source.buffer) == program.buffers.get(copy.buffer)
            ):
                names[copy.buffer] = source.buffer
                continue
        out.append(operation)
    return out


def _once(operations: list[Operation], program: Program) -> list[Operation]:
    """What is computed again from the same is computed once."""
    times = Counter(number for operation in operations for number in written(operation))
    kept_apart = {view.buffer for view in program.outputs.values()}
    known: dict[str, int] = {}
    reads: dict[str, set[int]] = {}
    out: list[Operation] = []
    names: dict[int, int] = {}
    for each in operations:
        operation = _renamed(each, names)
        changed = written(operation)
        for key in [key for key, sources in reads.items() if sources & changed]:
            del known[key], reads[key]
        if isinstance(operation, TensorOp):
            number = operation.out.buffer
            key = repr(replace(operation, out=replace(operation.out, buffer=-1)))
            if times[number] == 1 and number not in kept_apart:
                if key in known:
                    names[number] = known[key]
                    continue
                known[key], reads[key] = number, _read(operation)
        out.append(operation)
    return out


def _renamed(operation: Operation, names: dict[int, int]) -> Operation:
    """With other buffers in the place of some."""
    if not names or not {view.buffer for view in Program.views(operation)} & names.keys():
        return operation
    fields = {KernelOp: ("views",), ListsOp: ("source", "out", "given"), TensorOp: ("args", "kwargs", "out")}
    return replace(
        operation, **{name: _with_names(getattr(operation, name), names) for name in fields[type(operation)]}
    )


def _with_names(item: Any, names: dict[int, int]) -> Any:
    if isinstance(item, View):
        return replace(item, buffer=names.get(item.buffer, item.buffer))
    if isinstance(item, tuple) and not isinstance(item, Size):
        return tuple(_with_names(each, names) for each in item)
    if isinstance(item, dict):
        return {key: _with_names(each, names) for key, each in item.items()}
    return item
