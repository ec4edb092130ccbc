"""The processes of a run that trains on several devices: joined before the first of them looks at the data.

What is a number of the whole data set, statistics for one, is then computed once and received by the others: the work
is done once, and ranks on unlike machines cannot differ in a last digit that is no parameter and never averaged.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar, cast

import torch.distributed

from pimlip_zoo.config import RunConfig
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.lost import lost_processes
from pimlip_zoo.experiment.trainer import check_trainer

T = TypeVar("T")

_STARTED = ("MASTER_ADDR", "SLURM_PROCID", "LSB_DJOB_RANKFILE", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""One of these is set where torchrun, SLURM, LSF or MPI has started the process, or the user says who is the first."""
_GRACE = 20.0
"""s"""


def join_ranks(config: RunConfig) -> int:
    """Connect the processes that torchrun or SLURM started; without either, start them on this machine.

    Lightning's trainer finds them connected and leaves it at that. Does nothing the second time, or for one process.

    Returns:
        The rank of this process.

    Raises:
        InputError: for devices that are not there, or several machines that nothing has joined.
    """
    check_trainer(config)
    section = config.trainer
    if section.devices * section.nodes > 1 and not _joined():
        if section.nodes > 1 and not any(name in os.environ for name in _STARTED):
            raise InputError(
                f"nothing has started processes on {section.nodes} machines",
                key="trainer.nodes",
                hint="start the command with torchrun or srun",
            )
        from lightning.fabric import Fabric

        for name in ("lightning.fabric", "lightning.pytorch"):
            logging.getLogger(name).setLevel(logging.WARNING)
        Fabric(accelerator=section.device, devices=section.devices, num_nodes=section.nodes).launch()
        _speak_for_the_dead()
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
    with lost_processes(None):
        torch.distributed.broadcast_object_list(parcel, src=0)
    (found,) = parcel
    if isinstance(found, InputError):
        raise found
    return found


def _speak_for_the_dead() -> None:
    """Let the thread that watches the processes we started say which one is gone.

    Lightning's kills this process at once and without a word. Mostly this process notices by itself: in its next
    exchange with the lost one, which :func:`~pimlip_zoo.experiment.lost.lost_processes` turns into a line.
    """
    for thread in threading.enumerate():
        children = getattr(thread, "_child_processes", None)
        if thread.name == "child-process-observer" and children is not None:
            vars(thread)["_terminate_all"] = partial(end_for, children, _GRACE)


def end_for(children: Sequence[subprocess.Popen[Any]], grace: float) -> NoReturn:
    """Say which of the processes of a training is gone, and end all others and this one.

    Args:
        children: the processes that this one started, of ranks 1, 2, ...
        grace: seconds that this process gets to notice by itself.
    """
    time.sleep(grace)
    for rank, child in enumerate(children, start=1):
        if child.poll():
            what = f"ended with code {child.returncode}"
            if child.returncode < 0:
                what = f"was killed by {signal.Signals(-child.returncode).name}"
            sys.stderr.write(
                f"pimlip-zoo: the training cannot go on: its process {child.pid}, of rank {rank}, {what} "
                "(look at what it said last, and go on with --resume)\n"
            )
            sys.stderr.flush()
            break
    for child in children:
        child.kill()
    os._exit(1)  # the main thread waits for the lost process, and nothing wakes it


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
