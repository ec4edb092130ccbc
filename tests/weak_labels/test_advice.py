import signal
from dataclasses import replace

import ase.io
import numpy as np
import pytest

from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.frame import frame_to_atoms
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment import advice
from pimlip_zoo.experiment.advice import (
    SHORTER,
    Advice,
    Errors,
    _finding,
    _Pair,
    _Squares,
    _whole_run,
    advise,
    known_levels,
    labels_of_level,
)
from pimlip_zoo.experiment.run import Outcome

SMALL = (("model.channels", 4), ("model.l_max", 1), ("trainer.device", "cpu"), ("model.num_layers", 1))


@pytest.fixture(scope="module")
def ethanol():
    return load_builtin("ethanol-gfn2")[:16]


def spring(frames, strength=0.5):
    """The reference less a harmonic pull of every atom to the centre: what is left is as smooth as can be."""
    found = []
    for frame in frames:
        x = frame.positions - frame.positions.mean(axis=0)
        energy, forces = 0.5 * strength * (x**2).sum(), -strength * x
        found.append(replace(frame, energy=frame.energy - energy, forces=frame.forces - forces))
    return found


def noisy(frames, size=1.5):
    rng = np.random.default_rng(0)
    return [replace(f, forces=f.forces + rng.normal(0, size, f.forces.shape)) for f in frames]


def judged(surface, size, plain, left, *, power=0.0, early=1.0, by_forces=True):
    """The finding for errors of single structures; the shorter trainings had a ratio so many times as high."""
    before = replace(left, forces=left.forces * early**2, energies=left.energies * early**2)
    return _finding(
        "x", surface, size, _Pair(plain, plain), _Pair(before, left), power, 0, by_forces=by_forces
    )


def forces_of(*values):
    return [_Squares(np.full(12, 27.0 * value**2), np.full(12, 27.0), np.ones(12)) for value in values]


def test_a_smooth_difference_is_advised_and_a_rough_one_of_the_same_size_is_not(ethanol, monkeypatch):
    monkeypatch.setattr(advice, "_TRIAL", 6)
    told = []
    levels = {"smooth": spring(ethanol), "rough": noisy(ethanol)}
    found = advise(ethanol, levels, model="nequip", steps=60, settings=SMALL, told=told.append)
    assert told[0].startswith("how long it takes: 6 steps")
    assert len(told) == 7
    assert all("left in all" in text for text in told[1:])
    smooth, rough = found.findings
    assert (smooth.level, rough.level) == ("smooth", "rough")
    assert smooth.ratio < 0.9
    assert smooth.recipe is not None
    assert rough.recipe is None
    assert smooth.roughness < rough.roughness
    assert found.best is smooth
    assert "smooth" in found.sentence
    assert (found.structures, found.energies, found.force_components) == (16, 16, 16 * 27)
    alone = replace(found, findings=(rough,))
    assert alone.best is None
    assert alone.sentence.startswith("no recipe: rough")


