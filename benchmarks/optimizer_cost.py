"""What a step of the optimiser costs: AdamW, Muon, Muon with equal steps of all outputs.

    OMP_NUM_THREADS=1 python benchmarks/optimizer_cost.py            [--preset small] [--rounds 40]

CPU time of one thread, the lower quartile over rounds in which the optimisers take turns, so that other work on the
machine meets all of them alike. It does not depend on the structures: of a step of training it is a larger part the
smaller the batches are.
"""

import argparse
import time

import numpy as np
import torch

from pimlip_zoo.registry import available_models, get_model
from pimlip_zoo.training.muon import Muon, linear_maps

STEPS = 5


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="small")
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| architecture | matrices | AdamW, ms | Muon, ms | with equal outputs, ms |")
    print("|---|---|---|---|---|")
    for info in map(get_model, available_models()):
        if args.preset not in info.presets:
            continue
        model = info.model(info.configure(args.preset), ["H", "C", "O"]).float()
        parameters, maps = list(model.parameters()), linear_maps(model)
        for parameter in parameters:
            parameter.grad = 0.1 * torch.randn_like(parameter)
        optimizers = [
            torch.optim.AdamW(parameters, lr=1e-9),
            Muon(parameters, maps, lr=1e-9),
            Muon(parameters, maps, lr=1e-9, equal_outputs=True),
        ]
        times = [[milliseconds(optimizer) for optimizer in optimizers] for _ in range(args.rounds)]
        cost = np.quantile(times, 0.25, axis=0)
        print(f"| {info.name} | {len(maps)} | " + " | ".join(f"{ms:.2f}" for ms in cost) + " |")


def milliseconds(optimizer):
    """CPU time of one step, a mean over some."""
    begin = time.process_time()
    for _ in range(STEPS):
        optimizer.step()
    return (time.process_time() - begin) / STEPS * 1e3


if __name__ == "__main__":
    main()
