"""What data cost beside training: the share of a step's CPU time that reading, checking and linking a batch takes.

    python benchmarks/feeding.py
    python benchmarks/feeding.py --model mace --batch 10 --steps 30

A store of ethanol (9 atoms, 72 edges within 5 Å) is streamed. ``anew``: without a cache, every structure is read
and every neighbour list made when its batch comes, the worst case; ``kept``: from the cache, as for sets that fit. With
workers it happens beside the training, and what remains is taking the batch over. CPU milliseconds of the process that
trains, and wall milliseconds that it waits; the mean of the data's, the median of the training's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from pimlip_zoo import experiment
from pimlip_zoo.config import load_config
from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.lmdb import write_store
from pimlip_zoo.experiment.run import training_module
from pimlip_zoo.training.data import SampleList, StepSampler, training_loader


def measure(store, model, preset, batch_size, steps, cache, workers):
    settings = [
        ("data.train", str(store)),
        ("model.name", model),
        ("model.preset", preset),
        ("data.cache_mb", cache),
        ("data.max_valid", 2),
    ]
    prepared = experiment.prepare(load_config(None, settings))
    module = training_module(prepared)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, foreach=True)
    sampler = StepSampler(len(prepared.train), batch_size, 10**6, seed=0)
    batches = iter(training_loader(SampleList(prepared.train), sampler, workers))
    data, training, waited = [], [], []
    for _ in range(steps):
        start, wall = time.process_time(), time.perf_counter()
        batch = next(batches)
        batch = batch.linked(None)
        waited.append(time.perf_counter() - wall)
        middle = time.process_time()
        optimizer.zero_grad()
        module.loss(batch)[0].backward()
        optimizer.step()
        data.append(middle - start)
        training.append(time.process_time() - middle)
    # Batches are made in bursts: of the data it is the mean that counts, over whole bursts.
    read, step = sum(data[16:]) / len(data[16:]), median(training[16:])
    line = {
        "model": model,
        "preset": preset,
        "batch": batch_size,
        "samples": "kept" if cache else "anew",
        "workers": workers,
        "data_ms": round(1e3 * read, 2),
        "wait_ms": round(1e3 * sum(waited[16:]) / len(waited[16:]), 2),
        "step_ms": round(1e3 * step, 2),
        "share": round(read / (read + step), 4),
    }
    print(json.dumps(line), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nequip,allegro,mace")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch", default="10,32")
    parser.add_argument("--workers", default="0", help="0,1,2")
    parser.add_argument("--steps", type=int, default=144)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder) / "all.lmdb", load_builtin("ethanol-gfn2/train")[:150])
        for model in arguments.model.split(","):
            for size in map(int, arguments.batch.split(",")):
                for workers in map(int, arguments.workers.split(",")):
                    for cache in (0, 256):
                        measure(store, model, arguments.preset, size, arguments.steps, cache, workers)


if __name__ == "__main__":
    main()
