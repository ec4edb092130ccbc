"""With the weights of ``nequip-allegro`` 0.8 Allegro computes what that package computes."""

from __future__ import annotations

import pytest
import torch

from agreement.reference import STRUCTURES, Reference, assert_agrees, load, pair_cutoffs
from pimlip_zoo.foundation.nequip import allegro_weights
from pimlip_zoo.models.allegro import Allegro, AllegroConfig
from pimlip_zoo.models.potential import Potential

CONFIGURATIONS = ("allegro_both_parities", "allegro_natural_parity", "allegro_options", "allegro_one_layer")
PREFIX = "model.func."


def config_of(reference: Reference) -> AllegroConfig:
    """The package's arguments as our options."""
    given = reference.config

    def hidden(name: str, width: int) -> tuple[int, ...]:
        depth = given.get(f"{name}_mlp_hidden_layers_depth", 1)
        return (given.get(f"{name}_mlp_hidden_layers_width", width),) * depth

    return AllegroConfig(
        cutoff=given["r_max"],
        avg_num_neighbors=given["avg_num_neighbors"],
        num_layers=given["num_layers"],
        l_max=given["l_max"],
        parity=given["parity"],
        scalar_channels=given["num_scalar_features"],
        tensor_channels=given["num_tensor_features"],
        embed_channels=given.get("radial_chemical_embed_dim"),
        embed_hidden=hidden("scalar_embed", 64),
        latent_hidden=hidden("allegro", 64),
        readout_hidden=hidden("readout", 32),
        path_channels=given.get("tp_path_channel_coupling", True),
        num_bessel=given["num_bessels"],
        bessel_trainable=given["bessel_trainable"],
        cutoff_order=given["polynomial_cutoff_p"],
        species_cutoffs=pair_cutoffs(reference),
    )


def build(reference: Reference) -> Potential:
    """Our potential with the package's weights, all in float64."""
    model = Allegro(config_of(reference), reference.species).to(torch.float64)
    theirs = {name.removeprefix(PREFIX): value for name, value in reference.weights.items()}
    model.load_state_dict(allegro_weights(model, theirs), strict=True)
    scale = reference.per_species("per_type_energy_scales")
    shift = reference.per_species("per_type_energy_shifts")
    return Potential(model, energy_references=shift, scale=scale)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_energy_forces_and_stress_equal_those_of_nequip_allegro(name: str, structure: str) -> None:
    reference = load(name)
    assert_agrees(build(reference), reference, structure)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_parameter_count_equals_that_of_nequip_allegro(name: str) -> None:
    reference = load(name)
    ours = sum(parameter.numel() for parameter in build(reference).model.parameters())
    assert ours == reference.num_parameters
