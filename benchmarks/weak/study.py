"""The study of weak supervision: one table per command, resumable, results committed as they come.

    python benchmarks/weak/study.py list
    python benchmarks/weak/study.py run conservative acac --root data        (a table, on one data set)
    python benchmarks/weak/study.py show conservative acac                   (what is there, mean and spread over seeds)
    python benchmarks/weak/study.py docs                          (the tables of docs/results/weak-supervision.md)

Every point is trained in a run folder below --runs; its errors are rows of results/TABLE-SET-MODEL.csv. A point that is
there is not computed again, and an interrupted run goes on. The ways of training and their budgets are in ways.py, what
the tables show in tables.py.
"""

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import curvature  # noqa: F401  registers its recipe
from sets import SETS
from tables import fill, keep, read, table_of
from ways import TABLES, filled, settings_of


def shared_settings(args, study):
    """The settings that all points of a table share."""
    settings = [
        ("model.name", args.model),
        ("model.preset", args.preset),
        *((key, json.loads(value)) for key, _, value in (item.partition("=") for item in args.options)),
        ("data.train", placed(args, study.train)),
        ("data.batch_size", study.batch_size),
        ("data.energy_references", "least_squares"),
        ("trainer.valid_every", args.valid_every),
        *TABLES[args.table].settings,
    ]
    if study.valid is not None:
        settings.append(("data.valid", placed(args, study.valid)))
    return settings


def placed(args, data):
    """Where the data are: below --root, unless built in."""
    return (
        data if data.startswith("builtin:") else ",".join(f"{args.root}/{part}" for part in data.split(","))
    )


def points_of(args, study):
    """Seed by seed, in the order of the ways' worth."""
    from pimlip_zoo.experiment.curve import Point

    table = TABLES[args.table]
    ways = args.ways.split(",") if args.ways else table.ways
    sizes = [int(size) for size in args.sizes.split(",")] if args.sizes else study.sizes
    for seed in range(args.first_seed, args.seeds):
        for way in ways:
            more = sizes if args.sizes or way in table.more_labels else sizes[:1]
            yield from (Point(size, way, seed) for size in more)


def run(args):
    """Train and evaluate what is not there yet."""
    from pimlip_zoo.cli.console import log_to_screen
    from pimlip_zoo.experiment.curve import run_point

    log_to_screen()
    study, results = SETS[args.set], results_of(args)
    if args.cheap:
        study = replace(study, cheap=args.cheap)
    runs = Path(args.runs) / results.stem
    settings, tests = shared_settings(args, study), [placed(args, test) for test in study.tests]
    for point in points_of(args, study):
        if any(same(row, point) for row in read(results)):
            continue
        print(point.name, flush=True)
        # Unlabelled structures are those of the training set, the labelled ones among them.
        pool = {"{pool}": placed(args, study.train)}
        way = filled(settings_of(point.weak, args.steps, study, pool_structures=args.pool), pool)
        variants = {point.weak: way}
        signal = run_point(point, settings, tests, runs, variants=variants)
        if signal is not None:
            return 128 + signal
        result = json.loads((runs / point.name / "result.json").read_text())
        # Where the data lay is nothing that a result should say.
        result["tests"] = {
            spec.removeprefix(f"{args.root}/"): summary for spec, summary in result["tests"].items()
        }
        keep({**result, "total_steps": args.steps}, results)
        if not args.keep_runs:
            shutil.rmtree(runs / point.name)
    return show(args)


def same(row, point):
    return (row["size"], row["weak"], row["seed"]) == (point.size, point.weak, point.seed)


def show(args):
    """Print a table as it stands in the documentation."""
    print("\n".join(table_of(results_of(args), SETS[args.set])))
    return 0


def docs(args):
    """Write every table whose place is marked in the documentation."""
    fill(Path(args.docs), Path(args.out))
    return 0


def results_of(args):
    return Path(args.out) / f"{args.table}-{args.set}-{args.model}{args.tag}.csv"


def listing(args):  # noqa: ARG001
    for name, table in TABLES.items():
        print(f"{name:20s} {table.text}: {', '.join(table.ways)}")
    print("sets:", ", ".join(SETS))
    return 0


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list").set_defaults(function=listing)
    written = commands.add_parser("docs")
    written.set_defaults(function=docs)
    written.add_argument(
        "--docs", default=str(Path(__file__).parents[2] / "docs" / "results" / "weak-supervision.md")
    )
    written.add_argument("--out", default=str(Path(__file__).parent / "results"))
    for name, function in (("run", run), ("show", show)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("table", choices=list(TABLES))
        command.add_argument("set", choices=list(SETS))
        command.add_argument("--model", default="nequip")
        command.add_argument("--preset", default="small")
        command.add_argument("--cheap", help="calculator of the weak labels, instead of the set's")
        command.add_argument(
            "--set", action="append", default=[], dest="options", help="such as model.channels=16"
        )
        command.add_argument("--steps", type=int, default=6000, help="T, over all stages of a run")
        command.add_argument("--pool", type=int, help="weakly labelled structures, instead of the set's")
        command.add_argument("--valid-every", type=int, default=250)
        command.add_argument("--sizes", help="instead of those of the set")
        command.add_argument("--ways", help="instead of those of the table")
        command.add_argument("--seeds", type=int, default=3)
        command.add_argument("--first-seed", type=int, default=0)
        command.add_argument("--tag", default="", help="behind the name of the results")
        command.add_argument("--root", default="data")
        command.add_argument("--runs", default="runs/weak", help="where the run folders are")
        command.add_argument("--keep-runs", action="store_true")
        command.add_argument("--out", default=str(Path(__file__).parent / "results"))
    args = parser.parse_args()
    sys.exit(args.function(args))


if __name__ == "__main__":
    main()
