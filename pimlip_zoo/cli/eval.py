"""``pimlip-zoo eval``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pimlip_zoo.cli.options import Level, Trust

if TYPE_CHECKING:
    from pimlip_zoo.cli.physics import PhysicsRequest

app = typer.Typer()


EXAMPLE = """
Examples:

  pimlip-zoo eval runs/nequip-1 --data test.extxyz --plot parity.png

  pimlip-zoo eval runs/nequip-1 --physics --structure bulk:Cu --reference reference.yaml

  pimlip-zoo eval runs/nequip-1 --physics --structure start.xyz --to end.xyz --properties neb

What is measured of what: pimlip-zoo models --physics. Exit code 1: a value is outside of the reference's tolerance.
"""


@app.command("eval", epilog=EXAMPLE)
def evaluate_command(
    run: Annotated[Path, typer.Argument(help="Run folder or checkpoint.")],
    data: Annotated[str | None, typer.Option(help="Structures with labels.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the errors, in eV and Å.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the parity plot: .png, .pdf, .svg.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64; as trained if not given.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures at once.")] = 50,
    stability: Annotated[
        bool, typer.Option("--stability", help="Also run short dynamics and push atoms together.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Compare uncertainties with the errors.")
    ] = False,
    calibration_plot: Annotated[
        Path | None, typer.Option(help="Draw error against uncertainty: .png, .pdf, .svg.")
    ] = None,
    trust: Trust = False,
    physics: Annotated[
        bool, typer.Option("--physics", help="Measure physical properties: lattice, phonons, torsions, ...")
    ] = False,
    structure: Annotated[
        list[str] | None,
        typer.Option(
            help="Of --physics: FILE[@INDEX], bulk:Cu, molecule:CH3CH2OH; typical ones of the data."
        ),
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="Of --physics: the other end of a path.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Of --physics: FILE.yaml, an earlier JSON, a run, gfn2, emt, MODULE:FACTORY."),
    ] = None,
    properties: Annotated[
        str | None, typer.Option(help="Of --physics: some of them, joined by commas.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="Of --physics: crystal, liquid, slab, chain or molecule; found if not given."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Of --physics: an option, as phonons.width=15.")
    ] = None,
    device: Annotated[str, typer.Option(help="Of --physics: cpu, cuda, ...")] = "cpu",
    level: Level = None,
) -> None:
    """Errors of a trained potential on labelled structures, and with --physics the properties it predicts."""
    from pimlip_zoo.cli.refusal import refuse
    from pimlip_zoo.errors import InputError, no_such_file
    from pimlip_zoo.outputs import PICTURE, check_different, check_not_read, check_output, results

    if dtype not in (None, "float32", "float64"):
        raise InputError(f"{dtype!r} is no precision", key="--dtype", hint="float32 or float64")
    if not physics:
        only = {"--structure": structure, "--to": end, "--reference": reference, "--properties": properties}
        refuse("is of --physics", "add --physics", only | {"--kind": kind, "--set": settings})
        if data is None:
            raise InputError(
                "there is nothing to evaluate on", key="--data", hint="give --data DATA, or --physics"
            )
    elif data is None:
        refuse(
            "is of labelled structures",
            "give --data, too",
            {
                "--plot": plot,
                "--stability": stability,
                "--uncertainty": uncertainty,
                "--calibration-plot": calibration_plot,
            },
        )
    check_output(json_file, results("model", "weights", "physics"), key="--json")
    check_not_read(json_file, [reference] if reference else [], key="--json")
    check_output(plot, PICTURE, key="--plot")
    check_output(calibration_plot, PICTURE, key="--calibration-plot")
    check_different({"--json": json_file, "--plot": plot, "--calibration-plot": calibration_plot})
    refuse(
        "looks at the reference level, not at --level",
        f"export --format checkpoint --level {level} makes a run of the other one",
        {"--physics": physics and level, "--uncertainty": (uncertainty or calibration_plot) and level},
    )
    if physics and not run.exists():
        raise no_such_file(run)
    missing = _missing(run)
    summary = None
    if data is not None:
        known = {} if missing is None else {"unfinished": missing}
        summary = known | _errors(
            run, data, dtype, batch_size, plot, stability=stability, trust=trust, level=level
        )
        if uncertainty or calibration_plot is not None:
            summary["uncertainty"] = _uncertainty(run, data, calibration_plot, trust=trust)
        if json_file is not None and not physics:
            _write(summary, json_file)
    if physics:
        from pimlip_zoo.cli.physics import request_of

        request = request_of(
            structures=structure,
            end=end,
            properties=properties,
            settings=settings,
            reference=reference,
            kind=kind,
            data=data,
            dtype=dtype or "float64",
            device=device,
            trust=trust,
        )
        _physics(run, request, summary, json_file, missing)


def _missing(run: Path) -> dict[str, int] | None:
    """Where the training stands if it has not ended; said on the screen, too."""
    if not run.is_dir():
        return None
    from pimlip_zoo.cli.console import console
    from pimlip_zoo.experiment.ended import steps_missing

    found = steps_missing(run)
    if found is None:
        return None
    step, last = found
    console().print(
        f"[yellow]warning:[/yellow] the training has not ended (step {step:,} of {last:,}); go on with: "
        f"pimlip-zoo train --out {run} --resume",
        soft_wrap=True,
    )
    return {"step": step, "of": last}


def _errors(
    run: Path,
    data: str,
    dtype: str | None,
    batch_size: int,
    plot: Path | None,
    *,
    stability: bool,
    trust: bool,
    level: str | None,
) -> dict[str, Any]:
    import torch

    from pimlip_zoo.cli.console import console, errors_table
    from pimlip_zoo.evaluation import evaluate
    from pimlip_zoo.report.remarks import remarks_on
    from pimlip_zoo.training.checkpoint import baseline_of, load_potential

    precision = getattr(torch, dtype) if dtype else None
    potential = load_potential(run, dtype=precision, difference=True, level=level)
    model = str(run) if level is None else f"{run}, level {level}"
    result = evaluate(
        potential, data, batch_size=batch_size, model=model, baseline=baseline_of(run), trust=trust
    )
    screen = console()
    screen.print(errors_table({data: result.summary}))
    seen = _seen(run, data)
    for sentence in [*([seen[1]] if seen is not None else []), *remarks_on(result.pairs)]:
        screen.print(f"[yellow]warning:[/yellow] {sentence}", soft_wrap=True)
    if stability:
        _stability(run, data, screen, trust=trust, level=level)
    if plot is not None:
        from pimlip_zoo.report.parity import parity_plot

        parity_plot(result.pairs, plot, title=f"{run} on {data}")
        screen.print(f"parity plot: {plot}")
    return {**result.summary, **({} if seen is None else {"seen": seen[0]})}


def _seen(run: Path, data: str) -> tuple[dict[str, int], str] | None:
    """How many of the structures the run has seen, and what is said of it; None: none, as far as is known."""
    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.experiment.record import seen_by
    from pimlip_zoo.experiment.seen import seen_sentence

    found = seen_by(run, load_frames(data))
    if found is None:
        return None
    sentence = seen_sentence(found)
    return None if sentence is None else (found, sentence)


def _write(summary: Mapping[str, Any], json_file: Path) -> None:

    from pimlip_zoo.cli.console import console
    from pimlip_zoo.files import write_json

    write_json(json_file, summary)
    console().print(f"errors: {json_file}")


def _physics(
    run: Path,
    request: PhysicsRequest,
    summary: Mapping[str, Any] | None,
    json_file: Path | None,
    missing: Mapping[str, int] | None,
) -> None:
    """What it predicts: see :mod:`pimlip_zoo.physics`."""
    from pimlip_zoo.cli.console import console
    from pimlip_zoo.cli.physics import PhysicsFile, physics_of_run
    from pimlip_zoo.physics.reference import outside_tolerance

    screen = console()
    file = PhysicsFile(run, json_file, summary, unfinished=missing)
    result, signal = physics_of_run(run, request, screen, file.save)
    screen.print(f"properties: {', '.join(map(str, file.paths))}")
    report = run / "report.html"
    if report.is_file():
        from pimlip_zoo.cli.report import write_run_report
        from pimlip_zoo.errors import InputError

        try:
            screen.print(f"report: {write_run_report(run)}")
        except InputError as error:
            screen.print(f"the report is not renewed: {error}", markup=False)
    elif run.is_dir():
        screen.print(f"next: pimlip-zoo report {run}")
    if signal is not None:
        screen.print("ended; what was computed is kept")
        raise typer.Exit(128 + signal)
    if wrong := outside_tolerance(result):
        screen.print(f"[red]outside of the tolerance: {', '.join(wrong)}[/red]")
        raise typer.Exit(1)


def _uncertainty(run: Path, data: str, plot: Path | None, *, trust: bool) -> dict[str, Any]:
    """Calibration and coverage on these structures."""
    from pimlip_zoo.cli.console import console
    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.evaluation import uncertainty_summary
    from pimlip_zoo.run_posterior import posterior_of
    from pimlip_zoo.training.checkpoint import baseline_of, load_potential
    from pimlip_zoo.weak_labels.pool import corrections

    screen = console()
    posterior = posterior_of(run, trust=trust)
    frames = load_frames(data)
    baseline = baseline_of(run)
    if baseline is not None:
        frames = corrections(frames, baseline, trust=trust)
    summary = uncertainty_summary(load_potential(run, difference=True), posterior, frames)
    for name, unit in (("energy", "meV"), ("forces", "meV/Å")):
        if name not in summary:
            continue
        found = summary[name]
        correlation = "-" if found["correlation"] is None else f"{found['correlation']:.2f}"
        screen.print(
            f"uncertainty of {name}: {1e3 * found['rms_uncertainty']:.1f} {unit} where errors are "
            f"{1e3 * found['rms_error']:.1f}, rank correlation {correlation}, the 90 % quantile covers "
            f"{100 * found['coverage']:.1f} %",
            soft_wrap=True,
        )
    if plot is not None:
        from pimlip_zoo.report.calibration import calibration_plot

        calibration_plot(summary, plot, title=f"{run} on {data}")
        screen.print(f"calibration plot: {plot}")
    return summary


def _stability(run: Path, data: str, screen: Any, *, trust: bool, level: str | None) -> None:
    """What errors on test structures do not tell: see :mod:`pimlip_zoo.deploy.gate`."""
    from pimlip_zoo.api import calculator
    from pimlip_zoo.datasets.frame import frame_to_atoms
    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.deploy.gate import stability_gate

    atoms = frame_to_atoms(load_frames(data)[0])
    atoms.calc = calculator(run, trust=trust, level=level)
    result = stability_gate(atoms)
    screen.print("stable" if result.passed else "[bold red]not stable[/bold red]")
    for sentence in result.sentences:
        screen.print(f"  {sentence}")
