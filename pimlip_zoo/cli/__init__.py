"""The command line: ``pimlip-zoo COMMAND``. Commands are imported when they are used."""

from __future__ import annotations

import errno
import functools
import importlib
import importlib.util
import logging
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from pimlip_zoo import __version__
from pimlip_zoo.errors import InputError

__all__ = ["app", "main"]

COMMANDS = {
    "train": "pimlip_zoo.cli.train",
    "eval": "pimlip_zoo.cli.eval",
    "data": "pimlip_zoo.cli.data",
    "models": "pimlip_zoo.cli.models",
    "select": "pimlip_zoo.cli.select",
    "label": "pimlip_zoo.cli.label",
    "rounds": "pimlip_zoo.cli.rounds",
    "export": "pimlip_zoo.cli.export",
    "lammps": "pimlip_zoo.cli.lammps",
    "md": "pimlip_zoo.cli.md",
    "import": "pimlip_zoo.cli.import_",
    "curve": "pimlip_zoo.cli.curve",
    "weak": "pimlip_zoo.cli.weak",
    "distill": "pimlip_zoo.cli.distill",
    "report": "pimlip_zoo.cli.report",
    "doctor": "pimlip_zoo.cli.doctor",
}
"""Where each command lives: a module with a typer app called ``app``, light to import."""


class LazyGroup(TyperGroup):
    """Finds commands in :data:`COMMANDS` and imports them when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """In the order of a user's way."""
        return [name for name, module in COMMANDS.items() if importlib.util.find_spec(module) is not None]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, or None (then the parser names the nearest)."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = typer.main.get_command(importlib.import_module(COMMANDS[cmd_name]).app)
        command.name = cmd_name
        command.params = [
            p for p in command.params if p.name not in ("install_completion", "show_completion")
        ]
        _bound(command)
        return command


_MOST = 2**63
"""Whole numbers that are larger in size have no place in arrays and files."""


def _bound(command: Any) -> None:
    """Refuse such numbers, before a command has them."""
    for inner in getattr(command, "commands", {}).values():
        _bound(inner)
    if command.callback is None:
        return

    @functools.wraps(command.callback)
    def bounded(*args: Any, __callback: Any = command.callback, **values: Any) -> Any:
        for name, value in values.items():
            for number in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(number, int) and not -_MOST < number < _MOST:
                    raise InputError(f"{str(number)[:30]} is too large", key=f"--{name.replace('_', '-')}")
        return __callback(*args, **values)

    command.callback = bounded


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"pimlip-zoo {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Equivariant interatomic potentials that learn from physics where labels are sparse.

    Start with [bold]pimlip-zoo train --model nequip[/bold]: it needs no data of yours.
    """


_ROOM, _PLACE = "make room and run it again", "name a place where you may write, or change its permissions"
_MENDS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "keep it on a file system that takes larger files",
    errno.EROFS: _PLACE,
    errno.EACCES: _PLACE,
    errno.EPERM: _PLACE,
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "a part of its path is a file: name another",
    errno.ENAMETOOLONG: "name it shorter",
    errno.ENOENT: "it, or its folder, is not there, or not any more",
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "this machine has too many open files: close some",
}
"""What the system refuses and the user can mend."""


def main() -> None:
    """Run the command line; exit codes: 0 done, 2 the user's mistake, 1 anything else."""
    if logging.lastResort is not None:  # of commands that set up no log
        logging.lastResort.setFormatter(logging.Formatter("warning: %(message)s"))
    try:
        app()
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno in _MENDS:
            where = error.filename2 or error.filename or "a file"
            _fail(f"{where}: {error.strerror} ({_MENDS[error.errno]})")
        raise


def _fail(message: str) -> None:
    sys.stdout.flush()
    typer.secho(f"pimlip-zoo: {' '.join(message.split())}", fg="red", err=True)
    sys.exit(2)
