"""What a step of fine-tuning costs with the weights of all species, and with those of the data alone.

    python benchmarks/fine_tuning_cost.py [--species 89] [--channels 128] [--atoms 24] [--steps 12]

A MACE with random weights of the size of MACE-MP-0 medium, two species in the data; CPU time, one thread.
"""

import argparse
import time

import numpy as np
import torch
from ase.data import chemical_symbols

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.graph import Batch, collate
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model
from pimlip_zoo.training.present import cut_down


def batch_of(potential: Potential, atoms: int) -> Batch:
    """Four crystals of oxygen and titanium, rattled, about 80 atoms in a sphere of 5 Å less what is missing."""
    rng, samples = np.random.default_rng(0), []
    edge = (atoms / 0.09) ** (1 / 3)
    grid = int(np.ceil(atoms ** (1 / 3)))
    places = np.stack(np.meshgrid(*[np.arange(grid)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[:atoms]
    for _ in range(4):
        frame = Frame(
            numbers=rng.choice([8, 22], atoms),
            positions=places * edge / grid + rng.normal(0.0, 0.05, (atoms, 3)),
            cell=np.eye(3) * edge,
            pbc=np.ones(3, dtype=bool),
            energy=0.0,
            forces=np.zeros((atoms, 3)),
        )
        samples.append(frame_to_sample(frame, potential.species, potential.cutoff))
    return collate(samples)


def step_time(potential: Potential, atoms: int, steps: int) -> float:
    """Seconds of CPU time, the median; forward, backward, norm of the gradient, AdamW, moving average."""
    batch = batch_of(potential, atoms)
    weights = [p for p in potential.parameters() if p.requires_grad]
    averages = [p.detach().clone() for p in weights]
    optimizer = torch.optim.AdamW(weights, lr=1e-6, foreach=True)
    times = []
    for _ in range(steps):
        started = time.process_time()
        predicted = potential(batch.graph, forces=True, virial=False)
        optimizer.zero_grad()
        (predicted.energy.square().mean() + predicted.forces.square().mean()).backward()
        torch.nn.utils.clip_grad_norm_(weights, 10.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 0.01)
        times.append(time.process_time() - started)
    return float(np.median(times[2:]))


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--species", type=int, default=89)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--atoms", type=int, default=24, help="of each of four structures")
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    torch.manual_seed(0)
    info = get_model("mace")
    config = info.configure(channels=args.channels, hidden_l_max=1, cutoff=6.0, avg_num_neighbors=60.0)
    whole = Potential(info.model(config, chemical_symbols[1 : args.species + 1])).train()
    small, _ = cut_down(whole, ["O", "Ti"])
    for name, potential in (("all species", whole), ("those of the data", small)):
        count = sum(p.numel() for p in potential.model.parameters())
        print(
            f"{name:18s} {count:10,} weights  {1000 * step_time(potential, args.atoms, args.steps):7.1f} ms a step",
            flush=True,
        )


if __name__ == "__main__":
    main()
