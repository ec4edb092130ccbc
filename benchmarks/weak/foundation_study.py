"""The study of foundation models: zero shot, from scratch, fine-tuned, distilled; resumable, a line a run.

    python benchmarks/weak/foundation_study.py run tio2 --model runs/7net-0 --root data
    python benchmarks/weak/foundation_study.py run tio2 ... --ways rate --option optimizer.lr=1e-3
    python benchmarks/weak/foundation_study.py run tio2 ... --sizes 50 --ways chosen --choose coverage
    python benchmarks/weak/foundation_study.py replay replay.extxyz              (structures of other elements)
    python benchmarks/weak/foundation_study.py show                                          (what is there)
    python benchmarks/weak/foundation_study.py docs                (the tables of docs/results/foundation-study.md)

`pimlip-zoo import sevennet 7net-0 -o runs/7net-0` makes the model. The data sets are those of sets.py; of N labels the
seed draws which, or with --choose an acquisition chooses them by features of the foundation model. Every run appends a
line to results/foundation-study.jsonl: errors on the test structures, CPU seconds of the training, settings. A line
that is there is not computed again, and an interrupted run goes on.
"""

import argparse
import csv
import io
import json
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sets import SETS
from tables import between

RESULTS = Path(__file__).parent / "results" / "foundation-study.jsonl"
PAGE = Path(__file__).parents[2] / "docs" / "results" / "foundation-study.md"
DISTILLED, PRETRAINED, DIFFERENCE = "distilled", "pretrained", "difference"
TAUGHT = (DISTILLED, PRETRAINED, DIFFERENCE)
"""Small models that the foundation model labels structures for, or runs beside; a name may have an ending."""
ZERO_SHOT, SCRATCH = "zero-shot", "scratch"
POOL = {
    "weak.labels.pool.structures": 300,
    "weak.labels.pool.method": "displaced",
    "weak.labels.pool.amplitudes": [0.05, 0.15],
}
WAYS = {
    ZERO_SHOT: {},
    SCRATCH: {},
    "finetune": {},
    "lora-4": {"finetune.lora": 4},
    "lora-16": {"finetune.lora": 16},
    DISTILLED: {"weak.preset": "foundation-distill", **POOL},
    PRETRAINED: {"weak.preset": "pretrain", **POOL},
    DIFFERENCE: {"weak.preset": "delta"},
}
"""Settings beside the defaults of `train`; zero-shot re-fits the energy references, and trains nothing."""


def placed(args, data):
    """Where the data are: below --root, unless built in."""
    return (
        data if data.startswith("builtin:") else ",".join(f"{args.root}/{part}" for part in data.split(","))
    )


def settings_of(args, study, way, size, seed):
    """(dotted key, value) of a run."""
    train = placed(args, study.train) if args.choose is None else chosen(args, study, size, seed)
    settings = [("data.train", train)]
    if study.valid is not None:
        settings.append(("data.valid", placed(args, study.valid)))
    if way.startswith((SCRATCH, *TAUGHT)):
        settings += [("model.name", "nequip"), ("data.energy_references", "least_squares")]
    else:
        settings.append(("finetune.run", args.model))
    return settings


def chosen(args, study, size, seed):
    """A file of the structures that an acquisition chooses, with their labels; it sees none of these."""
    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.datasets.writing import write_frames
    from pimlip_zoo.labelling.select import select
    from pimlip_zoo.training.checkpoint import load_potential

    file = Path(args.runs) / f"{args.set}-{args.choose}-{Path(args.model).name}-{size}-{seed}.extxyz"
    if not file.exists():
        pool = load_frames(placed(args, study.train))
        eyes = load_potential(args.model)
        choices = select(pool, size, acquisition=args.choose, eyes=eyes, seed=seed).choices
        file.parent.mkdir(parents=True, exist_ok=True)
        write_frames(file, [pool[choice.index] for choice in choices])
    return str(file)


