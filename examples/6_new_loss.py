"""A supervised loss of your own: the force on the centre of mass of a molecule, which has to vanish with a direct head.

python examples/6_new_loss.py         (--steps 50 for a first look)
"""

import argparse

import torch

import pimlip_zoo as pz
from pimlip_zoo.graph import Batch
from pimlip_zoo.losses import Evaluated, LossTerm, LossValue, Requests, Step, loss


@loss("net_force", label="forces")
class NetForce(LossTerm):
    """The square of the sum of predicted forces, (eV/Å)²."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__("net_force", weight)

    def requests(self, batch: Batch, step: Step) -> Requests:
        """Forces of the labelled structures."""
        return Requests(forces=True)

    def forward(self, evaluated: Evaluated) -> LossValue:
        """A sum and a count, so that means over batches and processes are exact."""
        graph = evaluated.batch.graph
        net = torch.zeros(graph.num_graphs, 3, dtype=evaluated.predictions.forces.dtype)
        net = net.index_add(0, graph.batch, evaluated.predictions.forces)
        return LossValue(net.square().sum(), torch.tensor(float(graph.num_graphs)))


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--out", default="runs/example-6", help="a folder without a run")
options = parser.parse_args()
steps, out = options.steps, options.out
settings = {
    "model.force_head": "direct",
    "data.train": "builtin:ethanol-gfn2@:100",
    "trainer.max_steps": steps,
    "loss.net_force.weight": 0.1,
}
pz.train(settings, out=out)
print(f"its value at every validation: column loss_net_force of {out}/metrics.csv")
