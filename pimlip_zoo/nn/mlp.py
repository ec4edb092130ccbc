"""Multilayer perceptrons on scalars, and activations of unit second moment."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from pimlip_zoo.compiled.kernels import MLPForm, perceptron
from pimlip_zoo.errors import InputError

__all__ = ["ACTIVATIONS", "ScalarMLP", "ScaledActivation", "activation", "num_weights"]

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