def test_ctrl_c_in_a_training_ends_all_of_it(ethanol, monkeypatch):
    begun = []

    def stopped(experiment, folder):
        begun.append(experiment.config.trainer.max_steps)
        return Outcome(folder, 7, 1.0, signal.SIGINT)

    monkeypatch.setattr(advice, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        advise(ethanol, {"smooth": spring(ethanol)}, model="nequip", steps=60, settings=SMALL)
    assert begun == [15]


def test_the_time_left_is_that_of_all_trainings_to_come(tmp_path, monkeypatch):
    now, told = 100.0, []
    monkeypatch.setattr(advice.time, "monotonic", lambda: now)
    clock = advice._Clock(told.append, [200, 800])
    (tmp_path / "metrics.csv").write_text("step,seconds\n5,9.0\n10,10.0\n")  # the first five set up
    clock.begins("a few steps")
    now = 112.0  # twelve seconds, two of them for ten steps
    clock.ended(tmp_path, 10)
    clock.begins("the first")
    now = 152.0
    (tmp_path / "metrics.csv").write_text("step,seconds\n100,15.0\n200,35.0\n")
    clock.ended(tmp_path, 200)
    clock.begins("the second")
    assert told == [
        "a few steps",
        "the first; about 4 min left in all",
        "the second; about 3 min left in all",
    ]


@pytest.mark.parametrize(
    ("factor", "recipe"), [(0.3, "pretrain"), (0.75, "delta"), (0.95, None), (1.3, None)]
)
def test_the_verdict_follows_the_ratio(factor, recipe):
    plain = _Squares(np.full(12, 27.0), np.full(12, 27.0), np.full(12, 1e-4))
    left = _Squares(plain.forces * factor**2, plain.components, plain.energies * factor**2)
    errors = Errors(2.0, 0.1)  # as large as the surface: roughness is the ratio
    found = judged(errors, errors, plain, left)
    assert found.ratio == pytest.approx(factor)
    assert (found.low, found.high) == pytest.approx((factor, factor))
    assert found.recipe == recipe
    by_energies = judged(errors, errors, plain, left, by_forces=False)
    assert by_energies.recipe == ("pretrain" if recipe else None)


@pytest.mark.parametrize(
    ("labels", "plain", "difference", "left", "recipe"),
    [
        (986, 62, 476, 21, "pretrain"),  # acetylacetone, GFN2: pre-training helps, the difference model more
        (1307, 225, 447, 66, "pretrain"),  # aspirin, GFN2: likewise
        (877, 219, 264, 168, "delta"),  # TiO2, CHGNet: the difference model helps, pre-training does not
        (902, 105, 284, 139, None),  # silicon, CHGNet: both harm
    ],
)
def test_the_verdict_is_the_outcome_of_the_study_on_its_converged_pairs(
    labels, plain, difference, left, recipe
):
    """Forces in meV/Å, root mean squares."""
    found = judged(Errors(labels, 1.0), Errors(difference, 1.0), *forces_of(plain, left))
    assert found.recipe == recipe


@pytest.mark.parametrize(
    ("early", "expected", "recipe"),
    [(1.0, 0.6, "pretrain"), (0.7, 0.857, "delta"), (0.5, 1.2, None), (2.0, 0.6, "pretrain")],
)
def test_a_ratio_that_grows_with_the_length_is_judged_by_what_a_longer_run_makes_of_it(
    early, expected, recipe
):
    """Over as many times the length again it grows as often again; that it shrinks is not counted on."""
    found = judged(Errors(2.0, 1.0), Errors(2.0, 1.0), *forces_of(1.0, 0.6), power=1.0, early=early)
    assert (found.ratio, found.early) == pytest.approx((0.6, 0.6 * early))
    assert found.expected == pytest.approx(expected, abs=1e-3)
    assert found.recipe == recipe


def test_the_ratio_is_carried_on_as_far_as_the_lengths_are_apart_and_the_time_left_is_said(ethanol):
    told = []
    found = advise(
        ethanol, {"smooth": spring(ethanol)}, model="nequip", steps=20, settings=SMALL, told=told.append
    )
    assert (found.steps, found.length) == (20, 20 * SHORTER)
    assert [text.split(" steps")[0] for text in told] == [
        "labels: 5",
        "labels: 20",
        "smooth: 5",
        "smooth: 20",
    ]
    assert "left" not in told[0]
    assert all("left in all" in text for text in told[1:])
    (finding,) = found.findings
    assert finding.expected == pytest.approx(finding.ratio * max(finding.ratio / finding.early, 1.0))


def test_a_whole_run_is_as_long_as_the_default_recipe_makes_it(ethanol):
    assert _whole_run("nequip", ethanol) == 4_000
    assert _whole_run("mace", ethanol * 16) == 10_000


def test_a_rough_difference_is_not_advised_however_small_it_is():
    found = judged(Errors(1000, 1.0), Errors(120, 1.0), *forces_of(200, 100))
    assert found.roughness == pytest.approx(100 / 120 / 0.2)
    assert found.recipe is None
    assert "rougher" in found.reason


def test_a_gain_by_chance_is_none():
    rng = np.random.default_rng(1)
    plain = _Squares(rng.exponential(1.0, 8), np.full(8, 27.0), np.ones(8))
    left = _Squares(0.6 * rng.exponential(1.0, 8), np.full(8, 27.0), np.ones(8))
    found = judged(Errors(1.0, 1.0), Errors(1.0, 1.0), plain, left)
    assert found.high > found.low + 0.3
    assert found.recipe is None


def test_energies_alone_are_compared_by_energies(ethanol):
    frames = [replace(frame, forces=None) for frame in ethanol]
    found = advise(frames, {"smooth": spring(ethanol)}, model="nequip", steps=20, settings=SMALL)
    assert found.force_components == 0
    assert found.plain.forces is None
    assert found.length == found.steps
    assert found.findings[0].expected == found.findings[0].ratio


def test_a_file_is_a_level_whatever_its_order(ethanol, tmp_path):
    level = spring(ethanol)
    ase.io.write(tmp_path / "a.extxyz", [frame_to_atoms(frame) for frame in level[::-1]])
    for frame, expected in zip(labels_of_level(str(tmp_path / "a.extxyz"), ethanol), level, strict=True):
        assert frame.energy == pytest.approx(expected.energy, abs=1e-6)
    ase.io.write(tmp_path / "b.extxyz", [frame_to_atoms(frame) for frame in level[1:]])
    with pytest.raises(InputError, match="index 0"):
        labels_of_level(str(tmp_path / "b.extxyz"), ethanol)


@pytest.mark.parametrize("labels", [None, "energy", "forces"])
def test_a_structure_that_a_file_has_twice_counts_once_where_its_labels_agree(ethanol, tmp_path, labels):
    level = spring(ethanol)
    again = {
        None: level[0],
        "energy": replace(level[0], energy=level[0].energy + 1e-3),
        "forces": replace(level[0], forces=None),
    }[labels]
    ase.io.write(tmp_path / "a.extxyz", [frame_to_atoms(frame) for frame in [*level, again]])
    if labels is None:
        assert len(labels_of_level(str(tmp_path / "a.extxyz"), ethanol)) == len(ethanol)
        return
    with pytest.raises(InputError, match="index 0 of the labelled ones 2 times"):
        labels_of_level(str(tmp_path / "a.extxyz"), ethanol)


@pytest.mark.parametrize(
    "changes",
    [{"info": {"charge": 1}}, {"info": {"charge": 0, "multiplicity": 3}}, {"pbc": np.array([True] * 3)}],
)
def test_a_level_of_other_electrons_or_periodicity_is_another_one(ethanol, tmp_path, changes):
    boxed = [replace(frame, cell=9 * np.eye(3)) for frame in ethanol[:2]]
    other = [replace(frame, **changes) for frame in boxed]
    ase.io.write(tmp_path / "a.extxyz", [frame_to_atoms(frame) for frame in other])
    assert len(labels_of_level(str(tmp_path / "a.extxyz"), other)) == 2
    with pytest.raises(InputError, match="no structure like the one with index 0"):
        labels_of_level(str(tmp_path / "a.extxyz"), boxed)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("trainer.max_steps", "--steps"),
        ("trainer.valid_every", "--steps"),
        ("trainer.max_time", "--steps"),
        ("data.train", "--data"),
        ("data.valid", "itself"),
        ("data.labels", "--labels"),
        ("model.name", "--model"),
        ("seed", "--seed"),
        ("weak.labels.method", "--calculator"),
        ("weak", "--calculator"),
    ],
)
def test_what_the_comparison_sets_itself_is_refused(ethanol, key, hint):
    with pytest.raises(InputError, match="is set by the comparison") as caught:
        advise(ethanol, {}, settings=[("model.channels", 4), (key, 3)])
    assert key in str(caught.value)
    assert hint in str(caught.value)


