"""A million structures: converted, verified, trained on for one pass, at which rate and in how much memory.

    python benchmarks/million.py --folder scratch --count 1000000
    python benchmarks/million.py --folder scratch --count 1000000 --remove

Structures are perturbed copies of the built-in ethanol set with energies to first order, ``E - F·δ``, written as HDF5
in the layout of ANI-1x. Each stage is a process of its own, whose CPU time and largest memory are printed as a
JSON line and kept in the folder; a stage that is done is not repeated, and an interrupted one goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np

CHUNK = 50_000
MODEL = ["model.channels=8", "model.l_max=1", "model.num_layers=1", "model.radial_hidden=[16]"]


def make(path, count):
    import h5py
    from ase import units

    from pimlip_zoo.datasets.builtin import load_builtin

    rng = np.random.default_rng(0)
    base = load_builtin("ethanol-gfn2/train")
    positions = np.array([f.positions for f in base])
    forces, energies = np.array([f.forces for f in base]), np.array([f.energy for f in base])
    temporary = path.with_suffix(".tmp")
    with h5py.File(temporary, "w") as file:
        group = file.create_group("C2H6O")
        group["atomic_numbers"] = base[0].numbers
        shape = (count, 9, 3)
        out_r, out_f = (group.create_dataset(k, shape, "f8") for k in ("coordinates", "wb97x_dz.forces"))
        out_e = group.create_dataset("wb97x_dz.energy", (count,), "f8")
        for start in range(0, count, CHUNK):
            size = min(CHUNK, count - start)
            chosen = rng.integers(0, len(base), size)
            shift = 0.01 * rng.normal(size=(size, 9, 3))
            part = slice(start, start + size)
            out_r[part] = positions[chosen] + shift
            out_f[part] = forces[chosen] / units.Hartree
            out_e[part] = (energies[chosen] - (forces[chosen] * shift).sum((1, 2))) / units.Hartree
    temporary.replace(path)


def convert(source, store, shard):
    from pimlip_zoo.datasets.convert import convert as to_store

    to_store(str(source), store, shard_frames=shard)


def verify(store):
    from pimlip_zoo.datasets.lmdb import FrameStore

    FrameStore(store).verify()


def train(store, run, count, batch, workers, limit):
    from pimlip_zoo.cli import main

    steps = min(-(-(count - count // 100) // batch), limit)
    options = [
        f"data.batch_size={batch}",
        "data.valid_fraction=0.01",
        "data.max_valid=2000",
        "data.cache_mb=0",
        f"data.num_workers={workers}",
        f"trainer.max_steps={steps}",
        f"trainer.valid_every={max(steps // 4, 1)}",
        "optimizer.lr=0.02",
        *MODEL,
    ]
    settings = [word for option in options for word in ("--set", option)]
    going = ["--resume"] if (run / "checkpoints" / "last.ckpt").exists() else []
    sys.argv = ["pimlip-zoo", "train", "--out", str(run), *going]
    sys.argv += [] if going else ["--model", "nequip", "--data", str(store), "--device", "cpu", *settings]
    main()


def own_memory(process):
    """MB of a process now, without the pages of files that it has mapped (the store's, mostly)."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
    return round(int(found[0]) / 1024) if found else 0


def stage(folder, name, count, work, *arguments):
    """Do a stage in a process of its own, unless its result is there."""
    result = folder / f"{name}.json"
    if not result.exists():
        started = time.perf_counter()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(*arguments)
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                os._exit(code)
        own, done = 0, 0
        while not done:
            own = max(own, own_memory(child))
            time.sleep(0.2)
            done, status, used = os.wait4(child, os.WNOHANG)
        if status:
            raise SystemExit(f"{name} ended with status {status}; the same command goes on")
        cpu, wall = used.ru_utime + used.ru_stime, time.perf_counter() - started
        line = {
            "stage": name,
            "structures": count,
            "per_cpu_s": round(count / cpu),
            "cpu_s": round(cpu, 1),
            "wall_s": round(wall, 1),
            "peak_mb": round(used.ru_maxrss / 1024),
            "peak_without_mapped_files_mb": own,
            "load": round(os.getloadavg()[0], 1),
        }
        result.write_text(json.dumps(line))
    print(result.read_text(), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--shard", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10**9, help="stop the training early")
    parser.add_argument("--remove", action="store_true", help="remove the folder afterwards")
    a = parser.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    source, store = a.folder / "all.h5", a.folder / "all.lmdb"
    stage(a.folder, "make", a.count, make, source, a.count)
    stage(a.folder, "convert", a.count, convert, source, store, a.shard)
    stage(a.folder, "verify", a.count, verify, store)
    stage(a.folder, "train", a.count, train, store, a.folder / "run", a.count, a.batch, a.workers, a.steps)
    if a.remove:
        shutil.rmtree(a.folder)


if __name__ == "__main__":
    main()
