"""DATA specifications: what ``--data`` takes, taken apart.

``PATH[@SLICE][?key=value&...]``, several joined by commas; ``builtin:NAME[/SPLIT]`` for the built-in sets. A slice
is ``START:STOP:STEP``, an index, or ``FILE.json:PART`` for a part of a split file.
Options may also stand in a YAML file beside the data, ``PATH.yaml``; those in the specification win.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pimlip_zoo.errors import InputError, did_you_mean, no_such_file

_SLICE = re.compile(r"(-?\d+)?(:(-?\d+)?(:(-?\d+)?)?)?")
_OPTIONS = re.compile(r"\?(?=[a-z_]+=)")
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Units and keys that the user names for a source; None leaves it to the format."""

    energy: str | None = None
    """Unit of energy."""
    length: str | None = None
    """Unit of positions and cells."""
    forces: str | None = None
    """Unit of forces; by default the unit of energy over the unit of length."""
    stress: str | None = None
    """Unit of stress, with ASE's sign: positive where the cell wants to shrink."""
    energy_key: str | None = None
    forces_key: str | None = None
    gradient_key: str | None = None
    """Holds dE/dr: the forces with the opposite sign."""
    stress_key: str | None = None
    virial_key: str | None = None
    """Holds -dE/dε in the unit of energy."""
    weight_key: str | None = None
    nan: str = "error"
    """``missing`` takes NaN labels as not labelled."""
    species: str | None = None
    """Symbols of atom types 0, 1, ... joined by ``+``, for formats that number their types."""
    format: str | None = None
    """Name of the format where the file name does not tell."""

    def __post_init__(self) -> None:
        if self.nan not in ("error", "missing"):
            raise InputError(f"{self.nan!r} is not possible", key="nan", hint="error or missing")


@dataclass(frozen=True)
class DataSource:
    """One part of a specification."""

    path: str
    """A path, or ``builtin:NAME/SPLIT``."""
    frames: slice = field(default_factory=lambda: slice(None))
    """Which frames of it."""
    options: ReadOptions = field(default_factory=ReadOptions)
    indices: frozenset[int] | None = None
    """Which of these, where a split file says so; None for all."""
    whole: int | None = None
    """How many frames were split, where a split file says so."""

    @property
    def is_builtin(self) -> bool:
        """Whether it comes with the package."""
        return self.path.startswith("builtin:")


def parse_spec(spec: str) -> list[DataSource]:
    """Take a DATA specification apart.

    Raises:
        InputError: for an empty part, an unknown option, a malformed slice or a file that is not there.

    >>> [source.path for source in parse_spec("builtin:ethanol-gfn2/train@:100")]
    ['builtin:ethanol-gfn2/train']
    """
    if spec and Path(spec).exists():
        return [_with_sidecar(DataSource(spec))]
    sources: list[DataSource] = []
    for part in spec.split(","):
        if not part.strip():
            raise InputError("a name is missing", key=f"data {spec!r}", hint="write A,B without empty parts")
        sources += _parse_part(part.strip())
    return sources


def files_of(spec: str | None) -> list[Path]:
    """The files and folders that a specification names, or none does.

    Raises:
        InputError: as :func:`parse_spec`.
    """
    return [Path(source.path) for source in parse_spec(spec) if not source.is_builtin] if spec else []


def _parse_part(part: str) -> list[DataSource]:
    if Path(part).exists():
        return [_with_sidecar(DataSource(part))]
    path, chosen, given = part, "", {}
    match = _OPTIONS.search(part)
    if match:
        path, query = part[: match.start()], part[match.end() :]
        query, _, chosen = query.partition("@")
        given = _parse_options(query, part)
    if not Path(path).exists() and "@" in path:
        path, _, chosen = path.rpartition("@")
        if not chosen:
            raise InputError("a slice is missing behind @", key=f"data {part!r}")
    frames, indices, whole = _parse_frames(chosen, part)
    if path.startswith("builtin:"):
        return [DataSource(path, frames, ReadOptions(**given), indices, whole)]
    options = ReadOptions(**given)
    return [
        _with_sidecar(DataSource(found, frames, options, indices, whole), given) for found in _expand(path)
    ]


def _parse_frames(text: str, part: str) -> tuple[slice, frozenset[int] | None, int | None]:
    """What stands behind @: a slice, or a part of a split file."""
    if text.rpartition(":")[0].endswith(".json"):
        return _parse_split(text, part)
    return (_parse_slice(text, part) if text else slice(None)), None, None


def _expand(path: str) -> list[str]:
    import glob

    if Path(path).exists():
        return [path]
    found = sorted(glob.glob(path)) if _GLOB.search(path) else []  # noqa: PTH207 - str in, str out
    if not found:
        raise no_such_file(path)
    return found


def _parse_slice(text: str, part: str) -> slice:
    match = _SLICE.fullmatch(text)
    if not text or match is None:
        raise InputError(
            f"{text!r} is no slice", key=f"data {part!r}", hint="write @START:STOP:STEP, or @INDEX"
        )
    start, rest, stop, _, step = match.groups()
    if rest is None:
        index = int(start)
        return slice(index, index + 1 or None)
    if step is not None and int(step) <= 0:
        raise InputError("the step must be positive", key=f"data {part!r}")
    return slice(*(None if value is None else int(value) for value in (start, stop, step)))


def _parse_split(text: str, part: str) -> tuple[slice, frozenset[int], int]:
    """A part of a split file, as the window that holds it, its indices, and how many frames were split."""
    from pimlip_zoo.datasets.splits import read_split

    file, _, name = text.rpartition(":")
    split = read_split(Path(file))
    if name not in split.parts:
        raise InputError(
            f"the split has no part {name!r}",
            file=file,
            key=f"data {part!r}",
            hint=did_you_mean(name, split.parts),
        )
    if not len(split.parts[name]):
        raise InputError(f"the part {name} is empty", file=file, key=f"data {part!r}")
    indices = frozenset(split.parts[name].tolist())
    return slice(min(indices), max(indices) + 1), indices, split.count


def _parse_options(query: str, part: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for item in query.split("&"):
        name, equals, value = item.partition("=")
        if not equals or not value:
            raise InputError(f"{item!r} is not key=value", key=f"data {part!r}")
        given[name] = value
    _check_names(given, f"data {part!r}")
    return given


def _check_names(given: dict[str, Any], place: str) -> None:
    known = [option.name for option in fields(ReadOptions)]
    for name in given:
        if name not in known:
            raise InputError(f"unknown option {name!r}", key=place, hint=did_you_mean(name, known))


def _with_sidecar(source: DataSource, given: dict[str, Any] | None = None) -> DataSource:
    sidecar = Path(source.path.rstrip("/") + ".yaml")
    if not sidecar.exists():
        return source
    from pimlip_zoo.yaml_file import read_yaml

    options = read_yaml(sidecar) or {}
    if not isinstance(options, dict) or not all(
        isinstance(word, str) for option in options.items() for word in option
    ):
        raise InputError("is not a list of `option: name` lines", file=sidecar)
    _check_names(options, str(sidecar))
    return replace(source, options=ReadOptions(**{**options, **(given or {})}))
