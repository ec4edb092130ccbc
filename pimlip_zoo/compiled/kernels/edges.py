"""Where the edges of each atom lie: by centre, and by neighbour for derivatives by features."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache, cached_property

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from pimlip_zoo.compiled.kernels.build import CompilerError
from pimlip_zoo.compiled.kernels.generate import Target, kernel_head, prelude
from pimlip_zoo.compiled.kernels.library import KernelLibrary
from pimlip_zoo.compiled.kernels.watch import watchers


class EdgePairs:
    """Edges and their opposites, ``(i, j, shift)`` and ``(j, i, -shift)``: what is radial is equal for both.

    Args:
        edges: lists of the edges, sorted by centre.
        of_edge: (E,) int32, the pair of each edge.
        both: (2, P) int64, the first edge of each pair, and the second or -1.
    """

    def __init__(self, edges: EdgeLists, of_edge: Tensor, both: Tensor) -> None:
        self.of_edge, self.both = of_edge, both
        self.first = both[0].contiguous()
        each = torch.arange(edges.num_edges, dtype=torch.int32)
        first, row, _ = edges.by_centre
        self.by_centre = (first, row, torch.cat([each, of_edge]))
        self.edges = edges
        for watcher in watchers():
            watcher.made(self, None, edges.num_nodes)

    @property
    def num_pairs(self) -> int:
        """P."""
        return int(self.both.shape[1])

    @cached_property
    def by_neighbour(self) -> tuple[Tensor, Tensor, Tensor]:
        """As of :class:`EdgeLists`, the edges of all slots followed by their pairs."""
        first, row, slot = self.edges.by_neighbour
        assert slot is not None
        return first, row, torch.cat([slot, self.of_edge.index_select(0, slot)])


class EdgeLists:
    """Compressed rows of a batch's edges, in the integer types that the kernels read.

    Args:
        edge_index: (2, E) int64, centre and neighbour; or (E,), where only the centres matter.
        num_nodes: N.

    Raises:
        IndexError: when an edge names an atom that is not there.
    """

    def __init__(self, edge_index: Tensor, num_nodes: int) -> None:
        self.num_nodes = num_nodes
        edge_index = edge_index if edge_index.dim() == 2 else edge_index.expand(2, -1)
        self.num_edges = int(edge_index.shape[1])
        self.pairs: EdgePairs | None = None
        """Set by who has found them."""
        if not self._at_once(edge_index):
            if self.num_edges:
                _check(edge_index, num_nodes)
            self.centre = edge_index[0].to(torch.int32).contiguous()
            self.neighbour = edge_index[1].to(torch.int32).contiguous()
        for watcher in watchers():
            watcher.made(self, edge_index, num_nodes)

    def _at_once(self, edge_index: Tensor) -> bool:
        """All lists by one kernel; not without a compiler, while watched, or for edges that are unsorted or wrong."""
        if edge_index.device.type != "cpu" or watchers() or not _compiled():
            return False
        each = torch.zeros((4, self.num_edges), dtype=torch.int32)
        begin = torch.zeros((2, self.num_nodes + 1), dtype=torch.int64)
        found = torch.tensor([self.num_edges, 0])
        _lists.call(
            "lists",
            rows=self.num_nodes,
            work=0,
            lists=(edge_index.contiguous(), None, None),
            operands=(None,) * 8,
            results=(each, begin, found),
        )
        if int(found[1]):
            return False
        self.centre, self.neighbour, row, slot = each.unbind()
        self.by_centre = (begin[0], self.neighbour, None)
        self.by_neighbour = (begin[1], row, slot)
        return True

    @cached_property
    def by_centre(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(first slot of each atom, neighbour in each slot, edge in each slot; None: sorted already)."""
        if self.centre.device.type == "cpu" and bool((self.centre[1:] >= self.centre[:-1]).all()):
            return self._first(self.centre), self.neighbour, None
        # On a GPU the question whether they are sorted would wait for the answer.
        order = torch.argsort(self.centre, stable=True)
        return self._first(self.centre[order]), self.neighbour[order], order.to(torch.int32)

    @cached_property
    def by_neighbour(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(first slot of each atom, centre in each slot, edge in each slot)."""
        order = torch.argsort(self.neighbour, stable=True)
        return self._first(self.neighbour[order]), self.centre[order], order.to(torch.int32)

    @cached_property
    def every(self) -> Tensor:
        """(E,) the edges in their order, what slots hold where the list is sorted already."""
        return torch.arange(self.num_edges, dtype=torch.int32, device=self.centre.device)

    def _first(self, atom: Tensor) -> Tensor:
        """Where each atom begins in an ascending list."""
        every = torch.arange(self.num_nodes + 1, dtype=torch.int32, device=atom.device)
        return torch.searchsorted(atom, every)


_SOURCE = """
int32_t *centre = (int32_t *)out0;
int64_t *begin = (int64_t *)out1, *inward = begin + rows + 1, *found = (int64_t *)out2;
const int64_t edges = found[0], *i = first, *j = first + edges;
int32_t *neighbour = centre + edges, *from = neighbour + edges, *edge = from + edges;
for (int64_t e = 0; e < edges; e++) {
  if (i[e] < (e ? i[e - 1] : 0) || i[e] >= rows || j[e] < 0 || j[e] >= rows) { found[1] = 1; return; }
  centre[e] = i[e]; neighbour[e] = j[e];
  begin[i[e] + 1]++; inward[j[e] + 1]++;
}
for (int64_t n = 0; n < rows; n++) { begin[n + 1] += begin[n]; inward[n + 1] += inward[n]; }
/* Each beginning moves to the next one's place as its slots are filled. */
for (int64_t e = 0; e < edges; e++) { const int64_t s = inward[j[e]]++; from[s] = centre[e]; edge[s] = e; }
for (int64_t n = rows; n > 0; n--) inward[n] = inward[n - 1];
inward[0] = 0;"""


class _Lists(KernelLibrary):
    value = "lists"

    def source(self, kernel: Hashable, machine: Target) -> str:
        return "\n".join([*prelude(machine, []), *kernel_head(), _SOURCE, "}", ""])


_lists = _Lists(torch.float64)


@cache
def _compiled() -> bool:
    """Whether the kernel can be had."""
    try:
        _lists.prepared()
    except (CompilerError, OSError):
        return False
    return True


def _check(edge_index: Tensor, num_nodes: int) -> None:
    low, high = torch.aminmax(edge_index)
    if edge_index.device.type == "cpu":
        if int(low) < 0 or int(high) >= num_nodes:
            raise IndexError(f"an edge names atom {int(high) if low >= 0 else int(low)} of {num_nodes}")
    else:  # without waiting for the device, which no public assertion does
        torch._assert_async((low >= 0) & (high < num_nodes), f"an edge names an atom beyond {num_nodes}")  # noqa: SLF001


_known: WeakIdKeyDictionary = WeakIdKeyDictionary()


def edge_lists(edge_index: Tensor, num_nodes: int) -> EdgeLists:
    """The lists of this tensor; made once for as long as it lives unchanged."""
    known = _known.get(edge_index)
    # Its version counts writes in place, which nothing public tells: a graph's edges may be filled in again.
    if known is not None and known[0] == (edge_index._version, num_nodes):  # noqa: SLF001
        lists: EdgeLists = known[1]
        return lists
    lists = EdgeLists(edge_index, num_nodes)
    _known[edge_index] = ((edge_index._version, num_nodes), lists)  # noqa: SLF001
    return lists
