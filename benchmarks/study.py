"""The command line of a study: trainings that are repeated over sets and seeds, and tables of their results."""

import argparse
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Command = Callable[[argparse.Namespace], int]


def parsers(
    name: str, description: str | None, *, sets: str, steps: int, run: Command, show: Command, docs: Command
) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Of the commands ``run``, ``show`` and ``docs``, and of ``run``, to which a study adds options of its own.

    Args:
        name: of the study.
        description: what it is for.
        sets: default of --sets.
        steps: default of --steps.
        run: trains what is not there yet.
        show: prints what is there.
        docs: writes it into the documentation.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("run", help="train what is not there yet")
    training.add_argument("--root", default="", help="folder of the data sets; not needed for cual")
    training.add_argument("--sets", default=sets)
    training.add_argument("--seeds", default="0,1,2")
    training.add_argument("--steps", type=int, default=steps)
    training.add_argument(
        "--minutes", type=float, default=1e6, help="begin nothing after that; call it again"
    )
    training.add_argument("--runs", type=Path, default=ROOT / "runs" / name)
    training.set_defaults(function=run)
    commands.add_parser("show", help="print what is there").set_defaults(function=show)
    commands.add_parser("docs", help="write the tables of the documentation").set_defaults(function=docs)
    return parser, training
