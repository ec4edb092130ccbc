"""How a model sees a distance: radial basis functions and the cutoff that ends them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pimlip_zoo.compiled.exact import ExactBuffers
from pimlip_zoo.errors import InputError

__all__ = ["BesselBasis", "PolynomialCutoff"]


class BesselBasis(ExactBuffers):
    """Spherical Bessel functions of order zero that vanish at the cutoff.

    ``b_n(x) = prefactor * sin(k_n x) / x`` with ``k_n = n pi`` and the reduced distance ``x = r / r_max``
    (Gasteiger et al., Directional Message Passing for Molecular Graphs, ICLR 2020, eq. 7).

    Args:
        num_basis: number of functions B.
        trainable: learn the frequencies ``k_n``.
        prefactor: constant in front.
    """

    def __init__(self, num_basis: int, *, trainable: bool = False, prefactor: float = 1.0) -> None:
        super().__init__()
        if num_basis < 1:
            raise InputError(f"num_basis is {num_basis}", key="num_basis", mend="give an integer >= 1")
        self.num_basis = num_basis
        self.prefactor = prefactor
        frequencies = math.pi * torch.arange(1, num_basis + 1, dtype=torch.float64)
        if trainable:
            self.frequencies = nn.Parameter(frequencies.to(torch.get_default_dtype()))
        else:
            self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Reduced distances (E,) > 0 -> (E, B)."""
        x = x.unsqueeze(-1)
        return self.prefactor * torch.sin(x * self.frequencies.to(x.dtype)) / x


class PolynomialCutoff(nn.Module):
    """A polynomial that goes from 1 to 0 with p - 1 vanishing derivatives at x = 0 and two at x = 1.

    ``1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2)`` (Gasteiger et al., ICLR 2020, eq. 8),
    zero from x = 1 on.

    Args:
        p: the order, 6 in NequIP and Allegro, 5 in MACE.
    """

    def __init__(self, p: float = 6.0) -> None:
        super().__init__()
        if not p >= 2:
            raise InputError(
                f"the order of the polynomial cutoff is {p}", key="cutoff_order", mend="give a number >= 2"
            )
        self.p = float(p)

    def forward(self, x: Tensor) -> Tensor:
        """Reduced distances ``r / r_max`` of any shape -> values of the same shape."""
        p = self.p
        value = (
            1.0
            - ((p + 1.0) * (p + 2.0) / 2.0) * torch.pow(x, p)
            + p * (p + 2.0) * torch.pow(x, p + 1.0)
            - (p * (p + 1.0) / 2.0) * torch.pow(x, p + 2.0)
        )
        return value * (x < 1.0).to(x.dtype)
