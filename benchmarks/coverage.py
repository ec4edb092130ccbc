"""Whether forces are as uncertain as the potential says, where structures are like those of validation and where not.

    python benchmarks/coverage.py run --root DATA --sets acac,ethanol,tio2,cual,mlearn_Si,mlearn_Mo --seeds 0,1
    python benchmarks/coverage.py docs                                    (docs/results/labelling.md)

Trainings on 50 structures at random of the sets of ``labelling.py``, each with two posteriors: calibrated with the
exponent of the structure as a whole, and without. One line a training in ``benchmarks/results/coverage.jsonl``; what is
there is not run again.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import labelling
from labelling import PAGE, folder_of, named, placed, trained
from pages import add_row, read_rows, write_between
from study import parsers

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "coverage.jsonl"
LABELS = 50
SETS = {
    **labelling.SETS,
    "acac_300K": {
        "pool": "acac/train_300K.extxyz@0:450",
        "valid": "acac/train_300K.extxyz@450:500",
        "tests": ("acac/test_MD_300K.extxyz@::4", "acac/test_MD_600K.extxyz@::4"),
        "batch_size": 5,
    },
    "3bpa": {
        "pool": ",".join(f"3bpa/train_300K.extxyz@{k}::10" for k in range(1, 10)),
        "valid": "3bpa/train_300K.extxyz@::10",
        "tests": ("3bpa/train_300K.extxyz@::10", "3bpa/ood_mixedT_minus_train300K.extxyz"),
        "batch_size": 5,
    },
}
"""Those of ``labelling.py``, and two whose pool and validation are at 300 K only."""
WITHOUT, WITH = "without", "with"


def main() -> int:
    parser, run = parsers(
        "coverage", __doc__, sets=",".join(SETS), steps=2000, run=run_all, show=show, docs=docs
    )
    run.add_argument("--model", default="nequip")
    run.add_argument("--preset", default="compact")
    options = parser.parse_args()
    return options.function(options)


def run_all(options: argparse.Namespace) -> int:
    import logging

    logging.getLogger("pimlip_zoo").setLevel(logging.WARNING)
    for seed in map(int, options.seeds.split(",")):
        for name in options.sets.split(","):
            key = {
                "set": name,
                "labels": LABELS,
                "steps": options.steps,
                "model": options.model,
                "preset": options.preset,
                "seed": seed,
            }
            if any(all(row.get(k) == v for k, v in key.items()) for row in read_rows(RESULTS)):
                continue
            row = key | point(key, options)
            add_row(RESULTS, row)
            print(line(row), flush=True)
    return 0


def point(key: dict, options: argparse.Namespace) -> dict:
    """Train, fit both posteriors, compare their claims with the errors."""
    import numpy as np

    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.evaluation import uncertainty_summary
    from pimlip_zoo.labelling import uncertainty

    study = SETS[key["set"]]
    pool = load_frames(placed(options.root, study["pool"]))
    valid = load_frames(placed(options.root, study["valid"]))[:50]
    order = np.random.default_rng(1000 + key["seed"]).permutation(len(pool)).tolist()
    train = [pool[index] for index in order[:LABELS]]
    folder = folder_of(options, {**key, "batch": "random", "acquisition": "random", "start": ""})
    potential = trained(folder, train, valid, key, study, "")
    tests: dict[str, dict[str, Any]] = {}
    exponents = {}
    powers_of_both = uncertainty._SHARED  # noqa: SLF001
    for way, powers in ((WITHOUT, (0.0,)), (WITH, powers_of_both)):
        uncertainty._SHARED = powers  # noqa: SLF001
        posterior = uncertainty.fit_posterior(potential, train, valid)
        exponents[way] = [round(posterior.forces.exponent, 2), posterior.forces.shared]
        for test in study["tests"]:
            frames = load_frames(placed(options.root, test))
            frames = frames[:: max(1, len(frames) // 100)]
            found = uncertainty_summary(potential, posterior, frames)["forces"]
            kept = ("correlation", "coverage", "rms_error", "rms_uncertainty")
            tests.setdefault(test, {})[way] = {name: round(found[name], 4) for name in kept}
    shutil.rmtree(folder)
    return {"exponents": exponents, "tests": tests}


def line(row: dict) -> str:
    cells = [
        f"{test.split('/')[-1]}: "
        + ", ".join(f"{way} {v['coverage']:.2f} ({v['correlation']:.2f})" for way, v in both.items())
        for test, both in row["tests"].items()
    ]
    return f"{row['set']} seed {row['seed']} {row['exponents']}  " + "  |  ".join(cells)


def show(options: argparse.Namespace) -> int:  # noqa: ARG001
    for row in read_rows(RESULTS):
        print(line(row))
    print("\n".join(table()))
    return 0


HEAD = (
    *(
        "set",
        "test",
        "seeds",
        "covered without, %",
        "covered with, %",
        "correlation without",
        "correlation with",
    ),
    *("claimed over true error without", "claimed over true error with"),
)


def table() -> list[str]:
    """Means over seeds."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in read_rows(RESULTS):
        for test, both in row["tests"].items():
            groups.setdefault((row["set"], named(test)), []).append(both)
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for (name, test), rows in sorted(groups.items()):
        ways = [[row[way] for row in rows] for way in (WITHOUT, WITH)]
        cells = [f"{100 * statistics.mean(r['coverage'] for r in way):.0f}" for way in ways]
        cells += [f"{statistics.mean(r['correlation'] for r in way):.2f}" for way in ways]
        cells += [
            f"{statistics.mean(r['rms_uncertainty'] / r['rms_error'] for r in way):.2f}" for way in ways
        ]
        lines.append("| " + " | ".join([name, test, str(len(rows)), *cells]) + " |")
    return lines


def docs(options: argparse.Namespace) -> int:  # noqa: ARG001
    write_between(PAGE, "coverage", table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
