"""``pimlip-zoo import``: models of other packages as run folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pimlip_zoo.models.potential import Potential

Out = Annotated[
    Path | None, typer.Option("-o", "--out", help="The run folder; runs/ and the model's name by default.")
]

app = typer.Typer(no_args_is_help=True, help="Turn a model of another package into a run folder.")


@app.callback()
def _root() -> None:
    """Turn a model of another package into a run folder, to evaluate, train on and export."""


@app.command("mace", epilog="Example: pimlip-zoo import mace MACE.model -o runs/imported")
def mace_command(
    file: Annotated[Path, typer.Argument(help="A .model file of mace-torch (ScaleShiftMACE).")],
    out: Out = None,
    head: Annotated[str | None, typer.Option(help="Which head, of a model with several.")] = None,
) -> None:
    """Convert a model of mace-torch; energies, forces and stress stay the same.

    Such as MACE-MP, MPA, OMAT, OFF, MH or OMOL. The package need not be installed, and nothing of the file is executed.
    """
    from pimlip_zoo.foundation.mace_torch import import_potential

    potential = import_potential(file, head=head)
    folder = out or Path("runs") / file.stem
    write_run(potential, folder, {"imported": file.name, "head": head})
    _report(potential, folder)


@app.command("nequip", epilog="Example: pimlip-zoo import nequip model.nequip.zip -o runs/imported")
def nequip_command(
    file: Annotated[
        Path,
        typer.Argument(help="A .ckpt of nequip-train or a .nequip.zip of nequip-package (NequIP, Allegro)."),
    ],
    out: Out = None,
) -> None:
    """Convert a model of nequip or nequip-allegro; energies, forces and stress stay the same.

    The packages need not be installed, and nothing of the file is executed.
    """
    from pimlip_zoo.foundation.nequip import import_potential

    potential = import_potential(file)
    folder = out or Path("runs") / file.name.removesuffix(".ckpt").removesuffix(".nequip.zip")
    write_run(potential, folder, {"imported": file.name})
    _report(potential, folder)


def _report(potential: Potential, folder: Path) -> None:
    from pimlip_zoo.cli.console import console
    from pimlip_zoo.training.checkpoint import describe

    count = sum(parameter.numel() for parameter in potential.model.parameters())
    screen = console()
    screen.print(
        f"{folder}: {describe(potential)['model']}, {count} parameters, {potential.model.dtype}, "
        f"cutoff {potential.cutoff:g} Å, {len(potential.species)} elements: {', '.join(potential.species)}"
    )
    if potential.model.electrons_are_open:
        config = describe(potential)["config"]
        screen.print(
            f"it sees charges, {-config['max_charge']} to {config['max_charge']}, and multiplicities, 1 to "
            f"{config['max_multiplicity']}: those that structures state, otherwise 0 and the lowest possible; "
            "export one with --charge and --multiplicity"
        )
    screen.print(
        f"next: pimlip-zoo eval {folder} --data DATA, pimlip-zoo export {folder} --format native, "
        f"or pimlip-zoo train --from {folder} --data DATA"
    )


@app.command("sevennet", epilog="Example: pimlip-zoo import sevennet 7net-0 -o runs/7net-0")
def sevennet_command(
    model: Annotated[
        str,
        typer.Argument(
            help="7net-0 (or 7net-0_22May2024), 7net-l3i5, 7net-mf-0 of an installed sevenn, or a checkpoint file."
        ),
    ],
    out: Out = None,
    level: Annotated[
        str | None,
        typer.Option(help="Which level of theory, of a model with several: PBE or R2SCAN in 7net-mf-0."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Precision of the run: float32, as the files have it, or float64.")
    ] = "float32",
) -> None:
    """Convert a SevenNet model; energies, forces and stress stay the same.

    Nothing of the file or of the package is executed; for a checkpoint file the package need not be installed.
    """
    import torch

    from pimlip_zoo.errors import InputError, did_you_mean
    from pimlip_zoo.foundation.sevennet import find_file, import_potential

    dtypes = {"float32": torch.float32, "float64": torch.float64}
    if dtype not in dtypes:
        raise InputError(f"{dtype!r} is no precision", key="dtype", hint=did_you_mean(dtype, dtypes))
    file = find_file(model)
    potential = import_potential(file, level=level, dtype=dtypes[dtype])
    name = Path(model).stem if Path(model).exists() else model
    folder = out or Path("runs") / (f"{name}-{level}" if level else name)
    write_run(potential, folder, {"imported": model, "level": level})
    _report(potential, folder)


def run_of(text: str) -> str:
    """The run that is meant by what a user wrote: a folder, a checkpoint, or a published model by name.

    A model is converted once for each of its files and kept in the cache, as ``pimlip-zoo import sevennet`` does it;
    ``NAME:LEVEL`` chooses a level of theory.

    Args:
        text: such as ``runs/nequip-1``, ``7net-0`` or ``7net-mf-0:PBE``.

    Returns:
        The path of a run; the text itself where it names no model.

    Raises:
        InputError: when the package with its weights is not installed, or it has no such level.
    """
    from pimlip_zoo.foundation.sevennet import NAMES

    name, _, level = text.partition(":")
    if Path(text).exists() or name.lower() not in {known.lower() for known in NAMES}:
        return text
    import hashlib
    import shutil
    import tempfile

    from pimlip_zoo.compiled.kernels.build import cache_folder
    from pimlip_zoo.foundation.sevennet import find_file, import_potential

    file = find_file(name)
    known = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    parent = cache_folder().parent / "models"
    folder = parent / "-".join(part.lower() for part in (name, level, known) if part)
    if not (folder / "config.yaml").exists():
        potential = import_potential(file, level=level or None)
        parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=parent))
        try:
            write_run(potential, made, {"imported": name, "level": level or None})
            made.replace(folder)
        except OSError:  # another process was quicker
            if not (folder / "config.yaml").exists():
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return str(folder)


def write_run(potential: Potential, folder: Path, source: dict[str, object]) -> None:
    """A run folder with the configuration and the weights of a potential that was not trained here.

    Args:
        potential: with its weights.
        folder: must not hold a run yet.
        source: plain values kept in the checkpoint, where it comes from.

    Raises:
        InputError: when the folder holds a run, or another process is writing to it.
    """
    from pimlip_zoo.config import RunConfig, save_config
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.experiment import check_free
    from pimlip_zoo.files import replacing, writing
    from pimlip_zoo.locks import claimed, making
    from pimlip_zoo.training.checkpoint import describe, save_potential

    target = folder / "checkpoints" / "best.ckpt"
    description = describe(potential)
    scales = potential.scale.unique().tolist()
    references = dict(zip(potential.species, potential.energy_references.tolist(), strict=True))
    config = RunConfig.model_validate(
        {
            "model": {"name": description["model"], "preset": None, **description["config"]},
            "potential": {
                "scale": scales[0] if len(scales) == 1 else "run",
                "zbl": potential.repulsion is not None,
            },
            "data": {"energy_references": references},
            "trainer": {"dtype": description["dtype"]},
        }
    )
    with claimed(folder), writing(target), making(target.parent):
        check_free(folder)
        if (folder / "config.yaml").exists():
            raise InputError("there is a run in this folder", file=folder, hint="give another one with --out")
        with replacing(target) as scratch:
            save_potential(potential, scratch, summary=source)
            save_config(
                config, folder / "config.yaml"
            )  # without weights it is no run, nor are they without it
