"""Sweeps of perceptrons."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pimlip_zoo.nn.kernels.mlp import CpuMLP, MLPSweep, cpu_mlp
from pimlip_zoo.nn.mlp import ScalarMLP
from pimlip_zoo.nn.sweeps.block import Block, Call, NotCovered, Tensors, blocks, listed

__all__ = ["MLPBlock"]

_FORWARD, _ADJOINT, _TANGENT = MLPSweep(0), MLPSweep(1, True), MLPSweep(2, wants_cotangent=True)


@blocks(ScalarMLP)
class MLPBlock(Block):
    """x -> MLP(x); every sweep computes the layers between again."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.module: ScalarMLP = call.target
        if self.module.form is None:
            raise NotCovered
        self.form = self.module.form
        # An input that no parameter enters needs no derivative in the last sweep.
        into = bool(call.trainable) and call.trainable[0]
        self._plain = MLPSweep(1, into, True)
        self._second = MLPSweep(2, into, True, adds=True)

    @property
    def kernels(self) -> CpuMLP:
        """Compiled when asked for."""
        return cpu_mlp(self.form, self.call.dtype)

    def prepare(self, *, training: bool) -> Mapping[Hashable, Callable[[], None]]:
        wanted = [_FORWARD, _ADJOINT, *((_TANGENT, self._second) if training else ())]
        return {(self.form, kernel): partial(self._build, kernel) for kernel in wanted}

    def _build(self, kernel: Hashable) -> None:
        self.kernels.library.build(kernel)

    def parameters(self) -> Sequence[nn.Parameter]:
        return listed(self.module.weights)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        x = args[0].contiguous()
        flat = torch.cat([weight.reshape(-1) for weight in listed(self.module.weights)])
        return self.kernels.run(_FORWARD, x, flat)[0], (x, flat)

    def adjoint(self, saved: Any, g: Tensor) -> Tensors:
        x, flat = saved
        return (self.kernels.run(_ADJOINT, x, flat, g)[0],)

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        x, flat = saved
        return self.kernels.run(_TANGENT, x, flat, v=tangents[0])[2]

    def second(self, saved: Any, tangents: Tensors, g: Any, h: Any) -> tuple[Tensors, Tensors]:
        x, flat = saved
        if g is None:
            into, flat, _ = self.kernels.run(self._plain, x, flat, h)
        else:
            into, flat, _ = self.kernels.run(self._second, x, flat, g, tangents[0], h)
        assert flat is not None
        weights = listed(self.module.weights)
        parts = flat.split([weight.numel() for weight in weights])
        return (into,), tuple(part.view_as(weight) for part, weight in zip(parts, weights, strict=True))
