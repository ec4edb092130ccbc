"""Linear maps that commute with rotations: one matrix product per irrep."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor, nn

__all__ = ["EquivariantLinear", "SpeciesLinear", "irrep_slices"]


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
    """

    def __init__(
        self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, channels_in: int, channels_out: int
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = o3.Irreps(irreps_in), o3.Irreps(irreps_out)
        self.channels_in, self.channels_out = channels_in, channels_out
        self._plan = _matching_blocks(self.irreps_in, self.irreps_out)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(n_in * channels_in, n_out * channels_out))
            for _, n_in, _, n_out in self._plan
            if n_in > 0
        )

    def forward(self, x: Tensor) -> Tensor:
        """(rows, K_in, C_in) -> (rows, K_out, C_out)."""
        rows = x.shape[0]
        parts: list[Tensor] = []
        index = 0
        for start, n_in, dim, n_out in self._plan:
            if n_in > 0:
                weight = self.weights[index]
                block = x[:, start : start + dim * n_in].reshape(rows * dim, n_in * self.channels_in)
                y = torch.mm(block, weight) * (1.0 / float(n_in * self.channels_in) ** 0.5)
                parts.append(y.view(rows, dim * n_out, self.channels_out))
                index += 1
            else:
                parts.append(x.new_zeros((rows, dim * n_out, self.channels_out)))
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
        self.embedding_size = embedding_size
        self._plan = _matching_blocks(self.irreps_in, self.irreps_out)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(n_in * channels_in, embedding_size, n_out * channels_out))
            for _, n_in, _, n_out in self._plan
            if n_in > 0
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
        for start, n_in, dim, n_out in self._plan:
            if n_in > 0:
                fan_in = n_in * self.channels_in
                scale = 1.0 / float(fan_in * self.embedding_size) ** 0.5
                by_species = torch.einsum("sv,ivo->sio", embedding * scale, self.weights[index])
                block = x[:, start : start + dim * n_in].reshape(rows, dim, fan_in)
                y = torch.bmm(block, by_species[species])
                parts.append(y.view(rows, dim * n_out, self.channels_out))
                index += 1
            else:
                parts.append(x.new_zeros((rows, dim * n_out, self.channels_out)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _matching_blocks(irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> list[tuple[int, int, int, int]]:
    """For each irrep of the output: (first input component, input copies, dimension, output copies)."""
    inputs = {irrep: (start, copies) for irrep, start, copies in irrep_slices(irreps_in)}
    if len(inputs) != len(irreps_in):
        raise ValueError(f"{irreps_in} names an irrep twice; simplify it")
    plan = []
    for irrep, _, copies in irrep_slices(irreps_out):
        start, copies_in = inputs.get(irrep, (0, 0))
        plan.append((start, copies_in, irrep.dim, copies))
    return plan
