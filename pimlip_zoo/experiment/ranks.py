"""The processes of a run that trains on several devices: joined before the first of them looks at the data.

What is a number of the whole data set, statistics for one, is then computed once and received by the others: the work
is done once, and ranks on unlike machines cannot differ in a last digit that is no parameter and never averaged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar, cast

import torch.distributed

from pimlip_zoo.config import RunConfig
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.trainer import check_trainer

__all__ = ["from_rank_zero", "join_ranks"]

T = TypeVar("T")


def join_ranks(config: RunConfig) -> int:
    """Connect the processes that torchrun or SLURM started; without either, start them on this machine.

    Lightning's trainer finds them connected and leaves it at that. Does nothing the second time, or for one process.

    Returns:
        The rank of this process.

    Raises:
        InputError: for devices that are not there.
    """
    check_trainer(config)
    section = config.trainer
    if section.devices * section.nodes > 1 and not _joined():
        from lightning.fabric import Fabric

        for name in ("lightning.fabric", "lightning.pytorch"):
            logging.getLogger(name).setLevel(logging.WARNING)
        Fabric(accelerator=section.device, devices=section.devices, num_nodes=section.nodes).launch()
    return torch.distributed.get_rank() if _joined() else 0


def from_rank_zero(work: Callable[[], T]) -> T:
    """What ``work`` returns on rank 0, on all of them; an error that the user can mend is theirs, too."""
    if not _joined():
        return work()
    parcel: list[T | InputError] = []
    if torch.distributed.get_rank() == 0:
        try:
            parcel = [work()]
        except InputError as error:
            parcel = [error]
    else:
        parcel = [cast("T", None)]
    torch.distributed.broadcast_object_list(parcel, src=0)
    (found,) = parcel
    if isinstance(found, InputError):
        raise found
    return found


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
