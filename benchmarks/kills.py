"""Conversion, training and rounds killed with SIGKILL again and again: is anything lost, is anything done twice?

    python benchmarks/kills.py --what convert --kills 20
    python benchmarks/kills.py --what train --kills 20
    python benchmarks/kills.py --what rounds --kills 20

The same command is started again after each kill. In the end the store has to hold every frame, in order and
verified; the weights of the training have to be those of an uninterrupted one, bit for bit, and its metrics, too.
Rounds are killed in each phase of each round in turn: they have to end with the structures, labels, weights and errors
of uninterrupted ones, and every label that was known before a kill has to be computed once.
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


COUNTED = """
import fcntl
from ase.calculators.emt import EMT

class Counted(EMT):
    def calculate(self, atoms=None, *arguments, **options):
        super().calculate(atoms, *arguments, **options)
        with open({log!r}, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(repr(atoms.positions.round(7).tolist()) + "\\n")

make = Counted
"""
ROUNDS = """
out: {out}
sample: {{start: 'builtin:cual-emt/train@30:34', calculator: emt, structures: 40, temperatures: [200, 400], stride: 10,
         strain: 0.04}}
label: {{calculator: 'counted:make'}}
select: {{number: 6, valid: 4}}
train:
  model: {{name: nequip, num_layers: 1, channels: 4, l_max: 1, cutoff: 3.5}}
  trainer: {{max_steps: 40, valid_every: 10, threads: 1}}
stop: {{rounds: 2}}
"""
PHASES = ("sample", "select", "label", "train", "test")


DEADLY = """
import os, signal, sys, threading
sys.path.insert(0, {home!r})
from pimlip_zoo.rounds import run as rounds
at, delay = {at!r}, {delay!r}
now = [0]

def end():
    os.kill(os.getpid(), signal.SIGKILL)

def watched(name, phase):
    true = getattr(rounds, name)
    def call(*arguments, **options):
        if phase == "sample":
            now[0] = arguments[1]
        if (now[0], phase) == at:
            end() if delay == 0 else threading.Timer(delay, end).start()
        return true(*arguments, **options)
    setattr(rounds, name, call)

for name, phase in {functions!r}.items():
    watched(name, phase)
from pimlip_zoo.cli import main
main()
"""
FUNCTIONS = {
    "_sampled": "sample",
    "_chosen": "select",
    "_labelled": "label",
    "_train": "train",
    "evaluate": "test",
}


def phase_of(out):
    """Which phase of which round is under way; None before the first and after the last."""
    for number in (1, 2):
        folder = out / f"round-{number}"
        if not folder.exists():
            return None
        labels = ["labels.lmdb", *(["valid-labels.lmdb"] if number == 1 else [])]
        for phase, made in (
            ("sample", ["pool.lmdb"]),
            ("select", ["chosen.lmdb"]),
            ("label", labels),
            ("train", ["run/trained"]),
            ("test", ["result.json"]),
        ):
            if not all((folder / name).exists() for name in made):
                return number, phase
    return None


def journalled(out):
    """Labels that are known, in all rounds."""
    found = {}
    for path in out.glob("round-*/*labels.lmdb.journal"):
        for line in path.read_bytes().split(b"\n")[1:-1]:
            entry = json.loads(line)
            found[path, entry["key"]] = found.get((path, entry["key"]), 0) + 1
    return found


def rounds(folder, kills, rng):
    import torch

    from pimlip_zoo.datasets.readers import load_frames

    ends, hits, logs, missed = {}, {}, {}, 0
    for name in ("whole", "killed"):
        home = folder / name
        home.mkdir()
        logs[name] = home / "computed.txt"
        (home / "counted.py").write_text(COUNTED.format(log=str(logs[name])))
        command = ["rounds", home / "rounds.yaml"]
        (home / "rounds.yaml").write_text(ROUNDS.format(out=home / "out"))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(home), *filter(None, [os.environ.get("PYTHONPATH")])])
        out, before = home / "out", {}
        targets = [(number, phase) for number in (1, 2) for phase in PHASES] if name == "killed" else []
        times = range(max(1, round(kills / len(PHASES) / 2)))
        for target in [(target, n) for target in targets for n in times]:
            # The first kill in a phase comes when it begins, later ones at random.
            at, delay = target[0], rng.random() * WINDOWS[target[0][1]] if target[1] else 0
            job = start(DEADLY.format(home=str(home), at=at, delay=delay, functions=FUNCTIONS), command)
            _, error = job.communicate()
            if job.returncode != -signal.SIGKILL:
                if job.returncode:
                    raise SystemExit(error.decode()[-2000:])
                missed += 1
                continue
            now = phase_of(out)
            key = "after the last" if now is None else f"round {now[0]}, {now[1]}"
            hits[key] = hits.get(key, 0) + 1
            known = journalled(out)
            if any(known.get(entry, 0) < count for entry, count in before.items()):
                raise SystemExit("a label was lost")
            before = known
        job = start(TRAIN, command)
        _, error = job.communicate()
        if job.returncode:
            raise SystemExit(error.decode()[-2000:])
        rows = [
            {k: v for k, v in row.items() if k != "run"}
            for row in json.loads((out / "rounds.json").read_text())
        ]
        frames = [f for number in (1, 2) for f in load_frames(str(out / f"round-{number}" / "labels.lmdb"))]
        weights = torch.load(out / "round-2" / "run" / "checkpoints" / "last.ckpt", weights_only=True)
        ends[name] = rows, frames, weights["state_dict"], journalled(out)
    whole, killed = ends["whole"], ends["killed"]
    computed = {name: logs[name].read_text().split("\n")[:-1] for name in logs}
    return {
        "rounds": {
            "kills": sum(hits.values()),
            "ended_before_the_kill": missed,
            "kills_by_phase_that_they_hit": hits,
            "same_errors": whole[0] == killed[0],
            "same_labels": [(f.energy, f.positions.tolist()) for f in whole[1]]
            == [(f.energy, f.positions.tolist()) for f in killed[1]],
            "same_weights": all(torch.equal(whole[2][key], killed[2][key]) for key in whole[2]),
            "labels": len(killed[3]),
            "no_label_twice": set(killed[3].values()) == {1},
            "calculations_without_kills": len(computed["whole"]),
            "calculations_with_kills": len(computed["killed"]),
        }
    }


WINDOWS = {"sample": 1.5, "select": 0.5, "label": 2.0, "train": 2.0, "test": 0.3}
"""Seconds after the beginning of a phase within which a kill comes."""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", choices=("convert", "train", "rounds"), required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--folder", default=None, help="where to work; emptied afterwards")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        work = {"convert": convert, "train": train, "rounds": rounds}[arguments.what]
        results = work(folder, arguments.kills, random.Random(0))
    finally:
        shutil.rmtree(folder)
    print(json.dumps(results))
    if not all(value for result in results.values() for key, value in result.items() if key in CHECKS):
        raise SystemExit(1)


CHECKS = ("intact", "same_weights", "same_metrics", "same_errors", "same_labels", "no_label_twice")

if __name__ == "__main__":
    main()
