"""How accurate the architectures become on public data sets, beside the published numbers.

    python benchmarks/accuracy.py list
    python benchmarks/accuracy.py run --data DATA_FOLDER --dataset acac --model nequip --preset small --max-time 25m
    python benchmarks/accuracy.py table

``run`` trains one (data set, architecture, preset, seed) in ``runs/accuracy`` and writes one JSON file to
``benchmarks/results/accuracy``. Called again, it goes on where it stopped, bit for bit, until its steps are done;
``--max-time`` is the budget of one call. Errors are those of the best weights so far, and the file says how many
steps were done of how many. ``table`` writes all results into ``docs/results/benchmarks.md``.

DATA_FOLDER holds ``acac``, ``3bpa``, ``rmd17_aspirin``, ``mlearn_Si``, ... as extended XYZ with energies in eV and
forces in eV/Å. Without it a run is skipped with a line that says so, and exit code 77.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
RESULTS = HERE / "results" / "accuracy"
RUNS = HERE.parent / "runs" / "accuracy"
DOCS = HERE.parent / "docs" / "results" / "benchmarks.md"
SKIPPED = 77
MODELS = ("nequip", "allegro", "mace")
PRESETS = ("small", "medium", "large")


@dataclass(frozen=True)
class Study:
    """A data set, how it is split, and what others reached on it."""

    title: str
    train: str
    """DATA specification, ``{}`` stands for the data folder."""
    valid: str
    tests: dict[str, str]
    note: str
    kind: str = "rmse"
    steps: int = 200_000
    batch_size: int = 5
    published: tuple[tuple[str, str, dict[str, tuple[float, float]]], ...] = ()
    """(architecture, where from, {test: (energy meV, forces meV/Å)})."""


def tenths(path: str) -> tuple[str, str]:
    """Every tenth frame for validation, the others for training."""
    return ",".join(f"{path}@{k}::10" for k in range(1, 10)), f"{path}@::10"


ACAC, BPA = tenths("{}/acac/train_300K.extxyz"), tenths("{}/3bpa/train_300K.extxyz")
MACE_PAPER = "Batatia et al., NeurIPS 2022"
STUDIES = {
    "acac": Study(
        title="Acetylacetone",
        train=ACAC[0],
        valid=ACAC[1],
        tests={"300 K": "{}/acac/test_MD_300K.extxyz", "600 K": "{}/acac/test_MD_600K.extxyz"},
        note="450 structures at 300 K for training and 50 for validation, the standard tests at 300 K and 600 K.",
        published=(
            ("NequIP", MACE_PAPER, {"300 K": (0.81, 5.90), "600 K": (6.04, 27.8)}),
            ("MACE", MACE_PAPER, {"300 K": (0.9, 5.1), "600 K": (4.6, 22.4)}),
        ),
    ),
    "3bpa": Study(
        title="3BPA",
        train=BPA[0],
        valid=BPA[1],
        tests={"300 K hold-out": BPA[1]},
        note="450 structures at 300 K for training; the errors are those of the other 50, by which the best weights "
        "were chosen. The published test set is another one, so that its numbers are an orientation only.",
        published=(
            ("NequIP", "its test at 300 K, " + MACE_PAPER, {"300 K hold-out": (3.3, 10.8)}),
            ("Allegro", "its test at 300 K, " + MACE_PAPER, {"300 K hold-out": (3.84, 12.98)}),
            ("MACE", "its test at 300 K, " + MACE_PAPER, {"300 K hold-out": (3.0, 8.8)}),
        ),
    ),
    "aspirin": Study(
        title="rMD17 aspirin, 50 training structures",
        train="{}/rmd17_aspirin/train_50.extxyz",
        valid="{}/rmd17_aspirin/valid_950.extxyz@:50",
        tests={"900 structures": "{}/rmd17_aspirin/valid_950.extxyz@50:"},
        note="50 structures for training, 50 for validation, 900 others for the test.",
        kind="mae",
        published=(
            ("NequIP", MACE_PAPER, {"900 structures": (19.5, 52.0)}),
            ("MACE", MACE_PAPER, {"900 structures": (17.0, 43.9)}),
        ),
    ),
    **{
        f"mlearn-{element}": Study(
            title=f"mlearn {element}",
            train=tenths(f"{{}}/mlearn_{element}/train.extxyz")[0],
            valid=tenths(f"{{}}/mlearn_{element}/train.extxyz")[1],
            tests={"test": f"{{}}/mlearn_{element}/test.extxyz"},
            note="The standard test of Zuo et al., J. Phys. Chem. A 124, 731 (2020); a tenth of its training set for "
            "validation; trained on stress, too. Energies per atom.",
            kind="mae",
            batch_size=2,
        )
        for element in ("Si", "Mo", "Li", "Ge")
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the studies, and what is done of them")
    run = commands.add_parser("run", help="train, or go on")
    run.add_argument("--data", type=Path, help="folder of the data sets")
    run.add_argument("--dataset", choices=sorted(STUDIES), required=True)
    run.add_argument("--model", choices=MODELS, required=True)
    run.add_argument("--preset", choices=PRESETS, default="medium")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--steps", type=int, help="instead of the study's; part of the result's name")
    run.add_argument("--max-time", help="of this call: 90s, 10m, 2h")
    run.add_argument("--threads", type=int, default=1)
    run.add_argument("--device", default="auto")
    run.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any option of the training"
    )
    table = commands.add_parser("table", help="write docs/results/benchmarks.md")
    table.add_argument("--docs", type=Path, default=DOCS)
    table.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.command == "list":
        return show()
    if options.command == "table":
        write_table(options.docs, load_results(options.results))
        return 0
    return train(options)


def show() -> int:
    results = load_results(RESULTS)
    for name, study in STUDIES.items():
        print(f"{name:10s} {study.title}: {study.note}")
        for result in results:
            if result["dataset"] == name:
                print(f"{'':10s}   {label(result)}: {result['steps']:,} of {result['of_steps']:,} steps")
    return 0


def train(options: argparse.Namespace) -> int:
    study = STUDIES[options.dataset]
    first = study.train.split(",")[0].split("@")[0]
    if options.data is None or not Path(first.format(options.data)).exists():
        wanted = f"there is no {first.format(options.data)}" if options.data else "no --data was given"
        print(f"skipped {options.dataset}: {wanted}", file=sys.stderr)
        return SKIPPED
    from pimlip_zoo import experiment
    from pimlip_zoo.config import load_config

    name = f"{options.dataset}-{options.model}-{options.preset}-{options.seed}"
    name += f"-{options.steps}" if options.steps else ""
    name += "".join(f"-{re.sub(r'[^A-Za-z0-9.]+', '_', setting)}" for setting in options.set)
    folder = RUNS / name
    last = folder / "checkpoints" / "last.ckpt"
    settings = training_settings(study, options)
    config = load_config(None, settings)
    prepared = experiment.prepare(config)
    alarm = None
    if options.max_time is not None:
        budget = experiment.parse_duration(options.max_time).total_seconds()
        alarm = threading.Timer(budget, os.kill, (os.getpid(), signal.SIGTERM))
        alarm.daemon = True
        alarm.start()
    outcome = experiment.train(prepared, folder, resume=last.exists())
    if alarm is not None:
        alarm.cancel()
    if not (folder / "metrics.csv").exists():
        print(f"{name}: stopped at step {outcome.steps}, before the first validation; call again to go on")
        return 0
    result = describe(options, study, folder, outcome.steps, settings, prepared)
    RESULTS.mkdir(parents=True, exist_ok=True)
    temporary = RESULTS / f"{name}.tmp"
    temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    temporary.replace(RESULTS / f"{name}.json")
    print(f"{label(result)}: {result['steps']:,} of {result['of_steps']:,} steps")
    for test, errors in result["tests"].items():
        print(f"  {test}: energy {errors['energy']}, forces {errors['forces']}")
    return 0


def training_settings(study: Study, options: argparse.Namespace) -> list[tuple[str, object]]:
    """The configuration of a study; ``--set`` has the last word."""
    from pimlip_zoo.config import parse_settings

    settings: list[tuple[str, object]] = [
        *fixed_settings(study),
        ("seed", options.seed),
        ("model.name", options.model),
        ("model.preset", options.preset),
        ("data.train", study.train.format(*[options.data] * 9)),
        ("data.valid", study.valid.format(options.data)),
        ("trainer.max_steps", options.steps or study.steps),
        ("trainer.threads", options.threads),
        ("trainer.device", options.device),
    ]
    return settings + parse_settings(options.set)


def training_part(study: Study) -> str:
    """Some of the structures that are trained on: what is learned of them, beside what is learned of others."""
    return study.train.split(",")[0]


def fixed_settings(study: Study) -> list[tuple[str, object]]:
    """What all runs of a study have in common."""
    return [
        # One composition, or elements: least squares start at the mean energy, isolated atoms would not.
        ("data.energy_references", "least_squares"),
        ("data.batch_size", study.batch_size),
        ("loss.energy_per_atom.weight", 10.0),
        ("trainer.valid_every", 500),
        ("trainer.ema_decay", 0.999),
    ]


def describe(
    options: argparse.Namespace, study: Study, folder: Path, steps: int, settings: list, prepared
) -> dict:
    """What the JSON file holds: errors in eV and Å, configuration, cost."""
    import torch

    from pimlip_zoo import __version__
    from pimlip_zoo.evaluation import evaluate
    from pimlip_zoo.training.checkpoint import load_potential

    potential = load_potential(folder)
    fitted = training_part(study)
    tests = {}
    for test, spec in {**study.tests, "training": fitted}.items():
        summary = evaluate(potential, spec.format(options.data), batch_size=20).summary
        tests[test] = {
            q: summary[q] for q in ("n_structures", "energy", "energy_per_atom", "forces", "stress")
        }
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    hidden = {"data.train", "data.valid", "trainer.device"}  # they name folders of this machine
    return {
        "dataset": options.dataset,
        "model": options.model,
        "preset": options.preset,
        "seed": options.seed,
        "steps": steps,
        "of_steps": prepared.config.trainer.max_steps,
        "seconds": round(float(rows[-1]["seconds"])),
        "parameters": sum(p.numel() for p in potential.model.parameters()),
        "training_structures": len(prepared.train),
        "settings": {key: value for key, value in settings if key not in hidden},
        "fitted": tests.pop("training"),
        "tests": tests,
        "curve": [
            {k: float(row[k]) for k in ("step", "seconds", "valid_energy_rmse", "valid_forces_rmse")}
            for row in thinned(rows)
        ],
        "machine": f"{processor()}, {options.threads} thread(s)"
        + (
            f", {torch.cuda.get_device_name(0)}"
            if torch.cuda.is_available() and options.device != "cpu"
            else ""
        ),
        "versions": {
            "pimlip_zoo": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def thinned(rows: list, most: int = 40) -> list:
    """At most so many rows, the last one among them."""
    every = -(-len(rows) // most)
    return rows[::-1][::every][::-1]


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def load_results(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


STANDING = {
    *("seed", "model.name", "model.preset", "data.train", "data.valid"),
    *("trainer.max_steps", "trainer.threads", "trainer.device"),
}
"""Settings that every result has and that its row says otherwise."""


def label(result: dict) -> str:
    """The architecture, its preset, and what else was not as in the study."""
    usual = set(dict(fixed_settings(STUDIES[result["dataset"]]))) | STANDING
    names = {"optimizer.name": "", "optimizer.lr": "learning rate "}
    given = [
        f"{names.get(key, key + ' ')}{value}" for key, value in result["settings"].items() if key not in usual
    ]
    return ", ".join([result["model"], result["preset"], *given, f"seed {result['seed']}"])


def write_table(docs: Path, results: list[dict]) -> None:
    """Replace what stands between the markers."""
    from pages import write_between

    parts = [
        section(name, study, [r for r in results if r["dataset"] == name]) for name, study in STUDIES.items()
    ]
    write_between(docs, "accuracy table", ["", "\n\n".join(parts), ""])


def section(name: str, study: Study, results: list[dict]) -> str:
    """Heading, note and table of one study."""
    tests = list(study.tests)
    per_atom = name.startswith("mlearn")
    unit = "meV/atom" if per_atom else "meV"
    lines = [
        f"### {study.title}",
        "",
        f"{study.note} {study.kind.upper()}, energy in {unit}, forces in meV/Å.",
        "",
    ]
    if not results and not study.published:
        return "\n".join([*lines, "Not run yet."])
    head = ["potential", *[f"{test}: {what}" for test in tests for what in ("energy", "forces")]]
    lines += [f"| {' | '.join([*head, 'parameters', 'steps', 'time'])} |", f"|{'---|' * (len(head) + 3)}"]
    for model, source, errors in study.published:
        cells = [f"{value:g}" for test in tests for value in errors[test]]
        lines.append(f"| {model}, published ({source}) | {' | '.join(cells)} | | | |")
    quantity = "energy_per_atom" if per_atom else "energy"
    for result in results:
        cells = []
        for test in tests:
            for key in (quantity, "forces"):
                cells.append(f"{1e3 * result['tests'][test][key][study.kind]:.2f}")
        steps = f"{result['steps']:,}"
        if result["steps"] < result["of_steps"]:
            steps += f" of {result['of_steps']:,}"
        hours = result["seconds"] / 3600
        time = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
        row = [label(result), *cells, f"{result['parameters']:,}", steps, time]
        lines.append(f"| {' | '.join(row)} |")
    if not results:
        lines += ["", "Not run yet."]
    lines += learning_curves(results)
    machines = sorted({result["machine"] for result in results})
    if machines:
        lines += ["", f"Time is wall time on {'; '.join(machines)}; the machine was shared with other work."]
    return "\n".join(lines)


def learning_curves(results: list[dict]) -> list[str]:
    """Validation errors of the forces on the way, at steps that double."""
    lines = []
    for result in results:
        points, next_step = [], 0.0
        for row in result["curve"]:
            if row["step"] >= next_step or row is result["curve"][-1]:
                points.append(f"{row['step']:,.0f}: {1e3 * row['valid_forces_rmse']:.1f}")
                next_step = 2 * row["step"]
        fitted = ""
        if result.get("fitted") and result["fitted"]["forces"]:
            fitted = f"; of {result['fitted']['n_structures']} training structures in the end: "
            fitted += f"{1e3 * result['fitted']['forces']['rmse']:.1f}"
        lines.append(f"- {label(result)}: {', '.join(points)}{fitted}")
    return ["", "Forces RMSE on the validation structures in meV/Å, by step:", "", *lines] if lines else []


if __name__ == "__main__":
    sys.exit(main())
