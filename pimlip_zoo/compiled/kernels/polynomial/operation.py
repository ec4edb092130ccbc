"""Polynomials differentiable to any order, whoever computes their sweeps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels import cueq
from pimlip_zoo.compiled.kernels.bridge import Tensors, differentiable
from pimlip_zoo.compiled.kernels.dispatch import compiled_operation
from pimlip_zoo.compiled.kernels.polynomial.cpu import CpuPolynomial, PolynomialForm, cpu_polynomial
from pimlip_zoo.compiled.kernels.polynomial.gpu import TritonPolynomial, triton_polynomial
from pimlip_zoo.compiled.kernels.swept import Sweep, SweptOperation

Reference = Callable[[Tensor, Tensor, Tensor], Tensor]
PolynomialKernels = CpuPolynomial | TritonPolynomial
"""The sweeps of one form by one backend."""


_CONTRACT = compiled_operation("contract", cpu=cpu_polynomial, triton=triton_polynomial, cueq=cueq.contract)


def contract(
    form: PolynomialForm,
    reference: Reference,
    x: Tensor,
    coefficients: Tensor,
    species: Tensor,
) -> Tensor:
    """Polynomials of each atom's features by the backend in force.

    Args:
        form: what is computed.
        reference: the same in plain torch.
        x: (N, K_in, C).
        coefficients: (S, T, C).
        species: (N,).

    Returns:
        (N, K_out, C).
    """
    backend = _CONTRACT.backend(x, coefficients, nothing=not form.terms)
    if backend == "cueq":
        return cueq.contract(form, x, coefficients, species)
    kernels = _CONTRACT.kernels(backend, form, int(x.shape[2]), x.dtype)
    if kernels is None:
        return reference(x, coefficients, species)
    return polynomial(kernels, reference, x.contiguous(), coefficients.contiguous(), species)


def polynomial(op: PolynomialKernels, reference: Reference, a: Tensor, q: Tensor, species: Tensor) -> Tensor:
    """(N, K_in, C), (S, T, C), (N,) -> (N, K_out, C), differentiable to any order."""
    out: Tensor = differentiable(PolynomialOperation(op, species, int(q.shape[0]), reference), a, q)
    return out


class PolynomialOperation(SweptOperation):
    """Of (A, q).

    Args:
        kernels: of the form, by one backend.
        species: (N,).
        num_species: S.
        reference: the same in plain torch, for autograd.

    Raises:
        IndexError: when a species is not there.
    """

    def __init__(
        self,
        kernels: PolynomialKernels,
        species: Tensor,
        num_species: int,
        reference: Reference | None = None,
    ) -> None:
        if species.device.type != "cpu":  # without waiting for the device, which no public assertion does
            known = ((species >= 0) & (species < num_species)).all()
            torch._assert_async(known, "a species that is not there")  # noqa: SLF001
        elif species.numel():
            low, high = torch.aminmax(species)
            if int(low) < 0 or int(high) >= num_species:
                raise IndexError(f"a species is not among the {num_species} that there are")
        self.kernels, self._reference, self.species = kernels, reference, species
        self.row = species.to(torch.int32)

    def run(self, kernel: Sweep, *operands: Tensor | None) -> Tensors:
        return super().run(kernel, self.row, *operands)

    def reference(self, *x: Tensor) -> Tensor:
        assert self._reference is not None
        return self._reference(x[0], x[1], self.species)