def own(args, way):
    """What is particular to a way."""
    given = {key: json.loads(value) for key, _, value in (item.partition("=") for item in args.options)}
    return {**WAYS.get(next(filter(way.startswith, TAUGHT), way), {}), **given}


def zero_shot(args, study, size, seed):
    """Errors of the model itself, its energy references re-fitted to the labels."""
    from pimlip_zoo.evaluation import evaluate

    started = time.process_time()
    potential = referenced(args, study, args.model, size, seed)
    spent = time.process_time() - started
    tests = {test: evaluate(potential, placed(args, test)).summary for test in study.tests}
    return {
        "cpu_seconds": round(spent, 2),
        "steps": 0,
        "tests": tests,
        "further": forgotten(args, args.model, seed),
    }


def referenced(args, study, run, size, seed):
    """The potential of a run, its energy references re-fitted to labels of a set."""
    from pimlip_zoo.config import load_config
    from pimlip_zoo.datasets.neighbours import frame_to_sample
    from pimlip_zoo.experiment import load_split
    from pimlip_zoo.experiment.curve import subset
    from pimlip_zoo.training.checkpoint import load_potential
    from pimlip_zoo.training.finetune import refit_references

    config = load_config(None, [*settings_of(args, study, ZERO_SHOT, size, seed), ("seed", seed)])
    frames = subset(load_split(config)[0], size, seed)
    potential = load_potential(run)
    refit_references(potential, [frame_to_sample(f, potential.species, potential.cutoff) for f in frames])
    return potential


def forgotten(args, run, seed, size=50):
    """Force errors of a run, and of the model that it started from, on sets that it was not trained on."""
    from pimlip_zoo.evaluation import evaluate

    found = {}
    for name in filter(None, args.elsewhere.split(",")):
        study = SETS[name]
        potential = referenced(args, study, run, size, seed)
        errors = evaluate(potential, placed(args, study.tests[0])).summary
        found[name] = {
            f"{quantity}_rmse": errors[quantity]["rmse"] for quantity in ("energy_per_atom", "forces")
        }
    return {"elsewhere": found} if found else {}


def trained(args, study, way, size, seed):
    """Errors of a run; None when a signal ended it."""
    from pimlip_zoo.experiment.curve import Point, run_point

    point, name = Point(size, way, seed), f"{args.set}-{way}"
    runs, options = Path(args.runs) / args.set / Path(args.model).name, list(own(args, way).items())
    if way.startswith(TAUGHT):
        options.append(("weak.labels.calculator", f"run:{args.model}"))
    tests = [placed(args, test) for test in study.tests]
    if (
        run_point(point, settings_of(args, study, way, size, seed), tests, runs, variants={way: options})
        is not None
    ):
        return None
    result = json.loads((runs / point.name / "result.json").read_text())
    further = beside_teacher(runs / point.name, tests[0]) if way.startswith(DISTILLED) else {}
    further |= forgotten(args, runs / point.name, seed)
    if not args.keep_runs:
        shutil.rmtree(runs / point.name)
    result["tests"] = {spec.removeprefix(f"{args.root}/"): errors for spec, errors in result["tests"].items()}
    return {
        "name": name,
        "further": further,
        **{key: result[key] for key in ("cpu_seconds", "steps", "tests")},
    }


def beside_teacher(folder, test):
    """Errors of the fine-tuned model that taught, and what a single point of the larger test structures costs both."""
    import numpy as np

    import pimlip_zoo
    from pimlip_zoo.datasets.frame import frame_to_atoms
    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.evaluation import evaluate
    from pimlip_zoo.training.checkpoint import load_potential

    errors = evaluate(load_potential(folder / "teacher"), test).summary
    found = {
        f"teacher_{quantity}_rmse": (errors.get(quantity) or {}).get("rmse")
        for quantity in ("energy_per_atom", "forces", "stress")
    }
    frame = max(load_frames(test), key=lambda frame: len(frame.numbers))
    for name, run in (("ms", folder), ("teacher_ms", folder / "teacher")):
        atoms, times = frame_to_atoms(frame), []
        atoms.calc = pimlip_zoo.calculator(run)
        for _ in range(12):
            atoms.rattle(1e-3, rng=np.random.default_rng(0))
            started = time.process_time()
            atoms.get_forces()
            times.append(time.process_time() - started)
        found[name] = round(1e3 * float(np.median(times[2:])), 2)
    return {**found, "atoms_timed": len(frame.numbers)}


