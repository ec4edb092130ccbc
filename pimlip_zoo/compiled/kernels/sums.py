"""The sum over the neighbours of each atom, in torch or by torch-scatter.

torch-scatter is an extra (``pimlip-zoo[pyg]``), chosen with ``PIMLIP_ZOO_KERNELS=scatter`` or ``use_kernels``. Its
segmented sum has a derivative that autograd cannot differentiate again, which training on forces needs: here the sum
and its adjoint, the gathering of each centre's value, are each other's derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from pimlip_zoo.compiled.kernels.bridge import Given, Operation, Tensors, Wanted, differentiable
from pimlip_zoo.compiled.kernels.dispatch import chosen_backend


def sum_by_centre(values: Tensor, centre: Tensor, num_atoms: int) -> Tensor:
    """Add the values of edges at their centres.

    Args:
        values: (E, ...).
        centre: (E,) ascending.
        num_atoms: N.

    Returns:
        (N, ...), in the dtype of the values.
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        shape = [num_atoms] + list(values.shape[1:])  # noqa: RUF005  (TorchScript has no stars)
        out = torch.zeros(shape, dtype=values.dtype, device=values.device).index_add(0, centre, values)
    elif has_torch_function_unary(values):  # somebody traces, for whom this is one operation
        out = handle_torch_function(sum_by_centre, (values,), values, centre, num_atoms)
    elif chosen_backend() == "scatter":
        out = segment_sum(values, centre, num_atoms)
    else:
        out = values.new_zeros((num_atoms, *values.shape[1:])).index_add(0, centre, values)
    return out


def segment_sum(values: Tensor, centre: Tensor, num_atoms: int) -> Tensor:
    """:func:`sum_by_centre` by torch-scatter."""
    ends = torch.searchsorted(centre, torch.arange(num_atoms + 1, device=centre.device))
    out: Tensor = differentiable(_SegmentSum(centre, ends), values)
    return out


class _SegmentSum(Operation):
    """The sum of runs of values; its adjoint gathers the value of each run."""

    multilinear = True

    def __init__(self, centre: Tensor, ends: Tensor) -> None:
        self.centre, self.ends = centre, ends

    def forward(self, *x: Tensor) -> Tensor:
        from torch_scatter import segment_csr

        total: Tensor = segment_csr(x[0].contiguous(), self.ends, reduce="sum")
        return total

    def adjoint(self, x: Given, g: Given, wanted: Wanted) -> Tensors:
        return (g[0].index_select(0, self.centre),)

    def second(self, x: Given, g: Tensors, h: Tensors, wanted: Wanted, more: Tensor | None = None) -> Tensors:
        assert h[0] is not None
        return None, self.forward(h[0]) if wanted[1] else None
