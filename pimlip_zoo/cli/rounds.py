"""``pimlip-zoo rounds``: sample, select, label, train, test, and again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer()

EXAMPLE = """
Example: pimlip-zoo rounds rounds.yaml

with rounds.yaml:

  sample: {start: ethanol.xyz, calculator: gfn2}

  label: {calculator: pyscf:PBE/def2-svp}

  select: {number: 20}

  train: {model: {name: mace}, trainer: {max_steps: 3000}}

  stop: {rounds: 2, forces: 0.03}

Run it again after an interruption: what was done is not done again.
"""


@app.command("rounds", epilog=EXAMPLE)
def rounds_command(
    file: Annotated[Path, typer.Argument(help="What to do, see the page Rounds of the documentation.")],
    plot: Annotated[Path | None, typer.Option(help="Draw error against labels: .png, .pdf, .svg.")] = None,
) -> None:
    """From a structure and a reference code to a potential, in rounds."""
    from pimlip_zoo.cli.console import console, log_to_screen
    from pimlip_zoo.outputs import PICTURE, check_output
    from pimlip_zoo.rounds import REPORT, StoppedError, curve_point, load_rounds, run_rounds

    check_output(plot, PICTURE, key="--plot")
    rounds = load_rounds(file)
    log_to_screen()
    try:
        rows = run_rounds(rounds)
    except StoppedError as stop:
        console().print(f"interrupted; go on with: pimlip-zoo rounds {file}", soft_wrap=True)
        raise typer.Exit(128 + stop.number) from None
    screen = console()
    screen.print(_table(rows))
    screen.print(f"the potential: {rows[-1]['run']}", soft_wrap=True)
    screen.print(f"what was bought and why: {rounds.out / REPORT}", soft_wrap=True)
    if plot is not None:
        from pimlip_zoo.report.curve import curve_plot

        curve_plot([curve_point(row) for row in rows], plot)
        screen.print(f"error against labels: {plot}")


def _table(rows: list[dict[str, Any]]) -> Any:
    from pimlip_zoo.cli.console import plain_table

    lines = []
    for row in rows:
        energy = "-" if row["energy"] is None else f"{1e3 * row['energy']:.2f}"
        forces = "-" if row["forces"] is None else f"{1e3 * row['forces']:.1f}"
        cells = (row["round"], row["acquisition"], row["labels"], row["failures"], energy)
        uncertainty = row.get("uncertainty")
        doubt = "-" if uncertainty is None else f"{1e3 * uncertainty:.1f}"
        lines.append((*map(str, cells), forces, row["test"], doubt))
    columns = (
        *("round", "chosen by", "labels", "failed"),
        *("energy meV/atom", "forces meV/Å", "on", "uncertain by"),
    )
    return plain_table(*columns, rows=lines, left=("chosen by", "on"))
