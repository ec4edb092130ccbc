"""Data-efficiency curves: errors against the number of labels, for several ways of training and several seeds."""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pimlip_zoo.config import RunConfig, load_config
from pimlip_zoo.consistency.config import PRESETS, weak_preset
from pimlip_zoo.datasets.coverage import is_isolated_atom
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError, reading
from pimlip_zoo.evaluation import check_labelled, evaluate
from pimlip_zoo.experiment import check_settings, checked_structures, has_checkpoint, load_split
from pimlip_zoo.experiment.data import chosen_labels, counting
from pimlip_zoo.experiment.effects import check_effects
from pimlip_zoo.experiment.made_with import check_made_with, check_tests, given_options, hashes_of
from pimlip_zoo.experiment.record import CONFIG
from pimlip_zoo.experiment.stable_time import stable_ps
from pimlip_zoo.experiment.stages import Split, prepare_run, train_run
from pimlip_zoo.files import read_json, read_text, replacing, write_json
from pimlip_zoo.locks import claimed
from pimlip_zoo.physics.summary import summarise_values, value_rows
from pimlip_zoo.training.checkpoint import baseline_of, load_potential
from pimlip_zoo.training.recipes import get_recipe

log = logging.getLogger("pimlip_zoo")

COLUMNS = (
    "size",
    "weak",
    "seed",
    "test",
    "energy_mae",
    "energy_rmse",
    "energy_per_atom_mae",
    "energy_per_atom_rmse",
    "forces_mae",
    "forces_rmse",
    "stress_mae",
    "stress_rmse",
    "stable_ps",
    "steps",
    "seconds",
    "cpu_seconds",
)
"""Of the table of single runs; energies in eV, forces in eV/Å; seconds contain every stage and the sampling of weak
labels that were not in the cache yet; stable_ps is how long dynamics lasted, where it was asked for."""

Settings = Sequence[tuple[str, Any]]
Judge = Callable[[Path], tuple[Mapping[str, Any], int | None]]
"""Called with a run folder: the physical properties as ``eval --physics`` writes them, and the signal that ended it."""


