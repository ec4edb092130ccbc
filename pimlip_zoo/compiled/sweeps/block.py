"""What a step of a model has to offer so that its four sweeps can be run without autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn


class Part(NamedTuple):
    """The cotangent of ``x[index]`` as one of x: zero elsewhere, which need not be written before parts are added."""

    g: Tensor
    index: Any
    """Of slices, numbers and None."""
    shape: torch.Size
    """Of x."""


Tensors = tuple[Tensor | None, ...]
Cotangents = tuple[Tensor | Part | None, ...]
Place = tuple[int, ...]
"""Number of an argument; in a list, that of the element, too."""


@dataclass(frozen=True)
class Call:
    """One operation of a traced model, as a block is made for it."""

    target: Any
    """The module or function that is called, or the name of the method."""
    args: tuple[Any, ...]
    """Its arguments; values of the trace stand as :class:`torch.fx.Node`."""
    kwargs: dict[str, Any]
    """Its arguments by name, with the same stand-ins."""
    active: tuple[Place, ...]
    """Which arguments, or elements of lists among them, are tensors that depend on geometry or parameters."""
    geometric: tuple[bool, ...]
    """Which of these depend on geometry."""
    trainable: tuple[bool, ...]
    """Which of these depend on parameters."""
    dtype: torch.dtype
    """Of the model."""

    def invoke(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the module or function returns, or the method of that name."""
        if isinstance(self.target, str):
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)


class Block:
    """The four sweeps of one step ``z = f(x; theta)`` of a model whose energy is differentiated by geometry.

    With ``g = dE/dz`` the forces' cotangent, ``v`` a direction of geometry, ``t = dx[v]`` the tangents along it and
    ``h`` the derivative of a loss ``L(E, dE/dr)`` by z, a training step is

    1. ``forward``:  ``z = f(x)``
    2. ``adjoint``:  ``dE/dx = J^T g``
    3. ``tangent``:  ``dz[v] = J t``, where ``v = dL/d(dE/dr)``
    4. ``second``:   ``dL/dx = J^T h + d<g, J t>/dx``, and the same by theta.

    Inputs, tangents and results are those of the active arguments, in their order; None stands for zero.
    A block with several outputs has ``outputs > 1`` and gets and returns tuples in place of z, g, h and dz.
    """

    outputs = 1
    fresh = False
    """Whether ``adjoint`` and ``second`` return cotangents that are new tensors, each for one argument, and kept by
    nobody: they are added to in place."""

    by_row = False
    """Whether each row of the result comes of that row of the argument alone."""
    shared: bool | None = None
    """Whether the first result has a row for each pair of opposite edges, for which it is equal, and not for each edge;
    None: it cannot have."""
    weighed_by: Place | None = None
    """The argument that may have a row for each pair of opposite edges."""

    def __init__(self, call: Call) -> None:
        self.call = call
        modules = call.target.modules() if isinstance(call.target, nn.Module) else ()
        # The dictionaries themselves: who replaces a parameter does it there, and asking modules takes long.
        self._holders = [module._parameters for module in modules if module._parameters]  # noqa: SLF001

    def parameters(self) -> Sequence[nn.Parameter]:
        """theta, in the order of ``second``'s results."""
        found = [p for held in self._holders for p in held.values() if p is not None]
        return tuple({id(p): p for p in found}.values()) if found else ()

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """(z, whatever the other sweeps need)."""
        raise NotImplementedError

    def adjoint(self, saved: Any, g: Any) -> Cotangents:
        """Cotangents of the active arguments."""
        raise NotImplementedError

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        """The tangent of z; at least one of the tangents is not None."""
        raise NotImplementedError

    def second(self, saved: Any, tangents: Tensors, g: Any, h: Any) -> tuple[Cotangents, Tensors]:
        """Derivatives of the loss by the active arguments and by the parameters.

        ``g`` is None where no geometry enters, and then all tangents are.
        """
        raise NotImplementedError


_Made = TypeVar("_Made", bound=type[Block])
_blocks: dict[Any, type[Block]] = {}


def blocks(*targets: Any) -> Callable[[_Made], _Made]:
    """Class decorator: this block does these modules (classes), functions or methods (names).

    A function of our own says that it is called, and is not gone into, by ``torch.overrides.handle_torch_function``.
    """

    def register(kind: _Made) -> _Made:
        for target in targets:
            _blocks[target] = kind
        return kind

    return register


def listed(parameters: nn.ParameterList) -> tuple[nn.Parameter, ...]:
    """The elements of a list."""
    # Its iterator makes each name again, at every step.
    return tuple(parameters._parameters.values())  # type: ignore[arg-type]  # noqa: SLF001


def joined(parameters: Sequence[Tensor]) -> Tensor:
    """Their numbers one after the other."""
    # As torch's own distributed training does; a cat of flat views takes three times as long for small ones.
    return torch._C._nn.flatten_dense_tensors(list(parameters))  # noqa: SLF001


def parted(numbers: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Numbers one after the other in the shapes of these."""
    # Likewise.
    return tuple(torch._C._nn.unflatten_dense_tensors(numbers, list(parameters)))  # noqa: SLF001


def is_block(module: nn.Module) -> bool:
    """Whether there is a block for this kind of module."""
    return registered(module) is not None


def registered(target: Any) -> type[Block] | None:
    """The kind of block that does a module, function or method, if there is one."""
    return _blocks.get(type(target) if isinstance(target, nn.Module) else target)


class NotCovered(Exception):  # noqa: N818  (no error: the fallback takes over)
    """Raised by a block's constructor for a variant of the call that it does not do."""
