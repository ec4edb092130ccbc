"""PaiNN satisfies what pimlip-zoo asks of every architecture: ``pytest tests`` in this folder."""

from typing import ClassVar

from pimlip_zoo.testing import ArchitectureContract


class TestPaiNN(ArchitectureContract):
    """The whole suite, with a model that is small and therefore fast."""

    model = "painn"
    options: ClassVar = {"channels": 8, "num_layers": 2, "num_basis": 6, "cutoff": 3.0}
