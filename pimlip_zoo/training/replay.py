"""Replay: what a potential said of other structures before it was fine-tuned, kept as labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import Batch, collate, graph_to
from pimlip_zoo.losses.base import Evaluated, LossTerm, LossValue, PotentialLike
from pimlip_zoo.losses.pool import step_generator
from pimlip_zoo.models.potential import Potential

AMPLITUDE, STRAIN = 0.15, 0.03
"""Å, of the displacements of copies, and of the strain of periodic ones (standard deviations)."""


def displaced_copies(frames: Sequence[Frame], count: int, seed: int) -> list[Frame]:
    """Structures drawn from others, their atoms displaced and periodic cells strained; without labels.

    Args:
        frames: to draw from.
        count: how many.
        seed: of choice, displacements and strains.
    """
    rng, copies = np.random.default_rng([seed, 16]), []
    for _ in range(count):
        frame = frames[int(rng.integers(len(frames)))]
        strain = rng.normal(0.0, STRAIN, (3, 3))
        deformation = np.eye(3) + (strain + strain.T) / 2.0 * bool(frame.pbc.all())
        moved = frame.positions + rng.normal(0.0, AMPLITUDE, frame.positions.shape)
        copies.append(
            replace(
                frame,
                positions=moved @ deformation,
                cell=frame.cell @ deformation,
                energy=None,
                forces=None,
                stress=None,
            )
        )
    return copies


class Replay(LossTerm):
    """Squared deviations from what the potential itself said before its training: energies per atom, and forces.

    Args:
        potential: as it is before the first step.
        samples: structures; their labels are not looked at.
        batch_size: how many of them a step looks at.
        energy_weight: of the squared energy deviation per atom.
        force_weight: of the squared force deviation by component.
        weight: of the term.
        seed: of the batches.
    """

    def __init__(
        self,
        potential: Potential,
        samples: Sequence[Batch],
        *,
        batch_size: int = 2,
        energy_weight: float = 1.0,
        force_weight: float = 1.0,
        weight: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__("replay", weight)
        self.samples, self.batch_size, self.seed = list(samples), min(batch_size, len(samples)), seed
        self.energy_weight, self.force_weight = energy_weight, force_weight
        energies, forces = [], []
        with torch.no_grad():
            for sample in samples:
                said = potential(sample.graph, forces=True, virial=False)
                energies.append(said.energy)
                forces.append(said.forces)
        # Buffers: a resumed run takes them from its checkpoint, where the potential is another one already.
        self.energy, self.forces = torch.nn.Buffer(torch.cat(energies)), torch.nn.Buffer(torch.cat(forces))
        counts = torch.tensor([len(value) for value in forces])
        self._first = (counts.cumsum(0) - counts).tolist()
        self._count = counts.tolist()

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Refuse what was said of other structures; of runs that kept no hash of them, as far as sizes tell."""
        for name in ("energy", "forces"):
            kept = state.get(prefix + name)
            if kept is not None and kept.shape != getattr(self, name).shape:
                raise InputError(
                    f"the structures to replay are not those of the run: it kept {name} of {len(kept)}, "
                    f"these have {len(getattr(self, name))}",
                    key="finetune.replay",
                    hint="put the old ones back, or start from the run with --from",
                )
        super()._load_from_state_dict(state, prefix, *rest)

    def forward(self, evaluated: Evaluated) -> LossValue:
        """See :class:`LossTerm`; the labelled structures are not looked at."""
        generator = step_generator(self.seed, evaluated.step.batch)
        drawn = torch.randperm(len(self.samples), generator=generator)[: self.batch_size].tolist()
        potential = cast("PotentialLike", evaluated.potential)
        graph = graph_to(collate([self.samples[i] for i in drawn]).graph, self.energy.device)
        predicted = potential(graph, forces=True, virial=False)
        counts = torch.tensor([self._count[i] for i in drawn], device=self.energy.device)
        energy = (predicted.energy - self.energy[drawn]) / counts
        forces = predicted.forces - self._said(drawn)
        total = self.energy_weight * energy.square().mean() + self.force_weight * forces.square().mean()
        return LossValue(total, torch.ones_like(total))

    def _said(self, drawn: Sequence[int]) -> Tensor:
        return torch.cat([self.forces[self._first[i] : self._first[i] + self._count[i]] for i in drawn])
