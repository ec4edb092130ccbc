"""The convolution in plain torch: for any device, scripting, export, and to test against."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pimlip_zoo.compiled.exact import ExactBuffers
from pimlip_zoo.compiled.kernels.convolution.form import TrilinearForm
from pimlip_zoo.compiled.kernels.sums import sum_by_centre


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


class ReferenceByWidth(nn.Module):
    """The same for components of different widths: those of one width together, as if there were no others.

    Args:
        form: what is computed.
    """

    def __init__(self, form: TrilinearForm) -> None:
        super().__init__()
        self.widths = [width for width, _ in form.by_width]
        self.parts = nn.ModuleList()
        rows: list[int] = []  # of the result, in the order in which the parts make them
        picked: list[tuple[list[int], list[int]]] = []
        for width, paths in form.by_width:
            inputs = sorted({a for path in paths for a in path.inputs})
            outputs = sorted({k for path in paths for k in path.outputs})
            terms = tuple(
                (number, inputs.index(a), b, outputs.index(k), value)
                for number, path in enumerate(paths)
                for a, b, k, value in path.terms
            )
            part = TrilinearForm(len(inputs), form.dim_edge, len(outputs), len(paths), terms)
            self.parts.append(ReferenceConvolution(part))
            picked.append(
                (
                    [form.rows_in[a] + n for a in inputs for n in range(width)],
                    [form.rows_path[path.index] + n for path in paths for n in range(width)],
                )
            )
            rows += [form.rows_out[k] + n for k in outputs for n in range(width)]
        self._rows_x = [len(of_x) for of_x, _ in picked]
        self._rows_w = [len(of_weights) for _, of_weights in picked]
        self._split_x = nn.Buffer(torch.tensor([r for x, _ in picked for r in x]), persistent=False)
        self._split_w = nn.Buffer(torch.tensor([r for _, w in picked for r in w]), persistent=False)
        self._order = nn.Buffer(torch.argsort(torch.tensor(rows)), persistent=False)

    def forward(self, x: Tensor, harmonics: Tensor, weights: Tensor, edge_index: Tensor) -> Tensor:
        """(N, rows of x, C), (E, K_edge), (E, rows of weights, C), (2, E) -> (N, rows of the result, C)."""
        atoms, edges, channels = x.shape[0], weights.shape[0], x.shape[2]
        found: list[Tensor] = []
        start_x, start_w, number = 0, 0, 0
        for part in self.parts:
            width, rows_x, rows_w = self.widths[number], self._rows_x[number], self._rows_w[number]
            of_x = x.index_select(1, self._split_x[start_x : start_x + rows_x])
            of_w = weights.index_select(1, self._split_w[start_w : start_w + rows_w])
            out = part(
                of_x.view(atoms, rows_x // width, width * channels),
                harmonics,
                of_w.view(edges, rows_w // width, width * channels),
                edge_index,
            )
            found.append(out.view(atoms, out.shape[1] * width, channels))
            start_x, start_w = start_x + rows_x, start_w + rows_w
            number += 1  # noqa: SIM113  (TorchScript does not enumerate a ModuleList)
        return torch.cat(found, dim=1).index_select(1, self._order)


def reference_convolution(form: TrilinearForm) -> ReferenceConvolution | ReferenceByWidth:
    """The module that computes a form in plain torch."""
    return ReferenceByWidth(form) if form.widths else ReferenceConvolution(form)
