"""Recipes on the command line: listed, chosen, said."""

import json

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


def test_an_unknown_recipe_is_refused_before_anything_is_written(refused):
    refused("train", "--recipe", "mace", says=("mace-torch",))
