"""Real spherical harmonics of edge directions."""

from __future__ import annotations

import math

import torch
from e3nn import o3
from torch import Tensor

from pimlip_zoo.compiled.exact import ExactBuffers
from pimlip_zoo.errors import InputError


class SphericalHarmonics(ExactBuffers):
    """``Y_l(r / |r|)`` for l = 0..l_max in e3nn's order, sign and ``component`` normalisation (``|Y_l|² = 2l+1``).

    Built degree by degree, ``Y_l = c_l CG(Y_{l-1}, Y_1)``, with e3nn's Clebsch-Gordan coefficients: every step is
    polynomial, so that all derivatives exist and are cheap.

    Args:
        l_max: highest degree, 0..11.
    """

    def __init__(self, l_max: int) -> None:
        super().__init__()
        if not 0 <= l_max <= 11:
            raise InputError(f"l_max is {l_max}", key="l_max", hint="0 to 11")
        self.l_max = l_max
        self.irreps = o3.Irreps.spherical_harmonics(l_max)
        probe = torch.tensor([[0.3, -0.5, 0.8]], dtype=torch.float64)
        steps = []
        y1 = o3.spherical_harmonics(1, probe, normalize=True, normalization="component")
        for degree in range(2, l_max + 1):
            below = o3.spherical_harmonics(degree - 1, probe, normalize=True, normalization="component")
            here = o3.spherical_harmonics(degree, probe, normalize=True, normalization="component")
            coupling = o3.wigner_3j(degree - 1, 1, degree, dtype=torch.float64)
            product = torch.einsum("zi,zj,ijk->zk", below, y1, coupling)
            steps.append(coupling * (here * product).sum() / (product * product).sum())
        flat = [step.reshape(-1) for step in steps]
        self.register_buffer(
            "_coupling", torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float64), persistent=False
        )

    def couplings(self) -> tuple[tuple[tuple[int, int, int, float], ...], ...]:
        """For each degree from 2 on, nonzero (component below, component of degree 1, component, coefficient)."""
        found, start = [], 0
        for degree in range(2, self.l_max + 1):
            shape = (2 * degree - 1, 3, 2 * degree + 1)
            block = self._coupling[start : start + math.prod(shape)].view(shape)  # type: ignore[index]
            found.append(
                tuple(
                    (a, b, k, float(block[a, b, k])) for a, b, k in block.abs().gt(1e-12).nonzero().tolist()
                )
            )
            start += math.prod(shape)
        return tuple(found)

    def forward(self, unit_vectors: Tensor) -> Tensor:
        """Unit vectors (E, 3) -> (E, (l_max + 1)²)."""
        rows = unit_vectors.shape[0]
        parts = [torch.ones_like(unit_vectors[:, :1])]
        if self.l_max >= 1:
            y1 = 1.7320508075688772 * unit_vectors
            parts.append(y1)
            y = y1
            start = 0
            couplings: Tensor = self._coupling.to(y1.dtype)  # type: ignore[assignment]
            for degree in range(2, self.l_max + 1):
                width = 3 * (2 * degree - 1)
                size = width * (2 * degree + 1)
                coupling = couplings[start : start + size].view(width, 2 * degree + 1)
                y = (y.unsqueeze(2) * y1.unsqueeze(1)).reshape(rows, width) @ coupling
                parts.append(y)
                start += size
        return torch.cat(parts, dim=1)
