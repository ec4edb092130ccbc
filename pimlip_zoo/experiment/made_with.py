"""Whether a training that is finished is the one that is asked for now: options, structures, and what it was tested on.

A resumed run is held to its beginning by :mod:`pimlip_zoo.experiment.record`, where some options may change on the way.
Of a result that is taken as it is, nothing may.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pimlip_zoo.config import load_config
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.frames import as_frames
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.record import CONFIG, check_data, data_record, dotted_options, is_in, shown
from pimlip_zoo.yaml_file import dotted, read_yaml

_NEUTRAL = (
    "data.train",  # under another name the structures have to be the same
    "data.valid",
    "data.test",
    "data.valid_batch_size",
    "data.num_workers",
    "data.cache_mb",
    "data.check",
    "data.check_references",
    "trainer.device",
    "trainer.devices",
    "trainer.nodes",
    "trainer.threads",
    "trainer.loggers",
    "trainer.tensorboard",
    "weak.labels.cache",
)
"""Options, and sections of them, of which a result does not depend."""
_ANEW = "name another --out, or remove this folder, and it is made anew"


def given_options(config_file: Path | None, options: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """What was given, by dotted key: the file's options and those that change them."""
    content = {} if config_file is None else read_yaml(config_file)
    return {**dotted(content or {}), **dict(options)}


def check_made_with(
    run: Path,
    given: Mapping[str, Any] | None,
    config_file: Path | None,
    options: Sequence[tuple[str, Any]],
    split: tuple[Sequence[Frame], Sequence[Frame]],
) -> None:
    """Refuse to take a finished run for another.

    Args:
        run: its folder.
        given: :func:`given_options` of then; None: of a version that kept none, so that what is not given any more is
            not seen.
        config_file: of now.
        options: (dotted key, value) of now.
        split: training and validation structures of now.

    Raises:
        InputError: naming what differs.
    """
    if not (run / CONFIG).exists():
        raise InputError(f"has a result and no {CONFIG}: what it is of is not known", file=run, hint=_ANEW)
    old = dict(dotted_options(load_config(run / CONFIG, complete=True)))
    config = load_config(config_file, options)
    new = dict(dotted_options(config))
    for key in {**given_options(config_file, options), **(given or {})}:
        # Of an option that is a table, such as energies by element, all of it is compared.
        place = key
        while place not in old and place not in new and "." in place:
            place = place.rpartition(".")[0]
        if old.get(place) != new.get(place) and not is_in(place, _NEUTRAL):
            raise _other(run, place, old.get(place), new.get(place))
    try:
        check_data(run, data_record(config, split))
    except InputError as error:
        raise error.at(hint=_ANEW) from error


def hashes_of(specs: Sequence[str]) -> dict[str, str]:
    """Of the structures of DATA specifications and their labels."""
    return {spec: as_frames(load_frames(spec)).fingerprint() for spec in specs}


def check_tests(
    run: Path, tested: Sequence[str], before: Mapping[str, str] | None, now: Mapping[str, str]
) -> None:
    """Refuse errors on other structures than those that are asked for.

    Args:
        run: the finished run's folder.
        tested: the specifications that it has errors on.
        before: hashes of then; None: of a version that kept none.
        now: hashes of what is asked for.

    Raises:
        InputError: naming what differs.
    """
    for spec, found in now.items():
        if spec not in tested:
            raise InputError(
                f"its errors are on {', '.join(tested)}, not on {spec}",
                file=run,
                key="--test",
                hint=f"pimlip-zoo eval {run} --data {spec}; or {_ANEW}",
            )
        if before is not None and before.get(spec, found) != found:
            raise InputError(
                f"its errors are on other structures of {spec}", file=run, key="--test", hint=_ANEW
            )


def _other(run: Path, key: str, old: Any, new: Any) -> InputError:
    return InputError(f"was made with {shown(old)}, now it is {shown(new)}", file=run, key=key, hint=_ANEW)
