"""Which structures to label: chosen ones against random ones, and uncertainties against true errors.

    python benchmarks/labelling.py run --root DATA --sets acac,tio2 --seeds 0,1,2
    python benchmarks/labelling.py run --root DATA --sets acac --start builtin:organic-gfn2
    python benchmarks/labelling.py show
    python benchmarks/labelling.py docs                                   (docs/results/labelling.md)

Batches ``random`` are trainings on 25 to 200 structures at random: the curve that says how many random labels make an
error. ``first``: 50 by each acquisition that needs no model. ``next``: 25 at random, one training, 25 more by each
acquisition, a training on all. All have the same number of steps, the same validation structures and the same tests.
With ``--start`` every training begins there, and so does the one that chooses. Each training is one line in
``benchmarks/results/labelling.jsonl``; what is there is not run again. DATA is the folder of the data sets, see
``benchmarks/weak/sets.py``; cual is built in.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from pages import add_row, read_rows, write_between
from study import parsers

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "labelling.jsonl"
PAGE = ROOT / "docs" / "results" / "labelling.md"
SETS: dict[str, dict[str, Any]] = {
    "acac": {
        "pool": "acac/train_300K.extxyz@0:450,acac/train_600K.extxyz@0:450",
        "valid": "acac/train_300K.extxyz@450:475,acac/train_600K.extxyz@450:475",
        "tests": ("acac/test_MD_300K.extxyz@::4", "acac/test_MD_600K.extxyz@::4"),
        "batch_size": 5,
    },
    "tio2": {
        "pool": "tio2_aenet1000/train_800.extxyz",
        "valid": "tio2_aenet1000/valid_50.extxyz",
        "tests": ("tio2_aenet1000/test_150.extxyz",),
        "batch_size": 4,
    },
    "cual": {
        "pool": "builtin:cual-emt/train",
        "valid": "builtin:cual-emt/valid",
        "tests": ("builtin:cual-emt/test",),
        "batch_size": 4,
    },
    "ethanol": {
        "pool": "builtin:ethanol-gfn2/train",
        "valid": "builtin:ethanol-gfn2/valid",
        "tests": ("builtin:ethanol-gfn2/test_300K", "builtin:ethanol-gfn2/test_600K"),
        "batch_size": 5,
    },
    "mlearn_Si": {
        "pool": ",".join(f"mlearn_Si/train.extxyz@{k}::6" for k in range(1, 6)),
        "valid": "mlearn_Si/train.extxyz@::6",
        "tests": ("mlearn_Si/test.extxyz",),
        "batch_size": 2,
    },
    "mlearn_Mo": {
        "pool": ",".join(f"mlearn_Mo/train.extxyz@{k}::6" for k in range(1, 6)),
        "valid": "mlearn_Mo/train.extxyz@::6",
        "tests": ("mlearn_Mo/test.extxyz",),
        "batch_size": 2,
    },
    "deepmd_water": {
        "pool": "deepmd_water/train_data_0.extxyz,deepmd_water/train_data_1.extxyz",
        "valid": "deepmd_water/train_data_2.extxyz",
        "tests": ("deepmd_water/test_data_3.extxyz",),
        "batch_size": 1,
    },
}
CURVE = (25, 35, 50, 70, 100, 140, 200)
LABELS = 50
"""Of all batches that are chosen."""
CHOSEN = {
    "first": ("farthest", "coverage", "cluster"),
    "next": ("cluster", "coverage", "gradient", "variance", "mixed"),
}


def main() -> int:
    parser, run = parsers(
        "labelling", __doc__, sets="acac,tio2,cual", steps=2000, run=run_all, show=show, docs=docs
    )
    run.add_argument("--model", default="nequip")
    run.add_argument("--preset", default="compact")
    run.add_argument("--start", default="", help="what the trainings begin with, as of `train --from`")
    run.add_argument("--start-name", help="what the tables call it")
    run.add_argument("--batches", default="random,first,next")
    run.add_argument("--sizes", default=",".join(map(str, CURVE)), help="of random batches")
    run.add_argument("--acquisitions", help="some of them, with commas")
    options = parser.parse_args()
    return options.function(options)


def run_all(options: argparse.Namespace) -> int:
    import logging

    logging.getLogger("pimlip_zoo").setLevel(logging.WARNING)
    end = time.monotonic() + 60 * options.minutes
    for seed in map(int, options.seeds.split(",")):
        for name in options.sets.split(","):
            for batch, way, labels in points(options):
                key = {
                    "set": name,
                    "batch": batch,
                    "acquisition": way,
                    "labels": labels,
                    "steps": options.steps,
                    "model": options.model,
                    "preset": options.preset,
                    "start": options.start_name or options.start,
                    "seed": seed,
                }
                if any(all(row.get(k) == v for k, v in key.items()) for row in read_rows(RESULTS)):
                    continue
                if time.monotonic() > end:
                    print("out of time: call it again")
                    return 0
                row = point(key, options)
                if row is not None:
                    add_row(RESULTS, key | row)
                    print(line(key | row), flush=True)
    print("all done")
    return 0


def points(options: argparse.Namespace) -> list[tuple[str, str, int]]:
    """Batches, acquisitions and numbers of labels."""
    random = [("random", "random", int(count)) for count in options.sizes.split(",")]
    wanted = options.acquisitions.split(",") if options.acquisitions else None
    chosen = [
        (batch, way, LABELS)
        for batch, ways in CHOSEN.items()
        for way in ways
        if wanted is None or way in wanted
    ]
    return [point for point in [*random, *chosen] if point[0] in options.batches.split(",")]


def point(key: dict, options: argparse.Namespace) -> dict | None:
    """Choose, train, test; None where the pool is too small."""
    import numpy as np

    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.labelling.select import select

    study = SETS[key["set"]]
    pool = load_frames(placed(options.root, study["pool"]))
    valid = load_frames(placed(options.root, study["valid"]))[:50]
    count, way = key["labels"], key["acquisition"]
    if count > 0.8 * len(pool):
        return None
    order = np.random.default_rng(1000 + key["seed"]).permutation(len(pool)).tolist()
    started = time.process_time()
    if key["batch"] == "random":
        chosen = order[:count]
    elif key["batch"] == "first":
        chosen = [choice.index for choice in select(pool, count, acquisition=way, seed=key["seed"]).choices]
    else:
        half, rest = order[: count // 2], sorted(order[count // 2 :])
        known = [pool[index] for index in half]
        before = folder_of(options, {**key, "batch": "random", "acquisition": "random", "labels": len(half)})
        potential = trained(before, known, valid, key, study, options.start)
        posterior = fitted(before, potential, known, valid)
        started = time.process_time()
        made = select(
            [pool[index] for index in rest],
            count - len(half),
            acquisition=way,
            known=known,
            potential=potential,
            posterior=posterior,
            seed=key["seed"],
        )
        chosen = half + [rest[choice.index] for choice in made.choices]
    choosing = time.process_time() - started
    train = [pool[index] for index in chosen]
    folder = folder_of(options, key)
    started = time.process_time()
    potential = trained(folder, train, valid, key, study, options.start)
    training = time.process_time() - started
    posterior = fitted(folder, potential, train, valid)
    if count > LABELS // 2:  # the others are what the next batches are chosen with
        shutil.rmtree(folder)
    tests = {test: tested(potential, posterior, placed(options.root, test)) for test in study["tests"]}
    return {
        "chosen": chosen,
        "choosing_s": round(choosing, 1),
        "training_s": round(training, 1),
        "tests": tests,
    }


def folder_of(options: argparse.Namespace, key: dict) -> Path:
    names = ("set", "batch", "acquisition", "labels", "steps", "model", "preset", "start", "seed")
    return options.runs / "-".join(str(key[name]).replace("/", "_").replace(":", "_") for name in names)


def trained(folder: Path, train: list, valid: list, key: dict, study: dict, start: str) -> Any:
    """The potential of a training, which is not repeated while its folder is there."""
    from pimlip_zoo.config import load_config
    from pimlip_zoo.experiment import prepare
    from pimlip_zoo.experiment import train as train_run
    from pimlip_zoo.training.checkpoint import load_potential

    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        settings: dict[str, object] = {
            "seed": key["seed"],
            **(
                {"finetune.run": start}
                if start
                else {"model.name": key["model"], "model.preset": key["preset"]}
            ),
            "data.train": "given",
            "data.valid": "given",
            "data.energy_references": "least_squares",
            "data.batch_size": study["batch_size"],
            "trainer.max_steps": key["steps"],
            "trainer.valid_every": max(key["steps"] // 4, 50),
            "trainer.threads": 1,
        }
        config = load_config(None, list(settings.items()))
        if train_run(prepare(config, split=(train, valid)), folder).signal is not None:
            sys.exit(1)
        (folder / "done").touch()
    return load_potential(folder)


def fitted(folder: Path, potential: Any, train: list, valid: list) -> Any:
    from pimlip_zoo.labelling.uncertainty import fit_posterior, load_posterior, save_posterior
    from pimlip_zoo.training.checkpoint import checkpoint_path

    checkpoint = checkpoint_path(folder)
    kept = load_posterior(potential, checkpoint)
    if kept is None:
        kept = fit_posterior(potential, train, valid)
        save_posterior(kept, checkpoint)
    return kept


def tested(potential: Any, posterior: Any, data: str) -> dict:
    """Errors in meV per atom and meV/Å, the worst structures' too; uncertainty of forces against their errors."""
    import numpy as np
    import torch

    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.evaluation import evaluate_frames, uncertainty_summary
    from pimlip_zoo.labelling.select import predicted_forces

    frames = load_frames(data)
    torch.manual_seed(0)
    summary = evaluate_frames(potential, frames).summary
    of_structure = [
        float(np.sqrt(np.mean((frame.forces - forces) ** 2)))
        for frame, forces in zip(frames, predicted_forces(potential, frames), strict=True)
    ]
    trust = {}
    if posterior is not None:
        found = uncertainty_summary(potential, posterior, frames[:: max(1, len(frames) // 100)])["forces"]
        trust = {name: round(found[name], 3) for name in ("correlation", "coverage")}
    return {
        "energy": round(1e3 * summary["energy_per_atom"]["rmse"], 3),
        "forces": round(1e3 * summary["forces"]["rmse"], 2),
        "forces_worst_tenth": round(
            1e3 * float(np.mean(np.sort(of_structure)[-max(len(frames) // 10, 1) :])), 1
        ),
        **trust,
    }


def placed(root: str, data: str) -> str:
    return ",".join(part if part.startswith("builtin:") else f"{root}/{part}" for part in data.split(","))


ERRORS = "E {energy:.2f} F {forces:.1f} (worst tenth {forces_worst_tenth:.0f})"
TRUST = " corr {correlation:.2f} cover {coverage:.2f}"


def line(row: dict) -> str:
    cells = [(ERRORS + TRUST).format(**values) for values in row["tests"].values()]
    return (
        f"{row['set']:9s} {row['start']} {row['batch']:6s} {row['acquisition']:9s} {row['labels']:3d} seed "
        f"{row['seed']}  {row['choosing_s']:.0f}+{row['training_s']:.0f} s  " + "  |  ".join(cells)
    )


def show(options: argparse.Namespace) -> int:  # noqa: ARG001
    for row in sorted(
        read_rows(RESULTS),
        key=lambda r: (r["set"], r["start"], r["batch"], r["acquisition"], r["labels"], r["seed"]),
    ):
        print(line(row))
    for lines in (table(), needed("energy"), needed("forces"), needed("forces_worst_tenth")):
        print("\n" + "\n".join(lines))
    return 0


HEAD = (
    *("set", "test", "batch", "acquisition", "labels", "seeds", "energy, meV/atom", "forces, meV/Å"),
    *("worst tenth", "correlation", "coverage"),
)


def table() -> list[str]:
    """Means and standard deviations over seeds."""
    groups: dict[tuple, list[dict]] = {}
    for row in read_rows(RESULTS):
        for test, values in row["tests"].items():
            group = (*(set_of(row), named(test), row["batch"], row["acquisition"], row["labels"]),)
            groups.setdefault(group, []).append(values)
    order = ["random", *dict.fromkeys(way for ways in CHOSEN.values() for way in ways)]
    batches = ["random", *CHOSEN]
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for group in sorted(groups, key=lambda g: (*g[:2], batches.index(g[2]), order.index(g[3]), g[4])):
        rows = groups[group]
        cells = [spread([r[k] for r in rows]) for k in ("energy", "forces", "forces_worst_tenth")]
        cells += [f"{statistics.mean(r[k] for r in rows):.2f}" for k in ("correlation", "coverage")]
        lines.append("| " + " | ".join([*map(str, group), str(len(rows)), *cells]) + " |")
    return lines


def set_of(row: dict) -> str:
    """The set, and where its trainings begin."""
    return f"{row['set']}, from {row['start']}" if row["start"] else row["set"]


def named(test: str) -> str:
    """Of a test, without folder and ending."""
    return Path(test.split("@", maxsplit=1)[0]).name.removesuffix(".extxyz")


def spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{statistics.mean(values):.3g} ± {statistics.stdev(values):.2g}"


def needed(quantity: str) -> list[str]:
    """How many random labels make the error that 50 chosen ones have, and what part of these the chosen ones are."""
    random: dict[tuple, list[tuple[int, float]]] = {}
    chosen: dict[tuple, list[float]] = {}
    for row in read_rows(RESULTS):
        for test, values in row["tests"].items():
            place = (set_of(row), named(test))
            if row["batch"] == "random":
                random.setdefault(place, []).append((row["labels"], values[quantity]))
            else:
                chosen.setdefault((*place, row["batch"], row["acquisition"]), []).append(values[quantity])
    head = ["set", "test", "50 random", "batch", "50 chosen by", "seeds", "error"]
    head += ["as good as random", "share of these"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for group in sorted(chosen, key=lambda g: (*g[:3], CHOSEN[g[2]].index(g[3]))):
        errors, curve = chosen[group], random.get(group[:2], [])
        beside = [error for count, error in curve if count == LABELS]
        equal = [as_good(curve, error) for error in errors]
        if not beside or None in equal:
            continue
        known = [count for count in equal if count is not None]
        cells = [spread(beside), group[2], group[3], str(len(errors)), spread(errors)]
        cells += [spread(known), spread([LABELS / count for count in known])]
        lines.append("| " + " | ".join([*group[:2], *cells]) + " |")
    return lines


def as_good(curve: list[tuple[int, float]], error: float) -> float | None:
    """The number of random labels with that error: by a power law through all points, since these scatter."""
    if len({count for count, _ in curve}) < 3:
        return None
    slope, start = statistics.linear_regression(
        [math.log(count) for count, _ in curve], [math.log(error) for _, error in curve]
    )
    if slope >= 0:
        return None
    return math.exp((math.log(error) - start) / slope)


MARKS = ("labelling", "needed energy", "needed forces", "needed worst tenth")


def docs(options: argparse.Namespace) -> int:  # noqa: ARG001
    tables = (table(), needed("energy"), needed("forces"), needed("forces_worst_tenth"))
    for mark, lines in zip(MARKS, tables, strict=True):
        write_between(PAGE, mark, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
