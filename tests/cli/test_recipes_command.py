"""Recipes on the command line: listed, chosen, said."""

import json

import pytest
import yaml

from pimlip_zoo.training.recipes import get_recipe


def test_the_recipes_are_listed_with_what_they_set(cli):
    text = cli("models", "--recipes").out
    for word in (
        "default",
        "mace-torch",
        "nequip",
        "optimizer.lr=0.0054",
        "trainer.max_steps=14000",
        "loss.late.start=0.75",
    ):
        assert word in text
    content = json.loads(cli("models", "--recipes", "--json").out)
    assert content["default"]["options"]["optimizer.name"] == "muon"
    assert content["mace-torch"]["version"] == 1


def test_a_run_says_its_recipe_and_keeps_it(cli, tmp_path):
    small = ["--set", "model.channels=4", "--max-steps", "2", "--data", "builtin:ethanol-gfn2/train@:10"]
    done = cli(
        "train", *small, "--out", str(tmp_path / "run"), "--set", "optimizer.lr=0.005", "--max-time", "1h"
    )
    assert "muon, rate 0.005" in done.out
    assert "2 steps of 10 structures, or 1h if that is sooner" in done.out
    content = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    newest = get_recipe("default").version
    assert content["recipe"] == {"name": "default", "version": newest, "filled": content["recipe"]["filled"]}
    assert content["optimizer"]["name"] == "muon"


@pytest.mark.parametrize("named", [["recipe.version=1"], ["recipe.name=mace-torch"]])
def test_what_a_run_had_from_its_recipe_comes_from_another_that_is_named(cli, tmp_path, named):
    """Beside the configuration of a run: what was given there stays, what its recipe filled in does not."""
    small = ["--set", "model.channels=4", "--max-steps", "2", "--data", "builtin:ethanol-gfn2/train@:10"]
    cli("train", *small, "--out", str(tmp_path / "run"), "--set", "loss.forces.weight=7")
    settings = [part for setting in named for part in ("--set", setting)]
    done = cli(
        "train",
        "--config",
        str(tmp_path / "run" / "config.yaml"),
        *settings,
        "--out",
        str(tmp_path / "other"),
    )
    content = yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())
    wanted = get_recipe(content["recipe"]["name"], content["recipe"]["version"])
    assert f"{wanted.name} {wanted.version}" in done.out
    assert content["optimizer"]["name"] == "adamw"
    assert content["optimizer"]["amsgrad"] == (wanted.name == "mace-torch")
    assert content["schedule"]["shorter_power"] == 0.0
    assert content["loss"]["forces"]["weight"] == 7.0
    assert (content["trainer"]["max_steps"], content["model"]["channels"]) == (2, 4)


def test_an_unknown_recipe_is_refused_before_anything_is_written(refused):
    refused("train", "--recipe", "mace", says=("mace-torch",))
