"""Numbers that are used as indices are whole and within their bounds, at every border."""

import json
import shutil

import numpy as np
import pytest
from example_frames import assert_same, crystal, molecule

from pimlip_zoo.datasets.audit import survey_data
from pimlip_zoo.datasets.convert import convert
from pimlip_zoo.datasets.indices import whole_numbers
from pimlip_zoo.datasets.lmdb import FrameStore, write_store
from pimlip_zoo.datasets.neighbour_list import species_indices
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.datasets.splits import make_split, write_split
from pimlip_zoo.datasets.store_frames import StoredFrames, open_frames
from pimlip_zoo.errors import InputError


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64, np.float32, np.float64])
def test_whole_numbers_of_every_type_stay_as_they_are(dtype):
    values = np.array([[0, 3], [1, 2]], dtype=dtype)
    found = whole_numbers(values, "type", least=0, count=4)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, values)
    assert whole_numbers([], "type", least=0, count=0).shape == (0,)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0, -1], "type -1 is less than 0"),
        ([4, 0], "type 4 is too large: there are 4"),
        ([0.0, 1.5], "type 1.5 is no whole number"),
        ([np.nan], "type nan is no whole number"),
        ([1e300], "is no whole number"),
        (["O"], "holds no whole numbers"),
        ([2**63], "is too large"),
    ],
)
def test_what_is_no_index_is_refused(values, said):
    with pytest.raises(InputError, match=said):
        whole_numbers(values, "type", least=0, count=4)


def mixed_system(folder, frames, pad=0, *, types=("O", "H", "C"), dtype=np.int32):
    """DeePMD-kit's mixed format: a system of frames with as many atoms, virtual ones among them."""
    part = folder / "set.000000"
    part.mkdir(parents=True)
    n = max(len(frame.numbers) for frame in frames) + pad
    order = {8: 0, 1: 1, 6: 2}
    numbers = np.full((len(frames), n), -1, dtype=dtype)
    positions, forces = np.zeros((2, len(frames), n, 3))
    for i, frame in enumerate(frames):
        # Virtual atoms stand in front, behind and between.
        place = np.sort(np.random.default_rng(i).permutation(n)[: len(frame.numbers)])
        numbers[i, place] = [order[int(z)] for z in frame.numbers]
        positions[i, place], forces[i, place] = frame.positions, frame.forces
    (folder / "type.raw").write_text("0\n" * n)
    (folder / "type_map.raw").write_text("\n".join(types))
    np.save(part / "real_atom_types.npy", numbers)
    np.save(part / "coord.npy", positions.reshape(len(frames), -1))
    np.save(part / "force.npy", forces.reshape(len(frames), -1))
    np.save(part / "energy.npy", [frame.energy for frame in frames])
    np.save(part / "box.npy", [frame.cell.reshape(-1) for frame in frames])
    return str(folder)


@pytest.mark.parametrize("dtype", [np.int32, np.float64])
@pytest.mark.parametrize("pad", [0, 1, 2])
def test_virtual_atoms_of_deepmds_mixed_format_are_no_atoms(tmp_path, pad, dtype):
    frames = [crystal(seed, n, stress=None) for seed, n in enumerate((3, 5, 4, 5))]
    spec = mixed_system(tmp_path / "a", frames, pad, dtype=dtype)
    for frame, read in zip(frames, load_frames(spec), strict=True):
        assert_same(frame, read, 1e-12)
    convert(spec, tmp_path / "a.lmdb")
    store = FrameStore(tmp_path / "a.lmdb")
    assert store.index["natoms"].tolist() == [3, 5, 4, 5]
    assert set(store.coverage().species) <= {"H", "C", "O"}


@pytest.mark.parametrize(("wrong", "said"), [(-2, "type -2 is less than -1"), (3, "type 3 is too large")])
def test_impossible_types_are_refused_with_their_frame(tmp_path, wrong, said):
    spec = mixed_system(tmp_path / "a", [crystal(seed, 3) for seed in range(3)])
    file = tmp_path / "a" / "set.000000" / "real_atom_types.npy"
    types = np.load(file)
    types[1, 2] = wrong
    np.save(file, types)
    with pytest.raises(InputError, match=rf"real_atom_types.npy, frame 1: {said}"):
        load_frames(spec)
    assert len(load_frames(f"{spec}@:1")) == 1
    (tmp_path / "a" / "type.raw").write_text(f"0\n{wrong}\n0\n")
    with pytest.raises(InputError, match=rf"type.raw: {said}"):
        load_frames(spec)


