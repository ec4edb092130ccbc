"""Which buffers share memory: those that are not in use at the same time."""

from __future__ import annotations

from dataclasses import dataclass

from pimlip_zoo.compiled.native.program import Program, Size


@dataclass(frozen=True)
class Plan:
    """Pieces of memory, and which of them each buffer lies in."""

    pieces: tuple[Size, ...]
    """Bytes."""
    place: dict[int, int]


def plan_memory(program: Program) -> Plan:
    """Give every buffer a piece of memory from its first use to its last.

    A buffer takes the smallest free piece that is large enough for every structure, else it makes a free one of its
    kind (by atoms or by edges) larger.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for time, operation in enumerate(program.operations):
        for view in program.views(operation):
            first.setdefault(view.buffer, time)
            last[view.buffer] = time
    for view in program.outputs.values():
        last[view.buffer] = len(program.operations)
    own = [n for n in program.buffers if n not in {view.buffer for view in program.inputs.values()}]
    pieces: list[Size] = []
    place: dict[int, int] = {}
    busy: dict[int, int] = {}  # until when
    for buffer in sorted((n for n in own if n in first), key=first.__getitem__):
        size = program.buffers[buffer]
        free = [p for p in range(len(pieces)) if busy[p] < first[buffer] and _kind(pieces[p]) == _kind(size)]
        enough = [p for p in free if _covers(pieces[p], size)]
        if enough:
            chosen = min(enough, key=lambda p: pieces[p])
        elif free:
            chosen = max(free, key=lambda p: pieces[p])
            pieces[chosen] = Size(*map(max, pieces[chosen], size))
        else:
            chosen = len(pieces)
            pieces.append(size)
        busy[chosen], place[buffer] = last[buffer], chosen
    return Plan(tuple(pieces), place)


def _kind(size: Size) -> int:
    return 2 if size.edges or size.pairs else 1 if size.atoms else 0


def _covers(piece: Size, size: Size) -> bool:
    return all(a >= b for a, b in zip(piece, size, strict=True))
