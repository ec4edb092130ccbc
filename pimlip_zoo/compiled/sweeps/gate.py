"""Sweeps of the gated nonlinearity."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pimlip_zoo.compiled.kernels import gate as kernels
from pimlip_zoo.compiled.sweeps.block import Block, Call, NotCovered, Tensors, blocks
from pimlip_zoo.nn.gate import Gate

__all__ = ["GateBlock"]


@blocks(Gate)
class GateBlock(Block):
    """x -> gated x."""

    fresh = True

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        module: Gate = call.target
        if module.form is None:
            raise NotCovered
        self.form = module.form

    def _kernels(self, channels: int) -> kernels.CpuGate:
        return kernels.cpu_gate(self.form, channels, self.call.dtype)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        x = args[0].contiguous()
        op = self._kernels(int(x.shape[2]))
        return op.run(kernels.FORWARD, x), (op, x)

    def adjoint(self, saved: Any, g: Tensor) -> Tensors:
        op, x = saved
        return (op.run(kernels.ADJOINT, x, g=g.contiguous()),)

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        op, x = saved
        assert tangents[0] is not None
        return op.run(kernels.TANGENT, x, t=tangents[0].contiguous())

    def second(self, saved: Any, tangents: Tensors, g: Any, h: Tensor) -> tuple[Tensors, Tensors]:
        op, x = saved
        if g is None:
            return (op.run(kernels.PLAIN, x, h=h),), ()
        return (op.run(kernels.SECOND, x, t=tangents[0], g=g, h=h),), ()
