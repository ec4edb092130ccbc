"""Models of the ``nequip`` and ``nequip-allegro`` packages as potentials of this one; neither need be installed."""

from pimlip_zoo.foundation.nequip.potential import import_potential
from pimlip_zoo.foundation.nequip.weights import allegro_weights, nequip_weights

__all__ = ["allegro_weights", "import_potential", "nequip_weights"]
