"""The reference of the options is made from the typed configuration, and none is missing or without a sentence."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from pimlip_zoo.config import RunConfig

HOOKS = Path(__file__).parents[1] / "docs" / "hooks.py"


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", HOOKS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def leaves(value, prefix=""):
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{prefix}{name}.")
    else:
        yield prefix.rstrip(".")


def test_every_option_of_a_run_is_in_the_reference(hooks):
    listed = {option.key for option in hooks.options_of(RunConfig)}
    written = yaml.safe_load(yaml.safe_dump(RunConfig().model_dump(mode="json")))
    opened = {"weak.terms": "weak.terms.NAME.", "weak.labels": "weak.labels."}
    for key in leaves(written):
        if key in opened:
            assert any(option.startswith(opened[key]) for option in listed), key
        else:
            assert key in listed, key


def test_every_option_has_a_sentence(hooks):
    assert [o.key for o in hooks.options_of(RunConfig) if not o.text] == []


def test_types_and_bounds_are_said_as_a_user_writes_them(hooks):
    options = {option.key: option for option in hooks.options_of(RunConfig)}
    assert options["optimizer.lr"].kind == "number, > 0"
    assert options["loss.late.start"].kind == "number or null, > 0, < 1"
    assert options["optimizer.name"].kind == "adamw or muon"
    assert options["trainer.max_time"].default == "null"


def test_the_page_has_the_table(hooks):
    page = hooks.on_page_markdown((HOOKS.parent / "api" / "configuration.md").read_text())
    assert "| `data.batch_size` | integer, > 0 | 10 |" in page
    assert hooks.MARK not in page


def test_the_options_of_what_is_registered_are_there_each_with_a_sentence(hooks):
    found = hooks.registered_options()
    distill = {option.key: option for option in found["`weak.labels` of the recipe `distill`"]}
    assert distill["weak.labels.teachers"].kind == "integer, > 0"
    assert distill["weak.labels.teachers"].default == "1"
    assert next(o.key for o in found["`weak.labels.calculator=gfn2?OPTION=VALUE`"]) == "accuracy"
    assert [option.key for options in found.values() for option in options if not option.text] == []
