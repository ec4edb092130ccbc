"""``pimlip-zoo weak``: what weak labels can do for a set, before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pimlip_zoo.datasets.frame import Frame
    from pimlip_zoo.experiment.advice import Advice

app = typer.Typer(no_args_is_help=True, help="Weak labels: which cheap level helps?")

EXAMPLE = """
Examples:

  pimlip-zoo weak advise --data few.extxyz

  pimlip-zoo weak advise --data few.extxyz --calculator chgnet.model.dynamics:CHGNetCalculator --calculator pbe.extxyz
"""


@app.callback()
def _group() -> None:
    """Weak labels: which cheap level helps?"""


@app.command(epilog=EXAMPLE)
def advise(
    data: Annotated[str, typer.Option(help="The labelled structures, ten or more.")],
    calculator: Annotated[
        list[str] | None,
        typer.Option(
            help="A cheap level: gfn2, gfn1, emt, run:RUN, MODULE:FACTORY (imported and called), or a file in which "
            "the same structures are labelled. Several are allowed; by default those that come with the package."
        ),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="energy: as if there were no forces.")] = None,
    model: Annotated[str, typer.Option(help="Architecture of the trainings.")] = "mace",
    steps: Annotated[int, typer.Option(min=10, help="Of the longer ones.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of these, and of the structures that are measured.")] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other option of these trainings.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers there.")] = None,
) -> None:
    """Compare cheap levels of theory with labels and say which recipe helps, or that none does.

    Two trainings on the labels and two on their difference to each level, of --steps and a quarter of them, measured on
    structures that none of them saw. What counts is the ratio of errors that they lead to at the length of a whole run.
    The numbers are what was measured; the bounds of the verdict are fitted to the few sets of the study.
    """
    import warnings

    from pimlip_zoo.cli.console import console
    from pimlip_zoo.config import check_once, parse_settings
    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.experiment.advice import advise as compare
    from pimlip_zoo.experiment.advice import check_settings, known_levels, labels_of_level
    from pimlip_zoo.outputs import check_output, results
    from pimlip_zoo.registry import get_model

    check_output(json_file, results("advice"), key="--json")
    if labels not in (None, "energy", "energy,forces"):
        raise InputError(f"{labels!r} is not possible", key="--labels", hint="energy, or leave it out")
    get_model(model)
    given = parse_settings(settings or [])
    check_once(given)
    check_settings(given)
    frames = load_frames(data)
    if labels == "energy":
        import dataclasses

        frames = [dataclasses.replace(frame, forces=None) for frame in frames]
    names, skipped = (list(dict.fromkeys(calculator)), {}) if calculator else known_levels(frames)
    screen = console()
    warnings.filterwarnings("ignore", module="lightning.*")
    levels: dict[str, Any] = {}
    for name in names:
        screen.print(f"labelling {len(frames)} structures: {name}", style="dim")
        try:
            levels[name] = labels_of_level(name, frames)
        except InputError as error:
            if calculator and len(names) == 1:
                raise
            levels[name] = error
    advice = compare(
        frames,
        levels,
        model=model,
        steps=steps,
        seed=seed,
        settings=given,
        told=lambda text: screen.print(text, style="dim"),
    )
    advice.skipped.update(skipped)
    _show(screen, advice, data)
    _show_start(screen, frames, data)
    if json_file is not None:
        _write(advice, json_file)


def _show(screen: Any, advice: Advice, data: str) -> None:
    from rich.table import Table

    from pimlip_zoo.experiment.advice import SHORTER

    def milli(value: float | None) -> str:
        return "" if value is None else f"{1e3 * value:.3g}"

    said = f"{advice.structures} structures: {advice.energies} energies, {advice.force_components:,} force components"
    if advice.steps == 0 and advice.same is not None:
        of = milli(advice.same.difference.forces), milli(advice.surface.forces), "meV/Å"
        if advice.same.difference.forces is None:
            of = milli(advice.same.difference.energies), milli(advice.surface.energies), "meV/atom"
        screen.print(
            f"{said}; they differ from {advice.same.level} by {of[0]} of {of[1]} {of[2]}: nothing is trained"
        )
        screen.print(f"advice: {advice.sentence}", style="bold", highlight=False, soft_wrap=True)
        return
    screen.print(f"{said}; {advice.measured} of them measured, the others learnt in {advice.steps:,} steps")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for name in ("forces", "left", "energies", "left", "ratio", "ratio", "ratio", "roughness"):
        table.add_column(name, justify="right")
    lengths = [f"{steps:,} steps" for steps in (advice.steps // SHORTER, advice.steps, advice.length)]
    table.add_row("", *(["meV/Å"] * 2), *(["meV/atom"] * 2), *lengths, "", style="dim")

    def row(name: str, size: Any, left: Any, *more: str) -> None:
        table.add_row(
            name, milli(size.forces), milli(left.forces), milli(size.energies), milli(left.energies), *more
        )

    row("labels", advice.surface, advice.plain, "1", "1", "1", "1")
    for finding in advice.findings:
        expected = f"{finding.expected:.2f} [{finding.low:.2f}, {finding.high:.2f}]"
        ratios = (f"{finding.early:.2f}", f"{finding.ratio:.2f}", expected, f"{finding.roughness:.2f}")
        row(f"minus {finding.level}", finding.difference, finding.learnt, *ratios)
    screen.print(table)
    for name, reason in advice.skipped.items():
        screen.print(f"not looked at: {name}: {reason}", style="dim")
    screen.print(f"advice: {advice.sentence}", style="bold", highlight=False, soft_wrap=True)
    best = advice.best
    if best is not None and not Path(best.level).is_file():
        screen.print(
            f"pimlip-zoo train --data {data} --set weak.labels.method={best.recipe} "
            f"--set weak.labels.calculator={best.level}",
            highlight=False,
            soft_wrap=True,
        )
        if best.recipe == "pretrain":
            screen.print(
                "where the calculator may run at inference, too: weak.labels.method=delta", style="dim"
            )


def _show_start(screen: Any, frames: Sequence[Frame], data: str) -> None:
    """A start for such molecules, which costs nothing."""
    from pimlip_zoo.training.shipped import start_for_molecules

    start = start_for_molecules(frames)
    if start is not None:
        screen.print(
            f"these molecules have a start that costs nothing: pimlip-zoo train --data {data} --from {start}",
            style="dim",
            highlight=False,
            soft_wrap=True,
        )


def _write(advice: Advice, file: Path) -> None:
    import dataclasses

    from pimlip_zoo.files import write_json

    content = {
        **dataclasses.asdict(advice),
        "advice": advice.sentence,
        "recipe": None if advice.best is None else advice.best.recipe,
        "level": None if advice.best is None else advice.best.level,
    }
    write_json(file, content)
