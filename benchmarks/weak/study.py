"""The study of weak supervision: one table per command, resumable, results committed as they come.

    python benchmarks/weak/study.py list
    python benchmarks/weak/study.py run conservative acac --root data        (a table, on one data set)
    python benchmarks/weak/study.py run conservative acac --root data --budget time
    python benchmarks/weak/study.py show conservative acac                   (what is there, mean and spread over seeds)

Every point is a run folder below --out (default benchmarks/weak/results/TABLE-SET-MODEL); a finished point is not
repeated and an interrupted one goes on. --budget steps gives every way of training the same number of optimiser steps
on the labels, --budget time the same wall-clock, pre-training and sampling of weak labels included in the time that is
reported. The plain runs are tuned with the table `tuning`.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sets import SETS

CENTRAL = [("weak.terms.pitc_central.weight", 0.1), ("weak.perturbation.amplitude", 0.05)]
DETACHED = [*CENTRAL, ("weak.terms.pitc_central.detach", "forces")]

# Ways of training by name; what is not here is a preset (or none).
VARIANTS = {
    "pitc-trapezoid": [("weak.terms.pitc_trapezoid.weight", 0.1)],
    "pitc-midpoint": [("weak.terms.pitc_midpoint.weight", 0.1)],
    "pitc-central": CENTRAL,
    "pitc-central-detached": DETACHED,
    "pitc-first": [("weak.terms.pitc_first_order.weight", 0.1), ("weak.perturbation.amplitude", 0.02)],
    "taylor-central": [("weak.terms.taylor_central.weight", 0.1)],
    "loop": [("weak.terms.loop_trapezoid.weight", 0.1)],
    "curl": [("weak.terms.curl.weight", 0.01)],
    "anchor": [("weak.terms.anchor_trapezoid.weight", 0.1)],
    "central-teacher": [*CENTRAL, ("weak.teacher", "ema")],
    "central-tied": [*DETACHED, ("weak.terms.pitc_central.schedule.name", "tied_to_error")],
    "central-warm-up": [*DETACHED, ("weak.terms.pitc_central.schedule.name", "warm_up")],
    "central-stiff": [*DETACHED, ("weak.perturbation.name", "stiff")],
    "central-soft": [*DETACHED, ("weak.perturbation.name", "soft")],
    "central-adversarial": [*DETACHED, ("weak.perturbation.name", "force_error")],
    "strain": [("weak.terms.strain_trapezoid.weight", 0.1)],
    "lr-low": [("optimizer.lr", 0.003)],
    "lr-high": [("optimizer.lr", 0.02)],
    "force-weight-10": [("loss.forces.weight", 10.0)],
    "force-weight-100": [("loss.forces.weight", 100.0)],
}

# Name -> (what it answers, ways of training, settings, only sets of this kind).
TABLES = {
    "tuning": (
        "learning rate and force weight of plain runs",
        ["none", "lr-low", "lr-high", "force-weight-10", "force-weight-100"],
        [],
    ),
    "conservative": (
        "conservative head, energies and forces",
        [
            "none",
            "piwsl",
            "pitc-trapezoid",
            "pitc-central",
            "taylor",
            "noisy-nodes",
            "denoising",
            "pretrain",
            "second-head",
            "distill",
            "delta",
        ],
        [],
    ),
    "energies": (
        "conservative head, energies only",
        ["none", "piwsl", "anchor", "pitc-trapezoid", "pretrain", "second-head", "distill", "delta"],
        [("data.labels", ["energy"])],
    ),
    "direct": (
        "direct head, energies and forces",
        [
            "none",
            "piwsl",
            "pitc-first",
            "pitc-trapezoid",
            "pitc-midpoint",
            "pitc-central",
            "pitc-central-detached",
            "taylor",
            "taylor-central",
            "loop",
            "curl",
            "pretrain",
        ],
        [("model.force_head", "direct")],
    ),
    "direct-energies": (
        "direct head, energies only",
        ["none", "piwsl", "pitc-trapezoid", "loop", "anchor", "pretrain"],
        [("model.force_head", "direct"), ("data.labels", ["energy"])],
    ),
    "kinds": (
        "direct head: kinds of displacement, schedules, teacher",
        [
            "pitc-central-detached",
            "central-teacher",
            "central-tied",
            "central-warm-up",
            "central-stiff",
            "central-soft",
            "central-adversarial",
        ],
        [("model.force_head", "direct")],
    ),
    "strain": ("conservative head, periodic structures: strain", ["none", "strain"], []),
}


def settings_of(args, study):
    """The settings that all points of a table share."""
    place = "" if study.train.startswith("builtin:") else f"{args.root}/"
    _, _, extra = TABLES[args.table]
    settings = [
        ("model.name", args.model),
        ("model.preset", args.preset),
        ("data.train", ",".join(place + part for part in study.train.split(","))),
        ("data.batch_size", study.batch_size),
        ("data.energy_references", "least_squares"),
        ("trainer.max_steps", args.steps),
        ("trainer.valid_every", max(1, args.steps // 20)),
        *extra,
    ]
    if study.valid is not None:
        settings.append(("data.valid", place + study.valid))
    if args.budget == "time":
        settings.append(("trainer.max_time", args.max_time))
    if args.channels:
        settings.append(("model.channels", args.channels))
    return settings, [place + test for test in study.tests]


def variants_of(args, study):
    """Settings by way of training: presets with weak labels get the set's calculator."""
    from pimlip_zoo.losses.weak_config import weak_preset

    _, names, _ = TABLES[args.table]
    variants = {}
    for name in names:
        if name in VARIANTS:
            variants[name] = VARIANTS[name]
        elif name != "none" and "labels" in weak_preset(name):
            variants[name] = [
                ("weak.preset", name),
                ("weak.labels.calculator", study.cheap),
                ("weak.labels.steps", args.steps),
            ]
    return variants