@dataclass(frozen=True)
class Point:
    """One run of a curve."""

    size: int
    """Labelled structures."""
    weak: str
    """A weak preset, none, or one of the given variants."""
    seed: int
    """Of weights, order and choice of structures."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.weak}-{self.size}-seed{self.seed}"


def subset(frames: Sequence[Frame], size: int, seed: int) -> list[Frame]:
    """The first structures of a random order that the seed determines: a smaller subset is part of a larger one.

    Isolated atoms, which only give energy references, are kept beside them.

    Raises:
        InputError: when there are fewer structures than that.
    """
    atoms = [frame for frame in frames if is_isolated_atom(frame)]
    others = [frame for frame in frames if not is_isolated_atom(frame)]
    if size > len(others):
        raise InputError(
            f"{size} structures are asked for, there are {len(others)}",
            key="--sizes",
            hint="without those held out for validation",
        )
    order = np.random.default_rng(seed).permutation(len(others))[:size]
    return [*atoms, *(others[index] for index in order)]


def run_point(
    point: Point,
    settings: Settings,
    tests: Sequence[str],
    folder: Path,
    config_file: Path | None = None,
    variants: Mapping[str, Settings] | None = None,
    judge: Judge | None = None,
) -> int | None:
    """Train and evaluate one point, unless its result is there already; an interrupted run goes on.

    Args:
        point: what is run.
        settings: (dotted key, value) of the run configuration that all points share.
        tests: DATA specifications.
        folder: of the curve; the run's folder is made in it.
        config_file: a ``run.yaml`` that the settings change.
        variants: settings by name, for ways of training that are no preset.
        judge: what measures the physical properties; a result that has none yet gets them.

    Returns:
        The signal that interrupted the training or the measurement, or None.
    """
    run = folder / point.name
    result = run / "result.json"
    if not result.exists():
        with claimed(run):
            signal = _run_claimed(point, settings, tests, run, config_file, variants)
        if signal is not None:
            return signal
    content = read_json(result, dict)
    if judge is None or "physics" in content:
        return None
    with claimed(run):
        physics, signal = judge(run)
        if signal is None:
            write_json(result, {**content, "physics": physics})
    return signal


def _run_claimed(
    point: Point,
    settings: Settings,
    tests: Sequence[str],
    run: Path,
    config_file: Path | None,
    variants: Mapping[str, Settings] | None,
) -> int | None:
    options = _options_of(point, settings, config_file, variants)
    config = load_config(config_file, options)
    train_frames, valid_frames = load_split(config)
    split: Split = (subset(train_frames, point.size, point.seed), valid_frames)
    before = _spent(run)
    started = {"seconds": time.monotonic(), "cpu_seconds": time.process_time()}
    resume = has_checkpoint(run)
    if resume:
        if (run / CONFIG).exists():  # with what the recipe filled in when the run began
            config = load_config(run / CONFIG, options, complete=True)
        check_settings(run, config)
    stated = config.stated
    experiment = prepare_run(config.note_stated(None), split=split, resumes=run if resume else None)
    # What is given holds for all points: a small subset may lack the stress whose weight is given, and one way of
    # training the consistency losses of another.
    of_all = None if stated is None else {key for key in stated if key.split(".")[0] != "weak"}
    check_effects(experiment.config, chosen_labels(config.data, counting(train_frames)), of_all)
    for spec in tests:  # a small subset may lack an element of the tests: found out before it is trained on
        check_labelled(experiment.potential, spec)
    outcome = train_run(experiment, run, resume=resume)
    spent = {
        name: round(before[name] + now - started[name], 2)
        for name, now in (("seconds", time.monotonic()), ("cpu_seconds", time.process_time()))
    }
    if outcome.signal is not None:
        write_json(run / "spent.json", spent)
        return outcome.signal
    potential, baseline = load_potential(run, difference=True), baseline_of(run)
    # What the configuration names the training has called; a checkpoint that was put there may name something else.
    trust = baseline == (experiment.baseline or {}).get("calculator")
    errors = {spec: evaluate(potential, spec, baseline=baseline, trust=trust).summary for spec in tests}
    write_json(
        run / "result.json",
        {
            "size": point.size,
            "weak": point.weak,
            "seed": point.seed,
            "steps": outcome.steps,
            **spent,
            "parameters": sum(p.numel() for p in potential.model.parameters()),
            "tests": errors,
            "test_structures": hashes_of(tests),
            "given": given_options(config_file, options),
        },
    )
    return None


def _options_of(
    point: Point,
    settings: Settings,
    config_file: Path | None,
    variants: Mapping[str, Settings] | None,
) -> list[tuple[str, Any]]:
    """What is given for a point."""
    options = [*fitting(settings, point.weak), ("seed", point.seed)]
    if variants is not None and point.weak in variants:
        options += variants[point.weak]
    elif point.weak != "none":
        options.append(("weak.preset", point.weak))
    trainer = load_config(config_file, options).trainer
    if "max_steps" not in trainer.model_fields_set:  # all points are of one length, whatever their size
        options.append(("trainer.max_steps", trainer.max_steps))
    return options


def check_finished(
    points: Sequence[Point],
    settings: Settings,
    tests: Sequence[str],
    folder: Path,
    config_file: Path | None = None,
    variants: Mapping[str, Settings] | None = None,
) -> None:
    """Whether the points that are finished are those that are asked for, so that one table may hold all.

    Raises:
        InputError: naming the point and what differs.
    """
    finished = [point for point in points if (folder / point.name / "result.json").exists()]
    structures: dict[int, Split] = {}  # by seed, which draws the validation
    hashes = hashes_of(tests) if finished else {}
    for point in finished:
        run = folder / point.name
        content = read_json(run / "result.json", dict)
        check_tests(run, list(content["tests"]), content.get("test_structures"), hashes)
        options = _options_of(point, settings, config_file, variants)
        if point.seed not in structures:
            structures[point.seed] = load_split(load_config(config_file, options))
        train, valid = structures[point.seed]
        split = (subset(train, point.size, point.seed), valid)
        check_made_with(run, content.get("given"), config_file, options, split)


def _results(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """What the finished runs have written; simulations beside them have a file of this name, too."""
    for path in sorted(folder.glob("*/result.json")):
        result = read_json(path, dict)
        if "tests" in result:
            yield path, result
        elif (path.parent / CONFIG).exists():
            raise InputError("is no result of a point of a curve", file=path, key="tests")


def has_results(folder: Path) -> bool:
    """Whether a learning curve has a finished run in a folder."""
    return any(True for _ in _results(folder))


def collect(folder: Path, dynamics: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """The finished runs of a curve as rows of :data:`COLUMNS`, sorted.

    Args:
        folder: of the curve.
        dynamics: whose times are told, as :func:`~pimlip_zoo.experiment.stable_time.stable_ps` takes it.
    """
    rows, found = [], list(_results(folder))
    lasted = stable_ps([path.parent for path, _ in found], dynamics)
    for (_, result), times in zip(found, lasted, strict=True):
        for spec, summary in result["tests"].items():
            row = {
                key: result.get(key) for key in ("size", "weak", "seed", "steps", "seconds", "cpu_seconds")
            }
            row["test"] = spec
            for quantity in ("energy", "energy_per_atom", "forces", "stress"):
                for kind in ("mae", "rmse"):
                    row[f"{quantity}_{kind}"] = (summary.get(quantity) or {}).get(kind)
            row["stable_ps"] = times.get(spec)
            rows.append(row)
    return sorted(rows, key=lambda row: (row["test"], row["weak"], row["size"], row["seed"]))


def collect_physics(folder: Path) -> list[dict[str, Any]]:
    """The physical properties of the finished runs: size, weak, seed and the columns of ``value_rows``."""
    rows = []
    for _, result in _results(folder):
        if "physics" in result:
            point = {key: result[key] for key in ("size", "weak", "seed")}
            rows += [point | row for row in value_rows(result["physics"])]
    return rows


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, by test, way of training and size."""
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["test"], row["weak"], row["size"]), []).append(row)
    summary = []
    for (test, weak, size), members in sorted(groups.items()):
        entry: dict[str, Any] = {"test": test, "weak": weak, "size": size, "seeds": len(members)}
        for column in COLUMNS[4:]:
            known = [member.get(column) for member in members]  # older tables lack columns
            values = [float(value) for value in known if value is not None]
            entry[column] = float(np.mean(values)) if values else None
            entry[f"{column}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        summary.append(entry)
    return summary


def write_table(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write rows as CSV."""
    with replacing(file) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else list(COLUMNS))
        writer.writeheader()
        writer.writerows(rows)


def run_points(
    points: Sequence[Point],
    settings: Settings,
    tests: Sequence[str],
    folder: Path,
    config_file: Path | None = None,
    variants: Mapping[str, Settings] | None = None,
    done: Callable[[Point], None] | None = None,
    judge: Judge | None = None,
) -> int | None:
    """Run the points one after the other and keep the tables up to date; the signal that ended it, or None.

    Raises:
        InputError: before the first training, when there are fewer structures than the largest point has, when they are
            none to train on or are tests, too, or when another point was made with something else.
    """
    check_finished(points, settings, tests, folder, config_file, variants)
    missing = [point for point in points if not (folder / point.name / "result.json").exists()]
    if missing:
        largest = max(missing, key=lambda point: point.size)
        config = load_config(config_file, [*fitting(settings, "none"), ("seed", largest.seed)])
        if not all((folder / point.name / CONFIG).exists() for point in missing):
            _check_recipe(points, config, folder)
        structures = checked_structures(config, {spec: spec for spec in tests})
        subset(load_split(config, structures)[0], largest.size, largest.seed)
    folder.mkdir(parents=True, exist_ok=True)
    for point in points:
        log.info("%s", point.name)
        signal = run_point(point, settings, tests, folder, config_file, variants, judge)
        if signal is not None:
            return signal
        if physics := collect_physics(folder):
            write_table(physics, folder / "physics.csv")
            write_table(summarise_values(physics, ("weak", "size")), folder / "physics-curve.csv")
        write_table(collect(folder), folder / "runs.csv")
        write_table(summarise(collect(folder)), folder / "curve.csv")
        if done is not None:
            done(point)
    return None


def _check_recipe(points: Sequence[Point], config: RunConfig, folder: Path) -> None:
    """Refuse to train further points with a newer version of the recipe that others of the curve were trained with."""
    if config.recipe.version is not None:
        return  # it is given, and compared as all that is given
    newest = get_recipe(config.recipe.name).version
    for run in (folder / point.name for point in points):
        if not (run / CONFIG).exists():
            continue
        of_run = load_config(run / CONFIG, complete=True).recipe
        if of_run.name == config.recipe.name and of_run.filled and of_run.version != newest:
            raise InputError(
                f"was made with version {of_run.version} of the recipe {of_run.name}, now it is {newest}",
                file=run,
                key="recipe.version",
                hint=f"--set recipe.version={of_run.version} goes on with that one; or name another --out",
            )


def fitting(settings: Settings, weak: str) -> list[tuple[str, Any]]:
    """The shared settings without those of weak supervision that this way of training does not have."""
    if weak == "none":
        return [(key, value) for key, value in settings if key.split(".")[0] != "weak"]
    if weak in PRESETS and "labels" not in weak_preset(weak):
        return [(key, value) for key, value in settings if not key.startswith("weak.labels.")]
    return list(settings)


def _spent(run: Path) -> dict[str, float]:
    """What earlier calls took, of an interrupted run."""
    path = run / "spent.json"
    with reading(path):
        found = json.loads(read_text(path)) if path.exists() else {}
    return {name: float(found.get(name, 0.0)) for name in ("seconds", "cpu_seconds")}
