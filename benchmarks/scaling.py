"""Cost of energy and forces per atom against the number of atoms, and what neighbour lists add to it.

    python benchmarks/scaling.py run --models nequip allegro mace --atoms 10 100 1000 10000 100000 --threads 1 2
    python benchmarks/scaling.py table docs/results/benchmarks.md

Native models of the `small` widths of `speed.py`, float32, on a jittered simple cubic lattice of H, C, N and O,
3 Å apart, periodic: about 19 neighbours within 5 Å at every size. Each case is a process of its own. Times per atom
are process CPU time and wall time, medians of calls with moving atoms through the ASE calculator, whose list is used
again; `list` is one neighbour list with the skin of 0.5 Å, of which molecular dynamics needs one every ten steps or so.
Cases are kept as they come, and one that was measured is not measured again unless `--again` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pages import write_between
from speed import SIZES, build

RESULTS = Path(__file__).parent / "results" / "scaling.json"
SPACING, JITTER = 3.0, 0.3


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    every = commands.add_parser("run", help="all cases that are not there yet")
    every.add_argument("--models", nargs="+", default=sorted(SIZES), choices=sorted(SIZES))
    every.add_argument("--atoms", nargs="+", type=int, default=[10, 100, 1000, 10000, 100000])
    every.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    every.add_argument("--again", action="store_true", help="measure known cases again")
    every.add_argument("--results", type=Path, default=RESULTS)
    one = commands.add_parser("case", help="one case, one JSON line")
    one.add_argument("path", type=Path, help="native model")
    one.add_argument("atoms", type=int)
    one.add_argument("--threads", type=int, default=1)
    one.add_argument("--seconds", type=float, default=4.0)
    table = commands.add_parser("table", help="write what is known into a page")
    table.add_argument("page", type=Path)
    table.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    return {"run": run, "case": case, "table": write_table}[options.command](options)


def lattice(count: int):
    """About so many atoms."""
    import numpy as np
    from ase import Atoms

    edge = max(1, round(count ** (1 / 3)))
    shape = (edge, edge, max(1, round(count / edge**2)))
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1).reshape(-1, 3) * SPACING
    random = np.random.default_rng(0)
    numbers = random.choice([1, 6, 7, 8], len(grid))
    positions = grid + random.uniform(-JITTER, JITTER, grid.shape)
    return Atoms(numbers, positions, cell=[n * SPACING for n in shape], pbc=True)


def case(options: argparse.Namespace) -> int:
    import numpy as np

    from pimlip_zoo.deploy.native.calculator import NativeCalculator
    from pimlip_zoo.deploy.skin import SkinnedPairs

    atoms = lattice(options.atoms)
    atoms.calc = NativeCalculator(options.path, threads=options.threads)
    start, random = atoms.positions.copy(), np.random.default_rng(1)

    def evaluate() -> None:
        atoms.positions = start + random.uniform(-0.02, 0.02, start.shape)
        atoms.get_forces()

    def listed() -> None:
        SkinnedPairs(atoms.calc.model.cutoff, 0.5).pairs(atoms)

    evaluate()
    record = {"atoms": len(atoms), "threads": options.threads}
    for name, function in (("step", evaluate), ("list", listed)):
        wall, cpu, begun = [], [], time.perf_counter()
        while len(wall) < 3 or (time.perf_counter() - begun < options.seconds and len(wall) < 200):
            c, w = time.process_time(), time.perf_counter()
            function()
            wall.append(time.perf_counter() - w)
            cpu.append(time.process_time() - c)
        record[f"{name}_cpu_us"] = round(1e6 * statistics.median(cpu) / len(atoms), 3)
        record[f"{name}_wall_us"] = round(1e6 * statistics.median(wall) / len(atoms), 3)
    record["builds"] = atoms.calc.neighbours.builds
    record["mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(record), flush=True)
    return 0


def run(options: argparse.Namespace) -> int:
    from pimlip_zoo.deploy.native.export import export_native

    known = json.loads(options.results.read_text()) if options.results.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            path = Path(folder) / f"{model}.pimlip"
            for threads in options.threads:
                for atoms in options.atoms:
                    key = f"{model} {threads} {atoms}"
                    if key in known and not options.again:
                        continue
                    if not path.exists():
                        export_native(
                            build(argparse.Namespace(model=model, size="small", dtype="float32")), path
                        )
                    command = [
                        sys.executable,
                        __file__,
                        "case",
                        str(path),
                        str(atoms),
                        "--threads",
                        str(threads),
                    ]
                    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
                    done = subprocess.run(
                        command, capture_output=True, text=True, check=False, env=environment
                    )
                    if done.returncode:
                        last = (done.stderr.strip().splitlines() or [f"signal {-done.returncode}"])[-1]
                        print(f"failed {key}: {last}", file=sys.stderr)
                        continue
                    known[key] = json.loads(done.stdout)
                    print(key, done.stdout.strip(), flush=True)
                    options.results.parent.mkdir(parents=True, exist_ok=True)
                    made = options.results.with_suffix(".new")
                    made.write_text(json.dumps(known, indent=1) + "\n")
                    made.replace(options.results)
    return 0


def write_table(options: argparse.Namespace) -> int:
    known = json.loads(options.results.read_text())
    head = "architecture | threads | atoms | CPU µs/atom | wall µs/atom | list: CPU µs/atom | every tenth step | MB"
    rows = [f"| {head} |", "|---|---|---|---|---|---|---|---|"]
    for key in sorted(known, key=lambda k: (k.split()[0], int(k.split()[1]), int(k.split()[2]))):
        r = known[key]
        share = 0.1 * r["list_cpu_us"] / (0.1 * r["list_cpu_us"] + r["step_cpu_us"])
        rows.append(
            f"| {key.split()[0]} | {r['threads']} | {r['atoms']:,} | {r['step_cpu_us']:.1f} | {r['step_wall_us']:.1f} "
            f"| {r['list_cpu_us']:.2f} | {100 * share:.1f} % | {r['mb']:,} |"
        )
    write_between(options.page, "scaling table", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
