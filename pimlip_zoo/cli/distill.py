"""``pimlip-zoo distill``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

EXAMPLE = """
Examples:

  pimlip-zoo distill runs/a runs/b runs/c --data train.extxyz --out pool.lmdb

  pimlip-zoo train --data train.extxyz,pool.lmdb --valid valid.extxyz
"""

_USUAL = {"structures": 1500, "temperatures": (300.0, 600.0)}
"""Where other numbers than the options' own are usual here."""


@app.command(epilog=EXAMPLE)
def distill(
    runs: Annotated[list[str], typer.Argument(help="Run folders or checkpoints; their mean labels.")],
    data: Annotated[str, typer.Option(help="Structures to start sampling from, or to label.")],
    out: Annotated[Path, typer.Option(help="The labelled structures, as .lmdb.")],
    sample: Annotated[
        str, typer.Option(help="md, displaced, both, or none: label the structures of --data themselves.")
    ] = "md",
    structures: Annotated[int | None, typer.Option(min=1, help="How many to sample; 1,500.")] = None,
    temperatures: Annotated[str | None, typer.Option(help="K, of the dynamics; 300,600.")] = None,
    amplitudes: Annotated[str | None, typer.Option(help="Å, of displacements; 0.03,0.08.")] = None,
    scale: Annotated[float, typer.Option(help="eV/Å: spread at which a structure counts half.")] = 0.1,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the sampling; 0.")] = None,
) -> None:
    """Label sampled structures with the mean of trained potentials, weighted by their agreement."""
    import numpy as np

    import pimlip_zoo
    from pimlip_zoo.cli.console import console
    from pimlip_zoo.datasets.lmdb import write_store
    from pimlip_zoo.datasets.readers import files_of, load_frames
    from pimlip_zoo.datasets.readers.left_out import say_not_kept
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.outputs import check_not_read
    from pimlip_zoo.training.checkpoint import check_members, check_weights_differ
    from pimlip_zoo.weak_labels.calculators import CheapCalculator
    from pimlip_zoo.weak_labels.ensemble import ensemble_labels
    from pimlip_zoo.weak_labels.pool import PoolOptions, sample_pool

    if sample not in ("md", "displaced", "both", "none"):
        raise InputError(
            f"{sample!r} is no way to sample", key="--sample", hint="md, displaced, both or none"
        )
    given = {
        name: value
        for name, value in (
            ("structures", structures),
            ("temperatures", None if temperatures is None else _numbers("--temperatures", temperatures)),
            ("amplitudes", None if amplitudes is None else _numbers("--amplitudes", amplitudes)),
            ("seed", seed),
        )
        if value is not None
    }
    options = None if sample == "none" else PoolOptions(method=sample, **(_USUAL | given))
    unread = given if options is None else given.keys() & options.unread()
    for name in unread:
        raise InputError(f"has no effect with --sample {sample}", key=f"--{name}", hint="leave it out")
    if out.exists():
        raise InputError("the file is there already", file=out, hint="give another --out")
    check_not_read(out, files_of(data), key="--out")
    check_members(runs)
    potentials = [pimlip_zoo.load(run) for run in runs]
    check_weights_differ(dict(zip(runs, potentials, strict=True)))
    not_kept: set[str] = set()
    frames = load_frames(data, not_kept=not_kept)
    moved = "" if options is None else "every atom moves where structures are sampled"
    say_not_kept(data, not_kept, moved)
    if options is not None:
        level = CheapCalculator("runs", "", lambda: pimlip_zoo.calculator(*runs))
        frames = sample_pool(frames, level, options)
    labelled = ensemble_labels(potentials, frames, scale=scale)
    if out.exists():
        raise InputError("another process wrote the file meanwhile", file=out, hint="give another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_store(out, labelled, meta={"supervisor": " ".join(runs), "scale_eV_per_angstrom": scale})
    spread = np.array([frame.info["force_spread"] for frame in labelled])
    console().print(
        f"{len(labelled)} structures in {out}; spread of forces: median {1e3 * np.median(spread):.1f}, "
        f"largest {1e3 * spread.max():.1f} meV/Å"
    )


def _numbers(option: str, text: str) -> tuple[float, ...]:
    import math

    from pimlip_zoo.errors import InputError

    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{text!r} is no list of numbers", key=option, hint="write 300,600") from error
    if not all(0 < value < math.inf for value in values):
        raise InputError(f"{text!r} has a number that is not positive, or not finite", key=option)
    return values
