"""Repulsion of nuclei at short range."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pimlip_zoo.compiled.exact import ExactBuffers
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.nn.elements import atomic_numbers, covalent_radii

_COULOMB = 14.3996  # e² / (4 pi eps0), eV Å
_BOHR = 0.529  # Å


class ZBL(ExactBuffers):
    """Screened Coulomb repulsion, smoothly zero from the sum of the covalent radii on.

    ``E_i = 1/2 sum_j Z_i Z_j e² / (4 pi eps0 r) phi(r / a) f(r / (R_i + R_j))`` with the universal screening function
    ``phi`` of Ziegler, Biersack and Littmark (The Stopping and Range of Ions in Solids, 1985), a screening length
    ``a = 0.4543 a0 / (Z_i^0.3 + Z_j^0.3)`` and a polynomial cutoff ``f``, as in ``mace-torch``. Order and strength are
    kept with the weights of a potential.

    Args:
        species: chemical symbols.
        cutoff_order: p of the polynomial cutoff.
        strength: factor of the whole.
        cutoff: Å, of the neighbour list that it is to be used with, if that is known.

    Raises:
        InputError: for a species that is no element, an order below 2, a strength that is not positive, a cutoff at
            which a pair still repels (its energy would jump there).
    """

    def __init__(
        self,
        species: Sequence[str],
        *,
        cutoff_order: float = 6.0,
        strength: float = 1.0,
        cutoff: float | None = None,
    ) -> None:
        super().__init__()
        if not cutoff_order >= 2:
            raise InputError(
                f"the order of ZBL's cutoff is {cutoff_order}", key="cutoff_order", hint="give a number >= 2"
            )
        if not strength > 0:
            raise InputError(f"the strength of ZBL is {strength}", key="strength", hint="give a number > 0")
        self.num_species = len(species)
        charge = atomic_numbers(species).to(torch.float64)
        radius = covalent_radii(species)
        screening = charge**0.3
        screening = 0.4543 * _BOHR / (screening[:, None] + screening[None, :])
        reach = radius[:, None] + radius[None, :]
        self.max_reach = float(reach.max())
        """Å: no pair repels from here on."""
        if cutoff is not None and cutoff < self.max_reach:
            raise InputError(
                f"the cutoff is {cutoff} Å, but ZBL repels up to {self.max_reach:.2f} Å",
                key="cutoff",
                hint="give a larger cutoff, or no ZBL",
            )
        self._charges = nn.Buffer(
            (_COULOMB * charge[:, None] * charge[None, :]).reshape(-1), persistent=False
        )
        self._screening = nn.Buffer(screening.reshape(-1), persistent=False)
        self._reach = nn.Buffer(reach.reshape(-1), persistent=False)
        self.cutoff_order = nn.Buffer(torch.tensor(float(cutoff_order), dtype=torch.float64))
        self.strength = nn.Buffer(torch.tensor(float(strength), dtype=torch.float64))
        shape = [[0.1818, 3.2], [0.5099, 0.9423], [0.2802, 0.4028], [0.02817, 0.2016]]
        self._shape = nn.Buffer(torch.tensor(shape, dtype=torch.float64), persistent=False)

    def forward(self, graph: AtomGraph, vectors: Tensor) -> Tensor:
        """Graph and edge vectors (E, 3) in Å -> (N,) eV, half of a pair's energy on each of its atoms."""
        centre, neighbour = graph.edge_index[0], graph.edge_index[1]
        pair = graph.species[centre] * self.num_species + graph.species[neighbour]
        length = torch.linalg.vector_norm(vectors, dim=1)
        shape = self._shape.to(length.dtype)
        reduced = (length / self._screening.to(length.dtype)[pair]).unsqueeze(-1)
        screened = (shape[:, 0] * torch.exp(-shape[:, 1] * reduced)).sum(dim=-1)
        energy = 0.5 * self._charges.to(length.dtype)[pair] / length * screened
        x = length / self._reach.to(length.dtype)[pair]
        p = self.cutoff_order.to(length.dtype)
        polynomial = 0.5 * (p + 1.0) * (p + 2.0) - p * (p + 2.0) * x + 0.5 * p * (p + 1.0) * x * x
        envelope = (1.0 - torch.pow(x, p) * polynomial) * (x < 1.0).to(x.dtype)
        out = torch.zeros(graph.species.shape[0], dtype=length.dtype, device=length.device)
        return out.index_add(0, centre, energy * envelope * self.strength.to(length.dtype))
