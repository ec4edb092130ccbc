"""Conversion and training killed with SIGKILL at random moments, again and again: is anything lost?

    python benchmarks/kills.py --what convert --kills 20
    python benchmarks/kills.py --what train --kills 20

The same command is started again after each kill. In the end the store has to hold every frame, in order and
verified; the weights of the training have to be those of an uninterrupted one, bit for bit, and its metrics, too.
Prints one JSON line; the exit code says whether all was well.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CONVERT = """
import sys
from pimlip_zoo.datasets.lmdb import writer
writer._COMMIT_FRAMES = 50  # many commits in a short time
from pimlip_zoo.datasets.convert import convert
convert(sys.argv[1], sys.argv[2], shard_frames=int(sys.argv[3]), workers=int(sys.argv[4]))
"""
TRAIN = "from pimlip_zoo.cli import main; main()"


def start(script, arguments):
    """The command in a process group of its own, so that a kill reaches its workers, too."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill_again_and_again(script, arguments, kills, working, window, rng, finished=lambda: False):
    """Kill the command some time after it began to work; how often that was while it did.

    A kill may hit the moment between the last of the work and the end of the process: then ``finished`` says so, and
    the command is not started again.
    """
    done = 0
    while done < kills:
        job, before = start(script, arguments), working()
        began = time.monotonic()
        while job.poll() is None and working() == before and time.monotonic() - began < 300:
            time.sleep(0.002)
        time.sleep(rng.random() * window)
        if job.poll() is not None:
            _, error = job.communicate()
            if job.returncode:
                raise SystemExit(error.decode()[-2000:])
            return done, True
        os.killpg(job.pid, signal.SIGKILL)
        job.communicate()
        done += 1
        if finished():
            return done, True
    job = start(script, arguments)
    _, error = job.communicate()
    if job.returncode:
        raise SystemExit(error.decode()[-2000:])
    return done, False


def convert(folder, kills, rng):
    from pimlip_zoo.datasets.lmdb import FrameStore

    # Long enough that the first kill comes before the end, however fast the machine.
    count, numbers = max(1000 * kills, 20_000), np.array([6, 6, 8, 1, 1, 1, 1, 1, 1])
    draw = np.random.default_rng(0)
    place = 3.0 * np.arange(27.0).reshape(9, 3) + draw.normal(size=(count, 9, 3))
    energies = np.arange(count, dtype=float)
    source = folder / "a.npz"
    np.savez(
        source, z=numbers, R=place, E=energies, F=draw.normal(size=place.shape), e_unit="eV", r_unit="Ang"
    )
    results = {}
    for name, shard, workers in (("one file", 10**6, 1), ("shards, two processes", 900, 2)):
        out = folder / f"{workers}.lmdb"
        partial = folder / f"{workers}.lmdb.partial"

        def written(partial=partial):
            try:
                return sum(f.stat().st_blocks for f in partial.glob("*.lmdb*"))
            except FileNotFoundError:  # it is finished, and took its place between the two looks
                return 0

        done, early = kill_again_and_again(
            CONVERT, [source, out, shard, workers], -(-kills // 2), written, 0.1, rng, out.exists
        )
        store = FrameStore(out)
        intact = store.verify() == count and [frame.energy for frame in store] == energies.tolist()
        results[name] = {"kills": done, "finished_before_the_last": early, "frames": count, "intact": intact}
    return results


def train(folder, kills, rng):
    import torch

    from pimlip_zoo.datasets.builtin import load_builtin
    from pimlip_zoo.datasets.lmdb import write_store

    store, steps = write_store(folder / "all.lmdb", load_builtin("ethanol-gfn2/train")[:150]), 60 * kills
    options = [
        "model.channels=4",
        "model.l_max=1",
        f"trainer.max_steps={steps}",
        "trainer.valid_every=7",
        "data.num_workers=1",
        "data.max_valid=5",
    ]
    settings = [word for option in options for word in ("--set", option)]
    common = ["train", "--model", "nequip", "--data", store, "--device", "cpu", *settings]
    job = start(TRAIN, [*common, "--out", folder / "whole"])
    if job.wait():
        raise SystemExit(job.stderr.read().decode()[-2000:])
    run = folder / "killed"
    metrics = run / "metrics.csv"
    begin = start(TRAIN, [*common, "--out", run])
    while not (run / "config.yaml").exists() and begin.poll() is None:
        time.sleep(0.01)
    os.killpg(begin.pid, signal.SIGKILL)  # before its first checkpoint, most likely
    begin.communicate()
    done, early = kill_again_and_again(
        TRAIN,
        ["train", "--out", run, "--resume"],
        kills - 1,
        lambda: metrics.stat().st_mtime_ns if metrics.exists() else 0,
        0.6,
        rng,
    )
    ends = [
        torch.load(folder / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("whole", "killed")
    ]
    same = all(
        torch.equal(ends[0][key][name], ends[1][key][name])
        for key in ("state_dict", "current_model_state")
        for name in ends[0][key]
    )
    tables = []
    for name in ("whole", "killed"):
        with (folder / name / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        tables.append([{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    return {
        "training": {
            "kills": done + 1,
            "finished_before_the_last": early,
            "steps": ends[1]["global_step"],
            "same_weights": same,
            "same_metrics": tables[0] == tables[1],
        }
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", choices=("convert", "train"), required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--folder", default=None, help="where to work; emptied afterwards")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        work = {"convert": convert, "train": train}[arguments.what]
        results = work(folder, arguments.kills, random.Random(0))
    finally:
        shutil.rmtree(folder)
    print(json.dumps(results))
    if not all(value for result in results.values() for key, value in result.items() if key in CHECKS):
        raise SystemExit(1)


CHECKS = ("intact", "same_weights", "same_metrics")

if __name__ == "__main__":
    main()
