"""A recipe fills in what was not given, says which it is, and old configurations keep their meaning."""

import logging

import pytest
import yaml

from pimlip_zoo import experiment
from pimlip_zoo.config import load_config, parse_settings, save_config
from pimlip_zoo.errors import InputError
from pimlip_zoo.training.recipes import RunFacts, available_recipes, get_recipe, register_recipe

SETTINGS = [
    "data.train=builtin:ethanol-gfn2/train@:20",
    "data.valid=builtin:ethanol-gfn2/valid@:5",
    "model.channels=4",
    "model.radial_hidden=[4]",
]


def prepared(*more):
    return experiment.prepare(load_config(None, parse_settings([*SETTINGS, *more]))).config


def test_a_run_for_which_nothing_is_given_has_the_newest_default_recipe():
    config, newest = prepared(), get_recipe("default")
    assert (config.recipe.name, config.recipe.version) == ("default", newest.version)
    assert "optimizer.lr" in config.recipe.filled
    facts = RunFacts(
        "nequip",
        frozenset(),
        direct=False,
        structures=20,
        labels=("energy", "forces"),
        passes=3_000.0,
        steps=6_000,
        atoms=180,
        labels_counted=560,
        validation=5,
    )
    for key, value in newest.settings(facts).items():
        section, name = key.split(".", 1)
        assert getattr(getattr(config, section), name) == value, key


@pytest.mark.parametrize(
    ("steps", "batch", "rate"),
    [(10, 10, 0.02), (1000, 10, 0.004), (444, 1, 0.019), (444, 5, 0.0085), (100_000, 5, 0.002)],
)
def test_the_rate_falls_with_the_passes_over_the_structures(steps, batch, rate):
    """20 structures."""
    config = prepared(f"trainer.max_steps={steps}", f"data.batch_size={batch}")
    assert config.optimizer.lr == pytest.approx(rate)
    twice = prepared(f"trainer.max_steps={steps}", f"data.batch_size={batch}", "trainer.accumulate=4")
    assert twice.optimizer.lr <= rate


def test_a_stage_has_the_recipe_of_its_own_length_and_structures():
    config = prepared("trainer.max_steps=1000")
    longer = config.model_copy(update={"trainer": config.trainer.model_copy(update={"max_steps": 4000})})
    stage = experiment.for_stage(longer, 8000, config_labels := ("energy", "forces"))
    assert stage.optimizer.lr == 0.02
    assert stage.schedule == config.schedule
    given = prepared("trainer.max_steps=1000", "optimizer.lr=0.003")
    assert experiment.for_stage(given, 8000, config_labels).optimizer.lr == 0.003


def test_what_is_given_stays_and_is_said(caplog):
    with caplog.at_level(logging.INFO, "pimlip_zoo"):
        config = prepared("optimizer.lr=0.123", "trainer.ema_decay=0.5")
    assert (config.optimizer.lr, config.trainer.ema_decay) == (0.123, 0.5)
    assert config.optimizer.name == "muon"
    assert "recipe default" in caplog.text
    assert "given, and not from the recipe: optimizer.lr, trainer.ema_decay" in caplog.text


def test_of_another_optimiser_nothing_comes_from_the_recipe():
    """Its rate would be wrong for it."""
    config = prepared("optimizer.name=adamw")
    assert (config.optimizer.name, config.optimizer.lr) == ("adamw", 0.01)
    assert prepared("schedule.name=constant").optimizer.name == "muon"


def test_a_nested_option_that_is_given_leaves_its_neighbours_to_the_recipe():
    config = prepared("recipe.name=mace-torch", "loss.late.start=0.5")
    assert (config.loss.late.start, config.loss.late.energy_per_atom) == (0.5, 1000.0)


def test_an_option_of_the_architecture_comes_only_where_it_has_it():
    assert prepared("recipe.name=mace-torch").model.name == "nequip"
    config = prepared("model.name=mace", "model.radial_hidden=[4]", "recipe.name=mace-torch")
    assert config.model.configure().residual_first


def test_the_completed_configuration_is_written_and_reads_back_as_it_is(tmp_path):
    config = prepared()
    save_config(config, tmp_path / "config.yaml")
    read = load_config(tmp_path / "config.yaml", complete=True)
    assert read == config
    assert experiment.prepare(read).config == config


def test_a_configuration_from_before_recipes_keeps_its_values(tmp_path):
    content = prepared("optimizer.name=adamw").model_dump(mode="json")
    del content["recipe"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    config = experiment.prepare(load_config(tmp_path / "config.yaml", complete=True)).config
    assert (config.recipe.name, config.recipe.version) == ("default", 1)
    assert (config.optimizer.name, config.optimizer.lr) == ("adamw", 0.01)


def test_the_first_version_is_what_runs_before_recipes_used():
    config = prepared("recipe.version=1")
    assert (config.optimizer.name, config.optimizer.lr, config.schedule.name) == ("adamw", 0.01, "cosine")
    assert (config.schedule.final, config.trainer.ema_decay) == (0.01, 0.99)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("recipe.name=mace_torch", "did you mean mace-torch"),
        ("recipe.version=99", "there is 1, 2, 3, 4"),
        ("recipe.nam=x", "did you mean name"),
    ],
)
def test_a_recipe_that_is_not_there_is_refused_with_those_that_are(setting, message):
    with pytest.raises(InputError, match=message):
        load_config(None, parse_settings([setting]))


def test_a_recipe_of_somebody_else_is_found_by_its_name(monkeypatch):
    from pimlip_zoo.training import recipes

    monkeypatch.setattr(recipes, "_recipes", dict(recipes._recipes))

    @register_recipe("theirs", version=3)
    def theirs(facts):
        """Slow and steady."""
        return {"optimizer.lr": 1e-4 * facts.structures}

    assert "theirs" in [recipe.name for recipe in available_recipes()]
    config = prepared("recipe.name=theirs")
    assert (config.recipe.version, config.optimizer.lr) == (3, pytest.approx(2e-3))
    with pytest.raises(InputError, match="two recipes"):
        register_recipe("theirs", version=3)(lambda facts: {})


@pytest.mark.parametrize("recipe", available_recipes(), ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("model", ["nequip", "allegro", "mace"])
def test_every_recipe_takes_a_step_with_every_architecture(tmp_path, recipe, model):
    settings = [
        *SETTINGS[:2],
        f"model.name={model}",
        "trainer.max_steps=2",
        f"recipe.name={recipe.name}",
        "trainer.valid_every=1",
    ]
    run = experiment.prepare(load_config(None, parse_settings(settings)))
    assert experiment.train(run, tmp_path).steps == 2
