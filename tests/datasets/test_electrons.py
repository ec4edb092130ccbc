import dataclasses
import json
import zlib

import ase.io
import numpy as np
import pytest
from ase import Atoms

from pimlip_zoo.config import RunConfig
from pimlip_zoo.datasets.convert import convert
from pimlip_zoo.datasets.coverage import isolated_atom_energies
from pimlip_zoo.datasets.dataset import FrameDataset
from pimlip_zoo.datasets.electrons import Electrons, electrons_of, electrons_of_atoms, stated
from pimlip_zoo.datasets.frame import Frame, frame_to_atoms
from pimlip_zoo.datasets.lmdb import FrameStore, write_store
from pimlip_zoo.datasets.lmdb.index import entries_of, geometry_digest
from pimlip_zoo.datasets.neighbours import frame_to_sample, frames_to_batch
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.datasets.store_frames import StoredFrames
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.record import data_record
from pimlip_zoo.graph import collate
from pimlip_zoo.training.packed_batch import pack, unpack
from pimlip_zoo.weak_labels import pool
from pimlip_zoo.weak_labels.calculators import CheapCalculator, find_cheap_calculator
from pimlip_zoo.weak_labels.pool import PoolOptions, cached_labels, label_frames, labelled_pool, sample_pool

OH = np.array([8, 1])
PLACES = np.array([[0.0, 0.0, 0.0], [0.0, 0.1, 0.97]])


def hydroxide(**info):
    return Frame(OH.copy(), PLACES.copy(), energy=-1.0, forces=np.zeros((2, 3)), info=info)


def atoms(**info):
    made = Atoms(OH, PLACES)
    made.info.update(info)
    return made


@pytest.mark.parametrize(
    "info",
    [
        {"charge": -1, "multiplicity": 1},
        {"total_charge": -1.0, "total_spin": 1},
        {"Charge": -1, "spin_multiplicity": 1},
        {"charge": -1, "spin": 1},
    ],
)
def test_the_usual_names_of_charge_and_multiplicity_are_read(tmp_path, info):
    ase.io.write(tmp_path / "a.extxyz", atoms(**info))
    (frame,) = load_frames(str(tmp_path / "a.extxyz"))
    assert (frame.info["charge"], frame.info["multiplicity"]) == (-1, 1)
    assert all(type(frame.info[key]) is int for key in ("charge", "multiplicity"))
    assert "spin" not in frame.info


@pytest.mark.parametrize("suffix", ["extxyz", "traj", "db"])
def test_initial_charges_and_moments_of_ase_add_up_to_them(tmp_path, suffix):
    made = atoms()
    made.set_initial_charges([0.6, 0.4])
    made.set_initial_magnetic_moments([2.0, 0.0])
    ase.io.write(tmp_path / f"a.{suffix}", made)
    (frame,) = load_frames(str(tmp_path / f"a.{suffix}"))
    assert electrons_of(frame.numbers, frame.info) == Electrons(1, 3)
    assert electrons_of_atoms(made) == Electrons(1, 3)


def test_moments_of_a_magnet_are_a_guess_and_partial_charges_are_said_to_be_none(tmp_path, caplog):
    iron = Atoms("Fe2", [[0, 0, 0], [1.4, 1.4, 1.4]], cell=[2.8] * 3, pbc=True)
    iron.set_initial_magnetic_moments([2.0, 2.0])
    ase.io.write(tmp_path / "fe.extxyz", iron)
    assert load_frames(str(tmp_path / "fe.extxyz"))[0].info == {}
    partial = atoms()
    partial.set_initial_charges([-0.5, 0.2])
    ase.io.write(tmp_path / "oh.extxyz", [partial, partial])
    assert all(frame.info == {} for frame in load_frames(str(tmp_path / "oh.extxyz")))
    assert caplog.text.count("no whole number") == 1


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"charge": 0.5}, "no whole number"),
        ({"charge": -1, "multiplicity": 2}, "impossible with 10 electrons"),
        ({"charge": 12}, "there are 9 electrons"),
        ({"charge": 1, "total_charge": 0}, "disagree"),
        ({"charge": 0, "spin": 0}, "multiplicity 0 is impossible"),
    ],
)
def test_impossible_electrons_are_refused_with_file_and_frame(tmp_path, info, said):
    ase.io.write(tmp_path / "a.extxyz", [atoms(), atoms(**info)])
    with pytest.raises(InputError, match=said) as caught:
        load_frames(str(tmp_path / "a.extxyz"))
    assert caught.value.frame == 1
    assert str(tmp_path) in str(caught.value)


