"""How fast data move: reading, converting, verifying, decoding, feeding, at a number of structures.

    python benchmarks/data.py --count 100000
    python benchmarks/data.py --count 1000000 --only npz,store

Structures are perturbed copies of the built-in ethanol set. One JSON line per measurement: structures per
second of wall time and of the process' own CPU time, and the memory that was in use at most.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.convert import convert
from pimlip_zoo.datasets.frame import Frame, frame_to_atoms
from pimlip_zoo.datasets.lmdb import FrameStore
from pimlip_zoo.datasets.readers import read_frames


def perturbed(count, seed=0):
    """Arrays (positions, energies, forces) of perturbed ethanol, and its atomic numbers."""
    rng = np.random.default_rng(seed)
    base = load_builtin("ethanol-gfn2/train")
    chosen = rng.integers(0, len(base), count)
    positions = np.array([f.positions for f in base])[chosen] + 0.01 * rng.normal(size=(count, 9, 3))
    energies = np.array([f.energy for f in base])[chosen] + 0.01 * rng.normal(size=count)
    forces = np.array([f.forces for f in base])[chosen] + 0.1 * rng.normal(size=(count, 9, 3))
    return base[0].numbers, positions, energies, forces


def write_npz(path, count):
    numbers, positions, energies, forces = perturbed(count)
    np.savez(path, z=numbers, R=positions, E=energies, F=forces, e_unit="eV", r_unit="Ang")


def write_h5(path, count):
    import h5py
    from ase import units

    numbers, positions, energies, forces = perturbed(count)
    with h5py.File(path, "w") as file:
        group = file.create_group("C2H6O")
        group["atomic_numbers"] = numbers
        group["coordinates"] = positions
        group["wb97x_dz.energy"] = energies / units.Hartree
        group["wb97x_dz.forces"] = forces / units.Hartree


def write_deepmd(path, count):
    numbers, positions, energies, forces = perturbed(count)
    part = path / "set.000"
    part.mkdir(parents=True)
    (path / "type.raw").write_text("\n".join(str({6: 0, 8: 1, 1: 2}[int(z)]) for z in numbers))
    (path / "type_map.raw").write_text("C O H")
    (path / "nopbc").write_text("")
    np.save(part / "coord.npy", positions.reshape(count, -1))
    np.save(part / "energy.npy", energies)
    np.save(part / "force.npy", forces.reshape(count, -1))


def write_extxyz(path, count):
    from ase.io import write

    numbers, positions, energies, forces = perturbed(count)
    frames = (
        frame_to_atoms(Frame(numbers=numbers, positions=p, energy=float(e), forces=f))
        for p, e, f in zip(positions, energies, forces, strict=True)
    )
    write(path, list(frames), format="extxyz")


def write_db(path, count):
    from ase.db import connect

    numbers, positions, energies, forces = perturbed(count)
    with connect(path) as database:
        for p, e, f in zip(positions, energies, forces, strict=True):
            database.write(frame_to_atoms(Frame(numbers=numbers, positions=p, energy=float(e), forces=f)))


def write_spice(path, count):
    """One group of 50 conformations after the other, as SPICE has them."""
    import h5py
    from ase import units

    numbers, positions, energies, forces = perturbed(count)
    with h5py.File(path, "w") as file:
        for start in range(0, count, 50):
            part, group = slice(start, start + 50), file.create_group(f"molecule {start}")
            group["atomic_numbers"] = numbers
            group["conformations"] = (positions[part] / units.Bohr).astype("f4")
            group["dft_total_energy"] = energies[part] / units.Hartree
            group["dft_total_gradient"] = (-forces[part] / units.Hartree * units.Bohr).astype("f4")
            group["subset"] = [b"SPICE"]


def write_n2p2(path, count):
    numbers, positions, energies, forces = perturbed(count)
    symbols = [{6: "C", 8: "O", 1: "H"}[int(z)] for z in numbers]
    path.mkdir()
    with (path / "input.data").open("w") as file:
        for place, energy, force in zip(positions.tolist(), energies.tolist(), forces.tolist(), strict=True):
            file.write("begin\n")
            for symbol, r, f in zip(symbols, place, force, strict=True):
                file.write(
                    "atom {:.10f} {:.10f} {:.10f} {} 0 0 {:.10f} {:.10f} {:.10f}\n".format(*r, symbol, *f)
                )
            file.write(f"energy {energy:.10f}\ncharge 0\nend\n")


def write_aselmdb(path, count):
    """Zlib-compressed JSON by number of the row, as the LMDB backend of ASE's databases lays it out."""
    import zlib

    import lmdb

    def array(values):
        return {"__ndarray__": [list(values.shape), str(values.dtype), values.reshape(-1).tolist()]}

    numbers, positions, energies, forces = perturbed(count)
    same = {
        "numbers": array(numbers),
        "cell": array(np.zeros((3, 3))),
        "pbc": array(np.zeros(3, dtype=bool)),
        "key_value_pairs": {},
        "data": {},
    }
    with (
        lmdb.open(str(path), subdir=False, lock=False, map_size=4096 * count + (1 << 24)) as environment,
        environment.begin(write=True) as transaction,
    ):
        for k in range(count):
            row = {
                "positions": array(positions[k]),
                "forces": array(forces[k]),
                "energy": energies[k],
                **same,
            }
            transaction.put(str(k + 1).encode(), zlib.compress(json.dumps(row).encode()))
        transaction.put(b"nextid", zlib.compress(str(count + 1).encode()))
        transaction.put(b"deleted_ids", zlib.compress(b"[]"))


