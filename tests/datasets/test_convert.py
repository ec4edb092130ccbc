import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys

import ase.io
import lmdb
import numpy as np
import pytest
from example_frames import assert_same, crystal, molecule

from pimlip_zoo.datasets import convert as convert_module
from pimlip_zoo.datasets.convert import convert
from pimlip_zoo.datasets.frame import frame_to_atoms
from pimlip_zoo.datasets.lmdb import FrameStore
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.errors import InputError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A list of files of several formats, 97 frames."""
    folder = tmp_path_factory.mktemp("data")
    frames = [(molecule, crystal)[k % 2](k, 1 + k % 6) for k in range(60)]
    ase.io.write(folder / "a.extxyz", [frame_to_atoms(f) for f in frames])
    ase.io.write(folder / "b.traj", [frame_to_atoms(f) for f in frames[:7]])
    rng = np.random.default_rng(0)
    np.savez(
        folder / "c.npz",
        z=[1, 6, 8],
        R=rng.normal(size=(30, 3, 3)) + np.arange(9.0).reshape(3, 3) * 3,
        E=rng.normal(size=30),
        F=rng.normal(size=(30, 3, 3)),
        e_unit="kcal/mol",
        r_unit="Ang",
    )
    return f"{folder}/a.extxyz,{folder}/b.traj,{folder}/c.npz"


@pytest.mark.parametrize(("shard_frames", "workers"), [(1000, 1), (40, 1), (7, 1), (40, 2)])
def test_a_converted_set_is_the_set(tmp_path, data, shard_frames, workers):
    seen = []
    result = convert(
        data,
        tmp_path / "a.lmdb",
        shard_frames=shard_frames,
        workers=workers,
        meta={"level_of_theory": "random"},
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (result.frames, result.skipped) == (97, 0)
    assert result.path.is_file() == (shard_frames == 1000)
    store = FrameStore(result.path)
    assert store.verify() == 97
    for frame, read in zip(load_frames(data), store, strict=True):
        assert_same(frame, read)
    assert store.meta[0]["level_of_theory"] == "random"
    assert seen[-1] == (97, None), "the trajectory's length is not known beforehand"
    assert [p.name for p in tmp_path.iterdir()] == ["a.lmdb"]


def test_slices_are_kept_across_shards(tmp_path, data):
    spec = ",".join(f"{part}@3:-2:2" for part in data.split(","))
    convert(spec, tmp_path / "a.lmdb", shard_frames=5)
    for frame, read in zip(load_frames(spec), FrameStore(tmp_path / "a.lmdb"), strict=True):
        assert_same(frame, read)


def with_bad_frames(folder):
    atoms = [frame_to_atoms(molecule(k, 4)) for k in range(20)]
    atoms[3].positions[1] = atoms[3].positions[0]
    atoms[11].positions[0, 0] = np.nan
    ase.io.write(folder / "bad.extxyz", atoms)
    return f"{folder}/bad.extxyz"


def test_a_bad_frame_ends_the_conversion_and_leaves_no_store(tmp_path):
    spec = with_bad_frames(tmp_path)
    with pytest.raises(InputError, match="frame 3, positions: atoms 0 and 1 are on one spot"):
        convert(spec, tmp_path / "a.lmdb")
    assert not (tmp_path / "a.lmdb").exists()


@pytest.mark.parametrize("shard_frames", [100, 6])
def test_bad_frames_are_left_out_and_listed_on_request(tmp_path, shard_frames):
    spec = with_bad_frames(tmp_path)
    result = convert(spec, tmp_path / "a.lmdb", skip_bad=True, shard_frames=shard_frames)
    assert (result.frames, result.skipped) == (18, 2)
    assert "frame 3" in result.reasons[0]
    assert "frame 11" in result.reasons[1]
    meta = FrameStore(tmp_path / "a.lmdb").meta
    assert sum(m["skipped"] for m in meta) == 2
    assert [line for m in meta for line in m["skipped_list"]] == list(result.reasons)


def test_a_store_that_is_there_is_not_touched_unless_told(tmp_path, data):
    convert(data, tmp_path / "a.lmdb")
    with pytest.raises(InputError, match=r"is there already .*--overwrite"):
        convert(f"{data.split(',')[0]}", tmp_path / "a.lmdb")
    assert len(FrameStore(tmp_path / "a.lmdb")) == 97
    convert(data.split(",")[0], tmp_path / "a.lmdb", overwrite=True, shard_frames=10)
    assert len(FrameStore(tmp_path / "a.lmdb")) == 60
    convert(data, tmp_path / "a.lmdb", overwrite=True)
    assert len(FrameStore(tmp_path / "a.lmdb")) == 97
    assert [p.name for p in tmp_path.iterdir()] == ["a.lmdb"]


def test_a_store_is_not_named_as_another_format(tmp_path, data):
    with pytest.raises(InputError, match=r"a store is LMDB.*name it new\.lmdb"):
        convert(data, tmp_path / "new.extxyz")
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_was_renamed_is_said_to_be_binary(tmp_path, data):
    convert(data, tmp_path / "a.lmdb")
    (tmp_path / "a.lmdb").rename(tmp_path / "a.extxyz")
    with pytest.raises(InputError, match=r"is a binary file.*\?format=lmdb"):
        load_frames(str(tmp_path / "a.extxyz"))


def test_another_conversions_remains_are_not_mixed_in(tmp_path, data):
    spec = with_bad_frames(tmp_path)
    with pytest.raises(InputError):
        convert(spec, tmp_path / "a.lmdb")
    with pytest.raises(InputError, match=r"another conversion left .*--restart"):
        convert(data, tmp_path / "a.lmdb")
    assert convert(data, tmp_path / "a.lmdb", restart=True).frames == 97


def test_nothing_usable_is_an_error(tmp_path):
    (tmp_path / "a.xyz").write_text("1\nProperties=species:S:1:pos:R:3\nH nan 0 0\n")
    with pytest.raises(InputError, match="no frame that can be used"):
        convert(f"{tmp_path}/a.xyz", tmp_path / "a.lmdb", skip_bad=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.xyz"]


# The system ends the process after so much CPU time, wherever it then is, however busy the machine.
SCRIPT = """
import signal, sys
from pimlip_zoo.datasets import convert as module, lmdb
from pimlip_zoo.datasets.lmdb import writer
writer._COMMIT_FRAMES = 50  # many commits in a short time
signal.setitimer(signal.ITIMER_PROF, float(sys.argv[4]))
module.convert(sys.argv[1], sys.argv[2], shard_frames=int(sys.argv[3]))
signal.setitimer(signal.ITIMER_PROF, 0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs timers of CPU time")
@pytest.mark.parametrize("shard_frames", [100_000, 700])
def test_killed_at_random_moments_nothing_is_lost(tmp_path, shard_frames):
    rng = np.random.default_rng(0)
    m = 4000
    base = np.arange(27.0).reshape(9, 3)
    np.savez(
        tmp_path / "a.npz",
        z=[6, 6, 8, 1, 1, 1, 1, 1, 1],
        R=base + rng.normal(size=(m, 9, 3)),
        E=np.arange(m, dtype=float),
        F=rng.normal(size=(m, 9, 3)),
        e_unit="eV",
        r_unit="Ang",
    )
    out = tmp_path / "a.lmdb"
    command = [sys.executable, "-c", SCRIPT, f"{tmp_path}/a.npz", str(out), str(shard_frames)]
    random_ = random.Random(0)

    def attempt(cpu_seconds):
        job = subprocess.run(
            [*command, str(cpu_seconds)],
            check=False,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert job.returncode in (0, -signal.SIGPROF), job.stderr.decode()
        return job.returncode != 0

    # 4,000 frames in 80 commits take several times 20 ms; the later attempts may reach the end
    kills = attempt(0.02)
    assert kills
    while kills < 8 and attempt(0.005 + 0.1 * random_.random()):
        kills += 1
    # a kill after the last new name finds the work done, and leaves no more than the folder of the parts
    if not out.exists():
        assert not attempt(0)
        assert not (tmp_path / "a.lmdb.partial").exists()
    store = FrameStore(out)
    assert store.verify() == m
    assert [frame.energy for frame in store] == list(map(float, range(m)))


@pytest.mark.parametrize("shard_frames", [100_000, 20])
def test_a_kill_between_the_last_commit_and_the_new_name_repeats_no_frame(
    tmp_path, monkeypatch, shard_frames
):
    from pimlip_zoo.datasets.lmdb import writer

    class Killed(BaseException):
        pass

    def kill(*args, **kwargs):
        raise Killed

    out, spec = tmp_path / "a.lmdb", "builtin:ethanol-gfn2/train@:30"
    with monkeypatch.context() as patch:
        patch.setattr(writer, "pad_to_header", kill)
        with pytest.raises(Killed):
            convert(spec, out, shard_frames=shard_frames)
    assert any((tmp_path / "a.lmdb.partial").glob("*.partial"))
    assert convert(spec, out, shard_frames=shard_frames).frames == 30
    assert [f.energy for f in FrameStore(out)] == [f.energy for f in load_frames(spec)]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a place where nobody may write")
def test_a_place_where_nobody_may_write_is_named_and_mended(data):
    with pytest.raises(InputError, match=r"/proc/a\.lmdb\.partial: cannot be made: .* \(name a place"):
        convert(data, "/proc/a.lmdb")


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.ENOSPC, "make room"), (errno.EROFS, "name a place"), (errno.EPERM, "may write")],
)
def test_what_the_system_refuses_is_one_line_with_the_mend(monkeypatch, capsys, number, hint):
    from pimlip_zoo import cli

    def refuse():
        raise OSError(number, os.strerror(number), "a.lmdb")

    monkeypatch.setattr(cli, "app", refuse)
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.startswith("pimlip-zoo: a.lmdb: ")
    assert hint in said
    assert said.count("\n") == 1


