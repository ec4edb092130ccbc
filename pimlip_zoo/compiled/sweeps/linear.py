"""Equivariant linear maps as steps of a model, of one set of weights or of one for every species."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from pimlip_zoo.compiled.kernels.linear import CpuLinear, LinearForm, LinearOperation, cpu_linear, row_tiles
from pimlip_zoo.compiled.sweeps.block import Call, NotCovered, Tensors, blocks, joined, listed, parted
from pimlip_zoo.compiled.sweeps.operation import Bound, OperationBlock
from pimlip_zoo.nn.linear import EquivariantLinear, SpeciesLinear, linear_form

__all__ = ["LinearBlock", "SpeciesLinearBlock"]


class LinearMapBlock(OperationBlock):
    """``z = x W``, W (S, all weights) by the species of a row."""

    form: LinearForm

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.module: EquivariantLinear | SpeciesLinear = call.target
        self.form = linear_form(call.target)

    @cached_property
    def kernels(self) -> CpuLinear:
        """Compiled when asked for."""
        return cpu_linear(self.form, self.call.dtype)

    def parameters(self) -> Sequence[nn.Parameter]:
        return listed(self.module.weights)


@blocks(EquivariantLinear)
class LinearBlock(LinearMapBlock):
    """x -> :class:`EquivariantLinear`."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        if len(call.active) != 1:
            raise NotCovered

    def bind(self, *args: Any) -> Bound:
        x = args[0]
        weights = joined(self.parameters()).unsqueeze(0)
        return LinearOperation(self.kernels, row_tiles(int(x.shape[0]))), (x, weights)

    def by_parameter(self, saved: Any, found: Tensors) -> Tensors:
        assert found[1] is not None
        return parted(found[1][0], self.parameters())


@blocks(SpeciesLinear)
class SpeciesLinearBlock(LinearMapBlock):
    """(x, embedding, species) -> :class:`SpeciesLinear`; the weights are bilinear in the embedding."""

    operands = (0, 1)

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        if call.active not in (((0,),), ((0,), (1,))) or any(call.geometric[1:]):
            raise NotCovered

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        embedding = args[1]
        # (V, all weights): what is mixed by the embeddings.
        mixed = torch.cat([w.transpose(0, 1).flatten(1) for w in self.parameters()], dim=1)
        out, saved = super().forward(*args, torch.mm(embedding, mixed))
        return out, (*saved, embedding, mixed)

    def bind(self, *args: Any) -> Bound:
        x, embedding, species, weights = args
        if int(embedding.shape[0]) != self.form.num_species:
            self.form = linear_form(self.call.target, int(embedding.shape[0]))
            self.__dict__.pop("kernels", None)
        return LinearOperation(self.kernels, row_tiles(int(x.shape[0]), species)), (x, weights)

    def by_argument(self, saved: Any, found: Tensors) -> Tensors:
        if len(self.call.active) == 1:
            return found[:1]
        assert found[1] is not None
        return found[0], torch.mm(found[1], saved[3].T)

    def by_parameter(self, saved: Any, found: Tensors) -> Tensors:
        embedding, weights = saved[2], self.parameters()
        assert found[1] is not None
        sizes = [w.shape[0] * w.shape[2] for w in weights]
        of_mixed = torch.mm(embedding.T, found[1]).split_with_sizes(sizes, 1)
        return tuple(
            part.view(-1, w.shape[0], w.shape[2]).transpose(0, 1)
            for part, w in zip(of_mixed, weights, strict=True)
        )
