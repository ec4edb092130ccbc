"""Are steps, batches, model size and cutoff of the default recipe well chosen? Half, the rule's own, and double.

    python benchmarks/lengths.py run --root DATA --sets ethanol:60,cual:60,acac:250,argon:40
    python benchmarks/lengths.py show
    python benchmarks/lengths.py docs                                     (docs/results/lengths.md)

``run`` trains every variant that is not in ``benchmarks/results/lengths.jsonl`` yet, one line a run, appended as it
ends; ``--minutes`` begins none after so long, so that a long list can be done in parts. Steps are halved and doubled as
such; another batch has as many fewer steps, so that a run sees as many structures, which costs about the same; another
size of model (rule *size*) has as many steps as take the CPU time of the rule's own run, by the time of a step of each,
measured before; validation (rule *interval*) is four times as often, four times as seldom, and at the end alone. DATA
is the folder of the data sets, see ``benchmarks/weak/sets.py``; ethanol and cual are built in, argon is made here (a
Lennard-Jones liquid whose potential reaches to 8.5 Å). CPU time is that of the whole run, one thread.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "weak"))

from pages import add_row, read_rows, write_between  # noqa: E402
from sets import SETS, located  # noqa: E402

if TYPE_CHECKING:
    from pimlip_zoo.config import RunConfig
    from pimlip_zoo.datasets.frame import Frame

RESULTS = ROOT / "benchmarks" / "results" / "lengths.jsonl"
PAGE = ROOT / "docs" / "results" / "lengths.md"
DRAWN_FROM = 5000
"""Added to the seed that draws the structures."""
TESTED = 200
TIMED = 150
"""Steps that time a model of another size."""
SIZES = ("medium",)
VARIANTS: dict[str, tuple[str, ...]] = {
    "steps": ("steps/2", "steps*2"),
    "batch": ("batch/2", "batch*2"),
    "size": ("medium",),
    "interval": ("interval/4", "interval*4", "once"),
    "cutoff": ("cutoff*0.75", "cutoff*0.87", "cutoff*1.2"),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train what is not there yet")
    run.set_defaults(function=run_all)
    run.add_argument("--root", default="", help="folder of the data sets that are not built in")
    run.add_argument("--runs", type=Path, default=ROOT / "runs" / "lengths")
    run.add_argument("--sets", default="ethanol:60,cual:60", help="NAME:STRUCTURES, ...")
    run.add_argument("--rules", default="steps,batch", help=f"of {', '.join(VARIANTS)}")
    run.add_argument("--model", default="nequip")
    run.add_argument("--version", type=int, default=4, help="of the default recipe")
    run.add_argument("--seeds", default="0")
    run.add_argument("--minutes", type=float, default=13.0, help="begin no run after so long")
    commands.add_parser("show", help="print the tables").set_defaults(function=show)
    commands.add_parser("docs", help="write docs/results/lengths.md").set_defaults(function=write_docs)
    options = parser.parse_args()
    return options.function(options)


def run_all(options: argparse.Namespace) -> int:
    from pimlip_zoo.cli.console import log_to_screen

    log_to_screen()
    started = time.monotonic()
    for key in points(options):
        if found(key):
            continue
        if time.monotonic() - started > 60 * options.minutes:
            print("there is more to do")
            return 0
        row = trained(key, options)
        if row is None:
            return 1
        add_row(RESULTS, row)
        print(*key.values(), row["tests"], row["cpu_s"], "s", flush=True)
    return 0


def points(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is to be trained, the rule's own first."""
    for seed in map(int, options.seeds.split(",")):
        for entry in options.sets.split(","):
            data, _, structures = entry.partition(":")
            for variant in ("rule", *(v for rule in options.rules.split(",") for v in VARIANTS[rule])):
                yield {
                    "set": data,
                    "structures": int(structures),
                    "model": options.model,
                    "version": options.version,
                    "variant": variant,
                    "seed": seed,
                }


def found(key: dict[str, Any]) -> dict[str, Any] | None:
    return next((row for row in read_rows(RESULTS) if all(row[k] == v for k, v in key.items())), None)


