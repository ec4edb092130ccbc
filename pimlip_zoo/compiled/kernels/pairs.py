"""Finds the opposite of every edge, compiled."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.edges import EdgeLists, EdgePairs
from pimlip_zoo.compiled.kernels.generate import Target, kernel_head, prelude
from pimlip_zoo.compiled.kernels.library import KernelLibrary

_SOURCE = """
int32_t *of = (int32_t *)out0; int64_t *one = (int64_t *)out1, *two = one + first[rows], *count = (int64_t *)out2;
int64_t pairs = 0;
for (int64_t i = 0; i < rows; i++) {
  for (int64_t e = first[i]; e < first[i + 1]; e++) {
    if (of[e] >= 0) continue;
    const int64_t j = row[e];
    of[e] = pairs; one[pairs] = e; two[pairs] = -1;
    /* Edges of atoms before this one have their pairs already. */
    for (int64_t s = j == i ? e + 1 : first[j]; j >= i && s < first[j + 1]; s++) {
      if (row[s] == i && of[s] < 0 && x0[3 * s] == -x0[3 * e] && x0[3 * s + 1] == -x0[3 * e + 1]
          && x0[3 * s + 2] == -x0[3 * e + 2]) { of[s] = pairs; two[pairs] = s; break; }
    }
    pairs++;
  }
}
count[0] = pairs;"""


class _Pairs(KernelLibrary):
    value = "pairs"

    def source(self, kernel: Hashable, machine: Target) -> str:
        return "\n".join([*prelude(machine, []), *kernel_head(), _SOURCE, "}", ""])


_pairs = _Pairs(torch.float64)


def pair_up(edges: EdgeLists, shift: Tensor) -> EdgePairs | None:
    """The pairs of these edges, remembered with the lists.

    Args:
        edges: the lists.
        shift: (E, 3) float64 cell multiples.

    Returns:
        None where edges are not sorted by centre.

    Raises:
        CompilerError: when the kernel cannot be built.
    """
    if edges.pairs is None and edges.by_centre[2] is None:
        count = edges.num_edges
        of_edge = torch.full((count,), -1, dtype=torch.int32)
        both, found = torch.empty((2, count), dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        _pairs.call(
            "pairs",
            rows=edges.num_nodes,
            work=0,
            lists=edges.by_centre,
            operands=(shift.to(torch.float64), *(None,) * 7),
            results=(of_edge, both, found),
        )
        edges.pairs = EdgePairs(edges, of_edge, both[:, : int(found)].contiguous())
    return edges.pairs
