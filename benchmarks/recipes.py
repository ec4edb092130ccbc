"""What a training step learns, by recipe: optimiser, schedule, losses, beside those of mace-torch and nequip.

    python benchmarks/recipes.py list
    python benchmarks/recipes.py run --root DATA --sets acac,cual --models mace --recipes adamw,muon --seeds 0,1,2
    python benchmarks/recipes.py show --sets acac
    python benchmarks/recipes.py docs                                     (docs/results/recipes.md)

``run`` trains every combination that is not in ``benchmarks/results/recipes.jsonl`` yet, one line a run, appended as it
ends; a run that is interrupted goes on from its run folder. The weights are chosen on the validation structures, errors
are those on the tests. DATA is the folder of the data sets, see ``benchmarks/weak/sets.py``. CPU time is that of the
whole process from reading the data to the last step, one thread.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "weak"))

from sets import SETS, StudySet  # noqa: E402

if TYPE_CHECKING:
    import torch

    from pimlip_zoo.config import RunConfig
    from pimlip_zoo.datasets.frame import Frame
    from pimlip_zoo.models.potential import Potential

RESULTS = ROOT / "benchmarks" / "results" / "recipes.jsonl"
DRAWN_FROM = 1000
"""Added to the seed that draws the labelled structures."""

ADAMW = {"optimizer.name": "adamw", "optimizer.lr": 0.01, "schedule.final": 0.01, "trainer.ema_decay": 0.99}
MUON = {**ADAMW, "optimizer.name": "muon", "optimizer.lr": 0.02}
LINEAR = {**MUON, "schedule.name": "linear", "schedule.final": 0.0}
RESIDUAL = {"model.residual_first": True}
"""MACE alone has it."""


def _constant(settings: dict[str, object]) -> dict[str, object]:
    """The settings with a rate that has no end to decay to."""
    kept = {key: value for key, value in settings.items() if key != "schedule.final"}
    return {**kept, "schedule.name": "constant"}


RECIPES: dict[str, dict[str, object]] = {
    "adamw": ADAMW,
    "adamw-lr0.003": {**ADAMW, "optimizer.lr": 0.003},
    "adamw-lr0.02": {**ADAMW, "optimizer.lr": 0.02},
    "adamw-lr0.03": {**ADAMW, "optimizer.lr": 0.03},
    "adamw-lr0.03-residual": {**ADAMW, **RESIDUAL, "optimizer.lr": 0.03},
    "amsgrad": {**ADAMW, "optimizer.amsgrad": True},
    "muon": MUON,
    "muon-lr0.005": {**MUON, "optimizer.lr": 0.005},
    "muon-lr0.01": {**MUON, "optimizer.lr": 0.01},
    "muon-lr0.04": {**MUON, "optimizer.lr": 0.04},
    "muon-residual": {**MUON, **RESIDUAL},
    "muon-decay0.01": {**MUON, "optimizer.weight_decay": 0.01},
    "muon-decay0.1": {**MUON, "optimizer.weight_decay": 0.1},
    "muon-decay0.5": {**MUON, "optimizer.weight_decay": 0.5},
    "muon-decay2": {**MUON, "optimizer.weight_decay": 2.0},
    "muon-decay0.03": {**MUON, "optimizer.weight_decay": 0.03},
    "muon-lr0.005-decay0.1": {**MUON, "optimizer.lr": 0.005, "optimizer.weight_decay": 0.1},
    "muon-linear": LINEAR,
    "adamw-linear": {**ADAMW, "optimizer.lr": 0.02, "schedule.name": "linear", "schedule.final": 0.0},
    "linear-decay0.03": {**LINEAR, "optimizer.weight_decay": 0.03},
    "linear-decay0.1": {**LINEAR, "optimizer.weight_decay": 0.1},
    "linear-lr0.005": {**LINEAR, "optimizer.lr": 0.005},
    "linear-lr0.01": {**LINEAR, "optimizer.lr": 0.01},
    "linear-lr0.002": {**LINEAR, "optimizer.lr": 0.002},
    "linear-lr0.001": {**LINEAR, "optimizer.lr": 0.001},
    "linear-lr0.005-energy10": {**LINEAR, "optimizer.lr": 0.005, "loss.energy_per_atom.weight": 10.0},
    "linear-lr0.04": {**LINEAR, "optimizer.lr": 0.04},
    "linear-residual": {**LINEAR, **RESIDUAL},
    "linear-residual-decay0.03": {**LINEAR, **RESIDUAL, "optimizer.weight_decay": 0.03},
    "linear-huber": {**LINEAR, "loss.forces.distance": "huber", "loss.forces.delta": 0.1},
    "linear-energy10": {**LINEAR, "loss.energy_per_atom.weight": 10.0},
    "linear-stress10": {**LINEAR, "loss.stress.weight": 10.0},
    "linear-split": LINEAR,
    "muon-ema0.999": {**MUON, "trainer.ema_decay": 0.999},
    "muon-ema0.9": {**MUON, "trainer.ema_decay": 0.9},
    "muon-huber": {**MUON, "loss.forces.distance": "huber", "loss.forces.delta": 0.1},
    "muon-mae": {**MUON, "loss.forces.distance": "mae", "loss.energy_per_atom.distance": "mae"},
    "muon-energy10": {**MUON, "loss.energy_per_atom.weight": 10.0},
    "muon-energy100": {**MUON, "loss.energy_per_atom.weight": 100.0},
    "muon-stress1": {**MUON, "loss.stress.weight": 1.0},
    "muon-stress10": {**MUON, "loss.stress.weight": 10.0},
    "muon-beta0.99": {**MUON, "optimizer.betas": [0.9, 0.99]},
    "muon-clip1": {**MUON, "trainer.gradient_clip": 1.0},
    "muon-batch1": {**MUON, "data.batch_size": 1},
    "muon-batch10": {**MUON, "data.batch_size": 10},
    "soap-lr0.003": {**LINEAR, "optimizer.lr": 0.003},
    "soap-lr0.01": {**LINEAR, "optimizer.lr": 0.01},
    "schedule-free": _constant(ADAMW),
    "muon-constant-ema0.998": {**_constant(MUON), "trainer.ema_decay": 0.998},
    "linear-momentum0.9": LINEAR,
    "linear-outputs": {**LINEAR, "optimizer.equal_outputs": True},
    "linear-energy3": {**LINEAR, "loss.energy_per_atom.weight": 3.0},
    "linear-ema0.9": {**LINEAR, "trainer.ema_decay": 0.9},
    "linear-ema0.998": {**LINEAR, "trainer.ema_decay": 0.998},
    "linear-warm10": {**LINEAR, "schedule.warmup_steps": 10},
    "linear-beta0.95": {**LINEAR, "optimizer.betas": [0.9, 0.95]},
    "linear-beta0.99": {**LINEAR, "optimizer.betas": [0.9, 0.99]},
    "linear-mae": {**LINEAR, "loss.forces.distance": "mae"},
    **{
        f"default-{version}": {"recipe.name": "default", "recipe.version": version}
        for version in (3, 4, 5, 6)
    },
    **{
        f"default-{version}-in-100s": {
            "recipe.name": "default",
            "recipe.version": version,
            "trainer.max_time": "100s",
        }
        for version in (6, 7)
    },
    **{
        f"default-4-decay{decay}": {
            "recipe.name": "default",
            "recipe.version": 4,
            "optimizer.weight_decay": decay,
        }
        for decay in (0.03, 0.1, 0.3)
    },
    **{
        f"default-6-{name}": {"recipe.name": "default", "recipe.version": 6, **settings}
        for name, settings in {
            "decay0.1": {"optimizer.weight_decay": 0.1},
            "decay0.3": {"optimizer.weight_decay": 0.3},
            "decay1": {"optimizer.weight_decay": 1.0},
            "ema0.999": {"trainer.ema_decay": 0.999},
            "batch1": {"data.batch_size": 1},
        }.items()
    },
    **{
        f"default-6-{name}": {"recipe.name": "default", "recipe.version": 6}
        for name in ("copies0.005", "copies0.01", "copies0.03", "dropped0.03", "dropped0.1", "three")
    },
    "default-3-outputs": {"recipe.name": "default", "recipe.version": 3, "optimizer.equal_outputs": True},
    "soap-lr0.03": {**LINEAR, "optimizer.lr": 0.03},
    "soap-lr0.06": {**LINEAR, "optimizer.lr": 0.06},
    **{f"recipe-{name}": {"recipe.name": name} for name in ("mace-torch", "nequip")},
}

SHAPES: dict[str, dict[str, dict[str, object]]] = {
    "mace": {
        "3x16": {"num_interactions": 3, "channels": 16},
        "2x16-degree2": {"hidden_l_max": 2, "channels": 16},
        "3x16-two-neighbours": {"num_interactions": 3, "channels": 16, "correlation": 2},
    },
    "allegro": {
        "3x32": {"num_layers": 3},
        "3x16": {"num_layers": 3, "tensor_channels": 16},
    },
    "nequip": {
        "4x16": {"num_layers": 4, "channels": 16},
        "3x32-16-8": {"num_layers": 3, "channels_by_degree": [32, 16, 8]},
        "3x16-degree3": {"num_layers": 3, "channels": 16, "l_max": 3},
        "3x16-radial128": {"num_layers": 3, "channels": 16, "radial_hidden": [128]},
    },
}
"""Of each architecture, beside its presets: layers times channels, and what else differs."""
RECIPES |= {
    f"shape-{model}-{name}": {
        "recipe.name": "default",
        "recipe.version": 6,
        **{f"model.{option}": value for option, value in options.items()},
    }
    for model, shapes in SHAPES.items()
    for name, options in shapes.items()
}
COPIED = {f"default-6-copies{amplitude}": amplitude for amplitude in (0.005, 0.01, 0.03)}
"""Å, of displaced copies of the labelled structures."""
DROPPED = {f"default-6-dropped{share}": share for share in (0.03, 0.1)}
"""Share of the pairs that a training step does not see."""
MEMBERS = {"default-6-three": 3}
"""Trainings from other weights, on the same labels, whose mean is judged."""

ONLY_FOR = {
    **{name: "mace" for name, settings in RECIPES.items() if "model.residual_first" in settings},
    **{f"shape-{model}-{name}": model for model, shapes in SHAPES.items() for name in shapes},
}
"""Architectures of recipes that have options of one."""

LAWS = tuple(itertools.product((0.05, 0.07, 0.09, 0.13), (0.02, 0.03, 0.04)))
"""Of the default recipe's rate: a constant over the root of the passes, and the highest rate."""
RECIPES |= {
    f"law{constant}-most{most}": {"recipe.name": f"law{constant}-most{most}"} for constant, most in LAWS
}