def write_vasp(path, count):
    """Ethanol in a box, as a calculation of molecular dynamics writes it."""
    import vasp

    numbers, positions, energies, forces = perturbed(count)
    write = vasp.write_outcar if path.name.endswith("OUTCAR") else vasp.write_vasprun
    write(path, numbers, 12.0 * np.eye(3), positions + 6.0, energies, forces, np.zeros((count, 3, 3)))


WRITERS = {
    "npz": write_npz,
    "h5": write_h5,
    "spice": write_spice,
    "deepmd": write_deepmd,
    "extxyz": write_extxyz,
    "n2p2": write_n2p2,
    "aselmdb": write_aselmdb,
    "db": write_db,
    "vasprun": write_vasp,
    "outcar": write_vasp,
}
ENDINGS = {"deepmd": "", "n2p2": "", "spice": ".spice.h5", "vasprun": ".vasprun.xml", "outcar": ".OUTCAR"}
INSIDE = {"n2p2": "/input.data?energy=eV&length=Å"}
SMALLER = {"extxyz": 5, "n2p2": 5, "aselmdb": 5, "db": 20, "vasprun": 20, "outcar": 20}
"""Formats that are slow to write for the benchmark get fewer structures."""


def apart(work, *arguments):
    """Run something in a process of its own, so that its memory does not count."""
    job = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    job.start()
    job.join()
    assert job.exitcode == 0


def measure(task, count, work):
    """Run something and print its rate."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = {
        "task": task,
        "structures": count,
        "per_s": round(count / wall),
        "per_cpu_s": round(count / cpu),
        "wall_s": round(wall, 2),
        "peak_mb": round(peak),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(line), flush=True)


def decode_at_random(store):
    order = np.random.default_rng(0).permutation(len(store))[:100_000]
    for index in order:
        store[index]


def feed(path, count, workers, batch):
    """Batches as training takes them."""
    from pimlip_zoo.datasets.dataset import FrameDataset
    from pimlip_zoo.datasets.sampler import BatchBudget, BudgetSampler
    from pimlip_zoo.datasets.store_frames import open_frames
    from pimlip_zoo.training.data import SampleList, training_loader

    dataset = FrameDataset(open_frames(f"{path}@:{count}"), ("H", "C", "O"), 5.0, cache_bytes=0)
    sampler = BudgetSampler(*dataset.sizes(), BatchBudget(max_structures=batch))
    loader = training_loader(SampleList(dataset), sampler, workers)
    batches = (b.linked(None) for b in loader)
    assert sum(b.graph.num_graphs for b in batches) == count


def run(count, only, folder, workers):
    for name, write in WRITERS.items():
        if only and name not in only:
            continue
        size = max(1000, count // SMALLER.get(name, 1))
        path = folder / f"data{ENDINGS.get(name, '.' + name)}"
        apart(write, path, size)
        spec = f"{path}{INSIDE.get(name, '')}"
        measure(f"read {name}", size, lambda spec=spec: sum(1 for _ in read_frames(spec)))
        out = folder / f"{name}.lmdb"
        measure(f"convert {name}", size, lambda spec=spec, out=out: convert(spec, out))
        if name != "npz":
            shutil.rmtree(out) if out.is_dir() else out.unlink()
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if only and "store" not in only:
        return
    store = folder / "npz.lmdb"
    if not store.exists():
        apart(write_npz, folder / "data.npz", count)
        convert(str(folder / "data.npz"), store)
    size = sum(f.stat().st_size for f in ([store] if store.is_file() else store.iterdir()))
    print(json.dumps({"task": "size", "bytes_per_structure": round(size / count)}))
    if workers > 1:
        measure(
            f"convert npz, {workers} processes",
            count,
            lambda: convert(
                str(folder / "data.npz"), folder / "w.lmdb", workers=workers, shard_frames=count // workers
            ),
        )
    measure("open store and its index", count, lambda: FrameStore(store).index)
    measure("decode in order", count, lambda: sum(1 for _ in FrameStore(store)))
    measure("decode at random", min(count, 100_000), lambda: decode_at_random(FrameStore(store)))
    measure("verify", count, lambda: FrameStore(store).verify())
    fed = min(count, 20_000)
    feed(store, min(count, 1000), 0, 32)
    for batch in (10, 32, 500):
        measure(f"feed, batches of {batch}, no worker", fed, lambda batch=batch: feed(store, fed, 0, batch))
    measure("feed, batches of 32, 2 workers", fed, lambda: feed(store, fed, 2, 32))
    from pimlip_zoo.datasets.audit import audit

    measure("audit", min(count, 50_000), lambda: audit({"train": f"{store}@:50000"}))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--only", default="", help=",".join([*WRITERS, "store"]))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", default=None, help="where to put the data; removed afterwards")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        run(arguments.count, [name for name in arguments.only.split(",") if name], folder, arguments.workers)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
