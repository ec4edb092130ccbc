"""Model files of other packages: whatever their bytes are, nothing of them runs, and what is wrong is one line."""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import io
import lzma
import os
import pickle
import random
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.archive import TorchArchive
from pimlip_zoo.foundation.mace_torch import import_potential
from pimlip_zoo.foundation.nequip import import_potential as import_nequip
from pimlip_zoo.foundation.objects import read_objects, state_of
from pimlip_zoo.foundation.sevennet import import_potential as import_sevennet
from pimlip_zoo.foundation.unpickle import Record

AGREEMENT = Path(__file__).parents[1] / "agreement"


def saved(value: object, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def archive(*entries: tuple[str, bytes]) -> bytes:
    """An archive whose checksums fit, of any content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, content in entries:
            file.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def read(content: bytes, folder: Path):
    (folder / "file.model").write_bytes(content)
    return read_objects(folder / "file.model")


def refused(content: bytes, folder: Path) -> str:
    with pytest.raises(InputError) as error:
        read(content, folder)
    assert "file.model" in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


class Everything(torch.nn.Module):
    """What files of models hold beside modules and tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        self.single = torch.nn.Parameter(torch.arange(3, dtype=torch.float32))
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.register_buffer("part", torch.arange(24.0, dtype=torch.float64).reshape(4, 6).T[1:4])
        self.register_buffer("none", torch.zeros(0, 5))
        self.scalar, self.array = np.float64(2.5), np.arange(6, dtype=">i4").reshape(2, 3)
        self.objects, self.text = np.array([{}, None], dtype=object), np.array(["small", "large"])
        self.plain = {"a": [1, -(2**40), 0.5, None, True], ("b", 1): {"x", 2}, "bytes": b"\x00\xff"}
        self.frozen, self.ordered = frozenset({3}), collections.OrderedDict(z=1, y=2)
        self.function, self.path, self.big = torch.tanh, Path("a/b"), 2**62


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_everything_that_is_data_is_read_as_torch_reads_it(protocol: int, tmp_path: Path) -> None:
    original = Everything()
    record = read(saved(original, pickle_protocol=protocol), tmp_path)
    assert record.name == "Everything"
    state = state_of(record)
    assert set(state) == set(original.state_dict())
    for name, value in original.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0)
        assert state[name].dtype == value.dtype
    for name in ("scalar", "plain", "frozen", "ordered", "big"):
        assert record[name] == getattr(original, name), name
    np.testing.assert_array_equal(record["array"], original.array)
    assert record["function"].name == "tanh"
    assert "/".join(record["path"].arguments) == "a/b"  # Python 3.13 keeps it whole
    assert record["objects"].name == record["text"].name == "ndarray"  # noted down by name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8, torch.complex128])
def test_numbers_of_every_kind_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    value = torch.arange(7).to(dtype)
    torch.testing.assert_close(read(saved({"x": value}), tmp_path)["x"], value, rtol=0, atol=0)


def test_no_other_reader_sees_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_, **__):
        raise AssertionError

    content = saved(Everything())
    for owner, name in ((torch, "load"), (torch.jit, "load"), (torch._C, "PyTorchFileReader")):
        monkeypatch.setattr(owner, name, forbidden)
    for owner, name in ((pickle, "Unpickler"), (pickle, "loads"), (zipfile, "ZipFile")):
        monkeypatch.setattr(owner, name, forbidden)
    assert read(content, tmp_path).name == "Everything"


class Writer(torch.nn.Module):
    """A TorchScript module that writes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path, self.written = path, torch.zeros(1)

    def forward(self) -> str:
        return self.path

    @torch.jit.export
    def __getstate__(self):
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.path, self.training = state
        self.written = torch.from_file(self.path, True, 8, dtype=torch.uint8).fill_(1)


def two_directories(script: bytes) -> bytes:
    """A script's archive whose end also fits a second directory, of a pickle, behind the first."""
    end = script.rfind(b"PK\x05\x06")
    _, _, _, here, count, size, begin, _ = struct.unpack_from("<4s4H2IH", script, end)
    pickled, name = pickle.dumps({}, 2), b"archive/data.pkl"
    common = (zlib.crc32(pickled), len(pickled), len(pickled), len(name))
    body = script[:end] + struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0, *common, 0) + name + pickled
    comment = size - 46 - len(name)
    corrected = end - (len(body) - begin)  # Python moves every offset by as much as the directory is off
    body += struct.pack(
        "<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, *common, 0, comment, 0, 0, 0, corrected
    )
    body += name + b" " * comment
    return body + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, here, count, size, begin, 0)