def laws() -> None:
    """Register a recipe for each: the default one with another rate."""
    from pimlip_zoo.training.recipes import DEFAULT_RECIPE, RunFacts, get_recipe, register_recipe

    def with_rate(constant: float, most: float) -> None:
        def settings(facts: RunFacts) -> dict[str, object]:
            rate = min(max(constant / facts.passes**0.5, 0.002), most)
            return {**get_recipe(DEFAULT_RECIPE, 3).settings(facts), "optimizer.lr": float(f"{rate:.2g}")}

        settings.__qualname__ = f"law{constant}-most{most}"
        settings.__doc__ = (
            f"The default with a rate of {constant} over the root of the passes, at most {most}."
        )
        register_recipe(f"law{constant}-most{most}")(settings)

    for constant, most in LAWS:
        with_rate(constant, most)


def soap(lr: float) -> Callable[[Potential], torch.optim.Optimizer]:
    """Second order: SOAP (Vyas et al., 2024) of the package pytorch-optimizer."""

    def build(potential: Potential) -> torch.optim.Optimizer:
        from pytorch_optimizer import SOAP

        return SOAP([p for p in potential.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)

    return build


def schedule_free(potential: Potential) -> torch.optim.Optimizer:
    """Schedule-free AdamW (Defazio et al., 2024) of the package pytorch-optimizer; evaluated at its moving point."""
    from pytorch_optimizer import ScheduleFreeAdamW

    members = [p for p in potential.parameters() if p.requires_grad]
    return ScheduleFreeAdamW(members, lr=0.01, weight_decay=0.0, warmup_steps=100)


def muon(potential: Potential, **options: float) -> torch.optim.Optimizer:
    """Muon at 0.02 with other options than the package's."""
    from pimlip_zoo.training.muon import Muon, linear_maps

    members = [p for p in potential.parameters() if p.requires_grad]
    matrices = linear_maps(potential.model)
    return Muon(members, matrices, lr=0.02, betas=(0.9, 0.999), weight_decay=0.0, foreach=True, **options)


def split(potential: Potential) -> torch.optim.Optimizer:
    """Muon at 0.02 for matrices, AdamW at 0.005 for embeddings and couplings."""
    from pimlip_zoo.training.muon import Muon, linear_maps

    matrices = linear_maps(potential.model)
    known = {id(matrix) for matrix in matrices}
    others = [p for p in potential.parameters() if p.requires_grad and id(p) not in known]
    groups = [{"params": list(matrices), "lr": 0.02}, {"params": others, "lr": 0.005}]
    return Muon(groups, matrices, lr=0.02, betas=(0.9, 0.999), weight_decay=0.0, foreach=True)


OPTIMIZERS: dict[str, Callable[[Potential], torch.optim.Optimizer]] = {
    "soap-lr0.003": soap(0.003),
    "soap-lr0.01": soap(0.01),
    "soap-lr0.03": soap(0.03),
    "soap-lr0.06": soap(0.06),
    "schedule-free": schedule_free,
    "linear-split": split,
    "linear-momentum0.9": functools.partial(muon, momentum=0.9),
}
"""Those that are not the package's own: pip install pytorch-optimizer."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="recipes and sets").set_defaults(function=listing)
    run = commands.add_parser("run", help="train what is not there yet")
    run.set_defaults(function=run_all)
    run.add_argument("--root", required=True, help="folder of the data sets")
    run.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "recipes", help="where run folders lie meanwhile"
    )
    run.add_argument("--preset", default="small")
    run.add_argument("--steps", type=int, default=3000)
    run.add_argument("--keep-runs", action="store_true")
    docs = commands.add_parser("docs", help="write docs/results/recipes.md")
    docs.set_defaults(function=write_docs)
    show = commands.add_parser("show", help="print what is there")
    show.set_defaults(function=show_all)
    for command in (run, show):
        command.add_argument("--sets", default="acac")
        command.add_argument("--models", default="mace")
        command.add_argument("--recipes", default=",".join(RECIPES))
        command.add_argument("--labels", default="all", help="numbers of labelled structures, or all")
        command.add_argument("--seeds", default="0")
    options = parser.parse_args()
    return options.function(options)


def listing(options: argparse.Namespace) -> int:  # noqa: ARG001
    for name, settings in RECIPES.items():
        print(f"{name:24s} {', '.join(f'{key}={value}' for key, value in settings.items())}")
    print("sets:", ", ".join(SETS))
    return 0


def run_all(options: argparse.Namespace) -> int:
    from pimlip_zoo.cli.console import log_to_screen

    log_to_screen()
    laws()
    combinations = itertools.product(
        options.seeds.split(","),
        options.sets.split(","),
        options.labels.split(","),
        options.models.split(","),
        options.recipes.split(","),
    )
    for seed, data, labels, model, recipe in combinations:
        key = {
            "set": data,
            "labels": labels,
            "model": model,
            "preset": options.preset,
            "recipe": recipe,
            "steps": options.steps,
            "seed": int(seed),
        }
        if any(all(row[k] == v for k, v in key.items()) for row in read()):
            continue
        if ONLY_FOR.get(recipe, model) != model:
            continue
        print(" ".join(map(str, key.values())), flush=True)
        row = trained(key, options)
        if row is None:
            return 1
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(line(row), flush=True)
    return 0


def trained(key: dict, options: argparse.Namespace) -> dict | None:
    """Train one point and evaluate its best weights; None where a signal ended it."""
    from pimlip_zoo.config import load_config
    from pimlip_zoo.experiment import prepare, train
    from pimlip_zoo.training.checkpoint import load_potential

    study, settings = settings_of(key, options.root)
    folders, started = [], time.process_time()
    for member in range(MEMBERS.get(key["recipe"], 1)):
        config = load_config(None, [*settings.items(), ("seed", key["seed"] + 100 * member)])
        folder = options.runs / "-".join(map(str, (*key.values(), *([member] if member else []))))
        last = folder / "checkpoints" / "last.ckpt"
        prepared = prepare(config, split=drawn(config, key))
        if key["recipe"] in DROPPED:
            drop_pairs(prepared.potential, DROPPED[key["recipe"]])
        optimizer = OPTIMIZERS.get(key["recipe"])
        outcome = train(prepared, folder, resume=last.exists(), optimizer=optimizer)
        if outcome.signal is not None:
            return None
        folders.append(folder)
        done = outcome.steps
    cpu = time.process_time() - started
    with (folders[0] / "metrics.csv").open(newline="") as file:
        curve = [validation(row) for row in csv.DictReader(file)]
    potentials = [load_potential(folder) for folder in folders]
    tests = {test: errors_of(potentials, placed(options.root, test)) for test in study.tests}
    if not options.keep_runs:
        for folder in folders:
            shutil.rmtree(folder)
    return {**key, "cpu_s": round(cpu, 1), "done_steps": done, "curve": curve, "tests": tests}


def errors_of(potentials: Sequence[Potential], data: str) -> dict[str, dict[str, float]]:
    """Errors of the mean of their predictions, in meV, Å and atoms."""
    import numpy as np

    from pimlip_zoo.evaluation import evaluate

    found = [evaluate(potential, data) for potential in potentials]
    if len(found) == 1:
        return {
            quantity: {kind: round(1e3 * found[0].summary[quantity][kind], 4) for kind in ("rmse", "mae")}
            for quantity in ("energy_per_atom", "forces", "stress")
            if found[0].summary.get(quantity)
        }
    errors = {}
    for quantity, (reference, _) in found[0].pairs.items():
        off = 1e3 * (np.mean([one.pairs[quantity][1] for one in found], axis=0) - reference)
        errors[quantity] = {
            "rmse": round(float(np.sqrt(np.mean(off**2))), 4),
            "mae": round(float(np.mean(np.abs(off))), 4),
        }
    return errors


def drop_pairs(potential: Potential, share: float) -> None:
    """Let every evaluation of a training step miss a share of the pairs, in both directions."""
    import torch

    def without(module: Potential, arguments: tuple, named: dict) -> tuple[tuple, dict] | None:
        if not module.training:
            return None
        graph, *rest = arguments
        centre, neighbour = graph.edge_index
        shift = graph.edge_shift.to(torch.int64)
        # The same three numbers for an edge and its reverse.
        turned = (centre > neighbour) | ((centre == neighbour) & (shift @ torch.tensor([9, 3, 1]) < 0))
        sign = torch.where(turned, -1, 1)[:, None]
        ends = torch.stack([torch.minimum(centre, neighbour), torch.maximum(centre, neighbour)], dim=1)
        _, pair = torch.cat([ends, sign * shift], dim=1).unique(dim=0, return_inverse=True)
        kept = torch.rand(int(pair.max()) + 1)[pair] >= share
        graph = graph._replace(edge_index=graph.edge_index[:, kept], edge_shift=graph.edge_shift[kept])
        return (graph, *rest), named

    potential.register_forward_pre_hook(without, with_kwargs=True)


def with_copies(frames: Sequence[Frame], amplitude: float, seed: int, copies: int = 4) -> list[Frame]:
    """Displaced copies beside the structures, with energies alone: to first order, by the labelled forces."""
    from dataclasses import replace

    import numpy as np

    draw, found = np.random.default_rng(seed), list(frames)
    for frame in frames:
        for _ in range(copies):
            moved = draw.normal(0.0, amplitude, frame.positions.shape)
            energy = frame.energy - float((frame.forces * moved).sum())
            found.append(replace(frame, positions=frame.positions + moved, energy=energy, forces=None))
    return found


def settings_of(key: dict, root: str) -> tuple[StudySet, dict[str, object]]:
    """The set, and the settings of a point."""
    study = SETS[key["set"]]
    settings: dict[str, object] = {
        "seed": key["seed"],
        "model.name": key["model"],
        "model.preset": key["preset"],
        "data.train": placed(root, study.train),
        "data.energy_references": "least_squares",
        "data.batch_size": study.batch_size,
        "trainer.max_steps": key["steps"],
        "trainer.valid_every": max(key["steps"] // 24, 50),
        "trainer.threads": 1,
        **RECIPES[key["recipe"]],
    }
    if study.valid is not None:
        settings["data.valid"] = placed(root, study.valid)
    return study, settings


def drawn(config: RunConfig, key: dict) -> tuple[Sequence[Frame], Sequence[Frame]]:
    """The labelled structures of a point, and those that the weights are chosen by."""
    import numpy as np

    from pimlip_zoo.experiment import load_split

    frames, valid = load_split(config)
    if key["labels"] != "all":
        order = np.random.default_rng(DRAWN_FROM + key["seed"]).permutation(len(frames))
        frames = [frames[i] for i in order[: int(key["labels"])].tolist()]
    if key["recipe"] in COPIED:
        frames = with_copies(frames, COPIED[key["recipe"]], DRAWN_FROM + key["seed"])
    return frames, valid


def validation(row: dict[str, str]) -> list[float | None]:
    """Step; errors of energy per atom, forces, stress in meV and Å."""
    names = [f"valid_{quantity}_rmse" for quantity in ("energy", "forces", "stress")]
    return [int(row["step"]), *(round(1e3 * float(row[n]), 3) if row.get(n) else None for n in names)]


def placed(root: str, data: str) -> str:
    """Where the data are: below the root, unless built in."""
    return data if data.startswith("builtin:") else ",".join(f"{root}/{part}" for part in data.split(","))


def read() -> list[dict]:
    return [json.loads(text) for text in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def line(row: dict) -> str:
    """Errors in meV per atom, meV/Å, meV/Å³."""
    cells = [
        " / ".join(f"{e[q]['rmse']:.2f}" for q in ("energy_per_atom", "forces", "stress") if q in e)
        for e in row["tests"].values()
    ]
    best = min(row["curve"], key=lambda point: sum(v or 0.0 for v in point[1:]))
    return f"{row['recipe']:24s} {row['cpu_s']:7.0f} s  valid {best[2]} at {best[0]}   " + "   ".join(cells)


def grouped(
    rows: Sequence[dict], of: Sequence[str] = ("preset", "steps"), within: Sequence[str] = ("recipe",)
) -> dict[tuple, dict[tuple, list[dict]]]:
    """By set, labels, model, and what else a group is of; then by recipe, or what else differs within it."""
    groups: dict[tuple, dict[tuple, list[dict]]] = {}
    for row in rows:
        group = tuple(row[k] for k in ("set", "labels", "model", *of))
        groups.setdefault(group, {}).setdefault(tuple(row[k] for k in within), []).append(row)
    return groups


def columns(runs: Sequence[dict]) -> list[tuple[str, str]]:
    """(test, quantity) of a group."""
    return [(test, quantity) for test, errors in runs[0]["tests"].items() for quantity in errors]


def cells(runs: Sequence[dict]) -> list[str]:
    """Mean and standard deviation over seeds."""
    found = []
    for test, quantity in columns(runs):
        values = [run["tests"][test][quantity]["rmse"] for run in runs]
        spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
        found.append(f"{statistics.mean(values):.3g}{spread}")
    return found


def show_all(options: argparse.Namespace) -> int:
    sets, models = options.sets.split(","), options.models.split(",")
    for group, recipes in grouped([r for r in read() if r["set"] in sets and r["model"] in models]).items():
        print(*group)
        for (recipe,), runs in sorted(recipes.items(), key=lambda item: float(cells(item[1])[1].split()[0])):
            cpu = statistics.mean(run["cpu_s"] for run in runs)
            print(f"  {recipe:24s} x{len(runs)} {cpu:6.0f} s  ", "   ".join(cells(runs)))
    return 0


UNITS = {"energy_per_atom": "E, meV/atom", "forces": "F, meV/Å", "stress": "σ, meV/Å³"}
TESTS = {
    "acac/test_MD_300K.extxyz": "300 K",
    "acac/test_MD_600K.extxyz": "600 K",
    "3bpa/train_300K.extxyz@::10": "300 K, held out",
    "3bpa/ood_mixedT_minus_train300K.extxyz": "mixed temperatures",
}
PAGE = ROOT / "docs" / "results" / "recipes.md"
BEGIN, END = "<!-- recipes: begin -->", "<!-- recipes: end -->"
DRAWN = ("adamw", "muon", "default-4", "default-5", "default-6", "recipe-mace-torch", "recipe-nequip")
"""Recipes whose learning curves are drawn, where they ran."""


def write_docs(options: argparse.Namespace) -> int:  # noqa: ARG001
    """Tables and learning curves."""
    lines: list[str] = []
    groups = grouped(read(), of=("steps",), within=("recipe", "preset"))
    for group, recipes in sorted(groups.items(), key=lambda item: tuple(map(str, item[0]))):
        data, labels, model, steps = group
        first = next(iter(recipes.values()))
        heads = [f"{TESTS.get(test, 'test')}: {UNITS[quantity]}" for test, quantity in columns(first)]
        lines += [
            f"### {data}, {labels} labels, {model}, {steps:,} steps",
            "",
            f"| recipe | preset | seeds | CPU s | {' | '.join(heads)} |",
            "|---|---|---|---|" + "---|" * len(heads),
        ]
        for (recipe, preset), runs in sorted(
            recipes.items(), key=lambda item: float(cells(item[1])[1].split()[0])
        ):
            cpu = statistics.mean(run["cpu_s"] for run in runs)
            done = [run.get("done_steps", run["steps"]) for run in runs]
            ended = "" if min(done) > 0.9 * runs[0]["steps"] else f" ({min(done):,} to {max(done):,} steps)"
            lines.append(
                f"| {recipe}{ended} | {preset} | {len(runs)} | {cpu:.0f} | {' | '.join(cells(runs))} |"
            )
        lines.append("")
    lines += draw()
    text = PAGE.read_text()
    PAGE.write_text(f"{text.split(BEGIN)[0]}{BEGIN}\n\n" + "\n".join(lines) + f"\n{END}{text.split(END)[1]}")
    return 0


def draw() -> list[str]:
    """Validation errors over the steps, one picture a set and architecture; the lines that show them."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    lines = ["### Learning curves", ""]
    for (data, labels, model, preset, steps), recipes in sorted(
        grouped(read()).items(), key=lambda item: tuple(map(str, item[0]))
    ):
        shown = {recipe: recipes[recipe,] for recipe in DRAWN if (recipe,) in recipes}
        if len(shown) < (2 if steps <= 10_000 else 1):  # of long runs the curve itself tells what limits them
            continue
        figure, axes = plt.subplots(figsize=(5.2, 3.4), constrained_layout=True)
        for recipe, runs in shown.items():
            curve = [point for point in runs[0]["curve"] if point[2]]
            axes.plot([point[0] for point in curve], [point[2] for point in curve], label=recipe)
        axes.set(xlabel="step", ylabel="validation forces, RMSE, meV/Å", yscale="log")
        axes.legend(frameon=False)
        name = f"recipes-{data}-{labels}-{model}-{preset}-{steps}.png"
        figure.savefig(PAGE.parent / name, dpi=90, metadata={"Software": None})
        plt.close(figure)
        title = f"{data}, {labels} labels, {model} {preset}, {steps:,} steps"
        lines += [f"![Learning curves: {title}]({name})", "", f"*{title}, first seed.*", ""]
    return lines


if __name__ == "__main__":
    sys.exit(main())