def run(args):
    """Compute what is not there yet."""
    from pimlip_zoo.cli.console import log_to_screen

    log_to_screen()
    study = SETS[args.set]
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for size in map(int, args.sizes.split(",")):
            for way in args.ways.split(","):
                model = "" if way.startswith(SCRATCH) else Path(args.model).name
                key = {"set": args.set, "way": way, "size": size, "seed": seed, "model": model}
                if any(all(row[k] == v for k, v in key.items()) for row in read(args.out)):
                    continue
                print(key, flush=True)
                make = zero_shot if way == ZERO_SHOT else None
                result = make(args, study, size, seed) if make else trained(args, study, way, size, seed)
                if result is None:
                    return 130
                errors = next(iter(result["tests"].values()))
                row = {
                    **key,
                    "chosen": args.choose or "at random",
                    "settings": own(args, way),
                    "steps": result["steps"],
                    "cpu_seconds": result["cpu_seconds"],
                    **result.get("further", {}),
                    **{
                        f"{quantity}_{kind}": (errors.get(quantity) or {}).get(kind)
                        for quantity in ("energy_per_atom", "forces", "stress")
                        for kind in ("mae", "rmse")
                    },
                }
                with args.out.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                print(line_of(row), flush=True)
    return 0


def read(file):
    """The rows that are there."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def line_of(row):
    energy, forces, stress = (row[f"{name}_rmse"] for name in ("energy_per_atom", "forces", "stress"))
    return (
        f"{row['set']:13s} {row['size']:4d} seed {row['seed']} {row['way']:24s} "
        f"E {1000 * energy:7.2f} meV/atom  F {1000 * forces:7.1f} meV/Å"
        + ("" if stress is None else f"  S {1000 * stress:6.2f} meV/Å³")
        + f"  {row['steps']:5d} steps {row['cpu_seconds']:6.0f} s"
    )


def show(args):
    for row in sorted(read(args.out), key=lambda row: (row["set"], row["size"], row["way"], row["seed"])):
        print(line_of(row))
    return 0


def replay(args):
    """Small cells of metals, semiconductors and salts, strained by 2 % and displaced by 0.05 to 0.3 Å."""
    import numpy as np
    from ase.build import bulk
    from ase.io import write

    rng, frames = np.random.default_rng(0), []
    for name, (structure, length) in CRYSTALS.items():
        for _ in range(5):
            atoms = bulk(name, crystalstructure=structure, a=length, cubic=True)
            atoms = atoms.repeat((2, 1, 1) if len(atoms) > 4 else (2, 2, 1))
            atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(0, 0.02, (3, 3))), scale_atoms=True)
            atoms.rattle(rng.choice([0.05, 0.15, 0.3]), rng=rng)
            frames.append(atoms)
    write(args.file, frames, format="extxyz")
    return 0


CRYSTALS = {
    "Si": ("diamond", 5.43),
    "Ge": ("diamond", 5.66),
    "GaAs": ("zincblende", 5.65),
    "SiC": ("zincblende", 4.36),
    "Mo": ("bcc", 3.16),
    "W": ("bcc", 3.17),
    "Fe": ("bcc", 2.87),
    "Cu": ("fcc", 3.6),
    "Al": ("fcc", 4.05),
    "Ni": ("fcc", 3.52),
    "MgO": ("rocksalt", 4.21),
    "NaCl": ("rocksalt", 5.64),
}
"""Structure and lattice constant, Å."""


def docs(args):
    """Write the tables into the page, between the marks of each set."""
    page, rows = args.page.read_text(), read(args.out)
    for name in SETS:
        mark = f"foundation study {name}"
        if f"<!-- {mark}: begin -->" in page:
            found = [*(row for row in rows if row["set"] == name), *elsewhere(name)]
            page = between(page, mark, table_of(found))
    args.page.write_text(page)
    return 0


def table_of(rows):
    """Means over seeds, by the number of labels and the force error."""
    lines = [
        "| labels | training | start | settings | E meV/atom | F meV/Å | stress meV/Å³ | steps | CPU s | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups = {}
    for row in rows:
        groups.setdefault((row["size"], row["way"], row["model"]), []).append(row)
    force = ERRORS[1]
    for (size, way, model), members in sorted(
        groups.items(), key=lambda item: (item[0][0], mean([row[force] for row in item[1]]))
    ):
        values = [mean([row[key] for row in members], 1000) for key in ERRORS]
        spent = [mean([row[key] for row in members]) for key in ("steps", "cpu_seconds")]
        cells = [
            size,
            "from " + way.removesuffix("-12000").removesuffix("-compact") if way.startswith(SCRATCH) else way,
            model or f"NequIP `{members[0]['settings'].get('model.preset', 'small')}`",
            ", ".join(shown(members[0])),
            *map(number, values),
            f"{spent[0]:,.0f}",
            f"{spent[1]:.0f}",
            len(members),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


ERRORS = ("energy_per_atom_rmse", "forces_rmse", "stress_rmse")


def shown(row):
    """What a row's table says of its settings."""
    if row.get("chosen", "at random") != "at random":
        yield f"labels chosen by {row['chosen']}"
    for key, value in row["settings"].items():
        if key.split(".")[0] not in ("trainer", "schedule"):
            yield f"{key.split('.')[-1]} {value}"


