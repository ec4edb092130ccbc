"""What a run folder keeps of a run's beginning, and how a resumed run is held to it: configuration and data."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pimlip_zoo.config import RunConfig, load_config, restored, save_config
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.frames import Frames, as_frames
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.data import load_split, reference_frames, structures_of
from pimlip_zoo.experiment.ranks import from_rank_zero
from pimlip_zoo.experiment.seen import recorded_hashes, seen_of
from pimlip_zoo.files import read_text, write_text
from pimlip_zoo.outputs import check_unused
from pimlip_zoo.training.checkpoint import KEY, read_checkpoint
from pimlip_zoo.yaml_file import read_yaml

log = logging.getLogger("pimlip_zoo")

CONFIG, DATA = "config.yaml", "data.json"
_WRITTEN = (CONFIG, DATA, "metrics.csv", "log.txt", "report.html", "parity.npz", "test.json")
"""What a run writes into its folder beside checkpoints."""
LEVEL = "level "
"""Of the name of a part with labels of another level."""

DataRecord = dict[str, dict[str, Any]]
"""By part (training, validation, unlabelled, replay, references): the DATA specification, how many structures, and
their hash; of the structures of the first two, hashes of their geometries, too."""

MAY_CHANGE = (
    "data.train",  # under another name the structures have to be the same
    "data.valid",
    "data.test",
    "data.batch_size",
    "data.max_atoms",
    "data.max_edges",
    "data.valid_batch_size",
    "data.num_workers",
    "data.neighbours",
    "data.cache_mb",
    "data.check",
    "data.check_references",
    "loss",
    "optimizer.lr",
    "schedule",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.valid_every",
    "trainer.gradient_clip",
    "trainer.patience",
    "trainer.device",
    "trainer.devices",
    "trainer.nodes",
    "trainer.threads",
    "trainer.products",
    "trainer.loggers",
    "trainer.tensorboard",
    "weak.labels.cache",
)
"""Options, and sections of them, that take effect when a run is resumed; all others are what the run began with."""


def data_record(config: RunConfig, split: tuple[Sequence[Frame], Sequence[Frame]]) -> DataRecord:
    """What is compared when the run is resumed.

    Args:
        config: of the run.
        split: training and validation structures, with all labels that they have.
    """
    train, valid = split
    parts: dict[str, tuple[str, Sequence[Frame]]] = {
        "training": (config.data.train, train),
        "validation": (config.data.valid or config.data.train, valid),
    }
    if config.weak.unlabelled is not None:
        parts["unlabelled"] = (config.weak.unlabelled, load_frames(config.weak.unlabelled))
    if isinstance(config.finetune.replay, str):  # what the base said of each is in the checkpoint, by number
        spec = config.finetune.replay
        parts["replay"] = (spec, as_frames(load_frames(spec)).with_labels(()))
    if references := reference_frames(config.data):
        parts["references"] = (str(config.data.energy_references), references)
    if config.weak.labels is not None:
        for name, spec in config.weak.labels.recipe().files().items():
            parts[f"{LEVEL}{name}"] = (spec, structures_of(spec, config.data))
    record: DataRecord = {
        name: {"data": spec, "structures": len(frames), "sha256": as_frames(frames).fingerprint()}
        for name, (spec, frames) in parts.items()
    }
    for name in ("training", "validation"):
        record[name]["geometries"] = recorded_hashes(parts[name][1])
    return record


def check_data(folder: Path, record: DataRecord) -> None:
    """Refuse to go on with other structures than the run began with.

    Raises:
        InputError: naming what differs.
    """
    keys = {"training": "data.train", "validation": "data.valid", "unlabelled": "weak.unlabelled"}
    keys |= {"replay": "finetune.replay", "references": "data.energy_references"}
    keys |= {part: "weak.levels" for part in record if part.startswith(LEVEL)}
    kept = from_rank_zero(lambda: _kept(folder / DATA))
    last = folder / "checkpoints" / "last.ckpt"
    written = from_rank_zero(lambda: _written_with(last))
    if kept is None and not written:
        log.warning("%s has no %s: whether its data are still the same is not known", folder, DATA)
    for part, key in keys.items():
        new = record.get(part)
        if new is None:
            continue  # what has no structures at all is an option that was compared before
        old, seen = (kept or {}).get(part), written.get(part)
        if old is None and seen is None and (kept or written):  # begun by a version that did not note them
            log.warning("whether the %s structures of %s are still the same is not known", part, folder)
        if old is not None and old["sha256"] != new["sha256"]:
            raise InputError(
                f"the {part} structures are not those of the run: {_described(old)} then, {_described(new)} now",
                file=folder,
                key=key,
                hint="put the old ones back, or start from the run with --from",
            )
        if seen is not None and seen != new["sha256"]:
            raise InputError(
                f"was written by a run with other {part} structures (hash {str(seen)[:8]}) than {_described(new)}",
                file=last,
                key=key,
                hint="put the run's own checkpoint or its data back, or start from the run with --from",
            )


def split_of_run(folder: Path) -> tuple[Frames, Frames]:
    """Training and validation structures of a run, read again from where they were, and no others.

    Args:
        folder: of the run.

    Raises:
        InputError: when they cannot be read, or are not those that the run was trained on.
    """
    known = "give the checkpoint in it where its structures need not be known"
    config = load_config(folder / CONFIG, complete=True)
    try:
        split = load_split(config)
    except InputError as error:
        raise InputError(
            f"the structures that it was trained on cannot be read again: {error}",
            file=folder,
            hint=f"relative names are those of the folder that it was trained in; {known}",
        ) from error
    kept = _kept(folder / DATA)
    last, best = (folder / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    written = _written_with(last) or _written_with(best)
    specs = config.data.train, config.data.valid or config.data.train
    for part, spec, frames in zip(("training", "validation"), specs, split, strict=True):
        begun = {str((kept or {})[part]["sha256"])} if part in (kept or {}) else set()
        begun |= {str(written[part])} if part in written else set()
        if not begun:
            log.warning("whether the %s structures of %s are still the same is not known", part, folder)
        elif begun != {as_frames(frames).fingerprint()}:
            raise InputError(
                f"the {part} structures in {spec} are not those of the run any more",
                file=folder,
                hint=f"put the old ones back; {known}",
            )
    return split


def seen_by(run: Path, frames: Iterable[Frame]) -> dict[str, int] | None:
    """How many of the structures a run has seen; see :func:`~pimlip_zoo.experiment.seen.seen_of`.

    Args:
        run: its folder, or a checkpoint in it.
        frames: that are looked at.

    Returns:
        None where the run does not say what it was trained on.
    """
    folder = run if run.is_dir() else run.parent.parent
    try:
        record = _kept(folder / DATA)
    except InputError:  # resuming the run says so
        return None
    return None if record is None else seen_of(record, frames)


def _written_with(path: Path) -> dict[str, Any]:
    """Hashes of the structures that a checkpoint was trained on; none where there is none, or of an older version."""
    if not path.exists():
        return {}
    return dict((read_checkpoint(path)[KEY].get("summary") or {}).get("structures") or {})


def _kept(path: Path) -> DataRecord | None:
    if not path.exists():
        return None
    text = read_text(path)
    try:
        content = json.loads(text)
        for part in content.values():
            _described(part)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("is damaged", file=path, hint="without it the data are not compared") from error
    return dict(content)


def _described(part: Mapping[str, Any]) -> str:
    return f"{part['structures']} of {part['data']} (hash {part['sha256'][:8]})"


def has_checkpoint(folder: Path) -> bool:
    """Whether a run, or a stage of it, has written one that it can go on from."""
    return any(True for depth in ("", "*/") for _ in folder.glob(f"{depth}checkpoints/last.ckpt"))


def check_free(folder: Path) -> None:
    """Refuse to begin a run where there are weights, of a run, a stage or an imported model, or files of its names.

    Raises:
        InputError: naming the folder, or what stands in its place.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file, no folder for a run", file=folder, hint="give another --out")
    held = [path for depth in ("", "*/") for path in sorted(folder.glob(f"{depth}checkpoints/*.ckpt"))]
    if held:
        what = "run" if has_checkpoint(folder) else "model"
        go_on = "--resume it, or" if what == "run" else f"to train it on: --from {folder};"
        raise InputError(
            f"the folder holds a {what} already: {held[0].relative_to(folder)}",
            file=folder,
            hint=f"{go_on} give another --out",
        )
    if not _is_begun(folder):
        check_unused(folder, _WRITTEN)


