"""With the weights of ``mace-torch`` 0.3.16 MACE computes what that package computes."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3

from agreement.reference import STRUCTURES, Reference, assert_agrees, load
from pimlip_zoo.foundation.mace_torch import convert_weights
from pimlip_zoo.models.mace import MACE, MACEConfig
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.nn.zbl import ZBL

CONFIGURATIONS = (
    "mace_residual_first",
    "mace_agnesi_zbl",
    "mace_scalars",
    "mace_density",
    "mace_correlation_4",
    "mace_one_interaction",
)


def config_of(reference: Reference, **options: object) -> MACEConfig:
    """The package's arguments as our options."""
    given = reference.config
    hidden = o3.Irreps(given["hidden_irreps"])
    return MACEConfig(
        cutoff=given["r_max"],
        avg_num_neighbors=given["avg_num_neighbors"],
        num_interactions=given["num_interactions"],
        l_max=given["max_ell"],
        hidden_l_max=hidden.lmax,
        channels=hidden.count("0e"),
        correlation=given["correlation"],
        radial_hidden=tuple(given["radial_MLP"]),
        num_bessel=given["num_bessel"],
        cutoff_order=given["num_polynomial_cutoff"],
        distance_transform="agnesi" if given["distance_transform"] == "Agnesi" else "none",
        normalization="density" if "Density" in given["first"] else "neighbors",
        residual_first="Residual" in given["first"],
        # With a single layer the package has a linear readout.
        readout_hidden=(given["readout_hidden"],) if given["num_interactions"] > 1 else (),
        **options,
    )


def build(reference: Reference, **options: object) -> Potential:
    """Our potential with the package's weights, all in float64."""
    given = reference.config
    model = MACE(config_of(reference, **options), reference.species).to(torch.float64)
    model.load_state_dict(convert_weights(model, reference.weights), strict=True)
    references = torch.tensor(given["atomic_energies"], dtype=torch.float64) + given["atomic_inter_shift"]
    scale = given["atomic_inter_scale"]
    # The package scales the pair repulsion with everything else.
    zbl = ZBL(reference.species, cutoff_order=given["num_polynomial_cutoff"], strength=scale)
    repulsion = zbl if given["pair_repulsion"] else None
    return Potential(model, energy_references=references, scale=scale, repulsion=repulsion)


@pytest.mark.parametrize("coupling", ["paths", "reduced"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_energy_forces_and_stress_equal_those_of_mace(name: str, coupling: str) -> None:
    reference = load(name)
    potential = build(reference, coupling=coupling)
    for structure in STRUCTURES:
        assert_agrees(potential, reference, structure)


@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if "correlation_4" not in name])
def test_the_parameter_count_equals_that_of_mace(name: str) -> None:
    reference = load(name)
    buffers = ("U_matrix", "atomic_energies", "scale_shift", "bessel_weights")
    theirs = sum(v.numel() for k, v in reference.weights.items() if not any(part in k for part in buffers))
    assert sum(parameter.numel() for parameter in build(reference).model.parameters()) == theirs


@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if "correlation_4" not in name])
def test_our_coupling_paths_are_those_of_mace_one_by_one(name: str) -> None:
    reference = load(name)
    layer = build(reference).model.layers[0]
    theirs = reference.weights["products.0.symmetric_contractions.contractions.0.weights_max"]
    block = next(b for b in layer.contraction.spec.blocks if b.order == layer.contraction.spec.correlation)
    ours = layer.contraction.weights[:, block.first : block.first + block.size]
    torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=0)
