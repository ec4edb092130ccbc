"""``pimlip-zoo rounds``: one command does all of it, and after an interruption only what is missing."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from pimlip_zoo.cli import app
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.errors import InputError
from pimlip_zoo.rounds import load_rounds, read_table, run_rounds
from pimlip_zoo.rounds import run as module

YAML = """
out: {out}
sample: {sample}
label: {{calculator: emt}}
select: {{number: 3, valid: 2}}
train:
  model: {{name: nequip, num_layers: 1, channels: 4, l_max: 1, cutoff: 3.5}}
  trainer: {{max_steps: 2, valid_every: 2, threads: 1}}
stop: {stop}
"""
POOL = "{pool: 'builtin:cual-emt/train@20:40'}"


def written(folder, sample=POOL, stop="{rounds: 2}", out="out"):
    path = folder / "rounds.yaml"
    path.write_text(YAML.format(out=folder / out, sample=sample, stop=stop))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two rounds without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    run_rounds(load_rounds(written(folder)))
    return folder / "out"


def chosen(out, number):
    return [frame.info["pool_index"] for frame in load_frames(str(out / f"round-{number}" / "chosen.lmdb"))]


def test_rounds_add_labels_that_are_new(whole):
    rows = read_table(whole)
    assert [row["labels"] for row in rows] == [3, 6]
    first, second = chosen(whole, 1), chosen(whole, 2)
    valid = [frame.info["pool_index"] for frame in load_frames(str(whole / "round-1" / "valid.lmdb"))]
    assert len({*first, *second, *valid}) == 8
    labels = load_frames(str(whole / "round-2" / "labels.lmdb"))
    assert all(frame.forces is not None and frame.info["level_of_theory"] == "EMT" for frame in labels)


@pytest.mark.parametrize("phase", ["select", "label", "prepare_run", "train_run", "evaluate"])
def test_an_interruption_in_any_phase_loses_nothing_and_repeats_nothing(whole, tmp_path, monkeypatch, phase):
    calls = dict.fromkeys(("select", "label", "train_run", "evaluate"), 0)
    hit = {"at": 2 if phase in calls else 1, "armed": True}

    def counted(name):
        true = getattr(module, name)

        def call(*arguments, **options):
            if name in calls:
                calls[name] += 1
            if name == phase and hit["armed"] and calls.get(name, 1) == hit["at"]:
                hit["armed"] = False
                raise KeyboardInterrupt
            return true(*arguments, **options)

        return call

    for name in {*calls, phase}:
        monkeypatch.setattr(module, name, counted(name))
    rounds = load_rounds(written(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run_rounds(rounds)
    rows = run_rounds(rounds)
    assert [row["labels"] for row in rows] == [3, 6]
    for number in (1, 2):
        assert chosen(tmp_path / "out", number) == chosen(whole, number)
    assert rows[-1]["forces"] == pytest.approx(read_table(whole)[-1]["forces"], rel=1e-5)
    again = dict(calls)
    assert run_rounds(rounds) == rows
    assert calls == again  # what is done is read, not done


def test_structures_are_sampled_from_a_start_with_the_cheap_level_and_then_the_potential(
    tmp_path, monkeypatch
):
    used = []
    true = module.find_cheap_calculator

    def seen(name, **options):
        used.append(name)
        return true("emt")

    monkeypatch.setattr(module, "find_cheap_calculator", seen)
    sample = "{start: 'builtin:cual-emt/train@30', calculator: emt, structures: 8, temperatures: [100, 200], stride: 2}"
    run_rounds(load_rounds(written(tmp_path, sample)))
    assert used[0] == "emt"
    assert used[1].startswith("run:")
    assert "round-1" in used[1]
    pool = load_frames(str(tmp_path / "out" / "round-2" / "pool.lmdb"))
    assert {frame.info["temperature"] for frame in pool} == {100.0}


def test_tests_that_are_bought_are_said(tmp_path, caplog):
    """The pool is the test set, too."""
    caplog.set_level("WARNING", logger="pimlip_zoo")
    text = written(tmp_path, stop="{rounds: 1}")
    content = yaml.safe_load(text.read_text())
    content["test"] = content["sample"]["pool"]
    text.write_text(yaml.safe_dump(content))
    run_rounds(load_rounds(text))
    assert "round 1: tests: this run has seen" in caplog.text


def test_it_stops_when_it_is_good_enough_or_the_budget_is_used(whole, tmp_path):
    rows = run_rounds(load_rounds(written(tmp_path, stop="{rounds: 2, forces: 1000}")))
    assert len(rows) == 1
    rows = run_rounds(load_rounds(written(tmp_path, stop="{rounds: 3, labels: 4}")))
    assert [row["labels"] for row in rows] == [3, 4]
    assert all(0 < row["uncertainty"] < np.inf for row in rows)
    rows = run_rounds(load_rounds(written(tmp_path, stop="{rounds: 3, uncertainty: 1000}")))
    assert [row["labels"] for row in rows] == [3]


def test_labelling_in_a_round_says_how_far_it_is_and_not_for_each_structure(caplog):
    caplog.set_level("INFO")
    tell = module._tells("round 1: chosen")
    for done in range(1, 21):
        tell(None, done, 20)
    assert [record.message.partition(", about")[0] for record in caplog.records] == [
        "round 1: chosen, 1 of 20 labelled"
    ]


def test_a_round_says_how_large_the_pool_is_and_why_some_of_it_is_left_out(tmp_path, caplog):
    caplog.set_level("INFO")
    pool = load_frames("builtin:cual-emt/train@20:40")
    (tmp_path / "round-1").mkdir()
    module._chosen(load_rounds(written(tmp_path)), 1, tmp_path / "round-1", pool)
    assert caplog.messages[-1] == (
        "round 1: 3 of the pool's 20 structures by coverage; 2 left out: it is labelled already"
    )


def test_the_report_says_what_was_bought_and_why(whole):
    page = (whole / "report.html").read_text()
    assert page.count("<h3>Round") == 2
    frames = load_frames(str(whole / "round-2" / "chosen.lmdb"))
    for frame in frames:
        assert f"number {frame.info['pool_index']} of the pool" in page
        gain = frame.info.get("selected_gain")
        assert ("<td>–</td>" if gain is None else format(gain, ".4g").replace("-", "−")) in page
    assert {frame.info.get("selected_gain") is None for frame in frames} == {True, False}
    assert "lower root mean square uncertainty of the pool" in page
    assert "–: unlike all before" in page
    why = json.loads((whole / "round-2" / "choice.json").read_text())
    assert why["left_out"]
    assert sum(why["left_out"].values()) == why["pool"] - why["usable"]
    for reason, count in why["left_out"].items():
        assert f"{reason} ({count})" in page


def test_cells_of_crystals_are_strained_where_sampling_starts(tmp_path):
    start = module.load_frames("builtin:cual-emt/train@30")
    made = module._strained(start, 0.05, np.random.default_rng(0))
    assert len(made) == 9
    assert made[0] is start[0]
    for frame in made[1:]:
        change = np.linalg.solve(start[0].cell, frame.cell)
        assert change == pytest.approx(change.T, abs=1e-12)
        assert 0.01 < np.abs(change - np.eye(3)).max() <= 0.05
        assert frame.positions == pytest.approx(start[0].positions @ change)
        assert frame.forces is None
    molecule = module.load_frames("builtin:ethanol-gfn2/train@0")
    with pytest.raises(InputError, match="periodic in three directions"):
        module._strained(molecule, 0.05, np.random.default_rng(0))
    sample = (
        "{start: 'builtin:cual-emt/train@30', calculator: emt, structures: 8, temperatures: [100], stride: 2,"
        " strain: 0.08, pool: 'builtin:cual-emt/train@31:33'}"
    )
    run_rounds(load_rounds(written(tmp_path, sample, stop="{rounds: 1}")))
    volumes = [
        abs(np.linalg.det(f.cell)) for f in load_frames(str(tmp_path / "out" / "round-1" / "pool.lmdb"))
    ]
    assert (
        len({round(volume, 6) for volume in volumes}) == 2
    )  # two trajectories, of five and of three structures
    assert not (tmp_path / "out" / "round-1" / "sampling").exists()
    why = json.loads((tmp_path / "out" / "round-1" / "choice.json").read_text())
    assert why["pool"] == 10


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sampel: {start: a.xyz}\n", "sampel: no such option (did you mean sample?)"),
        (
            "sample: {strat: a.xyz}\nlabel: {calculator: emt}\n",
            r"sample.strat: no such option (did you mean start",
        ),
        ("sample: {start: a.xyz}\n", "label: is missing"),
    ],
)
def test_a_misspelt_option_of_rounds_is_named_with_the_one_that_was_meant(tmp_path, text, says):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InputError, match=re.escape(says)):
        load_rounds(tmp_path / "run.yaml")


def test_other_options_than_it_began_with_are_refused(whole, tmp_path):
    path = tmp_path / "rounds.yaml"
    text = YAML.format(out=whole, sample=POOL, stop="{rounds: 2}")
    path.write_text(text.replace("number: 3", "number: 5"))
    with pytest.raises(InputError, match="it began with"):
        run_rounds(load_rounds(path))


def test_other_structures_than_they_began_with_are_refused(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    path = tmp_path / "out" / "rounds-structures.json"
    kept = json.loads(path.read_text())
    assert list(kept) == ["sample.pool"]
    path.write_text(json.dumps({"sample.pool": "0" * 64}))
    with pytest.raises(
        InputError, match=r"sample\.pool: has other structures than the rounds began with: builtin"
    ):
        run_rounds(load_rounds(written(tmp_path)))
    path.unlink()  # as versions before left it
    run_rounds(load_rounds(written(tmp_path)))
    assert json.loads(path.read_text()) == kept


def test_it_is_said_when_what_the_rounds_began_with_is_not_known(whole, tmp_path, caplog):
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / "rounds-began-with.json").unlink()
    with caplog.at_level("WARNING", logger="pimlip_zoo"):
        run_rounds(load_rounds(written(tmp_path)))
    assert "has no rounds-began-with.json" in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("number: 3", "numbre: 3", "select.numbre: no such option"),
        ("number: 3", "number: 0", "select.number"),
        ("channels: 4", "chanels: 4", "chanels"),
        ("pool:", "pol:", "sample.pol: no such option"),
        (POOL, "{}", "needs start or pool"),
        (POOL, POOL.replace("}", ", strain: 0.05}"), "sample.strain: is for sampled structures"),
        (POOL, POOL.replace("}", ", stride: 9}"), "sample.stride: is for sampled structures"),
        (POOL, "{start: a.xyz, temperatures: [-5]}", "sample.temperatures.0"),
        (POOL, "{start: a.xyz, temperatures: [.nan]}", "sample.temperatures.0"),
        (POOL, "{start: a.xyz, temperatures: [.inf]}", "sample.temperatures.0"),
        (POOL, "{start: a.xyz, temperatures: []}", "sample.temperatures"),
        (POOL, "{start: a.xyz, timestep: .inf}", "sample.timestep"),
        ("stop:", "seed: -1\nstop:", "seed"),
        ("rounds: 2}", "forces: .nan}", "stop.forces"),
        ("rounds: 2}", "uncertainty: -1}", "stop.uncertainty"),
        ("rounds: 2}", "labels: 0}", "stop.labels"),
        ("emt}", "emt, seconds: -1}", "label.seconds"),
        ("emt}", "emt, memory: .nan}", "label.memory"),
        ("emt}", "emt, workers: 1000000000}", "label.workers"),
        ("train:", "train:\n  data: {train: b.xyz}", "train.data.train: is set by the rounds"),
        ("train:", "train:\n  data: {valid_fraction: 0.3}", "train.data.valid_fraction"),
        ("train:", "train:\n  seed: 9", "train.seed: is set by the rounds (give seed beside train)"),
        ("number: 3", "number: 3, first: gradient", "gradient needs a trained potential"),
        ("number: 3", "number: 3, later: gradent", "did you mean gradient?"),
        ("max_steps: 2", "max_stps: 2", "max_stps"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_done(tmp_path, old, new, says):
    path = written(tmp_path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError) as error:
        load_rounds(path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["nonsense", "nowhere:make"])
def test_a_calculator_that_there_is_not_is_refused_before_anything_is_sampled(tmp_path, name):
    path = written(tmp_path)
    path.write_text(path.read_text().replace("emt}", f"'{name}'}}"))
    with pytest.raises(InputError, match=r"^label\.calculator: "):
        run_rounds(load_rounds(path))
    assert not (tmp_path / "out").exists()


def test_the_example_of_the_page_is_one(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "guide" / "rounds.md").read_text()
    (tmp_path / "rounds.yaml").write_text(page.split("```yaml")[1].split("```")[0])
    rounds = load_rounds(tmp_path / "rounds.yaml")
    assert rounds.label.calculator == "pyscf:PBE/def2-svp"
    assert rounds.stop.forces == 0.03


def test_a_calculator_that_fails_for_all_ends_it_in_one_line(tmp_path):
    path = written(tmp_path, sample="{pool: 'builtin:cual-emt/train@20:40'}")
    path.write_text(path.read_text().replace("calculator: emt", "calculator: 'nomodule:make'"))
    with pytest.raises(InputError, match="No module named 'nomodule'"):
        run_rounds(load_rounds(path))


def test_the_command_prints_a_table_and_draws(whole, tmp_path):
    path = tmp_path / "rounds.yaml"
    path.write_text(YAML.format(out=whole, sample=POOL, stop="{rounds: 2}"))
    result = CliRunner().invoke(app, ["rounds", str(path), "--plot", str(tmp_path / "curve.png")])
    assert result.exit_code == 0, result.output + str(result.exception)
    assert "mixed" in result.output
    assert (tmp_path / "curve.png").exists()
    rows = json.loads((whole / "rounds.json").read_text())
    assert np.isfinite(rows[-1]["forces"])
    assert Path(rows[-1]["run"]).is_dir()


ENERGIES = """
from ase.calculators.emt import EMT

