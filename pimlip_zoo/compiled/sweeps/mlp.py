"""Sweeps of perceptrons."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pimlip_zoo.compiled.kernels.mlp import CpuMLP, MLPSweep, cpu_mlp
from pimlip_zoo.compiled.sweeps.block import Block, Call, NotCovered, Tensors, blocks, joined, listed, parted
from pimlip_zoo.nn.mlp import ScalarMLP

if TYPE_CHECKING:
    from pimlip_zoo.compiled.sweeps.trace import Trace

__all__ = ["MLPBlock", "keep_slopes"]

_FORWARD, _ADJOINT, _TANGENT = MLPSweep(0), MLPSweep(1, True), MLPSweep(2, wants_cotangent=True)
_KEEPING, _KEPT = MLPSweep(0, keeps=True), MLPSweep(1, True, keeps=True)
_WORTH_KEEPING = 80
"""Products that a number saves, from where on it is better kept than computed again."""


@blocks(ScalarMLP)
class MLPBlock(Block):
    """x -> MLP(x); every sweep computes the layers between again, but for what :func:`keep_slopes` says."""

    fresh = True

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.module: ScalarMLP = call.target
        if self.module.form is None:
            raise NotCovered
        self.form = self.module.form
        self.keeps = False
        """Whether the first sweep leaves something for the second."""
        # An input that no parameter enters needs no derivative in the last sweep.
        into = bool(call.trainable) and call.trainable[0]
        self._plain = MLPSweep(1, into, True)
        self._second = MLPSweep(2, into, True, adds=True)

    @cached_property
    def kernels(self) -> CpuMLP:
        """Compiled when asked for."""
        return cpu_mlp(self.form, self.call.dtype)

    def parameters(self) -> Sequence[nn.Parameter]:
        return listed(self.module.weights)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        x = args[0].contiguous()
        flat = joined(listed(self.module.weights))
        if self.keeps:
            out, kept, _ = self.kernels.run(_KEEPING, x, flat)
            return out, (x, flat, kept)
        return self.kernels.run(_FORWARD, x, flat)[0], (x, flat, None)

    def adjoint(self, saved: Any, g: Tensor) -> Tensors:
        x, flat, kept = saved
        return (self.kernels.run(_ADJOINT if kept is None else _KEPT, x, flat, g, kept=kept)[0],)

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        x, flat, _ = saved
        return self.kernels.run(_TANGENT, x, flat, v=tangents[0])[2]

    def second(self, saved: Any, tangents: Tensors, g: Any, h: Any) -> tuple[Tensors, Tensors]:
        x, flat, _ = saved
        if g is None:
            into, flat, _ = self.kernels.run(self._plain, x, flat, h)
        else:
            into, flat, _ = self.kernels.run(self._second, x, flat, g, tangents[0], h)
        assert flat is not None
        return (into,), parted(flat, listed(self.module.weights))


def keep_slopes(trace: Trace) -> None:
    """Let wide perceptrons keep the derivatives of their activations from the first sweep for the second.

    That saves their lower layers where nothing but energies and gradients is computed, and takes memory.
    """
    for step in trace.steps:
        if isinstance(step.block, MLPBlock):
            hidden = step.block.form.sizes[1:-1]
            work = sum(a * b for a, b in itertools.pairwise(step.block.form.sizes[:-1]))
            step.block.keeps = bool(hidden) and work >= _WORTH_KEEPING * sum(hidden)
