"""Step time and memory of an exported model in LAMMPS, beside the bare model's evaluation in Python.

One JSON line for each case. Times are CPU seconds of one thread, medians over the steps.

    python benchmarks/lammps.py step --model nequip --size small --atoms 216 --format torchscript --ranks 1
    python benchmarks/lammps.py memory --model nequip --size small --atoms 1000,4000,16000 --chunk 0
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from ase.build import bulk

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.deploy.aot import export_aot
from pimlip_zoo.deploy.lammps.build import build_plugin
from pimlip_zoo.deploy.lammps.input import in_lammps_axes, write_data
from pimlip_zoo.deploy.lammps.run import lammps_command
from pimlip_zoo.deploy.torchscript import export_torchscript
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.nn.kernels import use_kernels
from pimlip_zoo.registry import get_model

SPECIES = ("Cu", "Al")
CUTOFF = 4.5

SCRIPT = """units metal
atom_style atomic
newton on
plugin load {plugin}
read_data structure.data
pair_style pimlip {options}
pair_coeff * * {model} Cu Al
velocity all create 300 1
fix 1 all nve
timestep 0.0001
neighbor 1.0 bin
thermo 1
thermo_style custom step cpu etotal
run {warm}
run {steps}
"""


def crystal(atoms: int):
    """About so many atoms of a jittered fcc alloy."""
    cells = max(1, round((atoms / 4) ** (1 / 3)))
    structure = bulk("Cu", cubic=True, a=3.75) * (cells, cells, cells)
    structure.symbols[::4] = "Al"
    structure.positions += np.random.default_rng(0).normal(scale=0.05, size=(len(structure), 3))
    return in_lammps_axes(structure)


def potential_of(model: str, size: str, dtype: str) -> Potential:
    torch.manual_seed(0)
    info = get_model(model)
    config = info.configure(size, cutoff=CUTOFF, avg_num_neighbors=40.0)
    return Potential(info.model(config, SPECIES)).set_dtype(getattr(torch, dtype)).eval()


def evaluation_time(potential: Potential, atoms, repeats: int) -> float:
    """CPU seconds of one evaluation of the bare potential, graph given."""
    frame = Frame(
        numbers=atoms.numbers.astype(np.int64),
        positions=atoms.positions,
        cell=np.array(atoms.cell),
        pbc=np.array(atoms.pbc),
    )
    graph = frame_to_sample(frame, SPECIES, CUTOFF).graph
    times = []
    for _ in range(repeats + 2):
        start = time.process_time()
        with torch.no_grad():
            potential(graph)
        times.append(time.process_time() - start)
    return statistics.median(times[2:])


def run(folder: Path, atoms, model: Path, *, ranks: int, steps: int, options: str) -> dict:
    """Step times and peak memory of LAMMPS."""
    write_data(folder / "structure.data", atoms, SPECIES)
    warm = 3 if steps > 2 else 0
    text = SCRIPT.format(plugin=build_plugin(), model=model, options=options, warm=warm, steps=steps)
    (folder / "in.lammps").write_text(text)
    command = [*lammps_command(ranks), "-in", "in.lammps", "-log", "none"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit(done.stdout[-1000:] + done.stderr[-1000:])
    loops = re.findall(r"Loop time of (\S+) on", done.stdout)
    usage = re.findall(r"(\S+)% CPU use", done.stdout)
    return {
        "wall_ms_step": 1e3 * float(loops[-1]) / steps,
        "cpu_ms_step": 1e3 * float(loops[-1]) / steps * float(usage[-1]) / 100.0,
        "rss_mb": after.ru_maxrss / 1024.0,
        "total_cpu_s": after.ru_utime - before.ru_utime,
    }


def step(arguments: argparse.Namespace) -> None:
    potential = potential_of(arguments.model, arguments.size, arguments.dtype)
    export = {"torchscript": export_torchscript, "aot": export_aot}[arguments.format]
    suffix = {"torchscript": ".nequip.pth", "aot": ".nequip.pt2"}[arguments.format]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        report = export(potential, folder / f"model{suffix}", name=arguments.model)
        for count in arguments.atoms:
            atoms = crystal(count)
            result = {
                "model": arguments.model,
                "size": arguments.size,
                "dtype": arguments.dtype,
                "format": arguments.format,
                "ranks": arguments.ranks,
                "atoms": len(atoms),
                "chunk": arguments.chunk,
                "export_s": report.seconds,
            }
            options = f"chunk {arguments.chunk}" if arguments.chunk else ""
            result |= run(
                folder, atoms, report.path, ranks=arguments.ranks, steps=arguments.steps, options=options
            )
            if arguments.command == "step":
                result["bare_cpu_ms"] = 1e3 * evaluation_time(potential, atoms, arguments.steps)
                with use_kernels("reference"):
                    result["bare_reference_cpu_ms"] = 1e3 * evaluation_time(potential, atoms, arguments.steps)
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("step", "memory"))
    parser.add_argument("--model", default="nequip")
    parser.add_argument("--size", default="small")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--format", default="torchscript", choices=("torchscript", "aot"))
    parser.add_argument("--atoms", type=lambda text: [int(n) for n in text.split(",")], default=[216])
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--chunk", type=int, default=0)
    step(parser.parse_args())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
