import dataclasses

import numpy as np
import pytest

from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.lmdb import FrameStore
from pimlip_zoo.errors import InputError
from pimlip_zoo.weak_labels.calculators import CheapCalculator, find_cheap_calculator
from pimlip_zoo.weak_labels.offsets import add_labels, fit_offset, shift_energies, subtract_labels
from pimlip_zoo.weak_labels.pool import (
    PoolOptions,
    cache_folder,
    cached_labels,
    label_frames,
    labelled_pool,
    sample_pool,
)

EMT = find_cheap_calculator("emt")


@pytest.fixture(scope="module")
def crystals():
    """Small copper and aluminium cells."""
    frames = [frame for frame in load_builtin("cual-emt") if len(frame.numbers) > 3]
    return sorted(frames, key=lambda frame: len(frame.numbers))[:4]


def test_labels_are_what_the_calculator_says(crystals):
    for frame, labelled in zip(crystals, label_frames(crystals, EMT), strict=True):
        assert labelled.energy == pytest.approx(frame.energy, abs=1e-6)  # the set was made with EMT
        np.testing.assert_allclose(labelled.forces, frame.forces, atol=1e-6)
        assert labelled.info["supervisor"] == "emt"


def test_crystals_get_their_stress_and_molecules_none(crystals, tmp_path):
    for frame, labelled in zip(crystals, label_frames(crystals, EMT), strict=True):
        energies = []
        for step in (1e-4, -1e-4):  # dE/dε_xy / V
            strain = np.eye(3)
            strain[0, 1] = strain[1, 0] = 0.5 * step
            moved = dataclasses.replace(frame, positions=frame.positions @ strain, cell=frame.cell @ strain)
            energies += [label.energy for label in label_frames([moved], EMT)]
        slope = (energies[0] - energies[1]) / 2e-4 / abs(np.linalg.det(frame.cell))
        assert labelled.stress[0, 1] == pytest.approx(slope, abs=1e-7)
        np.testing.assert_allclose(labelled.stress, labelled.stress.T)
    (slab,) = label_frames([dataclasses.replace(crystals[0], pbc=np.array([True, True, False]))], EMT)
    assert slab.stress is None
    options = PoolOptions(structures=4, method="both", stride=1, temperatures=(300.0,))
    pool = labelled_pool(crystals, EMT, options, tmp_path)
    assert all(frame.stress is not None for frame in pool)
    for frame, again in zip(pool, label_frames(pool, EMT), strict=True):
        np.testing.assert_allclose(frame.stress, again.stress, atol=1e-10)


@pytest.mark.parametrize("method", ["md", "displaced", "both"])
def test_a_pool_has_as_many_structures_as_asked_for_with_labels_that_belong_to_them(crystals, method):
    options = PoolOptions(structures=7, method=method, stride=2, temperatures=(300.0, 800.0), seed=3)
    told = []
    pool = sample_pool(crystals, EMT, options, lambda done, total: told.append((done, total)))
    assert len(pool) == 7
    assert told[-1] == (7, 7)
    again = label_frames(pool, EMT)
    for frame, check in zip(pool, again, strict=True):
        assert frame.energy == pytest.approx(check.energy, abs=1e-9)
        np.testing.assert_allclose(frame.forces, check.forces, atol=1e-9)
    temperatures = [frame.info.get("temperature") for frame in pool]
    assert (None in temperatures) == (method != "md")
    assert (800.0 in temperatures) == (method != "displaced")


@pytest.mark.parametrize("method", ["md", "displaced", "both"])
def test_unlabelled_structures_are_where_sampling_starts_too(crystals, method):
    options = PoolOptions(structures=12, method=method, stride=1, temperatures=(300.0,), seed=3)

    strange = dataclasses.replace(
        crystals[0],
        numbers=np.concatenate([crystals[0].numbers] * 2),
        positions=np.concatenate([crystals[0].positions, crystals[0].positions + crystals[0].cell[0]]),
        cell=crystals[0].cell * np.array([[2.0], [1.0], [1.0]]),
        energy=None,
        forces=None,
    )
    sizes = {len(frame.numbers) for frame in sample_pool(crystals[:1], EMT, options, None, [strange])}
    assert sizes == {len(crystals[0].numbers), len(strange.numbers)}


def test_given_structures_are_labelled_as_they_are_and_too_few_are_filled_with_displaced_ones(crystals):
    given = [dataclasses.replace(frame, energy=None, forces=None) for frame in crystals[1:]]
    options = PoolOptions(structures=len(given) + 3, method="given", seed=1)
    pool = sample_pool(crystals[:1], EMT, options, None, given)
    same = [
        frame for frame in pool if any(np.array_equal(frame.positions, other.positions) for other in given)
    ]
    assert len(pool) == len(given) + 3
    assert len(same) == len(given)
    for frame, check in zip(pool, label_frames(pool, EMT), strict=True):
        assert frame.energy == pytest.approx(check.energy, abs=1e-9)
    few = sample_pool(crystals[:1], EMT, options.model_copy(update={"structures": 1}), None, given)
    assert len(few) == 1
    assert any(np.array_equal(few[0].positions, other.positions) for other in given)


