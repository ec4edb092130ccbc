"""The spread of several potentials as an uncertainty, calibrated on validation structures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import batches_of
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.labelling.uncertainty import calibrate
from pimlip_zoo.models.potential import Potential

_BATCH = 8


class CommitteeUncertainty:
    """Uncertainties of the mean of several potentials.

    Raw are the standard deviations among the members, of a force as a vector ``sqrt(sum_k |F_k - F|^2 / (n - 1))``;
    calibrated as those of the last layer are.

    Args:
        potentials: at least two, with the same species in the same order and the same cutoff.
        valid: structures with labels that none of them was trained on.

    Raises:
        InputError: for fewer than two, or members that do not go together.
    """

    def __init__(self, potentials: Sequence[Potential], valid: Sequence[Frame]) -> None:
        self.potentials = list(potentials)
        if len(self.potentials) < 2:
            raise InputError("one potential has no spread", hint="give two or more runs")
        first = self.potentials[0]
        if any(p.species != first.species or p.cutoff != first.cutoff for p in self.potentials):
            raise InputError("the members have other species or another cutoff", hint="train them alike")
        energies: list[Tensor] = []
        forces: list[Tensor] = []
        for batch in batches_of(valid, first.species, first.cutoff, _BATCH):
            mean, spread, mean_forces, spread_forces = self._predict(batch.graph)
            energies.append(torch.stack([(batch.labels.energy - mean).abs(), spread]))
            error = torch.linalg.vector_norm(batch.labels.forces - mean_forces, dim=1)
            forces.append(torch.stack([error, spread_forces]))
        none = torch.zeros((2, 0), dtype=torch.float64)
        errors, raw = torch.cat([none, *energies], dim=1).numpy()
        self.energy = calibrate(errors, raw)
        errors, raw = torch.cat([none, *forces], dim=1).numpy()
        self.forces = calibrate(errors, raw, dimensions=3)

    def energy_uncertainty(self, graph: AtomGraph) -> NDArray[np.float64]:
        """(M,) eV."""
        return self.energy(self._predict(graph)[1].numpy())

    def forces_uncertainty(self, graph: AtomGraph) -> NDArray[np.float64]:
        """(N,) eV/Å, of the lengths of the forces' errors."""
        return self.forces(self._predict(graph)[3].numpy())

    def _predict(self, graph: AtomGraph) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.no_grad():
            made = [potential(graph, forces=True, virial=False) for potential in self.potentials]
        energies = torch.stack([each.energy for each in made])
        forces = torch.stack([each.forces for each in made])
        spread = torch.sqrt(forces.var(dim=0).sum(dim=-1))
        return energies.mean(dim=0), energies.std(dim=0), forces.mean(dim=0), spread
