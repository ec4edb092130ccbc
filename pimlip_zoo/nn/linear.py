"""Linear maps that commute with rotations: one matrix product per irrep."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from pimlip_zoo.compiled.kernels.linear import (
    CpuLinear,
    LinearForm,
    LinearOperation,
    LinearPart,
    cpu_linear,
    row_tiles,
)
from pimlip_zoo.compiled.sweeps.block import Call, NotCovered, Tensors, blocks, joined, listed, parted
from pimlip_zoo.compiled.sweeps.operation import Bound, OperationBlock


def irrep_slices(irreps: o3.Irreps) -> list[tuple[o3.Irrep, int, int]]:
    """Where each irrep's components lie: ``(irrep, first component, multiplicity)``.

    Features are (rows, components, C). ``n x l`` takes ``(2l+1) * n`` components, ordered with m outside and the
    copy inside, so that the slice reads (rows, 2l+1, n * C): one matrix product mixes copies and channels.
    """
    slices, start = [], 0
    for multiplicity, irrep in irreps:
        slices.append((irrep, start, int(multiplicity)))
        start += multiplicity * irrep.dim
    return slices


class EquivariantLinear(nn.Module):
    """Mixes the channels (and copies) of equal irreps: (rows, K_in, C_in) -> (rows, K_out, C_out).

    Weights are normal with unit variance and enter divided by the square root of the fan-in, as in e3nn's
    ``Linear`` with ``element`` normalisation. An irrep of the output that the input lacks is zero.

    Args:
        irreps_in: components of the input, each irrep once, multiplicity = copies (see :func:`irrep_slices`).
        irreps_out: components of the output, likewise.
        channels_in: C_in.
        channels_out: C_out.
        factor: multiplies the result.
    """

    weights_are_maps = True

    def __init__(
        self,
        irreps_in: o3.Irreps,
        irreps_out: o3.Irreps,
        channels_in: int,
        channels_out: int,
        factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.factor, self.embedding_size = factor, 1
        self.irreps_in, self.irreps_out = o3.Irreps(irreps_in), o3.Irreps(irreps_out)
        self.channels_in, self.channels_out = channels_in, channels_out
        self.blocks, self._zeros_after = _matching_blocks(self.irreps_in, self.irreps_out)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(copies_in * channels_in, copies_out * channels_out))
            for _, copies_in, _, copies_out, _ in self.blocks
        )

    def forward(self, x: Tensor) -> Tensor:
        """(rows, K_in, C_in) -> (rows, K_out, C_out)."""
        rows = x.shape[0]
        parts: list[Tensor] = []
        index = 0
        for weight in self.weights:
            start, copies_in, dim, copies_out, zeros = self.blocks[index]
            if zeros > 0:
                parts.append(x.new_zeros((rows, zeros, self.channels_out)))
            fan_in = copies_in * self.channels_in
            rows_in = x[:, start : start + dim * copies_in]
            y = torch.mm(rows_in.reshape(rows * dim, fan_in), weight * (self.factor / float(fan_in) ** 0.5))
            parts.append(y.view(rows, dim * copies_out, self.channels_out))
            index += 1  # noqa: SIM113  (TorchScript does not enumerate a ParameterList)
        if self._zeros_after > 0:
            parts.append(x.new_zeros((rows, self._zeros_after, self.channels_out)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class SpeciesLinear(nn.Module):
    """An :class:`EquivariantLinear` whose weights depend on the species of the row.

    The weights are bilinear in an embedding of the species, ``W(s) = sum_v embedding(s, v) W_v``, as in e3nn's
    ``FullyConnectedTensorProduct`` with scalars; with one-hot embeddings each species has its own.

    Args:
        irreps_in: components of the input.
        irreps_out: components of the output.
        channels_in: C_in.
        channels_out: C_out.
        embedding_size: V, the length of a species' embedding.
    """

    weights_are_maps = True

    def __init__(
        self,
        irreps_in: o3.Irreps,
        irreps_out: o3.Irreps,
        channels_in: int,
        channels_out: int,
        embedding_size: int,
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = o3.Irreps(irreps_in), o3.Irreps(irreps_out)
        self.channels_in, self.channels_out = channels_in, channels_out
        self.factor, self.embedding_size = 1.0, embedding_size
        self.blocks, self._zeros_after = _matching_blocks(self.irreps_in, self.irreps_out)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(copies_in * channels_in, embedding_size, copies_out * channels_out))
            for _, copies_in, _, copies_out, _ in self.blocks
        )

    def forward(self, x: Tensor, embedding: Tensor, species: Tensor) -> Tensor:
        """Apply each row's own map.

        Args:
            x: (rows, K_in, C_in).
            embedding: (S, V), one row per species.
            species: (rows,) index into the embedding.

        Returns:
            (rows, K_out, C_out).
        """
        rows = x.shape[0]
        parts: list[Tensor] = []
        index = 0
        for weight in self.weights:
            start, copies_in, dim, copies_out, zeros = self.blocks[index]
            if zeros > 0:
                parts.append(x.new_zeros((rows, zeros, self.channels_out)))
            fan_in = copies_in * self.channels_in
            scale = 1.0 / float(fan_in * self.embedding_size) ** 0.5
            by_species = torch.einsum("sv,ivo->sio", embedding * scale, weight)
            rows_in = x[:, start : start + dim * copies_in]
            per_row = min(embedding.shape[0] * dim, fan_in) * copies_out * self.channels_out
            if _many(rows, per_row):
                y = _by_groups(rows_in.reshape(rows, dim, fan_in), by_species, species)
            elif embedding.shape[0] * dim <= fan_in:
                # Few species: the maps of all of them, of which each row keeps one, move less memory than a matrix
                # for every row.
                all_maps = by_species.permute(1, 0, 2).reshape(fan_in, -1)
                of_all = torch.mm(rows_in.reshape(rows * dim, fan_in), all_maps)
                of_all = of_all.view(rows, dim, embedding.shape[0], copies_out * self.channels_out)
                own = species.view(rows, 1, 1, 1).expand(rows, dim, 1, copies_out * self.channels_out)
                y = torch.gather(of_all, 2, own).squeeze(2)
            else:
                y = torch.bmm(rows_in.reshape(rows, dim, fan_in), by_species[species])
            parts.append(y.reshape(rows, dim * copies_out, self.channels_out))
            index += 1  # noqa: SIM113  (TorchScript does not enumerate a ParameterList)
        if self._zeros_after > 0:
            parts.append(x.new_zeros((rows, self._zeros_after, self.channels_out)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class ScalarBias(nn.Module):
    """Adds a constant to the even scalars, the only features to which one may be added.

    Args:
        irreps: components of the features.
        channels: C.
        factor: multiplies the constant.
    """

    def __init__(self, irreps: o3.Irreps, channels: int, factor: float = 1.0) -> None:
        super().__init__()
        irreps = o3.Irreps(irreps)
        before, copies = next(
            ((start, n) for irrep, start, n in irrep_slices(irreps) if irrep == o3.Irrep("0e")), (0, 0)
        )
        self.factor, self.embedding_size = factor, 1
        self.bias = nn.Parameter(torch.zeros(copies, channels))
        self._before = nn.Buffer(torch.zeros(before, channels), persistent=False)
        self._after = nn.Buffer(torch.zeros(int(irreps.dim) - before - copies, channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, K, C) -> (rows, K, C)."""
        return x + torch.cat([self._before, self.bias * self.factor, self._after])


