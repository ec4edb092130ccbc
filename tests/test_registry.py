"""Architectures are found by name; duplicates, unknown names and broken packages are clear errors."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from pimlip_zoo import registry
from pimlip_zoo.errors import InputError
from pimlip_zoo.models.base import AtomicEnergyModel, ModelConfig


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    width: int = 3


def fresh():
    class Model(AtomicEnergyModel):
        """One line. And more."""

    return Model


@pytest.fixture
def clean(monkeypatch):
    registry.available_models()
    monkeypatch.setattr(registry.MODELS, "_items", dict(registry.MODELS._items))
    monkeypatch.setattr(registry.MODELS, "_loaded", set(registry.MODELS._loaded))


def test_the_architectures_of_the_package_are_there_with_three_presets():
    models = registry.available_models()
    assert {"nequip", "allegro", "mace"} <= models.keys()
    for name in ("nequip", "allegro", "mace"):
        assert {"small", "medium", "large"} <= set(models[name].presets)
        assert models[name].description


@pytest.mark.usefixtures("clean")
def test_a_registered_class_is_found_and_configured():
    model = registry.register_model("mine", config=Config, presets={"small": {"width": 2}})(fresh())
    info = registry.get_model("mine")
    assert info.model is model
    assert info.description == "One line. And more."
    assert info.configure().width == 3
    assert info.configure("small").width == 2
    assert info.configure("small", width=7).width == 7


@pytest.mark.usefixtures("clean")
def test_registering_the_same_class_again_is_allowed_and_another_one_is_not():
    model = fresh()
    registry.register_model("mine", config=Config)(model)
    registry.register_model("mine", config=Config)(model)

    class Other(AtomicEnergyModel):
        """Another."""

    with pytest.raises(InputError, match=r"two architectures are called 'mine'"):
        registry.register_model("mine", config=Config)(Other)


@pytest.mark.usefixtures("clean")
def test_unknown_names_presets_and_options_come_with_the_nearest_known_ones():
    registry.register_model("mine", config=Config, presets={"small": {}})(fresh())
    with pytest.raises(InputError, match="did you mean mine"):
        registry.get_model("mime")
    info = registry.get_model("mine")
    with pytest.raises(InputError, match="did you mean small"):
        info.configure("smal")
    with pytest.raises(InputError, match="did you mean width"):
        info.configure(widht=3)


@pytest.mark.usefixtures("clean")
def test_a_package_whose_entry_point_does_not_load_is_named(monkeypatch):
    broken = EntryPoint("theirs", "package_that_is_not_there.module", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    with pytest.raises(InputError, match=r"'theirs' \(package_that_is_not_there\.module\).*does not load"):
        registry.available_models()


def test_options_that_no_model_can_have_are_refused():
    for options, key in (({"cutoff": 0.0}, "cutoff"), ({"avg_num_neighbors": 0}, "avg_num_neighbors")):
        with pytest.raises(InputError, match=key):
            Config(**options)
    with pytest.raises(InputError, match="force_head"):
        Config(force_head="both")


def test_a_registry_of_anything_names_the_nearest_and_refuses_two_of_a_name():
    shapes = registry.Registry("shape", "pimlip_zoo.no_such_group")
    shapes.add("round", 1, fresh)
    shapes.add("round", 2, fresh)  # the same source again
    assert shapes.all() == {"round": 2}
    with pytest.raises(InputError, match=r"form\.shape: no shape is called 'rond' \(did you mean round"):
        shapes.get("rond", key="form.shape")
    with pytest.raises(InputError, match="two shapes are called 'round'"):
        shapes.add("round", 3, available)


def available():
    """Another source."""


def test_an_unknown_architecture_says_how_one_of_ones_own_becomes_known():
    with pytest.raises(InputError, match="one of your own: install its package, or import its module first"):
        registry.get_model("mine")
