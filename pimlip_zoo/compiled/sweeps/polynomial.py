"""Polynomials of atomic features as steps of a model: MACE's contraction, Allegro's matrices."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.polynomial.cpu import (
    CpuPolynomial,
    PolynomialForm,
    PolynomialOperation,
    cpu_polynomial,
)
from pimlip_zoo.compiled.sweeps.block import Call, NotCovered, Tensors, blocks
from pimlip_zoo.compiled.sweeps.operation import Bound, OperationBlock
from pimlip_zoo.nn.contraction import CentreMatrices
from pimlip_zoo.nn.symmetric_contraction import SymmetricContraction

__all__ = ["ContractionBlock", "MatricesBlock"]


class PolynomialBlock(OperationBlock):
    """Polynomials of the first argument, with coefficients that are linear in weights."""

    form: PolynomialForm
    channels: int

    @cached_property
    def kernels(self) -> CpuPolynomial:
        """Compiled when asked for."""
        return cpu_polynomial(self.form, self.channels, self.call.dtype)

    def bound(self, x: Tensor, coefficients: Tensor, species: Tensor) -> Bound:
        """With coefficients (S, T, C)."""
        return PolynomialOperation(self.kernels, species, int(coefficients.shape[0])), (x, coefficients)


@blocks(SymmetricContraction)
class ContractionBlock(PolynomialBlock):
    """(x, species) -> MACE's symmetric contraction."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        module: SymmetricContraction = call.target
        self.form, self.channels = module.form, int(module.weights.shape[2])
        if len(call.active) != 1 or not self.form.terms:
            raise NotCovered

    def bind(self, *args: Any) -> Bound:
        x, species = args
        return self.bound(x, self.call.target.coefficients(), species)

    def by_parameter(self, saved: Any, found: Tensors) -> Tensors:
        coefficients = found[1]
        assert coefficients is not None
        return (torch.matmul(self.call.target.table(coefficients.dtype).T, coefficients),)


@blocks(CentreMatrices)
class MatricesBlock(PolynomialBlock):
    """(environment, weights) -> Allegro's matrices; the weights are the second active argument."""

    operands = (0, 1)

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        module: CentreMatrices = call.target
        self.form, self.channels = module.form, module.channels
        if call.active != ((0,), (1,)) or call.geometric[1]:
            raise NotCovered

    def bind(self, *args: Any) -> Bound:
        environment, weights = args
        one = torch.zeros(environment.shape[0], dtype=torch.int64)
        return self.bound(environment, self.call.target.coefficients(weights), one)

    def by_argument(self, saved: Any, found: Tensors) -> Tensors:
        coefficients = found[1]
        assert coefficients is not None
        module: CentreMatrices = self.call.target
        weights = torch.matmul(module.table(coefficients.dtype).T, coefficients[0])
        return found[0], weights if module.per_channel else weights.sum(1, keepdim=True)
