"""Whatever stands in a file, it is read or refused in one line: no traceback, and nothing of another kind."""

from __future__ import annotations

import copy
import gzip
import json
import sqlite3
import warnings
import zlib
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from damage import damaged, odd_npy, odd_npz, odd_table

from pimlip_zoo.config import load_config, parse_settings
from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.frame import frame_to_atoms
from pimlip_zoo.datasets.lmdb import FrameStore, write_store
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.datasets.splits import Split, write_split
from pimlip_zoo.deploy.metadata import read_metadata
from pimlip_zoo.deploy.native.archive import read_native
from pimlip_zoo.deploy.torchscript import export_torchscript, load_torchscript
from pimlip_zoo.errors import InputError
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model
from pimlip_zoo.training.checkpoint import KEY, describe, load_potential, read_checkpoint

FEW, MANY = 25, 1000
UNITS = "?energy=eV&length=Å"


def frames():
    return load_builtin("ethanol-gfn2/train")[:4]


def atoms():
    return [frame_to_atoms(frame) for frame in frames()]


def reads(path):
    return lambda: load_frames(str(path))


def in_units(path):
    return lambda: load_frames(f"{path}{UNITS}")


def extxyz(folder):
    ase.io.write(folder / "a.extxyz", atoms())
    return folder / "a.extxyz", reads


def extxyz_gz(folder):
    path, _ = extxyz(folder)
    (folder / "a.extxyz.gz").write_bytes(gzip.compress(path.read_bytes()))
    return folder / "a.extxyz.gz", reads


def traj(folder):
    ase.io.write(folder / "a.traj", atoms())
    return folder / "a.traj", reads


def database(folder):
    from ase.db import connect

    with connect(folder / "a.db") as rows:
        for one in atoms():
            rows.write(one, data={"tag": 1.0}, kind="x")
        rows.metadata = {"_property_unit_dict": {"energy": "eV", "forces": "eV/Ang"}, "_distance_unit": "Ang"}
    return folder / "a.db", reads