def trained(key: dict[str, Any], options: argparse.Namespace) -> dict[str, Any] | None:
    """Train once and evaluate the best weights; None where a signal ended it."""
    from pimlip_zoo.evaluation import evaluate_frames
    from pimlip_zoo.experiment import prepare, train
    from pimlip_zoo.training.checkpoint import load_potential

    frames, valid, tests = structures_of(key, options.root)
    config = configured(key, frames, valid)
    folder = options.runs / "-".join(str(value).replace("/", "over") for value in key.values())
    shutil.rmtree(folder, ignore_errors=True)
    started = time.process_time()
    experiment = prepare(config, split=(frames, valid))
    outcome = train(experiment, folder)
    if outcome.signal is not None:
        return None
    cpu = time.process_time() - started
    summary = evaluate_frames(load_potential(folder), tests).summary
    shutil.rmtree(folder)
    config = experiment.config
    return {
        **key,
        "steps": outcome.steps,
        "batch": config.data.batch_size,
        "preset": config.model.preset,
        "every": config.trainer.valid_every,
        "cutoff": round(float(experiment.potential.cutoff), 2),
        "lr": config.optimizer.lr,
        "cpu_s": round(cpu, 1),
        "train_s": round(outcome.seconds, 1),
        "tests": {
            name: round(1e3 * summary[name]["rmse"], 3)
            for name in ("energy_per_atom", "forces", "stress")
            if summary.get(name)
        },
    }


def configured(key: dict[str, Any], frames: Sequence[Frame], valid: Sequence[Frame]) -> RunConfig:
    """The configuration of a variant, from what the recipe chooses for the data."""
    from pimlip_zoo.config import load_config
    from pimlip_zoo.experiment import prepare

    settings: dict[str, object] = {
        "seed": key["seed"],
        "model.name": key["model"],
        "recipe.version": key["version"],
        "data.train": f"{key['set']}:{key['structures']}",
        "data.energy_references": "least_squares",
        "data.check_references": False,
        "trainer.threads": 1,
    }
    rule = prepare(load_config(None, list(settings.items())), split=(frames, valid)).config
    steps, batch, variant = rule.trainer.max_steps, rule.data.batch_size, key["variant"]
    cutoff = rule.model.configure().cutoff
    name, _, factor = variant.partition("*") if "*" in variant else variant.partition("/")
    times = (float(factor) if "*" in variant else 1 / float(factor)) if factor else 1.0
    if name == "steps":
        settings["trainer.max_steps"] = round(steps * times)
    elif name == "batch":
        size = max(round(batch * times), 1)
        settings |= {"data.batch_size": size, "trainer.max_steps": round(steps * batch / size)}
    elif name == "cutoff":
        settings["model.cutoff"] = round(cutoff * times, 2)
    elif name == "interval":
        settings["trainer.valid_every"] = max(round(rule.trainer.valid_every * times), 1)
    elif name == "once":
        settings["trainer.valid_every"] = steps
    elif name in SIZES:
        ratio = step_seconds(settings, frames, valid, rule.model.preset) / step_seconds(
            settings, frames, valid, name
        )
        settings |= {"model.preset": name, "trainer.max_steps": round(steps * ratio)}
    return load_config(None, list(settings.items()))


def step_seconds(
    settings: dict[str, object], frames: Sequence[Frame], valid: Sequence[Frame], preset: str
) -> float:
    """CPU seconds of a step of a model of this size: of two short runs, what the longer takes beyond the shorter."""
    from pimlip_zoo.config import load_config
    from pimlip_zoo.experiment import prepare, train

    seconds = []
    for steps in (20, 20 + TIMED):
        values = {
            **settings,
            "model.preset": preset,
            "trainer.max_steps": steps,
            "trainer.valid_every": steps,
        }
        experiment = prepare(load_config(None, list(values.items())), split=(frames, valid[:1]))
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            train(experiment, Path(folder) / "timed")
            seconds.append(time.process_time() - started)
    return (seconds[1] - seconds[0]) / TIMED


