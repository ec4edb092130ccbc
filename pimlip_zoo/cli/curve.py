"""``pimlip-zoo curve``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pimlip_zoo.experiment.curve import Judge

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
    """Errors against the number of labels: a table, a plot, one run folder per point."""
    from pimlip_zoo.cli.console import console, log_to_screen
    from pimlip_zoo.config import parse_settings
    from pimlip_zoo.experiment.curve import Point, collect, collect_physics, run_points, summarise
    from pimlip_zoo.physics.summary import summarise_values
    from pimlip_zoo.report.curve import curve_plot

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
    tests = _tests(data, test)
    points = [
        Point(size, name, seed) for seed in range(seeds) for size in _sizes(sizes) for name in _presets(weak)
    ]
    screen = console()
    log_to_screen()
    judge = _judge(physics, reference, properties, out, screen)
    signal = run_points(points, options, tests, out, config, judge=judge)
    summary = summarise(collect(out))
    if summary:
        screen.print(_table(summary))
        curve_plot(summary, out / "curve.png")
    values = collect_physics(out) if judge is not None else []
    if values:
        screen.print(_physics_table(summarise_values(values, ("weak", "size"))))
    if signal is not None:
        screen.print("stopped; the same command goes on")
        raise typer.Exit(128 + signal)
    files = ["runs.csv", "curve.csv", "curve.png", *(["physics.csv", "physics-curve.csv"] if values else [])]
    screen.print(", ".join(str(out / name) for name in files))


def _judge(
    structures: list[str] | None, reference: str | None, properties: str | None, out: Path, screen: Any
) -> Judge | None:
    """What measures the properties of each run; whatever is wrong with the request is said before any training."""
    from pimlip_zoo.cli.physics import (
        PhysicsFile,
        check_request,
        measured_reference,
        physics_of_run,
        request_of,
    )
    from pimlip_zoo.errors import InputError

    if not structures:
        for name, given in (("--reference", reference), ("--properties", properties)):
            if given:
                raise InputError("is of --physics", key=name, mend="add --physics bulk:Cu, for one")
        return None
    request = request_of(structures=structures, properties=properties, settings=None, reference=reference)
    check_request(request)
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
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in (
        "structure",
        "property",
        "labels",
        "weak",
        "given",
        "value",
        "reference",
        "RMS error",
        "unit",
    ):
        table.add_column(
            column, justify="left" if column in ("structure", "property", "weak", "unit") else "right"
        )
    compared = [row for row in summary if row["rms_error"] is not None or row["given"] < row["runs"]]
    for row in compared or summary:
        numbers = [
            "–" if row[key] is None else f"{row[key]:.5g}" for key in ("value", "reference", "rms_error")
        ]
        given = f"{row['given']} of {row['runs']}"
        table.add_row(
            row["structure"], row["property"], str(row["size"]), row["weak"], given, *numbers, row["unit"]
        )
    return table


def _tests(data: str | None, test: str | None) -> list[str]:
    from pimlip_zoo.errors import InputError

    if test is not None:
        return test.split(",")
    if data in (None, "builtin:ethanol-gfn2"):
        return [f"builtin:ethanol-gfn2/test_{temperature}K" for temperature in (300, 600)]
    raise InputError("there is nothing to measure errors on", key="--test", mend="give --test DATA")


def _sizes(text: str) -> list[int]:
    from pimlip_zoo.errors import InputError

    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{text!r} is no list of numbers", key="--sizes", mend="write 25,50,100") from error
    if min(numbers) < 1:
        raise InputError(f"{min(numbers)} structures", key="--sizes", mend="give numbers >= 1")
    return numbers


def _presets(text: str) -> list[str]:
    from pimlip_zoo.consistency.config import weak_preset

    names = text.split(",")
    for name in names:
        if name != "none":
            weak_preset(name)
    return names


def _table(summary: Sequence[Mapping[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in (
        "test",
        "labels",
        "weak",
        "seeds",
        "energy RMSE [dim]meV/atom[/dim]",
        "force RMSE [dim]meV/Å[/dim]",
    ):
        table.add_column(column, justify="left" if column in ("test", "weak") else "right")
    table.add_column("seconds", justify="right")
    for row in summary:
        cells = [_with_spread(row, name, 1e3) for name in ("energy_per_atom_rmse", "forces_rmse")]
        table.add_row(
            row["test"], str(row["size"]), row["weak"], str(row["seeds"]), *cells, f"{row['seconds']:.0f}"
        )
    return table


def _with_spread(row: Mapping[str, Any], name: str, factor: float) -> str:
    if row[name] is None:
        return ""
    spread = row[f"{name}_std"]
    return f"{factor * row[name]:.2f}" + (f" ± {factor * spread:.2f}" if spread is not None else "")
