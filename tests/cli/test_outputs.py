"""A file that is there is replaced by one of its own kind, and never a part of a run."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from pimlip_zoo.cli import curve
from pimlip_zoo.cli.console import log_to
from pimlip_zoo.cli.data import split_command
from pimlip_zoo.cli.export import ExportFormat, export_potential
from pimlip_zoo.cli.rounds import rounds_command
from pimlip_zoo.datasets.convert import convert
from pimlip_zoo.deploy.lammps import build
from pimlip_zoo.deploy.lammps.input import write_run
from pimlip_zoo.errors import InputError
from pimlip_zoo.files import append
from pimlip_zoo.labelling.label import check_output as check_labels
from pimlip_zoo.models.nequip import NequIP, NequIPConfig
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.outputs import EXPORTED, PAGE, PICTURE, PLUGIN, check_different, check_output, results
from pimlip_zoo.report.html import page
from pimlip_zoo.training.checkpoint import KEY, describe

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "d.extxyz"
    write(path, [Atoms("H2", [[0, 0, 0], [0, 0, 0.7 + 0.01 * k]]) for k in range(10)])
    return path


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("checkpoints/best.ckpt", "config.yaml", "metrics.csv"):
        (folder / name).write_text("precious")
    return folder


@pytest.mark.parametrize("kind", [results("a"), EXPORTED, PLUGIN, PAGE, PICTURE])
def test_other_kinds_are_not_replaced(kind, data, tmp_path):
    np.savez(tmp_path / "d.npz", R=np.zeros(3))
    (tmp_path / "other.json").write_text('{"b": 1}')
    (tmp_path / "notes.html").write_text("<!DOCTYPE html><title>Notes on pimlip-zoo</title>")
    for name in ("d.extxyz", "d.npz", "other.json", "notes.html"):
        with pytest.raises(InputError, match=rf"{name}, --out: is there, and is not"):
            check_output(tmp_path / name, kind, key="--out")
    with pytest.raises(InputError, match="is a folder"):
        check_output(tmp_path, kind, key="--out")


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (results("a", "b"), b'{"b": 1, "c": 2}'),
        (PAGE, page("&" * 255, "kind", [], ["<p>"]).encode()),
        (PICTURE, PNG),
        (PLUGIN, b"\x7fELF\x02 lammpsplugin_init pair_style pimlip"),
        (EXPORTED, b"\x80\x04 pimlip_zoo.deploy.mliap"),
        (results("a"), b""),
    ],
)
def test_the_same_kind_and_what_is_empty_or_not_there_is_replaced(kind, content, tmp_path):
    check_output(tmp_path / "new", kind, key="--out")
    (tmp_path / "new").write_bytes(content)
    check_output(tmp_path / "new", kind, key="--out")


@pytest.mark.parametrize("name", ["checkpoints/best.ckpt", "config.yaml", "metrics.csv"])
def test_nothing_replaces_a_part_of_a_run(name, run, data, tmp_path):
    (tmp_path / "link").symlink_to(run / name)
    for place in (run / name, tmp_path / "link"):
        for write_to in (
            lambda place: check_output(place, PAGE, key="--out"),
            lambda place: convert(str(data), place, overwrite=True),
            lambda place: split_command(str(data), place),
        ):
            with pytest.raises(InputError, match="of a run"):
                write_to(place)
    assert (run / name).read_text() == "precious"


def test_labels_replace_no_checkpoint_of_a_run(run):
    place = run / "checkpoints" / "labels.lmdb"
    place.write_text("precious")
    with pytest.raises(InputError, match="of a run"):
        check_labels(place, overwrite=True)


def test_a_split_replaces_a_split_and_not_the_data(data, tmp_path):
    before = data.read_bytes()
    with pytest.raises(InputError, match=r"d\.extxyz, --out: is there, and is not"):
        split_command(str(data), data)
    assert data.read_bytes() == before
    for _ in range(2):
        split_command(str(data), tmp_path / "split.json")


def test_an_exported_model_replaces_one_and_no_data(data, tmp_path):
    config = NequIPConfig(num_layers=1, l_max=1, channels=2, cutoff=3.0, avg_num_neighbors=5.0)
    potential = Potential(NequIP(config, ("H",)), energy_references=np.zeros(1)).eval()
    with pytest.raises(InputError, match="exported model"):
        export_potential(potential, data, format=ExportFormat.checkpoint)
    for _ in range(2):
        export_potential(potential, tmp_path / "a.ckpt", format=ExportFormat.checkpoint)


def test_what_others_saved_with_torch_is_no_exported_model(tmp_path):
    potential = Potential(NequIP(NequIPConfig(num_layers=1, l_max=1, channels=2, cutoff=3.0), ("H",))).eval()
    files = {
        "graphs.pth": {"graphs": [torch.zeros(10, 3)]},
        "training.ckpt": {
            KEY: describe(potential),
            "state_dict": {},
            "optimizer_states": [{}],
            "global_step": 3,
        },
        "pimlip.pt": {"notes": "made with pimlip_zoo"},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    torch.jit.save(
        torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "theirs.nequip.pth", _extra_files={"r_max": "5"}
    )
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(kept) == 4
    for path in kept:
        with pytest.raises(InputError, match="is there, and is not an exported model"):
            export_potential(potential, path, format=ExportFormat.checkpoint)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept
    for form, name in ((ExportFormat.torchscript, "a.nequip.pth"), (ExportFormat.checkpoint, "a.ckpt")):
        for _ in range(2):
            export_potential(potential, tmp_path / name, format=form)


@pytest.mark.parametrize("name", ["notes.txt", "program", "checkpoints/best.ckpt"])
def test_a_plugin_replaces_plugins_only(name, run, monkeypatch):
    (run / "notes.txt").write_text("precious")
    (run / "program").write_bytes(b"\x7fELF\x02 lammpsplugin_init of somebody else")
    before = (run / name).read_bytes()
    monkeypatch.setattr(build, "_compiler", lambda _: pytest.fail("looked for a compiler first"))
    with pytest.raises(InputError, match=r"is a checkpoint of a run|is there, and is not a plugin"):
        build.build_plugin(run / name)
    (run / build.PLUGIN_NAME).write_text("precious")
    with pytest.raises(InputError, match="is there, and is not a plugin"):
        build.build_plugin(run)
    assert (run / name).read_bytes() == before


def test_a_plot_of_rounds_is_checked_before_the_rounds(data):
    with pytest.raises(InputError, match=r"d\.extxyz, --plot: is there, and is not a picture"):
        rounds_command(data, data)


@pytest.mark.parametrize("name", ["runs.csv", "curve.png", "report.html"])
def test_a_curve_replaces_no_table_or_picture_of_others(name, tmp_path):
    (tmp_path / name).write_text("precious")
    with pytest.raises(InputError, match=f"{name}, --out: is there, and would be replaced"):
        curve._check_folder(tmp_path)
    (tmp_path / "n25-none-0").mkdir()
    (tmp_path / "n25-none-0" / "result.json").write_text('{"tests": {}}')
    curve._check_folder(tmp_path)


def test_two_things_are_not_written_to_one_file(tmp_path):
    one = tmp_path / "x.png"
    check_different({"--json": one, "--plot": None, "--html": tmp_path / "y.png"})
    with pytest.raises(InputError, match="is the file of --json, too"):
        check_different({"--json": one, "--plot": tmp_path / "." / "x.png"})


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_log_that_is_no_file_is_named_and_not_waited_for(make, tmp_path):
    make(tmp_path / "log.txt")
    with pytest.raises(InputError, match=r"log\.txt: is a"):
        log_to(tmp_path)
    make(tmp_path / "journal")
    with pytest.raises(InputError, match="journal: is a"):
        append(tmp_path / "journal", "a line")


def structures(path):
    atoms = [Atoms("Cu2", [[0, 0, 0], [0, 0, 2.4 + 0.01 * k]], cell=[9, 9, 9], pbc=True) for k in range(6)]
    for each in atoms:
        each.calc = SinglePointCalculator(each, energy=-300.0, forces=np.zeros((2, 3)))
    write(path, atoms)
    return path


def test_no_command_replaces_what_it_reads(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    q = structures(tmp_path / "q.extxyz")
    shutil.copy(q, "labels.lmdb.failed.extxyz")
    convert(str(q), "p.lmdb")
    (tmp_path / "ref.json").write_text('{"physics": {}}')
    config = NequIPConfig(num_layers=1, l_max=1, channels=2, cutoff=3.0, avg_num_neighbors=5.0)
    export_potential(
        Potential(NequIP(config, ("Cu",))).eval(), Path("a.ckpt"), format=ExportFormat.checkpoint
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("data: {train: t.extxyz, test: p.lmdb}\n")
    structures("t.extxyz")
    write_run(tmp_path / "md", molecule("H2O"), model="a.pimlip", plugin="a.so", species=("H", "O"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for command in (
        "label q.extxyz --calculator emt -o q.extxyz --overwrite",
        "label p.lmdb@:2 --calculator emt -o ./p.lmdb --overwrite",
        "label labels.lmdb.failed.extxyz --calculator emt -o labels.lmdb",
        "data convert p.lmdb@:2 -o p.lmdb --overwrite",
        "select q.extxyz -n 2 -o q.extxyz --overwrite",
        "select q.extxyz -n 2 -o p.lmdb --known p.lmdb --overwrite",
        "select q.extxyz -n 2 -o t.extxyz --run run --overwrite",
        "select q.extxyz -n 2 -o p.lmdb --run run --overwrite",
        "export a.ckpt --format checkpoint -o a.ckpt",
        "lammps input a.ckpt --structure md/structure.data -o md",
        "eval a.ckpt --physics --structure q.extxyz --reference ref.json --json ref.json",
    ):
        result = cli(*command.split())
        assert result.code == 2, command
        assert "would replace" in result.err, command
        assert sum(line.startswith("pimlip-zoo: ") for line in result.err.splitlines()) == 1
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before, command


def test_a_choice_that_another_process_wrote_meanwhile_is_not_replaced(cli, tmp_path, monkeypatch):
    from pimlip_zoo.labelling import select as choosing

    monkeypatch.chdir(tmp_path)
    structures(tmp_path / "q.extxyz")
    choose = choosing.select

    def slowly(*arguments, **more):
        Path("new").mkdir(exist_ok=True)
        Path("new/a.extxyz").write_text("of another")
        return choose(*arguments, **more)

    monkeypatch.setattr(choosing, "select", slowly)
    command = ("select", "q.extxyz", "-n", "2", "-o", "new/a.extxyz")
    result = cli(*command)
    assert result.code == 2
    assert "new/a.extxyz: is there by now" in result.err
    assert Path("new/a.extxyz").read_text() == "of another"
    assert cli(*command, "--overwrite").code == 0
    assert [path.name for path in Path("new").iterdir()] == ["a.extxyz"]


def test_labels_and_choices_in_a_store_replace_stores_only(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    structures(tmp_path / "q.extxyz")
    (tmp_path / "a.lmdb").write_text("mine")
    commands = ("label q.extxyz --calculator emt -o {} --overwrite", "select q.extxyz -n 2 -o {} --overwrite")
    for command in commands:
        result = cli(*command.format("a.lmdb").split())
        assert result.code == 2
        assert "a.lmdb, --out: is there, and is not a store" in result.err
        for name in ("b.lmdb", "b.extxyz"):
            for _ in range(2):
                assert cli(*command.format(name).split()).code == 0
    assert (tmp_path / "a.lmdb").read_text() == "mine"


@pytest.mark.parametrize("option", ["--gap=3", "--blocks=5", "--by=smiles"])
def test_options_of_another_kind_of_split_are_refused(option, tmp_path, cli):
    done = cli("data", "split", "builtin:ethanol-gfn2", f"--out={tmp_path / 'a.json'}", option)
    assert done.code == 2
    assert f"{option.partition('=')[0]}: has no effect with --method random" in done.err
    assert not list(tmp_path.iterdir())
