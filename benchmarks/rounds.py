"""From one structure of ethanol to a potential by one command: what it costs, and how good it is.

    python benchmarks/rounds.py judge                      (40 structures that no round sees, with labels)
    python benchmarks/rounds.py run --ways readme,gfn2 --minutes 11           (again and again, until it says: all done)
    python benchmarks/rounds.py pool --strides 20,100      (how far the first round's dynamics get)
    python benchmarks/rounds.py show
    python benchmarks/rounds.py docs                       (the table of docs/results/rounds.md)

``run`` writes ``ethanol.xyz`` and ``run.yaml`` in a folder and calls ``pimlip-zoo rounds run.yaml`` there, no more.
The level is PBE/def2-SVP by PySCF, the budget 50 labels: 40 to train and 10 to validate. A way says how each
round trains. The judge is dynamics of its own with GFN2-xTB, at 300 and 600 K, equilibrated for a picosecond. Times
are of all pieces together, on one thread. Every round is a line in ``benchmarks/results/rounds.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "weak"))

from tables import between  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "rounds.jsonl"
PAGE = ROOT / "docs" / "results" / "rounds.md"

LEVEL = "pyscf:PBE/def2-svp"
TEMPERATURES = (300.0, 600.0)
JUDGES = 20
"""Structures of each temperature."""
TIMESTEP, FRICTION, EQUILIBRATION, APART = 0.5, 0.01, 2000, 200
"""fs, 1/fs, steps before the first structure that is kept, and between two."""

BASE: dict[str, Any] = {
    "sample": {"start": "ethanol.xyz"},
    "label": {"calculator": LEVEL},
    "stop": {"rounds": 3, "labels": 40, "forces": 0.03},
}
WAYS: dict[str, dict[str, Any]] = {
    "readme": {},
    "gfn2": {"train": {"weak": {"preset": "gfn2"}}},
    "gfn2-short": {
        "sample": {"start": "ethanol.xyz", "stride": 20},
        "train": {"weak": {"preset": "gfn2"}},
    },
    "distill": {"train": {"weak": {"preset": "distill", "labels": {"calculator": "gfn2"}}}},
    "curriculum": {"train": {"weak": {"labels": {"method": "curriculum", "calculator": "gfn2"}}}},
    "mace": {"train": {"model": {"name": "mace"}}},
    "mace-gfn2": {"train": {"model": {"name": "mace"}, "weak": {"preset": "gfn2"}}},
}
"""What is added to ``run.yaml``."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("judge", "run", "pool", "show", "docs"))
    parser.add_argument("--ways", default="readme,gfn2", help=f"with commas; {','.join(WAYS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop then; call it again to go on")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "rounds")
    parser.add_argument("--strides", default="20,100", help="of pool, with commas")
    options = parser.parse_args()
    if unknown := set(options.ways.split(",")) - set(WAYS):
        parser.error(f"no such way: {', '.join(sorted(unknown))}")
    commands = {"judge": judge, "run": run, "pool": pool, "show": show, "docs": docs}
    return commands[options.what](options)


def start() -> Any:
    from ase.build import molecule

    return molecule("CH3CH2OH")


def judge(options: argparse.Namespace) -> int:
    """Dynamics that the rounds do not know, with labels; resumable, a file for each temperature."""
    import numpy as np
    from ase import units
    from ase.io import write
    from ase.md.langevin import Langevin

    from pimlip_zoo.files import replacing
    from pimlip_zoo.weak_labels.calculators import find_cheap_calculator

    options.folder.mkdir(parents=True, exist_ok=True)
    for place, temperature in enumerate(TEMPERATURES):
        path = options.folder / f"judge-{temperature:.0f}K.extxyz"
        if not path.exists():
            rng = np.random.default_rng([2027, place])
            atoms, frames = start(), []
            atoms.calc = find_cheap_calculator("gfn2").make()
            dynamics = Langevin(
                atoms,
                TIMESTEP * units.fs,
                temperature_K=temperature,
                friction=FRICTION / units.fs,
                fixcm=False,  # fixed, it heats hydrogen in small molecules
                rng=rng,
            )
            dynamics.run(EQUILIBRATION)
            for _ in range(JUDGES):
                dynamics.run(APART)
                frames.append(atoms.copy())
            with replacing(path) as temporary:
                write(temporary, frames, format="extxyz")
        command = ["label", str(path), "--calculator", LEVEL, "-o", str(labelled(options, temperature))]
        subprocess.run([sys.executable, "-m", "pimlip_zoo", *command, "--overwrite"], check=True)
    return 0


