"""Model files of other packages as records, without those packages and without running what the files contain."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.archive import TorchArchive
from pimlip_zoo.foundation.arrays import Storage, make_storage
from pimlip_zoo.foundation.unpickle import Record, unpickle

_MOST_MODULES, _LONGEST_NAME = 10_000, 1_000
_COUNTS = re.compile(r"(.*\.)?(p|atomic_numbers|num_interactions|lookup_table|weights_\w+_zeroed)")
"""Buffers that hold whole numbers or truth values."""
_OTHER_LAYOUT = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(MemoryError, RuntimeError, TypeError, ValueError),
)
"""What a file of another layout, and a model made of it, may raise."""


def read_objects(path: str | Path) -> object:
    """What ``torch.save`` stored in a file: plain data, tensors, and a :class:`Record` for everything else.

    Raises:
        InputError: when there is no such file or it is something else.
    """
    return archive_objects(TorchArchive(path))


def archive_objects(archive: TorchArchive, storages: str = "data/{}") -> object:
    """What the pickle of an archive holds.

    Args:
        archive: the opened file.
        storages: name of the entry that holds the numbers of a tensor, with ``{}`` for what the pickle calls it.

    Raises:
        InputError: when it cannot be read.
    """

    def storage(kind: str, key: str, count: int) -> Storage:
        return make_storage(kind, archive.read(storages.format(key)), count)

    try:
        return unpickle(bytes(archive.read(archive.pickle)), storage)
    except InputError as error:
        raise error.at(file=archive.path, hint="is it a model?") from error


@contextmanager
def laid_out_as(package: str, file: Path) -> Iterator[None]:
    """A model is made of a file's content in this block, which trips over a file of another layout.

    Args:
        package: whose layout is expected, and its version.
        file: the file.

    Raises:
        InputError: in place of what such a file makes the code raise; one that names no file gets this one.
    """
    try:
        yield
    except InputError as error:
        raise error.at(file=file) from error
    except _OTHER_LAYOUT as error:
        reason = (str(error).splitlines() or [""])[0][:120]
        raise InputError(
            f"is not laid out as {package} does it ({type(error).__name__}: {reason})", file=file
        ) from error


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are no real numbers.

    Raises:
        InputError: naming the first one.
    """
    for name, value in state.items():
        if not value.is_floating_point() and (value.is_complex() or not _COUNTS.fullmatch(name)):
            kind = str(value.dtype).removeprefix("torch.")
            raise InputError(f"has numbers of the kind {kind} in {name}, where real ones belong")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(f"has numbers that are not finite in {name}")


def tensors_of(state: Mapping[object, object]) -> dict[str, Tensor]:
    """Those of a state dict, by their names; what modules keep beside them is passed over.

    Raises:
        InputError: naming a tensor that is stored in a way that is not read; passed over, it would be missed.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Record):
            raise InputError(f"has a {value.name[:60]} as {str(name)[:120]}, where a tensor belongs")
        if isinstance(value, Tensor):
            tensors[str(name)] = value
    return tensors


def state_of(record: Record) -> dict[str, Tensor]:
    """All parameters and buffers under a recorded module, by their names in its state dict.

    Raises:
        InputError: when modules contain each other, or a tensor is stored in a way that is not read.
    """
    state: dict[str, Tensor] = {}
    waiting, seen = [("", record)], 0
    while waiting:
        name, module = waiting.pop()
        seen += 1
        if seen > _MOST_MODULES or len(name) > _LONGEST_NAME:
            raise InputError("has modules that contain each other")
        for place in ("_parameters", "_buffers"):
            values = module.attributes.get(place)
            here = tensors_of(values) if isinstance(values, dict) else {}
            state.update((f"{name}{key}", value.detach()) for key, value in here.items())
        waiting += [
            (f"{name}{key}.", child) for key, child in module.children.items() if isinstance(child, Record)
        ]
    return state
