"""How a model sees a distance: radial basis functions and the cutoff that ends them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pimlip_zoo.compiled.exact import ExactBuffers
from pimlip_zoo.errors import InputError


class BesselBasis(ExactBuffers):
    """Spherical Bessel functions of order zero that vanish at the cutoff.

    ``b_n(x) = prefactor * sin(k_n x) / x`` with ``k_n = n pi`` and the reduced distance ``x = r / r_max``
    (Gasteiger et al., Directional Message Passing for Molecular Graphs, ICLR 2020, eq. 7).

    Args:
        num_basis: number of functions B.
        trainable: learn the frequencies ``k_n``.
        prefactor: constant in front.
        frequencies: ``k_n / pi`` to begin with, or to stay with; none: n.
    """

    def __init__(
        self,
        num_basis: int,
        *,
        trainable: bool = False,
        prefactor: float = 1.0,
        frequencies: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if num_basis < 1:
            raise InputError(f"num_basis is {num_basis}", key="num_basis", hint="give an integer >= 1")
        self.num_basis = num_basis
        self.prefactor = prefactor
        if frequencies and len(frequencies) != num_basis:
            raise InputError(
                f"{len(frequencies)} frequencies are given for {num_basis} functions",
                key="bessel_frequencies",
                hint="give one for each, or none",
            )
        turns = torch.tensor([float(k) for k in frequencies or range(1, num_basis + 1)], dtype=torch.float64)
        if trainable:
            self.frequencies = nn.Parameter((math.pi * turns).to(torch.get_default_dtype()))
        else:
            self.register_buffer("frequencies", math.pi * turns, persistent=False)

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
                f"the order of the polynomial cutoff is {p}", key="cutoff_order", hint="give a number >= 2"
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


class XplorCutoff(nn.Module):
    """One up to ``x_0``, then ``(1 - x^2)^2 (1 + 2 x^2 - 3 x_0^2) / (1 - x_0^2)^3``, zero from x = 1 on.

    The switching function of CHARMM and X-PLOR (Brooks et al., J. Comput. Chem. 4, 187, 1983); its second derivative
    jumps at both ends.

    Args:
        onset: ``x_0``, in units of the cutoff.
    """

    def __init__(self, onset: float = 0.9) -> None:
        super().__init__()
        if not 0 < onset < 1:
            raise InputError(
                f"the XPLOR cutoff begins at {onset} of the cutoff",
                key="cutoff_onset",
                hint="give a number between 0 and 1",
            )
        self.onset = float(onset)

    def forward(self, x: Tensor) -> Tensor:
        """Reduced distances ``r / r_max`` of any shape -> values of the same shape."""
        square, start = x * x, self.onset * self.onset
        left = 1.0 - square
        value = left * left * (1.0 + 2.0 * square - 3.0 * start) / (1.0 - start) ** 3
        value = torch.where(x < self.onset, torch.ones_like(x), value)
        return value * (x < 1.0).to(x.dtype)
