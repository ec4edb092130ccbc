"""What a start for organic molecules is worth: 50 labels of molecules that it has not seen, from it and without.

    python benchmarks/weak/organic.py run --root data [--sets acac,ethanol] [--ways scratch,start]
    python benchmarks/weak/organic.py docs                                (docs/results/organic-start.md)

The architecture's default preset, the same 50 structures and as many steps on them for every way of a set; `pretrain`
takes as many steps on GFN2's labels of the molecule itself before. Errors of the weights that validated best, on
structures that were neither trained nor validated on. Where the sets are from says `sets.py`; ethanol is that of sGDML,
CCSD(T), and `many` is what `heterogeneous_molecules.py` makes.
"""

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sets import SETS, StudySet
from tables import between, keep, read

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "weak" / "results"
PAGE = ROOT / "docs" / "results" / "organic-start.md"
START = "builtin:organic-gfn2"
MODELS = {"nequip": "compact", "mace": "small", "allegro": "small"}
"""Architectures and their presets."""
LABELS = 50

ETHANOL = StudySet(
    train="ethanol_ccsdt/train_1000_sgdml.extxyz@0:500",
    valid="ethanol_ccsdt/train_1000_sgdml.extxyz@500:550",
    tests=("ethanol_ccsdt/train_1000_sgdml.extxyz@550:1000",),
    cheap="gfn2",
    sizes=(LABELS,),
)
THREE_BPA = StudySet(
    train=",".join(f"3bpa/train_300K.extxyz@{k}::10" for k in range(2, 10)),
    valid="3bpa/train_300K.extxyz@1::10",
    tests=("3bpa/train_300K.extxyz@::10", "3bpa/ood_mixedT_minus_train300K.extxyz"),
    cheap="gfn2",
    sizes=(LABELS,),
)
MANY = StudySet(
    train="heterogeneous/labelled.lmdb@110:",
    valid="heterogeneous/labelled.lmdb@80:110",
    tests=("heterogeneous/labelled.lmdb@:80",),
    cheap="gfn2",
    sizes=(LABELS,),
)
STUDY = {
    "acac": ("acetylacetone, PBE-D3", SETS["acac"]),
    "ethanol": ("ethanol, CCSD(T)", ETHANOL),
    "aspirin": ("aspirin, PBE", SETS["rmd17_aspirin"]),
    "3bpa": ("3BPA, ωB97X", THREE_BPA),
    "many": ("many different molecules, B3LYP", MANY),
}
"""What it is, and its structures."""
NAMES = {
    "acac/test_MD_300K.extxyz": "300 K",
    "acac/test_MD_600K.extxyz": "600 K",
    ETHANOL.tests[0]: "500 K",
    SETS["rmd17_aspirin"].tests[0]: "500 K",
    THREE_BPA.tests[0]: "300 K",
    THREE_BPA.tests[1]: "300, 600, 1200 K",
    MANY.tests[0]: "other molecules",
}
"""Of the tests, as the table has them."""

WAYS = {
    "scratch": ("from random weights, default recipe", []),
    "start": (
        "from the start, recipe of fine-tuning",
        [("finetune.run", START), ("recipe.name", "finetune")],
    ),
    "start-default": (
        "from the start, default recipe",
        [("finetune.run", START), ("recipe.name", "default")],
    ),
    "start-slow": (
        "from the start, default recipe at half its rate",
        [("finetune.run", START), ("recipe.name", "default"), ("optimizer.lr", 0.0032)],
    ),
    "pretrain": (
        "pre-trained on GFN2 of the molecule itself",
        [("weak.labels.method", "pretrain"), ("weak.labels.calculator", "gfn2")],
    ),
    "delta": (
        "a difference to GFN2, which runs beside it",
        [("weak.labels.method", "delta"), ("weak.labels.calculator", "gfn2")],
    ),
    "start-pretrain": (
        "from the start, two thirds of the steps on GFN2 of the molecule itself",
        [("finetune.run", START), ("recipe.name", "default"), ("weak.labels.method", "pretrain")],
    ),
    "start-curriculum": (
        "from the start, GFN2 of the molecule, a difference model, and the student",
        [("finetune.run", START), ("recipe.name", "default"), ("weak.labels.method", "curriculum")],
    ),
}
"""What it is, and its settings."""
POOL = [
    ("weak.labels.pool.structures", 500),
    ("weak.labels.pool.timestep", 1.0),
    ("weak.labels.pool.stride", 10),
]


def results_of(model):
    """The rows of an architecture."""
    return RESULTS / f"organic-start-{model}.csv"


