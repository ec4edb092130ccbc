"""Models of the ``mace-torch`` package as potentials of this one; that package need not be installed."""

from pimlip_zoo.foundation.mace_torch.potential import import_potential
from pimlip_zoo.foundation.mace_torch.weights import convert_weights

__all__ = ["convert_weights", "import_potential"]
