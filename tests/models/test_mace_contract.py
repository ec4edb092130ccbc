"""MACE and its options keep the contract of an architecture."""

from typing import ClassVar

from pimlip_zoo.testing import ArchitectureContract


class TestMACE(ArchitectureContract):
    model = "mace"
    options: ClassVar = {
        "cutoff": 4.0,
        "channels": 4,
        "l_max": 2,
        "correlation": 3,
        "radial_hidden": (8,),
        "readout_hidden": (4,),
    }


class TestMACEWithDensityAndAgnesi(ArchitectureContract):
    model = "mace"
    options: ClassVar = {
        "cutoff": 4.0,
        "channels": 3,
        "l_max": 3,
        "hidden_l_max": 2,
        "correlation": 2,
        "coupling": "reduced",
        "radial_hidden": (8, 8),
        "normalization": "density",
        "distance_transform": "agnesi",
        "bessel_trainable": True,
        "species_cutoffs": (("H", "H", 3.0),),
        "readout_hidden": (),
    }
