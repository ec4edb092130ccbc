"""How commands speak: a rich console, numbers in meV, a log file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pimlip_zoo.written import milli

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A rich console; colours only on terminals. A quiet one prints nothing."""
    from rich.console import Console

    screen = Console(stderr=stderr, highlight=False, quiet=quiet)
    return screen if screen.is_terminal else Console(stderr=stderr, highlight=False, quiet=quiet, width=120)


def say(screen: Console, what: Any) -> None:
    """Print on the screen and write into the log what can be printed.

    Args:
        screen: where to print.
        what: text with rich's marks, a table, a panel.
    """
    from io import StringIO

    from rich.console import Console

    screen.print(what)
    plain = Console(file=StringIO(), width=120, highlight=False, color_system=None)
    plain.print(what)
    text = "\n".join(line.rstrip() for line in plain.file.getvalue().splitlines())  # type: ignore[attr-defined]
    logging.getLogger("pimlip_zoo").info("%s", text, extra={"on_screen": True})


def log_to_screen(*, quiet: bool = False) -> None:
    """Send messages to the terminal; :func:`log_to` writes them down, those from before included.

    Args:
        quiet: errors only, for the ranks of a run that repeat what the first one says.
    """
    import sys
    from logging.handlers import MemoryHandler

    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.*")
    log = logging.getLogger("pimlip_zoo")
    log.setLevel(logging.ERROR if quiet else logging.INFO)
    log.handlers.clear()
    screen = logging.StreamHandler(sys.stdout)
    screen.setFormatter(_Plain())
    screen.addFilter(lambda record: not getattr(record, "on_screen", False))
    log.addHandler(screen)
    log.addHandler(MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1))


def log_to(folder: Path) -> None:
    """Make a run folder and keep its ``log.txt`` from now on, with what was said since :func:`log_to_screen`."""
    from logging.handlers import MemoryHandler

    from pimlip_zoo.files import check_no_link, regular_file, writing

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "log.txt"
    check_no_link(path)
    if path.exists():
        regular_file(path)
    with writing(path):
        file = logging.FileHandler(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # A full disk ends the run at its checkpoint, in one line; the log need not say so in twenty.
    file.handleError = lambda record: None  # type: ignore[method-assign]  # noqa: ARG005
    log = logging.getLogger("pimlip_zoo")
    for handler in list(log.handlers):
        if isinstance(handler, MemoryHandler):
            handler.setTarget(file)
            handler.close()
            log.removeHandler(handler)
    log.addHandler(file)


class _Plain(logging.Formatter):
    """The message alone; warnings say that they are."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"warning: {text}" if record.levelno >= logging.WARNING else text


def plain_table(
    *columns: str,
    rows: Iterable[Iterable[str]] = (),
    left: Collection[str] | None = None,
    title: str | None = None,
) -> Table:
    """A table without lines.

    Args:
        columns: their heads.
        rows: a cell for each.
        left: columns of words, where the others are of numbers; None: all are of words.
        title: stands above.
    """
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(
            column, justify="left" if left is None or column in left else "right", overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    return table


def errors_table(rows: Mapping[str, Mapping[str, Any]], title: str | None = None) -> Table:
    """Errors of several data sets, in meV and meV/Å, as ``ErrorStatistics.summary`` gives them."""
    table = plain_table(title=title)
    table.add_column("data", overflow="fold")
    table.add_column("structures", justify="right", no_wrap=True)
    for column in ("energy MAE", "RMSE [dim]meV/atom[/dim]", "forces MAE", "RMSE [dim]meV/Å[/dim]"):
        table.add_column(column, justify="right", no_wrap=True)
    stress = any(summary.get("stress") for summary in rows.values())
    if stress:
        for column in ("stress MAE", "RMSE [dim]meV/Å³[/dim]"):
            table.add_column(column, justify="right")
    quantities = ["energy_per_atom", "forces", *(["stress"] if stress else [])]
    for name, summary in rows.items():
        cells = []
        for quantity in quantities:
            errors = summary.get(quantity)
            cells += [milli(errors[kind]) if errors else "-" for kind in ("mae", "rmse")]
        table.add_row(name, str(summary["n_structures"]), *cells)
    return table