def _many(rows: int, per_row: int) -> bool:
    """Whether intermediate values of that many elements for every row are too many to be held at once.

    Sizes of groups are known only once there are values: what is traced with symbolic sizes goes without groups.
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return rows * per_row > 1 << 20
    else:  # noqa: RET505
        return type(rows) is int and not torch.compiler.is_compiling() and rows * per_row > 1 << 20


def _by_groups(x: Tensor, matrices: Tensor, group: Tensor) -> Tensor:
    """Each row times the matrix of its group: (rows, dim, I), (S, I, O), (rows,) -> (rows, dim, O).

    The rows of a group meet their matrix in one product, so that nothing is larger than input and output.
    """
    rows, dim, fan_in = x.shape
    order = torch.argsort(group, stable=True)
    ordered = x.index_select(0, order)
    counts: list[int] = torch.bincount(group, minlength=matrices.shape[0]).tolist()
    parts: list[Tensor] = []
    start = 0
    for index, count in enumerate(counts):
        if count > 0:
            of_group = ordered.narrow(0, start, count).reshape(count * dim, fan_in)
            parts.append(torch.mm(of_group, matrices[index]))
            start += count
    y = torch.cat(parts).view(rows, dim, matrices.shape[2])
    return y.index_select(0, torch.argsort(order))


def linear_form(module: EquivariantLinear | SpeciesLinear, num_species: int = 1) -> LinearForm:
    """What the compiled kernels have to know of a map, with as many sets of weights as there are species."""
    blocks, first_out = [], 0
    for start, copies_in, dim, copies_out, zeros in module.blocks:
        first_out += zeros
        scale = module.factor * float(copies_in * module.channels_in * module.embedding_size) ** -0.5
        blocks.append(LinearPart(start, copies_in, first_out, copies_out, dim, scale))
        first_out += dim * copies_out
    dim_in, dim_out = int(module.irreps_in.dim), int(module.irreps_out.dim)
    return LinearForm(dim_in, dim_out, module.channels_in, module.channels_out, tuple(blocks), num_species)


def _matching_blocks(
    irreps_in: o3.Irreps, irreps_out: o3.Irreps
) -> tuple[list[tuple[int, int, int, int, int]], int]:
    """The irreps that both have, in the output's order, and how many components of the output stay zero last.

    A block is (first input component, input copies, dimension of the irrep, output copies, zero components before).
    """
    inputs = {irrep: (start, copies) for irrep, start, copies in irrep_slices(irreps_in)}
    if len(inputs) != len(irreps_in) or len({ir for _, ir in irreps_out}) != len(irreps_out):
        raise ValueError(f"{irreps_in} -> {irreps_out}: an irrep is named twice; simplify")
    blocks, zeros = [], 0
    for irrep, _, copies in irrep_slices(irreps_out):
        if irrep in inputs:
            start, copies_in = inputs[irrep]
            blocks.append((start, copies_in, irrep.dim, copies, zeros))
            zeros = 0
        else:
            zeros += copies * irrep.dim
    return blocks, zeros


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
