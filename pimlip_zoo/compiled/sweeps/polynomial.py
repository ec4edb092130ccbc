"""Sweeps of polynomials of atomic features: MACE's contraction, Allegro's matrices."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.polynomial.cpu import PolynomialForm, PolynomialSweep, cpu_polynomial
from pimlip_zoo.compiled.sweeps.block import Block, Call, NotCovered, Tensors, blocks
from pimlip_zoo.nn.contraction import CentreMatrices
from pimlip_zoo.nn.symmetric_contraction import SymmetricContraction

__all__ = ["ContractionBlock", "MatricesBlock"]

_FORWARD, _ADJOINT = PolynomialSweep(0), PolynomialSweep(1, True)
_TANGENT = PolynomialSweep(2, wants_cotangent=True)
_PLAIN, _SECOND = PolynomialSweep(1, True, True), PolynomialSweep(2, True, True, adds=True)


class PolynomialBlock(Block):
    """Polynomials of the first argument, with coefficients that are linear in weights."""

    fresh = True

    form: PolynomialForm
    channels: int

    @cached_property
    def kernels(self) -> Any:
        """Compiled when asked for."""
        return cpu_polynomial(self.form, self.channels, self.call.dtype)

    def run(self, x: Tensor, coefficients: Tensor, species: Tensor) -> tuple[Tensor, Any]:
        """The first sweep, with coefficients (S, T, C)."""
        if species.numel():
            low, high = torch.aminmax(species)
            if int(low) < 0 or int(high) >= coefficients.shape[0]:
                raise IndexError(f"a species is not among the {coefficients.shape[0]} that there are")
        x, coefficients, row = x.contiguous(), coefficients.contiguous(), species.to(torch.int32)
        return self.kernels.run(_FORWARD, row, x, coefficients)[0], (row, x, coefficients)

    def adjoint(self, saved: Any, g: Tensor) -> Tensors:
        into = self.kernels.run(_ADJOINT, *saved, g.contiguous())[0]
        return (into, *(None,) * (len(self.call.active) - 1))

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        t = tangents[0]
        assert t is not None
        return self.kernels.run(_TANGENT, *saved, h=t.contiguous())[2]

    def gradients(self, saved: Any, tangents: Tensors, g: Any, h: Tensor) -> tuple[Tensor, Tensor]:
        """The last sweep: derivatives by x and by the coefficients."""
        t = tangents[0]
        if g is None or t is None:
            into, coefficients, _ = self.kernels.run(_PLAIN, *saved, h.contiguous())
        else:
            into, coefficients, _ = self.kernels.run(
                _SECOND, *saved, g.contiguous(), t.contiguous(), h.contiguous()
            )
        return into, coefficients


@blocks(SymmetricContraction)
class ContractionBlock(PolynomialBlock):
    """(x, species) -> MACE's symmetric contraction."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        module: SymmetricContraction = call.target
        self.form, self.channels = module.form, int(module.weights.shape[2])
        if len(call.active) != 1 or not self.form.terms:
            raise NotCovered

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        x, species = args
        return self.run(x, self.call.target.coefficients(), species)

    def second(self, saved: Any, tangents: Tensors, g: Any, h: Any) -> tuple[Tensors, Tensors]:
        into, coefficients = self.gradients(saved, tangents, g, h)
        table = self.call.target.table(coefficients.dtype)
        return (into,), (torch.matmul(table.T, coefficients),)


@blocks(CentreMatrices)
class MatricesBlock(PolynomialBlock):
    """(environment, weights) -> Allegro's matrices; the weights are the second active argument."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        module: CentreMatrices = call.target
        self.form, self.channels = module.form, module.channels
        if call.active != ((0,), (1,)) or call.geometric[1]:
            raise NotCovered

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        environment, weights = args
        coefficients = self.call.target.coefficients(weights)
        one = torch.zeros(environment.shape[0], dtype=torch.int64)
        out, saved = self.run(environment, coefficients, one)
        return out, saved

    def second(self, saved: Any, tangents: Tensors, g: Any, h: Any) -> tuple[Tensors, Tensors]:
        into, coefficients = self.gradients(saved, tangents, g, h)
        module: CentreMatrices = self.call.target
        weights = torch.matmul(module.table(coefficients.dtype).T, coefficients[0])
        return (into, weights if module.per_channel else weights.sum(1, keepdim=True)), ()
