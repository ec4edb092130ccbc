"""The checkpoint format: everything that makes a potential, readable with ``weights_only=True``."""

from __future__ import annotations

import dataclasses
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from filecmp import cmp
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels import plain_torch
from pimlip_zoo.errors import InputError, reading
from pimlip_zoo.files import check_archive, regular_file
from pimlip_zoo.losses.base import LEVEL_NAME
from pimlip_zoo.models.base import AtomicEnergyModel
from pimlip_zoo.models.extent import check_extent
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import available_models, get_model
from pimlip_zoo.training.shipped import is_shipped, shipped_file

FORMAT_VERSION = 1
KEY = "pimlip_zoo"
"""Where a checkpoint keeps the description of its potential."""

LEVELS = "levels"
"""Where a checkpoint keeps what further levels of theory have of their own: weights by level and name."""

REFERENCE = "reference"
"""The level of the reference labels, which is taken where none is named."""

# From version k to k + 1: takes and returns a description; see tests/training/test_checkpoint.py.
_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_OURS = "potential."
_MOST_EXPANDED = 4
"""How often the same bytes of a file may be weights: tied ones are."""
_MOST_VALUES = 100_000
"""In the description of a potential, however it came about."""
_FIELDS: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "config": (dict,),
    "species": (list, tuple),
    "dtype": (str,),
    "repulsion": (str, type(None)),
    "trainable_scale": (bool,),
}
_SUMMARY: dict[str, tuple[type, ...]] = {
    "config": (dict,),
    "energy_references": (str,),
    "baseline": (dict, type(None)),
    "labels": (list,),
    "coverage": (dict,),
    "versions": (dict,),
    "structures": (dict,),
}
"""What commands look at of what a training leaves there."""


def describe(potential: Potential) -> dict[str, Any]:
    """A potential without its weights, in plain numbers and strings."""
    return {
        "format_version": FORMAT_VERSION,
        "model": _registered_name(potential.model),
        "config": plain(dataclasses.asdict(potential.model.config)),
        "species": list(potential.species),
        "dtype": str(potential.model.dtype).removeprefix("torch."),
        "repulsion": type(potential.repulsion).__name__.lower() if potential.repulsion is not None else None,
        "trainable_scale": bool(potential.scale.requires_grad),
    }


def save_potential(potential: Potential, path: Path, **more: Any) -> None:
    """Write a checkpoint of the weights alone, which :func:`load_potential` reads; ``more`` is kept beside them."""
    weights = {f"potential.{name}": value for name, value in potential.state_dict().items()}
    torch.save({KEY: {**describe(potential), **more}, "state_dict": weights}, path)


def build_potential(description: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None) -> Potential:
    """The potential that a description stands for, with fresh weights.

    Args:
        description: as :func:`describe` makes it.
        weights: what the file holds with it; a model that needs far more is not built. None: it is of any size.

    Raises:
        InputError: for a version this package cannot read, an architecture that is not installed, or a model that is
            larger than its file.
    """
    description = _migrate(dict(description))
    if description["dtype"] not in _DTYPES:
        raise InputError(f"{description['dtype']!r} is no precision", key="dtype", hint="float32 or float64")
    info = get_model(description["model"])
    config = info.configure(**_tuples(description["config"]))
    species = tuple(description["species"])
    if weights is not None and isinstance(info.model, type) and issubclass(info.model, AtomicEnergyModel):
        ours = (value for name, value in weights.items() if name.startswith(_OURS))
        check_extent(info.model, config, species, ours)
    repulsion = None
    if description["repulsion"] is not None:
        if description["repulsion"] != "zbl":
            raise InputError(
                f"no repulsion is called {description['repulsion']!r}", key="repulsion", hint="zbl"
            )
        from pimlip_zoo.nn.zbl import ZBL

        repulsion = ZBL(species)
    model = info.model(config, species).to(_DTYPES[description["dtype"]])
    return Potential(model, repulsion=repulsion, trainable_scale=description["trainable_scale"])