def test_the_same_seed_samples_the_same_structures(crystals):
    options = PoolOptions(structures=4, stride=2, seed=1)
    one, two = sample_pool(crystals, EMT, options), sample_pool(crystals, EMT, options)
    other = sample_pool(crystals, EMT, options.model_copy(update={"seed": 2}))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
    assert np.abs(one[0].positions[:3] - other[0].positions[:3]).max() > 1e-6


def test_structures_beyond_the_limit_of_force_are_left_out(crystals):
    options = PoolOptions(structures=6, method="displaced", amplitudes=(0.02, 0.4), max_force=3.0)
    pool = sample_pool(crystals, EMT, options)
    assert max(np.linalg.norm(frame.forces, axis=1).max() for frame in pool) <= 3.0
    with pytest.raises(InputError, match="hardly any structure"):
        sample_pool(crystals, EMT, options.model_copy(update={"max_force": 1e-6}))
    with pytest.raises(InputError, match="no structure to start from"):
        sample_pool([], EMT, options)


@pytest.mark.parametrize("method", ["displaced", "md"])
def test_what_a_calculator_that_always_fails_says_is_told(crystals, method):
    def make():
        calculator = EMT.make()
        calculator.calculate = lambda *args, **options: (_ for _ in ()).throw(RuntimeError("no weights here"))
        return calculator

    options = PoolOptions(structures=2, method=method, stride=1)
    with pytest.raises(
        InputError, match="fails at nearly every structure, at last with: no weights here"
    ) as told:
        sample_pool(crystals[:1], CheapCalculator("emt", EMT.version, make), options)
    assert isinstance(told.value.__cause__, RuntimeError)


def test_a_pool_is_sampled_once_and_again_when_anything_changes(crystals, tmp_path):
    calls = []

    def make():
        calls.append(1)
        return EMT.make()

    counting = CheapCalculator("emt", EMT.version, make)
    options = PoolOptions(structures=4, method="displaced")
    first = labelled_pool(crystals, counting, options, tmp_path)
    second = labelled_pool(crystals, counting, options, tmp_path)
    assert len(calls) == 1
    for a, b in zip(first, second, strict=True):
        assert a.energy == b.energy
        np.testing.assert_array_equal(a.forces, b.forces)
    labelled_pool(crystals[:2], counting, options, tmp_path)
    labelled_pool(crystals, counting, options.model_copy(update={"seed": 5}), tmp_path)
    labelled_pool(crystals, counting._replace(version="another"), options, tmp_path)
    given = options.model_copy(update={"method": "given"})
    for frames in (crystals[:1], crystals[1:2]):  # which are labelled does not matter
        labelled_pool(frames, counting, given, tmp_path, unlabelled=[*crystals, crystals[0]])
    cached_labels(crystals, counting, tmp_path)
    cached_labels(crystals, counting, tmp_path)
    assert len(calls) == 6
    stores = sorted(tmp_path.glob("*.lmdb"))
    assert len(stores) == 6
    assert all(FrameStore(path).meta[0]["supervisor"] == "emt" for path in stores)


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("PIMLIP_ZOO_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("PIMLIP_ZOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "pimlip-zoo"


def test_calculators_are_found_by_name(tmp_path):
    pytest.importorskip("tblite")
    assert find_cheap_calculator("gfn2").version.startswith("tblite ")
    methane = Frame(
        numbers=np.array([6, 1, 1, 1, 1]),
        positions=np.array(
            [[0, 0, 0], [0.63, 0.63, 0.63], [-0.63, -0.63, 0.63], [-0.63, 0.63, -0.63], [0.63, -0.63, -0.63]]
        ),
    )
    (labelled,) = label_frames([methane], find_cheap_calculator("gfn2"))
    assert labelled.energy == pytest.approx(-4.175218 * 27.211386, abs=0.02)  # GFN2-xTB methane, Hartree
    user = find_cheap_calculator("ase.calculators.lj:LennardJones", trust=True)
    assert label_frames([methane], user)[0].forces.shape == (5, 3)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("gfn3", "no calculator is called 'gfn3'.*gfn1.*MODULE:FACTORY"),
        ("gfn2?acuracy=0.1", "did you mean accuracy"),
        ("gfn2?accuracy", r"write gfn2\?OPTION=VALUE"),
        ("gfn2?accuracy=0", "greater than 0"),
        ("emt?x=1", "no such option"),
        ("run:/nowhere", "no such run"),
        ("no_such_module_here:make", "importable"),
        ("ase.calculators.lj:Nothing", "importable"),
        ("math:sin", "without arguments"),
        ("time:time", "no ASE calculator"),
    ],
)
def test_unknown_calculators_are_refused(name, match):
    with pytest.raises(InputError, match=match):
        find_cheap_calculator(name, trust=True).make()


