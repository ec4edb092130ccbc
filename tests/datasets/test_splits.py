import itertools
import json

import numpy as np
import pytest
from example_frames import molecule
from typer.testing import CliRunner

from pimlip_zoo.cli.data import app
from pimlip_zoo.datasets.audit import survey_frames
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.datasets.splits import METHODS, make_split, part_sizes, read_split, write_split
from pimlip_zoo.errors import InputError

GROUPS = [f"source {k % 13}" for k in range(200)]


@pytest.fixture(scope="module")
def survey():
    return survey_frames("data.extxyz", [molecule(k, 2 + (k // 20) % 5) for k in range(200)])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_frame_is_in_two_parts_and_sizes_are_as_asked(survey, method, seed):
    split = make_split(survey, GROUPS, method=method, seed=seed)
    met = list(itertools.chain(*(part.tolist() for part in split.parts.values())))
    assert len(met) == len(set(met)) == 200
    slack = {"random": 0, "farthest": 0}.get(method, 60)
    for part, size in zip(split.parts.values(), (160, 20, 20), strict=True):
        assert abs(len(part) - size) <= slack


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_split(survey, method):
    first, second = (make_split(survey, GROUPS, method=method, seed=5) for _ in range(2))
    assert first.digest() == second.digest()


def test_a_random_split_is_the_same_on_every_machine(survey):
    split = make_split(survey, sizes="5,3,2", seed=0)
    assert {name: part.tolist() for name, part in split.parts.items()} == {
        "train": [6, 65, 90, 105, 168],
        "valid": [71, 159, 165],
        "test": [111, 179],
    }


def test_compositions_and_groups_stay_together(survey):
    by_composition = make_split(survey, method="composition", sizes="0.5,0.25,0.25")
    kinds = [set(survey.facts["composition"][part].tolist()) for part in by_composition.parts.values()]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(kinds, 2))
    by_group = make_split(survey, GROUPS, method="group", sizes="0.5,0.25,0.25")
    kinds = [{GROUPS[i] for i in part} for part in by_group.parts.values()]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(kinds, 2))


def test_blocks_of_time_keep_their_distance(survey):
    split = make_split(survey, method="time", gap=4, blocks=10)
    owner = np.full(200, -1)
    for number, part in enumerate(split.parts.values()):
        owner[part] = number
    for i, j in itertools.pairwise(np.flatnonzero(owner >= 0)):
        assert owner[i] == owner[j] or j - i > 4


def test_farthest_frames_spread_farther_than_random_ones(survey):
    def spread(method):
        train = make_split(survey, method=method, sizes="20,20").parts["train"]
        prints = survey.facts["print"][train]
        distance = np.linalg.norm(prints[:, None] - prints[None], axis=-1)
        np.fill_diagonal(distance, np.inf)
        return distance.min(axis=1).mean()

    assert spread("farthest") > 1.3 * spread("random")


def test_a_file_that_was_changed_is_refused(survey, tmp_path):
    path = tmp_path / "split.json"
    split = make_split(survey)
    write_split(split, path)
    assert read_split(path).digest() == split.digest()
    content = json.loads(path.read_text())
    content["parts"]["train"][0] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="it was changed"):
        read_split(path)
    for text in ("[]", "{", '{"format": "x", "version": 1}', "null"):
        path.write_text(text)
        with pytest.raises(InputError, match="is no split"):
            read_split(path)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ("a", "no sizes"),
        ("0.5,-0.1", "positive"),
        ("100,101", "does not fit"),
        ("0.1,0.2,0.3,0.4", "one to three"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        part_sizes(sizes, 200)


def test_impossible_splits_are_refused(survey):
    with pytest.raises(InputError, match="did you mean random"):
        make_split(survey, method="randm")
    with pytest.raises(InputError, match="--by"):
        make_split(survey, method="group")
    with pytest.raises(InputError, match="only 1 groups for 3 parts"):
        make_split(survey, ["a"] * 200, method="group")
    with pytest.raises(InputError, match="the part test would be empty"):
        make_split(survey, sizes="0.5,0.4999,0.0001")


def test_the_command_line_splits_and_parts_are_read_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = "builtin:ethanol-gfn2/valid"
    run = CliRunner().invoke(app, ["split", data, "-o", "s.json", "--sizes", "30,10,5"])
    assert run.exit_code == 0, run.output
    assert f"{data}@s.json:train" in run.output
    everything = load_frames(data)
    parts = read_split(tmp_path / "s.json").parts
    for name, part in parts.items():
        frames = load_frames(f"{data}@s.json:{name}")
        assert [f.energy for f in frames] == [everything[i].energy for i in part]
    with pytest.raises(InputError, match=r"no part 'tst' \(did you mean test"):
        load_frames(f"{data}@s.json:tst")
    run = CliRunner().invoke(app, ["split", f"{data}@:50", "-o", "s.json"])
    assert isinstance(run.exception, InputError)
    run = CliRunner().invoke(app, ["split", data, "--method", "group", "--by", "colour", "-o", "s.json"])
    assert "has no 'colour'" in str(run.exception)