def _is_begun(folder: Path) -> bool:
    """Whether a run was begun here, which ended before its first checkpoint: it may be begun over."""
    if not ((folder / CONFIG).is_file() and (folder / DATA).is_file()):
        return False
    try:
        written = read_yaml(folder / CONFIG)  # people leave out what a run writes
        whole = isinstance(written, dict) and set(written) >= {
            "recipe",
            "model",
            "data",
            "trainer",
            "optimizer",
        }
        return whole and _kept(folder / DATA) is not None
    except InputError:
        return False


def check_settings(folder: Path, given: RunConfig) -> None:
    """Refuse to go on with an option changed that a run cannot change on its way, or to replace weights by that.

    Args:
        folder: of the run.
        given: the configuration to go on with.

    Raises:
        InputError: naming the first such key, what the run has and what was given; for fewer steps than were done;
            for weights without the checkpoint that a run goes on from.
    """
    kept, done = _begun_with(folder)
    old, new = dict(dotted_options(kept)), dict(dotted_options(given))
    different = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    _check_weights_stay(folder, kept, different)
    changed = [key for key in different if not is_in(key, MAY_CHANGE)]
    if changed:
        key, *others = changed
        more = f"; {len(others)} more differ, such as {others[0]}" if others else ""
        raise InputError(
            f"the run has {shown(old.get(key))}, given is {shown(new.get(key))}{more}",
            file=folder,
            key=key,
            hint="a run keeps what it began with: give that, or start another run",
        )
    if given.trainer.max_steps < done:
        raise InputError(
            f"the run has done {done} steps, given are {given.trainer.max_steps}",
            file=folder,
            key="trainer.max_steps",
            hint=f"give at least {done}",
        )


