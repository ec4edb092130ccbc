"""What a native model does: operations on buffers whose sizes depend on the numbers of atoms and edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

INPUTS = {
    "vectors": torch.float64,
    "edge_index": torch.int64,
    "species": torch.int64,
    "is_local": torch.float64,
}
"""What an evaluation gets, in this order: (E, 3), (2, E), (N,), (N,)."""

OUTPUTS = ("energy", "gradient")
"""What it returns, float64: (N,), (E, 3)."""


class Size(NamedTuple):
    """``constant + atoms * N + edges * E + pairs * P``, with P pairs of an edge and its opposite."""

    constant: int
    atoms: int = 0
    edges: int = 0
    pairs: int = 0

    @property
    def text(self) -> str:
        """In C, where N, E and P are ``atoms``, ``edges`` and ``pairs``."""
        parts = [f"{self.atoms} * atoms"] if self.atoms else []
        parts += [f"{self.edges} * edges"] if self.edges else []
        parts += [f"{self.pairs} * pairs"] if self.pairs else []
        parts += [str(self.constant)] if self.constant or not parts else []
        return " + ".join(parts).replace("+ -", "- ")

    @property
    def fixed(self) -> bool:
        """Whether it is the same for every structure."""
        return not (self.atoms or self.edges or self.pairs)

    @property
    def bound(self) -> Size:
        """What it is at most, known before the pairs are: an edge without its opposite is a pair of its own."""
        return Size(self.constant, self.atoms, self.edges + self.pairs)


@dataclass(frozen=True)
class View:
    """A tensor in a buffer; sizes, strides and offset in elements."""

    buffer: int
    dtype: torch.dtype
    sizes: tuple[Size, ...]
    strides: tuple[Size, ...]
    offset: Size

    @property
    def contiguous(self) -> bool:
        """Whether elements follow one another in the order of the indices."""
        expected = Size(1)
        for size, stride in zip(reversed(self.sizes), reversed(self.strides), strict=True):
            if size == Size(1):
                continue
            if stride != expected:
                return False
            if expected.fixed:
                expected = Size(*(part * expected.constant for part in size))
            elif size.fixed:
                expected = Size(*(part * size.constant for part in expected))
            else:
                return False
        return True


@dataclass(frozen=True)
class TensorOp:
    """An operation of torch."""

    name: str
    """As in ``aten``, without overload and without the mark of those that work in place."""
    args: tuple[Any, ...]
    """Tensors are :class:`View`."""
    kwargs: dict[str, Any]
    out: View


@dataclass(frozen=True)
class KernelOp:
    """A call of a compiled kernel."""

    library: Any
    kernel: Any
    rows: Size | int
    """How many; an int: as many as this :class:`ListsOp` made tiles."""
    work: Size | None
    views: tuple[View | None, ...]
    """Three lists, eight operands, three results."""


@dataclass(frozen=True)
class ListsOp:
    """Lists of integers that are made for kernels, see ``EdgeLists`` and ``RowTiles``."""

    kind: str
    """edges, pairs or tiles."""
    number: int
    source: View | None
    """(2, E) int64 atoms of the edges; species of the rows."""
    rows: Size
    """Nodes of the edges; rows that are put into tiles."""
    out: dict[str, View]
    """Those that are used, by name."""
    given: dict[str, View] = field(default_factory=dict)
    """Other lists that they are made from: of pairs those of the edges, by name."""


Operation = TensorOp | KernelOp | ListsOp


@dataclass
class Program:
    """A model's energies and edge gradient."""

    dtype: torch.dtype
    operations: list[Operation]
    buffers: dict[int, Size]
    """Bytes of each."""
    constants: dict[int, Tensor]
    """Contents of buffers that are weights or follow from them, flat."""
    inputs: dict[str, View]
    outputs: dict[str, View]
    num_species: int = 0

    @staticmethod
    def views(operation: Operation) -> Sequence[View]:
        """All that an operation reads or writes."""
        if isinstance(operation, KernelOp):
            return [v for v in operation.views if v is not None]
        if isinstance(operation, ListsOp):
            source = [] if operation.source is None else [operation.source]
            return [*operation.out.values(), *operation.given.values(), *source]
        found: list[View] = [operation.out]
        stack: list[Any] = [*operation.args, *operation.kwargs.values()]
        while stack:
            item = stack.pop()
            if isinstance(item, View):
                found.append(item)
            elif isinstance(item, (list, tuple)):
                stack += item
        return found
