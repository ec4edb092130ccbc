"""``pimlip-zoo select``: what is chosen is usable, not known, and what the acquisition promises."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.io import read
from typer.testing import CliRunner

from pimlip_zoo.cli import app
from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError
from pimlip_zoo.labelling import acquisition as acq
from pimlip_zoo.labelling.acquisition import (
    ACQUISITIONS,
    Candidates,
    Choice,
    register_acquisition,
    usual_acquisition,
)
from pimlip_zoo.labelling.features import atom_features, force_information, gradient_features, untrained
from pimlip_zoo.labelling.screening import screen
from pimlip_zoo.labelling.select import select
from pimlip_zoo.labelling.uncertainty import fit_posterior
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model


@pytest.fixture(scope="module")
def pool():
    return load_builtin("builtin:ethanol-gfn2/train")[:24]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    info = get_model("nequip")
    config = info.configure(num_layers=2, channels=4, l_max=1, cutoff=3.5, avg_num_neighbors=6.0)
    return Potential(info.model(config, ("H", "C", "O")), scale=0.1).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def posterior(model, pool):
    return fit_posterior(model, pool[:4], pool[4:6])


@pytest.mark.parametrize(
    "name", ["random", "farthest", "coverage", "cluster", "gradient", "variance", "mixed", "difference"]
)
def test_every_acquisition_chooses_as_many_different_ones_as_are_wanted(name, pool, model, posterior):
    candidates = Candidates(pool[6:], pool[:4], model, posterior, None, np.arange(1.0, 19.0))
    ways = ACQUISITIONS.all()
    for count in (1, 5, 18):
        chosen = ways[name].choose(candidates, count, np.random.default_rng(0))
        assert len({choice.index for choice in chosen}) == len(chosen) == count
    again = ways[name].choose(candidates, 5, np.random.default_rng(0))
    assert [c.index for c in again] == [
        c.index for c in ways[name].choose(candidates, 5, np.random.default_rng(0))
    ]


def test_a_mixed_batch_begins_with_the_uncertain_and_ends_with_what_is_unlike_all_before(
    pool, model, posterior
):
    candidates = Candidates(pool[6:], pool[:4], model, posterior)
    ways, draw = ACQUISITIONS.all(), np.random.default_rng(0)
    both = [choice.index for choice in ways["mixed"].choose(candidates, 5, draw)]
    assert both[:3] == [choice.index for choice in ways["variance"].choose(candidates, 3, draw)]
    before = [*pool[:4], *(pool[6 + index] for index in both[:3])]
    others = [index for index in range(len(pool) - 6) if index not in both[:3]]
    rest = Candidates([pool[6 + index] for index in others], before, model)
    assert both[3:] == [others[choice.index] for choice in ways["cluster"].choose(rest, 2, draw)]


@pytest.mark.parametrize("name", ["random", "farthest", "coverage", "cluster"])
def test_a_first_batch_needs_no_model(name, pool):
    chosen = select(pool, 3, acquisition=name)
    assert len(chosen.frames) == 3
    assert chosen.frames[0].energy is None
    assert chosen.frames[0].info["pool_index"] == chosen.choices[0].index


def test_coverage_takes_one_of_each_kind_and_never_an_outlier_first(pool):
    kind = [replace(pool[0], positions=pool[0].positions + 0.002 * k) for k in range(8)]
    other = [replace(pool[9], positions=pool[9].positions + 0.002 * k) for k in range(4)]
    odd = replace(pool[0], positions=pool[0].positions * 1.15)
    chosen = select([*kind, *other, odd], 3, acquisition="coverage")
    indices = [choice.index for choice in chosen.choices]
    assert indices[0] < 8
    assert set(indices[1:]) <= set(range(8, 13))
    gains = [choice.gain for choice in chosen.choices]
    assert gains == sorted(gains, reverse=True)
    assert sum(gains) == pytest.approx(100.0, abs=1.0)


def test_clusters_are_taken_by_their_size_and_single_outliers_late():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(0, 1, (60, 2)), rng.normal(12, 1, (30, 2)), [[-18.0, 0.0]]])
    chosen = [c.index for c in acq._largest_cluster(points, points[:0], np.ones(91), 4)]
    assert chosen[0] < 60 or 60 <= chosen[0] < 90  # the middle of all is nearest to one of the two
    kinds = {(0 if index < 60 else 1 if index < 90 else 2) for index in chosen[:3]}
    assert {0, 1} <= kinds
    known = acq._largest_cluster(points, points[:60], np.ones(91), 2)
    assert 60 <= known[0].index < 90  # 30 far ones weigh more than the single farthest


def test_a_greedy_choice_by_variance_is_the_best_one_by_brute_force(pool, model, posterior):
    candidates = Candidates(pool[6:12], pool[:4], model, posterior)
    (first, second) = acq.choose_by_variance(candidates, 2, np.random.default_rng(0))
    information = force_information(model, pool[6:12])
    sizes = np.array([9.0] * 6)
    pool_information = np.tensordot(sizes, information, axes=1) / sizes.sum()
    root = posterior.root.numpy()
    covariance = root @ root.T
    noise = np.trace(covariance @ pool_information) / 3.0

    def after(c, i):
        return np.linalg.inv(np.linalg.inv(c) + sizes[i] * information[i] / noise)

    left = [np.trace(after(covariance, i) @ pool_information) for i in range(6)]
    assert first.index == int(np.argmin(left))
    next_ = after(covariance, first.index)
    left = [np.trace(after(next_, i) @ pool_information) if i != first.index else np.inf for i in range(6)]
    assert second.index == int(np.argmin(left))
    assert first.gain >= second.gain > 0


def test_features_of_atoms_do_not_depend_on_the_frame_of_reference(pool):
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = replace(pool[0], positions=pool[0].positions @ rotation + 3.0)
    eyes = untrained(pool[:2])
    a, b = atom_features(eyes, [pool[0], turned])
    assert np.allclose(a, b, atol=1e-4 * np.abs(a).max())


def test_untrained_eyes_leave_the_random_numbers_of_others_alone(pool):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    untrained(pool[:1])
    assert torch.equal(torch.rand(1), expected)


def test_gradient_features_approximate_the_kernel_of_gradients(pool, model):
    frames = pool[:3]
    sketch = gradient_features(model, frames)
    import copy

    from pimlip_zoo.datasets.neighbours import frame_to_sample

    moved = copy.deepcopy(model)
    rows = []
    for frame in frames:
        parameters = [p.requires_grad_(True) for p in moved.model.parameters()]
        energy = moved(frame_to_sample(frame, model.species, 3.5).graph, virial=False, forces=False).energy
        gradients = torch.autograd.grad(energy.sum() / 9, parameters, allow_unused=True)
        rows.append(torch.cat([g.reshape(-1) for g in gradients if g is not None]))
    exact = torch.stack(rows).double()
    exact = (exact @ exact.T).numpy()
    assert np.allclose(sketch @ sketch.T, exact, rtol=0.35)


def test_what_cannot_be_used_is_left_out_with_its_reason(pool):
    broken = pool[1].positions.copy()
    broken[-1] += 5.0
    touching = pool[2].positions.copy()
    touching[0] = touching[1] + [0.2, 0, 0]
    absurd = replace(pool[3], forces=np.full((9, 3), 100.0))
    frames = [
        *pool[4:10],
        pool[4],
        replace(pool[1], positions=broken),
        replace(pool[2], positions=touching),
        absurd,
        replace(pool[5], forces=np.full((9, 3), np.nan), positions=pool[5].positions + 1.0),
        pool[11],
    ]
    usable, left = screen(frames, known=[pool[11]])
    assert usable == list(range(6))
    reasons = {each.index: each.reason for each in left}
    assert reasons[6] == "equal to structure 0"
    assert reasons[7] == "broken: 2 fragments, usual are 1"
    assert "of the sum of their covalent radii" in reasons[8]
    assert reasons[9] == "a force of 173 eV/Å"
    assert reasons[10] == "its forces are not finite"
    assert reasons[11] == "it is labelled already"


def test_a_crystal_is_not_broken():
    from ase.build import bulk

    from pimlip_zoo.datasets.readers.ase_file import frame_from_atoms
    from pimlip_zoo.datasets.readers.labels import LabelFinder
    from pimlip_zoo.datasets.readers.spec import ReadOptions

    atoms = bulk("NaCl", "rocksalt", a=5.6)
    frame = frame_from_atoms(atoms, LabelFinder(ReadOptions(), file="x"), 0)
    assert screen([frame]) == ([0], [])


@pytest.mark.parametrize(
    ("data", "trained", "name"),
    [
        ("ethanol-gfn2/train", False, "cluster"),
        ("cual-emt/train", False, "coverage"),
        ("ethanol-gfn2/train", True, "mixed"),
    ],
)
def test_the_usual_acquisition_goes_by_the_pool(data, trained, name):
    pool = load_builtin(data)[:20]
    assert usual_acquisition(pool, trained=trained) == name


def test_a_pool_of_two_molecules_is_covered():
    pool = [*load_builtin("ethanol-gfn2/train")[:3], *load_builtin("methanol-low/train")[:3]]
    assert usual_acquisition(pool, trained=False) == "coverage"


def called(*arguments, code=0):
    result = CliRunner().invoke(app, ["select", *map(str, arguments)])
    if code == 2:
        assert isinstance(result.exception, InputError), result.output
        return str(result.exception)
    assert result.exit_code == code, result.output + str(result.exception)
    return result.output


def test_the_command_writes_what_it_chose_and_says_why(tmp_path):
    out = tmp_path / "chosen.extxyz"
    said = called("builtin:ethanol-gfn2/train@:12", "-n", 3, "-o", out)
    assert "3 of 12 structures by cluster" in said
    assert "distance to what was known before" in said
    chosen = read(out, ":")
    assert len(chosen) == 3
    assert [atoms.info["selected_rank"] for atoms in chosen] == [0, 1, 2]
    assert all(atoms.calc is None for atoms in chosen)
    assert "is there already" in called("builtin:ethanol-gfn2/train@:12", "-o", out, code=2)


def test_mistakes_are_one_line_and_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pool = "builtin:ethanol-gfn2/train@:5"
    assert "6 are wanted, 5 of 5 structures can be used" in called(pool, "-n", 6, code=2)
    assert "0 structures" in called(pool, "-n", 0, code=2)
    assert "did you mean coverage?" in called(pool, "--acquisition", "coverag", "-n", 2, code=2)
    assert "needs a trained potential" in called(pool, "--acquisition", "gradient", "-n", 2, code=2)
    assert "no structure of the pool can be used" in called(pool, "-n", 2, "--known", pool, code=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--cheap", "nonsense"],
            "--cheap: the acquisition cluster does not look at it (leave it out; it is for",
        ),
        (
            ["--acquisition", "random", "--features", "run"],
            "--features: the acquisition random does not look at",
        ),
        (
            ["--acquisition", "variance", "--features", "run"],
            "--features: the acquisition variance does not look",
        ),
        *(
            (["--max-force", value], f"--max-force: {value} eV/Å is not possible")
            for value in ("nan", "0", "-1")
        ),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, says, tmp_path):
    assert says in called(
        "builtin:ethanol-gfn2/train@:5", "-n", 2, "-o", tmp_path / "a.xyz", *options, code=2
    )
    assert list(tmp_path.iterdir()) == []


def test_a_force_without_a_limit_is_one(tmp_path):
    called("builtin:ethanol-gfn2/train@:5", "-n", 2, "-o", tmp_path / "a.xyz", "--max-force", "inf")


def test_the_cheap_level_is_compared_with_a_run(pool):
    @register_acquisition("by-difference")
    def by_difference(candidates, count, rng):
        raise AssertionError

    try:
        with pytest.raises(InputError, match="--cheap: is compared with a trained potential"):
            select(pool, 2, acquisition="by-difference", cheap="gfn2")
    finally:
        ACQUISITIONS._items.pop("by-difference")


def test_another_package_registers_its_own(pool):
    @register_acquisition("last-ones")
    def last(candidates, count, rng):
        """The last ones."""
        return [Choice(len(candidates.frames) - 1 - k, 1.0) for k in range(count)]

    try:
        chosen = select(pool, 2, acquisition="last-ones")
        assert [choice.index for choice in chosen.choices] == [23, 22]
    finally:
        ACQUISITIONS._items.pop("last-ones")


def test_a_structure_without_atoms_is_left_out(pool):
    empty = Frame(np.zeros(0, dtype=np.int64), np.zeros((0, 3)))
    assert screen([empty, pool[0]])[1][0].reason == "it has no atoms"
