"""A file is there as a whole or not at all, whoever is killed and however full the disk is."""

import errno
import lzma
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import ase.io
import pytest
import torch
from typer.testing import CliRunner

from pimlip_zoo.cli.console import log_to
from pimlip_zoo.datasets.builtin import _load, load_builtin
from pimlip_zoo.datasets.frame import frame_to_atoms
from pimlip_zoo.deploy.lammps.data import in_lammps_axes
from pimlip_zoo.deploy.lammps.input import write_run
from pimlip_zoo.deploy.native.library import _compile
from pimlip_zoo.errors import InputError
from pimlip_zoo.files import append, replacing, scratch_folder

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts" / "builtin_data"))

import make
from packing import write_packed

UNFINISHED = """
import pathlib, sys, time
from pimlip_zoo.files import replacing
with replacing(pathlib.Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print(temporary, flush=True)
    time.sleep(60)
"""


@contextmanager
def largest_file(size):
    """The system lets no file grow beyond so many bytes, as on a full disk, whoever writes it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_one_is_writing_is_not(tmp_path):
    target = tmp_path / "model.nequip.pth"
    target.write_text("before")
    jobs = [
        subprocess.Popen([sys.executable, "-c", UNFINISHED, target], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    dead, alive = (Path(job.stdout.readline().strip()) for job in jobs)
    os.kill(jobs[0].pid, signal.SIGKILL)
    jobs[0].wait()
    assert target.read_text() == "before"
    with replacing(target) as temporary:
        temporary.write_text("whole")
    assert not dead.parent.exists()
    assert alive.read_text() == "half"
    os.kill(jobs[1].pid, signal.SIGKILL)
    jobs[1].wait()
    append(target, ", too")  # writes in place: clears nothing
    with replacing(target) as temporary:
        temporary.write_text("again")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


BUILDING = """
import pathlib, sys, time
from pimlip_zoo.files import scratch_folder
with scratch_folder(pathlib.Path(sys.argv[1]), "build") as folder:
    (folder / "model.c").write_text("half")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_compiler_left_is_removed_by_the_next_and_what_one_is_compiling_is_not(tmp_path):
    jobs = [
        subprocess.Popen([sys.executable, "-c", BUILDING, tmp_path], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    dead, alive = (Path(job.stdout.readline().strip()) for job in jobs)
    os.kill(jobs[0].pid, signal.SIGKILL)
    jobs[0].wait()
    old, new = tmp_path / ".build-old", tmp_path / ".build-new"  # of versions that had no locks
    for folder in (old, new):
        folder.mkdir()
        (folder / "model.c").write_text("half")
    os.utime(old, (0, 0))
    with scratch_folder(tmp_path, "build"):
        assert not dead.exists()
        assert not old.exists()
        assert new.exists()
        assert (alive / "model.c").read_text() == "half"
    os.kill(jobs[1].pid, signal.SIGKILL)
    jobs[1].wait()
    with scratch_folder(tmp_path, "build"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".build-new"]


def packed(folder):
    write_packed(folder / "a.npz", _load("ethanol-gfn2"))


def extended_xyz(folder):
    make.write_folder(folder, _load("ethanol-gfn2"))


def lammps_data(folder):
    atoms = in_lammps_axes(frame_to_atoms(load_builtin("ethanol-gfn2/train")[0]))
    write_run(folder, atoms, model="a.pimlip", plugin="a.so", species=("H", "C", "O"))


def compiled(folder):
    _compile("// long\n" * 2000, (), folder / "a.so", "a.pimlip")


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (packed, "a.npz"),
        (extended_xyz, "train.extxyz"),
        (lammps_data, "structure.data"),
        (compiled, "compiled"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_every_writer_names_what_does_not_fit_and_leaves_nothing(write, named, tmp_path):
    folder = tmp_path / write.__name__
    folder.mkdir()
    says = pytest.raises(InputError, match=rf"{named}: cannot be written: file too large")
    with largest_file(500), says:
        write(folder)
    assert not list(folder.iterdir())


def test_two_who_write_one_file_at_once_leave_one_of_both_whole(tmp_path):
    target = tmp_path / "errors.json"
    with replacing(target) as first, replacing(target) as second:
        first.write_text("a" * 1000)
        second.write_text("b" * 1000)
    assert target.read_text() in ("a" * 1000, "b" * 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["errors.json"]


@pytest.mark.parametrize("write", ["python", "torch"])
def test_a_file_that_does_not_fit_is_named_and_leaves_nothing(tmp_path, write):
    target = tmp_path / "model.pth"
    target.write_text("before")
    values = torch.zeros(200_000)

    def fill(path):
        if write == "python":
            path.write_bytes(bytes(400_000))
        else:
            torch.save(values, path)

    says = pytest.raises(InputError, match=r"model\.pth: cannot be written: file too large")
    with largest_file(100_000), says, replacing(target) as temporary:
        fill(temporary)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]
    assert target.read_text() == "before"


@pytest.mark.parametrize("form", ["torchscript", "checkpoint"])
def test_an_export_that_does_not_fit_ends_in_one_line_and_leaves_nothing(tmp_path, form):
    from pimlip_zoo.cli.export import ExportFormat, export_potential
    from pimlip_zoo.compiled.kernels import use_kernels
    from pimlip_zoo.models.potential import Potential
    from pimlip_zoo.registry import get_model

    info = get_model("nequip")
    config = info.configure("small", num_layers=1, channels=2, cutoff=3.0, avg_num_neighbors=8.0)
    potential = Potential(info.model(config, ("H", "O")))
    target = tmp_path / "model.out"
    says = pytest.raises(InputError, match=r"model\.out: cannot be written: file too large")
    with use_kernels("reference"), largest_file(4_000), says:
        export_potential(potential, target, format=ExportFormat(form))
    assert not list(tmp_path.iterdir())


def test_another_fault_of_a_library_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="something else"), replacing(tmp_path / "file"):
        raise RuntimeError("something else")
    assert not list(tmp_path.iterdir())


def test_what_is_added_is_there_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "log.csv"
    append(path, "a" * 6000)
    with largest_file(10_000), pytest.raises(InputError, match=r"log\.csv: cannot be written"):
        append(path, "b" * 6000)
    append(path, "c")
    assert path.read_text() == "a" * 6000 + "c"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run with a tiny potential, and a file with a structure for it."""
    from pimlip_zoo.cli.import_ import write_run as write_potential
    from pimlip_zoo.models.potential import Potential
    from pimlip_zoo.registry import get_model

    folder = tmp_path_factory.mktemp("run")
    info = get_model("nequip")
    options = {"num_layers": 1, "l_max": 0, "channels": 2, "radial_hidden": (2,), "avg_num_neighbors": 8.0}
    write_potential(Potential(info.model(info.configure(**options), ("H", "C", "O"))), folder / "run", {})
    ase.io.write(folder / "a.extxyz", frame_to_atoms(load_builtin("ethanol-gfn2/train")[0]))
    return folder


def md(run, out):
    return ["md", run / "run", "--structure", run / "a.extxyz", "--steps", "2", "--out", out / "deep" / "md"]


def lammps_input(run, out):
    return ["lammps", "input", run / "run", "--structure", run / "a.extxyz", "-o", out / "deep" / "lammps"]


def label(run, out):
    return [
        "label",
        run / "a.extxyz",
        "--calculator",
        "ase.calculators.lj:LennardJones",
        "-o",
        out / "deep" / "a.extxyz",
    ]


def imported(run, out):
    with lzma.open(Path(__file__).parent / "agreement" / "sevennet_degrees.pth.xz") as packed:
        (run / "a.pth").write_bytes(packed.read())
    return ["import", "sevennet", run / "a.pth", "-o", out / "deep" / "run"]


@pytest.mark.parametrize("size", [0, 100, 500])
@pytest.mark.parametrize("command", [md, lammps_input, label, imported], ids=lambda value: value.__name__)
def test_a_command_on_a_full_disk_leaves_neither_a_file_nor_a_folder(command, size, run_folder, tmp_path):
    from pimlip_zoo.cli import app

    words = list(map(str, command(run_folder, tmp_path)))
    with largest_file(size):
        result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, InputError), result.output
    assert "cannot be written: file too large" in str(result.exception)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_reason_stands_behind_the_name(tmp_path, number):
    says = pytest.raises(InputError, match=r"file: cannot be written: (no space|disk quota)")
    with says, replacing(tmp_path / "file"):
        raise OSError(number, os.strerror(number))


def test_nothing_is_added_to_what_a_link_leads_to(tmp_path):
    """A run folder from elsewhere may have a link to any file of the user."""
    (tmp_path / "mine.txt").write_text("mine")
    for name in ("metrics.csv", "log.txt"):
        (tmp_path / name).symlink_to("mine.txt")
    with pytest.raises(InputError, match=r"metrics\.csv: is a symbolic link"):
        append(tmp_path / "metrics.csv", "more")
    with pytest.raises(InputError, match=r"log\.txt: is a symbolic link"):
        log_to(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"
