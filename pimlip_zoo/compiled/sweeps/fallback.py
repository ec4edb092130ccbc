"""Any differentiable step by autograd: slower than a block of its own, and always right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pimlip_zoo.compiled.sweeps.block import Block, Call, NotCovered, Tensors, registered


@dataclass
class _Record:
    """What autograd knows of one call."""

    outs: tuple[Tensor, ...]
    leaves: list[Tensor]
    g: tuple[Tensor, ...] = ()
    found: Tensors = ()
    """The adjoint, as a function of g."""


class AutogradBlock(Block):
    """The four sweeps of any function from its first and second derivatives by autograd.

    Args:
        call: the operation.
        outputs: how many tensors it returns.
    """

    def __init__(self, call: Call, outputs: int = 1) -> None:
        super().__init__(call)
        self.outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Record the call on leaves of its own."""
        with torch.enable_grad():
            filled: list[Any] = [list(a) if type(a) in (list, tuple) else a for a in args]
            leaves = []
            for place in self.call.active:
                holder, index = (filled, place[0]) if len(place) == 1 else (filled[place[0]], place[1])
                holder[index] = holder[index].detach().requires_grad_()
                leaves.append(holder[index])
            out = self.call.invoke(filled, kwargs)
        outs = (out,) if self.outputs == 1 else tuple(out)
        return self._joined([each.detach() for each in outs]), _Record(outs, leaves)

    def _joined(self, parts: list[Tensor]) -> Any:
        return parts[0] if self.outputs == 1 else tuple(parts)

    def _parts(self, cotangents: Any) -> tuple[Tensor, ...]:
        return (cotangents,) if self.outputs == 1 else tuple(cotangents)

    def adjoint(self, saved: Any, g: Any) -> Tensors:
        """By autograd, kept as a function of g for the sweeps that follow."""
        record: _Record = saved
        with torch.enable_grad():
            record.g = tuple(each.detach().requires_grad_() for each in self._parts(g))
            pairs = _differentiable(record.outs, record.g)
            record.found = _gradients(pairs, record.leaves, create_graph=True)
        return tuple(None if f is None else f.detach() for f in record.found)

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        """The adjoint is linear in g, and its derivative by g is the tangent."""
        record: _Record = saved
        found = _gradients(_differentiable(record.found, tangents), record.g, retain_graph=True)
        parts = zip(found, record.outs, strict=True)
        return self._joined([torch.zeros_like(z) if t is None else t for t, z in parts])

    def second(self, saved: Any, tangents: Tensors, g: Any, h: Any) -> tuple[Tensors, Tensors]:
        """Both terms in one pass of autograd."""
        record: _Record = saved
        pairs = _differentiable(record.outs, self._parts(h))
        if g is not None:
            pairs += _differentiable(record.found, tangents)
        parameters = [p for p in self.parameters() if p.requires_grad]
        found = _gradients(pairs, [*record.leaves, *parameters], retain_graph=True)
        by_parameter = dict(zip(map(id, parameters), found[len(record.leaves) :], strict=True))
        return found[: len(record.leaves)], tuple(by_parameter.get(id(p)) for p in self.parameters())


def block_for(call: Call) -> Block:
    """The block of a call, or the one that asks autograd."""
    kind = registered(call.target) or AutogradBlock
    try:
        return kind(call)
    except NotCovered:
        return AutogradBlock(call, kind.outputs)


def _gradients(pairs: Sequence[tuple[Tensor, Tensor]], wanted: Sequence[Tensor], **options: bool) -> Tensors:
    """Of the sum of products of these pairs, by what is wanted; the second of a pair is a constant."""
    if not pairs or not wanted:
        return (None,) * len(wanted)
    outs, seeds = [out for out, _ in pairs], [seed for _, seed in pairs]
    return torch.autograd.grad(outs, wanted, seeds, allow_unused=True, **options)


def _differentiable(outs: Tensors, seeds: Tensors) -> list[tuple[Tensor, Tensor]]:
    """Values that depend on something, with what they are multiplied with."""
    pairs = zip(outs, seeds, strict=True)
    return [(f, t) for f, t in pairs if f is not None and t is not None and f.requires_grad]
