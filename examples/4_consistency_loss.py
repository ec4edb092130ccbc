"""How far a potential is from agreeing with itself, and a consistency loss of your own that it is trained with.

python examples/4_consistency_loss.py     (--steps 50 for a first look)
"""

import argparse

import torch

import pimlip_zoo as pz
from pimlip_zoo.consistency import ORIGIN, D, Surface, residual
from pimlip_zoo.datasets.neighbours import frames_to_batch
from pimlip_zoo.datasets.readers import load_frames

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--out", default="runs/example-4", help="a folder without a run")
options = parser.parse_args()
steps, out = options.steps, options.out


@residual("simpson_central", order=5, equation="E(r+d) - E(r-d) + <d, (F(r-d) + 4 F(r) + F(r+d))/3>")
def simpson_central(s: Surface) -> torch.Tensor:
    """Energies on both sides of a structure against the forces between them: (M,) eV."""
    return s.E(D) - s.E(-D) + s.work(D, (s.F(-D) + 4.0 * s.F(ORIGIN) + s.F(D)) / 3.0)


settings = {
    "model.force_head": "direct",  # forces of a head of their own: nothing but the loss ties them to the energy
    "data.train": "builtin:ethanol-gfn2@:100",
    "trainer.max_steps": steps,
    "weak.terms.simpson_central.weight": 0.1,
    "weak.perturbation.amplitude": 0.02,
}
potential = pz.train(settings, out=out)

frames = load_frames("builtin:ethanol-gfn2/test_300K@:4")
graph = frames_to_batch(frames, potential.species, cutoff=potential.cutoff + 0.2).graph
d = 0.01 * torch.randn(len(graph.positions), 3, dtype=torch.float64)
for name in ("pitc_central", "simpson_central"):
    print(name, potential.residual(name, graph, d).tolist(), "eV")
