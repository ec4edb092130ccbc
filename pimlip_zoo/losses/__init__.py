"""What a loss is, and the supervised ones.

What another package needs to add a supervised loss is here.
"""

from pimlip_zoo.losses.base import Evaluated, LossOptions, LossTerm, LossValue, Requests, Step, loss

__all__ = ["Evaluated", "LossOptions", "LossTerm", "LossValue", "Requests", "Step", "loss"]
