"""With the weights of ``nequip`` 0.19 NequIP computes what that package computes."""

from __future__ import annotations

import math

import pytest
import torch
from e3nn import o3

from agreement.reference import STRUCTURES, Reference, assert_agrees, load, mlp_weights, pair_cutoffs
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


def map_weights(reference: Reference, model: NequIP) -> dict[str, torch.Tensor]:
    """The package's weights under our names and in our shapes."""
    theirs = {name.removeprefix(PREFIX): value for name, value in reference.weights.items()}
    ours = {"species_embedding": theirs["type_embed.embed_module.weight"]}
    if model.config.bessel_trainable:
        ours["edges.basis.frequencies"] = math.pi * theirs["bessel_encode.bessel_weights"].reshape(-1)
    ours |= mlp_weights(theirs, "per_atom_energy_readout.mlp_module", "readout")
    for index, layer in enumerate(model.layers):
        theirs_of_layer, ours_of_layer = f"layer{index}_convnet.conv", f"layers.{index}"
        ours |= mlp_weights(theirs, f"{theirs_of_layer}.edge_mlp", f"{ours_of_layer}.radial")
        maps = [("linear_1", "linear_in"), ("linear_2", "linear_out")]
        if layer.self_connection is not None:
            maps.append(("sc", "self_connection"))
        for their_name, our_name in maps:
            flat = theirs[f"{theirs_of_layer}.{their_name}.weight"]
            blocks = _blocks(flat, getattr(layer, our_name))
            ours |= {f"{ours_of_layer}.{our_name}.weights.{n}": block for n, block in enumerate(blocks)}
    return ours


def _blocks(flat: torch.Tensor, linear: torch.nn.Module) -> list[torch.Tensor]:
    """e3nn keeps one vector, blocks in the order of the input's irreps; ours go by the output's."""
    irreps_in, irreps_out = o3.Irreps(linear.irreps_in), o3.Irreps(linear.irreps_out)
    matching = [irrep for _, irrep in irreps_out if irrep in irreps_in]
    shapes = dict(zip(matching, (weight.shape for weight in linear.weights), strict=True))
    found, start = {}, 0
    for _, irrep in irreps_in:
        if irrep in shapes:
            found[irrep] = flat[start : start + shapes[irrep].numel()].reshape(shapes[irrep])
            start += shapes[irrep].numel()
    assert start == flat.numel()
    return [found[irrep] for irrep in matching]


def build(reference: Reference) -> Potential:
    """Our potential with the package's weights, all in float64."""
    model = NequIP(config_of(reference), reference.species).to(torch.float64)
    model.load_state_dict(map_weights(reference, model), strict=True)
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
