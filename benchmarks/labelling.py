"""Which structures to label: chosen ones against random ones, and uncertainties against true errors.

    python benchmarks/labelling.py run --root DATA --sets acac,tio2,cual --seeds 0,1,2
    python benchmarks/labelling.py run --root DATA --sets acac,tio2 --parts curve --steps 1000
    python benchmarks/labelling.py show
    python benchmarks/labelling.py docs                                   (docs/results/labelling.md)

``first``: a first batch of --labels structures by each acquisition that needs no model, one training on it. ``next``:
half as many at random, one training, the other half by each acquisition, a training on all. Both with the same number
of steps, the same validation structures and the same tests. ``curve``: how many random labels it takes to be as good
as chosen ones: trainings on 25, 50, 75 and 100 at random and on 50 that are chosen, ``variance`` as in ``next``, the
others as in ``first``; no uncertainties. Each training is one line in ``benchmarks/results/labelling.jsonl``; what is
there is not run again. DATA is the folder of the data sets, see ``benchmarks/weak/sets.py``; cual is built in.
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
}
FIRST = ("random", "farthest", "coverage", "cluster")
NEXT = ("random", "coverage", "gradient", "variance")
CURVE = (25, 50, 75, 100)
CHOSEN = ("farthest", "coverage", "variance")


def main() -> int:
    parser, run = parsers(
        "labelling", __doc__, sets="acac,tio2,cual", steps=400, run=run_all, show=show, docs=docs
    )
    run.add_argument("--parts", default="first,next")
    run.add_argument("--labels", type=int, default=50)
    run.add_argument("--model", default="nequip")
    options = parser.parse_args()
    return options.function(options)


def run_all(options: argparse.Namespace) -> int:
    import logging

    logging.getLogger("pimlip_zoo").setLevel(logging.WARNING)
    end = time.monotonic() + 60 * options.minutes
    for seed in map(int, options.seeds.split(",")):
        for name in options.sets.split(","):
            for part in options.parts.split(","):
                for way, labels in points(part, options.labels):
                    key = {
                        "set": name,
                        "part": part,
                        "acquisition": way,
                        "labels": labels,
                        "steps": options.steps,
                        "model": options.model,
                        "seed": seed,
                    }
                    if any(all(row.get(k) == v for k, v in key.items()) for row in read_rows(RESULTS)):
                        continue
                    if time.monotonic() > end:
                        print("out of time: call it again")
                        return 0
                    row = key | point(key, options)
                    add_row(RESULTS, row)
                    print(line(row), flush=True)
    print("all done")
    return 0


def points(part: str, labels: int) -> list[tuple[str, int]]:
    """Acquisitions and numbers of labels of a part."""
    if part == "curve":
        return [*(("random", count) for count in CURVE), *((way, labels) for way in CHOSEN)]
    return [(way, labels) for way in (FIRST if part == "first" else NEXT)]


def point(key: dict, options: argparse.Namespace) -> dict:
    """Choose, train, test."""
    import numpy as np

    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.labelling.select import select

    study = SETS[key["set"]]
    pool = load_frames(placed(options.root, study["pool"]))
    valid = load_frames(placed(options.root, study["valid"]))[:50]
    count = min(key["labels"], len(pool) // 2)
    started = time.process_time()
    if key["part"] == "first" or (key["part"] == "curve" and key["acquisition"] != "variance"):
        if key["acquisition"] == "random":
            chosen = np.random.default_rng(1000 + key["seed"]).permutation(len(pool))[:count].tolist()
        else:
            made = select(pool, count, acquisition=key["acquisition"], seed=key["seed"])
            chosen = [choice.index for choice in made.choices]
    else:
        half = np.random.default_rng(1000 + key["seed"]).permutation(len(pool))[: count // 2].tolist()
        rest = [index for index in range(len(pool)) if index not in set(half)]
        known = [pool[index] for index in half]
        before = options.runs / f"{key['set']}-{key['seed']}-{count // 2}-{key['steps']}-{key['model']}"
        potential = trained(before, known, valid, key, study)
        posterior = fitted(before, potential, known, valid) if key["acquisition"] == "variance" else None
        started = time.process_time()
        made = select(
            [pool[index] for index in rest],
            count - len(half),
            acquisition=key["acquisition"],
            known=known,
            potential=potential,
            posterior=posterior,
            seed=key["seed"],
        )
        chosen = half + [rest[choice.index] for choice in made.choices]
    choosing = time.process_time() - started
    train = [pool[index] for index in chosen]
    folder = (
        options.runs / f"{key['set']}-{key['seed']}-{key['part']}-{key['acquisition']}-{count}-{key['steps']}"
    )
    started = time.process_time()
    potential = trained(folder, train, valid, key, study)
    training = time.process_time() - started
    posterior = None if key["part"] == "curve" else fitted(folder, potential, train, valid)
    shutil.rmtree(folder)
    tests = {test: tested(potential, posterior, placed(options.root, test)) for test in study["tests"]}
    return {
        "chosen": chosen,
        "choosing_s": round(choosing, 1),
        "training_s": round(training, 1),
        "tests": tests,
    }


def trained(folder: Path, train: list, valid: list, key: dict, study: dict) -> Any:
    """The potential of a training, which is not repeated while its folder is there."""
    from pimlip_zoo.config import load_config
    from pimlip_zoo.experiment import prepare
    from pimlip_zoo.experiment import train as train_run
    from pimlip_zoo.training.checkpoint import load_potential

    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        settings: dict[str, object] = {
            "seed": key["seed"],
            "model.name": key["model"],
            "model.preset": "small",
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
    cells = [
        (ERRORS + (TRUST if "coverage" in values else "")).format(**values)
        for values in row["tests"].values()
    ]
    return (
        f"{row['set']:5s} {row['part']:5s} {row['acquisition']:9s} {row['labels']:3d} seed {row['seed']}  "
        f"{row['choosing_s']:.0f}+{row['training_s']:.0f} s  " + "  |  ".join(cells)
    )


def show(options: argparse.Namespace) -> int:  # noqa: ARG001
    for row in sorted(
        read_rows(RESULTS), key=lambda r: (r["set"], r["part"], r["acquisition"], r["labels"], r["seed"])
    ):
        print(line(row))
    for lines in (table(), needed("forces"), needed("forces_worst_tenth")):
        print("\n" + "\n".join(lines))
    return 0


HEAD = (
    *("set", "labels", "batch", "test", "acquisition", "seeds", "energy, meV/atom", "forces, meV/Å"),
    *("worst tenth", "correlation", "coverage"),
)


def table() -> list[str]:
    """Means and standard deviations over seeds."""
    groups: dict[tuple, list[dict]] = {}
    for row in read_rows(RESULTS):
        for test, values in row["tests"].items() if row["part"] != "curve" else ():
            group = (row["set"], row["labels"], row["part"], test.split("@")[0], row["acquisition"])
            groups.setdefault(group, []).append(values)
    order = {name: place for place, name in enumerate(dict.fromkeys(FIRST + NEXT))}
    lines = [
        "| " + " | ".join(HEAD) + " |",
        "|" + "---|" * len(HEAD),
    ]
    for group in sorted(groups, key=lambda g: (*g[:4], order[g[4]])):
        rows = groups[group]
        cells = [spread([r[k] for r in rows]) for k in ("energy", "forces", "forces_worst_tenth")]
        cells += [f"{statistics.mean(r[k] for r in rows):.2f}" for k in ("correlation", "coverage")]
        head = [*map(str, group), str(len(rows))]
        lines.append("| " + " | ".join([*head, *cells]) + " |")
    return lines


def spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{statistics.mean(values):.3g} ± {statistics.stdev(values):.2g}"


def needed(quantity: str) -> list[str]:
    """How many random labels make the error that chosen ones have: means over seeds."""
    means: dict[tuple, dict[int, list[float]]] = {}
    chosen: dict[tuple, dict[int, float]] = {}
    for row in (row for row in read_rows(RESULTS) if row["part"] == "curve"):
        for test, values in row["tests"].items():
            place = (row["set"], test.split("@")[0], row["steps"])
            if row["acquisition"] == "random":
                means.setdefault(place, {}).setdefault(row["labels"], []).append(values[quantity])
            else:
                chosen.setdefault((*place, row["acquisition"]), {})[row["seed"]] = values[quantity]
    head = [
        "test",
        *(f"random, {count}" for count in CURVE),
        "50 chosen by",
        "seeds",
        "error",
        "as good as random",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for group in sorted(chosen, key=lambda g: (*g[:3], CHOSEN.index(g[3]))):
        place, errors = group[:3], chosen[group]
        curve = {count: statistics.mean(values) for count, values in means.get(place, {}).items()}
        cells = [f"{curve[count]:.3g}" if count in curve else "" for count in CURVE]
        mean = statistics.mean(errors.values())
        cells += [group[3], str(len(errors)), spread(list(errors.values())), as_good(curve, mean)]
        lines.append("| " + " | ".join([place[1], *cells]) + " |")
    return lines


def as_good(curve: dict[int, float], error: float) -> str:
    """The number of random labels with that error."""
    counts = sorted(curve)
    if len(counts) < 2:
        return ""
    # The curve scatters: a power law through all of its points.
    x, y = [math.log(count) for count in counts], [math.log(curve[count]) for count in counts]
    slope, start = statistics.linear_regression(x, y)
    if slope >= 0:
        return "no curve"
    count = math.exp((math.log(error) - start) / slope)
    return f"{count:.0f}" if count < 400 else "> 400"


MARKS = ("labelling", "needed forces", "needed worst tenth")


def docs(options: argparse.Namespace) -> int:  # noqa: ARG001
    tables = (table(), needed("forces"), needed("forces_worst_tenth"))
    for mark, lines in zip(MARKS, tables, strict=True):
        if len(lines) > 2:  # something was measured
            write_between(PAGE, mark, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
