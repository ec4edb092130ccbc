"""Validation of few structures: how many, said with its reason, and weights that are not chosen by too few."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from pimlip_zoo import experiment
from pimlip_zoo.config import DataSection, load_config, parse_settings
from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.frame import frame_to_atoms
from pimlip_zoo.datasets.frames import as_frames
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.data import check_validation
from pimlip_zoo.experiment.holdout import held_out, weights_to_keep
from pimlip_zoo.report.html import ReportData, render_report

SMALL = ["model.channels=4", "model.radial_hidden=[4]", "trainer.max_steps=6", "trainer.valid_every=2"]


def configured(count, *more):
    return load_config(
        None, parse_settings([f"data.train=builtin:ethanol-gfn2/train@:{count}", *SMALL, *more])
    )


@pytest.mark.parametrize(
    ("structures", "held"),
    [(2, 1), (5, 1), (10, 1), (20, 2), (60, 6), (200, 20), (10_000, 1000), (10**6, 1000)],
)
def test_a_tenth_is_held_out_and_a_thousand_at_most(structures, held):
    assert held_out(structures, DataSection()) == held


def test_what_is_given_is_held_out():
    assert held_out(200, DataSection(valid_fraction=0.3)) == 60
    assert held_out(10**6, DataSection(max_valid=50)) == 50
    assert held_out(2, DataSection(valid_fraction=0.99)) == 1


def kept(config, folder):
    run = experiment.prepare(config)
    experiment.train(run, folder)
    content = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    return run.config.trainer.keep, content["global_step"]


def worsening(monkeypatch):
    """A score that is best at the first validation."""
    from pimlip_zoo.training.module import PotentialTraining

    log = PotentialTraining.log

    def scored(self, name, value, **options):
        log(self, name, float(self.global_step) if name == "valid_score" else value, **options)

    monkeypatch.setattr(PotentialTraining, "log", scored)


def test_few_do_not_choose_weights_and_that_is_said(tmp_path, caplog, monkeypatch):
    worsening(monkeypatch)
    with caplog.at_level(logging.INFO, "pimlip_zoo"):
        assert kept(configured(20), tmp_path / "few") == ("last", 6)
    assert "2 of 20 structures held out, too few to choose weights by: the last ones are kept" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "pimlip_zoo"):
        assert kept(configured(50), tmp_path / "more") == ("best", 2)
    assert "5 of 50 structures held out" in caplog.text
    assert "too few" not in caplog.text
    assert kept(configured(20, "trainer.keep=best"), tmp_path / "insisted") == ("best", 2)


@pytest.mark.parametrize("given", ["trainer.patience=1", "schedule.name=plateau", "schedule.name=constant"])
def test_where_the_rate_has_not_decayed_by_the_end_the_best_are_kept(given):
    assert experiment.prepare(configured(12, given)).config.trainer.keep == "best"


def test_a_run_from_before_there_was_a_choice_keeps_its_best_and_its_share(tmp_path):
    older = experiment.prepare(configured(20)).config.model_dump(mode="json")
    del older["trainer"]["keep"]
    older["data"]["max_valid"] = 10_000
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(older))
    config = load_config(None, [], onto=file)
    assert weights_to_keep(config, 2) == "best"
    assert held_out(10**6, config.data) == 10_000
    assert experiment.prepare(config).config.trainer.keep == "best"


def test_a_resumed_run_goes_on_keeping_the_last(tmp_path):
    run = experiment.prepare(configured(20))
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(run.config.model_dump(mode="json")))
    assert load_config(None, [], onto=file).trainer.keep == "last"


def first_labelled(path, count, labelled):
    """Structures of which only the first have labels."""
    from ase.io import write

    frames = load_builtin("ethanol-gfn2")[:count]
    bare = [replace(frame, energy=None, forces=None) for frame in frames[labelled:]]
    write(path, [frame_to_atoms(frame) for frame in [*frames[:labelled], *bare]])
    return path


def test_validation_without_labels_is_refused_before_training(tmp_path):
    few = first_labelled(tmp_path / "few.extxyz", 20, 1)
    config = load_config(None, parse_settings([f"data.train={few}", *SMALL]))
    with pytest.raises(
        InputError, match=r"few\.extxyz, data\.valid: no validation structure has energy or forces"
    ):
        experiment.prepare(config)
    bare = first_labelled(tmp_path / "bare.extxyz", 3, 0)
    with pytest.raises(
        InputError, match=r"bare\.extxyz, data\.valid: no validation structure has energy or forces"
    ):
        experiment.prepare(configured(20, f"data.valid={bare}"))


def test_one_validation_structure_with_one_of_the_labels_is_enough(tmp_path):
    some = first_labelled(tmp_path / "some.extxyz", 3, 1)
    assert experiment.prepare(configured(20, f"data.valid={some}")).labels == ("energy", "forces")
    with pytest.raises(InputError, match="no validation structure has stress"):
        check_validation(
            DataSection(train="x"), ["stress"], as_frames(load_builtin("ethanol-gfn2")[:2]), begun=False
        )


def test_a_run_that_began_without_validation_labels_goes_on_and_its_report_has_no_picture_of_them(
    tmp_path, caplog
):
    bare = as_frames([replace(frame, energy=None, forces=None) for frame in load_builtin("ethanol-gfn2")[:3]])
    check_validation(DataSection(train="x"), ["energy", "forces"], bare, begun=True)
    assert "no validation structure has energy or forces" in caplog.text
    values = (np.arange(3.0), np.arange(3.0) + 0.1)
    page = render_report(ReportData(name="x", pairs={"training": {"forces": values}, "validation": {}}))
    assert page.count("<details") == 1
    assert "Predicted against reference" not in render_report(ReportData(name="x", pairs={"validation": {}}))