def run(args):
    """Train and evaluate what is not there yet."""
    from pimlip_zoo.cli.console import log_to_screen
    from pimlip_zoo.experiment.curve import Point, run_point

    log_to_screen()
    ways = args.ways.split(",") if args.ways else list(WAYS)
    for name in args.sets.split(",") if args.sets else list(STUDY):
        for way in ways:
            point, (_, study) = Point(args.labels, way, args.seed), STUDY[name]
            tests = [f"{args.root}/{test}" for test in study.tests]
            rows = [row for row in read(results_of(args.model)) if int(row["total_steps"]) == args.steps]
            if any(is_of(row, name, args.labels, way, args.seed) for row in rows):
                continue
            print(name, point.name, flush=True)
            settings = [
                ("model.name", args.model),
                *([] if way.startswith("start") else [("model.preset", MODELS[args.model])]),
                ("data.train", ",".join(f"{args.root}/{part}" for part in study.train.split(","))),
                ("data.valid", f"{args.root}/{study.valid}"),
                ("data.batch_size", 5),
                ("trainer.max_steps", args.steps),
                ("trainer.valid_every", min(max(args.steps // 4, 1), 1000)),
            ]
            own = list(WAYS[way][1])
            if way == "pretrain":
                own += [("weak.labels.steps", args.steps), *POOL]
            if way == "start-pretrain":
                own += [
                    ("weak.labels.steps", 2 * args.steps // 3),
                    ("trainer.max_steps", args.steps // 3),
                    *POOL,
                ]
            if way == "start-curriculum":
                stages = ("weak.labels.pretrain_steps", "weak.labels.steps")
                own += [
                    *((key, args.steps // 4) for key in stages),
                    ("trainer.max_steps", args.steps // 2),
                    *POOL,
                ]
            if args.start and way.startswith("start"):
                own = [(key, args.start if key == "finetune.run" else value) for key, value in own]
            signal = run_point(
                point, settings, tests, Path(args.runs) / args.model / name, variants={way: own}
            )
            if signal is not None:
                return 128 + signal
            folder = Path(args.runs) / args.model / name / point.name
            result = json.loads((folder / "result.json").read_text())
            result["tests"] = {
                spec.removeprefix(f"{args.root}/"): summary for spec, summary in result["tests"].items()
            }
            keep({**result, "total_steps": args.steps}, results_of(args.model))
            shutil.rmtree(folder)
    return 0


def is_of(row, name, labels, way, seed):
    """Whether a row is that of a set and way."""
    return row["test"] in STUDY[name][1].tests and (row["size"], row["weak"], row["seed"]) == (
        labels,
        way,
        seed,
    )


def table():
    """Lines of Markdown, means and standard deviations over seeds."""
    lines = [
        "| molecule | test | model | labels | training | E meV | F meV/Å | steps in all | on labels | CPU s | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups = {}
    for model in MODELS:
        for row in read(results_of(model)):
            key = (row["test"], int(row["total_steps"]), model, int(row["size"]), row["weak"])
            groups.setdefault(key, []).append(row)
    tests = [test for _, study in STUDY.values() for test in study.tests]
    texts = {test: text for text, study in STUDY.values() for test in study.tests}
    models, ways = list(MODELS), list(WAYS)

    def place(key):
        test, total, model, size, way = key
        return total, tests.index(test), models.index(model), size, ways.index(way)

    for key in sorted(groups, key=place):
        test, total, model, size, way = key
        rows = groups[key]
        energy, forces = (
            spread([1e3 * row[f"{name}_rmse"] for row in rows]) for name in ("energy", "forces")
        )
        seconds = statistics.mean(row["cpu_seconds"] for row in rows)
        lines.append(
            f"| {texts[test]} | {NAMES[test]} | {model} | {size} | {WAYS[way][0]} | {energy} | {forces} "
            f"| {total:,} | {rows[0]['steps']:,} | {seconds:.0f} | {len(rows)} |"
        )
    return lines


def spread(values):
    """The mean, and the standard deviation where there are several."""
    mean = f"{statistics.mean(values):.3g}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2g}"


def docs(args):  # noqa: ARG001
    """Write the table where its place is marked."""
    PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), "organic-start", table()), encoding="utf-8")
    return 0


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("docs").set_defaults(function=docs)
    command = commands.add_parser("run")
    command.set_defaults(function=run)
    command.add_argument("--root", default="data")
    command.add_argument("--runs", default="runs/organic-start")
    command.add_argument("--model", default="nequip", choices=list(MODELS))
    command.add_argument("--sets")
    command.add_argument("--ways")
    command.add_argument("--labels", type=int, default=LABELS)
    command.add_argument("--steps", type=int, default=2000)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--start", help="another run to start from")
    args = parser.parse_args()
    if args.command == "run":
        print("\n".join(table()) if (code := run(args)) == 0 else code)
        return code
    return args.function(args)


if __name__ == "__main__":
    sys.exit(main())
