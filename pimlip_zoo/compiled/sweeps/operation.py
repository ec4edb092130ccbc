"""The sweeps of a step that is one operation: the operation's own derivatives, which nobody writes twice."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from pimlip_zoo.compiled.kernels.bridge import Operation, Wanted
from pimlip_zoo.compiled.sweeps.block import Block, Call, NotCovered, Tensors

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
        self._plan: _Plan | None = None

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
        if self._plan is None:
            self._plan = self._planned(operation, len(x))
        x = tuple([each.contiguous() for each in x])
        return operation.forward(*x), (operation, x)

    def _planned(self, operation: Operation, count: int) -> _Plan:
        each = range(count)
        geometric = {p for p, yes in zip(self._places, self.call.geometric, strict=True) if yes}
        trainable = {p for p, yes in zip(self._places, self.call.trainable, strict=True) if yes}
        wanted = tuple(place in trainable or place in operation.parameters for place in each)
        return _Plan(
            adjoint=tuple(place in geometric for place in each),
            tangent=(*(False for _ in each), *(True,) * self.outputs),
            gradients=wanted,
            second=(*wanted, False),
            none=(None,) * count,
        )

    def adjoint(self, saved: Any, g: Any) -> Tensors:
        assert self._plan is not None
        cotangents = [g] if self.outputs == 1 else g
        found = saved[0].adjoint(saved[1], [each.contiguous() for each in cotangents], self._plan.adjoint)
        return tuple([found[place] for place in self._places])

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        assert self._plan is not None
        operation, x = saved[:2]
        nothing = (None,) * self.outputs
        found = operation.second(x, nothing, self._of_operands(tangents), self._plan.tangent)[len(x) :]
        return found[0] if self.outputs == 1 else found

    def second(self, saved: Any, tangents: Tensors, g: Any, h: Any) -> tuple[Tensors, Tensors]:
        operation, x = saved[:2]
        plan = self._plan
        assert plan is not None
        if g is None:
            found = operation.adjoint(x, (h.contiguous(),), plan.gradients)
        else:
            along = self._of_operands(tangents)
            found = operation.second(x, (g.contiguous(),), along, plan.second, h.contiguous())
        return self.by_argument(saved, found), self.by_parameter(saved, found)

    def _of_operands(self, tangents: Tensors) -> Tensors:
        assert self._plan is not None
        out: list[Tensor | None] = list(self._plan.none)
        for place, t in zip(self._places, tangents, strict=True):
            if t is not None:
                out[place] = t.contiguous()
        return tuple(out)


class _Plan(NamedTuple):
    """What each sweep asks the operation for: which derivatives are of use is known before the first one."""

    adjoint: Wanted
    tangent: Wanted
    gradients: Wanted
    second: Wanted
    none: Tensors
