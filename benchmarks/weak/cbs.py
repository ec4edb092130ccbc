"""The study of energies alone: coupled-cluster energies train, forces of the same level judge; resumable, a line a run.

    python benchmarks/weak/cbs.py run methanol --sizes 50,100
    python benchmarks/weak/cbs.py run ethanol --root data --sizes 100,500 --ways plain,pitc_central:1:0.05
    python benchmarks/weak/cbs.py judge methanol                   (again, of runs that --keep-runs kept)
    python benchmarks/weak/cbs.py gap                              (how far the low level is from the high one)
    python benchmarks/weak/cbs.py near --near FOLDER --minutes 11  (labels of a nearer low level, again and again)
    python benchmarks/weak/cbs.py show                                     (what is there)
    python benchmarks/weak/cbs.py docs                                     (the tables of docs/results/cbs.md)

methanol is built in. ethanol is CCSD(T)/cc-pVTZ, the training file of sGDML (Chmiela et al., Nat. Commun. 9, 3887
(2018)), and 1,000 structures of rMD17 (PBE) as its low level, below --root as ethanol_ccsdt/train_1000_sgdml.extxyz and
rmd17_ethanol1000/all_1000.extxyz. No run sees a force of the high level, validation included.

Of N labels the seed draws which. Every run appends a line to results/cbs.jsonl; a line that is there is not computed
again, and an interrupted run goes on. The run on the low level comes first, once for all ways that start from it.

The nearer level of methanol is B3LYP/def2-TZVP with a coarse grid, on the first structures of the low level; its run
begins with that of the low level.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from tables import between

RESULTS = Path(__file__).parent / "results" / "cbs.jsonl"
PAGE = Path(__file__).parents[2] / "docs" / "results" / "cbs.md"
LOW, NEAR = "low", "near"
STEPS = 1000
"""Of every run with energies."""
LOW_STEPS = 5000
NEAR_LEVEL = "pyscf:B3LYP/def2-tzvp?grid=1"
NEAR_LABELS = {"train": 200, "valid": 30}
NEAR_STEPS = 3000


@dataclass(frozen=True)
class Case:
    """Energies of a high level, a low level with forces, and what judges."""

    train: str
    valid: str
    tests: tuple[str, ...]
    """Energies of the first are reported, and forces of the last."""
    low: str
    low_valid: str
    cheap: str = "gfn2"


CASES = {
    "methanol": Case(
        train="builtin:methanol-cbs/train",
        valid="builtin:methanol-cbs/valid",
        tests=("builtin:methanol-cbs/test", "builtin:methanol-cbs/test_forces"),
        low="builtin:methanol-low/train",
        low_valid="builtin:methanol-low/valid",
    ),
    "ethanol": Case(
        train="ethanol_ccsdt/train_1000_sgdml.extxyz@0:500",
        valid="ethanol_ccsdt/train_1000_sgdml.extxyz@500:550",
        tests=("ethanol_ccsdt/train_1000_sgdml.extxyz@550:1000",),
        low="rmd17_ethanol1000/all_1000.extxyz@0:900",
        # Structure 973 is one of those that train.
        low_valid="rmd17_ethanol1000/all_1000.extxyz@900:973,rmd17_ethanol1000/all_1000.extxyz@974:1000",
    ),
}


WAYS = (
    "plain",
    "piwsl",
    "pitc_central:1:0.05",
    "low:1e-2",
    "low:3e-3",
    "low:1e-3",
    "low:3e-4",
    "low:3e-3+finetune.lora=4",
    "low:3e-3+pitc_central:1:0.05",
    "near:3e-3",
    "near:1e-3",
    "near:3e-4",
    "delta",
    "delta+optimizer.lr=0.003",
    "delta+pitc_central:10:0.15",
)
"""``plain``; a preset; ``TERM:WEIGHT:AMPLITUDE`` is a consistency loss and its displacements in Å; ``low:RATE`` begins
with the run on the low level, at that learning rate, ``near:RATE`` with that on the nearer one; ``KEY=JSON`` is any
option; several are joined by +."""


def placed(args, data):
    """Where the data are: below --root, unless built in."""
    return (
        data if data.startswith("builtin:") else ",".join(f"{args.root}/{part}" for part in data.split(","))
    )


def own(args, way):
    """The settings of a way."""
    settings = {}
    for part in way.split("+"):
        name, *numbers = part.split(":")
        if "=" in part:
            key, _, value = part.partition("=")
            settings[key] = json.loads(value)
        elif name == LOW:
            settings |= {"finetune.run": str(low_run(args)), "optimizer.lr": float(numbers[0])}
        elif name == NEAR:
            settings |= {"finetune.run": str(near_run(args)), "optimizer.lr": float(numbers[0])}
        elif numbers:
            settings[f"weak.terms.{name}.weight"] = float(numbers[0])
            settings["weak.perturbation.amplitude"] = float(numbers[1])
        elif name != "plain":
            settings["weak.preset"] = name
            if name == "delta":
                settings["weak.labels.calculator"] = CASES[args.case].cheap
    return settings


def low_run(args):
    """The run on the low level, trained where it is not there yet."""
    case = CASES[args.case]
    given = ["--model", "nequip", "--max-steps", str(LOW_STEPS)]
    given += ["--data", placed(args, case.low), "--valid", placed(args, case.low_valid)]
    return once(Path(args.runs) / args.case / LOW, given)


def near_run(args):
    """The run on the nearer level, from that on the low one."""
    given = ["--from", str(low_run(args)), "--max-steps", str(NEAR_STEPS)]
    given += ["--data", str(near_labels(args, "train")), "--valid", str(near_labels(args, "valid"))]
    return once(Path(args.runs) / args.case / NEAR, given)


def once(folder, given):
    """A run, trained where it is not there yet; an interrupted one goes on."""
    if (folder / "done").exists():
        return folder
    begun = (folder / "checkpoints" / "last.ckpt").exists()
    command = ["train", "--out", str(folder), *(["--resume"] if begun else given)]
    if not begun:
        shutil.rmtree(folder, ignore_errors=True)
    from pimlip_zoo.cli import app

    try:
        app(command)  # in this process, so that a signal ends it at a checkpoint
    except SystemExit as end:
        if end.code:
            raise
    (folder / "done").touch()
    return folder


def near_labels(args, split):
    return args.near / f"{split}.extxyz"


def near(args):
    """Labels of the nearer level; what is computed is kept."""
    args.near.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    for split, count in NEAR_LABELS.items():
        if near_labels(args, split).exists():
            continue
        command = ["label", f"builtin:methanol-low/{split}@0:{count}", "--calculator", NEAR_LEVEL]
        command += ["-o", str(near_labels(args, split))]
        try:
            seconds = max(end - time.monotonic(), 1.0)
            subprocess.run([sys.executable, "-m", "pimlip_zoo", *command], check=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            print("out of time: call it again")
            return 0
    print("all done")
    return 0


def trained(args, way, size, seed):
    """Errors of a run; None when a signal ended it."""
    from pimlip_zoo.experiment.curve import Point, run_point

    case, point = CASES[args.case], Point(size, way, seed)
    settings = [
        ("data.train", placed(args, case.train)),
        ("data.valid", placed(args, case.valid)),
        ("data.labels", ["energy"]),
        ("trainer.max_steps", args.steps),
    ]
    particular = own(args, way)
    if "finetune.run" not in particular:
        settings.append(("model.name", "nequip"))
    runs, tests = Path(args.runs) / args.case, [placed(args, test) for test in case.tests]
    if run_point(point, settings, tests, runs, variants={way: list(particular.items())}) is not None:
        return None
    result = json.loads((runs / point.name / "result.json").read_text())
    if not args.keep_runs:
        shutil.rmtree(runs / point.name)
    return result


def run(args):
    """Compute what is not there yet."""
    from pimlip_zoo.cli.console import log_to_screen

    log_to_screen()
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for size in map(int, args.sizes.split(",")):
            for way in args.ways.split(",") if args.ways else WAYS:
                key = {"case": args.case, "way": way, "size": size, "seed": seed, "steps": args.steps}
                if any(all(row[k] == v for k, v in key.items()) for row in read(args.out)):
                    continue
                print(key, flush=True)
                result = trained(args, way, size, seed)
                if result is None:
                    return 130
                row = {**key, "cpu_seconds": result["cpu_seconds"], **errors(list(result["tests"].values()))}
                with args.out.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                print(line_of(row), flush=True)
    return 0


def judge(args):
    """Errors of the runs that were kept, anew, such as when there are more test structures than there were."""
    from pimlip_zoo.evaluation import evaluate
    from pimlip_zoo.training.checkpoint import baseline_of, load_potential

    rows = read(args.out)
    for row in rows:
        folder = Path(args.runs) / row["case"] / f"{row['way']}-{row['size']}-seed{row['seed']}"
        if row["case"] != args.case or not (folder / "result.json").exists():
            continue
        if json.loads((folder / "result.json").read_text())["steps"] != row["steps"]:
            continue
        potential, baseline = load_potential(folder, difference=True), baseline_of(folder)
        tests = [placed(args, test) for test in CASES[args.case].tests]
        row.update(
            errors([evaluate(potential, test, baseline=baseline, trust=True).summary for test in tests])
        )
        print(line_of(row), flush=True)
    args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


def errors(tests):
    """What is reported of summaries of the test sets."""
    return {
        **{f"energy_{kind}": tests[0]["energy"][kind] for kind in ("rmse", "mae")},
        **{f"forces_{kind}": tests[-1]["forces"][kind] for kind in ("rmse", "mae")},
        "structures_with_forces": tests[-1]["n_structures"],
    }


def read(file):
    """The rows that are there."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def line_of(row):
    return (
        f"{row['case']:9s} {row['size']:4d} seed {row['seed']} {row['way']:24s} "
        f"E {1000 * row['energy_rmse']:7.2f} meV  F {1000 * row['forces_rmse']:7.1f} meV/Å  {row['cpu_seconds']:5.0f} s"
    )


