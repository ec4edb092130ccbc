import json
import multiprocessing
import os
import pickle
import shutil
import struct
import sys
from dataclasses import replace
from hashlib import sha256

import lmdb
import numpy as np
import pytest
from example_frames import assert_same, crystal, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from pimlip_zoo.datasets.coverage import coverage
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.frames import as_frames
from pimlip_zoo.datasets.lmdb import (
    FrameStore,
    StoreWriter,
    environment,
    partial_path,
    write_store,
)
from pimlip_zoo.datasets.lmdb.environment import check_pages
from pimlip_zoo.datasets.lmdb.index import BLOCK, ENTRY, entries_of, entry_of
from pimlip_zoo.datasets.lmdb.keys import META, checksum_key, frame_key, index_key
from pimlip_zoo.datasets.lmdb.record import HEADER, RecordError, decode, encode, encode_all
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.datasets.store_frames import StoredFrames
from pimlip_zoo.errors import InputError


def mixed(count=30):
    """Molecules and crystals, with and without each label."""
    frames = []
    for seed in range(count):
        make = (molecule, crystal)[seed % 2]
        changes = [
            {},
            {"energy": None},
            {"forces": None},
            {"weight": 2.5, "info": {"config_type": "a", "n": 3}},
        ]
        frames.append(make(seed, 1 + seed % 9, **changes[seed % 4]))
    return frames


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store") / "a.lmdb", mixed(), meta={"level_of_theory": "PBE"})


finite = st.floats(-1e6, 1e6)


