"""curve, distill, and weak supervision in train and models."""

import csv
import json

import pytest

from pimlip_zoo.cli.distill import _numbers
from pimlip_zoo.consistency.config import PRESETS
from pimlip_zoo.consistency.residuals import RESIDUALS
from pimlip_zoo.datasets.lmdb import FrameStore
from pimlip_zoo.errors import InputError

SMALL = (
    "--model=nequip",
    "--max-steps=2",
    "--set=model.channels=4",
    "--set=model.l_max=1",
    "--set=trainer.valid_every=2",
    "--set=trainer.device=cpu",
)


def test_models_lists_every_weak_preset_and_every_loss(cli):
    text = cli("models", "--weak").out
    for name in (*PRESETS, *RESIDUALS.all()):
        assert name in text
    content = json.loads(cli("models", "--weak", "--json").out)
    assert content["presets"]["piwsl"]["options"]["terms"]["pitc_first_order"]["weight"] == 1.2
    assert content["terms"] == {name: one.equation for name, one in RESIDUALS.all().items()}


def test_curve_writes_a_table_and_a_plot_and_goes_on_where_it_stopped(cli, tmp_path):
    common = ("--valid=builtin:ethanol-gfn2/valid@0:4", "--test=builtin:ethanol-gfn2/test_300K@0:4")
    arguments = (
        "curve",
        *SMALL,
        *common,
        "--data=builtin:ethanol-gfn2",
        "--sizes=3",
        f"--out={tmp_path / 'curve'}",
    )
    first = cli(*arguments, "--weak=none", "--seeds=1")
    assert first.code == 0
    result = tmp_path / "curve" / "none-3-seed0" / "result.json"
    written = result.stat().st_mtime_ns
    second = cli(*arguments, "--weak=none,piwsl", "--seeds=1")
    assert second.code == 0
    assert result.stat().st_mtime_ns == written
    rows = list(csv.DictReader((tmp_path / "curve" / "runs.csv").open()))
    assert [row["weak"] for row in rows] == ["none", "piwsl"]
    assert (tmp_path / "curve" / "curve.png").exists()
    assert "needs runs of --weak none with two --sizes" in second.out
    assert "<table>" in (tmp_path / "curve" / "report.html").read_text()


def test_curve_says_what_a_recipe_equals_at_equal_time_and_how_long_dynamics_last(cli, tmp_path):
    out = tmp_path / "curve"
    test = "builtin:ethanol-gfn2/test_300K@0:2"
    done = cli(
        *("curve", *SMALL, "--valid=builtin:ethanol-gfn2/valid@0:4", f"--test={test}"),
        *("--data=builtin:ethanol-gfn2", "--sizes=3,6", "--weak=none,gfn2", "--seeds=1", f"--out={out}"),
        *(
            "--set=weak.labels.steps=2",
            "--set=weak.labels.pool.structures=5",
            "--set=weak.labels.pool.stride=1",
        ),
        *("--equal-time", "--stability=0.002"),
    )
    assert done.code == 0, done.err
    rows = list(csv.DictReader((out / "runs.csv").open()))
    steps = {row["weak"]: int(row["steps"]) for row in rows}
    assert steps["none"] == steps["gfn2"] + 2
    assert all(0 < float(row["stable_ps"]) <= 0.002 for row in rows)
    equal = list(csv.DictReader((out / "equal.csv").open()))
    assert {(row["weak"], row["size"], row["quantity"]) for row in equal} == {
        ("gfn2", size, quantity) for size in "36" for quantity in ("energies", "forces", "stability")
    }
    assert "3 labels with gfn2" in done.out
    assert "3 labels with gfn2" in (out / "report.html").read_text()
    refused = cli("curve", *SMALL, f"--test={test}", "--stability=0", f"--out={tmp_path / 'b'}")
    assert refused.code == 2
    assert "--stability" in refused.err
    assert not (tmp_path / "b").exists()