def test_what_has_no_weight_is_not_compared(ethanol, monkeypatch):
    seen = []

    def prepared(config, *, split):
        seen.extend(frame for part in split for frame in part)
        raise KeyboardInterrupt

    monkeypatch.setattr(advice, "prepare", prepared)
    frames = [replace(ethanol[0], weight=0.0), *ethanol[1:]]
    with pytest.raises(KeyboardInterrupt):
        advise(frames, {}, steps=10)
    assert all(frame.weight for frame in seen)
    with pytest.raises(InputError, match="9 structures are too few"):
        advise([replace(frame, weight=float(k < 9)) for k, frame in enumerate(ethanol)], {})
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        advise([replace(frame, label_weights=(1.0, 0.0, 1.0)) for frame in ethanol], {}, steps=10)
    assert seen
    assert all(frame.forces is None for frame in seen)


def test_forces_that_only_some_structures_have_are_refused(ethanol):
    frames = [*ethanol[:3], replace(ethanol[3], forces=None), *ethanol[4:]]
    with pytest.raises(InputError, match="1 of 16 structures have no forces, the first is that with index 3"):
        advise(frames, {})


def test_that_one_composition_does_not_determine_energies_of_atoms_is_no_warning(ethanol, caplog):
    advise(ethanol, {}, model="nequip", steps=10, settings=SMALL)
    assert "compositions determine" not in caplog.text