def checkpoint_path(run: str | Path, which: str = "best") -> Path:
    """The checkpoint file of a run: a file is taken as it is, a folder's best, or else its last.

    ``builtin:NAME`` is a potential that comes with the package.

    Raises:
        InputError: when there is none.
    """
    if is_shipped(run):
        return shipped_file(str(run))
    run = Path(run)
    if run.is_file():
        return run
    if not run.exists():
        raise InputError("no such run", file=run, hint="give a run folder or a .ckpt file")
    for name in dict.fromkeys((which, "best", "last")):
        path = run / "checkpoints" / f"{name}.ckpt"
        if path.exists():
            return path
    raise InputError("the run folder has no checkpoints/best.ckpt or last.ckpt", file=run)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint file; no code is run.

    Raises:
        InputError: when the file cannot be read, has changed since it was written, is not a checkpoint of this package,
            lacks a field, or has weights that are NaN or infinite.
    """
    check_archive(regular_file(path), "not a readable checkpoint")
    if _is_exported(Path(path)):
        raise InputError(
            "is an exported file, and no checkpoint",
            file=path,
            hint="give the run's folder, or its .ckpt file",
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"not a readable checkpoint: {reason[:120]}",
            file=path,
            hint="is it truncated?",
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get(KEY), dict):
        raise InputError("not a checkpoint of pimlip-zoo", file=path)
    with reading(path):
        _check_extent(content[KEY])
        content[KEY] = _migrate(content[KEY])
        _check_fields(content[KEY], _FIELDS, KEY)
        _check_fields(content[KEY].get("summary") or {}, _SUMMARY, f"{KEY}.summary", optional=True)
        _check_weights(content.get("state_dict"), Path(path).stat().st_size)
        _check_levels(content.get(LEVELS, {}), Path(path).stat().st_size)
    return content


def check_members(runs: Sequence[str | Path]) -> None:
    """Refuse a committee in which a run stands twice, or a copy of it: these agree, whatever they are asked.

    Args:
        runs: run folders, checkpoints or exported files.

    Raises:
        InputError: naming the second one; as of :func:`checkpoint_path`.
    """
    files = [checkpoint_path(run) for run in runs]
    for k, file in enumerate(files):
        for other, name in zip(files[:k], runs, strict=False):
            if file.samefile(other) or cmp(file, other, shallow=False):
                raise equal_members(runs[k], name)


def check_weights_differ(members: Mapping[str | Path, Potential]) -> None:
    """Refuse a committee of equal potentials, whatever files they are from.

    Args:
        members: by what they were loaded from.

    Raises:
        InputError: naming the second of two whose weights are the same, but for rounding to single precision.
    """
    names = list(members)
    for k, name in enumerate(names):
        for other in names[:k]:
            if _same_weights(members[name].state_dict(), members[other].state_dict()):
                raise equal_members(name, other)


def _same_weights(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        value.shape == theirs[name].shape
        and torch.allclose(value.cpu().double(), theirs[name].cpu().double(), rtol=1e-6, atol=0.0)
        for name, value in ours.items()
    )


def equal_members(run: str | Path, other: str | Path) -> InputError:
    """What is wrong with a committee of two that have the same weights."""
    return InputError(
        f"has the same weights as {other}, so that the two have no spread",
        file=run,
        hint="give runs of different seeds",
    )


def _is_exported(path: Path) -> bool:
    """Whether it is an archive with texts beside the model, which exported files have."""
    with suppress(OSError, ValueError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return any("/extra/" in name for name in archive.namelist())
    return False


def baseline_of(run: str | Path) -> str | None:
    """The calculator that a run's potential is a difference to, such as gfn2; None: it stands alone."""
    return _baseline(read_checkpoint(checkpoint_path(run)))


def _baseline(content: Mapping[str, Any]) -> str | None:
    baseline = (content[KEY].get("summary") or {}).get("baseline")
    return None if baseline is None else str(baseline["calculator"])


@plain_torch()
def load_potential(
    run: str | Path,
    *,
    dtype: torch.dtype | None = None,
    which: str = "best",
    difference: bool = False,
    level: str | None = None,
) -> Potential:
    """The trained potential of a run folder or checkpoint file, ready for prediction.

    The averaged (EMA) weights are the ones that were validated, and the ones that are loaded.

    Args:
        run: run folder or checkpoint.
        dtype: precision of the model; as trained if not given.
        which: best or last.
        difference: accept a potential that is only a difference to a cheap calculator.
        level: of a run on several levels of theory; None: that of the reference labels.

    Raises:
        InputError: when there is nothing to load, it does not fit, it is a difference unasked for, or
            there is no such level.
    """
    path = checkpoint_path(run, which)
    content = read_checkpoint(path)
    baseline = _baseline(content)
    if baseline is not None and not difference:
        raise InputError(
            f"the run is a correction to {baseline}, no potential by itself",
            file=path,
            hint="use it through pimlip_zoo.calculator, or train a standalone one with --weak distill",
        )
    with reading(path):
        potential = build_potential(content[KEY], content["state_dict"])
    weights = {
        name.removeprefix(_OURS): value
        for name, value in content["state_dict"].items()
        if name.startswith(_OURS)
    }
    weights |= _of_level(content, level, path, potential)
    _check_kinds(weights, potential, path)
    try:
        potential.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"the weights do not fit: {str(error).splitlines()[-1].strip()}", file=path
        ) from error
    if dtype is not None:
        potential.set_dtype(dtype)
    return potential.eval().requires_grad_(False)


def _of_level(
    content: Mapping[str, Any], level: str | None, path: Path, potential: Potential
) -> dict[str, Tensor]:
    """What a level has of its own; nothing of that of the reference labels."""
    if level is None or level == REFERENCE:
        return {}
    levels: Mapping[str, dict[str, Tensor]] = content.get(LEVELS, {})
    if not levels:
        raise InputError("has a single level of theory", file=path, key="level", hint="leave out the level")
    if level not in levels:
        raise InputError(
            f"has no level {level!r}",
            file=path,
            key="level",
            hint=f"it has {', '.join((REFERENCE, *levels))}",
        )
    readouts = tuple(f"model.{name}." for name in getattr(potential.model, "readout_modules", ()))
    names = [name for name, _ in potential.named_parameters() if readouts and name.startswith(readouts)]
    for name in (*names, "energy_references"):
        if name not in levels[level]:  # that of the reference labels would stand in for it
            raise InputError("the level lacks it", file=path, key=f"{LEVELS}.{level}.{name}")
    return levels[level]


