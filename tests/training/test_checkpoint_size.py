"""A checkpoint is as large as the model that it describes, or nothing of that size is made."""

from __future__ import annotations

import itertools
import time

import pytest
import torch

from pimlip_zoo.errors import InputError
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.nn.symmetric_contraction import symmetric_contraction_spec
from pimlip_zoo.registry import get_model
from pimlip_zoo.training.checkpoint import KEY, describe, load_potential

SPECIES = ("H", "O")
SMALL = {
    "nequip": {"num_layers": 2, "l_max": 1, "channels": 2, "radial_hidden": (4,)},
    "allegro": {"num_layers": 2, "l_max": 1, "scalar_channels": 2, "tensor_channels": 2},
    "mace": {"num_interactions": 2, "l_max": 1, "channels": 2, "radial_hidden": (4,), "correlation": 2},
}
HUGE = {
    "nequip": {
        "num_layers": 10**6,
        "channels": 10**6,
        "radial_hidden": (10**6, 10**6),
        "readout_hidden": (1,) * 9999,
    },
    "allegro": {
        "num_layers": 10**4,
        "scalar_channels": 10**6,
        "tensor_channels": 10**6,
        "embed_channels": 10**6,
        "latent_hidden": (10**6, 10**6),
        "num_bessel": 10**9,
    },
    "mace": {
        "num_interactions": 10**12,
        "channels": 10**6,
        "radial_hidden": (10**6, 10**6),
        "num_bessel": 10**9,
    },
}


def potential(name, **options):
    info = get_model(name)
    return Potential(
        info.model(info.configure(**{**SMALL[name], "avg_num_neighbors": 9.0, **options}), SPECIES)
    )


def saved(path, model, change=lambda content: None):
    content = {
        KEY: describe(model),
        "state_dict": {f"potential.{name}": value for name, value in model.state_dict().items()},
    }
    change(content)
    torch.save(content, path)
    return path


@pytest.fixture(autouse=True, scope="module")
def warm(tmp_path_factory):
    """Nothing is imported while it is timed."""
    load_potential(saved(tmp_path_factory.mktemp("warm") / "a.ckpt", potential("mace")))


def refused(path, match):
    began = time.process_time()
    with pytest.raises(InputError, match=match) as error:
        load_potential(path)
    assert time.process_time() - began < 2.0
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "option"), [(name, option) for name in HUGE for option in HUGE[name]])
def test_a_small_file_that_asks_for_a_huge_model_is_refused_before_it_is_built(name, option, tmp_path):
    def grow(content):
        content[KEY]["config"][option] = HUGE[name][option]

    refused(saved(tmp_path / "a.ckpt", potential(name), grow), "weights, and it holds")


@pytest.mark.parametrize("name", SMALL)
def test_no_model_has_fewer_weights_than_is_asked_of_its_file(name, tmp_path):
    layers = "num_interactions" if name == "mace" else "num_layers"
    variants = [{}, {"force_head": "direct"}, {"readout_hidden": ()}, {"readout_hidden": (3, 5)}]
    variants += {
        "nequip": [{"parity": True}, {"self_connection": False}, {"radial_hidden": (7, 3)}],
        "allegro": [
            {"update": "residual"},
            {"parity": False},
            {"embed_channels": 2},
            {"path_channels": False},
        ],
        "mace": [
            {"hidden_l_max": 0},
            {"coupling": "reduced"},
            {"normalization": "density"},
            {"residual_first": True},
        ],
    }[name]
    for variant, depth, l_max in itertools.product(variants, (1, 2, 3), (1, 2)):
        model = potential(name, **{**variant, layers: depth, "l_max": l_max})
        found = sum(value.numel() for value in model.state_dict().values())
        assert type(model.model).least_weights(model.model.config, SPECIES) <= found, (variant, depth, l_max)
    load_potential(saved(tmp_path / "a.ckpt", model))


DEEP = {
    "nequip": [{"l_max": 8, "num_layers": 32}],
    "allegro": [{"l_max": 8, "num_layers": 16}],
    "mace": [{"l_max": 3, "correlation": 4, "num_interactions": 50}],
}


@pytest.mark.parametrize(("name", "options"), [(name, options) for name in DEEP for options in DEEP[name]])
def test_a_small_file_that_asks_for_high_degrees_in_many_layers_is_refused_at_once(name, options, tmp_path):
    def grow(content):
        content[KEY]["config"].update(options)
        content["state_dict"]["potential.more"] = torch.zeros(90_000)

    refused(saved(tmp_path / "a.ckpt", potential(name), grow), r"takes some \d+ s to build, and it holds 9")


def test_the_same_numbers_under_many_names_are_no_more_weights(tmp_path):
    def grow(content):
        content[KEY]["config"]["channels"] = 60
        content["state_dict"].update(
            {f"potential.more{n}": content["state_dict"]["potential.scale"] for n in range(9000)}
        )

    path = saved(tmp_path / "a.ckpt", potential("nequip", radial_hidden=(64,)), grow)
    refused(path, "weights, and it holds")


@pytest.mark.parametrize("name", SMALL)
def test_every_preset_is_built_without_a_question_of_time(name):
    info = get_model(name)
    for preset in info.presets:
        assert info.model.seconds_to_build(info.configure(preset, avg_num_neighbors=9.0)) < 1.0


def test_a_view_of_one_number_is_no_weights(tmp_path):
    def stretch(content):
        content["state_dict"]["potential.scale"] = torch.ones(1).expand(10**10)

    refused(saved(tmp_path / "a.ckpt", potential("nequip"), stretch), "claims more numbers than it holds")


def test_a_description_whose_parts_are_each_other_is_refused(tmp_path):
    nested = [1, 1]
    for _ in range(40):
        nested = [nested, nested]
    for field in ("model", "config", "species", "summary"):
        refused(
            saved(
                tmp_path / "a.ckpt",
                potential("nequip"),
                lambda content, f=field: content[KEY].update({f: nested}),
            ),
            "more than 100000 values",
        )


def test_a_repulsion_of_another_name_is_refused(tmp_path):
    path = saved(
        tmp_path / "a.ckpt", potential("nequip"), lambda content: content[KEY].update(repulsion="os:system")
    )
    refused(path, "no repulsion is called 'os:system'")


def test_couplings_that_no_computer_holds_are_refused_before_they_are_made():
    from e3nn import o3

    with pytest.raises(InputError, match="are up to 26794280028696 numbers"):
        symmetric_contraction_spec(o3.Irreps.spherical_harmonics(11), o3.Irreps("0e + 1o + 2e"), 4)
