"""What kernels compute, said once; and from there to autograd.

An :class:`Operation` says what its kernels compute: the value, the gradient, and the derivative of the gradient, which
training on forces needs. The sweeps of a model are these three (``sweeps.operation``). For autograd, one pair of
functions makes every operation differentiable to any order: the gradient is a function that can be differentiated
itself. Where no kernel goes further, as for third derivatives, a multilinear operation is composed of its own value and
gradient with one operand replaced, and any other of its plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.scope import parameters_wanted

Tensors = tuple[Tensor | None, ...]
Given = Sequence[Tensor]
Wanted = Sequence[bool]


class Operation:
    """``z = f(x)`` of several tensors x, with everything bound that it is not differentiated by.

    With ``g`` the cotangents of z and ``h`` those of the gradient. What is not wanted is returned as None.
    """

    parameters: ClassVar[tuple[int, ...]] = ()
    """Which x come from parameters alone: their gradients are skipped where only derivatives by geometry count."""
    multilinear: ClassVar[bool] = False
    """Whether f is linear in each x; it then has one result, and needs no reference."""
    leaf: bool = False
    """Whether x, but for parameters, is geometry that only forces are derived from: ``scope.geometry_is_leaf``."""

    def expect(self, wanted: Wanted) -> None:
        """Derivatives by these x will be asked for: the kernels for them may be compiled together."""

    def forward(self, *x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """z: what the operation computes, without derivatives; subclasses have these methods."""
        raise NotImplementedError

    def adjoint(self, x: Given, g: Given, wanted: Wanted) -> Tensors:
        """``d<g, f> / dx``, one for each x."""
        raise NotImplementedError

    def second(
        self, x: Given, g: Tensors, h: Tensors, wanted: Wanted, more: Tensor | None = None
    ) -> Tensors | None:
        """``d(<h, adjoint> + <more, f>) / d(x, g)``, one for each x and each g; None where there is no kernel for it.

        The derivative by g is the tangent of f along h. Where nothing else is wanted, g may be None.
        With ``more``, a further cotangent of z, the first one, this is the whole last sweep of a training step.
        """
        raise NotImplementedError

    def reference(self, *x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Z in plain torch."""
        raise NotImplementedError


def differentiable(operation: Operation, *x: Tensor) -> Any:
    """z, with derivatives of any order by autograd."""
    return _Value.apply(operation, *x)


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operation: Operation, *x: Tensor) -> Any:
        ctx.operation, ctx.leaf = operation, operation.leaf
        ctx.save_for_backward(*x)
        if any(wanted := _wanted(operation, ctx.needs_input_grad[1:], x)):
            operation.expect(wanted)
        return operation.forward(*x)

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Tensors:
        x = ctx.saved_tensors
        wanted = tuple(
            want and (place not in ctx.operation.parameters or parameters_wanted())
            for place, want in enumerate(_wanted(ctx.operation, ctx.needs_input_grad[1:], x))
        )
        if not any(wanted):
            return (None,) * (1 + len(x))
        return None, *_gradients(ctx.operation, wanted, x, [each.contiguous() for each in g])


class _Gradients(torch.autograd.Function):
    """``d<g, f> / dx`` as a function of x and g."""

    @staticmethod
    def forward(ctx: Any, operation: Operation, wanted: Wanted, *operands: Tensor) -> Tensors:
        ctx.operation, ctx.count = operation, len(wanted)
        ctx.save_for_backward(*operands)
        ctx.set_materialize_grads(False)
        return operation.adjoint(operands[: len(wanted)], operands[len(wanted) :], wanted)

    @staticmethod
    def backward(ctx: Any, *h: Tensor | None) -> Tensors:
        operation, operands = ctx.operation, ctx.saved_tensors
        x, g = operands[: ctx.count], operands[ctx.count :]
        needed = ctx.needs_input_grad[2:]
        wanted = (*_wanted(operation, needed[: ctx.count], x), *needed[ctx.count :])
        if not any(wanted) or all(each is None for each in h):
            return (None,) * (2 + len(operands))
        found = None if torch.is_grad_enabled() else operation.second(x, g, h, wanted)
        if found is None:
            compose = _by_linearity if operation.multilinear else _by_reference
            found = compose(operation, x, g, h, wanted)
        return None, None, *found


def _gradients(operation: Operation, wanted: Wanted, x: Sequence[Tensor], g: Sequence[Tensor]) -> Tensors:
    found: Tensors = _Gradients.apply(operation, wanted, *x, *g)
    return found


def _wanted(operation: Operation, needed: Sequence[bool], x: Sequence[Tensor]) -> Wanted:
    """What autograd asks for and is of use: not the gradient of geometry which only forces are derived from."""
    if not parameters_wanted():
        return tuple(needed)
    own = operation.leaf
    return tuple(
        need and not ((own and place not in operation.parameters) or getattr(each.grad_fn, "leaf", False))
        for place, (need, each) in enumerate(zip(needed, x, strict=True))
    )


def _by_linearity(
    operation: Operation, x: Sequence[Tensor], g: Sequence[Tensor], h: Tensors, wanted: Wanted
) -> Tensors:
    """Where f is linear in each x, its derivatives are f with one x replaced."""
    total: list[Tensor | None] = [None] * len(wanted)
    for place, each in enumerate(h):
        if each is None:
            continue
        inputs = [*x[:place], each, *x[place + 1 :]]
        others = tuple(want and i != place for i, want in enumerate(wanted[: len(x)]))
        parts = [
            *(_gradients(operation, others, inputs, g) if any(others) else (None,) * len(x)),
            differentiable(operation, *inputs) if wanted[-1] else None,
        ]
        total = [b if a is None else a if b is None else a + b for a, b in zip(total, parts, strict=True)]
    return tuple(total)


def _by_reference(
    operation: Operation, x: Sequence[Tensor], g: Sequence[Tensor], h: Tensors, wanted: Wanted
) -> Tensors:
    """By autograd's own derivatives of the reference."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: g may depend on x outside, and that path is not ours to follow.
        operands = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in (*x, *g)]
        inputs, cotangents = operands[: len(x)], operands[len(x) :]
        places = [place for place, each in enumerate(h) if each is not None]
        first = torch.autograd.grad(
            operation.reference(*inputs), [inputs[place] for place in places], cotangents, create_graph=True
        )
        found = iter(
            torch.autograd.grad(
                first,
                [t for t, want in zip(operands, wanted, strict=True) if want],
                [h[place] for place in places],
                create_graph=again,
                allow_unused=True,
            )
        )
    return tuple(next(found) if want else None for want in wanted)
