"""Every registered architecture keeps the contract."""

from typing import ClassVar

from pimlip_zoo.testing import ArchitectureContract


class TestNequIP(ArchitectureContract):
    model = "nequip"
    options: ClassVar = {"num_layers": 2, "channels": 4, "radial_hidden": (8,), "cutoff": 4.0}


class TestNequIPWithBothParities(ArchitectureContract):
    model = "nequip"
    options: ClassVar = {
        "num_layers": 3,
        "channels": 2,
        "l_max": 1,
        "parity": True,
        "radial_hidden": (8,),
        "cutoff": 4.0,
        "species_cutoffs": (("H", "H", 3.0),),
        "bessel_trainable": True,
        "readout_hidden": (4,),
        "resnet": True,
    }


class TestAllegro(ArchitectureContract):
    model = "allegro"
    options: ClassVar = {"cutoff": 4.0}