def pool(options: argparse.Namespace) -> int:
    """Mean energies above the minimum, and how many are gauche, of pools as the first round samples them."""
    import tempfile

    import numpy as np
    from ase.io import write
    from ase.optimize import BFGS

    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.rounds.options import SamplingOptions
    from pimlip_zoo.weak_labels.calculators import find_cheap_calculator
    from pimlip_zoo.weak_labels.pool import PoolOptions, labelled_pool

    level, lowest, sample = find_cheap_calculator("gfn2"), start(), SamplingOptions()
    lowest.calc = level.make()
    BFGS(lowest, logfile=None).run(fmax=0.01)
    least = lowest.get_potential_energy()
    for stride in map(int, options.strides.split(",")):
        given = PoolOptions(
            structures=sample.structures, temperatures=sample.temperatures, stride=stride, seed=1
        )
        with tempfile.TemporaryDirectory() as folder:
            write(f"{folder}/ethanol.xyz", start(), format="extxyz")
            begin = load_frames(f"{folder}/ethanol.xyz")
            frames = labelled_pool(list(begin), level, given, Path(folder) / "pool")
        for temperature in sample.temperatures:
            own = [frame for frame in frames if frame.info["temperature"] == temperature]
            energy = float(np.mean([frame.energy for frame in own])) - least
            gauche = float(np.mean([abs(torsion(frame)) < 120 for frame in own]))
            print(
                f"stride {stride}, {temperature:.0f} K: {1e3 * energy:.0f} meV, gauche {100 * gauche:.0f} %"
            )
    return 0


def torsion(frame: Any) -> float:
    """C-C-O-H in degrees, -180 to 180."""
    from pimlip_zoo.datasets.frame import frame_to_atoms

    atoms = frame_to_atoms(frame)
    angle = atoms.get_dihedral(0, 1, 2, 3)
    return angle if angle <= 180 else angle - 360


def labelled(options: argparse.Namespace, temperature: float) -> Path:
    return options.folder / f"judge-{temperature:.0f}K-labels.extxyz"