def _check_kinds(weights: Mapping[str, Tensor], potential: Potential, path: Path) -> None:
    """Refuse numbers of another kind or precision, which would be rounded, cut or infinite without a word."""
    for name, own in potential.state_dict().items():
        found = weights.get(name)
        if found is not None and found.dtype != own.dtype:
            raise InputError(f"is {found.dtype}, and {own.dtype} here", file=path, key=name)


def _check_fields(
    found: Any, expected: Mapping[str, tuple[type, ...]], place: str, *, optional: bool = False
) -> None:
    """Refuse a table that lacks a field, or has one of another type."""
    if not isinstance(found, dict):
        raise InputError("the checkpoint has no table there", key=place)
    for name, kinds in expected.items():
        if name not in found:
            if optional:
                continue
            raise InputError("the checkpoint lacks it", key=f"{place}.{name}")
        if not isinstance(found[name], kinds):
            raise InputError(f"the checkpoint has {found[name]!r}"[:200], key=f"{place}.{name}")
    if "species" in expected and not all(isinstance(symbol, str) for symbol in found["species"]):
        raise InputError("the checkpoint has species that are no symbols", key=f"{place}.species")
    if found.get("baseline") is not None and not isinstance(found["baseline"].get("calculator"), str):
        raise InputError("the checkpoint does not name it", key=f"{place}.baseline.calculator")


def _check_extent(description: Any) -> None:
    """Refuse what is small in the file and has no end when it is walked through: lists of the same lists."""
    waiting, room = [description], _MOST_VALUES
    while waiting:
        value = waiting.pop()
        children = [*value, *value.values()] if isinstance(value, dict) else value
        if not isinstance(children, list | tuple | set):
            continue
        room -= len(children)
        if room < 0:
            raise InputError(f"its description of the model has more than {_MOST_VALUES} values", key=KEY)
        waiting.extend(children)


def _check_weights(weights: Any, size: int) -> None:
    """Refuse weights that are no tensors of finite numbers, or more of them than a file of this size holds.

    A view of one number may be of any shape, and many tensors may be views of the same numbers.
    """
    if not isinstance(weights, dict):
        raise InputError("the checkpoint lacks them", key="state_dict")
    room = _MOST_EXPANDED * size
    for name, value in weights.items():
        # Losses keep what they go on with, such as the state of a schedule, in plain values beside the weights.
        plain = isinstance(name, str) and not name.startswith(_OURS) and name.endswith("._extra_state")
        if not plain and not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            raise InputError("the checkpoint has what is no tensor", key=f"state_dict.{name}"[:100])
        if not plain:
            room -= value.numel() * value.element_size()
            if room < 0:
                raise InputError(f"the file of {size} bytes claims more numbers than it holds", key=name)
        if name.startswith(_OURS) and not bool(torch.isfinite(value).all()):
            raise InputError(
                "the weights are NaN or infinite",
                key=name,
                hint="the training diverged, or the file was changed: take another checkpoint",
            )


def _check_levels(levels: Any, size: int) -> None:
    """Refuse levels of theory that are not tables of finite weights."""
    if not isinstance(levels, dict) or not all(isinstance(name, str) for name in levels):
        raise InputError("the checkpoint has no table there", key=LEVELS)
    for level, weights in levels.items():
        if not re.fullmatch(LEVEL_NAME, level) or level == REFERENCE:  # names of files are made of it
            raise InputError(f"{level[:40]!r} is no name for a level", key=LEVELS)
        if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
            raise InputError("the checkpoint has no table there", key=f"{LEVELS}.{level}"[:100])
        _check_weights({_OURS + name: value for name, value in weights.items()}, size)


def _registered_name(model: AtomicEnergyModel) -> str:
    for name, info in available_models().items():
        if info.model is type(model):
            return name
    raise InputError(
        f"{type(model).__name__} is not registered", hint="decorate it with @register_model to save it"
    )


def _migrate(description: dict[str, Any]) -> dict[str, Any]:
    version = description.get("format_version")
    first = min(_MIGRATIONS, default=FORMAT_VERSION)
    if not isinstance(version, int) or isinstance(version, bool) or not first <= version <= FORMAT_VERSION:
        raise InputError(
            f"the checkpoint has format version {version}, this package reads up to {FORMAT_VERSION}",
            hint="update pimlip-zoo",
        )
    while version < FORMAT_VERSION:
        description = _MIGRATIONS[version](description)
        version += 1
    return description


def plain(value: Any) -> Any:
    """With lists in the place of tuples, as files have them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _tuples(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sequences of a config are tuples: frozen dataclasses stay hashable."""

    def convert(value: Any) -> Any:
        return tuple(convert(item) for item in value) if isinstance(value, list | tuple) else value

    return {key: convert(value) for key, value in config.items()}
