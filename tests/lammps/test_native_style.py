"""Native models in a real LAMMPS whose plugin knows no torch."""

import shutil
import subprocess

import pytest
import torch
from toys import potential_of

from pimlip_zoo.deploy.lammps.check import check_deployment
from pimlip_zoo.deploy.native.export import export_native
from pimlip_zoo.nn.kernels import use_kernels


@pytest.fixture(scope="module")
def native_plugin(plugin):
    from pimlip_zoo.deploy.lammps.build import build_plugin

    return build_plugin(with_torch=False)


def write(name, folder):
    with use_kernels("auto"):
        return export_native(potential_of(name, torch.float64), folder / "model.pimlip", name=name).path


def test_the_plugin_has_no_torch_in_it(native_plugin):
    if shutil.which("ldd") is None:
        pytest.skip("there is no ldd")
    needed = subprocess.run(["ldd", native_plugin], capture_output=True, text=True, check=True).stdout
    assert "torch" not in needed
    assert "c10" not in needed


@pytest.mark.parametrize("name", ["allegro", pytest.param("nequip", marks=pytest.mark.slow)])
def test_lammps_is_python_on_any_number_of_ranks(name, native_plugin, tmp_path):
    rows = check_deployment(write(name, tmp_path), plugin=native_plugin, ranks=(1, 2, 4))
    assert rows
    for row in rows:
        assert row.deviation <= row.allowed, row


def test_the_plugin_with_torch_reads_native_models_too(plugin, tmp_path):
    for row in check_deployment(write("nequip", tmp_path), plugin=plugin, ranks=(1,)):
        assert row.deviation <= row.allowed, row
