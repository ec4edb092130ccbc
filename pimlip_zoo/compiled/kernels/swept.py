"""Operations of features and parameters whose kernels are sweeps of three kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from torch import Tensor

from pimlip_zoo.compiled.kernels.bridge import Given, Operation, Tensors, Wanted


@dataclass(frozen=True)
class Sweep:
    """What a kernel computes: ``kind`` 0 the output, 1 gradients, 2 derivatives of the input's gradient."""

    kind: int
    wants_input: bool = False
    wants_weights: bool = False
    wants_cotangent: bool = False
    """In the second kind: the derivative by the cotangent, which is the output's tangent."""
    adds: bool = False
    """In the second kind: add the gradients that another cotangent gives."""


class SweptOperation(Operation):
    """Of (x, parameters), every derivative a sweep of the kernels."""

    parameters = (1,)
    sweep: ClassVar[Callable[..., Any]] = staticmethod(cache(Sweep))
    """One of each: what they are made for is asked for at every step."""
    kernels: Any

    def run(self, kernel: Any, *operands: Tensor | None) -> Tensors:
        """(output or gradient of x, gradient of the parameters, derivative by g), of x, the parameters, g, h, more."""
        found: Tensors = self.kernels.run(kernel, *operands)
        return found

    def expect(self, wanted: Wanted) -> None:
        if wanted[1]:  # training: compile at once what the steps after this one need
            inner = wanted[0]
            self.kernels.prepare(
                self.sweep(1, True), self.sweep(1, inner, True), self.sweep(2, inner, True, True)
            )

    def forward(self, *x: Tensor) -> Tensor:
        out = self.run(self.sweep(0), *x)[0]
        assert out is not None
        return out

    def adjoint(self, x: Given, g: Given, wanted: Wanted) -> Tensors:
        return self.run(self.sweep(1, wanted[0], wanted[1]), x[0], x[1], g[0])[:2]

    def second(
        self, x: Given, g: Tensors, h: Tensors, wanted: Wanted, more: Tensor | None = None
    ) -> Tensors | None:
        if h[1] is not None:
            return None
        kernel = self.sweep(2, wanted[0], wanted[1], wanted[2], adds=more is not None)
        return self.run(kernel, x[0], x[1], g[0], h[0], more)
