"""With the weights of ``nequip`` 0.19 NequIP computes what that package computes."""

from __future__ import annotations

import pytest
import torch

from agreement.reference import STRUCTURES, Reference, assert_agrees, load, pair_cutoffs
from pimlip_zoo.foundation.nequip import nequip_weights
from pimlip_zoo.models.nequip import NequIP, NequIPConfig
from pimlip_zoo.models.potential import Potential

CONFIGURATIONS = ("nequip_natural_parity", "nequip_both_parities", "nequip_options")
PREFIX = "model.func."


def config_of(reference: Reference) -> NequIPConfig:
    """The package's arguments as our options."""
    given = reference.config
    return NequIPConfig(
        cutoff=given["r_max"],
        avg_num_neighbors=given["avg_num_neighbors"],
        num_layers=given["num_layers"],
        l_max=given["l_max"],
        parity=given["parity"],
        channels=given["num_features"],
        radial_hidden=(given["radial_mlp_width"],) * given["radial_mlp_depth"],
        num_bessel=given["num_bessels"],
        bessel_trainable=given.get("bessel_trainable", False),
        cutoff_order=given["polynomial_cutoff_p"],
        species_cutoffs=pair_cutoffs(reference),
        readout_hidden=(given.get("readout_mlp_hidden_layers_width", 0),)
        * given.get("readout_mlp_hidden_layers_depth", 0),
    )


def build(reference: Reference) -> Potential:
    """Our potential with the package's weights, all in float64."""
    model = NequIP(config_of(reference), reference.species).to(torch.float64)
    theirs = {name.removeprefix(PREFIX): value for name, value in reference.weights.items()}
    model.load_state_dict(nequip_weights(model, theirs), strict=True)
    scale = reference.per_species("per_type_energy_scales")
    shift = reference.per_species("per_type_energy_shifts")
    return Potential(model, energy_references=shift, scale=scale)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_energy_forces_and_stress_equal_those_of_nequip(name: str, structure: str) -> None:
    reference = load(name)
    assert_agrees(build(reference), reference, structure)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_parameter_count_equals_that_of_nequip(name: str) -> None:
    reference = load(name)
    ours = sum(parameter.numel() for parameter in build(reference).model.parameters())
    assert ours == reference.num_parameters
