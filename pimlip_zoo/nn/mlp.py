"""Multilayer perceptrons on scalars, and activations of unit second moment."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pimlip_zoo.compiled.kernels import MLPForm, perceptron
from pimlip_zoo.compiled.kernels.mlp import CpuMLP, PerceptronOperation, cpu_mlp
from pimlip_zoo.compiled.sweeps.block import Call, NotCovered, Tensors, blocks, joined, listed, parted
from pimlip_zoo.compiled.sweeps.operation import Bound, OperationBlock
from pimlip_zoo.compiled.sweeps.trace import Trace
from pimlip_zoo.errors import InputError

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}
ACTIVATIONS = tuple(_ACTIVATIONS)
"""Names that :func:`activation` knows."""


def activation(name: str) -> nn.Module:
    """The activation of that name.

    Raises:
        InputError: for an unknown one.
    """
    if name not in _ACTIVATIONS:
        raise InputError(
            f"no activation is called {name!r}", key="nonlinearity", hint=f"known: {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]()


@cache
def _second_moment_constant(name: str) -> float:
    if name == "identity":  # exactly one, and e3nn, which draws random numbers for it, is off by 6e-4
        return 1.0
    from e3nn.math import normalize2mom

    return float(normalize2mom(activation(name), dtype=torch.float64).cst)


def num_weights(sizes: Sequence[int]) -> int:
    """How many weights a :class:`ScalarMLP` of these sizes has.

    >>> num_weights((8, 64, 32))
    2560
    """
    return sum(before * after for before, after in itertools.pairwise(sizes))


class ScaledActivation(nn.Module):
    """An activation divided by the root of its second moment under a normal distribution, as e3nn does.

    Args:
        name: silu, tanh, ...
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = activation(name)
        self.constant = _second_moment_constant(name)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return self.function(x) * self.constant


class ScalarMLP(nn.Module):
    """Linear layers without bias, an activation between them; weights of unit variance, scaled by the fan-in.

    Args:
        sizes: widths of input, hidden layers and output.
        nonlinearity: activation between the layers.
        gain: factor of every layer but the first, sqrt(2) to make up for an activation that is not normalised.
        normalized: use activations of unit second moment (:class:`ScaledActivation`).
    """

    weights_are_maps = True

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        nonlinearity: str = "silu",
        gain: float = math.sqrt(2.0),
        normalized: bool = False,
    ) -> None:
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise InputError(f"an MLP of widths {list(sizes)} cannot be built", hint="give widths >= 1")
        self.sizes = tuple(int(size) for size in sizes)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(a, b).uniform_(-math.sqrt(3.0), math.sqrt(3.0)))
            for a, b in zip(self.sizes[:-1], self.sizes[1:], strict=True)
        )
        self.scales = [
            (1.0 if layer == 0 else gain) / math.sqrt(width) for layer, width in enumerate(self.sizes[:-1])
        ]
        self.act = ScaledActivation(nonlinearity) if normalized else activation(nonlinearity)
        gain = _second_moment_constant(nonlinearity) if normalized else 1.0
        self.form = MLPForm(self.sizes, tuple(self.scales), gain) if nonlinearity == "silu" else None

    def forward(self, x: Tensor) -> Tensor:
        """(rows, sizes[0]) -> (rows, sizes[-1]), by the backend that ``compiled.kernels`` selects."""
        # TorchScript parses type comments and takes this one only at the very end of its line.
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self.reference(x)
        else:  # noqa: RET505
            return perceptron(self.form, self.reference, x, list(self.weights))

    def reference(self, x: Tensor) -> Tensor:
        """The same in plain torch."""
        layer = 0
        for weight in self.weights:
            if layer > 0:
                x = self.act(x)
            x = torch.mm(x, weight * self.scales[layer])
            layer += 1  # noqa: SIM113  (TorchScript does not enumerate a ParameterList)
        return x


_WORTH_KEEPING = 80
"""Products that a number saves, from where on it is better kept than computed again."""


@blocks(ScalarMLP)
class MLPBlock(OperationBlock):
    """x -> MLP(x); every sweep computes the layers between again, but for what :func:`keep_slopes` says."""

    by_row = True

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
