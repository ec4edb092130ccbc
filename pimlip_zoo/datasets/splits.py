"""Splits of a set into training, validation and test frames, saved as files of indices.

A split file names the frames by number, with a hash of the numbers and one of the data: the same file gives the
same split on every machine. Data of another length are refused; the hash of the data is a record, not compared.
``PATH@FILE.json:train`` reads a part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.audit.survey import Survey
from pimlip_zoo.datasets.indices import whole_numbers
from pimlip_zoo.errors import InputError, did_you_mean, reason_of
from pimlip_zoo.files import read_text, write_text

NAMES = ("train", "valid", "test")
_FORMAT, _VERSION = "pimlip-zoo split", 1
_LONGEST = 1 << 30
"""Bytes of a file; one with 100 million indices has as many."""


@dataclass(frozen=True)
class Split:
    """Which frames of a set belong to which part."""

    data: str
    """The DATA specification that was split."""
    count: int
    """Frames of the set."""
    fingerprint: str
    """Hash of the geometries, in their order."""
    method: dict[str, Any]
    """How it was made."""
    parts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Sorted indices by the name of the part."""

    def digest(self) -> str:
        """SHA-256 of the parts."""
        content = json.dumps({name: part.tolist() for name, part in self.parts.items()}, sort_keys=True)
        return sha256(content.encode()).hexdigest()


def part_sizes(text: str, count: int) -> list[int]:
    """Sizes of the parts from shares or counts.

    >>> part_sizes("0.8,0.1,0.1", 50)
    [40, 5, 5]
    >>> part_sizes("30,10", 50)
    [30, 10]
    """
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"{text!r} are no sizes", key="sizes", hint="write 0.8,0.1,0.1 or 800,100,100"
        ) from error
    if not 1 <= len(values) <= len(NAMES) or min(values) <= 0:
        raise InputError(f"{text!r}: one to three positive sizes are needed", key="sizes")
    if sum(values) <= 1 + 1e-9:
        ends = np.rint(np.cumsum(values) * count).astype(int)
        return [int(size) for size in np.diff([0, *ends])]
    if any(value != int(value) for value in values) or sum(values) > count:
        raise InputError(f"{text!r} does not fit {count} frames", key="sizes")
    return [int(value) for value in values]


def make_split(
    survey: Survey,
    groups: Sequence[str] | None = None,
    *,
    method: str = "random",
    sizes: str = "0.8,0.1,0.1",
    seed: int = 0,
    gap: int = 0,
    blocks: int = 10,
) -> Split:
    """Split a set.

    Args:
        survey: of the set; its name is the DATA specification.
        groups: (M,) what each frame belongs to, for ``method="group"``.
        method: one of :data:`METHODS`.
        sizes: shares or counts of the parts train, valid, test.
        seed: of random choices.
        gap: frames left out between blocks of time that go to different parts.
        blocks: number of blocks of time.

    Raises:
        InputError: for an unknown method, sizes that do not fit, or a part that would be empty.
    """
    if method not in METHODS:
        raise InputError(f"no split is called {method!r}", key="method", hint=did_you_mean(method, METHODS))
    if method == "group" and groups is None:
        raise InputError("needs the key that tells groups apart", key="method", hint="--by config_type")
    if seed < 0:
        raise InputError(f"{seed} is not possible", key="seed", hint="at least 0")
    wanted = part_sizes(sizes, len(survey))
    request = _Request(survey, groups, wanted, np.random.default_rng(seed), gap, blocks)
    parts = METHODS[method](request)
    for name, part in zip(NAMES, parts, strict=False):
        if not len(part):
            raise InputError(f"the part {name} would be empty", file=survey.name, key="sizes")
    return Split(
        data=survey.name,
        count=len(survey),
        fingerprint=sha256(survey.facts["digest"].astype("<u8").tobytes()).hexdigest(),
        method={"name": method, "sizes": sizes, "seed": seed, "gap": gap, "blocks": blocks},
        parts={name: np.sort(part) for name, part in zip(NAMES, parts, strict=False)},
    )


def write_split(split: Split, path: Path) -> None:
    """Write the file."""
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "data": split.data,
        "count": split.count,
        "fingerprint": split.fingerprint,
        "method": split.method,
        "hash": split.digest(),
        "parts": {name: part.tolist() for name, part in split.parts.items()},
    }
    write_text(path, json.dumps(content))


def read_split(path: Path) -> Split:
    """Read a split file.

    Raises:
        InputError: for a file that is no split, or one that was changed.
    """
    try:
        content = json.loads(read_text(path, most=_LONGEST))
        if content["format"] != _FORMAT or content["version"] != _VERSION:
            raise InputError("is no split of this version", file=path)  # noqa: TRY301
        count = int(whole_numbers(content["count"], "count", least=0, file=path, key="count"))
        parts = {
            str(name): whole_numbers(part, "index", least=0, count=count, file=path, key=name)
            for name, part in content["parts"].items()
        }
        split = Split(content["data"], count, content["fingerprint"], content["method"], parts)
        same = split.digest() == content["hash"]
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=path) from error
    except InputError:
        raise
    except Exception as error:  # any field may hold anything
        raise InputError(f"is no split file: {reason_of(error)}", file=path) from error
    if not same:
        raise InputError("its hash does not fit its indices: it was changed", file=path)
    for name, part in parts.items():
        if part.ndim != 1 or len(np.unique(part)) < len(part):
            raise InputError("is no list of different indices", file=path, key=name)
    return split


