"""``pimlip-zoo report``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pimlip_zoo.report.html import ReportData

app = typer.Typer()


@app.command(epilog="Example: pimlip-zoo report runs/nequip-1 runs/mace-1 -o comparison.html")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are compared.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file; RUN/report.html, or comparison.html of several runs."),
    ] = None,
) -> None:
    """Write a run as one HTML file, or compare several: errors, learning curves, what differs between them."""
    from pimlip_zoo.cli.console import console
    from pimlip_zoo.outputs import PAGE, check_output

    check_output(out or (Path("comparison.html") if len(runs) > 1 else None), PAGE, key="--out")
    if len(runs) == 1:
        console().print(f"report: {write_run_report(runs[0], out)}")
        return
    from pimlip_zoo.report.compare import write_comparison

    file = out or Path("comparison.html")
    write_comparison([_gather(run) for run in runs], file)
    console().print(f"comparison of {len(runs)} runs: {file}")


def write_run_report(run: Path, out: Path | None = None) -> Path:
    """Gather what is in a run folder and write it; returns the file.

    Raises:
        InputError: when it is no run folder.
    """
    from pimlip_zoo.report.html import write_report

    file = out or run / "report.html"
    write_report(_gather(run), file)
    return file


def _gather(run: Path) -> ReportData:
    import json

    from pimlip_zoo.errors import InputError, reading
    from pimlip_zoo.files import read_text
    from pimlip_zoo.report.html import ReportData
    from pimlip_zoo.report.parity import load_pairs
    from pimlip_zoo.training.checkpoint import KEY, checkpoint_path, load_potential, read_checkpoint
    from pimlip_zoo.training.verdict import verdict_on
    from pimlip_zoo.yaml_file import parse_yaml

    if not run.is_dir():
        raise InputError("is no run folder", file=run, hint="give the folder that `pimlip-zoo train` made")
    path = checkpoint_path(run)
    best = read_checkpoint(path)
    last = read_checkpoint(checkpoint_path(run, "last"))
    potential = load_potential(path, difference=True)
    summary = best[KEY].get("summary") or {}
    config_file = run / "config.yaml"
    text = read_text(config_file) if config_file.exists() else ""
    config = parse_yaml(text, file=config_file) or {}
    notes = _evaluate_if_needed(run)
    curve = read_metrics(run / "metrics.csv")
    total = config.get("trainer", {}).get("max_steps")
    steps, best_step = int(last.get("global_step", 0)), int(best.get("global_step", 0))
    section, keep = config.get("model", {}), config.get("trainer", {}).get("keep")
    facts = {
        "Architecture": best[KEY]["model"] + (f", {section['preset']}" if section.get("preset") else ""),
        "Parameters": f"{sum(p.numel() for p in potential.model.parameters()):,}",
        "Cutoff": f"{potential.cutoff:g} Å",
        "Precision": str(best[KEY]["dtype"]),
        "Forces": "direct" if potential.is_direct else "conservative",
        "Trained on": ", ".join(summary.get("labels", ())) or "–",
        "Steps": f"{steps:,}" + (f" of {total:,}" if total and steps < total else ""),
        "Best weights": f"step {best_step:,}" + (", the last" if keep == "last" else ""),
    }
    if curve and "seconds" in curve[-1]:
        facts["Time"] = _duration(curve[-1]["seconds"])
    energies, scales = potential.energy_references.tolist(), potential.scale.tolist()
    tests, pairs = run / "test.json", run / "parity.npz"
    with reading(tests):
        errors = json.loads(read_text(tests)) if tests.exists() else {}
    return ReportData(
        name=run.resolve().name,
        facts=facts,
        tests=errors,
        curve=curve,
        pairs=load_pairs(pairs) if pairs.exists() else {},
        structures=_hashes(run),
        coverage=summary.get("coverage", {}),
        species=dict(zip(potential.species, zip(energies, scales, strict=True), strict=True)),
        references=summary.get("energy_references", ""),
        changed=_changed(config),
        filled=frozenset(config.get("recipe", {}).get("filled") or ()),
        config=text,
        versions=summary.get("versions", {}),
        physics=_physics(run, notes),
        notes=[*notes, *verdict_on(curve, errors)],
    )


def _hashes(run: Path) -> dict[str, str]:
    """Of the training and of the validation structures, where the run folder has them."""
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.files import read_json

    file = run / "data.json"
    try:
        content = read_json(file, dict) if file.is_file() else {}
        return {part: str(content[part]["sha256"]) for part in ("training", "validation") if part in content}
    except (InputError, ValueError, TypeError, KeyError):  # resuming the run says that it is damaged
        return {}


def _evaluate_if_needed(run: Path) -> list[str]:
    """Errors that the training did not get to; what keeps them from being found is a note, no failure."""
    from pimlip_zoo.config import load_config
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.evaluation import evaluate_run, tests_of

    if (run / "test.json").exists() or not (run / "config.yaml").exists():
        return []
    try:
        evaluate_run(run, tests_of(load_config(run / "config.yaml", complete=True)))
    except InputError as error:
        return [f"Not evaluated: {error}"]
    return []


def _physics(run: Path, notes: list[str]) -> dict[str, Any]:
    """What `eval --physics` wrote; of other weights it is not shown."""
    from pimlip_zoo.errors import reading
    from pimlip_zoo.files import content_hash, read_json
    from pimlip_zoo.training.checkpoint import checkpoint_path

    file = run / "physics.json"
    if not file.is_file():
        return {}
    with reading(file):
        content: dict[str, Any] = read_json(file, dict)
        same = content["weights"] == content_hash(checkpoint_path(run))
    if same:
        return content
    notes.append(
        "The properties in physics.json are of other weights: run `pimlip-zoo eval --physics` again."
    )
    return {}


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The rows of a run's ``metrics.csv``; none where there is no such file."""
    import csv

    from pimlip_zoo.errors import reading
    from pimlip_zoo.files import read_text

    if not file.exists():
        return []
    with reading(file):
        lines = read_text(file, most=1 << 28).splitlines()
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(lines)]


def _changed(config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options whose values are not the defaults; those of the model are compared with its preset's."""
    import dataclasses

    from pimlip_zoo.config import RunConfig
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.registry import get_model

    default = RunConfig().model_dump(mode="json")
    section = config.get("model", {})
    try:
        name, preset = section.get("name", "nequip"), section.get("preset")
        options = dataclasses.asdict(get_model(name).configure(preset))
        default["model"] |= {key: list(v) if isinstance(v, tuple) else v for key, v in options.items()}
    except InputError:
        pass  # of another package, which is not installed: everything counts as changed
    known = _flat(default)
    return {
        key: (value, known.get(key))
        for key, value in _flat(config).items()
        if value != known.get(key)
        and key != "recipe.filled"
        and not (key.startswith("model.") and key not in known and value is None)
    }


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict) and value:
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"
