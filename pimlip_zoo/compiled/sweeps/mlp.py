"""Perceptrons as steps of a model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import nn

from pimlip_zoo.compiled.kernels.mlp import CpuMLP, PerceptronOperation, cpu_mlp
from pimlip_zoo.compiled.sweeps.block import Call, NotCovered, Tensors, blocks, joined, listed, parted
from pimlip_zoo.compiled.sweeps.operation import Bound, OperationBlock
from pimlip_zoo.nn.mlp import ScalarMLP

if TYPE_CHECKING:
    from pimlip_zoo.compiled.sweeps.trace import Trace

__all__ = ["MLPBlock", "keep_slopes"]

_WORTH_KEEPING = 80
"""Products that a number saves, from where on it is better kept than computed again."""


@blocks(ScalarMLP)
class MLPBlock(OperationBlock):
    """x -> MLP(x); every sweep computes the layers between again, but for what :func:`keep_slopes` says."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.module: ScalarMLP = call.target
        if self.module.form is None:
            raise NotCovered
        self.form = self.module.form
        self.keeps = False
        """Whether the first sweep leaves something for the second."""

    @cached_property
    def kernels(self) -> CpuMLP:
        """Compiled when asked for."""
        return cpu_mlp(self.form, self.call.dtype)

    def parameters(self) -> Sequence[nn.Parameter]:
        return listed(self.module.weights)

    def bind(self, *args: Any) -> Bound:
        weights = joined(listed(self.module.weights))
        return PerceptronOperation(self.kernels, keeps=self.keeps), (args[0], weights)

    def by_parameter(self, saved: Any, found: Tensors) -> Tensors:
        assert found[1] is not None
        return parted(found[1], listed(self.module.weights))


def keep_slopes(trace: Trace) -> None:
    """Let wide perceptrons keep the derivatives of their activations from the first sweep for the second.

    That saves their lower layers where nothing but energies and gradients is computed, and takes memory.
    """
    for step in trace.steps:
        if isinstance(step.block, MLPBlock):
            hidden = step.block.form.sizes[1:-1]
            work = sum(a * b for a, b in itertools.pairwise(step.block.form.sizes[:-1]))
            step.block.keeps = bool(hidden) and work >= _WORTH_KEEPING * sum(hidden)