def test_a_training_that_was_validated_once_tells_the_time_of_its_steps(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,seconds\n4,2.0\n")
    assert advice._seconds_of_step(tmp_path) == 0.5


def test_levels_that_know_the_elements_are_found():
    pytest.importorskip("tblite")
    assert known_levels(load_builtin("ethanol-gfn2")[:1])[0] == ["gfn2", "gfn1", "emt"]
    names, skipped = known_levels(load_builtin("cual-emt")[:1])
    assert names == ["emt"]
    assert "--calculator" in skipped["gfn2, gfn1"]


def test_too_few_structures_are_refused_and_a_failing_level_is_skipped(ethanol):
    with pytest.raises(InputError, match="too few"):
        advise(ethanol[:5], {})
    broken = {"broken": InputError("it fails")}
    found = advise(ethanol, broken, model="nequip", steps=10, settings=SMALL)
    assert found.skipped == {"broken": "it fails"}
    assert found.sentence == "no cheap level could be looked at: train without a recipe"
    assert isinstance(found, Advice)


@pytest.mark.parametrize("labels", ["energy,forces", "energy"])
def test_labels_that_are_of_a_level_itself_are_seen_without_a_training(ethanol, monkeypatch, labels):
    def never(*_):
        raise AssertionError("something was trained")

    monkeypatch.setattr(advice, "_trained", never)
    frames = ethanol if labels == "energy,forces" else [replace(f, forces=None) for f in ethanol]
    shifted = [replace(f, energy=f.energy + 3.0) for f in ethanol]
    found = advise(frames, {"smooth": spring(ethanol), "same": shifted, "broken": InputError("no")}, steps=20)
    assert found.steps == 0
    assert found.same is not None
    assert found.same.level == "same"
    assert found.best is None
    assert "no recipe: same is what these were labelled with" in found.sentence


def test_a_level_that_the_labels_are_of_is_named_and_no_other_is_advised():
    other = judged(Errors(2.0, 0.1), Errors(1.0, 0.1), *forces_of(200, 50))
    assert other.recipe == "pretrain"
    itself = replace(judged(Errors(2.0, 0.1), Errors(1e-7, 1e-9), *forces_of(200, 1e-5)), level="itself")
    assert itself.recipe is None
    advice = Advice(40, 40, 500, 10, 20, 4000, Errors(2.0, 0.1), Errors(0.1, 0.1), (other, itself), {})
    assert advice.best is None
    assert "itself is what these were labelled with" in advice.sentence