def test_the_command_line_converts_and_says_how_many(tmp_path, data):
    from typer.testing import CliRunner

    from pimlip_zoo.cli.data import app

    run = CliRunner().invoke(app, ["convert", data, "-o", str(tmp_path / "a.lmdb")])
    assert run.exit_code == 0
    assert "97 structures in" in run.output
    run = CliRunner().invoke(app, ["info", str(tmp_path / "a.lmdb"), "--json", str(tmp_path / "i.json")])
    assert run.exit_code == 0
    assert json.loads((tmp_path / "i.json").read_text())["structures"] == 97


def test_check_exits_3_when_training_would_be_refused(tmp_path):
    from typer.testing import CliRunner

    from pimlip_zoo.cli.data import app

    data = "builtin:ethanol-gfn2/train@:300"
    files = ["--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")]
    run = CliRunner().invoke(app, ["check", data, "--valid", "builtin:ethanol-gfn2/valid", *files])
    assert run.exit_code == 0, run.output
    assert json.loads((tmp_path / "a.json").read_text())["refused"] is False
    assert "<html" in (tmp_path / "a.html").read_text()
    run = CliRunner().invoke(app, ["check", data, "--test", "builtin:ethanol-gfn2/train@290:310"])
    assert run.exit_code == 3
    assert "also in train" in run.output.replace("\n", " ")


