"""``pimlip-zoo export`` and ``lammps``: what they print, and one clear line with exit code 2 for bad input."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pimlip_zoo.cli import main
from pimlip_zoo.cli.export import ExportFormat, _default_output, export_potential
from pimlip_zoo.compiled.kernels import use_kernels
from pimlip_zoo.deploy.metadata import read_metadata
from pimlip_zoo.errors import InputError
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model
from pimlip_zoo.training.checkpoint import load_potential


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Runs a command in an empty folder; returns exit code, stdout, stderr."""

    def run(*words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["pimlip-zoo", *map(str, words)])
        with pytest.raises(SystemExit) as ended, use_kernels("reference"):
            main()
        out = capsys.readouterr()
        return ended.value.code or 0, out.out, out.err

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    info = get_model("nequip")
    config = info.configure("small", num_layers=2, channels=2, cutoff=3.0, avg_num_neighbors=8.0)
    path = tmp_path_factory.mktemp("run") / "model.ckpt"
    potential = Potential(info.model(config, ("H", "O")), energy_references=torch.tensor([-1.0, -2.0]))
    assert export_potential(potential, path, format=ExportFormat.checkpoint).path == path
    return path


def test_an_exported_checkpoint_is_loaded(checkpoint):
    potential = load_potential(checkpoint)
    assert potential.species == ("H", "O")
    assert potential.energy_references.tolist() == [-1.0, -2.0]