@dataclass(frozen=True)
class _Request:
    survey: Survey
    groups: Sequence[str] | None
    sizes: list[int]
    rng: np.random.Generator
    gap: int
    blocks: int


def _random(request: _Request) -> list[NDArray[np.int64]]:
    """Any frame anywhere."""
    order = request.rng.permutation(len(request.survey))
    return _cut(order, request.sizes)


def _time(request: _Request) -> list[NDArray[np.int64]]:
    """Blocks of consecutive frames, with a gap on each side where the neighbour goes elsewhere."""
    count = len(request.survey)
    if not len(request.sizes) <= request.blocks <= count:
        raise InputError(f"{request.blocks} blocks of {count} frames are not possible", key="blocks")
    bounds = np.linspace(0, count, request.blocks + 1).astype(int)
    total = sum(request.sizes)
    # Blocks to parts in proportion, at least one each, in random order.
    shares = np.maximum(1, np.rint(np.array(request.sizes) / total * request.blocks).astype(int))
    shares[0] += request.blocks - shares.sum()
    if shares[0] < 1:
        raise InputError("more blocks are needed for these sizes", key="blocks")
    owner = request.rng.permutation(np.repeat(np.arange(len(shares)), shares))
    parts: list[list[int]] = [[] for _ in shares]
    for block, part in enumerate(owner):
        start, stop = bounds[block], bounds[block + 1]
        if block and owner[block - 1] != part:
            start += request.gap
        parts[part] += range(start, max(stop, start))
    return [np.array(part, dtype=np.int64) for part in parts]


def _composition(request: _Request) -> list[NDArray[np.int64]]:
    """All frames of a composition in one part: the test set has compositions that were never seen."""
    return _by_group(request.survey.facts["composition"], request)


def _group(request: _Request) -> list[NDArray[np.int64]]:
    """All frames of a group (a source, a molecule, a scaffold) in one part."""
    assert request.groups is not None
    return _by_group(np.unique(np.asarray(request.groups), return_inverse=True)[1].reshape(-1), request)


def _farthest(request: _Request) -> list[NDArray[np.int64]]:
    """Training frames chosen each farthest from those before, by fingerprint; the rest is random."""
    prints = np.asarray(request.survey.facts["print"], dtype=np.float64)
    scale = prints.std(axis=0)
    prints = prints / np.where(scale > 1e-9, scale, 1.0)
    distance = np.linalg.norm(prints - prints.mean(axis=0), axis=1)
    chosen = np.empty(request.sizes[0], dtype=np.int64)
    chosen[0] = int(np.argmin(np.round(distance, 6)))
    distance = np.linalg.norm(prints - prints[chosen[0]], axis=1)
    for k in range(1, len(chosen)):
        # Rounded, so that the last bit of another machine does not choose another frame.
        chosen[k] = int(np.argmax(np.round(distance, 6)))
        distance = np.minimum(distance, np.linalg.norm(prints - prints[chosen[k]], axis=1))
        distance[chosen[: k + 1]] = -1.0
    rest = np.setdiff1d(np.arange(len(prints)), chosen)
    return [chosen, *_cut(request.rng.permutation(rest), request.sizes[1:])]


METHODS: Mapping[str, Callable[[_Request], list[NDArray[np.int64]]]] = {
    "random": _random,
    "time": _time,
    "composition": _composition,
    "group": _group,
    "farthest": _farthest,
}
"""How a set can be split."""


def _by_group(labels: NDArray[np.int64], request: _Request) -> list[NDArray[np.int64]]:
    """Groups in random order, each to the part that lacks most of its size."""
    missing = np.array(request.sizes, dtype=np.float64)
    wanted = missing.copy()
    parts: list[list[int]] = [[] for _ in request.sizes]
    members = [np.flatnonzero(labels == group) for group in np.unique(labels)]
    if len(members) < len(parts):
        raise InputError(
            f"there are only {len(members)} groups for {len(parts)} parts", file=request.survey.name
        )
    for index in request.rng.permutation(len(members)):
        part = int(np.argmax(missing / wanted))
        parts[part] += members[index].tolist()
        missing[part] -= len(members[index])
    return [np.array(part, dtype=np.int64) for part in parts]


def _cut(order: NDArray[np.int64], sizes: list[int]) -> list[NDArray[np.int64]]:
    return [np.asarray(part) for part in np.split(order, np.cumsum(sizes))[: len(sizes)]]
