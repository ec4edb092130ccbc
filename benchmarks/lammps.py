"""Exported models in LAMMPS: speed against system size and ranks, and beside the bare model in Python.

    python benchmarks/lammps.py step --model nequip --format aot --atoms 256,4000 --ranks 1    # JSON lines
    python benchmarks/lammps.py compare       # step time and memory beside Python's
    python benchmarks/lammps.py scaling       # against system size and ranks
    python benchmarks/lammps.py table         # both tables into docs/results/benchmarks.md

``compare`` and ``scaling`` keep every case in ``benchmarks/results/lammps.json`` as soon as it is measured and leave
out what is there already. Models have random weights, on which speed does not depend, and 20 neighbours for each atom
of jittered fcc Cu3Al; exported files are kept in ``--models``.

Times are CPU seconds, which other work on the machine disturbs less than wall time: of ``compare`` user and system time
of the whole process; of ``scaling`` the user time of a rank inside the pair style, mean over the ranks, since ranks
that wait for each other use CPU time as well.
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

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from ase.build import bulk
from pages import write_between

from pimlip_zoo.compiled.kernels import use_kernels
from pimlip_zoo.deploy.ase import PimlipCalculator
from pimlip_zoo.deploy.lammps.build import build_plugin
from pimlip_zoo.deploy.lammps.input import in_lammps_axes, write_data
from pimlip_zoo.deploy.lammps.run import lammps_command
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "lammps.json"
DOCS = HERE.parent / "docs" / "results" / "benchmarks.md"
SPECIES = ("Cu", "Al")
CUTOFF = 4.5
SUFFIX = {
    "torchscript": ".nequip.pth",
    "aot": ".pimlip.pt2",
    "native": ".pimlip",
    "native-table": ".table.pimlip",
}
TABLE = 1e-4
"""Error of the tables of ``native-table``, eV and eV/Å."""
MODELS = ("nequip", "allegro", "mace")
TICK = os.sysconf("SC_CLK_TCK")

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
thermo_modify flush yes
timer full
run {warm}
run {steps} pre no
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


def exported(case: dict, folder: Path) -> tuple[Path, float]:
    """The file of a case, written once, and the seconds that took."""
    from pimlip_zoo.cli.export import ExportFormat, export_potential

    stem = f"{case['model']}-{case['size']}-{case['dtype']}"
    path, note = folder / f"{stem}{SUFFIX[case['format']]}", folder / f"{stem}.{case['format']}.json"
    if not (path.exists() and note.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        start = time.process_time()
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        potential = potential_of(case["model"], case["size"], case["dtype"])
        kind, _, tabulated = case["format"].partition("-")
        export_potential(potential, path, format=ExportFormat(kind), table=TABLE if tabulated else None)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        compiler = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
        note.write_text(json.dumps(time.process_time() - start + compiler))
    return path, float(json.loads(note.read_text()))


def descendants(root: int) -> list[int]:
    """Processes that a process started, and those that they started; itself, too."""
    parent = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text()
            except OSError:
                continue
            parent[int(entry.name)] = int(text.rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:
        found += [child for child, owner in parent.items() if owner == pid]
    return found


def usage(root: int) -> dict[int, tuple[float, float]]:
    """CPU seconds and peak MB of the processes."""
    result = {}
    for pid in descendants(root):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        peak = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
        result[pid] = ((int(fields[11]) + int(fields[12])) / TICK, peak / 1024)
    return result


def run(folder: Path, atoms, model: Path, *, ranks: int, steps: int, options: str) -> dict:
    """Step times and peak memory of LAMMPS, whose plugin has no torch for native models."""
    write_data(folder / "structure.data", atoms, SPECIES)
    steps = steps or max(1, min(20, 5000 // len(atoms)))
    warm = 2 if steps > 1 else 0  # the evaluation before the first step is a warm-up, too
    text = SCRIPT.format(
        plugin=build_plugin(with_torch=model.suffix != SUFFIX["native"]),
        model=model.resolve(),
        options=options,
        warm=warm,
        steps=steps,
    )
    (folder / "in.lammps").write_text(text)
    command = [*lammps_command(ranks), "-in", "in.lammps", "-log", "none"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        lines, seen, loop = [], [], []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Loop time"):  # LAMMPS goes on; reading /proc takes a millisecond
                seen.append(usage(process.pid))
                loop.append(float(line.split()[3]))
    if process.returncode != 0:
        sys.exit("".join(lines)[-2000:])
    pair = next(line.split("|") for line in reversed(lines) if line.startswith("Pair"))  # avg time, %CPU
    used = [seconds - seen[0][pid][0] for pid, (seconds, _) in seen[1].items() if pid in seen[0]]
    return {
        "wall_ms": 1e3 * loop[1] / steps,
        "cpu_ms": 1e3 * sum(used) / steps,  # user and system, over all ranks
        "pair_cpu_ms": 10.0 * float(pair[2]) * float(pair[5]) / steps,  # user, mean over the ranks
        "rank_mb": max(peak for _, peak in seen[1].values()),
    }


def bare(arguments: argparse.Namespace) -> None:
    """One JSON line: the potential in Python, CPU ms of an evaluation and peak MB of the ASE calculator."""
    atoms = crystal(arguments.atoms[0])
    potential = potential_of(arguments.model, arguments.size, arguments.dtype)
    with use_kernels(arguments.kernels):
        atoms.calc = PimlipCalculator(potential)
        atoms.get_forces()
        graph = atoms.calc.neighbours.graph(atoms, potential.species)
        times = []
        for _ in range((arguments.steps or max(1, min(20, 5000 // len(atoms)))) + 2):
            start = time.process_time()
            with torch.no_grad():
                potential(graph)
            times.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cpu_ms": 1e3 * statistics.median(times[2:]), "mb": peak}))


def measure(case: dict, arguments: argparse.Namespace) -> dict:
    """A case in LAMMPS."""
    path, seconds = exported(case, arguments.models)
    atoms = crystal(case["atoms"])
    options = f"chunk {case['chunk']}" if case["chunk"] else ""
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), atoms, path, ranks=case["ranks"], steps=arguments.steps, options=options)
    return {**case, "atoms": len(atoms), "export_cpu_s": seconds, **found}


def python_side(case: dict, kernels: str, arguments: argparse.Namespace) -> dict:
    """The bare model in a process of its own."""
    command = [sys.executable, __file__, "bare", "--kernels", kernels, "--steps", str(arguments.steps)]
    for key in ("model", "size", "dtype", "atoms"):
        command += [f"--{key}", str(case[key])]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def cases(arguments: argparse.Namespace, formats: list[str], ranks: list[int]):
    """Every combination that is asked for, small systems first."""
    for atoms in arguments.atoms:
        for model in arguments.model.split(","):
            for format_ in formats:
                for count in ranks:
                    case = {
                        "model": model,
                        "size": arguments.size,
                        "dtype": arguments.dtype,
                        "format": format_,
                    }
                    yield {**case, "atoms": atoms, "ranks": count, "chunk": arguments.chunk}


def step(arguments: argparse.Namespace) -> None:
    for case in cases(arguments, arguments.format.split(","), arguments.ranks):
        print(json.dumps(rounded(measure(case, arguments))), flush=True)


def compare(arguments: argparse.Namespace) -> None:
    """LAMMPS and the bare model with compiled kernels, alternately, medians; in plain torch once."""
    for case in cases(arguments, arguments.format.split(","), [1]):
        if known("compare", case):
            continue
        rounds = []
        for _ in range(arguments.rounds):
            found = measure(case, arguments)
            for kernels in ("reference", "auto")[bool(rounds) :]:
                side = python_side(case, kernels, arguments)
                found |= {f"{kernels}_cpu_ms": side["cpu_ms"], f"{kernels}_mb": side["mb"]}
            rounds.append(found)
        medians = {
            key: statistics.median(r[key] for r in rounds if key in r) for key in rounds[0] if key not in case
        }
        keep("compare", case, {"atoms_exact": rounds[0]["atoms"], **medians})


def scaling(arguments: argparse.Namespace) -> None:
    for case in cases(arguments, arguments.format.split(","), arguments.ranks):
        if not known("scaling", case):
            found = measure(case, arguments)
            keep("scaling", case, {"atoms_exact": found.pop("atoms"), **found})


def rounded(values: dict) -> dict:
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}


def load() -> list[dict]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def known(kind: str, case: dict) -> bool:
    return any(row["kind"] == kind and all(row[key] == case[key] for key in case) for row in load())


def keep(kind: str, case: dict, found: dict) -> None:
    row = rounded({"kind": kind, **found, **case})
    print(json.dumps(row), flush=True)
    scratch = RESULTS.with_suffix(".tmp")
    scratch.write_text(json.dumps([*load(), row], indent=1) + "\n")
    scratch.replace(RESULTS)


def table(_: argparse.Namespace) -> None:
    """Both tables, between their marks in the documentation."""
    for kind, lines in (("compare", compare_table()), ("scaling", scaling_table())):
        write_between(DOCS, f"lammps {kind}", lines)


def compare_table() -> list[str]:
    names = "model, format, atoms, LAMMPS ms, bare model ms, ratio, bare in plain torch ms, LAMMPS MB, ASE MB, ratio"
    names += ", export CPU s"
    lines = [f"| {' | '.join(names.split(', '))} |", "|---" * len(names.split(", ")) + "|"]
    rows = [row for row in load() if row["kind"] == "compare"]
    for r in sorted(rows, key=lambda r: (MODELS.index(r["model"]), r["format"], r["atoms"])):
        lines.append(  # noqa: PERF401
            f"| {r['model']} | {r['format']} | {r['atoms_exact']:,} | {r['cpu_ms']:.1f} | {r['auto_cpu_ms']:.1f} "
            f"| {r['cpu_ms'] / r['auto_cpu_ms']:.2f} | {r['reference_cpu_ms']:.1f} | {r['rank_mb']:.0f} "
            f"| {r['auto_mb']:.0f} | {r['rank_mb'] / r['auto_mb']:.2f} | {r['export_cpu_s']:.0f} |"
        )
    return lines


def scaling_table() -> list[str]:
    rows = [row for row in load() if row["kind"] == "scaling"]
    ranks = sorted({row["ranks"] for row in rows})
    lines = [
        "| model | format | atoms | chunk | "
        + " | ".join(f"{n} rank{'s' * (n > 1)}" for n in ranks)
        + " | MB of a rank, "
        + " / ".join(map(str, ranks))
        + " |",
        "|---|---|---|---|" + "---|" * (len(ranks) + 1),
    ]
    groups: dict[tuple, dict[int, dict]] = {}
    for r in rows:
        group = (MODELS.index(r["model"]), r["format"], r["atoms_exact"], r["chunk"])
        groups.setdefault(group, {})[r["ranks"]] = r
    for (model, format_, atoms, chunk), found in sorted(groups.items()):
        speed = [f"{1e3 * atoms / found[n]['pair_cpu_ms']:,.0f}" if n in found else "" for n in ranks]
        memory = " / ".join(f"{found[n]['rank_mb']:,.0f}" if n in found else "-" for n in ranks)
        cells = [MODELS[model], format_, f"{atoms:,}", str(chunk or "-"), *speed, memory]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


COMMANDS = {"step": step, "compare": compare, "scaling": scaling, "table": table, "bare": bare}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = lambda text: [int(n) for n in text.split(",")]  # noqa: E731
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--model", default=",".join(MODELS), help="one or several")
    parser.add_argument("--size", default="small")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument(
        "--format", default="aot", help="torchscript, aot, native, native-table; several with commas"
    )
    parser.add_argument("--atoms", type=numbers, default=[256])
    parser.add_argument("--ranks", type=numbers, default=[1])
    parser.add_argument("--steps", type=int, default=0, help="0: 1 to 20, fewer for larger systems")
    parser.add_argument("--chunk", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3, help="of compare")
    parser.add_argument("--kernels", default="auto", help="of bare")
    parser.add_argument("--models", type=Path, default=HERE.parent / "runs" / "lammps-benchmark")
    arguments = parser.parse_args()
    COMMANDS[arguments.command](arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