def run(args):
    from pimlip_zoo.cli.console import log_to_screen
    from pimlip_zoo.curve import Point, run_points

    log_to_screen()
    study = SETS[args.set]
    settings, tests = settings_of(args, study)
    sizes = [int(size) for size in args.sizes.split(",")] if args.sizes else study.sizes
    ways = args.ways.split(",") if args.ways else TABLES[args.table][1]
    points = [Point(size, way, seed) for seed in range(args.seeds) for size in sizes for way in ways]
    signal = run_points(points, settings, tests, folder_of(args), variants=variants_of(args, study))
    show(args)
    return 0 if signal is None else 128 + signal


def show(args):
    """Print mean ± standard deviation over seeds, energies per structure as in the tables of the documentation."""
    from pimlip_zoo.curve import collect, summarise

    print("| labels | training | test | E RMSE meV | F RMSE meV/Å | steps | s | seeds |")
    print("|---|---|---|---|---|---|---|---|")
    for row in summarise(collect(folder_of(args))):
        cells = []
        for name in ("energy_rmse", "forces_rmse"):
            spread = f" ± {1e3 * row[f'{name}_std']:.1f}" if row[f"{name}_std"] is not None else ""
            cells.append("" if row[name] is None else f"{1e3 * row[name]:.1f}{spread}")
        test = Path(row["test"]).name
        way = f"| {row['size']} | {row['weak']} | {test} | {cells[0]} | {cells[1]} "
        print(f"{way}| {row['steps']:.0f} | {row['seconds']:.0f} | {row['seeds']} |")
    return 0


def folder_of(args):
    name = f"{args.table}-{args.set}-{args.model}" + ("-time" if args.budget == "time" else "")
    return Path(args.out) / name


def listing(args):  # noqa: ARG001
    for name, (text, ways, _) in TABLES.items():
        print(f"{name:16s} {text}: {', '.join(ways)}")
    print("sets:", ", ".join(SETS))
    return 0


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list").set_defaults(function=listing)
    for name, function in (("run", run), ("show", show)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("table", choices=list(TABLES))
        command.add_argument("set", choices=list(SETS))
        command.add_argument("--model", default="nequip")
        command.add_argument("--preset", default="small")
        command.add_argument("--channels", type=int, default=16)
        command.add_argument("--steps", type=int, default=5000)
        command.add_argument("--sizes", help="instead of those of the set")
        command.add_argument("--ways", help="instead of those of the table")
        command.add_argument("--seeds", type=int, default=3)
        command.add_argument("--budget", choices=["steps", "time"], default="steps")
        command.add_argument("--max-time", default="5m")
        command.add_argument("--root", default="data")
        command.add_argument("--out", default=str(Path(__file__).parent / "results"))
    args = parser.parse_args()
    sys.exit(args.function(args))


if __name__ == "__main__":
    main()