def test_a_calculator_that_fails_is_reported_with_the_structure(crystals):
    helium = Frame(numbers=np.array([2, 2]), positions=np.array([[0.0, 0, 0], [0, 0, 2.0]]))
    with pytest.raises(InputError, match="frame 4: emt fails"):
        label_frames([*crystals, helium], EMT)


def frames_of(compositions, energies):
    return [
        Frame(numbers=np.array(numbers), positions=np.zeros((len(numbers), 3)), energy=energy)
        for numbers, energy in zip(compositions, energies, strict=True)
    ]


def test_offsets_by_species_are_recovered():
    compositions = [[1, 1, 8], [6, 1, 1, 1, 1], [6, 8], [1, 1], [6, 8, 8]]
    true = {1: 0.7, 6: -2.0, 8: 1.3}
    rng = np.random.default_rng(0)
    cheap = frames_of(compositions, rng.normal(size=5))
    reference = [dataclasses.replace(f, energy=f.energy + sum(true[z] for z in f.numbers)) for f in cheap]
    offset = fit_offset(reference, cheap, ("H", "C", "O"))
    np.testing.assert_allclose(offset.energies, [0.7, -2.0, 1.3], atol=1e-9)
    assert offset.spread < 1e-9
    for shifted, want in zip(shift_energies(cheap, offset), reference, strict=True):
        assert shifted.energy == pytest.approx(want.energy, abs=1e-9)


def test_one_composition_is_enough_for_that_composition():
    """Energies of one molecule determine one number, and that is all that its pool needs."""
    cheap = frames_of([[6, 1, 1]] * 4, [1.0, 2.0, 3.0, 4.0])
    reference = [
        dataclasses.replace(f, energy=f.energy + 5.0 + d)
        for f, d in zip(cheap, (-0.1, 0.1, -0.1, 0.1), strict=True)
    ]
    offset = fit_offset(reference, cheap, ("H", "C"))
    assert shift_energies(cheap, offset)[0].energy == pytest.approx(6.0, abs=1e-9)
    assert offset.spread == pytest.approx(0.1, abs=1e-9)
    unlabelled = [dataclasses.replace(f, energy=None) for f in reference]
    with pytest.raises(InputError, match="both levels"):
        fit_offset(unlabelled, cheap, ("H", "C"))


def test_differences_and_sums_of_labels_are_inverse(crystals):
    rng = np.random.default_rng(0)
    cheap = [
        dataclasses.replace(f, energy=f.energy + 1.0, forces=f.forces + rng.normal(size=f.forces.shape))
        for f in crystals
    ]
    difference = subtract_labels(crystals, cheap)
    assert difference[0].energy == pytest.approx(-1.0)
    np.testing.assert_allclose(difference[0].stress, 0.0)  # both levels have the same here
    for back, want in zip(add_labels(cheap, difference), crystals, strict=True):
        assert back.energy == pytest.approx(want.energy, abs=1e-9)
        np.testing.assert_allclose(back.forces, want.forces, atol=1e-9)
    missing = [dataclasses.replace(f, forces=None) for f in crystals]
    assert subtract_labels(missing, cheap)[0].forces is None
    with pytest.raises(InputError, match="different structures"):
        subtract_labels(crystals, cheap[::-1])


def test_a_calculator_has_options_that_are_part_of_its_name_where_they_are_not_the_default(tmp_path):
    pytest.importorskip("tblite")
    rough, same = (
        find_cheap_calculator("gfn2?accuracy=100&max_iterations=250"),
        find_cheap_calculator("gfn2?accuracy=1.0"),
    )
    assert (rough.name, same.name) == ("gfn2?accuracy=100.0", "gfn2")
    molecule = load_builtin("ethanol-gfn2")[:1]
    calls = []

    def counted(level):
        return level._replace(make=lambda: calls.append(level.name) or level.make())

    fine, coarse = (cached_labels(molecule, counted(one), tmp_path)[0] for one in (same, rough))
    assert 0 < abs(fine.energy - coarse.energy) < 1e-2
    assert (
        cached_labels(molecule, counted(find_cheap_calculator(rough.name)), tmp_path)[0].energy
        == coarse.energy
    )
    assert calls == ["gfn2", "gfn2?accuracy=100.0"]