def test_what_is_not_stated_is_neutral_with_the_lowest_multiplicity():
    assert electrons_of(OH, {}) == Electrons(0, 2)
    assert electrons_of(OH, {"charge": -1}) == Electrons(-1, 1)
    assert stated(hydroxide(charge=0, multiplicity=2)) == {}
    assert stated(hydroxide(charge=-1, multiplicity=1)) == {"charge": -1}
    assert stated(hydroxide(multiplicity=4)) == {"multiplicity": 4}


def test_hdf5_has_one_charge_for_a_group_or_one_for_each_structure(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, extra in (("a", {"charge": -1}), ("b", {"charge": [0, 1], "mult": [4, 1]}), ("c", {})):
            group = file.create_group(name)
            group["atomic_numbers"] = OH
            group["coordinates"] = np.stack([PLACES, PLACES + 0.1])
            group["energies"] = [0.0, 1.0]
            for key, value in extra.items():
                group[key] = value
    frames = load_frames(f"{tmp_path / 'a.h5'}?energy=eV&length=Å")
    found = [electrons_of(frame.numbers, frame.info) for frame in frames]
    assert found == [(-1, 1), (-1, 1), (0, 4), (1, 1), (0, 2), (0, 2)]
    assert convert(f"{tmp_path / 'a.h5'}?energy=eV&length=Å", tmp_path / "a.lmdb").not_kept == ()


def test_of_charges_of_atoms_the_sum_is_kept_and_the_rest_is_said_not_to_be(tmp_path):
    made = atoms()
    made.set_initial_charges([-1.5, 0.5])
    ase.io.write(tmp_path / "a.extxyz", made)
    assert convert(str(tmp_path / "a.extxyz"), tmp_path / "a.lmdb").not_kept == ("charges",)
    assert FrameStore(tmp_path / "a.lmdb")[0].info == {"charge": -1}
    ase.io.write(tmp_path / "b.extxyz", atoms(charge=-1, multiplicity=1))
    assert convert(str(tmp_path / "b.extxyz"), tmp_path / "b.lmdb").not_kept == ()


def test_aselmdb_has_them_in_its_data(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    path = tmp_path / "a.aselmdb"
    row = {
        "numbers": OH.tolist(),
        "positions": PLACES.tolist(),
        "data": {"charge": 1, "spin": 3},
        "energy": 1.0,
    }
    with lmdb.open(str(path), subdir=False) as file, file.begin(write=True) as transaction:
        for key, value in (("1", row), ("nextid", 2)):
            transaction.put(key.encode(), zlib.compress(json.dumps(value).encode()))
    (frame,) = load_frames(str(path))
    assert electrons_of(frame.numbers, frame.info) == Electrons(1, 3)


def test_stores_and_files_keep_them(tmp_path):
    frames = [hydroxide(charge=-1), hydroxide(charge=1, multiplicity=3), hydroxide()]
    write_store(tmp_path / "a.lmdb", frames)
    assert [frame.info for frame in FrameStore(tmp_path / "a.lmdb")] == [frame.info for frame in frames]
    ase.io.write(tmp_path / "b.extxyz", [frame_to_atoms(frame) for frame in frames])
    assert [stated(frame) for frame in load_frames(str(tmp_path / "b.extxyz"))] == [stated(f) for f in frames]


def test_graphs_of_frames_of_stores_and_in_parcels_carry_them(tmp_path):
    frames = [hydroxide(charge=-1), hydroxide(charge=1, multiplicity=3), hydroxide()]
    expected = [[-1.0, 0.0], [1.0, 2.0], [0.0, 1.0]]
    assert frames_to_batch(frames, ("H", "O"), 3.0).graph.electrons.tolist() == expected
    batch = collate([frame_to_sample(frame, ("H", "O"), 3.0) for frame in frames])
    assert batch.graph.electrons.tolist() == expected
    for name, some in (("some", frames), ("none", frames[2:] * 3)):
        write_store(tmp_path / f"{name}.lmdb", some)
        stored = FrameDataset(
            StoredFrames(FrameStore(tmp_path / f"{name}.lmdb")), ("H", "O"), 3.0, cache_bytes=0
        )
        again = unpack(pack(stored.batch([0, 1, 2])))
        assert again.graph.electrons.tolist() == (expected if name == "some" else [expected[2]] * 3)
    bare = batch._replace(graph=batch.graph._replace(electrons=None))
    assert unpack(pack(bare)).graph.electrons is None
    assert collate([bare, batch]).graph.electrons.tolist() == [[0.0, 0.0]] * 3 + expected


def test_gfn2_labels_the_ion_and_not_the_radical():
    pytest.importorskip("tblite")
    from tblite.ase import TBLite

    for frame in (hydroxide(charge=-1), hydroxide(charge=1, multiplicity=3), hydroxide()):
        electrons = electrons_of(frame.numbers, frame.info)
        direct = Atoms(OH, PLACES, calculator=TBLite(method="GFN2-xTB", verbosity=0, **electrons._asdict()))
        (labelled,) = label_frames([frame], find_cheap_calculator("gfn2"))
        assert labelled.energy == pytest.approx(direct.get_potential_energy(), abs=1e-7)
        np.testing.assert_allclose(labelled.forces, direct.get_forces(), atol=1e-6)
        assert stated(labelled) == stated(frame)
    # As part of a difference model the calculator gets atoms of users, who state the charge in `info`.
    ion = atoms(charge=-1)
    ion.calc = find_cheap_calculator("gfn2").make()
    (labelled,) = label_frames([hydroxide(charge=-1)], find_cheap_calculator("gfn2"))
    assert ion.get_potential_energy() == pytest.approx(labelled.energy, abs=1e-7)
    ion.info["charge"] = 0
    assert ion.get_potential_energy() == pytest.approx(
        label_frames([hydroxide()], find_cheap_calculator("gfn2"))[0].energy, abs=1e-6
    )


class Counting:
    """Energy is the sum of the initial charges: what a calculator is given."""

    @staticmethod
    def make():
        from ase.calculators.calculator import Calculator

        class Charges(Calculator):
            implemented_properties = ("energy", "forces")

            def calculate(self, atoms=None, properties=None, system_changes=()):
                super().calculate(atoms, properties, system_changes)
                self.results = {
                    "energy": atoms.get_initial_charges().sum() + 10 * atoms.info.get("multiplicity", 0),
                    "forces": np.zeros((len(atoms), 3)),
                }

        return Charges()


def test_the_cache_knows_ions_apart_and_the_pool_keeps_what_its_structures_are(tmp_path):
    charges = CheapCalculator("charges", "1", Counting.make)
    for info, energy in (({}, 0.0), ({"charge": -1}, 9.0), ({"charge": 1, "multiplicity": 3}, 31.0)):
        assert cached_labels([hydroxide(**info)], charges, tmp_path)[0].energy == energy
    assert len(list(tmp_path.glob("*.lmdb"))) == 3
    cached_labels([hydroxide(charge=0, multiplicity=2)], charges, tmp_path)  # says nothing new
    assert len(list(tmp_path.glob("*.lmdb"))) == 3
    options = PoolOptions(structures=4, method="both", stride=1, temperatures=(50.0,))
    sampled = labelled_pool([hydroxide(charge=-1)], charges, options, tmp_path)
    assert [frame.energy for frame in sampled] == [9.0] * 4
    assert all(frame.info["charge"] == -1 for frame in sampled)


def test_further_processes_label_ions_as_ions(tmp_path, monkeypatch):
    pytest.importorskip("tblite")
    monkeypatch.setattr(pool, "_WORTH_SHARING", 0.0)
    monkeypatch.setattr(pool, "cores", lambda: 2)
    gfn2, frames = find_cheap_calculator("gfn2"), [hydroxide(charge=-1)] * 60

    def for_the_estimate_alone():
        calculator, times = gfn2.make(), []
        compute = calculator.calculate

        def calculate(*args, **options):
            times.append(1)
            assert len(times) <= 2
            return compute(*args, **options)

        calculator.calculate = calculate
        return calculator

    labelled = cached_labels(frames, gfn2._replace(make=for_the_estimate_alone), tmp_path)
    (ion,) = label_frames(frames[:1], gfn2)
    assert [frame.energy for frame in labelled] == pytest.approx([ion.energy] * 60, abs=1e-6)
    assert all(stated(frame) == {"charge": -1} for frame in labelled)


def test_given_and_sampled_structures_keep_what_they_are():
    charges = CheapCalculator("charges", "1", Counting.make)
    ions = [hydroxide(charge=-1)] * 3
    given = sample_pool([hydroxide()], charges, PoolOptions(structures=3, method="given"), unlabelled=ions)
    assert [frame.energy for frame in given] == [9.0] * 3
    assert all(stated(frame) == {"charge": -1} for frame in given)


def test_a_calculator_without_charges_refuses_ions(tmp_path):
    emt = find_cheap_calculator("emt")
    frames = [hydroxide(), hydroxide(charge=-1)]
    with pytest.raises(InputError, match="emt knows nothing of charge -1") as caught:
        label_frames(frames, emt)
    assert caught.value.frame == 1
    with pytest.raises(InputError, match="emt knows nothing"):
        sample_pool(frames, emt, PoolOptions(structures=1))
    with pytest.raises(InputError, match="emt knows nothing"):
        cached_labels(frames, emt, tmp_path)
    with pytest.raises(InputError, match="emt knows nothing"):
        labelled_pool(frames, emt, PoolOptions(structures=1), tmp_path)


def test_a_calculator_of_which_it_is_not_known_what_it_does_with_ions_labels_them_and_that_is_said(caplog):
    def with_sight(sees):
        calculator = Counting.make()
        if sees is not None:
            calculator.sees_electrons = sees
        return calculator

    for sees, said in ((None, "is its own matter"), (False, "does not see it"), (True, None)):
        caplog.clear()
        unknown = CheapCalculator("mine:make", "1", lambda sees=sees: with_sight(sees), known=False)
        label_frames([hydroxide(charge=-1)], unknown)
        assert (said is None and not caplog.text) or ("charge -1" in caplog.text and said in caplog.text)
        caplog.clear()
        label_frames([hydroxide()], unknown)
        assert not caplog.text
    assert not find_cheap_calculator("ase.calculators.lj:LennardJones", trust=True).known
    assert find_cheap_calculator("emt").known


def test_an_ion_apart_is_no_energy_reference():
    proton = Frame(np.array([1]), np.zeros((1, 3)), energy=0.0, info={"charge": 1})
    atom = dataclasses.replace(proton, energy=-13.6, info={})
    assert isolated_atom_energies([proton, atom]) == {"H": -13.6}


def test_one_geometry_of_two_charges_is_no_duplicate_and_other_data():
    ion, radical = hydroxide(charge=-1), hydroxide()
    assert geometry_digest(ion) != geometry_digest(radical)
    assert geometry_digest(hydroxide(charge=0, multiplicity=2)) == geometry_digest(radical)
    entries = entries_of([ion, radical], [0, 0], 5.0)
    assert entries["digest"].tolist() == [geometry_digest(ion), geometry_digest(radical)]
    config = RunConfig.model_validate({"data": {"train": "a"}})
    records = [data_record(config, ([frame], [])) for frame in (ion, radical)]
    assert records[0] != records[1]