def test_an_archive_that_two_readers_see_differently_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    written = tmp_path / "written"
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Writer(str(written))), buffer)
    content = two_directories(buffer.getvalue())
    assert zipfile.ZipFile(io.BytesIO(content)).namelist() == ["archive/data.pkl"]
    torch.jit.load(io.BytesIO(content))
    assert written.exists()
    written.unlink()
    (tmp_path / "file.model").write_bytes(content)
    with pytest.raises(InputError, match="directory is not where"):
        import_potential(tmp_path / "file.model")
    assert not written.exists()


def _packed(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", content)
    return buffer.getvalue()


PICKLED = pickle.dumps({"a": 1}, 2)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "no zip archive"),
        (b"PK\x05\x06" + bytes(18), "no zip archive"),
        (_packed(b"\x80\x02" + b"N0" * 5_000_000 + b"N."), "compressed"),
        (archive(("data.pkl", PICKLED), ("data.pkl", PICKLED)), "two entries"),
        (archive(("data.pkl", PICKLED))[:-3], "not a whole one"),
        (archive(("data.pkl", PICKLED)) + bytes(22), "not a whole one"),
        (archive(("data.pkl", PICKLED)) + archive(("data.pkl", PICKLED)), "directory is not where"),
        (b"PK\x03\x04" + archive(("data.pkl", PICKLED)), "directory is not where"),
        (archive(("version", b"3")), "one data.pkl"),
        (archive(("data.pkl", PICKLED), ("code/x.py", b"")), "TorchScript"),
        (archive(("data.pkl", PICKLED), ("byteorder", b"big")), "little-endian"),
        (archive(("data.pkl", PICKLED)).replace(b"data.pkl", b"data.pkk", 1), "differ"),
        (archive(("data.pkl", PICKLED)).replace(PICKLED, PICKLED.replace(b"a", b"b")), "checksum"),
    ],
)
def test_an_archive_that_torch_does_not_write_is_refused(content: bytes, text: str, tmp_path: Path) -> None:
    assert text in refused(content, tmp_path)


def test_entries_that_overlap_or_leave_room_between_them_are_refused(tmp_path: Path) -> None:
    content = archive(("data.pkl", PICKLED), ("data/0", bytes(64)))
    end = content.rfind(b"PK\x05\x06")
    begin = struct.unpack_from("<I", content, end + 16)[0]
    second = content.rfind(b"PK\x01\x02")
    first = bytearray(content)
    struct.pack_into("<I", first, second + 42, 0)
    assert "differ" in refused(bytes(first), tmp_path)
    roomy = content[:begin] + bytes(64) + content[begin:end]
    assert "more in it" in refused(
        roomy + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2, 2, end - begin, begin + 64, 0), tmp_path
    )


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x08tQ"


def tensor(arguments: bytes) -> bytes:
    """A pickle of a tensor on eight numbers, with an offset, size and strides of one's own."""
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + arguments + b"\x89NtR."


@pytest.mark.parametrize(
    "arguments",
    [
        b"K\x00K\x09\x85K\x01\x85",  # nine numbers
        b"K\x01K\x08\x85K\x01\x85",  # one too far
        b"J\xff\xff\xff\xffK\x08\x85K\x01\x85",  # from before the first
        b"K\x00K\x08\x85J\xff\xff\xff\xff\x85",  # backwards
        b"K\x00J\xff\xff\xff\x7f\x85K\x00\x85",  # one number two billion times
        b"K\x00K\x00J\xff\xff\xff\x7f\x86K\x01K\x01\x86",  # none, in two billion columns
        b"K\x00K\x02K\x02\x86K\x01\x85",  # too few strides
        b"K\x00\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01\x85K\x01\x85",  # beyond 64 bits
        b"NK\x08\x85K\x01\x85",
    ],
)
def test_a_tensor_has_to_lie_within_its_numbers(arguments: bytes, tmp_path: Path) -> None:
    fits = tensor(b"K\x00K\x02K\x04\x86K\x04K\x01\x86")
    numbers = np.arange(8, dtype="<f4").tobytes()
    assert read(archive(("data.pkl", fits), ("data/0", numbers)), tmp_path).tolist() == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
    ]
    refused(archive(("data.pkl", tensor(arguments)), ("data/0", numbers)), tmp_path)
    refused(archive(("data.pkl", fits), ("data/0", numbers[:-4])), tmp_path)
    refused(archive(("data.pkl", fits)), tmp_path)


