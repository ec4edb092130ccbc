"""``pimlip-zoo eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer()


@app.command("eval", epilog="Example: pimlip-zoo eval runs/nequip-1 --data test.extxyz --plot parity.png")
def evaluate_command(
    run: Annotated[Path, typer.Argument(help="Run folder or checkpoint.")],
    data: Annotated[str, typer.Option(help="Structures with labels.")],
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
    trust: Annotated[
        bool, typer.Option("--trust", help="Call the function that the run names as its cheap calculator.")
    ] = False,
) -> None:
    """Errors of a trained potential on labelled structures."""
    import json

    import torch

    from pimlip_zoo.cli.console import console, errors_table
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.evaluation import evaluate
    from pimlip_zoo.files import replacing
    from pimlip_zoo.training.checkpoint import baseline_of, load_potential

    if dtype not in (None, "float32", "float64"):
        raise InputError(f"{dtype!r} is no precision", key="--dtype", mend="float32 or float64")
    potential = load_potential(run, dtype=getattr(torch, dtype) if dtype else None, difference=True)
    result = evaluate(
        potential, data, batch_size=batch_size, model=str(run), baseline=baseline_of(run), trust=trust
    )
    screen = console()
    screen.print(errors_table({data: result.summary}))
    if stability:
        _stability(run, data, screen, trust=trust)
    if uncertainty or calibration_plot is not None:
        result.summary["uncertainty"] = _uncertainty(run, data, screen, calibration_plot, trust=trust)
    if json_file is not None:
        with replacing(json_file) as temporary:
            temporary.write_text(json.dumps(result.summary, indent=1))
        screen.print(f"errors: {json_file}")
    if plot is not None:
        from pimlip_zoo.report.parity import parity_plot

        parity_plot(result.pairs, plot, title=f"{run} on {data}")
        screen.print(f"parity plot: {plot}")


def _uncertainty(run: Path, data: str, screen: Any, plot: Path | None, *, trust: bool) -> dict[str, Any]:
    """Calibration and coverage on these structures."""
    from pimlip_zoo.datasets.cheap import find_supervisor
    from pimlip_zoo.datasets.offsets import subtract_labels
    from pimlip_zoo.datasets.pool import cached_labels
    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.evaluation import uncertainty_summary
    from pimlip_zoo.run_posterior import posterior_of
    from pimlip_zoo.training.checkpoint import baseline_of, load_potential

    posterior = posterior_of(run, trust=trust)
    frames = load_frames(data)
    baseline = baseline_of(run)
    if baseline is not None:
        frames = subtract_labels(frames, cached_labels(frames, find_supervisor(baseline, trust=trust)))
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


def _stability(run: Path, data: str, screen: Any, *, trust: bool) -> None:
    """What errors on test structures do not tell: see :mod:`pimlip_zoo.deploy.gate`."""
    from pimlip_zoo.api import calculator
    from pimlip_zoo.datasets.frame import frame_to_atoms
    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.deploy.gate import stability_gate

    atoms = frame_to_atoms(load_frames(data)[0])
    atoms.calc = calculator(run, trust=trust)
    result = stability_gate(atoms)
    screen.print("stable" if result.passed else "[bold red]not stable[/bold red]")
    for sentence in result.sentences:
        screen.print(f"  {sentence}")