def test_distill_labels_with_the_mean_of_runs(cli, tmp_path):
    runs = [tmp_path / name for name in ("a", "b")]
    for seed, run in enumerate(runs):
        trained = cli(
            "train", *SMALL, "--data=builtin:ethanol-gfn2@0:4", "--valid=builtin:ethanol-gfn2/valid@0:2",
            f"--seed={seed}", f"--out={run}",
        )  # fmt: skip
        assert trained.code == 0
    out = tmp_path / "pool.lmdb"
    arguments = ("distill", *runs, "--data=builtin:ethanol-gfn2@0:3", f"--out={out}")
    assert cli(*arguments, "--sample=displaced", "--structures=5").code == 0
    frames = list(FrameStore(out))
    assert len(frames) == 5
    assert all(0 < frame.weight <= 1 and frame.info["force_spread"] > 0 for frame in frames)
    again = cli(*arguments)
    assert again.code == 2
    assert "there already" in again.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train", "--weak", "piwls"), "piwsl"),
        (("train", "--set", "weak.terms.pitc_first.weight=1"), "pitc_first_order"),
        (("train", "--set", "weak.terms.curl.weight=1"), "no curl"),
        (("train", "--set", "weak.terms.strain_first_order.weight=1"), "no cell to strain"),
        (("train", "--weak", "taylor", "--labels", "energy"), "force labels"),
        (("train", "--weak", "piwsl", "--set", "weak.perturbation.amplitude=0.4"), "shortest bond"),
        (("train", "--weak", "piwsl", "--set", "weak.terms.pitc_first_order.weight=-1"), "greater than"),
        (
            ("train", "--weak", "piwsl", "--set", "weak.perturbation.species.H=-1"),
            "weak.perturbation.species",
        ),
        (("train", "--weak", "pretrain", "--set", "weak.labels.calculator=pm7"), "no calculator"),
        (("train", "--weak", "distill", "--set", "weak.labels.calculator=run:nowhere"), "no such run"),
        (("train", "--weak", "distill", "--set", "weak.labels.iterations=0"), "greater than"),
        (("curve", "--sizes", "a,b"), "--sizes"),
        (("curve", "--sizes", "100000"), "are asked for"),
        (("curve", "--weak", "nothing"), "no weak preset"),
        (("curve", "--data", "builtin:cual-emt"), "--test"),
        (("distill", "nowhere", "--data", "builtin:ethanol-gfn2", "--out", "x.lmdb"), "no such run"),
        (
            ("distill", "nowhere", "--data", "builtin:ethanol-gfn2", "--out", "x.lmdb", "--sample", "all"),
            "--sample",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(cli, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    result = cli(*arguments)
    assert result.code == 2
    assert says in result.err
    assert "Traceback" not in result.err
    assert not list(tmp_path.glob("runs/*/*"))  # nothing half-written


def test_weak_advise_says_what_helps_and_how_to_begin(cli, tmp_path):
    pytest.importorskip("tblite")
    asked = (
        *("weak", "advise", "--data=builtin:ethanol-gfn2@0:12", "--calculator=gfn2", "--model=nequip"),
        *("--steps=10", "--set=model.channels=4", "--set=model.l_max=1", "--set=trainer.device=cpu"),
    )
    done = cli(*asked, f"--json={tmp_path / 'a.json'}")
    assert done.code == 0, done.err
    assert "324 force components" in done.out
    content = json.loads((tmp_path / "a.json").read_text())
    # The labels are GFN2's own: nothing is left to be learnt from it.
    assert (content["recipe"], content["level"]) == (None, None)
    assert content["findings"][0]["difference"]["forces"] < 1e-4
    assert "gfn2 is what these were labelled with" in " ".join(done.out.split())


def test_weak_advise_says_how_to_begin_with_the_level_that_helps(cli):
    pytest.importorskip("tblite")
    done = cli(
        *("weak", "advise", "--data=builtin:ethanol-gfn2@0:12", "--calculator=gfn1", "--model=nequip"),
        *("--steps=10", "--set=model.channels=4", "--set=model.l_max=1", "--set=trainer.device=cpu"),
    )
    assert done.code == 0, done.err
    assert "--set weak.labels.calculator=gfn1" in done.out
    assert "--from builtin:organic-gfn2" in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data=builtin:ethanol-gfn2@0:3",), "too few"),
        (("--data=builtin:ethanol-gfn2@0:12", "--calculator=gfn3"), "no calculator is called"),
        (("--data=builtin:ethanol-gfn2@0:12", "--calculator=level.extxyz"), "level.extxyz: no such file"),
        (("--data=nothing.extxyz",), "nothing.extxyz"),
        (("--data=builtin:ethanol-gfn2@0:12", "--labels=forces"), "--labels"),
        (("--data=builtin:ethanol-gfn2@0:12", "--model=nothing"), "nothing"),
        (
            ("--data=builtin:ethanol-gfn2@0:12", "--set=optimizer.lr=0.1", "--set=optimizer={lr: 0.2}"),
            "optimizer.lr: is given twice: 0.1 and 0.2",
        ),
    ],
)
def test_weak_advise_refuses(cli, arguments, said):
    done = cli("weak", "advise", *arguments)
    assert done.code == 2
    assert said in done.err


