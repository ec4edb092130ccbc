"""The gated nonlinearity as a step of a model."""

from __future__ import annotations

from typing import Any

from pimlip_zoo.compiled.kernels.gate import GateOperation, cpu_gate
from pimlip_zoo.compiled.sweeps.block import Call, NotCovered, blocks
from pimlip_zoo.compiled.sweeps.operation import Bound, OperationBlock
from pimlip_zoo.nn.gate import Gate

__all__ = ["GateBlock"]


@blocks(Gate)
class GateBlock(OperationBlock):
    """x -> gated x."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        module: Gate = call.target
        if module.form is None:
            raise NotCovered
        self.form = module.form

    def bind(self, *args: Any) -> Bound:
        x = args[0]
        return GateOperation(cpu_gate(self.form, int(x.shape[2]), self.call.dtype)), (x,)
