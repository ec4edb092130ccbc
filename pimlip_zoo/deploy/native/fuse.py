"""Takes copies out of a program: what is only moved is read where it is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pimlip_zoo.deploy.native.program import KernelOp, ListsOp, Operation, Program, Size, TensorOp, View
from pimlip_zoo.nn.kernels.mlp import MLPSweep

__all__ = ["without_copies"]

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


def _join_in_zeros(operations: list[Operation]) -> list[Operation]:
    """Columns that are added to zeros, all of them once, are joined instead."""
    out = list(operations)
    for start, operation in enumerate(operations):
        if not isinstance(operation, TensorOp) or operation.name not in _ZEROS:
            continue
        parts = _added_columns(operations, start)
        if parts:
            out[start] = None
            *others, last = parts
            for place in others:
                out[place] = None
            columns = sorted((operations[place] for place in parts), key=lambda op: op.out.offset.constant)
            out[last] = TensorOp("cat", (tuple(op.args[1] for op in columns), 1), {}, _as_rows(operation.out))
    return [operation for operation in out if operation is not None]


def _added_columns(operations: Sequence[Operation], start: int) -> list[int]:
    """Where columns are added to zeros; empty unless these are all columns and nothing else happens in between."""
    zeros = operations[start].out  # type: ignore[union-attr]
    if len(zeros.sizes) < 2 or not zeros.contiguous or not all(size.fixed for size in zeros.sizes[1:]):
        return []
    width, parts, found = math.prod(size.constant for size in zeros.sizes[1:]), [], 0
    sources: set[int] = set()
    for place in range(start + 1, len(operations)):
        operation = operations[place]
        if zeros.buffer in {view.buffer for view in Program.views(operation)}:
            if not isinstance(operation, TensorOp) or not _adds_column(operation, width):
                return []
            parts.append(place)
            sources.add(operation.args[1].buffer)
            found += operation.out.sizes[1].constant
        elif sources & written(operation):
            return []
        if found >= width:
            break
    begins = sorted((operations[p].out.offset.constant, operations[p].out.sizes[1].constant) for p in parts)  # type: ignore[union-attr]
    end = 0
    for begin, count in begins:
        if begin != end:
            return []
        end += count
    return parts if end == width else []


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
    out = list(operations)
    for place, operation in enumerate(out):
        if not isinstance(operation, TensorOp) or operation.name != "clone":
            continue
        source, copy = operation.args[0], operation.out
        later = {view.buffer for each in out[place + 1 :] if each is not None for view in program.views(each)}
        if (
            {source.buffer, copy.buffer} & fixed
            or source.buffer in later
            or source != replace(copy, buffer=source.buffer)
            or not source.contiguous
            or program.buffers.get(source.buffer) != program.buffers.get(copy.buffer)
        ):
            continue
        out[place] = None
        for index in range(place + 1, len(out)):
            out[index] = _renamed(out[index], copy.buffer, source.buffer)
    return [operation for operation in out if operation is not None]


def _once(operations: list[Operation], program: Program) -> list[Operation]:
    """What is computed again from the same is computed once."""
    times = Counter(number for operation in operations for number in written(operation))
    kept_apart = {view.buffer for view in program.outputs.values()}
    known: dict[str, int] = {}
    reads: dict[str, set[int]] = {}
    out: list[Operation] = []
    names: dict[int, int] = {}
    for each in operations:
        operation = each
        for old, new in names.items():
            operation = _renamed(operation, old, new)
        changed = written(operation)
        for key in [key for key, sources in reads.items() if sources & changed]:
            del known[key], reads[key]
        if (
            isinstance(operation, TensorOp)
            and times[operation.out.buffer] == 1
            and operation.out.buffer not in kept_apart
        ):
            number = operation.out.buffer
            key = repr(replace(operation, out=replace(operation.out, buffer=-1)))
            if key in known:
                names[number] = known[key]
                continue
            known[key], reads[key] = number, _read(operation)
        out.append(operation)
    return out


def _renamed(operation: Any, old: int, new: int) -> Any:
    """With another buffer in the place of one."""
    if isinstance(operation, View):
        return replace(operation, buffer=new) if operation.buffer == old else operation
    if isinstance(operation, Size):
        return operation
    if isinstance(operation, tuple):
        return tuple(_renamed(each, old, new) for each in operation)
    if isinstance(operation, dict):
        return {key: _renamed(each, old, new) for key, each in operation.items()}
    if isinstance(operation, TensorOp):
        parts = (operation.args, operation.kwargs, operation.out)
        args, kwargs, out = (_renamed(part, old, new) for part in parts)
        return replace(operation, args=args, kwargs=kwargs, out=out)
    if isinstance(operation, KernelOp):
        return replace(operation, views=_renamed(operation.views, old, new))
    if isinstance(operation, ListsOp):
        parts = (operation.source, operation.out, operation.given)
        source, out, given = (_renamed(part, old, new) for part in parts)
        return replace(operation, source=source, out=out, given=given)
    return operation
