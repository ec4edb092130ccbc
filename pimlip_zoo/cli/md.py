"""``pimlip-zoo md``: molecular dynamics with a trained potential, and whether it was stable."""

from __future__ import annotations

import shlex
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pimlip_zoo.cli.options import Ensemble, Level, Precision, Trust, check_ensemble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from pimlip_zoo.deploy.md import MDResult

app = typer.Typer()

EXAMPLE = """
Examples:

  pimlip-zoo md runs/nequip-1 --structure builtin:ethanol-gfn2/test_300K@0 --steps 2000

  pimlip-zoo md runs/mace-1 --structure POSCAR --ensemble npt --temperature 600 --pressure 1GPa --timestep 2

  pimlip-zoo md runs/a runs/b runs/c --structure start.xyz     (a committee: the mean, its spread in the log)

The folder gets trajectory.extxyz, log.csv, final.extxyz and result.json; go on with
--structure FOLDER/final.extxyz --keep-velocities. Exit code 1: the simulation was not stable.
"""


@app.command("md", epilog=EXAMPLE)
def md_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders or checkpoints.")],
    structure: Annotated[
        str,
        typer.Option(metavar="FILE[@INDEX]", help="Any file that ASE reads, or builtin:NAME/SPLIT@INDEX."),
    ],
    ensemble: Annotated[
        Ensemble, typer.Option(help="nve: velocity Verlet; nvt: Langevin; npt: Martyna-Tobias-Klein.")
    ] = Ensemble.nvt,
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
    steps: Annotated[int, typer.Option(help="How many.")] = 1000,
    timestep: Annotated[float, typer.Option(help="fs.")] = 0.5,
    pressure: Annotated[
        str | None, typer.Option(help="GPa, or with its unit as in 1bar, for npt; 0 if not given.")
    ] = None,
    friction: Annotated[float | None, typer.Option(help="1/fs, for nvt; 0.01 if not given.")] = None,
    interval: Annotated[int, typer.Option(help="Steps between frames and lines of the log.")] = 10,
    seed: Annotated[int, typer.Option(help="Of velocities and thermostat.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; RUN/md-k if not given.")] = None,
    keep_velocities: Annotated[
        bool, typer.Option("--keep-velocities", help="Start with the velocities in the file.")
    ] = False,
    reactive: Annotated[bool, typer.Option("--reactive", help="Bonds may break.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[Precision | None, typer.Option(help="As trained if not given.")] = None,
    level: Level = None,
    stop_at_uncertainty: Annotated[
        float | None,
        typer.Option(help="eV/Å: stop where a force is less certain; stopped.extxyz keeps the structure."),
    ] = None,
    collect: Annotated[
        float | None,
        typer.Option(help="eV/Å: keep structures in which a force is less certain, in collected.extxyz."),
    ] = None,
    trust: Trust = False,
) -> None:
    """Simulate, watch bonds, energy and temperature, and say whether it was stable."""
    from pimlip_zoo.cli.console import console
    from pimlip_zoo.cli.signals import collected_signals
    from pimlip_zoo.deploy.md import MDSettings, run_md
    from pimlip_zoo.deploy.stability import StabilityLimits
    from pimlip_zoo.deploy.structure import holds_several, read_structure
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.written import parse_pressure, pressure_in_both

    check_ensemble(ensemble.value, {"--pressure": (pressure, "npt"), "--friction": (friction, "nvt")})
    settings = MDSettings(
        ensemble=ensemble.value,
        temperature=temperature,
        steps=steps,
        timestep=timestep,
        pressure=0.0 if pressure is None else parse_pressure(pressure, "GPa"),
        friction=0.01 if friction is None else friction,
        seed=seed,
        interval=interval,
        keep_velocities=keep_velocities,
    )
    atoms = read_structure(structure)
    if holds_several(structure):
        console().print(
            f"from the last structure of {structure} ({structure}@0 is the first)", soft_wrap=True
        )
    drawn = atoms.has("momenta") and not keep_velocities
    atoms.calc = _calculator(runs, device, dtype, level, trust=trust)
    _check_elements(atoms, structure)
    uncertainty = None
    if stop_at_uncertainty is not None or collect is not None:
        if level is not None:
            raise InputError(
                "the uncertainty is that of the reference level",
                key="--level",
                hint="leave out one of the two",
            )
        from pimlip_zoo.run_posterior import uncertainty_function

        uncertainty = uncertainty_function(runs, atoms.calc, trust=trust)
    screen = console()
    under = f" and {pressure_in_both(settings.pressure, 'GPa')}" if ensemble is Ensemble.npt else ""
    screen.print(
        f"{atoms.get_chemical_formula()}, {len(atoms)} atoms, {ensemble.value.upper()} at {temperature:g} K{under}, "
        f"{steps:,} steps of {timestep:g} fs"
    )
    if drawn:
        screen.print("velocities are drawn anew; --keep-velocities starts with those in the file")
    limits = StabilityLimits(bond_stretch=None) if reactive else StabilityLimits()
    start = time.perf_counter()
    with (
        _folder(out, runs[0]) as folder,
        collected_signals() as signals,
        _progress(steps, screen) as progress,
    ):
        watch = None
        if uncertainty is not None:
            from pimlip_zoo.labelling.watch import UncertaintyWatch

            watch = UncertaintyWatch(uncertainty, folder, stop=stop_at_uncertainty, collect=collect)
        result = run_md(
            *(atoms, settings, folder),
            limits=limits,
            progress=progress,
            stop=lambda: bool(signals),
            watch=watch,
        )
    _report(result, time.perf_counter() - start, folder, screen)
    if watch is not None:
        screen.print(watch.summary(), soft_wrap=True)
    if result.interrupted:
        final = shlex.quote(str(folder / "final.extxyz"))
        screen.print(f"go on with: --structure {final} --keep-velocities", soft_wrap=True)
        raise typer.Exit(128 + signals[0])
    if not result.stable:
        raise typer.Exit(1)


def _calculator(
    runs: list[Path], device: str, dtype: Precision | None, level: str | None, *, trust: bool
) -> Calculator:
    import torch

    import pimlip_zoo
    from pimlip_zoo.deploy.ase import check_device

    check_device(device, key="--device")
    options = {"dtype": getattr(torch, dtype.value)} if dtype is not None else {}
    if level is not None:
        options["level"] = level
    return pimlip_zoo.calculator(*runs, device=device, trust=trust, **options)


def _check_elements(atoms: Atoms, structure: str) -> None:
    """Refuse a structure with elements that the model does not know, before anything is said or written."""
    from ase.data import chemical_symbols

    from pimlip_zoo.deploy.properties import common_numbers
    from pimlip_zoo.errors import InputError

    known = common_numbers([atoms.calc])
    unknown = set(atoms.numbers.tolist()) - known if known is not None else set()
    if known is not None and unknown:
        lacks, has = (", ".join(chemical_symbols[z] for z in sorted(these)) for these in (unknown, known))
        raise InputError(f"the model does not know {lacks}", file=structure, hint=f"it was trained on {has}")


@contextmanager
def _folder(out: Path | None, run: Path) -> Iterator[Path]:
    """The one that was named, or a new one beside the run, which goes away again when nothing came into it."""
    from pimlip_zoo.locks import numbered_folder

    if out is not None:
        yield out
        return
    with numbered_folder(run if run.is_dir() else run.parent, "md") as folder:
        yield folder


def _report(result: MDResult, seconds: float, out: Path, screen: Any) -> None:
    screen.print(f"[bold {'green' if result.stable else 'red'}]{result.verdict}[/]")
    speed = result.steps / seconds if seconds > 0 else 0.0
    per_day = result.time_fs * 1e-6 / seconds * 86400 if seconds > 0 else 0.0
    screen.print(
        f"mean temperature {result.mean_temperature:.0f} K; {speed:.1f} steps/s, {per_day:.2f} ns/day; "
        f"trajectory and log in {out}"
    )


@contextmanager
def _progress(steps: int, screen: Any) -> Iterator[Callable[[dict[str, float]], None]]:
    """A bar on a terminal, else a line for each tenth; what is yielded takes the lines of the log."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    last_tenth = -1

    def show(row: dict[str, float]) -> None:
        nonlocal last_tenth
        step = int(row["step"])
        text = f"{row['temperature_K']:.0f} K, total energy {row['total_energy_eV']:.4f} eV"
        bar.update(task, completed=step, description=text)
        tenth = 10 * step // max(steps, 1)
        if not screen.is_terminal and tenth > last_tenth:
            last_tenth = tenth
            screen.print(f"step {step:,} of {steps:,}: {text}")

    columns = (
        TextColumn("step {task.completed:,}"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as bar:
        task = bar.add_task("", total=max(steps, 1))
        yield show