def test_a_curve_refuses_tests_with_an_element_its_subset_lacks_before_training(tmp_path, monkeypatch):
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.experiment import curve

    monkeypatch.setattr(curve, "train_run", lambda *_, **__: pytest.fail("trained"))
    settings = [("data.train", "builtin:ethanol-gfn2@:20"), ("trainer.max_steps", 1), ("model.channels", 2)]
    point = curve.Point(4, "none", 0)
    with pytest.raises(InputError, match="the model does not know"):
        curve.run_point(point, settings, ["builtin:cual-emt/train@:1"], tmp_path)


@pytest.mark.parametrize("text", ["300,nan", "inf", "0", "-300", "300,"])
def test_temperatures_that_are_none_are_refused(text):
    with pytest.raises(InputError, match="--temperatures"):
        _numbers("--temperatures", text)
    assert _numbers("--temperatures", "300,600") == (300.0, 600.0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--sample=none", "--structures=2"), "--structures: has no effect with --sample none"),
        (("--sample=none", "--seed=0"), "--seed: has no effect with --sample none"),
        (
            ("--sample=displaced", "--temperatures=5000"),
            "--temperatures: has no effect with --sample displaced",
        ),
        (("--sample=md", "--amplitudes=0.1"), "--amplitudes: has no effect with --sample md"),
    ],
)
def test_distill_refuses_what_would_change_nothing(cli, tmp_path, given, says):
    done = cli("distill", "run", "--data=builtin:ethanol-gfn2", f"--out={tmp_path / 'a.lmdb'}", *given)
    assert done.code == 2
    assert says in done.err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("--set=seed=4", "seed: has no effect: each point has its own"),
        ("--stability-temperature=900", "--stability-temperature: is of --stability"),
        ("--set=weak.strain=0.05", "weak.strain: has no effect on none"),
        ("--set=weak.perturbation.amplitude=0.1", "weak.perturbation.amplitude: has no effect on none"),
    ],
)
def test_curve_refuses_what_would_change_nothing(cli, tmp_path, given, says):
    done = cli(
        "curve", *SMALL, "--data=builtin:ethanol-gfn2", "--sizes=3", f"--out={tmp_path / 'curve'}", given
    )
    assert done.code == 2
    assert says in done.err
    assert not list(tmp_path.iterdir())


def test_curve_refuses_the_seed_of_a_file_and_takes_what_one_way_reads(cli, tmp_path):
    common = ("curve", *SMALL, "--data=builtin:ethanol-gfn2", "--sizes=3", f"--out={tmp_path / 'curve'}")
    (tmp_path / "run.yaml").write_text("seed: 7\n")
    done = cli(*common, f"--config={tmp_path / 'run.yaml'}")
    assert done.code == 2
    assert "seed: has no effect" in done.err
    options = (
        "--valid=builtin:ethanol-gfn2/valid@0:2",
        "--test=builtin:ethanol-gfn2/test_300K@0:2",
        "--seeds=1",
    )
    done = cli(*common, *options, "--weak=none,piwsl", "--set=weak.perturbation.amplitude=0.03")
    assert done.code == 0
