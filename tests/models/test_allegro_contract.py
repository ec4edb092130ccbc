"""Allegro with the paper's residual updates satisfies the contract, too."""

from __future__ import annotations

from typing import ClassVar

from pimlip_zoo.testing import ArchitectureContract


class TestAllegroWithResidualUpdates(ArchitectureContract):
    model = "allegro"
    options: ClassVar = {
        "cutoff": 3.0,
        "num_layers": 3,
        "l_max": 1,
        "update": "residual",
        "scalar_channels": 16,
        "tensor_channels": 4,
        "embed_hidden": (8,),
        "latent_hidden": (16,),
        "readout_hidden": (8,),
        "species_cutoffs": (("H", "H", 2.5),),
    }
