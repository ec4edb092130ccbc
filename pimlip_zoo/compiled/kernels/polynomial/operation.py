"""Polynomials differentiable to any order, whoever computes their sweeps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.bridge import Given, Operation, Tensors, Wanted, differentiable
from pimlip_zoo.compiled.kernels.polynomial.cpu import CpuPolynomial, PolynomialSweep
from pimlip_zoo.compiled.kernels.polynomial.gpu import TritonPolynomial

__all__ = ["PolynomialOperation", "Reference", "polynomial"]

Reference = Callable[[Tensor, Tensor, Tensor], Tensor]
PolynomialKernels = CpuPolynomial | TritonPolynomial
"""The sweeps of one form by one backend."""

_sweep = cache(PolynomialSweep)
"""One of each: what they are made for is asked for at every step."""


def polynomial(op: PolynomialKernels, reference: Reference, a: Tensor, q: Tensor, species: Tensor) -> Tensor:
    """(N, K_in, C), (S, T, C), (N,) -> (N, K_out, C), differentiable to any order."""
    out: Tensor = differentiable(PolynomialOperation(op, species, int(q.shape[0]), reference), a, q)
    return out


class PolynomialOperation(Operation):
    """Of (A, q).

    Args:
        kernels: of the form, by one backend.
        species: (N,).
        num_species: S.
        reference: the same in plain torch, for autograd.

    Raises:
        IndexError: when a species is not there.
    """

    parameters = (1,)

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

    def expect(self, wanted: Wanted) -> None:
        if wanted[1]:  # training: compile at once what forces and their derivatives will need
            self.kernels.prepare(
                _sweep(1, True, False),
                _sweep(1, True, True),
                _sweep(2, True, True, True),
            )

    def forward(self, *x: Tensor) -> Tensor:
        out = self.kernels.run(_sweep(0), self.row, *x)[0]
        assert out is not None
        return out

    def adjoint(self, x: Given, g: Given, wanted: Wanted) -> Tensors:
        return self.kernels.run(_sweep(1, wanted[0], wanted[1]), self.row, x[0], x[1], g[0])[:2]

    def second(
        self, x: Given, g: Tensors, h: Tensors, wanted: Wanted, more: Tensor | None = None
    ) -> Tensors | None:
        if h[1] is not None:
            return None
        kernel = _sweep(2, wanted[0], wanted[1], wanted[2], adds=more is not None)
        return self.kernels.run(kernel, self.row, x[0], x[1], g[0], h[0], more)

    def reference(self, *x: Tensor) -> Tensor:
        assert self._reference is not None
        return self._reference(x[0], x[1], self.species)
