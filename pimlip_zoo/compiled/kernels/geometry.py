"""Edge vectors from positions, and forces from the gradient by them, compiled."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.edges import EdgeLists
from pimlip_zoo.compiled.kernels.generate import Target, kernel_head, prelude
from pimlip_zoo.compiled.kernels.library import KernelLibrary
from pimlip_zoo.graph import AtomGraph

_PARALLEL = "#pragma omp parallel for num_threads(threads) if(threads > 1) schedule(static)"
_SOURCES = {
    "vectors": """
const double *r = (const double *)x0, *shift = (const double *)x1, *cells = (const double *)y0;
const int64_t *batch = (const int64_t *)y1;
{parallel}
for (int64_t e = 0; e < rows; e++) {{
  const double *a = r + 3 * row[e], *b = r + 3 * slot[e], *s = shift + 3 * e, *c = cells + 9 * batch[row[e]];
  for (int k = 0; k < 3; k++) out0[3 * e + k] = b[k] - a[k] + (s[0] * c[k] + s[1] * c[3 + k] + s[2] * c[6 + k]);
}}""",
    "forces": """
const int64_t *inward = (const int64_t *)y0; const int32_t *edge = (const int32_t *)y1;
double *out = (double *)out0;
{parallel}
for (int64_t i = 0; i < rows; i++) {{
  double sum[3] = {{0, 0, 0}};
  for (int64_t s = first[i]; s < first[i + 1]; s++)
    for (int k = 0; k < 3; k++) sum[k] += g0[3 * (slot ? slot[s] : s) + k];
  for (int64_t s = inward[i]; s < inward[i + 1]; s++)
    for (int k = 0; k < 3; k++) sum[k] -= g0[3 * (int64_t)edge[s] + k];
  for (int k = 0; k < 3; k++) out[3 * i + k] = sum[k];
}}""",
    "differences": """
const double *h = (const double *)x0;
{parallel}
for (int64_t e = 0; e < rows; e++)
  for (int k = 0; k < 3; k++) out0[3 * e + k] = h[3 * row[e] + k] - h[3 * slot[e] + k];""",
}


class EdgeGeometry(KernelLibrary):
    """The linear maps between what belongs to atoms, in float64, and to edges, in the dtype of a model.

    Args:
        dtype: of the edges: float32 or float64.
    """

    def source(self, kernel: Hashable, machine: Target) -> str:
        body = _SOURCES[str(kernel)].format(parallel=_PARALLEL)
        return "\n".join([*prelude(machine, []), *kernel_head(), body, "}", ""])

    def vectors(self, graph: AtomGraph, edges: EdgeLists) -> Tensor:
        """(E, 3) Å, as :func:`~pimlip_zoo.graph.edge_vectors`; those of opposite edges are exactly opposite."""
        places = (graph.positions, graph.edge_shift, graph.cell)
        positions, shift, cell = (t.to(torch.float64) for t in places)
        return self._edges("vectors", edges, (positions, shift, cell, graph.batch))

    def forces(self, gradient: Tensor, edges: EdgeLists) -> Tensor:
        """``F_i = sum_j (g_ij - g_ji)``: (E, 3) -> (N, 3) float64."""
        out = torch.empty((edges.num_nodes, 3), dtype=torch.float64)
        inward, _, edge = edges.by_neighbour
        self.call(
            "forces",
            rows=edges.num_nodes,
            work=3 * edges.num_edges,
            lists=edges.by_centre,
            operands=(None, None, inward, edge, None, None, gradient, None),
            results=(out, None, None),
        )
        return out

    def differences(self, values: Tensor, edges: EdgeLists) -> Tensor:
        """Its adjoint, ``h_i - h_j``: (N, 3) float64 -> (E, 3)."""
        return self._edges("differences", edges, (values, None, None, None))

    def _edges(self, kernel: str, edges: EdgeLists, operands: tuple[Tensor | None, ...]) -> Tensor:
        out = torch.empty((edges.num_edges, 3), dtype=self.dtype)
        self.call(
            kernel,
            rows=edges.num_edges,
            work=3 * edges.num_edges,
            lists=(None, edges.centre, edges.neighbour),
            operands=(*operands, None, None, None, None),
            results=(out, None, None),
        )
        return out


@cache
def edge_geometry(dtype: torch.dtype) -> EdgeGeometry:
    """The kernels for one dtype."""
    return EdgeGeometry(dtype)