def show(args):
    for row in sorted(read(args.out), key=lambda row: (row["case"], row["size"], row["way"], row["seed"])):
        print(line_of(row))
    return 0


def gap(args):
    """How far the low level of methanol is from the high one: energies of all, forces of those that judge.

    Other levels are computed for the latter alone.
    """
    import numpy as np

    from pimlip_zoo.datasets.builtin import load_builtin

    low = {
        frame.positions.tobytes(): frame
        for name in ("train", "valid", "test")
        for frame in load_builtin(f"methanol-low/{name}")
    }
    energies = []
    for name in ("train", "valid", "test", "test_forces"):
        for frame in load_builtin(f"methanol-cbs/{name}"):
            cheap = low[frame.positions.tobytes()]
            energies.append(frame.energy - cheap.energy)
            if frame.forces is not None:
                off = 1000 * np.sqrt(np.mean((frame.forces - cheap.forces) ** 2))
                print(f"{frame.info['config_type']}: forces differ by {off:.0f} meV/Å")
    print(f"energies of {len(energies)} structures: standard deviation {1000 * np.std(energies):.0f} meV")
    for level in args.levels.split(",") if args.levels else ():
        of_level(level)
    return 0


def of_level(name):
    """Differences of forces to the high level, and what they cost."""
    import numpy as np

    from pimlip_zoo.datasets.builtin import load_builtin
    from pimlip_zoo.datasets.frame import frame_to_atoms
    from pimlip_zoo.labelling.calculators import find_labeller

    labeller, said, started = find_labeller(name), [], time.process_time()
    frames = load_builtin("methanol-cbs/test_forces")
    for frame in frames:
        atoms = frame_to_atoms(frame)
        atoms.info["charge"] = 0
        atoms.calc = labeller.make(atoms)
        off = 1000 * np.sqrt(np.mean((frame.forces - atoms.get_forces()) ** 2))
        said.append(f"{off:.0f} ({frame.info['config_type']})")
    seconds = (time.process_time() - started) / len(frames)
    print(f"{name}: forces differ by {', '.join(said)} meV/Å, {seconds:.1f} CPU s each", flush=True)


