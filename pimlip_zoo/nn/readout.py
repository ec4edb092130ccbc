"""What turns features into energies and forces: readouts beside the plain MLP."""

from __future__ import annotations

import math

import torch
from e3nn import o3
from torch import Tensor, nn

from pimlip_zoo.errors import InputError
from pimlip_zoo.nn.linear import EquivariantLinear, irrep_slices
from pimlip_zoo.nn.mlp import ScaledActivation


class DirectForces(nn.Module):
    """Atomic features -> force vectors: an equivariant linear map to one vector per atom.

    Args:
        irreps: components of the features, multiplicities multiply the channels; must hold polar vectors, 1o.
        channels: C.
    """

    def __init__(self, irreps: o3.Irreps, channels: int) -> None:
        super().__init__()
        if o3.Irrep("1o") not in o3.Irreps(irreps):
            raise InputError(
                f"a direct force head needs vectors (1o), the features are {irreps}",
                key="force_head",
                hint="give l_max >= 1, or force_head conservative",
            )
        self._start, copies = next(
            (start, copies) for irrep, start, copies in irrep_slices(irreps) if irrep == o3.Irrep("1o")
        )
        self._end = self._start + 3 * copies
        self.linear = EquivariantLinear(o3.Irreps([(copies, "1o")]), o3.Irreps("1o"), channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, K, C) -> (N, 3), components x, y, z."""
        vectors: Tensor = self.linear(features[:, self._start : self._end]).squeeze(-1)
        return vectors


class BiasedReadout(nn.Module):
    """Scalars -> one number: an MLP whose layers after the first have biases.

    Args:
        channels: C.
        width: of both hidden layers.
        nonlinearity: activation, of unit second moment.
    """

    def __init__(self, channels: int, width: int, nonlinearity: str = "silu") -> None:
        super().__init__()
        self.into = nn.Parameter(torch.randn(channels, width))
        self.middle = nn.Parameter(torch.randn(width, width))
        self.middle_bias = nn.Parameter(torch.zeros(width))
        self.out = nn.Parameter(torch.randn(width, 1))
        self.out_bias = nn.Parameter(torch.zeros(1))
        self.act = ScaledActivation(nonlinearity)
        self.scale_in, self.scale = 1.0 / math.sqrt(channels), 1.0 / math.sqrt(width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, 1)."""
        x = self.act(torch.mm(x, self.into * self.scale_in))
        x = self.act(torch.mm(x, self.middle * self.scale) + self.middle_bias)
        return torch.mm(x, self.out * self.scale) + self.out_bias