def test_a_set_that_lost_its_types_is_refused(tmp_path):
    frames = [crystal(seed, n) for seed, n in enumerate((3, 5))]
    spec = mixed_system(tmp_path / "a", frames)
    shutil.copytree(tmp_path / "a" / "set.000000", tmp_path / "a" / "set.000001")
    assert len(load_frames(spec)) == 4
    (tmp_path / "a" / "set.000001" / "real_atom_types.npy").unlink()
    with pytest.raises(InputError, match=r"set.000001: has no real_atom_types.npy, other sets"):
        load_frames(spec)
    (tmp_path / "a" / "set.000001" / "real_atom_types.npy").symlink_to("nowhere")
    with pytest.raises(InputError):
        load_frames(spec)


def test_species_that_are_given_have_to_be_those_of_the_file(tmp_path):
    frames = [crystal(0, 3, stress=None)]
    spec = mixed_system(tmp_path / "a", frames)
    assert_same(frames[0], load_frames(f"{spec}?species=O+H+C")[0], 1e-12)
    with pytest.raises(InputError, match=r"type_map.raw, species: says O H C, \?species= says H O C"):
        load_frames(f"{spec}?species=H+O+C")
    (tmp_path / "a" / "type_map.raw").write_text("OW HW CT")  # no elements: they are what is given
    assert_same(frames[0], load_frames(f"{spec}?species=O+H+C")[0], 1e-12)


def test_a_frame_of_virtual_atoms_alone_is_refused(tmp_path):
    spec = mixed_system(tmp_path / "a", [crystal(0, 3)])
    np.save(tmp_path / "a" / "set.000000" / "real_atom_types.npy", np.full((1, 3), -1))
    with pytest.raises(InputError, match="frame 0: has no atoms"):
        load_frames(spec)


def npz(path, z, count=2):
    n = len(z)
    positions = np.array([molecule(seed, n).positions for seed in range(count)])
    np.savez(path, z=z, R=positions, E=np.zeros(count))
    return f"{path}?energy=eV&length=Å"


@pytest.mark.parametrize(
    ("z", "said"),
    [([8, 1, -1], "number -1"), ([8, 1, 300], "number 300"), ([8, 1, 1.5], "1.5"), ([8, 1, 0], "number 0")],
)
def test_atomic_numbers_that_are_none_are_refused_by_archives(tmp_path, z, said):
    with pytest.raises(InputError, match=said):
        load_frames(npz(tmp_path / "a.npz", np.array(z)))


@pytest.mark.parametrize("word", ["-1", "300", "8.5", "X", "1.0"])
def test_atomic_numbers_that_are_none_are_refused_by_text_files(tmp_path, word):
    (tmp_path / "a.xyz").write_text(f"1\nProperties=Z:I:1:pos:R:3 energy=1\n{word} 0 0 0\n")
    with pytest.raises(InputError, match="frame 0"):
        load_frames(str(tmp_path / "a.xyz"))
    (tmp_path / "input.data").write_text(f"begin\natom 0 0 0 {word} 0 0 0 0 0\nenergy 1\nend\n")
    with pytest.raises(InputError, match="frame 0"):
        load_frames(f"{tmp_path}/input.data?energy=eV&length=Å")


@pytest.mark.parametrize("number", [-1, 0, 119, 257, 262])
def test_stores_refuse_elements_that_a_byte_would_cut(tmp_path, number):
    bad = molecule(1, 3, numbers=np.array([1, number, 8]))
    with pytest.raises(InputError, match=f"frame 1, species: atomic number {number}"):
        write_store(tmp_path / "a.lmdb", [molecule(0, 3), bad])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [-1, 10])
def test_frames_that_a_store_has_not_are_refused(tmp_path, wrong):
    store = FrameStore(write_store(tmp_path / "a.lmdb", [molecule(i) for i in range(10)]))
    with pytest.raises(InputError, match=f"indices: index {wrong}"):
        StoredFrames(store, [0, wrong])


def set_of(folder, count, suffix):
    frames = [molecule(seed, 3) for seed in range(count)]
    if suffix == ".lmdb":
        return str(write_store(folder / f"{count}.lmdb", frames))
    from ase.io import write

    from pimlip_zoo.datasets.frame import frame_to_atoms

    write(folder / f"{count}{suffix}", [frame_to_atoms(frame) for frame in frames])
    return str(folder / f"{count}{suffix}")


