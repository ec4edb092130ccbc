"""Sweeps of equivariant linear maps, of one set of weights or of one for every species."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pimlip_zoo.compiled.kernels.linear import (
    CpuLinear,
    LinearForm,
    LinearSweep,
    RowTiles,
    cpu_linear,
    row_tiles,
)
from pimlip_zoo.compiled.sweeps.block import Block, Call, NotCovered, Tensors, blocks, joined, listed, parted
from pimlip_zoo.nn.linear import EquivariantLinear, SpeciesLinear, linear_form

__all__ = ["LinearBlock", "SpeciesLinearBlock"]

_FORWARD, _ADJOINT = LinearSweep(0), LinearSweep(1)


class LinearMapBlock(Block):
    """``z = x W``, W (S, all weights) by the species of a row."""

    fresh = True

    form: LinearForm

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        into = bool(call.trainable) and call.trainable[0]
        self._plain = LinearSweep(2, into, True)
        self._second = LinearSweep(2, into, True, tangents=True)

    @cached_property
    def kernels(self) -> CpuLinear:
        """Compiled when asked for."""
        return cpu_linear(self.form, self.call.dtype)

    def run(self, x: Tensor, weights: Tensor, tiles: RowTiles) -> tuple[Tensor, Any]:
        """The first sweep."""
        x = x.contiguous()
        out = self.kernels.run(_FORWARD, tiles, weights, x=x)[0]
        assert out is not None
        return out, (tiles, weights, x)

    def adjoint(self, saved: Any, g: Tensor) -> Tensors:
        tiles, weights, _ = saved[:3]
        return (self.kernels.run(_ADJOINT, tiles, weights, g=g)[0], *(None,) * (len(self.call.active) - 1))

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        tiles, weights, _ = saved[:3]
        return self.kernels.run(_FORWARD, tiles, weights, x=tangents[0])[0]

    def gradients(self, saved: Any, tangents: Tensors, g: Any, h: Tensor) -> tuple[Tensor | None, Tensor]:
        """The last sweep: derivatives by x and by the weights (S, all)."""
        tiles, weights, x = saved[:3]
        if g is None or tangents[0] is None:
            into, found = self.kernels.run(self._plain, tiles, weights, x=x, h=h)
        else:
            into, found = self.kernels.run(self._second, tiles, weights, x=x, t=tangents[0], g=g, h=h)
        assert found is not None
        return into, found


@blocks(EquivariantLinear)
class LinearBlock(LinearMapBlock):
    """x -> :class:`EquivariantLinear`."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.module: EquivariantLinear = call.target
        self.form = linear_form(self.module)
        if len(call.active) != 1:
            raise NotCovered

    def parameters(self) -> Sequence[nn.Parameter]:
        return listed(self.module.weights)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        x = args[0]
        weights = joined(listed(self.module.weights)).unsqueeze(0)
        return self.run(x, weights, row_tiles(int(x.shape[0])))

    def second(self, saved: Any, tangents: Tensors, g: Any, h: Any) -> tuple[Tensors, Tensors]:
        into, found = self.gradients(saved, tangents, g, h)
        return (into,), parted(found[0], listed(self.module.weights))


@blocks(SpeciesLinear)
class SpeciesLinearBlock(LinearMapBlock):
    """(x, embedding, species) -> :class:`SpeciesLinear`; the weights are bilinear in the embedding."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.module: SpeciesLinear = call.target
        self.form = linear_form(self.module)
        if call.active not in (((0,),), ((0,), (1,))) or any(call.geometric[1:]):
            raise NotCovered

    def parameters(self) -> Sequence[nn.Parameter]:
        return listed(self.module.weights)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        x, embedding, species = args
        if int(embedding.shape[0]) != self.form.num_species:
            self.form = linear_form(self.module, int(embedding.shape[0]))
            self.__dict__.pop("kernels", None)
        # (V, all weights): what is mixed by the embeddings.
        mixed = torch.cat([w.transpose(0, 1).flatten(1) for w in listed(self.module.weights)], dim=1)
        out, saved = self.run(x, torch.mm(embedding, mixed), row_tiles(int(x.shape[0]), species))
        return out, (*saved, embedding, mixed)

    def second(self, saved: Any, tangents: Tensors, g: Any, h: Any) -> tuple[Tensors, Tensors]:
        into, found = self.gradients(saved, tangents, g, h)
        embedding, mixed = saved[3:]
        weights, of_mixed = listed(self.module.weights), torch.mm(embedding.T, found)
        sizes = [w.shape[0] * w.shape[2] for w in weights]
        own = tuple(
            part.view(-1, w.shape[0], w.shape[2]).transpose(0, 1)
            for part, w in zip(of_mixed.split_with_sizes(sizes, 1), weights, strict=True)
        )
        return (into, *([torch.mm(found, mixed.T)] if len(self.call.active) == 2 else [])), own
