"""A residual of the fifth order along one displacement, and structures that breathe."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from pimlip_zoo.consistency import (
    ORIGIN,
    Context,
    D,
    Displacement,
    DisplacementOptions,
    Surface,
    displacement,
    remove_mean,
    residual,
)
from pimlip_zoo.graph import AtomGraph


@residual("pitc_simpson", order=5, equation="E(r+d) - [E(r) - <d, (F(r) + 4 F(r+d/2) + F(r+d))/6>]")
def pitc_simpson(s: Surface) -> Tensor:
    """The energy difference along ``d`` against the forces, integrated by Simpson's rule: (M,) eV."""
    t = s.target  # what a teacher may take
    forces = (t.F(ORIGIN) + 4.0 * t.F(D / 2) + t.F(D)) / 6.0
    return s.E(D) - t.E(ORIGIN) + s.work(D, forces)


class BreathingOptions(DisplacementOptions):
    """Options of the displacement, beside its amplitude."""

    noise: float = Field(default=0.2, ge=0, le=1)
    """How large a random part is, relative to the breathing."""


@displacement("breathing", options=BreathingOptions)
class Breathing(Displacement):
    """Every structure swells or shrinks about its middle; no atom moves further than the amplitude."""

    def __init__(self, amplitude: float, noise: float = 0.2) -> None:
        super().__init__(amplitude, amplitude)
        self.noise = noise

    def draw(self, graph: AtomGraph, generator: torch.Generator, context: Context | None) -> Tensor:  # noqa: ARG002
        """Displacements (N, 3) Å without mean; what is too long is scaled down afterwards."""
        outwards = remove_mean(graph.positions, graph)
        sign = torch.randn(graph.num_graphs, generator=generator, dtype=torch.float64).sign()
        random = torch.randn(outwards.shape, generator=generator, dtype=torch.float64)
        swelling = 0.02 * sign.to(outwards.device)[graph.batch].unsqueeze(1) * outwards
        return swelling + remove_mean(0.1 * self.noise * self.amplitude * random.to(outwards.device), graph)
