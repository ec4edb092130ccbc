"""The plugin for native models knows no torch, and the one with torch knows native models."""

import shutil
import subprocess

import pytest

from pimlip_zoo.deploy.lammps.check import check_deployment


@pytest.mark.parametrize("file_format", ["native"], indirect=True)
def test_the_plugin_has_no_torch_in_it(plugin):
    if shutil.which("ldd") is None:
        pytest.skip("there is no ldd")
    needed = subprocess.run(["ldd", plugin], capture_output=True, text=True, check=True).stdout
    assert "libpthread" in needed or "libc.so" in needed
    assert "libtorch" not in needed
    assert "libc10" not in needed


@pytest.mark.parametrize("with_torch", [False, True])
@pytest.mark.parametrize("file_format", ["native"], indirect=True)
def test_lammps_is_python_with_either_plugin(with_torch, build, exported, plugin):
    assert plugin.exists()  # LAMMPS and a compiler are here
    rows = check_deployment(exported("allegro"), plugin=build(with_torch=with_torch), ranks=(1, 2))
    assert rows
    for row in rows:
        assert row.deviation <= row.allowed, row
