"""What every architecture has to satisfy, as tests that third parties run, too.

from pimlip_zoo.testing import ArchitectureContract

class TestMine(ArchitectureContract):
model = "mine"
options = {"channels": 4}
"""

from pimlip_zoo.testing.contract import ArchitectureContract
from pimlip_zoo.testing.structures import STRUCTURES, as_graph, structure

__all__ = ["STRUCTURES", "ArchitectureContract", "as_graph", "structure"]