@given(st.integers(0, 2**32 - 1), st.integers(0, 20), finite, st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_frame_survives_bit_by_bit(seed, n, energy, labelled, periodic, stressed):
    rng = np.random.default_rng(seed)
    frame = Frame(
        numbers=rng.integers(1, 119, n),
        positions=rng.normal(size=(n, 3)),
        cell=rng.normal(size=(3, 3)) * periodic,
        pbc=rng.random(3) < 0.5 * periodic,
        energy=energy if labelled else None,
        forces=rng.normal(size=(n, 3)) if labelled else None,
        stress=rng.normal(size=(3, 3)) if stressed else None,
        weight=energy,
        info={"name": "å", "value": energy, "flag": labelled},
    )
    back = decode(encode(frame))
    assert_same(frame, back)
    assert back.info == frame.info
    single = decode(encode(frame, float32=True))
    np.testing.assert_array_equal(single.positions, frame.positions.astype(np.float32))
    assert single.energy == frame.energy
    assert single.positions.dtype == np.float64


@given(st.integers(0, 10**6), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_a_changed_byte_of_a_frame_is_noticed(at, value):
    data = bytearray(encode(crystal(1, info={"a": 1})))
    at %= len(data)
    if data[at] == value:
        value ^= 1
    data[at] = value
    with pytest.raises(RecordError):
        decode(bytes(data))


@pytest.mark.parametrize("n", [2**32 - 1, 2**28 + 1, 1000])
def test_a_length_that_does_not_fit_allocates_nothing(n):
    data = HEADER.pack(0, 1, 3, 0, n, 0, 0.0, 1.0) + b"x" * 100
    with pytest.raises(RecordError, match="132 bytes where"):
        decode(data)


def test_a_pickle_is_no_frame():
    with pytest.raises(RecordError):
        decode(pickle.dumps({"positions": np.zeros((100, 3))}))


def test_a_store_gives_back_what_was_written(path):
    store = FrameStore(path)
    assert len(store) == 30
    for frame, read in zip(mixed(), store, strict=True):
        assert_same(frame, read)
        assert read.info == frame.info
    assert store[-1].energy == mixed()[-1].energy
    with pytest.raises(IndexError):
        store[30]
    assert store.meta[0]["level_of_theory"] == "PBE"
    assert store.verify() == 30


def test_the_index_knows_sizes_edges_labels_and_compositions(path):
    from pimlip_zoo.datasets.neighbours import neighbour_list

    store, frames = FrameStore(path), mixed()
    entries = store.index
    assert entries["natoms"].tolist() == [len(f.numbers) for f in frames]
    for entry, frame in zip(entries, frames, strict=True):
        pairs, _ = neighbour_list(frame.positions, frame.cell, frame.pbc, store.index_cutoff)
        assert entry["edges"] == pairs.shape[1]
        np.testing.assert_array_equal(
            store.compositions[entry["composition"]], np.bincount(frame.numbers, minlength=119)
        )
        if frame.forces is not None:
            assert entry["force_square"] == pytest.approx((frame.forces**2).sum())
            assert entry["force_max"] == pytest.approx(np.linalg.norm(frame.forces, axis=1).max())
    assert store.coverage() == coverage(frames)


def test_a_store_is_read_like_any_data(path):
    frames = load_frames(f"{path}@10:20:3")
    assert [f.energy for f in frames] == [f.energy for f in mixed()[10:20:3]]
    with pytest.raises(InputError, match="units and labels are fixed"):
        load_frames(f"{path}?energy=kcal/mol")


def test_many_commits_and_index_blocks_give_the_same_store(tmp_path):
    count = 2 * BLOCK + 10
    frame = molecule(0, 1)
    with StoreWriter(tmp_path / "a.lmdb", durable=False) as writer:
        for i in range(count):
            writer.append(frame)
            if i % 1777 == 0:
                writer.commit()
    store = FrameStore(tmp_path / "a.lmdb")
    assert len(store.index) == count
    assert len(np.unique(store.index["digest"])) == 1
    assert len(store.compositions) == 1


def test_the_map_grows_with_the_data(tmp_path):
    frame = molecule(0, 64)
    big = Frame(
        numbers=np.tile(frame.numbers, 2000), positions=np.random.default_rng(0).random((128000, 3)) * 500
    )
    write_store(tmp_path / "a.lmdb", [big] * 8)
    assert (tmp_path / "a.lmdb").stat().st_size > 16 << 20
    assert_same(FrameStore(tmp_path / "a.lmdb")[7], big)


def test_an_interrupted_store_goes_on_where_it_was_committed(tmp_path):
    target = tmp_path / "a.lmdb"
    writer = StoreWriter(target)
    frames = mixed()
    for frame in frames[:10]:
        writer.append(frame)
    writer.commit({"next": 10})
    for frame in frames[10:17]:
        writer.append(frame)
    writer.close()
    assert not target.exists()
    assert partial_path(target).exists()
    writer = StoreWriter(target, resume=True)
    assert (len(writer), writer.progress) == (10, {"next": 10})
    for frame in frames[10:]:
        writer.append(frame)
    writer.finish()
    store = FrameStore(target)
    assert store.verify() == 30
    for frame, read in zip(frames, store, strict=True):
        assert_same(frame, read)
    assert not partial_path(target).exists()


def test_an_error_while_writing_leaves_nothing(tmp_path):
    def fail():
        with StoreWriter(tmp_path / "a.lmdb") as writer:
            writer.append(molecule())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_shards_are_numbered_through(tmp_path):
    frames = mixed()
    write_store(tmp_path / "s" / "shard-00000.lmdb", frames[:7])
    write_store(tmp_path / "s" / "shard-00001.lmdb", frames[7:20])
    write_store(tmp_path / "s" / "shard-00002.lmdb", frames[20:])
    store = FrameStore(tmp_path / "s")
    assert [len(m) > 0 for m in store.meta] == [True] * 3
    for frame, read in zip(frames, store, strict=True):
        assert_same(frame, read)
    assert store.coverage() == coverage(frames)
    assert store.verify() == 30


def energy_of(store, index, queue):
    queue.put(store[index].energy)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_open_the_store_for_themselves(path, method):
    if method == "fork" and sys.platform == "win32":
        pytest.skip("no fork here")
    context = multiprocessing.get_context(method)
    store = FrameStore(path)
    assert store[4].energy is not None
    queue = context.Queue()
    workers = [context.Process(target=energy_of, args=(store, 4, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for _ in workers] == [store[4].energy] * 2
    for worker in workers:
        worker.join()
    assert_same(pickle.loads(pickle.dumps(store))[3], store[3])


def edited(path, tmp_path, edit):
    """A copy of a store with something changed through LMDB."""
    copy = tmp_path / "edited.lmdb"
    copy.write_bytes(path.read_bytes())
    with (
        lmdb.open(str(copy), subdir=False, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        edit(transaction)
    return copy


def change_meta(**changes):
    def edit(transaction):
        meta = json.loads(transaction.get(META))
        transaction.put(META, json.dumps({**meta, **changes}).encode())

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change_meta(version=2), "has version 2 of the format, this package knows 1 .*update pimlip-zoo"),
        (change_meta(version="x"), "has version 'x'"),
        (change_meta(format="other"), "is no store"),
        (change_meta(count=10**15), "impossible count"),
        (change_meta(count=-1), "impossible count"),
        (change_meta(count=40), "block 0 of its index"),
        (change_meta(compositions=2), "composition that is not there"),
        (lambda t: t.delete(META), "is no store"),
        (lambda t: t.put(META, b"\xff{"), "unreadable metadata"),
        (lambda t: t.put(META, b"[" * 100_000), "unreadable metadata"),
        (lambda t: t.delete(frame_key(3)), "frame 3: is missing"),
        (lambda t: t.put(frame_key(3), t.get(frame_key(4))), "frame 3: the index does not fit the frame"),
        (lambda t: t.put(frame_key(3), pickle.dumps([1])), "frame 3: is damaged"),
    ],
)
def test_a_store_that_was_tampered_with_is_refused(path, tmp_path, edit, message):
    with pytest.raises(InputError, match=message):
        FrameStore(edited(path, tmp_path, edit)).verify()


@pytest.mark.parametrize("name", ENTRY.names)
def test_every_number_of_the_index_is_compared(path, tmp_path, name):
    def edit(transaction):
        entries = np.frombuffer(transaction.get(index_key(0)), ENTRY).copy()
        frame = int(np.flatnonzero((entries["force_atoms"] > 0) & ~np.isnan(entries["energy"]))[1])
        value = entries[name][frame]
        if value.dtype.kind == "f":
            entries[name][frame] = value * (1 + 1e-5)
        else:
            entries[name][frame] ^= entries.dtype[name].type(
                1
            )  # NumPy 1 mixes no unsigned numbers with whole ones
        transaction.put(index_key(0), entries.tobytes())

    with pytest.raises(
        InputError, match=r"does not fit the frame|the composition has another number|damaged"
    ):
        FrameStore(edited(path, tmp_path, edit)).verify()


@pytest.mark.parametrize("float32", [False, True])
def test_the_index_is_that_of_the_numbers_that_are_kept(tmp_path, float32):
    frames = [molecule(seed, 12) for seed in range(300)]
    store = FrameStore(write_store(tmp_path / "a.lmdb", frames, float32=float32))
    assert store.verify() == 300


@pytest.mark.parametrize("cutoff", [None, "5", 0, -1, float("nan"), float("inf")])
def test_an_impossible_cutoff_of_the_index_is_refused(path, tmp_path, cutoff):
    with pytest.raises(InputError, match="impossible index_cutoff"):
        FrameStore(edited(path, tmp_path, change_meta(index_cutoff=cutoff)))


@pytest.mark.parametrize("keep", [0, 100, 4096, 0.5, -1])
def test_a_truncated_store_is_refused(path, tmp_path, keep):
    data = path.read_bytes()
    keep = int(keep * len(data)) if isinstance(keep, float) else keep
    (tmp_path / "a.lmdb").write_bytes(data[:keep])
    with pytest.raises(InputError):
        FrameStore(tmp_path / "a.lmdb").verify()


@pytest.mark.parametrize("content", [b"hello", b"x" * 10_000, pickle.dumps(list(range(5000)))])
def test_another_kind_of_file_is_refused(tmp_path, content):
    (tmp_path / "a.lmdb").write_bytes(content)
    with pytest.raises(InputError, match="is no LMDB file"):
        load_frames(str(tmp_path / "a.lmdb"))


def test_no_changed_bytes_crash_the_reader(path, tmp_path):
    # In a child, so that a crash would be a failed test and not the end of all of them.
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            status = 0 if hammer(path, tmp_path / "x.lmdb") > 100 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def hammer(path, target, times=300):
    """Change bytes at random and read; how often that was noticed."""
    original = path.read_bytes()
    rng = np.random.default_rng(0)
    noticed = 0
    for _ in range(times):
        data = bytearray(original)
        for _ in range(rng.integers(1, 30)):
            page = rng.integers(len(data) // 4096)
            at = page * 4096 + (rng.integers(4096) if rng.random() < 0.5 else rng.integers(64))
            data[at] = rng.integers(256)
        target.unlink(missing_ok=True)
        target.write_bytes(data)
        try:
            FrameStore(target).verify()
        except InputError:
            noticed += 1
    return noticed


def moved_and_emptied(path):
    path.rename(path.with_name("c.lmdb"))
    shutil.copyfile(path.with_name("b.lmdb"), path)
    os.truncate(path.with_name("c.lmdb"), 0)


def overwritten_with_its_date_put_back(path):
    status = path.stat()
    with path.open("r+b") as file:
        file.write(path.with_name("reversed.lmdb").read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES_WHILE_IT_IS_READ = {
    "shortened": lambda path: os.truncate(path, 8192),
    "emptied": lambda path: os.truncate(path, 0),
    "emptied and made as long again": lambda path: (os.truncate(path, 0), os.truncate(path, 1 << 20)),
    "moved and emptied there": moved_and_emptied,
    "the same frames in another order": overwritten_with_its_date_put_back,
    "another store copied over it": lambda path: shutil.copyfile(path.with_name("b.lmdb"), path),
}


@pytest.mark.parametrize("change", CHANGES_WHILE_IT_IS_READ)
def test_a_store_that_is_changed_while_it_is_mapped_is_refused_and_ends_no_process(change, path, tmp_path):
    shutil.copyfile(path, tmp_path / "a.lmdb")
    write_store(tmp_path / "b.lmdb", [molecule(i, 5) for i in range(300)])
    write_store(tmp_path / "reversed.lmdb", list(FrameStore(path))[::-1])
    pid = os.fork()  # what is not there any more is touched by a child
    if pid == 0:
        status = 3
        try:
            store = FrameStore(tmp_path / "a.lmdb")
            store[0]
            CHANGES_WHILE_IT_IS_READ[change](tmp_path / "a.lmdb")
            with pytest.raises(
                InputError, match=r"a\.lmdb.*(changed while it was read|too short|truncated|no LMDB)"
            ):
                [store[i] for i in range(len(store))]
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture(scope="module")
def corrected(tmp_path_factory):
    """A store of many pages, and one in which a label of a single frame is another one."""
    folder = tmp_path_factory.mktemp("corrected")
    frames = [molecule(i, 6) for i in range(1000)]
    first = write_store(folder / "first.lmdb", frames)
    frames[530] = replace(frames[530], energy=frames[530].energy + 100)
    return first, write_store(folder / "second.lmdb", frames)


@pytest.mark.parametrize("large", [False, True])
def test_one_label_that_is_written_to_a_store_of_many_pages_is_noticed(
    large, corrected, tmp_path, monkeypatch
):
    if large:
        monkeypatch.setattr(environment, "PAGES_CHECKED_ON_OPENING", 0)
    target = tmp_path / "a.lmdb"
    shutil.copyfile(corrected[0], target)
    store = FrameStore(target)
    energy = store[530].energy
    target.chmod(0o600)
    target.rename(tmp_path / "b.lmdb")
    assert store[530].energy == energy
    with (tmp_path / "b.lmdb").open("r+b") as file:
        file.write(corrected[1].read_bytes())
    with pytest.raises(InputError, match="changed while it was read"):
        store[530]


def test_a_store_that_is_touched_replaced_or_removed_as_a_whole_is_read_on(path, tmp_path):
    target = tmp_path / "a.lmdb"
    shutil.copyfile(path, target)
    store = FrameStore(target)
    energies = [frame.energy for frame in FrameStore(path)]
    os.utime(target, (0, 0))
    assert [frame.energy for frame in store] == energies
    write_store(tmp_path / "b.lmdb", [molecule(0, 5)]).replace(target)
    assert [frame.energy for frame in store] == energies
    target.unlink()
    assert [frame.energy for frame in store] == energies


def test_all_pages_of_an_honest_file_are_in_order(tmp_path):
    path = write_store(tmp_path / "a.lmdb", [molecule(i, 9) for i in range(4000)])
    assert check_pages(path) > 100


def test_a_page_number_beyond_the_file_is_refused(path, tmp_path):
    data = bytearray(path.read_bytes())
    newest = max((0, 4096), key=lambda at: struct.unpack_from("<Q", data, at + 16 + 128)[0])
    struct.pack_into("<Q", data, newest + 16 + 24 + 48 + 40, 10**9)
    (tmp_path / "a.lmdb").write_bytes(data)
    with pytest.raises(InputError, match="is outside the file"):
        FrameStore(tmp_path / "a.lmdb")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        write_store(tmp_path / "a.lmdb", [molecule()])


@pytest.mark.parametrize(
    ("free", "says"),
    [(0, "no space left on device (make room"), (1 << 30, "Input/output error (a quota, a limit")],
)
def test_a_full_disk_is_called_so_where_lmdb_speaks_of_input_and_output(tmp_path, monkeypatch, free, says):
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with StoreWriter(tmp_path / "a.lmdb") as writer:
        writer.append(molecule())
        said = str(writer._cannot_write(lmdb.Error("mdb_txn_commit: Input/output error")))
    assert says in said


def test_a_place_that_is_no_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_store(tmp_path / "file" / "a.lmdb", [molecule()])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_full_disk_is_an_error_that_says_how_to_go_on(tmp_path):
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    pid = os.fork()
    if pid == 0:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        try:
            write_store(tmp_path / "a.lmdb", [molecule(0, 64)] * 1000)
        except InputError as error:
            os._exit(0 if "cannot be written" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not (tmp_path / "a.lmdb").exists()


def test_metadata_cannot_overwrite_what_the_format_says_of_itself(tmp_path):
    frames = [Frame(numbers=np.array([1]), positions=np.zeros((1, 3)))]
    with pytest.raises(ValueError, match="version"):
        write_store(tmp_path / "a.lmdb", frames, meta={"version": "7"})
    assert list(tmp_path.iterdir()) == [] or not (tmp_path / "a.lmdb").exists()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.booleans()), min_size=1, max_size=12))
def test_index_entries_made_together_are_those_made_one_by_one(kinds):
    frames = [(crystal if periodic else molecule)(seed, size) for seed, size, periodic in kinds]
    forces = frames[0].forces
    if forces is not None:  # single atoms without a label, a structure without any
        partly = forces.copy()
        partly[0] = np.nan
        frames += [replace(frames[0], forces=partly), replace(frames[0], forces=None, energy=None)]
    numbers = list(range(len(frames)))
    together = entries_of(frames, numbers, 3.0)
    apart = np.array([entry_of(f, k, 3.0) for k, f in zip(numbers, frames, strict=True)], dtype=ENTRY)
    for name in ENTRY.names:
        if ENTRY[name].kind == "f":
            np.testing.assert_allclose(together[name], apart[name], rtol=1e-12)
        else:
            np.testing.assert_array_equal(together[name], apart[name])


@given(
    st.lists(
        st.tuples(
            st.integers(1, 7),
            st.booleans(),
            st.booleans(),
            st.sampled_from(["open", "film", "crystal"]),
            st.text(max_size=5),
        ),
        max_size=12,
    ),
    st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_bytes_of_frames_made_together_are_those_made_one_by_one(kinds, float32):
    made = []
    for seed, (n, energy, forces, kind, note) in enumerate(kinds):
        changes = {"info": {"note": note} if note else {}, "weight": 0.5 + seed}
        changes |= {} if energy else {"energy": None}
        changes |= {} if forces else {"forces": None}
        if kind == "film":  # periodic without a cell: nonsense that has to survive all the same
            changes["pbc"] = np.array([True, False, True])
        made.append(crystal(seed, n, **changes) if kind == "crystal" else molecule(seed, n, **changes))
    assert encode_all(made, float32=float32) == [encode(frame, float32=float32) for frame in made]


def reweighted(frames, place, **changed):
    return [replace(frame, **changed) if k == place else frame for k, frame in enumerate(frames)]


@pytest.mark.parametrize(
    "changed",
    [{"weight": 2.0}, {"label_weights": (1.0, 100.0, 1.0)}, {"stress": np.eye(3)}, {"info": {"charge": 0}}],
    ids=str,
)
def test_a_frame_that_is_not_among_those_that_are_looked_at_counts_in_the_fingerprint(tmp_path, changed):
    frames = [molecule(seed, 5) for seed in range(600)]  # of which 256 are looked at in full
    before = StoredFrames(FrameStore(write_store(tmp_path / "a.lmdb", frames)))
    places = np.unique(np.linspace(0, 599, 256).astype(int))
    place = next(k for k in range(300, 600) if k not in places)
    other = write_store(tmp_path / "b.lmdb", reweighted(frames, place, **changed))
    after = StoredFrames(FrameStore(other))
    assert before.fingerprint() != after.fingerprint()
    assert before.subset(range(place)).fingerprint() == after.subset(range(place)).fingerprint()
    if "info" not in changed:
        held = as_frames(reweighted(frames, place, **changed)).fingerprint()
        assert held != as_frames(frames).fingerprint()


def test_checksums_are_those_of_records_whichever_way_they_were_written(tmp_path):
    frames = [molecule(seed, 3) for seed in range(10)]
    with StoreWriter(tmp_path / "a.lmdb") as writer:
        for frame in frames:
            writer.append(frame)
            writer.commit()
    many = FrameStore(write_store(tmp_path / "b.lmdb", frames))
    one = FrameStore(tmp_path / "a.lmdb")
    expected = [int.from_bytes(one.raw(i)[:4], "little") for i in range(10)]
    assert one.checksums().tolist() == many.checksums().tolist() == expected
    resumed = StoreWriter(tmp_path / "c.lmdb")
    for frame in frames[:7]:
        resumed.append(frame)
    resumed.commit()
    resumed.close()
    with StoreWriter(tmp_path / "c.lmdb", resume=True) as writer:
        for frame in frames[7:]:
            writer.append(frame)
    assert FrameStore(tmp_path / "c.lmdb").checksums().tolist() == expected
    write_store(tmp_path / "empty.lmdb", [])
    assert len(FrameStore(tmp_path / "empty.lmdb").checksums()) == 0


def test_a_store_of_a_version_without_checksums_is_read_and_gone_on_with(tmp_path):
    frames = [molecule(seed, 3) for seed in range(10)]
    writer = StoreWriter(tmp_path / "a.lmdb")
    for frame in frames[:6]:
        writer.append(frame)
    writer.commit()
    with writer._environment.begin(write=True) as transaction:
        assert transaction.delete(checksum_key(0))
    writer.close()
    with StoreWriter(tmp_path / "a.lmdb", resume=True) as writer:
        for frame in frames[6:]:
            writer.append(frame)
    old = FrameStore(tmp_path / "a.lmdb")
    assert old.checksums() is None
    assert old.verify() == 10
    digest = sha256(old.index.tobytes() + np.ascontiguousarray(old.compositions).tobytes())
    digest.update(b"".join(old.raw(i) for i in range(10)))
    assert StoredFrames(old).fingerprint() == digest.hexdigest()  # as runs of these versions noted it


def test_a_record_that_was_replaced_by_another_of_the_same_index_is_found(tmp_path):
    frames = [molecule(seed, 4) for seed in range(3)]
    path = write_store(tmp_path / "a.lmdb", frames)

    def edit(transaction):
        transaction.put(frame_key(1), encode(replace(frames[1], weight=5.0)))

    with pytest.raises(InputError, match="frame 1: is not the frame that was written here"):
        FrameStore(edited(path, tmp_path, edit)).verify()