def test_what_is_no_store_is_not_replaced_and_neither_is_what_has_a_name_like_it(tmp_path, data):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in ("run/checkpoints/best.ckpt", "run/notes", "notes.txt", "a.lmdb.old"):
        (tmp_path / name).write_text("mine")
    for name in ("run", "run/checkpoints", "notes.txt"):
        with pytest.raises(InputError, match=r"is a folder with other things than a store|is not a store"):
            convert(data, tmp_path / name, overwrite=True)
    for shard_frames in (100, 10, 10, 100):
        convert(data, tmp_path / "a.lmdb", overwrite=True, shard_frames=shard_frames)
        assert len(FrameStore(tmp_path / "a.lmdb")) == 97
    (tmp_path / "a.lmdb").rename(tmp_path / "store")
    convert(data, tmp_path / "store", overwrite=True)
    (tmp_path / "empty").mkdir()  # what a conversion leaves that was killed in its last moment
    (tmp_path / "empty" / "conversion.json").write_text('{"fingerprint": {}, "tasks": []}')
    shutil.copy(tmp_path / "store", tmp_path / "empty" / "replaced")
    convert(data, tmp_path / "empty", overwrite=True)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"run/checkpoints/best.ckpt", "run/notes", "notes.txt", "a.lmdb.old", "store", "empty"}
    assert all((tmp_path / name).read_text() == "mine" for name in left - {"store", "empty"})


def listed(folder):
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def foreign(path, *, subdir):
    environment = lmdb.open(str(path), subdir=subdir, map_size=1 << 20, lock=False)
    with environment, environment.begin(write=True) as transaction:
        transaction.put(b"key", b"of another program")


def test_overwriting_removes_stores_of_this_package_and_nothing_else(tmp_path, data):
    stores = tmp_path / "stores"  # two sets in one folder: neither is a shard of the other
    stores.mkdir()
    convert(f"{data.split(',')[0]}@:3", stores / "train.lmdb")
    convert(f"{data.split(',')[0]}@3:5", stores / "test.lmdb")
    for name in (
        "a.lmdb/weights.pt",
        "shard-00000.lmdb/weights.pt",
        "data.mdb",
        "replaced/mine",
        "conversion.json",
    ):
        (tmp_path / name.replace("/", "-").replace(".", "-") / name).parent.mkdir(parents=True)
        (tmp_path / name.replace("/", "-").replace(".", "-") / name).write_text("mine")
    foreign(tmp_path / "foreign", subdir=True)
    foreign(tmp_path / "foreign.lmdb", subdir=False)
    (tmp_path / "notes.lmdb").write_text("mine")
    before = listed(tmp_path)
    for path in list(tmp_path.iterdir()):
        with pytest.raises(InputError, match=r"with other things than a store|is there, and is not a store"):
            convert(data, path, overwrite=True)
    assert listed(tmp_path) == before