def test_export_writes_and_says_what_lammps_needs(checkpoint, call, tmp_path):
    code, out, err = call("export", checkpoint, "-o", "out.nequip.pth", "--dtype", "float64")
    assert code == 0, err
    assert "pair_coeff * * out.nequip.pth H O" in out
    assert "the file is a program" in out
    metadata = read_metadata(tmp_path / "out.nequip.pth")
    assert metadata["model_name"] == "nequip"
    assert metadata["model_dtype"] == "float64"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("export", "nowhere"), "no such"),
        (("export", "{empty}"), "no checkpoints"),
        (("export", "{truncated}"), "not a readable checkpoint"),
        (("export", "{run}", "-o", "no/such/folder/x.nequip.pth"), "no such folder"),
        (("export", "{run}", "--format", "aot", "-o", "x.nequip.pth"), "ends in .pt2"),
        (("export", "{run}", "--format", "aot", "-o", "x.nequip.pt2"), "abort on this one"),
        (("export", "{run}", "--format", "torchscript", "-o", "x.nequip.pt2"), "is that of files of nequip"),
        (("export", "{run}", "--format", "native", "-o", "x.NEQUIP.pt2"), "is that of files of nequip"),
        (("lammps", "input", "{run}", "--structure", "nowhere.xyz"), "no such file"),
        (("lammps", "input", "{truncated}", "--structure", "{run}"), "ASE cannot read it"),
        (("lammps", "input", "{run}", "--structure", "builtin:cual-emt@999"), "no such frame"),
        (("lammps", "input", "{run}", "--structure", "x.xyz", "--timestep", "-1"), "give a time > 0 in fs"),
        (("lammps", "check", "{empty}"), "no checkpoints"),
        (("lammps", "check", "{run}", "--ranks", "1,0"), "numbers from 1 on"),
        (("export", "{run}", "-o", "x"), "x, -o: a torchscript model ends in .pth (give x.nequip.pth)"),
        (("export", "{run}", "-o", "x.pimlip.pt2"), "a torchscript model ends in .pth"),
        (("export", "{run}", "--format", "native", "-o", "x.c"), "ends in .pimlip (give x.pimlip)"),
        (("export", "{run}", "--format", "mliap"), "direct neighbours"),
        (("export", "{run}", "--table", "1e-4"), "--table: a torchscript file has no tables"),
        (("export", "{run}", "--format", "native", "--table", "0"), "cannot be made"),
        (("lammps", "check", "nowhere.nequip.pth"), "no such file"),
        (("lammps", "check", "{run}", "--ranks", "two"), "no list of numbers"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, reason, checkpoint, call, tmp_path):
    (tmp_path / "empty").mkdir()
    content = checkpoint.read_bytes()
    (tmp_path / "truncated.ckpt").write_bytes(content[: len(content) // 2])
    places = {"empty": tmp_path / "empty", "truncated": tmp_path / "truncated.ckpt", "run": checkpoint}
    code, out, err = call(*(word.format(**places) for word in words))
    assert code == 2, out + err
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1
    assert reason in lines[0]


def test_the_build_says_everything_that_is_missing(monkeypatch, tmp_path):
    from pimlip_zoo.deploy.lammps.build import build_plugin

    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError) as caught:
        build_plugin(lammps_source=tmp_path)
    for part in ("CXX=no-such-compiler is not an executable", "no src/pair.h", "mpicxx"):
        assert part in str(caught.value)


def test_the_build_against_a_source_tree(monkeypatch, tmp_path):
    # A compiler and an MPI wrapper that note how they are called.
    from pimlip_zoo.deploy.lammps import build

    monkeypatch.chdir(tmp_path)  # where the compiler below writes a file called --version
    tree, tools = tmp_path / "lammps" / "src", tmp_path / "tools"
    tree.mkdir(parents=True)
    tools.mkdir()
    (tree / "pair.h").write_text("")
    (tools / "mpicxx").write_text("#!/bin/sh\necho g++ -I/opt/mpi/include -lmpi\n")
    (tools / "cxx").write_text(
        '#!/bin/sh\necho "$@" > ' + str(tmp_path / "called") + '\nfor o in "$@"; do l=$o; done\n: > "$l"\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("CXX", "cxx")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIMLIP_LAMMPS_FLAGS", "-DLAMMPS_BIGBIG")
    built = build.build_plugin(tmp_path / "out", lammps_source=tmp_path / "lammps")
    assert built == tmp_path / "out"
    called = (tmp_path / "called").read_text().split()
    assert f"-I{tree}" in called
    assert "-I/opt/mpi/include" in called
    assert "-DLAMMPS_BIGBIG" in called
    assert "-DLAMMPS_SMALLBIG" not in called
    assert build.build_plugin(lammps_source=tmp_path / "lammps").parent.parent == build.plugin_cache()


def test_a_build_says_that_it_takes_long_and_reports_the_first_line_of_an_error(
    monkeypatch, tmp_path, caplog
):
    from pimlip_zoo.deploy.lammps import build

    tools = tmp_path / "tools"
    tools.mkdir()
    (tree := tmp_path / "src").mkdir()
    (tree / "pair.h").write_text("")
    (tools / "mpicxx").write_text("#!/bin/sh\necho g++\n")
    (tools / "cxx").write_text("#!/bin/sh\necho 'pair_pimlip.cpp:3: error: no such thing' >&2\nexit 1\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("CXX", "cxx")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    caplog.set_level("INFO")
    with pytest.raises(InputError, match="error: no such thing"):
        build.build_plugin(lammps_source=tmp_path)
    assert "compiling pair_style pimlip for LAMMPS; this takes up to a minute, once" in caplog.messages


def test_a_compiled_file_has_an_ending_of_its_own_and_the_help_says_who_takes_which(
    checkpoint, call, monkeypatch
):
    """``pair_style nequip`` and ``allegro`` load any .nequip.pt2 by the name of its model, and abort."""
    assert _default_output(checkpoint, ExportFormat.aot).name == "model.pimlip.pt2"
    monkeypatch.setenv("COLUMNS", "400")
    code, out, _ = call("export", "--help")
    text = " ".join(out.replace("│", " ").split())
    assert code == 0
    assert "torchscript: for pair_style pimlip, nequip and allegro, and for nequip's ASE calculator" in text
    assert (
        "aot: compiled for this version of torch and this kind of machine, for pair_style pimlip alone"
        in text
    )


@pytest.mark.parametrize("name", ["x.pimlip", "x.pth", "x"])
def test_an_exported_checkpoint_has_the_ending_by_which_it_is_known(name, checkpoint, call, tmp_path):
    code, _, err = call("export", checkpoint, "--format", "checkpoint", "-o", name)
    assert code == 2
    assert "a checkpoint model ends in .ckpt (give x.ckpt)" in err
    assert not (tmp_path / name).exists()
