"""Options that cannot work are refused when the architecture is made, with their name and what is allowed."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pimlip_zoo.errors import InputError
from pimlip_zoo.registry import get_model

EVERYWHERE: list[tuple[dict[str, Any], str, str]] = [
    ({"cutoff": 0.0}, "cutoff", "> 0"),
    ({"cutoff": -1.0}, "cutoff", "> 0"),
    ({"cutoff": math.inf}, "cutoff", "> 0"),
    ({"cutoff": math.nan}, "cutoff", "> 0"),
    ({"cutoff": "5"}, "cutoff", "number"),
    ({"avg_num_neighbors": 0.0}, "avg_num_neighbors", "> 0"),
    ({"force_head": "both"}, "force_head", "'conservative' or 'direct'"),
    ({"l_max": -1}, "l_max", ">= 0"),
    ({"l_max": 12}, "l_max", "0 to 11"),
    ({"l_max": 1.5}, "l_max", "integer"),
    ({"l_max": True}, "l_max", "integer"),
    ({"l_max": 0, "force_head": "direct"}, "l_max", ">= 1"),
    ({"num_bessel": 0}, "num_bessel", ">= 1"),
    ({"cutoff_order": 1.0}, "cutoff_order", ">= 2"),
    ({"species_cutoffs": (("H", "C", 9.0),)}, "species_cutoffs", "(0, 5.0]"),
    ({"species_cutoffs": (("H", "C", 0.0),)}, "species_cutoffs", "(0, 5.0]"),
    ({"species_cutoffs": (("H", "Fe", 3.0),)}, "species_cutoffs", "known: C, H"),
]


@pytest.mark.parametrize("name", ["nequip", "allegro", "mace"])
@pytest.mark.parametrize(("options", "key", "allowed"), EVERYWHERE, ids=str)
def test_an_option_that_cannot_work_is_refused_by_name(
    name: str, options: dict[str, Any], key: str, allowed: str
) -> None:
    info = get_model(name)
    with pytest.raises(InputError) as error:
        info.model(info.configure("small", **{"avg_num_neighbors": 5.0, **options}), ("H", "C"))
    assert key in str(error.value)
    assert allowed in str(error.value)


@pytest.mark.parametrize("name", ["nequip", "allegro", "mace"])
@pytest.mark.parametrize(
    ("species", "reason"),
    [
        ((), "at least one species"),
        (("H", "Xx"), "'Xx' is not a chemical element"),
        (("H", "1"), "'1' is not a chemical element"),
        (("H", "C", "H"), "H is named twice"),
    ],
)
def test_species_are_elements_each_named_once(name: str, species: tuple[str, ...], reason: str) -> None:
    info = get_model(name)
    with pytest.raises(InputError, match=reason):
        info.model(info.configure("small", avg_num_neighbors=5.0), species)


@pytest.mark.parametrize("name", ["nequip", "allegro", "mace"])
def test_whole_numbers_and_shorter_cutoffs_are_fine(name: str) -> None:
    info = get_model(name)
    config = info.configure("small", cutoff=4, avg_num_neighbors=5, species_cutoffs=(("H", "C", 3),))
    assert info.model(config, ("H", "C")).cutoff == 4.0


@pytest.mark.parametrize("name", ["nequip", "allegro", "mace"])
def test_every_element_fits_into_one_model(name: str) -> None:
    from ase.data import chemical_symbols

    info = get_model(name)
    elements = tuple(chemical_symbols[1:])
    assert info.model(info.configure("small", avg_num_neighbors=5.0), elements).species == elements


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_layers": 2}, True),
        ({"num_layers": 3, "self_connection": False}, True),
        ({"num_layers": 3}, False),
    ],
)
def test_a_resnet_without_a_layer_to_skip_says_so(
    options: dict[str, Any], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    info = get_model("nequip")
    options = {"avg_num_neighbors": 5.0, "channels": 2, "resnet": True, **options}
    info.model(info.configure("small", **options), ("H",))
    assert ("model.resnet has no effect" in caplog.text) is told
