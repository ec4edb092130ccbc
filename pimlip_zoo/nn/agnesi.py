"""A distance measured by the size of the two atoms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pimlip_zoo.compiled.exact import ExactBuffers
from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.nn.elements import covalent_radii


class AgnesiTransform(ExactBuffers):
    """Maps a distance to (0, 1), steepest where the two elements are bonded.

    ``T = 1 / (1 + a x^q / (1 + x^(q-p)))`` with ``x = r / r0`` and ``r0`` the mean of the covalent radii
    (Witt et al., J. Chem. Phys. 159, 164101, 2023, with the constants of Batatia et al., arXiv:2401.00096).

    Args:
        species: chemical symbols.
    """

    def __init__(self, species: Sequence[str]) -> None:
        super().__init__()
        self.q, self.p, self.a = 0.9183, 4.5791, 1.0805
        self.num_species = len(species)
        radius = covalent_radii(species)
        self._r0 = nn.Buffer(0.5 * (radius[:, None] + radius[None, :]).reshape(-1), persistent=False)

    def forward(self, length: Tensor, graph: AtomGraph) -> Tensor:
        """Lengths (E,) in Å -> (E,), 1 at zero and 0 far away."""
        pair = graph.species[graph.edge_index[0]] * self.num_species + graph.species[graph.edge_index[1]]
        x = length / self._r0.to(length.dtype)[pair]
        return 1.0 / (1.0 + self.a * torch.pow(x, self.q) / (1.0 + torch.pow(x, self.q - self.p)))
