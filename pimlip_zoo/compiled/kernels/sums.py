"""The sum over the neighbours of each atom, in torch or by torch-scatter.

torch-scatter is an extra (``pimlip-zoo[pyg]``), chosen with ``PIMLIP_ZOO_KERNELS=scatter`` or ``use_kernels``. Its
segmented sum has a derivative that autograd cannot differentiate again, which training on forces needs: here the sum
and its adjoint, the gathering of each centre's value, are each other's derivatives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from pimlip_zoo.compiled.kernels.dispatch import chosen_backend

__all__ = ["segment_sum", "sum_by_centre"]


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
    out: Tensor = _SegmentSum.apply(values, centre, ends)
    return out


class _SegmentSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, centre: Tensor, ends: Tensor) -> Tensor:
        from torch_scatter import segment_csr

        ctx.save_for_backward(centre, ends)
        total: Tensor = segment_csr(values.contiguous(), ends, reduce="sum")
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Gather.apply(gradients[0], *ctx.saved_tensors), None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, centre: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(centre, ends)
        return values.index_select(0, centre)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _SegmentSum.apply(gradients[0], *ctx.saved_tensors), None, None
