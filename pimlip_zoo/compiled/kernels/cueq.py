"""The same forms as segmented polynomials of cuEquivariance, where that is installed.

cuEquivariance cuts the last axis of an operand into segments; its kernel ``uniform_1d`` wants segments that are as long
as there are channels, or one number. Features here are (rows, components, channels), channels last, so flattened they
are such an operand, a segment for each component, and the harmonics one of single numbers: nothing is converted. It
calls that layout ``ir_mul``; coefficients are the forms' own, so that weights mean the same in every backend.

On a CPU, or without ``cuequivariance_ops_torch``, its method ``naive`` computes in plain torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.convolution.form import TrilinearForm
from pimlip_zoo.compiled.kernels.polynomial.cpu import PolynomialForm
from pimlip_zoo.compiled.kernels.product.cpu import Entries

_OPERATORS = "cuequivariance_ops_torch"
Term = tuple[tuple[int, ...], float]


def convolve(
    form: TrilinearForm, x: Tensor, harmonics: Tensor, weights: Tensor, edge_index: Tensor
) -> Tensor:
    """(N, K_in, C), (E, K_edge), (E, P, C), (2, E) -> (N, K_out, C)."""
    module = _convolution(form, int(x.shape[2]), x.dtype, x.device)
    into = x.new_empty((x.shape[0], form.dim_out * x.shape[2]))
    inputs = [weights.flatten(1), x.flatten(1), harmonics]
    (out,) = module(inputs, {1: edge_index[1]}, {0: into}, {0: edge_index[0]})
    return out.view(x.shape[0], form.dim_out, x.shape[2])


def multiply_edges(
    entries: Entries, dim_in: int, dim_out: int, features: Tensor, matrices: Tensor, centre: Tensor
) -> Tensor:
    """(E, K_in, C), (N, R, C), (E,) -> (E, K_out, C)."""
    channels = int(features.shape[2])
    module = _product(entries, dim_in, dim_out, channels, features.dtype, features.device)
    (out,) = module([matrices.flatten(1), features.flatten(1)], {0: centre})
    return out.view(features.shape[0], dim_out, channels)


def contract(form: PolynomialForm, x: Tensor, coefficients: Tensor, species: Tensor) -> Tensor:
    """(N, K_in, C), (S, T, C), (N,) -> (N, K_out, C)."""
    module = _polynomial(form, int(x.shape[2]), x.dtype, x.device)
    (out,) = module([coefficients.flatten(1), x.flatten(1)], {0: species})
    return out.view(x.shape[0], form.dim_out, x.shape[2])


@cache
def _convolution(form: TrilinearForm, channels: int, dtype: torch.dtype, device: torch.device) -> Any:
    segments = (
        (form.num_paths, channels),
        (form.dim_in, channels),
        (form.dim_edge, 0),
        (form.dim_out, channels),
    )
    terms: list[Term] = [((path, a, b, k), value) for path, a, b, k, value in form.terms]
    return _module(segments, {(0, 1, 2): terms}, dtype, device)


@cache
def _product(
    entries: Entries, dim_in: int, dim_out: int, channels: int, dtype: torch.dtype, device: torch.device
) -> Any:
    segments = ((len(entries), channels), (dim_in, channels), (dim_out, channels))
    terms: list[Term] = [((row, a, k), 1.0) for row, (a, k) in enumerate(entries)]
    return _module(segments, {(0, 1): terms}, dtype, device)


@cache
def _polynomial(form: PolynomialForm, channels: int, dtype: torch.dtype, device: torch.device) -> Any:
    segments = ((len(form.terms), channels), (form.dim_in, channels), (form.dim_out, channels))
    by_order: dict[tuple[int, ...], list[Term]] = {}
    for t, (component, monomial) in enumerate(form.terms):
        inputs = (0, *(1 for _ in monomial))
        by_order.setdefault(inputs, []).append(((t, *monomial, component), 1.0))
    return _module(segments, by_order, dtype, device)


def _module(
    segments: Sequence[tuple[int, int]],
    products: dict[tuple[int, ...], list[Term]],
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """The sum of all terms, as a module on a device.

    Args:
        segments: (how many, how long; 0: single numbers) of each operand, the result last.
        products: for the operands that are multiplied, the segment of each and of the result, and a coefficient.
        dtype: of the operands.
        device: likewise.
    """
    import cuequivariance as cue
    import cuequivariance_torch as cuet
    import numpy as np

    last = len(segments) - 1
    operations = []
    operands: dict[int, Any] = {}
    for inputs, terms in products.items():
        places = (*inputs, last)
        product = cue.SegmentedTensorProduct.from_subscripts(
            ",".join("u" if segments[place][1] else "" for place in places)
        )
        for operand, place in enumerate(places):
            count, length = segments[place]
            product.add_segments(operand, [(length,) if length else ()] * count)
        for indices, value in terms:
            product.add_path(*indices, c=np.float64(value))
        operands.update(zip(places, product.operands, strict=True))
        operations.append((cue.Operation(places), product))
    everything = [operands[place] for place in range(len(segments))]
    polynomial = cue.SegmentedPolynomial(everything[:-1], everything[-1:], operations)
    method = "uniform_1d" if device.type == "cuda" and _has_operators() else "naive"
    return cuet.SegmentedPolynomial(polynomial, method=method, math_dtype=dtype).to(device)


def _has_operators() -> bool:
    return importlib.util.find_spec(_OPERATORS) is not None


def status() -> str:
    """What there is to say about cuEquivariance here; begins with ``available`` where it is installed."""
    if importlib.util.find_spec("cuequivariance_torch") is None:
        return "not available: not installed (pip install 'pimlip-zoo[cueq]')"
    from importlib.metadata import version

    found = f"available: cuEquivariance {version('cuequivariance-torch')}"
    if not torch.cuda.is_available():
        return f"{found}, without a GPU in plain torch: to test, not to compute"
    if not _has_operators():
        return f"{found}, without {_OPERATORS} in plain torch"
    return f"{found} on {torch.cuda.get_device_name()}"