def mean(values, factor=1.0):
    known = [factor * float(value) for value in values if value not in (None, "")]
    return sum(known) / len(known) if known else None


def number(value):
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def elsewhere(name):
    """Plain runs of the study of weak supervision, of the former recipe, and their errors on the same test."""
    for tag in ("", "-12000"):
        file = RESULTS.parent / f"conservative-{name}-mace{tag}.csv"
        with file.open(newline="") if file.exists() else io.StringIO("") as stream:
            for row in csv.DictReader(stream):
                if row["weak"] == "plain":
                    way = f"{SCRATCH}, former recipe{tag}"
                    model = "MACE, 16 channels"
                    yield {**row, "size": int(row["size"]), "way": way, "model": model, "settings": {}}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    shown = commands.add_parser("show")
    shown.set_defaults(function=show)
    shown.add_argument("--out", type=Path, default=RESULTS)
    written = commands.add_parser("docs")
    written.set_defaults(function=docs)
    written.add_argument("--out", type=Path, default=RESULTS)
    written.add_argument("--page", type=Path, default=PAGE)
    made = commands.add_parser("replay")
    made.set_defaults(function=replay)
    made.add_argument("file", type=Path)
    command = commands.add_parser("run")
    command.add_argument("--out", type=Path, default=RESULTS, help="the file of the results")
    command.set_defaults(function=run)
    command.add_argument("set", choices=list(SETS))
    command.add_argument("--model", default="runs/7net-0", help="run folder of the foundation model")
    command.add_argument("--sizes", default="10,50")
    command.add_argument("--ways", default="zero-shot,scratch,finetune")
    command.add_argument(
        "--option", action="append", default=[], dest="options", help="such as optimizer.lr=1e-3"
    )
    command.add_argument("--choose", help="an acquisition: it chooses the labels, not the seed")
    command.add_argument(
        "--elsewhere", default="", help="sets on which errors are taken, too: what was forgotten"
    )
    command.add_argument("--seeds", type=int, default=1)
    command.add_argument("--first-seed", type=int, default=0)
    command.add_argument("--root", default="data")
    command.add_argument("--runs", default="runs/foundation", help="where the run folders are")
    command.add_argument("--keep-runs", action="store_true")
    args = parser.parse_args()
    sys.exit(args.function(args))


if __name__ == "__main__":
    main()
