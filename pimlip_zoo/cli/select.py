"""``pimlip-zoo select``: which structures to label next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pimlip_zoo.datasets.frame import Frame
    from pimlip_zoo.labelling.select import Selection

app = typer.Typer()

_MOST_REASONS = 20

EXAMPLE = """
Examples:

  pimlip-zoo select pool.extxyz -n 50 -o first.extxyz                       (a first batch: no model is needed)

  pimlip-zoo select pool.extxyz --run runs/mace-1 -n 20 -o next.extxyz      (what this run does not know yet)

Then: pimlip-zoo label next.extxyz --calculator ... -o labels.lmdb. Names of acquisitions: --acquisition list.
"""


@app.command("select", epilog=EXAMPLE)
def select_command(
    pool: Annotated[
        str, typer.Argument(metavar="POOL", help="Structures to choose from; labels are not needed.")
    ],
    number: Annotated[int, typer.Option("--number", "-n", help="How many.")] = 20,
    out: Annotated[Path, typer.Option("--out", "-o", help="The chosen structures.")] = Path("chosen.extxyz"),
    run: Annotated[
        Path | None, typer.Option(help="Run folder: chosen is what it does not know; its data are known.")
    ] = None,
    acquisition: Annotated[
        str | None,
        typer.Option(
            help="How: with a run variance; without, cluster for one molecule, else coverage; or list."
        ),
    ] = None,
    known: Annotated[str | None, typer.Option(help="Structures that are labelled already.")] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Run or imported model whose features tell structures apart; random ones if not given."
        ),
    ] = None,
    cheap: Annotated[
        str | None, typer.Option(help="Cheap calculator, for the acquisition `difference`: gfn2, ...")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random choices.")] = 0,
    max_force: Annotated[
        float, typer.Option(help="eV/Å: structures with a larger force are left out.")
    ] = 50.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Choose from a pool the structures that are worth the next labels."""
    from pimlip_zoo.cli.console import console
    from pimlip_zoo.datasets.readers import files_of, load_frames
    from pimlip_zoo.datasets.readers.left_out import say_not_kept
    from pimlip_zoo.datasets.writing import write_frames
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.files import writing
    from pimlip_zoo.labelling.acquisition import ACQUISITIONS, check_used, usual_acquisition
    from pimlip_zoo.labelling.select import select
    from pimlip_zoo.locks import in_turn, making

    screen = console()
    if acquisition == "list":
        for name, way in ACQUISITIONS.all().items():
            need = " (needs --run)" if way.needs_run else ""
            screen.print(f"[bold]{name}[/bold]{need}: {way.description}", soft_wrap=True)
        return
    if out.suffix not in (".extxyz", ".xyz", ".lmdb"):
        raise InputError("is no format for structures", file=out, hint="name it .extxyz, .xyz or .lmdb")
    if out.exists() and not overwrite:
        raise InputError("is there already", file=out, hint="name another file, or give --overwrite")
    from pimlip_zoo.outputs import ANY, STORE, check_not_read, check_output

    check_output(out, STORE if out.suffix == ".lmdb" else ANY, key="--out")
    check_not_read(out, [*files_of(pool), *files_of(known), *_files_of_run(run)], key="--out")
    if acquisition is not None:
        ACQUISITIONS.get(acquisition, key="--acquisition")
    not_kept: set[str] = set()
    frames = load_frames(pool, not_kept=not_kept)
    say_not_kept(pool, not_kept)
    name = acquisition or usual_acquisition(frames, trained=run is not None)
    check_used(name, {"--features": features, "--cheap": cheap})
    labelled = load_frames(known) if known else []
    potential = posterior = None
    if run is not None:
        from pimlip_zoo.training.checkpoint import load_potential

        screen.print(f"looking at {len(frames):,} structures with {run} ...", style="dim", soft_wrap=True)
        potential = load_potential(run, difference=True)
        labelled += _training_structures(run)
        if ACQUISITIONS.get(name).posterior:
            from pimlip_zoo.run_posterior import posterior_of

            posterior = posterior_of(run)
    eyes = None
    if features is not None:
        from pimlip_zoo.training.checkpoint import load_potential

        eyes = load_potential(features, difference=True)
    chosen = select(
        frames,
        number,
        acquisition=name,
        known=labelled,
        potential=potential,
        posterior=posterior,
        eyes=eyes,
        cheap=cheap,
        seed=seed,
        max_force=max_force,
        source=pool,
    )
    with writing(out), making(out.parent), in_turn(out.with_name(f".{out.name}.lock")):
        if out.exists() and not overwrite:  # another process has written it meanwhile
            raise InputError("is there by now", file=out, hint="name another file, or give --overwrite")
        write_frames(out, chosen.frames)
    _report(chosen, len(frames), out, screen)


def _files_of_run(run: Path | None) -> list[Path]:
    """The data of a run folder, as far as they are there."""
    from contextlib import suppress

    from pimlip_zoo.config import load_config
    from pimlip_zoo.datasets.readers import files_of
    from pimlip_zoo.errors import InputError

    found: list[Path] = []
    if run is None or not (run / "config.yaml").exists():
        return found
    data = load_config(run / "config.yaml", complete=True).data
    for spec in (data.train, data.valid, data.test):
        with suppress(InputError):  # said where they are read
            found += files_of(spec)
    return found


def _training_structures(run: Path) -> list[Frame]:
    """Those of a run folder; of a checkpoint alone, none are known."""
    from pimlip_zoo.experiment import split_of_run

    return list(split_of_run(run)[0]) if (run / "config.yaml").exists() else []


def _reasons(chosen: Selection) -> list[str]:
    """Why structures were left out, a line for each reason with some of their numbers."""
    by_reason: dict[str, list[int]] = {}
    for each in chosen.left_out:
        by_reason.setdefault(each.reason, []).append(each.index)
    lines = []
    for reason, indices in list(by_reason.items())[:_MOST_REASONS]:
        if len(indices) == 1:
            lines.append(f"structure {indices[0]}: {reason}")
        else:
            some = ", ".join(map(str, indices[:5])) + (", ..." if len(indices) > 5 else "")
            lines.append(f"{len(indices)} structures: {reason} ({some})")
    further = sum(map(len, list(by_reason.values())[_MOST_REASONS:]))
    return [*lines, f"and {further} more"] if further else lines


def _report(chosen: Selection, total: int, out: Path, screen: Any) -> None:
    import math

    screen.print(f"{len(chosen.frames)} of {total} structures by {chosen.acquisition}: {out}", soft_wrap=True)
    if chosen.left_out:
        screen.print(f"{len(chosen.left_out)} were left out:")
        for line in _reasons(chosen):
            screen.print(f"  {line}", soft_wrap=True)
    gains = [choice.gain for choice in chosen.choices]
    if not chosen.unit or not any(map(math.isfinite, gains)):
        return
    screen.print(
        f"what each is expected to bring ({chosen.unit}); structures count from 0, as in FILE@0:",
        soft_wrap=True,
    )
    for rank, choice in enumerate(chosen.choices):
        if rank == 10 and len(gains) > 11:
            screen.print("  ...")
        if rank < 10 or rank == len(gains) - 1:
            brings = f"{choice.gain:.4g}" if math.isfinite(choice.gain) else "–"
            screen.print(f"  {rank + 1:4d}. structure {choice.index}: {brings}")
