"""MACE with nonlinear interactions and its options keep the contract of an architecture."""

from typing import ClassVar

from pimlip_zoo.testing import ArchitectureContract


class TestMACENonlinear(ArchitectureContract):
    model = "mace-nonlinear"
    options: ClassVar = {
        "cutoff": 4.0,
        "channels": 4,
        "edge_channels": 3,
        "l_max": 2,
        "correlation": 2,
        "radial_hidden": (8,),
        "readout_width": 4,
    }
    offers_direct_head = False
    atoms_apart_have_reference_energies = False


class TestMACENonlinearWithItsOptions(ArchitectureContract):
    model = "mace-nonlinear"
    options: ClassVar = {
        "cutoff": 4.0,
        "channels": 3,
        "edge_channels": 2,
        "edge_l_max": 1,
        "reduce_first": True,
        "l_max": 2,
        "hidden_l_max": 2,
        "num_interactions": 3,
        "correlation": 2,
        "coupling": "reduced",
        "radial_hidden": (8, 8),
        "distance_transform": "agnesi",
        "bessel_trainable": True,
        "species_cutoffs": (("H", "H", 3.0),),
        "readout_width": 4,
        "last_readout_only": True,
        "embedding_readout": True,
    }
    offers_direct_head = False
    atoms_apart_have_reference_energies = False
