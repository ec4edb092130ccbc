"""``pimlip-zoo curve``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pimlip_zoo.config import RunConfig
    from pimlip_zoo.experiment.curve import Judge, Point

app = typer.Typer()

EXAMPLE = """
Example:

  pimlip-zoo curve --model nequip --data builtin:ethanol-gfn2 --sizes 25,50,100 --weak none,piwsl --seeds 3
"""


@app.command(epilog=EXAMPLE)
def curve(
    model: Annotated[str | None, typer.Option(help="Architecture.")] = None,
    data: Annotated[str | None, typer.Option(help="Structures to choose training sets from.")] = None,
    sizes: Annotated[str, typer.Option(help="Numbers of labelled structures.")] = "25,50,100,200",
    weak: Annotated[str, typer.Option(help="Weak presets, and none.")] = "none",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each kind.")] = 3,
    valid: Annotated[str | None, typer.Option(help="Validation structures, the same for all.")] = None,
    test: Annotated[str | None, typer.Option(help="Test sets, joined by commas.")] = None,
    config: Annotated[Path | None, typer.Option(help="A run.yaml that all runs share.")] = None,
    preset: Annotated[str | None, typer.Option(help="small, medium or large.")] = None,
    forces: Annotated[str | None, typer.Option(help="conservative or direct.")] = None,
    labels: Annotated[str | None, typer.Option(help="energy | energy,forces")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimiser steps of each run.")] = None,
    max_time: Annotated[str | None, typer.Option(help="Of each run: 10m, 2h, ...")] = None,
    equal_time: Annotated[
        bool,
        typer.Option(
            "--equal-time",
            help="Runs without a recipe get as many steps as all stages of the longest recipe together.",
        ),
    ] = False,
    stability: Annotated[
        float | None,
        typer.Option(
            metavar="PS", help="Run dynamics of each model, at most so long: how long are they stable?"
        ),
    ] = None,
    stability_temperature: Annotated[float | None, typer.Option(help="K, of these dynamics; 300.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Any option of a run.")] = None,
    physics: Annotated[
        list[str] | None,
        typer.Option(metavar="STRUCTURE", help="Also judge by properties of it: bulk:Cu, FILE[@INDEX], ..."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Of --physics: FILE.yaml, gfn2, emt, MODULE:FACTORY.")
    ] = None,
    properties: Annotated[
        str | None, typer.Option(help="Of --physics: some of them, joined by commas.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder; what is finished there is not repeated.")] = Path(
        "curve"
    ),
) -> None:
    """Errors against the number of labels, and how many plain labels those of a recipe equal.

    Writes tables, a plot and a report, and one run folder per point.
    """
    from functools import partial

    from pimlip_zoo.cli.console import console, log_to_screen
    from pimlip_zoo.config import check_once, parse_settings
    from pimlip_zoo.experiment.curve import (
        Point,
        collect,
        collect_physics,
        run_points,
        summarise,
        write_table,
    )
    from pimlip_zoo.experiment.stable_time import FILE, settings_of
    from pimlip_zoo.physics.summary import summarise_values
    from pimlip_zoo.report.curve import curve_plot
    from pimlip_zoo.report.equivalence import equivalences

    given: list[tuple[str, Any]] = [
        ("model.name", model),
        ("model.preset", preset),
        ("data.train", data),
        ("data.valid", valid),
        ("model.force_head", forces),
        ("data.labels", labels.split(",") if labels else None),
        ("trainer.max_steps", max_steps),
        ("trainer.max_time", max_time),
    ]
    options = [(key, value) for key, value in given if value is not None] + parse_settings(settings or [])
    check_once(options)
    _check_effects(options, _presets(weak), config)
    temperature = _temperature(stability, stability_temperature)
    tests = _tests(data, test)
    points = [
        Point(size, name, seed) for seed in range(seeds) for size in _sizes(sizes) for name in _presets(weak)
    ]
    screen = console()
    log_to_screen()
    _check_folder(out)
    judge = _judge(physics, reference, properties, out, screen)
    variants = _plain_steps(options, _presets(weak), config) if equal_time else None
    watch = None
    if stability is not None:
        named = _named(options, _presets(weak), config)
        watch = partial(_stability, out, tests, stability, temperature, named)
    signal = run_points(points, options, tests, out, config, variants, watch, judge)
    if watch is not None and signal is None:
        for point in points:
            watch(point)
    rows = collect(out, settings_of(stability, temperature) if stability is not None else None)
    if any(out.glob(f"*/{FILE}")) and all(row["stable_ps"] is None for row in rows):
        screen.print(
            "stable times were measured with unlike settings and are left out: --stability PS measures again"
        )
    summary, equal = summarise(rows), equivalences(rows)
    if summary:
        write_table(rows, out / "runs.csv")
        write_table(summary, out / "curve.csv")
        screen.print(_table(summary))
        curve_plot(summary, out / "curve.png", equal)
        _say_what_equals(screen, equal, weak, equal_time=equal_time)
        _write_equal(equal, summary, out)
    values = collect_physics(out) if judge is not None else []
    if values:
        screen.print(_physics_table(summarise_values(values, ("weak", "size"))))
    if signal is not None:
        screen.print("stopped; the same command goes on")
        raise typer.Exit(128 + signal)
    files = ["runs.csv", "curve.csv", *(["equal.csv"] if equal else []), "curve.png", "report.html"]
    files += ["physics.csv", "physics-curve.csv"] if values else []
    screen.print(", ".join(str(out / name) for name in files))


def _check_effects(options: Sequence[tuple[str, Any]], names: Sequence[str], config: Path | None) -> None:
    """Refuse the seed, which each point has for itself, and options of weak supervision that no way of training reads.

    Raises:
        InputError: naming the option.
    """
    from pimlip_zoo.config import load_config
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.experiment.effects import without_effect

    asked = {
        key for key in load_config(config, options).stated or () if key.split(".")[0] in ("seed", "weak")
    }
    if "seed" in asked:
        raise InputError("has no effect: each point has its own", key="seed", hint="--seeds N runs 0 to N-1")
    read: set[str] = {"weak.preset"}
    for way in (_of_way(options, name, config) for name in names):
        idle = {found.key for found in without_effect(way, ("energy", "forces", "stress"))}
        read |= (way.stated or set()) - idle
    for key in sorted(asked - read):
        raise InputError(f"has no effect on {', '.join(names)}", key=key, hint="leave it out")


def _temperature(ps: float | None, given: float | None) -> float:
    """K, of the dynamics of --stability.

    Raises:
        InputError: when there are none, or none are possible.
    """
    from pimlip_zoo.errors import InputError

    if ps is None and given is not None:
        raise InputError("is of --stability", key="--stability-temperature", hint="add --stability PS")
    temperature = 300.0 if given is None else given
    if ps is not None and not (ps > 0 and 0 <= temperature < math.inf):
        raise InputError(f"{ps} ps at {temperature} K is not possible", key="--stability", hint="more than 0")
    return temperature


def _judge(
    structures: list[str] | None, reference: str | None, properties: str | None, out: Path, screen: Any
) -> Judge | None:
    """What measures the properties of each run; whatever is wrong with the request is said before any training."""
    from pimlip_zoo.cli.physics import (
        PhysicsFile,
        check_measured,
        check_request,
        measured_reference,
        physics_of_run,
        request_of,
    )
    from pimlip_zoo.errors import InputError

    if not structures:
        for name, given in (("--reference", reference), ("--properties", properties)):
            if given:
                raise InputError("is of --physics", key=name, hint="add --physics bulk:Cu, for one")
        return None
    request = request_of(structures=structures, properties=properties, settings=None, reference=reference)
    check_request(request)
    check_measured(request, sorted(out.glob("*/result.json")))
    request = measured_reference(request, out / "physics-reference.json", screen)

    def judge(run: Path) -> tuple[Mapping[str, Any], int | None]:
        try:
            return physics_of_run(run, request, screen, PhysicsFile(run, None).save, quiet=True)
        except InputError as error:  # such as an element that this training set has not
            screen.print(f"{run}: no properties: {error}", markup=False)
            return {"structures": {}, "refused": str(error)}, None

    return judge


def _physics_table(summary: Sequence[Mapping[str, Any]]) -> Any:
    """Only what there is a reference for, unless there is none at all."""
    from pimlip_zoo.cli.console import plain_table

    rows = []
    compared = [row for row in summary if row["rms_error"] is not None or row["given"] < row["runs"]]
    for row in compared or summary:
        numbers = [
            "–" if row[key] is None else f"{row[key]:.5g}" for key in ("value", "reference", "rms_error")
        ]
        names = (row["structure"], row["property"], str(row["size"]), row["weak"])
        rows.append((*names, f"{row['given']} of {row['runs']}", *numbers, row["unit"]))
    columns = ("structure", "property", "labels", "weak", "given", "value", "reference", "RMS error", "unit")
    return plain_table(*columns, rows=rows, left=("structure", "property", "weak", "unit"))


def _plain_steps(
    options: Sequence[tuple[str, Any]], names: Sequence[str], config: Path | None
) -> dict[str, list[tuple[str, Any]]]:
    """The steps of plain runs that take as long as the longest recipe: those of all its stages."""
    most = 0
    for name in names:
        of_recipe = _of_way(options, name, config)
        labels, steps = of_recipe.weak.labels, of_recipe.trainer.max_steps
        if labels is not None:
            steps += labels.recipe().steps_before()
        most = max(most, steps)
    return {"none": [("trainer.max_steps", most)]}


def _stability(
    out: Path, tests: Sequence[str], ps: float, temperature: float, named: frozenset[str], point: Point
) -> None:
    """How long dynamics with the model of a point last.

    Args:
        out: the folder of the curve.
        tests: where dynamics start.
        ps: their longest time.
        temperature: K.
        named: calculators that this command names, which a difference model may have called.
        point: the finished run.
    """
    from pimlip_zoo.api import calculator
    from pimlip_zoo.experiment.stable_time import measure_stability
    from pimlip_zoo.training.checkpoint import baseline_of

    run = out / point.name
    found = calculator(run, trust=baseline_of(run) in named)
    measure_stability(run, tests, ps=ps, calculator=found, temperature=temperature)


def _named(options: Sequence[tuple[str, Any]], names: Sequence[str], config: Path | None) -> frozenset[str]:
    """The calculators that the options or the configuration name."""
    labels = [_of_way(options, name, config).weak.labels for name in names]
    return frozenset(each.calculator for each in labels if each is not None)


def _of_way(options: Sequence[tuple[str, Any]], name: str, config: Path | None) -> RunConfig:
    """The configuration of a way of training."""
    from pimlip_zoo.config import load_config
    from pimlip_zoo.experiment.curve import fitting

    given = fitting(options, name)
    return load_config(config, [*given, *([] if name == "none" else [("weak.preset", name)])])


def _say_what_equals(screen: Any, equal: Sequence[Any], weak: str, *, equal_time: bool) -> None:
    for each in equal:
        screen.print(each.sentence, highlight=False)
    if equal and not equal_time and not all(each.same_time for each in equal if each.time is not None):
        screen.print("--equal-time gives the plain runs as many steps", style="dim")
    if not equal and set(weak.split(",")) != {"none"}:
        screen.print(
            "how many plain labels that equals needs runs of --weak none with two --sizes or more",
            style="dim",
        )


def _check_folder(out: Path) -> None:
    """Refuse to replace tables and pictures that no learning curve has written: no finished run is beside them."""
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.experiment.curve import has_results
    from pimlip_zoo.outputs import check_unused

    if out.exists() and not out.is_dir():
        raise InputError("is a file, a folder is needed", file=out, key="--out")
    if not has_results(out):
        names = ("runs.csv", "curve.csv", "equal.csv", "physics.csv", "physics-curve.csv", "curve.png")
        check_unused(out, (*names, "report.html"))


def _write_equal(equal: Sequence[Any], summary: Sequence[Mapping[str, Any]], out: Path) -> None:
    """``equal.csv`` and ``report.html``."""
    import dataclasses

    from pimlip_zoo.experiment.curve import write_table
    from pimlip_zoo.files import write_text
    from pimlip_zoo.report.curve import curve_figure
    from pimlip_zoo.report.html import render_curve

    hidden = {"ends"}
    table = [{k: v for k, v in dataclasses.asdict(each).items() if k not in hidden} for each in equal]
    if table:
        write_table(table, out / "equal.csv")
    else:
        (out / "equal.csv").unlink(missing_ok=True)
    names, rows = _rows(summary)
    sentences = [f"{each.test}: {each.sentence}" for each in equal]
    page = render_curve(out.resolve().name, [names, *rows], sentences, curve_figure(summary, equal))
    write_text(out / "report.html", page)


def _tests(data: str | None, test: str | None) -> list[str]:
    from pimlip_zoo.errors import InputError

    if test is not None:
        return test.split(",")
    if data in (None, "builtin:ethanol-gfn2"):
        return [f"builtin:ethanol-gfn2/test_{temperature}K" for temperature in (300, 600)]
    raise InputError("there is nothing to measure errors on", key="--test", hint="give --test DATA")


def _sizes(text: str) -> list[int]:
    from pimlip_zoo.errors import InputError

    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{text!r} is no list of numbers", key="--sizes", hint="write 25,50,100") from error
    if min(numbers) < 1:
        raise InputError(f"{min(numbers)} structures", key="--sizes", hint="give numbers >= 1")
    return numbers


def _presets(text: str) -> list[str]:
    from pimlip_zoo.consistency.config import weak_preset

    names = text.split(",")
    for name in names:
        if name != "none":
            weak_preset(name)
    return names


def _rows(summary: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Names of columns, and a line for each kind of run."""
    more = {
        "stress RMSE meV/Å³": ("stress_rmse", 1e3),
        "stable ps": ("stable_ps", 1.0),
    }
    more = {name: at for name, at in more.items() if any(row.get(at[0]) is not None for row in summary)}
    columns = {
        "energy RMSE meV/atom": ("energy_per_atom_rmse", 1e3),
        "force RMSE meV/Å": ("forces_rmse", 1e3),
    }
    columns |= more
    names = ["test", "labels", "weak", "seeds", *columns, "seconds"]
    rows = []
    for row in summary:
        cells = [_with_spread(row, name, factor) for name, factor in columns.values()]
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        rows.append([row["test"], str(row["size"]), row["weak"], str(row["seeds"]), *cells, seconds])
    return names, rows


def _table(summary: Sequence[Mapping[str, Any]]) -> Any:
    from pimlip_zoo.cli.console import plain_table

    names, rows = _rows(summary)
    return plain_table(*names, rows=rows, left=("test", "weak"))


def _with_spread(row: Mapping[str, Any], name: str, factor: float) -> str:
    if row.get(name) is None:
        return ""
    spread = row[f"{name}_std"]
    return f"{factor * row[name]:.2f}" + (f" ± {factor * spread:.2f}" if spread is not None else "")
