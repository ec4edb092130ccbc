"""Small files that claim much, or have no end, are answered in one line, at once."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from pimlip_zoo.cli.report import read_metrics
from pimlip_zoo.config import load_config
from pimlip_zoo.datasets.convert import convert
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.lmdb import FrameStore, write_store
from pimlip_zoo.datasets.lmdb.keys import META
from pimlip_zoo.datasets.lmdb.writer import partial_path
from pimlip_zoo.datasets.readers import load_frames, open_source, parse_spec
from pimlip_zoo.deploy.metadata import read_metadata
from pimlip_zoo.deploy.structure import read_structure
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.curve import collect
from pimlip_zoo.experiment.record import check_data
from pimlip_zoo.report.parity import load_pairs
from pimlip_zoo.training.checkpoint import load_potential, read_checkpoint
from pimlip_zoo.weak_labels.calculators import find_cheap_calculator
from pimlip_zoo.yaml_file import parse_yaml

SECONDS = 2.0
WATER = "3\n\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n"


@pytest.fixture(autouse=True, scope="module")
def libraries(tmp_path_factory):
    """Imported before anything is timed."""
    path = tmp_path_factory.mktemp("warm") / "a.xyz"
    path.write_text(WATER)
    read_structure(str(path))


def refused(read, *arguments) -> str:
    start = time.process_time()
    with pytest.raises(InputError) as error:
        read(*arguments)
    assert time.process_time() - start < SECONDS
    assert "\n" not in str(error.value)
    return str(error.value)


def count(spec: str) -> int:
    (source,) = parse_spec(spec)
    return open_source(source).count()


@pytest.mark.parametrize("read", [load_frames, count, read_structure])
@pytest.mark.parametrize("lines", ["99999999\n\nH 0 0 0\n", "99999999\n\n", f"{WATER}99999999\n\nH 0 0 0"])
def test_atoms_that_are_announced_are_not_waited_for(read, lines, tmp_path):
    (tmp_path / "a.xyz").write_text(lines)
    assert "is cut off: 99999999 atoms" in refused(read, str(tmp_path / "a.xyz"))


@pytest.mark.parametrize("first", ["", "2\n", "2\n\n", "2\n\nH 0 0 0\n"])
def test_a_file_without_lines_is_not_read_into_memory(first, tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(first)
    os.truncate(path, 10**11)  # takes no room on the disk
    for read in (load_frames, read_structure):
        refused(read, str(path))


@pytest.mark.parametrize(
    ("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)]
)
@pytest.mark.parametrize("part", [b"\n", b"0", b"5\n\n" + b"H 0 0 0\n" * 5])
def test_what_decompression_blows_up_is_refused(suffix, compress, part, tmp_path):
    body = b"2\n\nH 0 0 0\n" + b" " * 10 if part == b"0" else WATER.encode()
    bomb = (
        compress(body) + compress(part * (300_000 // len(part))) * 40
    )  # streams one after the other are a file
    for name in ("a.xyz", "POSCAR.vasp"):
        (tmp_path / f"{name}.{suffix}").write_bytes(bomb)
        refused(load_frames, str(tmp_path / f"{name}.{suffix}"))
        refused(read_structure, str(tmp_path / f"{name}.{suffix}"))


@pytest.mark.parametrize(
    ("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)]
)
def test_what_is_compressed_well_is_read(suffix, compress, tmp_path):
    path = tmp_path / f"a.xyz.{suffix}"
    path.write_bytes(compress(WATER.encode() * 1000))
    assert len(load_frames(str(path))) == count(str(path)) == 1000
    assert len(read_structure(str(path))) == 3


ALIASES = "a0: &a0 [1, 1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGES = "a0: &a0 {x0: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], x{n}: 1}}\n" for n in range(1, 26)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ALIASES, "aliases stand for more than"),
        (MERGES, "aliases stand for more than"),
        ("a: &a [*a]", "aliases stand for more than"),
        ("[" * 20_000, "not valid YAML"),
        ("- " * 20_000, "not valid YAML"),
        ("? " * 20_000, "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: 2001-99-99", "not valid YAML"),
        ("a: !!bool x", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("# " + "x" * 300_000, "bytes"),
    ],
)
def test_a_configuration_is_as_large_as_its_text(text, said, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    assert said in refused(load_config, tmp_path / "run.yaml")
    (tmp_path / "a.xyz").write_text(WATER)
    (tmp_path / "a.xyz.yaml").write_text(text)
    assert said in refused(load_frames, str(tmp_path / "a.xyz"))


def test_aliases_are_read_where_they_are_few():
    assert parse_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}") == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": {"x": 1, "y": 2},
    }


def pipe(folder: Path, name: str) -> Path:
    os.mkfifo(folder / name)
    return folder / name


@pytest.mark.parametrize(
    "name", ["a.xyz", "a.npz", "a.h5", "a.db", "a.aselmdb", "a.lmdb", "OUTCAR", "input.data"]
)
def test_pipes_and_devices_are_no_data(name, tmp_path):
    for read in (load_frames, read_structure):
        path = tmp_path / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        assert "is a pipe" in refused(read, str(path))
        path.unlink()
        path.symlink_to("/dev/zero")
        assert "a device" in refused(read, str(path))


def test_pipes_are_no_configurations_and_no_models(tmp_path):
    assert "is a pipe" in refused(load_config, pipe(tmp_path, "run.yaml"))
    assert "is a pipe" in refused(read_checkpoint, pipe(tmp_path, "best.ckpt"))
    assert "is a folder" in refused(load_config, tmp_path)
    for name in ("model.pimlip", "model.nequip.pth"):
        assert "is a pipe" in refused(read_metadata, pipe(tmp_path, name))


DEVICES = [os.mkfifo, lambda path: path.symlink_to("/dev/zero")]


def place(kind: Callable[[Path], None], path: Path) -> Path:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind(path)
    return path


@pytest.mark.parametrize("kind", DEVICES, ids=["pipe", "device"])
def test_pipes_and_devices_are_no_small_files_either(kind, tmp_path):
    (tmp_path / "a.xyz").write_text(WATER)
    split = place(kind, tmp_path / "split.json")
    assert "split.json: is a pipe" in refused(load_frames, f"{tmp_path / 'a.xyz'}@{split}:train")
    place(kind, tmp_path / "a.xyz.yaml")
    assert "a.xyz.yaml: is a pipe" in refused(load_frames, str(tmp_path / "a.xyz"))
    place(kind, tmp_path / "run" / "metrics.csv")
    assert "metrics.csv: is a pipe" in refused(read_metrics, tmp_path / "run" / "metrics.csv")
    place(kind, tmp_path / "run" / "parity.npz")
    assert "parity.npz: is a pipe" in refused(load_pairs, tmp_path / "run" / "parity.npz")
    place(kind, tmp_path / "run" / "data.json")
    assert "data.json: is a pipe" in refused(check_data, tmp_path / "run", {})
    place(kind, tmp_path / "curve" / "one" / "result.json")
    assert "result.json: is a pipe" in refused(collect, tmp_path / "curve")
    place(kind, tmp_path / "stored.lmdb" / "shard-00000.lmdb")
    assert "shard-00000.lmdb: is a pipe" in refused(load_frames, str(tmp_path / "stored.lmdb"))
    place(kind, tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert "best.ckpt: is a pipe" in refused(load_potential, tmp_path / "run")
    assert "is a pipe" in refused(find_cheap_calculator, f"run:{tmp_path / 'run'}")
    partial = place(kind, partial_path(tmp_path / "out.lmdb") / "conversion.json")
    (tmp_path / "a.xyz.yaml").unlink()
    refused(convert, str(tmp_path / "a.xyz"), tmp_path / "out.lmdb")
    partial.unlink()


@pytest.mark.parametrize("kind", DEVICES, ids=["pipe", "device"])
@pytest.mark.parametrize("name", ["type.raw", "type_map.raw", "set.000/coord.npy", "set.000/energy.npy"])
def test_pipes_and_devices_are_no_parts_of_a_folder(kind, name, tmp_path):
    folder = tmp_path / "system"
    (folder / "set.000").mkdir(parents=True)
    (folder / "type.raw").write_text("0 0\n")
    (folder / "type_map.raw").write_text("H\n")
    (folder / "nopbc").touch()
    np.save(folder / "set.000" / "coord.npy", np.arange(6.0)[None])
    np.save(folder / "set.000" / "energy.npy", np.zeros(1))
    assert len(load_frames(str(folder))) == 1
    place(kind, folder / name)
    assert f"{name}: is a pipe" in refused(load_frames, str(folder))


def test_a_file_without_an_end_is_no_small_file(tmp_path):
    (tmp_path / "a.xyz").write_text(WATER)
    for name, spec in (("split.json", "a.xyz@split.json:train"), ("a.xyz.yaml", "a.xyz")):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 10**11)
        assert f"{name}: has 100000000000 bytes" in refused(
            load_frames,
            spec.replace("a.xyz", str(tmp_path / "a.xyz")).replace(
                "split.json", str(tmp_path / "split.json")
            ),
        )


def test_hdf5_is_read_from_its_own_file_only(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(bytes(240))
    for way in ("raw", "virtual"):
        with h5py.File(tmp_path / f"{way}.h5", "w") as file:
            group = file.create_group("water")
            group["atomic_numbers"] = [8, 1, 1]
            group["energy"] = np.zeros(2)
            if way == "raw":
                place = [(str(tmp_path / "secret"), 0, 144)]
                group.create_dataset("coordinates", (2, 3, 3), "f8", external=place)
            else:
                layout = h5py.VirtualLayout((2, 3, 3), "f8")
                layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (2, 3, 3))
                group.create_virtual_dataset("coordinates", layout)
        spec = f"{tmp_path / way}.h5?energy=eV&length=Å"
        assert "its numbers are in another file" in refused(load_frames, spec)


@pytest.mark.parametrize("entry", ["model/extra/r_max", "model/data/aotinductor/pimlip/x_metadata.json"])
def test_what_describes_an_exported_model_is_short(entry, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(entry, b"0" * 200_000_000)
    assert "not a complete exported model" in refused(read_metadata, tmp_path / "a.pth")


def npy(shape: tuple[int, ...], content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + content


def test_arrays_have_the_bytes_of_their_shape(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("R.npy", npy((10**11, 9, 3)))
        archive.writestr("z.npy", npy((9,), bytes(72)))
    assert "claims an array" in refused(load_frames, str(tmp_path / "a.npz"))
    np.savez_compressed(
        tmp_path / "b.npz", z=np.ones(9, int), R=np.zeros((100_000, 9, 3)), E=np.zeros(100_000)
    )
    assert (tmp_path / "b.npz").stat().st_size < 200_000
    assert "holds more than" in refused(load_frames, str(tmp_path / "b.npz?energy=eV&length=Å"))
    (tmp_path / "system" / "set.000").mkdir(parents=True)
    (tmp_path / "system" / "type.raw").write_text("0 0\n")
    (tmp_path / "system" / "type_map.raw").write_text("H\n")
    (tmp_path / "system" / "set.000" / "coord.npy").write_bytes(npy((10**12, 6)))
    (tmp_path / "system" / "nopbc").touch()
    assert "claims an array" in refused(load_frames, str(tmp_path / "system"))


def test_data_sets_of_hdf5_have_the_bytes_of_their_shape(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("water")
        group["atomic_numbers"] = [8, 1, 1]
        for name, shape in (("coordinates", (2**31, 3, 3)), ("wb97x_dz.energy", (2**31,))):
            group.create_dataset(name, shape, "f8", chunks=(1024, *shape[1:]))
    assert "too small" in refused(load_frames, str(tmp_path / "a.h5"))


def test_a_store_has_no_more_frames_than_room(tmp_path):
    import lmdb

    path = tmp_path / "a.lmdb"
    write_store(path, [Frame(numbers=np.array([1]), positions=np.zeros((1, 3)))])
    with (
        lmdb.open(str(path), subdir=False, lock=False) as environment,
        environment.begin(write=True) as change,
    ):
        meta = json.loads(change.get(META))
        change.put(META, json.dumps({**meta, "count": 2**31, "compositions": 2**31}).encode())
    assert "claims 2147483648 frames" in refused(FrameStore, path)
    assert "claims 2147483648 frames" in refused(load_frames, str(path))


def test_a_database_of_ase_has_no_more_rows_than_room(tmp_path):
    import lmdb

    path = tmp_path / "a.aselmdb"
    with (
        lmdb.open(str(path), subdir=False, lock=False) as environment,
        environment.begin(write=True) as change,
    ):
        change.put(b"nextid", zlib.compress(b"9000000000000000"))
        change.put(b"1", zlib.compress(b"[" + b"0," * 20_000_000 + b"0]"))
    content = bytearray(path.read_bytes())
    for page in (0, 4096):  # LMDB's own count of entries: of the main tree, in each of two headers
        place = page + 16 + 8 + 8 + 8 + 48 + 32
        struct.pack_into("<Q", content, place, 2**60)
    path.write_bytes(content)
    assert "holds more than" in refused(load_frames, str(path))


def _journal(path):
    from pimlip_zoo.labelling.journal import opened_journal

    with opened_journal(path.with_suffix(""), {"name": "lj"}):
        pass


def _of_package(folder):
    """Files that this package writes and reads again, and what reads them."""
    from pimlip_zoo.cli.report import _physics
    from pimlip_zoo.experiment.curve import collect_physics
    from pimlip_zoo.experiment.stable_time import FILE, stable_ps
    from pimlip_zoo.labelling.cluster import MANIFEST, _manifest
    from pimlip_zoo.labelling.uncertainty import load_posterior, posterior_path
    from pimlip_zoo.rounds import TABLE, read_table

    checkpoint = folder / "checkpoints" / "best.ckpt"
    return {
        "rounds": (folder / TABLE, lambda: read_table(folder)),
        "curve": (folder / "point" / "result.json", lambda: collect_physics(folder)),
        "stable time": (folder / FILE, lambda: stable_ps([folder])),
        "manifest": (folder / MANIFEST, lambda: _manifest(folder)),
        "journal": (folder / "a.extxyz.journal", lambda: _journal(folder / "a.extxyz.journal")),
        "uncertainty": (posterior_path(checkpoint), lambda: load_posterior(None, checkpoint)),
        "parity": (folder / "parity.npz", lambda: load_pairs(folder / "parity.npz")),
        "physics": (folder / "physics.json", lambda: _physics(folder, [])),
    }


OF_PACKAGE = ("rounds", "curve", "stable time", "manifest", "journal", "uncertainty", "parity", "physics")


POSCAR = "x\n1.0\n5 0 0\n0 5 0\n0 0 5\n{species}{counts}\nDirect\n0 0 0\n"
DUMP = (
    "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n{}\nITEM: BOX BOUNDS pp pp pp\n0 8\n0 8\n0 8\n"
    "ITEM: ATOMS id type element x y z\n1 1 Cu 0 0 0\n"
)
ANNOUNCED = {
    "a.lammpstrj": DUMP.format(1) + DUMP.format(99999999999),
    "a.lmp": "LAMMPS data\n\n 3000000000 atoms\n1 atom types\n0 8 xlo xhi\n0 8 ylo yhi\n0 8 zlo zhi\n\n"
    "Masses\n\n1 63.5\n\nAtoms # atomic\n\n1 1 0 0 0\n",
    "POSCAR": POSCAR.format(species="H O\n", counts="300000000 1"),
    "of-vasp-4.vasp": POSCAR.format(species="", counts="300000000"),
    "CONTCAR": POSCAR.format(species="H\n", counts="9" * 500),
    "signed.vasp": POSCAR.format(species="H\n", counts="+3_0000_0000"),
    "OUTCAR": " vasp.6.4.2\n POTCAR: PAW_PBE H\n   ions per type =    300000000   1\n",
    "a.json": '{"1": {"numbers": {"__ndarray__": [[300000000], "int64", [1]]}, "ids": [1], "nextid": 2}}',
    "b.json": '{"1": {"positions": {"__ndarray__": [ [ 30000,\\n 30000 ], "float64", [0]]}, "ids": [1]}}'.replace(
        "\\n", "\n"
    ),
    "a.extxyz": "1\nProperties=species:S:1:pos:R:3:x:R:4000000000\nH 0 0 0\n",
    "signed.extxyz": "1\nProperties=species:S:1:pos:R:3:x:R:+4_000_000_000\nH 0 0 0\n",
}


@pytest.mark.parametrize("read", [load_frames, read_structure])
@pytest.mark.parametrize("name", ANNOUNCED)
def test_no_room_is_made_for_what_files_of_ase_announce(name, read, tmp_path):
    (tmp_path / name).write_text(ANNOUNCED[name])
    refused(read, str(tmp_path / name))
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(ANNOUNCED[name].encode()))
    refused(read, str(tmp_path / f"{name}.gz"))


def test_numbers_in_a_comment_behind_counts_are_no_atoms(tmp_path):
    (tmp_path / "a.vasp").write_text(POSCAR.format(species="H\n", counts="1 ! 20230101 # 300000000"))
    assert len(read_structure(str(tmp_path / "a.vasp"))) == 1


@pytest.mark.parametrize(
    "name", ["POSCAR", "a.vasp", "a.json", "a.extxyz", "a.traj", "a.cif", "a.gen", "a.xsf"]
)
def test_what_files_of_ase_announce_and_have_is_read(name, tmp_path):
    atoms = bulk("Cu", cubic=True).repeat(3)
    write(tmp_path / name, atoms)
    assert len(read_structure(str(tmp_path / name))) == 108
    assert len(load_frames(str(tmp_path / name))[0].numbers) == 108


@pytest.mark.parametrize(
    "content", ["pipe", "sparse", "nested", "no data", "an array that unpacks to gigabytes"]
)
@pytest.mark.parametrize("name", OF_PACKAGE)
def test_what_this_package_wrote_may_be_anything_when_it_is_read_again(name, content, tmp_path):
    path, read = _of_package(tmp_path)[name]
    path.parent.mkdir(exist_ok=True)
    if content == "pipe":
        os.mkfifo(path)
    elif content == "sparse":
        path.write_text("")
        os.truncate(path, 10**11)
    elif content == "nested":
        path.write_text("[" * 100_000)
    elif content == "no data":
        path.write_text('{"a": ')
    else:
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("root.npy", "w") as file,
        ):
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 24,)}
            )
            for _ in range(128):
                file.write(bytes(1 << 20))
    if content == "pipe" and name == "physics":
        assert read() == {}  # only a file is looked at
    else:
        refused(read)
