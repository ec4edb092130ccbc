"""``pimlip-zoo export``: a trained potential as one file for LAMMPS and other programs."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated

import typer

from pimlip_zoo.cli.options import Level, Precision
from pimlip_zoo.errors import InputError
from pimlip_zoo.outputs import EXPORTED, check_not_read, check_output

if TYPE_CHECKING:
    import torch

    from pimlip_zoo.deploy.native.uncertainty import Directions
    from pimlip_zoo.deploy.torchscript import ExportReport
    from pimlip_zoo.models.potential import Potential

app = typer.Typer()


class ExportFormat(str, Enum):
    """What kind of file."""

    torchscript = "torchscript"
    aot = "aot"
    native = "native"
    checkpoint = "checkpoint"
    mliap = "mliap"


_SUFFIX = {
    ExportFormat.torchscript: ".nequip.pth",
    ExportFormat.aot: ".pimlip.pt2",
    ExportFormat.native: ".pimlip",
    ExportFormat.checkpoint: ".ckpt",
    ExportFormat.mliap: ".mliap.pkl",
}


_WRITERS = {
    ExportFormat.torchscript: "pimlip_zoo.deploy.torchscript:export_torchscript",
    ExportFormat.aot: "pimlip_zoo.deploy.aot:export_aot",
    ExportFormat.native: "pimlip_zoo.deploy.native.export:export_native",
    ExportFormat.mliap: "pimlip_zoo.deploy.mliap:export_mliap",
}


@app.command("export", epilog="Example: pimlip-zoo export runs/nequip-1 -o ethanol.nequip.pth")
def export_command(
    run: Annotated[Path, typer.Argument(help="A run folder or a checkpoint.")],
    format: Annotated[  # noqa: A002
        ExportFormat,
        typer.Option(
            help="torchscript: for pair_style pimlip, nequip and allegro, and for nequip's ASE calculator and "
            "torch-sim model; aot: compiled for this version of torch and this kind of machine, for pair_style pimlip "
            "alone; native: C and weights, compiled where it is used, for ASE and pair_style pimlip "
            "without torch; checkpoint: for Python, without the state of the training; mliap: a pickle for LAMMPS' "
            "own pair_style mliap, strictly local models only. All but a checkpoint are programs: whoever loads "
            "the file runs it."
        ),
    ] = ExportFormat.torchscript,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", "--output", help="The file; beside the run by default.")
    ] = None,
    dtype: Annotated[
        Precision | None, typer.Option(help="Precision inside; as trained if not given.")
    ] = None,
    table: Annotated[
        float | None,
        typer.Option(
            metavar="ERROR",
            help="native only: look radial networks up in tables, which is faster; ERROR is how far energies of "
            "atoms (eV) and forces (eV/Å) may be off, 1e-4, say.",
        ),
    ] = None,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty",
            help="native only: the file says how certain the forces are, in ASE and in LAMMPS (fix pair).",
        ),
    ] = False,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="With --uncertainty: call the function that the run names as its cheap calculator.",
        ),
    ] = False,
    charge: Annotated[
        int | None, typer.Option(help="Of a model with model.embed_charge: that of the systems in the run.")
    ] = None,
    multiplicity: Annotated[int | None, typer.Option(help="2S + 1, beside --charge.")] = None,
    level: Level = None,
) -> None:
    """Write a trained potential as one file; it is read back and compared before it gets its name."""
    import json

    from rich.console import Console

    from pimlip_zoo.training.checkpoint import load_potential

    if level is not None and uncertainty:
        raise InputError(
            "the uncertainty is that of the reference level", key="--level", hint="leave out one of the two"
        )
    potential = _of_electrons(load_potential(run, level=level), charge, multiplicity, format)
    target = output or _default_output(run, format, level)
    _check_ending(target, format)
    report = export_potential(
        potential,
        target,
        format=format,
        dtype=dtype.value if dtype else None,
        source=run,
        level=level,
        table=table,
        uncertainty=_directions(run, format, trust=trust) if uncertainty else None,
    )
    console = Console(highlight=False, soft_wrap=True)
    size = report.path.stat().st_size / 1e6
    of = "what was tabulated" if "radial_table" in report.metadata else "the potential"
    console.print(
        f"wrote {report.path} ({size:.1f} MB, {report.seconds:.1f} s); agrees with {of} "
        f"to {report.deviation:.0e} (relative)"
    )
    if "radial_table" in report.metadata:
        said = json.loads(report.metadata["radial_table"])
        console.print(
            f"tables of {said['intervals']} intervals: off by at most {said['energy_error_eV']:.0e} eV (energy of an "
            f"atom) and {said['force_error_eV_per_A']:.0e} eV/Å (force) on the structures of the check"
        )
    if "uncertainty" in report.metadata:
        times = int(report.metadata["uncertainty"].split()[0]) + 2
        console.print(f"with uncertainty: a step that asks for it costs as {times} others")
    names = report.metadata.get("type_names", "")
    if format is ExportFormat.mliap:
        console.print(
            f"in LAMMPS: pair_style mliap unified {report.path.name}\n           pair_coeff * * {names}"
        )
    elif format is not ExportFormat.checkpoint:
        console.print(f"in LAMMPS: pair_style pimlip\n           pair_coeff * * {report.path.name} {names}")
    if format is not ExportFormat.checkpoint:
        console.print(
            "the file is a program: whoever loads it runs it, so load only files of people whom you trust"
        )


def _check_ending(target: Path, format: ExportFormat) -> None:  # noqa: A002
    """Refuse a name by which neither LAMMPS nor ``lammps input`` knows the file: they go by its ending."""
    from pimlip_zoo.deploy.native.archive import SUFFIX

    if target.name.lower().endswith(".nequip.pt2") or target.is_dir():
        return  # refused with more words where the file is written
    wanted = {
        ExportFormat.torchscript: (".pth", f"{target.stem}.nequip.pth"),
        ExportFormat.native: (SUFFIX, f"{target.stem}{SUFFIX}"),
        ExportFormat.checkpoint: (".ckpt", f"{target.stem}.ckpt"),
    }
    ending, name = wanted.get(format, (target.suffix, ""))
    if target.suffix != ending:
        raise InputError(
            f"a {format.value} model ends in {ending}", file=target, key="-o", hint=f"give {name}"
        )


def _of_electrons(
    potential: Potential,
    charge: int | None,
    multiplicity: int | None,
    format: ExportFormat,  # noqa: A002
) -> Potential:
    """The potential for the charge and multiplicity that are given, both or neither."""
    if charge is None and multiplicity is None:
        return potential
    if format is ExportFormat.checkpoint:
        raise InputError("a checkpoint keeps every charge", key="--charge", hint="leave it out")
    if charge is None or multiplicity is None:
        missing = "--charge" if charge is None else "--multiplicity"
        raise InputError("is missing", key=missing, hint="give both: one file is for one of each")
    return potential.with_electrons(charge, multiplicity)


def _directions(run: Path, format: ExportFormat, *, trust: bool) -> Directions:  # noqa: A002
    """The posterior of a run, fitted now if it is not there."""
    from pimlip_zoo.deploy.native.uncertainty import Directions
    from pimlip_zoo.run_posterior import posterior_of

    if format is not ExportFormat.native:
        raise InputError(
            f"a {format.value} file has no uncertainty",
            key="--uncertainty",
            hint="add --format native, or leave it out",
        )
    posterior = posterior_of(run, trust=trust)
    found = posterior.forces
    return Directions(posterior.directions(), found.factor, found.exponent, found.quantile, found.shared)


def export_potential(
    potential: Potential,
    target: Path,
    *,
    format: ExportFormat,  # noqa: A002
    dtype: str | None = None,
    source: Path | None = None,
    level: str | None = None,
    table: float | None = None,
    uncertainty: Directions | None = None,
) -> ExportReport:
    """Export in one of the formats.

    Args:
        potential: with its best weights.
        target: the file.
        format: of the file.
        dtype: float32 or float64; the potential's by default.
        source: the run, for the file's metadata.
        level: of theory, likewise.
        table: of a native model, the error that tables may make, in eV and eV/Å.
        uncertainty: of a native model, the posterior of its last layer.

    Raises:
        InputError: when the potential or an option does not go with the format, or the file is a checkpoint of a run.
    """
    import torch

    from pimlip_zoo.registry import available_models

    # An exported file has neither the state of the training nor, in other formats, weights to train on.
    check_output(target, EXPORTED, key="-o")
    check_not_read(target, [source] if source is not None else [], key="-o")
    if target.name.lower().endswith(".nequip.pt2") and format is not ExportFormat.aot:  # which says more
        raise InputError(
            "the ending is that of files of nequip-compile", file=target, key="-o", hint="give another one"
        )

    if table is not None and format is not ExportFormat.native:
        raise InputError(
            f"a {format.value} file has no tables", key="--table", hint="add --format native, or leave it out"
        )
    wanted = None if dtype is None else getattr(torch, dtype)
    names = [name for name, info in available_models().items() if info.model is type(potential.model)]
    name = names[0] if names else type(potential.model).__name__
    training: dict[str, object] = {"run": str(source.resolve())} if source is not None else {}
    if level is not None:
        training["level"] = level
    if target.suffix == ".ckpt" and format is ExportFormat.native:
        raise InputError(
            "a native model is no checkpoint",
            file=target,
            hint="end the name in .pimlip, or use --format checkpoint",
        )
    if format is ExportFormat.checkpoint:
        return _export_checkpoint(potential, target, dtype=wanted)
    options = {"table": table, "uncertainty": uncertainty} if format is ExportFormat.native else {}
    export: Callable[..., ExportReport] = resolve_name(_WRITERS[format])
    return export(potential, target, name=name, dtype=wanted, training=training, **options)


def _export_checkpoint(potential: Potential, target: Path, *, dtype: torch.dtype | None) -> ExportReport:
    """The checkpoint that ``load_potential`` reads, with the weights alone."""
    import time

    import torch

    from pimlip_zoo.deploy.torchscript import ExportReport, prepared
    from pimlip_zoo.files import replacing
    from pimlip_zoo.training.checkpoint import load_potential, save_potential

    started = time.perf_counter()
    ready = prepared(potential, dtype, electrons=True)
    with replacing(target) as scratch:
        save_potential(ready, scratch)
        again = load_potential(scratch).state_dict()
        if not all(torch.equal(value, again[name]) for name, value in ready.state_dict().items()):
            raise InputError("the weights did not survive writing", file=target)
    return ExportReport(target, time.perf_counter() - started, 0.0, {})


def _default_output(run: Path, format: ExportFormat, level: str | None = None) -> Path:  # noqa: A002
    if not run.exists():
        raise InputError("there is no such run", file=run)
    stem = run.resolve().name if run.is_dir() else run.stem
    stem = stem if level is None else f"{stem}-{level}"
    return (run if run.is_dir() else run.parent) / f"{stem}{_SUFFIX[format]}"
