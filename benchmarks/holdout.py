"""How many of few structures validation should have: what they are worth in training, and how well they choose weights.

    python benchmarks/holdout.py run --sets ethanol,cual --sizes 5,10,20,60,200 --seeds 0,1
    python benchmarks/holdout.py docs                                     (docs/results/holdout.md)

``run`` trains on every number of structures that is not in ``benchmarks/results/holdout.jsonl`` yet, by the default
recipe but for the number of steps, and looks at 64 further structures and at the tests at each of 40 validations. From
that the choice of the best weights by any number of validation structures can be made afterwards, many times over. One
line a run, appended as it ends.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "weak"))

from pages import add_row, read_rows, write_between  # noqa: E402
from sets import SETS, located  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "holdout.jsonl"
PAGE = ROOT / "docs" / "results" / "holdout.md"
POOL, TESTED, VALIDATIONS = 64, 80, 40
DRAWN_FROM = 3000
"""Added to the seed that draws the structures."""
CHOSEN_BY = (1, 2, 3, 4, 6, 8, 12, 16, 24)
DRAWS = 400


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train what is not there yet")
    run.set_defaults(function=run_all)
    run.add_argument("--root", default="", help="folder of the data sets that are not built in")
    run.add_argument("--runs", type=Path, default=ROOT / "runs" / "holdout")
    run.add_argument("--sets", default="ethanol,cual")
    run.add_argument("--sizes", default="5,10,20,60,200")
    run.add_argument("--seeds", default="0,1")
    run.add_argument("--model", default="nequip")
    run.add_argument("--steps", type=int, default=2000)
    run.add_argument("--minutes", type=float, default=14.0, help="begin no run after so long")

    commands.add_parser("show", help="print the table").set_defaults(function=show)
    commands.add_parser("docs", help="write docs/results/holdout.md").set_defaults(function=write_docs)
    options = parser.parse_args()
    return options.function(options)


def run_all(options: argparse.Namespace) -> int:
    started = time.monotonic()
    for seed, size, data in itertools.product(
        options.seeds.split(","), options.sizes.split(","), options.sets.split(",")
    ):
        key = {"set": data, "model": options.model, "steps": options.steps}
        key |= {"structures": int(size), "seed": int(seed)}
        if any(all(row[k] == v for k, v in key.items()) for row in read_rows(RESULTS)):
            continue
        if time.monotonic() - started > 60 * options.minutes:
            print("there is more to do")
            return 0
        row = trained(key, options)
        if row is None:
            return 1
        add_row(RESULTS, row)
        print(*key.values(), row["cpu_s"], "s; test", row["test"], flush=True)
    return 0


def trained(key: dict[str, Any], options: argparse.Namespace) -> dict[str, Any] | None:
    """Train once; None where a signal ended it."""
    from pimlip_zoo.config import load_config
    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.experiment import prepare, train
    from pimlip_zoo.training import module

    study = SETS[key["set"]]
    frames = [frame for frame in load_frames(located(options.root, study.train)) if len(frame.numbers) > 1]
    order = np.random.default_rng(DRAWN_FROM + key["seed"]).permutation(len(frames)).tolist()
    known = [frames[i] for i in order[: key["structures"]]]
    pool = [frames[i] for i in order[key["structures"] :][-POOL:]]
    tests = [frame for frame in load_frames(located(options.root, study.tests[0])) if len(frame.numbers) > 1]
    settings = {
        "seed": key["seed"],
        "model.name": key["model"],
        "data.train": located(options.root, study.train),
        "data.energy_references": "least_squares",
        "data.check_references": False,
        "trainer.max_steps": key["steps"],
        "trainer.valid_every": max(key["steps"] // VALIDATIONS, 1),
        "trainer.threads": 1,
    }
    folder = options.runs / "-".join(map(str, key.values()))
    shutil.rmtree(folder, ignore_errors=True)
    started = time.process_time()
    experiment = prepare(load_config(None, list(settings.items())), split=(known, [*pool, *tests[:TESTED]]))
    seen: list[np.ndarray] = []
    statistics_before = module.ErrorStatistics
    module.ErrorStatistics = by_structure(statistics_before, seen)
    try:
        outcome = train(experiment, folder)
    finally:
        module.ErrorStatistics = statistics_before
    shutil.rmtree(folder)
    if outcome.signal is not None:
        return None
    squares = np.stack(
        [rows for rows in seen if len(rows)]
    )  # (validations, structures, quantities, (sum, count))
    return {
        **key,
        "lr": experiment.config.optimizer.lr,
        "batch": experiment.config.data.batch_size,
        "cpu_s": round(time.process_time() - started, 1),
        **choices(squares[:, : len(pool)], squares[:, len(pool) :], key["seed"]),
    }


def by_structure(base: Any, seen: list[np.ndarray]) -> Any:
    """The statistics of a validation, which keep the squared errors of each structure as well."""
    import torch

    class ByStructure(base):
        def __init__(self, species: Sequence[str]) -> None:
            super().__init__(species)
            seen.append(np.zeros((0, 3, 2)))

        def update(self, batch: Any, predictions: Any) -> None:
            super().update(batch, predictions)
            graph, labels = batch.graph, batch.labels
            atoms = torch.bincount(graph.batch, minlength=graph.num_graphs)
            energy = (predictions.energy - labels.energy) / atoms
            forces = predictions.forces - labels.forces
            rows = torch.zeros(graph.num_graphs, 3, 2, dtype=torch.float64)
            rows[:, 0, 0], rows[:, 0, 1] = energy.detach().square(), 1.0
            rows[:, 1, 0].index_add_(0, graph.batch, forces.detach().square().sum(1).double())
            rows[:, 1, 1] = 3.0 * atoms
            if predictions.virial.numel() and not torch.isnan(labels.stress).all():
                from pimlip_zoo.graph import stress_from_virial

                stress = stress_from_virial(predictions.virial, graph.cell) - labels.stress
                rows[:, 2, 0], rows[:, 2, 1] = stress.detach().square().flatten(1).sum(1), 9.0
            rows[torch.isnan(rows[..., 0])] = 0.0
            seen[-1] = np.concatenate([seen[-1], rows.numpy()])

    return ByStructure


def score(squares: np.ndarray) -> np.ndarray:
    """What the best weights are chosen by: root mean squares of the quantities, added up. (..., structures, 3, 2)."""
    total = squares.sum(axis=-3)
    return np.sqrt(total[..., 0] / np.maximum(total[..., 1], 1.0)).sum(axis=-1)


def choices(pool: np.ndarray, test: np.ndarray, seed: int) -> dict[str, Any]:
    """Test errors of the weights that so many structures of the pool choose, over many draws.

    Args:
        pool: (validations, structures, quantities, 2), sums of squared errors and their numbers.
        test: the same, of the tests.
        seed: of the draws.
    """
    rng, by_test = np.random.default_rng(seed), score(test)
    forces = np.sqrt(test[..., 1, 0].sum(axis=1) / test[..., 1, 1].sum(axis=1))
    chosen, spread = {}, {}
    for count in CHOSEN_BY:
        if count > pool.shape[1] // 2:
            continue
        draws = [rng.permutation(pool.shape[1])[:count] for _ in range(DRAWS)]
        by_draw = np.stack([score(pool[:, draw]) for draw in draws])  # (draws, validations)
        errors = by_test[by_draw.argmin(axis=1)]
        chosen[count] = [
            round(float(v) / float(by_test[-1]), 4) for v in (errors.mean(), np.quantile(errors, 0.9))
        ]
        spread[count] = round(float(by_draw[:, -1].std() / by_draw[:, -1].mean()), 4)
    return {
        "test": round(1e3 * float(by_test[-1]), 3),
        "test_forces": round(1e3 * float(forces[-1]), 3),
        "best": round(float(by_test.min() / by_test[-1]), 4),
        "best_at": round(float((by_test.argmin() + 1) / len(by_test)), 3),
        "chosen": chosen,
        "spread": spread,
    }


def table() -> list[str]:
    """A line a run: the error at the last step, what choosing by so many structures does to it, the noise of one."""
    counts = [str(count) for count in (1, 2, 4, 8, 16)]
    by = " | ".join(f"by {count}" for count in counts)
    lines = [
        f"| structures | set, seed | error | best at all | {by} | noise of one |",
        "|---" * (5 + len(counts)) + "|",
    ]
    for row in sorted(read_rows(RESULTS), key=lambda row: (row["structures"], row["set"], row["seed"])):
        cells = [
            f"{row['chosen'][count][0]:.2f} ({row['chosen'][count][1]:.2f})"
            if count in row["chosen"]
            else "–"
            for count in counts
        ]
        noise = 100 * row["spread"]["1"]
        lines.append(
            f"| {row['structures']} | {row['set']}, {row['seed']} | {row['test']:.0f} | {row['best']:.2f} "
            f"| {' | '.join(cells)} | {noise:.0f} % |"
        )
    return lines


def show(options: argparse.Namespace) -> int:  # noqa: ARG001
    print("\n".join(table()))
    return 0


def write_docs(options: argparse.Namespace) -> int:  # noqa: ARG001
    write_between(PAGE, "holdout", ["", *table(), ""])
    return 0


if __name__ == "__main__":
    sys.exit(main())