def docs(args):
    """Write the tables into the page, between the marks of each case."""
    page, rows = args.page.read_text(), read(args.out)
    for case in CASES:
        page = between(page, f"cbs {case}", [table_of([row for row in rows if row["case"] == case])])
    args.page.write_text(page)
    return 0


def table_of(rows):
    """Mean and standard deviation over seeds."""
    lines = [
        "| energies | training | steps | E meV | F meV/Å | CPU s | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = {}
    for row in rows:
        groups.setdefault((row["size"], row["way"], row["steps"]), []).append(row)
    for (size, way, steps), members in sorted(
        groups.items(), key=lambda item: (item[0][0], order_of(item[0][1]), item[0][2])
    ):
        cells = [size, way, f"{steps:,}", *(spread(members, key) for key in ("energy_rmse", "forces_rmse"))]
        cells += [f"{statistics.mean(row['cpu_seconds'] for row in members):.0f}", len(members)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def order_of(way):
    """Those of the list first, in its order."""
    return WAYS.index(way) if way in WAYS else len(WAYS), way


def spread(rows, key):
    values = [1000 * row[key] for row in rows]
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "low", "near", "judge", "gap", "show", "docs"))
    parser.add_argument("case", nargs="?", choices=tuple(CASES))
    parser.add_argument("--root", default="data", help="folder of the data sets that are not built in")
    parser.add_argument("--runs", default="runs-cbs", help="where the runs are kept while they last")
    parser.add_argument(
        "--near", type=Path, default=Path("data-near"), help="folder of the nearer level's labels"
    )
    parser.add_argument("--minutes", type=float, default=1e6, help="of near")
    parser.add_argument("--levels", help="of gap, more levels, with commas: pyscf:HF/def2-svp")
    parser.add_argument("--sizes", default="100")
    parser.add_argument("--ways", help=f"with commas; {','.join(WAYS)}")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--keep-runs", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    if args.what in ("run", "low", "judge") and args.case is None:
        parser.error("which case? methanol or ethanol")
    if args.what == "low":
        low_run(args)
        return 0
    return {"run": run, "near": near, "judge": judge, "gap": gap, "show": show, "docs": docs}[args.what](args)


if __name__ == "__main__":
    sys.exit(main())