def run(options: argparse.Namespace) -> int:
    """One way after the other, as long as there is time."""
    import yaml
    from ase.io import write

    end = time.monotonic() + 60 * options.minutes
    for way in options.ways.split(","):
        if any(row["last"] and judged_by_all(row["judge"]) for row in of_way(options, way)):
            continue
        folder = options.folder / f"{way}-{options.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "run.yaml").exists():
            write(folder / "ethanol.xyz", start(), format="extxyz")
            content = {**BASE, **WAYS[way], "seed": 100 * options.seed}
            (folder / "run.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        code = piece(folder, end - time.monotonic())
        keep(options, way, folder, code == 0)
        if code is None:
            print("out of time: call it again")
            return 0
        if code:
            return code
    print("all done")
    return 0


def piece(folder: Path, seconds: float) -> int | None:
    """Go on with the rounds for some time, which is added up; the exit code, or None when they are not done."""
    book = folder / "time.json"
    so_far = json.loads(book.read_text()) if book.exists() else {"wall": 0.0, "cpu": 0.0}
    began, before = time.monotonic(), used()
    process = subprocess.Popen([sys.executable, "-m", "pimlip_zoo", "rounds", "run.yaml"], cwd=folder)
    code = None
    try:
        code = process.wait(max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # a training ends at a checkpoint, labels are kept one by one
        process.wait()
    finally:
        now = {
            "wall": so_far["wall"] + time.monotonic() - began,
            "cpu": so_far["cpu"] + used() - before,
            "pieces": so_far.get("pieces", 0) + 1,
        }
        book.write_text(json.dumps(now))
    return code


def used() -> float:
    """CPU seconds of all that ran below this process and has ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def keep(options: argparse.Namespace, way: str, folder: Path, ended: bool) -> None:
    """A row for each round that is done and has none."""
    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.rounds import read_table

    book = json.loads((folder / "time.json").read_text())
    table = read_table(folder / "rounds")
    there = {row["round"]: row["judge"] for row in of_way(options, way)}
    for row in table:
        last = ended and row is table[-1]
        key = (way, options.seed, row["round"])
        if judged_by_all(there.get(row["round"], {})) and not last:
            continue
        with_labels = row["labels"] + len(
            load_frames(str(folder / "rounds" / "round-1" / "valid-labels.lmdb"))
        )
        errors = dict(there.get(row["round"], {}))
        for temperature in TEMPERATURES:
            if labelled(options, temperature).exists():
                errors[f"{temperature:.0f}"] = judged(
                    folder / row["run"], str(labelled(options, temperature))
                )
        rows = [r for r in read() if (r["way"], r["seed"], r["round"]) != key]
        rows.append(
            {
                "way": way,
                "seed": options.seed,
                "round": row["round"],
                "labels": with_labels,
                "validation": round(1e3 * row["forces"], 1),
                "judge": errors,
                "wall_s": round(book["wall"]),
                "cpu_s": round(book["cpu"]),
                "last": last,
            }
        )
        RESULTS.write_text("".join(json.dumps(r) + "\n" for r in rows))
        print(rows[-1], flush=True)


def judged_by_all(errors: dict) -> bool:
    return all(f"{temperature:.0f}" in errors for temperature in TEMPERATURES)


def judged(run: Path, data: str) -> dict[str, float]:
    """meV per atom and meV/Å, root mean squares and, for forces, the mean of the absolute errors."""
    from pimlip_zoo.evaluation import evaluate
    from pimlip_zoo.training.checkpoint import load_potential

    summary = evaluate(load_potential(run), data).summary
    energy, forces = summary["energy_per_atom"], summary["forces"]
    found = {"energy": energy["rmse"], "forces": forces["rmse"], "forces_mae": forces["mae"]}
    return {name: round(1e3 * value, 2) for name, value in found.items()}


def of_way(options: argparse.Namespace, way: str) -> list[dict]:
    return [row for row in read() if (row["way"], row["seed"]) == (way, options.seed)]


def read() -> list[dict]:
    return [json.loads(text) for text in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def show(options: argparse.Namespace) -> int:  # noqa: ARG001
    print("\n".join(table()))
    return 0


def table() -> list[str]:
    """A row for each round."""
    temperatures = sorted({int(name) for row in read() for name in row["judge"]})
    head = ["training", "seed", "round", "labels", "validation, F meV/Å"]
    head += [f"{t} K: {what}" for t in temperatures for what in ("E meV/atom", "F meV/Å", "F MAE")]
    head += ["CPU min"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    order = list(WAYS)
    for row in sorted(read(), key=lambda r: (order.index(r["way"]), r["seed"], r["round"])):
        cells = [row["way"], row["seed"], row["round"], row["labels"], row["validation"]]
        for temperature in temperatures:
            found = row["judge"].get(str(temperature), {})
            cells += [found.get(name, "") for name in ("energy", "forces", "forces_mae")]
        cells += [f"{row['cpu_s'] / 60:.0f}" if row["last"] else ""]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def docs(options: argparse.Namespace) -> int:  # noqa: ARG001
    PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), "rounds", table()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
