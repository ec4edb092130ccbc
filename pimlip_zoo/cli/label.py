"""``pimlip-zoo label``: reference labels from a calculator."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pimlip_zoo.labelling.label import Labelling
    from pimlip_zoo.labelling.processes import Outcome

app = typer.Typer()

_FEW = 20
"""Structures of which each has a line where there is no terminal."""
_LINE_AFTER = 60.0
"""Seconds after which there is a line in any case."""

EXAMPLE = """
Examples:

  pimlip-zoo label chosen.extxyz --calculator pyscf:PBE/def2-svp -o labels.lmdb

  pimlip-zoo label chosen.extxyz --calculator my_orca:make -o labels.extxyz --workers 4 --time-limit 2h --memory 8GB

  pimlip-zoo label chosen.extxyz --calculator my_vasp:make --write-inputs jobs     (for a cluster)

  pimlip-zoo label chosen.extxyz --calculator my_vasp:make --read-outputs jobs -o labels.lmdb

Run it again after an interruption: what is there is not computed twice. Exit code 1: some structures have no label.
"""


@app.command("label", epilog=EXAMPLE)
def label_command(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Structures; keys charge and multiplicity are passed on.")
    ],
    calculator: Annotated[
        str,
        typer.Option(
            help="gfn2, gfn1, emt, pyscf:METHOD/BASIS, or MODULE:FACTORY of an ASE calculator.",
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="labels.lmdb or labels.extxyz.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Calculations at a time; 1.")] = None,
    time_limit: Annotated[
        str | None, typer.Option(help="Of one calculation: 90s, 30m, 2h; none if not given.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Of one calculation: 500MB, 8GB; none if not given.")
    ] = None,
    level: Annotated[
        str | None, typer.Option(help="Level of theory to record; the calculator's name for it if not given.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Compute again what failed.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    compare: Annotated[
        bool | None,
        typer.Option(
            help="Check by two more calculations that forces belong to energies; by default for MODULE:FACTORY."
        ),
    ] = None,
    write_inputs: Annotated[
        Path | None, typer.Option(help="Compute nothing: a folder for each structure, and a SLURM script.")
    ] = None,
    read_outputs: Annotated[
        Path | None, typer.Option(help="Collect what was computed in that folder.")
    ] = None,
    output_file: Annotated[
        str | None,
        typer.Option(help="With --read-outputs: the program's own output in each folder, such as OUTCAR."),
    ] = None,
) -> None:
    """Compute energies, forces and stress of structures with any ASE calculator."""
    from pimlip_zoo.cli.console import console
    from pimlip_zoo.cli.refusal import refuse
    from pimlip_zoo.datasets.readers import files_of
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.labelling.label import failures_path
    from pimlip_zoo.labelling.structures import load_structures
    from pimlip_zoo.outputs import check_not_read

    of_calculations: dict[str, object] = {
        "--workers": workers,
        "--retry": retry,
        "--compare": compare is not None,
    }
    limits: dict[str, object] = {"--time-limit": time_limit, "--memory": memory}
    if write_inputs is not None:
        of_files: dict[str, object] = {
            "--level": level,
            "--overwrite": overwrite,
            "--output-file": output_file,
        }
        refuse(
            "goes without --write-inputs: nothing is computed or collected there",
            "leave it out",
            of_calculations | of_files,
        )
    elif read_outputs is not None:
        refuse(
            "goes without --read-outputs: nothing is computed there", "leave it out", of_calculations | limits
        )
    else:
        refuse("is of --read-outputs", "leave it out", {"--output-file": output_file})
    seconds = amount(time_limit, {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "": 1.0}, "--time-limit")
    megabytes = amount(memory, {"mb": 1.0, "gb": 1000.0, "": 1.0}, "--memory")
    screen = console()
    if write_inputs is not None:
        from pimlip_zoo.labelling.cluster import write_folders

        if out is not None or read_outputs is not None:
            raise InputError("goes without -o and --read-outputs", key="--write-inputs")
        written = write_folders(
            load_structures(data), write_inputs, calculator, seconds=seconds, memory=megabytes
        )
        screen.print(f"{written.count} folders in {write_inputs}; {written.natively}", soft_wrap=True)
        screen.print(f"then: sbatch {write_inputs}/array.slurm", soft_wrap=True)
        return
    if out is None:
        raise InputError("is missing", key="--out", hint="name the file of labels: -o labels.lmdb")
    for path in (out, failures_path(out)):
        check_not_read(path, files_of(data), key="--out")
    structures = load_structures(data)
    if read_outputs is not None:
        from pimlip_zoo.labelling.cluster import read_folders

        result = read_folders(
            structures,
            read_outputs,
            out,
            calculator,
            level=level,
            output_file=output_file,
            overwrite=overwrite,
        )
    else:
        from pimlip_zoo.labelling.label import label
        from pimlip_zoo.labelling.processes import Limits

        try:
            with _progress(screen) as progress:
                result = label(
                    structures,
                    out,
                    calculator,
                    workers=workers or 1,
                    limits=Limits(seconds=seconds, memory=megabytes),
                    level=level,
                    retry=retry,
                    overwrite=overwrite,
                    compare=compare,
                    progress=progress,
                )
        except KeyboardInterrupt:
            screen.print(
                f"stopped; the labels so far are kept beside {out}: the same command goes on with them",
                soft_wrap=True,
            )
            raise typer.Exit(130) from None
    _report(result, len(structures), screen, computes=read_outputs is None)
    if result.failures:
        raise typer.Exit(1)


_MOST = 1e12


def amount(text: str | None, units: dict[str, float], key: str) -> float | None:
    """A number with a unit.

    >>> amount("2h", {"h": 3600.0}, "--time-limit")
    7200.0
    """
    import re

    from pimlip_zoo.errors import InputError

    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in units or not 0 < float(match[1]) < _MOST:
        known = ", ".join(unit for unit in units if unit)
        raise InputError(f"{text!r} is no amount", key=key, hint=f"a number with one of {known}")
    return float(match[1]) * units[match[2].lower()]


def _report(result: Labelling, total: int, screen: Any, *, computes: bool) -> None:
    there = total - result.computed
    before = f" ({there} were there)" if there > 0 and result.computed < total else ""
    screen.print(
        f"{result.labelled} of {total} structures labelled{before}"
        + (f": {result.out}" if result.out else ""),
        soft_wrap=True,
    )
    if not result.failures:
        return
    for reason, count in Counter(failure.reason for failure in result.failures).most_common(10):
        first = next(failure.place for failure in result.failures if failure.reason == reason)
        screen.print(f"[red]without a label:[/red] {count}: {reason} (first: {first})", soft_wrap=True)
    again = "; --retry computes them again" if computes else ""
    screen.print(f"they are in {result.failed_file}{again}", soft_wrap=True)


@contextmanager
def _progress(screen: Any) -> Iterator[Callable[[Outcome, int, int], None]]:
    """A bar on a terminal, else lines: for each of a few structures, for each tenth of many, and every minute."""
    import time

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from pimlip_zoo.weak_labels.pool_work import told_duration

    begun: float | None = None
    told, next_line = -1, time.monotonic() + _LINE_AFTER

    def show(outcome: Outcome, done: int, total: int) -> None:
        nonlocal begun, told, next_line
        bar.update(task, completed=done, total=total)
        tenth, now = 10 * done // max(total, 1), time.monotonic()
        begun = now - outcome.seconds if begun is None else begun  # what was set up before is over
        if screen.is_terminal or (total > _FEW and tenth == told and now < next_line):
            return
        told, next_line = tenth, now + _LINE_AFTER
        how = "failed" if outcome.result is None else f"{outcome.seconds:.1f} s"
        left = f", {told_duration((now - begun) / done * (total - done))} left" if done < total else ""
        screen.print(f"{done} of {total} ({how}){left}")

    columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield show
