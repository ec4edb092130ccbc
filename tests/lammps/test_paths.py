"""Spaces, quotes and letters of any alphabet in the paths of models, plugins, caches and compilers."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from toys import SPECIES, geometries, potential_of, predict, relative

from pimlip_zoo.commands import command_words
from pimlip_zoo.deploy.lammps.build import build_plugin
from pimlip_zoo.deploy.lammps.check import check_deployment, single_points
from pimlip_zoo.deploy.lammps.input import MDSettings, write_run
from pimlip_zoo.deploy.lammps.quote import lammps_word
from pimlip_zoo.deploy.lammps.run import run_lammps
from pimlip_zoo.errors import InputError

native = pytest.mark.parametrize("file_format", ["native"], indirect=True)
FOLDERS = ["two words", "it's", 'say "so"', "$HOME #1", "Modelle für Öl", "a&b;c*"]


@native
@pytest.mark.parametrize("name", FOLDERS)
def test_written_scripts_find_models_and_plugins(name, tmp_path, plugin, exported):
    folder = tmp_path / name
    folder.mkdir()
    model, library = (shutil.copy(path, folder / f"a {path.name}") for path in (exported("nequip"), plugin))
    for target in [folder / "run here"] + [tmp_path / "beside"] * name.isascii():
        script = write_run(
            target,
            geometries()["a molecule in a box"],
            model=model,
            plugin=library,
            species=SPECIES,
            settings=MDSettings(ensemble="nve", steps=1),
        )
        assert "Loop time" in run_lammps(script)


@native
def test_the_check_in_lammps_finds_them(tmp_path, plugin, exported):
    folder = tmp_path / "two words"
    folder.mkdir()
    model, library = (shutil.copy(path, folder) for path in (exported("nequip"), plugin))
    rows = check_deployment(model, plugin=library, ranks=(1,))
    assert rows
    assert all(row.deviation <= row.allowed for row in rows)


@native
def test_what_the_command_line_prints_can_be_pasted(tmp_path, plugin, exported):
    start, out = tmp_path / "start here.xyz", tmp_path / "md run"
    atoms = Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.2]])
    atoms.set_tags([1, 2])
    write(start, atoms, format="extxyz")
    words = [
        "lammps",
        "input",
        str(exported("nequip")),
        "--structure",
        str(start),
        "--steps",
        "1",
        "-o",
        str(out),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pimlip_zoo", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "no place for what else the structure has: tags" in done.stderr
    printed = done.stdout.split("run it with: ")[1].strip()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    pasted = subprocess.run(
        printed, shell=True, capture_output=True, text=True, env={**os.environ, "PATH": path}, check=False
    )
    assert pasted.returncode == 0, pasted.stdout + pasted.stderr


def test_a_path_that_lammps_cannot_read_is_refused(tmp_path):
    for name in ("both ' and \"", "two\nlines", "Öl"):
        with pytest.raises(InputError, match="LAMMPS reads no paths"):
            lammps_word(tmp_path / name)


@pytest.mark.parametrize("flags", ["", " -O1"])
def test_compilers_may_have_spaces_in_their_paths(flags, tmp_path, monkeypatch):
    compiler = tmp_path / "my compilers" / "cc"
    compiler.parent.mkdir()
    compiler.write_text('#!/bin/sh\nexec cc "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", shlex.quote(str(compiler)) + flags if flags else str(compiler))
    assert command_words("CC") == [str(compiler), *flags.split()]


@native
@pytest.mark.parametrize("form", ["{}", "'{}' -DX"])
def test_a_model_is_compiled_with_such_a_compiler_into_such_a_cache(
    form, tmp_path, plugin, exported, monkeypatch
):
    model = exported("nequip")
    compiler = tmp_path / "my compilers" / "cc"
    compiler.parent.mkdir()
    # An empty library would do for the path; this one is the compiler itself, at its least effort.
    compiler.write_text('#!/bin/sh\nexec cc "$@" -O0\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", form.format(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a cache"))
    atoms = geometries()["a molecule in a box"]
    (point,) = single_points([atoms], model=model, plugin=plugin, species=SPECIES)
    assert relative(point.energy, predict(potential_of("nequip"), atoms)[0]) < 1e-10
    assert len(list((tmp_path / "a cache").rglob("native-*.so"))) == 1


@pytest.mark.slow
@native
def test_plugins_are_built_into_such_a_cache(tmp_path, plugin, exported, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a cache"))
    library = build_plugin(with_torch=False)
    assert " " in str(library)
    (point,) = single_points(
        [geometries()["a molecule in a box"]], model=exported("nequip"), plugin=library, species=SPECIES
    )
    assert np.isfinite(point.energy)