def _check_weights_stay(folder: Path, kept: RunConfig, different: Sequence[str]) -> None:
    """A run without ``last.ckpt`` begins again, and would replace what is in ``best.ckpt``.

    That is as it should be when it was killed between the two at its first validation, and does the same again; not
    when the model was imported, somebody removed the file, or the options differ.
    """
    best, last = (folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    if last.exists() or not best.exists():
        return
    step = read_checkpoint(best).get("global_step")
    if not isinstance(step, int) or step > kept.trainer.valid_every:
        trained = "no training wrote it" if step is None else f"it is of step {step}"
        raise InputError(
            f"there is nothing to go on from, and a new start would replace its best.ckpt ({trained})",
            file=last,
            hint=f"--from {folder} trains its weights on, in another folder",
        )
    if different:
        raise InputError(
            "there is nothing to go on from, and a new start with other options would replace its best.ckpt",
            file=last,
            key=different[0],
            hint=f"leave it as it was, or --from {folder} trains its weights on, in another folder",
        )


def _begun_with(folder: Path) -> tuple[RunConfig, int]:
    """The configuration of a run and its steps; its last checkpoint is believed before a file that people edit."""
    last = folder / "checkpoints" / "last.ckpt"
    if not last.exists():
        return load_config(folder / CONFIG, complete=True), 0
    content = read_checkpoint(last)
    config = (content[KEY].get("summary") or {}).get("config") or {}
    try:
        kept = restored(config)
    except (InputError, ValidationError):  # of another version
        kept = load_config(folder / CONFIG, complete=True)
    return kept, int(content["global_step"])


def dotted_options(config: RunConfig) -> Iterator[tuple[str, Any]]:
    """Every option by its dotted key; those of the architecture with what its preset fills in."""
    model = {"name": config.model.name, "preset": config.model.preset}
    sections = {name: getattr(config, name) for name in RunConfig.model_fields}
    sections["model"] = model | dataclasses.asdict(config.model.configure())
    for name, section in sections.items():
        yield from _flat(name, section)


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The options of a section; a table that is no section is one value."""
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields} | (value.model_extra or {})
    elif not (key == "model" or (isinstance(value, Mapping) and _of_sections(value))):
        yield key, list(value) if isinstance(value, tuple) else value
        return
    for name, inner in value.items():
        yield from _flat(f"{key}.{name}", inner)


def _of_sections(table: Mapping[str, Any]) -> bool:
    return bool(table) and all(isinstance(value, BaseModel) for value in table.values())


def is_in(key: str, names: Sequence[str]) -> bool:
    """Whether a dotted key is one of some options, or in one of some sections."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def shown(value: Any) -> str:
    """A value in a sentence."""
    return "nothing" if value is None or value == {} else str(value)


def write_record(folder: Path, config: RunConfig, data: DataRecord | None) -> None:
    """Write what is not there yet, or has changed. Of several ranks, call it on the first.

    Args:
        folder: of the run; made where it is missing.
        config: with which it goes on.
        data: of its structures; None leaves what is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not _is_kept(folder / CONFIG, config):
        save_config(config, folder / CONFIG)
    if data is None:
        return
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    path = folder / DATA
    if not path.exists() or read_text(path) != text:
        write_text(path, text)


def _is_kept(path: Path, config: RunConfig) -> bool:
    try:
        return load_config(path, complete=True).model_dump() == config.model_dump()
    except InputError:
        return False
