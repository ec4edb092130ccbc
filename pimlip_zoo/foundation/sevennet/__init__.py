"""Checkpoints of ``sevenn`` (SevenNet) as potentials."""

from pimlip_zoo.foundation.sevennet.named import NAMES, find_file
from pimlip_zoo.foundation.sevennet.potential import import_potential

__all__ = ["NAMES", "find_file", "import_potential"]
