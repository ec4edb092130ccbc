"""Whether a file holds what a model of its options needs, before anything of that size is built."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.models.base import AtomicEnergyModel, ModelConfig

_PATIENCE, _WEIGHTS_A_SECOND = 2.0, 100_000
"""How long the smallest file may keep us busy, and how much larger one has to be that may do so for a second more."""


def check_extent(
    model: type[AtomicEnergyModel], config: ModelConfig, species: Sequence[str], weights: Iterable[Tensor]
) -> None:
    """Refuse options that ask for far more than comes with them.

    Few numbers in a file can ask for a model that fills the memory: of widths that its weights do not have, or of
    high degrees in many layers, whose couplings are many even where channels are few.

    Args:
        model: the architecture.
        config: its options.
        species: chemical symbols.
        weights: what the file holds; the same numbers under two names count once.

    Raises:
        InputError: for a model with more weights than there are, or that takes too long to build for so few.
    """
    found = sum(
        {
            value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() // value.element_size()
            for value in weights
        }.values()
    )
    if found < (least := model.least_weights(config, species)):
        raise InputError(
            f"the model that it describes has at least {least} weights, and it holds {found}",
            key="config",
            hint="is it the checkpoint of another model?",
        )
    seconds = model.seconds_to_build(config)
    if seconds > _PATIENCE + found / _WEIGHTS_A_SECOND:
        raise InputError(
            f"the model that it describes takes some {seconds:.0f} s to build, and it holds {found} weights",
            key="config",
            hint="fewer layers, or a lower degree",
        )