def aselmdb(folder):
    lmdb = pytest.importorskip("lmdb")

    def row(frame):
        def array(values, dtype):
            return {"__ndarray__": [list(values.shape), dtype, values.reshape(-1).tolist()]}

        fields = {
            "numbers": array(frame.numbers, "int64"),
            "positions": array(frame.positions, "float64"),
            "cell": array(frame.cell, "float64"),
            "pbc": array(frame.pbc, "bool"),
            "energy": frame.energy,
            "forces": array(frame.forces, "float64"),
        }
        return zlib.compress(json.dumps(fields).encode())

    place, size = str(folder / "a.aselmdb"), 1 << 20
    with (
        lmdb.open(place, subdir=False, map_size=size, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for number, frame in enumerate(frames(), start=1):
            transaction.put(str(number).encode(), row(frame))
        transaction.put(b"nextid", zlib.compress(b"5"))
    return folder / "a.aselmdb", reads


def store(folder):
    def read(path):
        return lambda: (FrameStore(path).verify(), load_frames(str(path)))

    return write_store(folder / "a.lmdb", frames()), read


def npz(folder):
    these = frames()
    np.savez(
        folder / "a.npz",
        z=these[0].numbers,
        R=np.array([f.positions for f in these]),
        E=np.array([[f.energy] for f in these]),
        F=np.array([f.forces for f in these]),
        e_unit="eV",
        r_unit="Ang",
    )
    return folder / "a.npz", reads


def n2p2(folder):
    lines = []
    for frame in frames():
        lines += ["begin", "comment a b"]
        for symbol, r, f in zip(
            Atoms(numbers=frame.numbers).symbols, frame.positions, frame.forces, strict=True
        ):
            lines.append(f"atom {' '.join(map(str, r))} {symbol} 0 0 {' '.join(map(str, f))}")
        lines += [f"energy {frame.energy}", "charge 0", "end"]
    (folder / "input.data").write_text("\n".join(lines) + "\n")
    return folder / "input.data", in_units


def hdf5(folder):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "a.h5", "w") as file:
        group, these = file.create_group("ethanol"), frames()
        group["atomic_numbers"] = these[0].numbers
        group["coordinates"] = np.array([f.positions for f in these])
        group["wb97x_dz.energy"] = np.array([f.energy for f in these])
        group["wb97x_dz.forces"] = np.array([f.forces for f in these])
    return folder / "a.h5", reads


def deepmd_file(name):
    def make(folder):
        these, system = frames(), folder / "system"
        part = system / "set.000"
        part.mkdir(parents=True)
        n = len(these[0].numbers)
        (system / "type.raw").write_text("0\n" * n)
        (system / "type_map.raw").write_text("H C O\n")
        (system / "nopbc").write_text("")
        types = np.array([[{1: 0, 6: 1, 8: 2}[int(z)] for z in f.numbers] for f in these])
        np.save(part / "real_atom_types.npy", types)
        np.save(part / "coord.npy", np.array([f.positions.reshape(-1) for f in these]))
        np.save(part / "energy.npy", np.array([f.energy for f in these]))
        np.save(part / "force.npy", np.array([f.forces.reshape(-1) for f in these]))
        return next(system.rglob(name)), lambda _: reads(system)

    return make


def sidecar(folder):
    npz(folder)
    (folder / "a.npz.yaml").write_text("energy: eV\nlength: Ang\nforces: eV/Ang\nenergy_key: E\n")
    return folder / "a.npz.yaml", lambda _: reads(folder / "a.npz")


def split(folder):
    extxyz(folder)
    parts = {"train": np.array([0, 2]), "valid": np.array([1])}
    write_split(Split("a.extxyz", 4, "0" * 64, {"name": "random"}, parts), folder / "s.json")
    return folder / "s.json", lambda path: reads(f"{folder}/a.extxyz@{path}:train")


def configuration(folder):
    text = yaml.safe_dump(
        {"model": {"name": "nequip", "channels": 4}, "trainer": {"max_steps": 3}, "seed": 1}
    )
    (folder / "run.yaml").write_text(f"{text}loss: {{forces: {{weight: 10.0}}}}\ndata: {{train: a.xyz}}\n")
    return folder / "run.yaml", lambda path: lambda: load_config(path)


def potential():
    info = get_model("nequip")
    options = {"channels": 2, "avg_num_neighbors": 5.0, "num_layers": 1, "radial_hidden": (4,)}
    return Potential(info.model(info.configure(**options), ("H", "C", "O")))


def checkpoint(folder):
    made = potential()
    weights = {f"potential.{name}": value for name, value in made.state_dict().items()}
    torch.save({KEY: describe(made), "state_dict": weights}, folder / "a.ckpt")
    return folder / "a.ckpt", lambda path: lambda: load_potential(path)


def torchscript(folder):
    export_torchscript(potential(), folder / "a.nequip.pth", name="nequip")
    return folder / "a.nequip.pth", lambda path: lambda: (load_torchscript(path), read_metadata(path))


def native(folder):
    from pimlip_zoo.deploy.metadata import export_metadata
    from pimlip_zoo.deploy.native.archive import TARGETS, NativeFile, write_native

    made = potential()
    metadata = export_metadata(made, name="nequip", dtype=made.model.dtype, training={})
    sources = dict.fromkeys(TARGETS, "int x;")
    write_native(folder / "a.pimlip", NativeFile(metadata, sources, bytes(range(256))))
    return folder / "a.pimlip", lambda path: lambda: read_native(path)


FORMATS = {
    "extxyz": extxyz,
    "extxyz.gz": extxyz_gz,
    "traj": traj,
    "db": database,
    "aselmdb": aselmdb,
    "lmdb": store,
    "npz": npz,
    "n2p2": n2p2,
    "hdf5": hdf5,
    "deepmd-type.raw": deepmd_file("type.raw"),
    "deepmd-type_map.raw": deepmd_file("type_map.raw"),
    "deepmd-coord": deepmd_file("coord.npy"),
    "deepmd-force": deepmd_file("force.npy"),
    "deepmd-types": deepmd_file("real_atom_types.npy"),
    "sidecar": sidecar,
    "split": split,
    "configuration": configuration,
    "checkpoint": checkpoint,
    "torchscript": torchscript,
    "native": native,
}
ARRAYS = {
    "npz": (npz, odd_npz),
    "deepmd-coord": (deepmd_file("coord.npy"), odd_npy),
    "deepmd-force": (deepmd_file("force.npy"), odd_npy),
    "deepmd-energy": (deepmd_file("energy.npy"), odd_npy),
    "deepmd-types": (deepmd_file("real_atom_types.npy"), odd_npy),
}


def attempts(request, many):
    number = request.config.getoption("--mutations") or (MANY if many else FEW)
    request.node.user_properties.append(("tried", number))
    return number


def generator(request, *what):
    seed = request.config.getoption("--mutation-seed")
    return np.random.default_rng([seed, *(zlib.crc32(str(part).encode()) for part in what)])


def is_read_or_refused(read, what):
    """Run a reader; everything but an InputError of one line is a fault."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            read()
    except InputError as error:
        if "\n" in str(error):
            pytest.fail(f"{what}: more than one line: {error}")
        return False
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        pytest.fail(f"{what}: {type(error).__name__}: {error}", pytrace=True)
    return True


def attack(request, tmp_path, name, make, damage, many):
    path, reader = make(tmp_path)
    raw = Path(path).read_bytes()
    assert is_read_or_refused(reader(path), "the file as it was")
    refused = 0
    for number in range(attempts(request, many)):
        changed = damage(raw, generator(request, name, number))
        Path(path).unlink()  # LMDB knows an open file by its inode
        Path(path).write_bytes(changed)
        refused += not is_read_or_refused(reader(path), f"{name}, case {number}")
    assert refused


pace = pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)])


@pace
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_read_or_refused(request, tmp_path, name, many):
    attack(request, tmp_path, name, FORMATS[name], damaged, many)


@pace
@pytest.mark.parametrize("name", ARRAYS)
def test_odd_arrays_are_read_or_refused(request, tmp_path, name, many):
    make, damage = ARRAYS[name]
    attack(request, tmp_path, f"odd {name}", make, damage, many)


@pace
def test_odd_metadata_of_a_database_are_read_or_refused(request, tmp_path, many):
    path, reader = database(tmp_path)
    plain = {"_property_unit_dict": {"energy": "eV", "forces": "eV/Ang"}, "_distance_unit": "Ang"}
    for number in range(attempts(request, many)):
        rng = generator(request, "metadata", number)
        content = (
            odd_table(copy.deepcopy(plain), rng) if number % 2 else damaged(json.dumps(plain).encode(), rng)
        )
        text = json.dumps(content) if isinstance(content, dict) else content.decode(errors="replace")
        with sqlite3.connect(path) as connection:
            connection.execute("update information set value = ? where name = 'metadata'", (text,))
        connection.close()
        is_read_or_refused(reader(path), f"metadata {text}")


@pace
@pytest.mark.parametrize("make", [split, sidecar, configuration])
def test_odd_fields_are_read_or_refused(request, tmp_path, make, many):
    path, reader = make(tmp_path)
    plain = yaml.safe_load(path.read_text())
    for number in range(attempts(request, many)):
        content = odd_table(copy.deepcopy(plain), generator(request, make.__name__, number))
        try:
            text = json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content)
        except TypeError:
            continue
        path.write_text(text)
        is_read_or_refused(reader(path), f"{make.__name__}, case {number}: {text}")


@pace
def test_odd_fields_of_checkpoints_are_read_or_refused(request, tmp_path, many):
    path, _ = checkpoint(tmp_path)
    plain = read_checkpoint(path)
    summary = {"baseline": {"calculator": "gfn2"}, "labels": ["energy"], "config": {"seed": 1}}
    for number in range(attempts(request, many)):
        content = {KEY: copy.deepcopy({**plain[KEY], "summary": summary}), "state_dict": plain["state_dict"]}
        odd_table(content, generator(request, "checkpoint fields", number))
        torch.save(content, path)
        is_read_or_refused(lambda: load_potential(path, difference=True), f"checkpoint, case {number}")


@pace
def test_odd_settings_are_read_or_refused(request, many):
    plain = b"model.channels=4 data.labels=[energy,forces] loss.forces={weight:10.0} optimizer.lr=1e-3 weak.preset=x"
    for number in range(attempts(request, many)):
        text = damaged(plain, generator(request, "settings", number)).decode(errors="replace")
        for word in text.split() or [text]:
            is_read_or_refused(lambda word=word: load_config(None, parse_settings([word])), f"--set {word!r}")