class Built:
    """Pickled as a call with arguments, and what is given to the result behind it."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __reduce__(self):
        return self.parts


WEIGHT = torch.arange(1.0, 4.0)
WITH_ATTRIBUTE = torch.nn.Parameter(WEIGHT)
WITH_ATTRIBUTE.note = "muon"
STATED = torch._utils._rebuild_parameter_with_state


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch._neg_view(WEIGHT), "marked with neg"),
        (torch.nn.Parameter(torch._neg_view(WEIGHT)), "marked with neg"),
        (torch.tensor([1 + 2j]).conj(), "marked with conj"),
        (torch.tensor([1 + 2j]).conj().imag, "marked with neg"),
        (Built(STATED, (WEIGHT, True, None, {"data": -WEIGHT})), "sets data of a parameter"),
        (Built(STATED, (WEIGHT, True, None, (None, {"data": -WEIGHT}))), "sets data of a parameter"),
    ],
)
def test_a_tensor_is_what_its_numbers_say_and_nothing_beside_them_changes_it(
    value: object, text: str, tmp_path: Path
) -> None:
    assert text in refused(saved({"w": value}), tmp_path)


def test_a_tensor_is_not_given_another_content_than_its_own(tmp_path: Path) -> None:
    whole = tensor(b"K\x00K\x08\x85K\x01\x85")
    numbers = ("data/0", np.arange(8, dtype="<f4").tobytes())
    assert read(archive(("data.pkl", whole), numbers), tmp_path).tolist() == list(range(8))
    given = whole[:-1] + b"(" + STORAGE + b"K\x04K\x04\x85K\x01\x85tb."
    assert "another content" in refused(archive(("data.pkl", given), numbers), tmp_path)


def test_attributes_that_somebody_gave_to_a_parameter_change_nothing(tmp_path: Path) -> None:
    content = read(saved({"w": WITH_ATTRIBUTE}), tmp_path)
    assert isinstance(content, dict)
    assert torch.equal(content["w"], WEIGHT)


def test_a_tensor_that_is_stored_in_another_way_is_not_passed_over(tmp_path: Path) -> None:
    buffer = WEIGHT.clone()
    buffer.note = "an attribute"  # torch rebuilds it by its type
    module = torch.nn.Linear(3, 2)
    module.register_buffer("kept", buffer)
    record = read(saved(module), tmp_path)
    assert isinstance(record, Record)
    with pytest.raises(InputError, match="has a _rebuild_from_type_v2 as kept, where a tensor belongs"):
        state_of(record)
    for importer, file in ((import_nequip, "nequip_file.ckpt"), (import_sevennet, "sevennet_both.pth")):
        content = torch.load(
            io.BytesIO(lzma.decompress((AGREEMENT / f"{file}.xz").read_bytes())), weights_only=False
        )
        state = content.get("state_dict", content.get("model_state_dict"))
        name = next(iter(name for name in state if name.endswith("weight")))
        state[name].note = "an attribute"
        torch.save(content, tmp_path / file)
        with pytest.raises(InputError, match=f"{file}: has a _rebuild_from_type_v2 as .*weight"):
            importer(tmp_path / file)


def test_a_truth_value_is_zero_or_one(tmp_path: Path) -> None:
    content = tensor(b"K\x00K\x08\x85K\x01\x85").replace(b"FloatStorage", b"BoolStorage")
    value = read(archive(("data.pkl", content), ("data/0", bytes([0, 1, 2, 255, 0, 0, 0, 0]))), tmp_path)
    assert int(value.sum()) == 3


def test_numpy_is_never_given_what_a_file_says_about_pointers(tmp_path: Path) -> None:
    """Arrays of objects are addresses; a file that gives their bytes would choose what is followed."""
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    dtype = b"cnumpy\ndtype\n(U\x02O8K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb"
    for state in (b"U\x08AAAAAAAA", b"C\x08AAAAAAAA", b"]N\x61"):
        content = b"\x80\x02" + reconstruct + b"(K\x01K\x01\x85" + dtype + b"\x89" + state + b"tb."
        assert read(archive(("data.pkl", content)), tmp_path).name == "ndarray"
    scalar = b"\x80\x02cnumpy.core.multiarray\nscalar\n(" + dtype + b"C\x08AAAAAAAAtR."
    assert read(archive(("data.pkl", scalar)), tmp_path) is None


def bombs() -> dict[str, bytes]:
    doubling = b"".join(b"q%cK\x00h%ch%c\x87" % (n, n, n) for n in range(60))
    return {
        "a key that is hashed for ever": b"\x80\x02})" + doubling + b"Ns.",
        "a memo of four billion places": b"\x80\x02Nr\xff\xff\xff\xff.",
        "a string of four gigabytes": b"\x80\x02X\xff\xff\xff\xffa.",
        "an array of bytes as large as the address space": b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.",
        "keys that collide": b"\x80\x02}("
        + b"".join(b"\x8a\x0f" + (k * (2**61 - 1)).to_bytes(15, "little") + b"N" for k in range(50_000))
        + b"u.",
        "a stack that is too deep for recursion": b"\x80\x02" + b"N" + b"\x85" * 100_000 + b".",
        "a long text that is encoded again and again": b"\x80\x02]q\x00(c_codecs\nencode\nq\x01X"
        + (1 << 20).to_bytes(4, "little")
        + b"x" * (1 << 20)
        + b"\x85q\x02"
        + b"h\x01h\x02R" * 50_000
        + b"e.",
        "a name that grows": b"\x80\x02cbuiltins\ngetattr\nq\x01X"
        + (1 << 16).to_bytes(4, "little")
        + b"x" * (1 << 16)
        + b"q\x02ca\nb\nq\x03"
        + b"q\x030h\x01h\x03h\x02\x86R" * 50_000
        + b".",
        "a table that many objects share": b"\x80\x02}q\x01("
        + b"".join(b"J" + k.to_bytes(4, "little") + b"N" for k in range(30_000))
        + b"u0ca\nb\nq\x02)q\x030]("
        + b"h\x02h\x03Rh\x01b" * 30_000
        + b"e.",
        "an integer of a megabyte": b"\x80\x02\x8b\x00\x00\x10\x00" + b"\x7f" * 2**20 + b".",
    }


@pytest.mark.parametrize("name", bombs())
def test_a_small_file_costs_little(name: str, tmp_path: Path) -> None:
    start = time.process_time()
    with contextlib.suppress(InputError):
        read(archive(("data.pkl", bombs()[name])), tmp_path)
    assert time.process_time() - start < 2


def test_numbers_that_a_file_refers_to_often_are_read_once(tmp_path: Path) -> None:
    reference = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuJ\x00\x00\x10\x00tq\x01"
    content = b"\x80\x02](" + reference + b"Q" + b"h\x01Q" * 50_000 + b"e."
    start = time.process_time()
    found = read(archive(("data.pkl", content), ("data/0", bytes(4 << 20))), tmp_path)
    assert len(found) == 50_001
    assert all(storage is found[0] for storage in found)
    assert time.process_time() - start < 2


def test_modules_that_contain_each_other_are_refused(tmp_path: Path) -> None:
    module = torch.nn.Linear(1, 1)
    for _ in range(40):
        module = torch.nn.ModuleDict({"a": module, "b": module})
    record = read(saved(module), tmp_path)
    with pytest.raises(InputError, match="contain each other"):
        state_of(record)


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.model")
    for path in (tmp_path / "pipe.model", Path("/dev/zero"), tmp_path):
        with pytest.raises(InputError, match="not a file"):
            TorchArchive(path)


def mutated(content: bytes, draw: random.Random) -> bytes:
    """One to four changes: bits, bytes, numbers, pieces removed, doubled or moved."""
    body = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        body = body or bytearray(1)
        place, length = draw.randrange(len(body)), draw.choice((1, 2, 4, 8, 40))
        piece = body[place : place + length]
        kind = draw.randrange(6)
        if kind == 0:
            body[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            body[place : place + length] = draw.randbytes(length)
        elif kind == 2:
            body[place : place + length] = draw.choice((b"\xff", b"\x00", b"\x7f")) * length
        elif kind == 3:
            del body[place : place + length]
        elif kind == 4:
            body[place:place] = piece * draw.choice((1, 50))
        else:
            other = draw.randrange(len(body))
            body[other : other + length] = piece
    return bytes(body)


@pytest.mark.parametrize("seed", range(3))
def test_a_mutated_file_is_read_or_refused_in_one_line(seed: int, tmp_path: Path) -> None:
    draw, refusals = random.Random(seed), list[str]()
    content = saved(Everything(), pickle_protocol=2 + seed)
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        entries = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    for number in range(300):
        if number % 3 == 0:
            changed = mutated(content, draw)
        else:  # the checksums of the archive fit, so that the pickle is what is attacked
            changed = archive(*(entries | {"data.pkl": mutated(entries["data.pkl"], draw)}).items())
        try:
            read(changed, tmp_path)
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert not any("\n" in line for line in refusals)


def _mace(file: Path):
    return import_potential(file, head="small")


MODELS = {
    "mace_heads.model": (_mace, "data.pkl"),
    "mace_gate_none.model.xz": (import_potential, "data.pkl"),
    "mace_layout_omol.model.xz": (import_potential, "data.pkl"),
    "sevennet_degrees.pth.xz": (import_sevennet, "data.pkl"),
    "sevennet_both.pth.xz": (import_sevennet, "data.pkl"),
    "nequip_file.ckpt.xz": (import_nequip, "data.pkl"),
    "nequip_file.nequip.zip.xz": (import_nequip, "model/eager_model.pkl"),
    "allegro_file.nequip.zip.xz": (import_nequip, "model/eager_model.pkl"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_mutated_model_is_imported_or_refused_in_one_line(
    name: str, tmp_path: Path, record_property
) -> None:
    draw, refusals, attempts = random.Random(name), list[str](), 12
    read_model, pickled = MODELS[name]
    content = (AGREEMENT / name).read_bytes()
    with zipfile.ZipFile(io.BytesIO(lzma.decompress(content) if name.endswith(".xz") else content)) as file:
        entries = {entry.partition("/")[2]: file.read(entry) for entry in file.namelist()}
    for _ in range(attempts):
        changed = dict(entries)
        for entry in [*draw.sample(sorted(entries), 3), pickled]:
            changed[entry] = mutated(entries[entry], draw)
        (tmp_path / "file.model").write_bytes(archive(*changed.items()))
        try:
            read_model(tmp_path / "file.model")
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 3
    assert not any("\n" in line for line in refusals)
    record_property("tried", attempts)


ODD = [None, True, -1, 0, 2.5, 10**6, 1e-300, float("nan"), float("inf"), "x", "10", [], [1, 2], {}, {"a": 1}]


def _places(table, place=()):
    """Where in a nested table there is something, outermost first."""
    for key, value in table.items() if isinstance(table, dict) else enumerate(table):
        yield (*place, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*place, key))


@pytest.mark.parametrize(
    ("name", "read_model", "options"),
    [
        ("sevennet_degrees.pth.xz", import_sevennet, ("config",)),
        ("nequip_file.ckpt.xz", import_nequip, ("hyper_parameters", "model")),
        ("allegro_file.ckpt.xz", import_nequip, ("hyper_parameters", "model")),
    ],
)
def test_options_of_a_model_that_are_odd_are_taken_or_refused_at_once(
    name: str, read_model, options: tuple[str, ...], tmp_path: Path, record_property
) -> None:
    packed, tried = lzma.decompress((AGREEMENT / name).read_bytes()), 0
    plain = torch.load(io.BytesIO(packed), weights_only=False)
    draw = random.Random(name)
    places = list(_places(functools.reduce(lambda table, key: table[key], options, plain)))
    for place in places:
        content = copy.deepcopy(plain)
        table = functools.reduce(lambda table, key: table[key], (*options, *place[:-1]), content)
        table[place[-1]] = draw.choice(ODD)
        (tmp_path / "file.model").write_bytes(saved(content))
        began = time.process_time()
        with contextlib.suppress(InputError):
            read_model(tmp_path / "file.model")
        assert time.process_time() - began < 2.0, (place, table[place[-1]])
        tried += 1
    record_property("tried", tried)