class Energies(EMT):
    implemented_properties = ["energy"]
    def calculate(self, atoms=None, properties=("energy",), system_changes=("positions",)):
        super().calculate(atoms, ["energy"], system_changes)
        self.results = {"energy": self.results["energy"]}

def make():
    return Energies()
"""


def test_rounds_of_energies_alone_have_no_error_of_forces(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "energies_alone.py").write_text(ENERGIES)
    path = written(tmp_path, POOL)
    path.write_text(path.read_text().replace("calculator: emt", "calculator: 'energies_alone:make'"))
    result = CliRunner().invoke(app, ["rounds", str(path), "--plot", "curve.png"], catch_exceptions=False)
    assert result.exit_code == 0
    rows = read_table(tmp_path / "out")
    assert [row["forces"] for row in rows] == [None, None]
    assert all(row["energy"] > 0 for row in rows)
    assert (tmp_path / "curve.png").exists()
    path.write_text(path.read_text().replace("{rounds: 2}", "{rounds: 2, forces: 0.1}"))
    with pytest.raises(InputError, match=r"stop\.forces.*no forces to compare with"):
        run_rounds(load_rounds(path))


ROW = {"round": 2, "labels": 6, "failures": 0, "energy": 0.1, "forces": 0.2, "test": "validation"}
ROW |= {"uncertainty": None, "acquisition": "variance", "run": "run"}
ODD_ROWS = [
    *({key: value for key, value in ROW.items() if key != name} for name in ROW if name != "uncertainty"),
    *({**ROW, name: odd} for name in ROW for odd in (True, -1, "x", [], {}, float("nan"))),
    {**ROW, "round": 1},
]
FINE = [("uncertainty", -1), ("energy", -1), ("forces", -1), ("forces", float("nan"))]
FINE += [(name, "x") for name in ("test", "acquisition", "run")]


@pytest.mark.parametrize("name", ["rounds.json", "round-2/result.json"])
def test_rows_of_rounds_that_are_damaged_are_refused_in_one_line(whole, tmp_path, name):
    shutil.copytree(whole, tmp_path / "out")
    rounds, path = load_rounds(written(tmp_path)), tmp_path / "out" / name
    tried = 0
    for row in ODD_ROWS:
        if any(key in row and str(row[key]) == str(value) for key, value in FINE):
            continue
        if name == "rounds.json" and row == ODD_ROWS[-1]:
            continue
        path.write_text(json.dumps([row] if name == "rounds.json" else row))
        with pytest.raises(InputError, match=r"is damaged|is of round 1") as refused:
            read_table(tmp_path / "out") if name == "rounds.json" else run_rounds(rounds)
        assert "\n" not in str(refused.value)
        tried += 1
    assert tried > 40


STRONGER = """
from ase.calculators.emt import EMT

class Stronger(EMT):
    def calculate(self, *given, **named):
        super().calculate(*given, **named)
        self.results = {name: 1.2 * self.results[name] for name in ("energy", "forces")}

def make():
    return Stronger()
"""


def test_rounds_of_a_difference_are_judged_with_the_cheap_level_that_it_is_added_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stronger_emt.py").write_text(STRONGER)
    path = written(
        tmp_path, "{start: 'builtin:cual-emt/train@30', calculator: emt, structures: 9, stride: 2}"
    )
    text = path.read_text().replace("{calculator: emt}", "{calculator: 'stronger_emt:make'}")
    path.write_text(
        text.replace("  trainer:", "  weak: {labels: {method: delta, calculator: emt}}\n  trainer:")
    )
    rows = run_rounds(load_rounds(path))
    labels = load_frames(str(tmp_path / "out" / "round-1" / "valid-labels.lmdb"))
    own = np.sqrt(np.mean(np.concatenate([frame.forces for frame in labels]) ** 2))
    assert len(rows) == 2
    # A sixth of the forces is left to learn; without the cheap level all of them would be wrong.
    assert all(0 < row["forces"] < 0.5 * own for row in rows)
    assert rows[-1]["uncertainty"] > 0