def test_a_damaged_store_is_replaced(tmp_path, data):
    out = tmp_path / "a.lmdb"
    convert(data, out)
    os.truncate(out, out.stat().st_size // 2)
    convert(data, out, overwrite=True)
    assert len(FrameStore(out)) == 97


@pytest.mark.parametrize("restart", [False, True])
def test_nothing_of_others_is_removed_where_a_store_is_made(tmp_path, data, restart):
    folder = tmp_path / "a.lmdb.partial"
    folder.mkdir()
    (folder / "my.txt").write_text("mine")
    with pytest.raises(
        InputError, match=r"a\.lmdb\.partial: .* holds other things: my\.txt \(move them away"
    ):
        convert(data, tmp_path / "a.lmdb", restart=restart)
    assert (folder / "my.txt").read_text() == "mine"


def test_a_conversion_does_not_replace_what_it_reads(tmp_path, data):
    one, several = tmp_path / "a.lmdb", tmp_path / "b.lmdb"
    convert(data, one)
    convert(data, several, shard_frames=50)
    before = listed(tmp_path)
    (tmp_path / "link.lmdb").symlink_to(one)
    for spec, out in (
        (f"{one}@:2", one),
        (f"{data},{one}", one),
        (str(one), tmp_path / "link.lmdb"),
        (str(several), several),
        (f"{several}/shard-00000.lmdb", several),
    ):
        with pytest.raises(InputError, match=r"--out: would replace .*, which is read"):
            convert(spec, out, overwrite=True)
    with pytest.raises(InputError, match=r"new\.lmdb, --out: would be a part of the data in .*b\.lmdb"):
        convert(str(several), several / "new.lmdb")
    (tmp_path / "link.lmdb").unlink()
    assert listed(tmp_path) == before


def hydrogen(folder, *, linked=False):
    """Six molecules as DeePMD-kit has them, their arrays perhaps behind a link."""
    arrays = folder.parent / "arrays" if linked else folder / "set.000"
    folder.mkdir()
    arrays.mkdir()
    if linked:
        (folder / "set.000").symlink_to(arrays)
    (folder / "type.raw").write_text("0 0\n")
    (folder / "type_map.raw").write_text("H\n")
    (folder / "nopbc").touch()
    np.save(arrays / "coord.npy", np.tile(np.arange(6.0), (6, 1)))
    np.save(arrays / "energy.npy", np.arange(6.0))
    return folder


def test_a_source_that_changes_meanwhile_makes_no_store(tmp_path, monkeypatch):
    folder, made = hydrogen(tmp_path / "system"), convert_module._make_shard

    def replaced(place, settings, number, *rest):
        if number == 1:
            np.save(folder / "set.000" / "energy.npy", np.arange(6.0) + 100)
        return made(place, settings, number, *rest)

    monkeypatch.setattr(convert_module, "_make_shard", replaced)
    with pytest.raises(InputError, match=r"system: changed while it was converted.*--restart"):
        convert(str(folder), tmp_path / "a.lmdb", shard_frames=2)
    assert not (tmp_path / "a.lmdb").exists()
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"another conversion left .*--restart"):
        convert(str(folder), tmp_path / "a.lmdb", shard_frames=2)
    store = convert(str(folder), tmp_path / "a.lmdb", shard_frames=2, restart=True)
    assert [frame.energy for frame in FrameStore(store.path)] == [100.0 + k for k in range(6)]


def test_links_that_go_round_do_not_hold_a_conversion(tmp_path):
    folder = hydrogen(tmp_path / "system")
    for name in ("a", "b", "c"):
        (folder / name).symlink_to(folder)
    assert convert(str(folder), tmp_path / "a.lmdb").frames == 6


@pytest.mark.parametrize("changed", ["labels in a folder", "labels behind a link", "level of theory"])
def test_a_conversion_that_goes_on_reads_what_it_read_before(tmp_path, changed, monkeypatch):
    """A folder's own time of change does not tell that a file in it was rewritten."""
    folder = hydrogen(tmp_path / "system", linked=changed == "labels behind a link")
    made = convert_module._make_shard

    def interrupted(place, settings, number, *rest):
        if number == 2:
            raise KeyboardInterrupt
        return made(place, settings, number, *rest)

    monkeypatch.setattr(convert_module, "_make_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(str(folder), tmp_path / "a.lmdb", shard_frames=2, meta={"level_of_theory": "PBE"})
    monkeypatch.undo()
    level = "PBE"
    if changed == "level of theory":
        level = "r2SCAN"
    else:
        np.save(folder / "set.000" / "energy.npy", np.arange(6.0) + 100)
    with pytest.raises(InputError, match=r"another conversion left .*--restart"):
        convert(str(folder), tmp_path / "a.lmdb", shard_frames=2, meta={"level_of_theory": level})
    store = convert(
        str(folder), tmp_path / "a.lmdb", shard_frames=2, meta={"level_of_theory": level}, restart=True
    )
    assert [frame.energy for frame in FrameStore(store.path)] == [
        frame.energy for frame in load_frames(str(folder))
    ]
