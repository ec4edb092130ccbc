"""The convolution in plain torch: for any device, scripting, export, and to test against."""

from __future__ import annotations

import torch
from torch import Tensor

from pimlip_zoo.compiled.exact import ExactBuffers
from pimlip_zoo.compiled.kernels.form import TrilinearForm
from pimlip_zoo.compiled.kernels.sums import sum_by_centre

__all__ = ["ReferenceConvolution"]


class ReferenceConvolution(ExactBuffers):
    """Few large operations: coupling matrices from the harmonics, one batched product, one sum over edges.

    Args:
        form: what is computed.
    """

    def __init__(self, form: TrilinearForm) -> None:
        super().__init__()
        self._table: Tensor
        self._path: Tensor
        self._order: Tensor
        rows = [(path.index, k) for path in form.paths for k in path.outputs]
        place = {row: index for index, row in enumerate(rows)}
        table = torch.zeros(form.dim_edge, len(rows), form.dim_in, dtype=torch.float64)
        for path, a, b, k, value in form.terms:
            table[b, place[path, k], a] = value
        self.dim_out, self.dim_in, self.num_rows = form.dim_out, form.dim_in, len(rows)
        self.register_buffer("_table", table.flatten(1), persistent=False)
        self.register_buffer("_path", torch.tensor([p for p, _ in rows], dtype=torch.int64), persistent=False)
        self.register_buffer(
            "_order", torch.tensor([k for _, k in rows], dtype=torch.int64), persistent=False
        )

    def forward(self, x: Tensor, harmonics: Tensor, weights: Tensor, edge_index: Tensor) -> Tensor:
        """(N, K_in, C), (E, K_edge), (E, P, C), (2, E) -> (N, K_out, C)."""
        coupling = (harmonics @ self._table.to(x.dtype)).view(harmonics.shape[0], self.num_rows, self.dim_in)
        messages = torch.bmm(coupling, x[edge_index[1]]) * weights[:, self._path]
        sums = sum_by_centre(messages, edge_index[0], x.shape[0])
        out = torch.zeros((x.shape[0], self.dim_out, x.shape[2]), dtype=sums.dtype, device=x.device)
        return out.index_add(1, self._order, sums)
