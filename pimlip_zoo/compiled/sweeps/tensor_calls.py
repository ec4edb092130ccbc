"""Sweeps of what stands between the blocks: slices, shapes, sums and products of tensors."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels import sum_by_centre
from pimlip_zoo.compiled.sweeps.block import Block, Call, Cotangents, NotCovered, Part, Tensors, blocks


class LinearCall(Block):
    """A call that is linear in its active arguments: its sweeps are the call itself and its adjoint."""

    def second(self, saved: Any, tangents: Tensors, g: Any, h: Tensor) -> tuple[Cotangents, Tensors]:
        return self.adjoint(saved, h), ()


@blocks("view", "reshape", "unsqueeze", "squeeze", "contiguous", "flatten")
class ReshapeBlock(LinearCall):
    """The same numbers in another shape."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        if call.active != ((0,),):
            raise NotCovered
        self.by_row = call.target == "view" and call.args[1:2] == (-1,)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        out = getattr(args[0], self.call.target)(*args[1:], **kwargs)
        return out, (args[0].shape, out.shape)

    def adjoint(self, saved: Any, g: Tensor) -> Cotangents:
        return (g.reshape(saved[0]),)

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        assert tangents[0] is not None
        return tangents[0].reshape(saved[1])


@blocks(operator.getitem, "__getitem__")
class ItemBlock(LinearCall):
    """``x[index]``: slices, or one tensor of rows."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        if call.active != ((0,),):
            raise NotCovered

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        x, index = args
        return _taken(x, index), (x.shape, index)

    def adjoint(self, saved: Any, g: Tensor) -> Cotangents:
        shape, index = saved
        indices = index if isinstance(index, tuple) else (index,)
        if not any(isinstance(each, Tensor) for each in indices):
            return (Part(g, index, shape),)
        out = torch.zeros(shape, dtype=g.dtype, device=g.device)
        if len(indices) == 1 and indices[0].dtype == torch.int64:
            return (out.index_add_(0, indices[0].reshape(-1), g.reshape(-1, *shape[1:])),)
        return (out.index_put_(indices, g, accumulate=True),)

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        assert tangents[0] is not None
        return _taken(tangents[0], saved[1])


def _taken(x: Tensor, index: Any) -> Tensor:
    """``x[index]``."""
    if isinstance(index, Tensor) and index.dtype == torch.int64 and index.dim() == 1:
        return x.index_select(0, index)
    out: Tensor = x[index]
    return out


@blocks(operator.add, operator.sub, torch.add, torch.sub)
class SumOfTensors(LinearCall):
    """``a + b`` or ``a - b``; a number may stand for either."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.sign = -1 if call.target in (operator.sub, torch.sub) else 1
        if call.kwargs or not call.active or len(call.args) != 2:
            raise NotCovered

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        out = self.call.target(*args)
        return out, (tuple(args[place].shape for (place,) in self.call.active), out.shape)

    def _signs(self) -> list[int]:
        return [self.sign if place == 1 else 1 for (place,) in self.call.active]

    def adjoint(self, saved: Any, g: Tensor) -> Cotangents:
        parts = zip(saved[0], self._signs(), strict=True)
        return tuple(_sum_to(g if sign == 1 else -g, shape) for shape, sign in parts)

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        total = None
        for t, sign in zip(tangents, self._signs(), strict=True):
            if t is not None:
                t = t if sign == 1 else -t  # noqa: PLW2901
                total = t if total is None else total + t
        assert total is not None
        return total if total.shape == saved[1] else total.expand(saved[1])


@blocks(operator.mul, operator.truediv, torch.mul)
class ProductOfTensors(Block):
    """``a * b``, or ``a / b`` where b is a number or a constant."""

    fresh = True

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        if call.kwargs or not call.active or len(call.args) != 2:
            raise NotCovered
        if call.target is operator.truediv and call.active != ((0,),):
            raise NotCovered

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        a, b = args
        if self.call.target is operator.truediv:
            b = 1.0 / b
        return a * b, (a, b)

    def _with(self, saved: Any, place: int, other: Any) -> Tensor:
        """The product with something else in the place of one factor, whose partner stays."""
        out: Tensor = other * saved[1 - place]
        return out

    def _adjoint(self, saved: Any, g: Tensor, wanted: tuple[bool, ...]) -> Cotangents:
        return tuple(
            _sum_to(self._with(saved, place, g), saved[place].shape) if want else None
            for (place,), want in zip(self.call.active, wanted, strict=True)
        )

    def adjoint(self, saved: Any, g: Tensor) -> Cotangents:
        return self._adjoint(saved, g, self.call.geometric)

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        parts = [
            self._with(saved, place, t)
            for (place,), t in zip(self.call.active, tangents, strict=True)
            if t is not None
        ]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def second(self, saved: Any, tangents: Tensors, g: Any, h: Tensor) -> tuple[Cotangents, Tensors]:
        out: list[Any] = list(self._adjoint(saved, h, self.call.trainable))
        if g is not None and len(self.call.active) == 2:
            for mine, other in ((0, 1), (1, 0)):
                t, sofar = tangents[other], out[mine]
                if t is not None and sofar is not None:
                    place = self.call.active[mine][0]
                    out[mine] = sofar + _sum_to(g * t, saved[place].shape)
        return tuple(out), ()


@blocks(torch.cat)
class CatBlock(LinearCall):
    """Tensors joined along one dimension."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        tensors = args[0]
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        return torch.cat(list(tensors), dim=dim), (tuple(t.shape for t in tensors), dim, tensors[0].dtype)

    def adjoint(self, saved: Any, g: Tensor) -> Cotangents:
        shapes, dim, _ = saved
        parts = g.split([shape[dim] for shape in shapes], dim=dim)
        return tuple(parts[place[1]] for place in self.call.active)

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        shapes, dim, dtype = saved
        by_place = {place[1]: t for place, t in zip(self.call.active, tangents, strict=True)}
        parts = [by_place.get(n) for n in range(len(shapes))]
        filled = [torch.zeros(s, dtype=dtype) if p is None else p for p, s in zip(parts, shapes, strict=True)]
        return torch.cat(filled, dim=dim)


@blocks("index_add")
class IndexAddBlock(LinearCall):
    """``x.index_add(0, index, source)``."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        if call.kwargs or len(call.args) != 4 or call.args[1] != 0:
            raise NotCovered

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        x, _, index, source = args
        return x.index_add(0, index, source), (index, x.shape)

    def adjoint(self, saved: Any, g: Tensor) -> Cotangents:
        return tuple(g if place == (0,) else g[saved[0]] for place in self.call.active)

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        by_place = dict(zip(self.call.active, tangents, strict=True))
        t, source = by_place.get((0,)), by_place.get((3,))
        if source is None:
            return t
        base = torch.zeros(saved[1], dtype=source.dtype) if t is None else t
        return base.index_add(0, saved[0], source)


@blocks(sum_by_centre)
class CentreSumBlock(LinearCall):
    """``sum_by_centre(values, centre, num_atoms)``."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        if call.active != ((0,),):
            raise NotCovered

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return sum_by_centre(*args), args[1:]

    def adjoint(self, saved: Any, g: Tensor) -> Cotangents:
        return (g[saved[0]],)

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        assert tangents[0] is not None
        return sum_by_centre(tangents[0], *saved)


def _sum_to(g: Tensor, shape: torch.Size) -> Tensor:
    """The adjoint of broadcasting."""
    return g if g.shape == shape else g.sum_to_size(shape)
