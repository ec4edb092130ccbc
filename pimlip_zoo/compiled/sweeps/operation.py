"""The sweeps of a step that is one operation: the operation's own derivatives, which nobody writes twice."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from pimlip_zoo.compiled.kernels.bridge import Operation
from pimlip_zoo.compiled.sweeps.block import Block, Call, NotCovered, Tensors

__all__ = ["Bound", "OperationBlock"]

Bound = tuple[Operation, tuple[Tensor, ...]]
"""An operation with everything that it is not differentiated by, and what it is differentiated by."""


class OperationBlock(Block):
    """A module that computes one :class:`Operation`, whose operands are arguments or come from its parameters.

    A subclass says in :meth:`bind` what the operands are, and in ``operands`` which of them each argument is. Where an
    operand is made of parameters or of an argument, :meth:`by_parameter` or :meth:`by_argument` makes their gradients
    of that of the operand.
    """

    fresh = True
    operands: ClassVar[tuple[int, ...]] = (0,)
    """Which operand each of the first arguments is, or is made into."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        if any(len(place) > 1 or place[0] >= len(self.operands) for place in call.active):
            raise NotCovered
        self._places = tuple(self.operands[place[0]] for place in call.active)
        self._geometric = frozenset(p for p, yes in zip(self._places, call.geometric, strict=True) if yes)
        self._trainable = frozenset(p for p, yes in zip(self._places, call.trainable, strict=True) if yes)

    def bind(self, *args: Any) -> Bound:
        """The operation on these arguments, and its operands."""
        raise NotImplementedError

    def by_parameter(self, saved: Any, found: Tensors) -> Tensors:
        """Gradients of the parameters from those of all operands."""
        return ()

    def by_argument(self, saved: Any, found: Tensors) -> Tensors:
        """Gradients of the active arguments from those of all operands."""
        return tuple([found[place] for place in self._places])

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        operation, x = self.bind(*args, **kwargs)
        x = tuple([each.contiguous() for each in x])
        return operation.forward(*x), (operation, x)

    def adjoint(self, saved: Any, g: Tensor) -> Tensors:
        operation, x = saved[:2]
        wanted = tuple([place in self._geometric for place in range(len(x))])
        found = operation.adjoint(x, (g.contiguous(),), wanted)
        return tuple([found[place] for place in self._places])

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        operation, x = saved[:2]
        wanted = (*(False,) * len(x), True)
        return operation.second(x, (None,), self._of_operands(tangents, len(x)), wanted)[-1]

    def second(self, saved: Any, tangents: Tensors, g: Any, h: Any) -> tuple[Tensors, Tensors]:
        operation, x = saved[:2]
        wanted = tuple([place in self._trainable or place in operation.parameters for place in range(len(x))])
        h = h.contiguous()
        if g is None:
            found = operation.adjoint(x, (h,), wanted)
        else:
            along = self._of_operands(tangents, len(x))
            found = operation.second(x, (g.contiguous(),), along, (*wanted, False), h)
        return self.by_argument(saved, found), self.by_parameter(saved, found)

    def _of_operands(self, tangents: Tensors, count: int) -> Tensors:
        out: list[Tensor | None] = [None] * count
        for place, t in zip(self._places, tangents, strict=True):
            out[place] = None if t is None else t.contiguous()
        return tuple(out)