def structures_of(key: dict[str, Any], root: str) -> tuple[Sequence[Frame], Sequence[Frame], Sequence[Frame]]:
    """Training structures, a sixth as many to choose the best weights by, tests."""
    from pimlip_zoo.datasets.readers import load_frames

    if key["set"] == "argon":
        frames, tests = argon(key["structures"] + 10, 1), argon(40, 2)
        return frames[:-10], frames[-10:], tests
    study = SETS[key["set"]]
    frames = [frame for frame in load_frames(located(root, study.train)) if len(frame.numbers) > 1]
    order = np.random.default_rng(DRAWN_FROM + key["seed"]).permutation(len(frames)).tolist()
    held = max(key["structures"] // 6, 5)
    train = [frames[i] for i in order[: key["structures"]]]
    valid = [frames[i] for i in order[key["structures"] :][:held]]
    return train, valid, load_frames(located(root, study.tests[0]))[:TESTED]


def argon(count: int, seed: int) -> list[Frame]:
    """Dense argon, each structure from scratch."""
    from ase import Atoms
    from ase.calculators.lj import LennardJones

    from pimlip_zoo.datasets.frame import Frame

    rng, frames = np.random.default_rng(seed), []
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3) * 3.7
    for _ in range(count):
        atoms = Atoms("Ar27", grid + rng.normal(0, 0.25, grid.shape), cell=[11.1] * 3, pbc=True)
        atoms.set_cell(atoms.cell * rng.uniform(0.98, 1.04), scale_atoms=True)
        atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=8.5, smooth=True)
        frames.append(
            Frame(
                atoms.numbers,
                atoms.positions,
                cell=np.array(atoms.cell),
                pbc=np.ones(3, dtype=bool),
                energy=atoms.get_potential_energy(),
                forces=atoms.get_forces(),
            )
        )
    return frames


def tables() -> list[str]:
    """By set: each variant's errors over those of the rule's own run, means over seeds."""
    lines: list[str] = []
    groups: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for row in read_rows(RESULTS):
        group = (row["set"], row["structures"], row["model"], row["version"])
        groups.setdefault(group, {}).setdefault(row["variant"], []).append(row)
    for (data, structures, model, version), variants in groups.items():
        first = next(iter(variants.values()))[0]
        quantities = list(first["tests"])
        heads = " | ".join(UNITS[quantity] for quantity in quantities)
        lines += [
            f"### {data}, {structures} structures, {model}, default recipe {version}",
            "",
            f"| variant | seeds | steps | batch | model | cutoff, Å | CPU s | {heads} |",
            "|---" * (7 + len(quantities)) + "|",
        ]
        for variant, rows in variants.items():
            cells = []
            for quantity in quantities:
                mean = statistics.mean(row["tests"][quantity] for row in rows)
                pairs = [
                    row["tests"][quantity] / own["tests"][quantity]
                    for row in rows
                    for own in variants["rule"]
                    if own["seed"] == row["seed"]
                ]
                ratio = f" ({statistics.geometric_mean(pairs):.2f})" if variant != "rule" and pairs else ""
                cells.append(f"{mean:.3g}{ratio}")
            one = rows[0]
            of_validation = variant in VARIANTS["interval"]
            said = f"{variant}: every {one['every']:,}" if of_validation else variant
            lines.append(
                f"| {said} | {len(rows)} | {one['steps']:,} | {one['batch']} | {one['preset']} | {one['cutoff']:g} "
                f"| {statistics.mean(row['cpu_s'] for row in rows):.0f} | {' | '.join(cells)} |"
            )
        lines.append("")
    return lines


UNITS = {"energy_per_atom": "E, meV/atom", "forces": "F, meV/Å", "stress": "σ, meV/Å³"}


def show(options: argparse.Namespace) -> int:  # noqa: ARG001
    print("\n".join(tables()))
    return 0


def write_docs(options: argparse.Namespace) -> int:  # noqa: ARG001
    write_between(PAGE, "lengths", ["", *tables()], new=f"# Lengths and sizes\n\n{__doc__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