@pytest.mark.parametrize("suffix", [".lmdb", ".extxyz", ".traj"])
def test_a_split_of_more_frames_than_there_are_is_refused(tmp_path, suffix):
    long, short = set_of(tmp_path, 20, suffix), set_of(tmp_path, 8, suffix)
    split = make_split(survey_data(long, long), sizes="0.8,0.2")
    write_split(split, tmp_path / "s.json")
    kept = [len(load_frames(f"{long}@{tmp_path}/s.json:{name}")) for name in split.parts]
    assert sum(kept) == 20
    said = f"names frame {split.parts['train'].max()}, there are 8"
    with pytest.raises(InputError, match=said):
        load_frames(f"{short}@{tmp_path}/s.json:train")
    with pytest.raises(InputError, match=said):
        open_frames(f"{short}@{tmp_path}/s.json:train") or load_frames(f"{short}@{tmp_path}/s.json:train")
    with pytest.raises(InputError, match=said):
        convert(f"{short}@{tmp_path}/s.json:train", tmp_path / "out.lmdb")


@pytest.mark.parametrize("suffix", [".lmdb", ".extxyz"])
def test_a_split_of_data_that_grew_is_refused(tmp_path, suffix):
    long, short = set_of(tmp_path, 20, suffix), set_of(tmp_path, 8, suffix)
    write_split(make_split(survey_data(short, short), sizes="0.5,0.5"), tmp_path / "s.json")
    spec = f"{long}@{tmp_path}/s.json:train"
    for read in (load_frames, lambda spec: open_frames(spec) or load_frames(spec)):
        with pytest.raises(InputError, match="of 8 frames, there are 20"):
            read(spec)
    with pytest.raises(InputError, match="of 8 frames, there are 20"):
        convert(spec, tmp_path / "out.lmdb")


@pytest.mark.parametrize("part", [[[0]], [0, 0], [[]]])
def test_a_part_of_a_split_is_a_list_of_different_indices(tmp_path, part):
    import hashlib

    data = set_of(tmp_path, 2, ".extxyz")
    content = {"format": "pimlip-zoo split", "version": 1, "data": data, "count": 2, "fingerprint": ""}
    digest = hashlib.sha256(json.dumps({"train": part}, sort_keys=True).encode()).hexdigest()
    (tmp_path / "s.json").write_text(
        json.dumps({**content, "method": {}, "parts": {"train": part}, "hash": digest})
    )
    with pytest.raises(InputError, match="train: is no list of different indices"):
        load_frames(f"{data}@{tmp_path}/s.json:train")


@pytest.mark.parametrize("wrong", [-1, 20, 2.5])
def test_a_split_file_with_impossible_indices_is_refused(tmp_path, wrong):
    import hashlib

    data = set_of(tmp_path, 20, ".extxyz")
    parts = {"train": [0, 1, wrong], "valid": [4]}
    content = {"format": "pimlip-zoo split", "version": 1, "data": data, "count": 20, "fingerprint": ""}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    (tmp_path / "s.json").write_text(json.dumps({**content, "method": {}, "parts": parts, "hash": digest}))
    with pytest.raises(InputError, match=f"train: index {wrong}"):
        load_frames(f"{data}@{tmp_path}/s.json:train")


def test_an_empty_part_of_a_split_is_refused(tmp_path):
    import hashlib

    data = set_of(tmp_path, 20, ".extxyz")
    parts = {"train": [0, 1], "valid": []}
    content = {"format": "pimlip-zoo split", "version": 1, "data": data, "count": 20, "fingerprint": ""}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    (tmp_path / "s.json").write_text(json.dumps({**content, "method": {}, "parts": parts, "hash": digest}))
    with pytest.raises(InputError, match="part valid is empty"):
        load_frames(f"{data}@{tmp_path}/s.json:valid")


@pytest.mark.parametrize(("species", "said"), [(("H", "X"), "no element"), (("H", "O", "H"), "twice")])
def test_lists_of_species_hold_each_element_once(species, said):
    with pytest.raises(InputError, match=said):
        species_indices(np.array([1, 1]), species)


def test_where_no_frame_can_be_used_the_first_reason_is_said(tmp_path):
    spec = npz(tmp_path / "a.npz", np.array([8, 1, -1]))
    with pytest.raises(InputError, match=r"no frame can be used; the first: .*frame 0, species: atom 2 has"):
        survey_data(spec, spec)
