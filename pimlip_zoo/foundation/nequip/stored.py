"""What a checkpoint of ``nequip-train`` and a package of ``nequip-package`` say of their model: options and weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.archive import TorchArchive
from pimlip_zoo.foundation.objects import archive_objects, state_of, tensors_of
from pimlip_zoo.foundation.unpickle import Record
from pimlip_zoo.yaml_file import parse_yaml

_KNOWN_VERSIONS = {"nequip": (0, 19), "allegro": (0, 8)}
_PACKAGE_VERSION = 2
_PACKAGE_PICKLE = "model/eager_model.pkl"
_BUFFERS = ("_empty", "output_mask", "bias", "_rmax_recip", "atomic_numbers", "_qqr2exesquare")
_IN_MODEL = "model.func."
_LARGEST_TEXT = 2**22


@dataclass(frozen=True)
class StoredModel:
    """Options as they were given to the package's builder, and weights by their names in its model."""

    options: dict[str, Any]
    weights: dict[str, Tensor]
    averaged: bool
    """The weights are the moving average that was kept in the training, as the package's calculator uses it."""


def read_model(file: Path) -> StoredModel:
    """The model that a file holds.

    Args:
        file: a checkpoint (``.ckpt``) or a package (``.nequip.zip``); its name does not matter.

    Raises:
        InputError: when it is neither, was written by a newer version, or holds several models.
    """
    archive = TorchArchive(file, pickles=("data.pkl", _PACKAGE_PICKLE))
    if archive.pickle == _PACKAGE_PICKLE:
        return _from_package(archive)
    return _from_checkpoint(archive_objects(archive))


def _from_checkpoint(content: object) -> StoredModel:
    given = content.get("hyper_parameters") if isinstance(content, dict) else None
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(given, dict) or not isinstance(state, dict) or not isinstance(given.get("model"), dict):
        kind = content.name if isinstance(content, Record) else type(content).__name__
        raise InputError(
            f"holds a {kind} and no training of nequip",
            hint="give a .ckpt of nequip-train or a .nequip.zip of nequip-package",
        )
    info = given.get("info_dict")
    _check_versions(info.get("versions") if isinstance(info, dict) else None)
    tensors = tensors_of(state)
    model = {name.removeprefix("model."): x for name, x in tensors.items() if name.startswith("model.")}
    options = given["model"]
    weights = _of_one_model(model)
    average = [name for name in tensors if re.fullmatch(r"ema\.ema_weight_\d+", name)]
    if average:
        weights = _averaged(weights, [tensors[f"ema.ema_weight_{n}"] for n in range(len(average))], options)
    return StoredModel(options, weights, averaged=bool(average))


def _from_package(archive: TorchArchive) -> StoredModel:
    facts = _text(archive, "model/package_metadata.txt")
    if type(facts.get("package_version_id")) is not int or facts["package_version_id"] > _PACKAGE_VERSION:
        raise InputError(
            f"is a package of the version {facts.get('package_version_id')!r}",
            hint=f"versions up to {_PACKAGE_VERSION}, of nequip 0.19, can be read; give the checkpoint",
        )
    _check_versions(facts.get("versions"))
    training = _text(archive, "model/config.yaml").get("training_module")
    options = training.get("model") if isinstance(training, dict) else None
    if not isinstance(options, dict):
        raise InputError(
            "does not say which model it holds", hint="give the checkpoint that it was made from"
        )
    record = archive_objects(archive, ".data/{}.storage")
    if not isinstance(record, Record):
        raise InputError(f"holds a {type(record).__name__}, not a model")
    return StoredModel(options, _of_one_model(state_of(record)), averaged=False)


def _text(archive: TorchArchive, name: str) -> dict[str, Any]:
    raw = bytes(archive.read(name))
    try:
        text = raw.decode() if len(raw) <= _LARGEST_TEXT else ""
    except UnicodeDecodeError as error:
        raise InputError(f"its {name} is no text") from error
    content = parse_yaml(text, key=name)
    if not isinstance(content, dict):
        raise InputError(f"its {name} is not what nequip-package writes")
    return content


def _check_versions(versions: object) -> None:
    for package, known in _KNOWN_VERSIONS.items():
        found = versions.get(package) if isinstance(versions, dict) else None
        numbers = re.match(r"(\d+)\.(\d+)", found) if isinstance(found, str) else None
        if package == "nequip" and numbers is None:
            raise InputError("does not say which version of nequip wrote it")
        if numbers is not None and (int(numbers[1]), int(numbers[2])) > known:
            raise InputError(
                f"was written by {package} {found}",
                hint=f"what {package} {known[0]}.{known[1]} and older write can be read",
            )


def _of_one_model(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the only model in a dictionary of models, by their names in it."""
    names = {name.partition(".")[0] for name in state}
    if len(names) != 1:
        found = f"the models {', '.join(sorted(names))}" if names else "no model"
        raise InputError(f"holds {found}", hint="give a file with one model")
    prefix = f"{names.pop()}.{_IN_MODEL}"
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _averaged(
    weights: Mapping[str, Tensor], average: list[Tensor], options: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The average of each weight; the file keeps them in the order of the model's parameters, without names."""
    trained = {
        "bessel_weights": bool(_radial(options).get("bessel_trainable", False)),
        "scales": bool(options.get("per_type_energy_scales_trainable", False)),
        "shifts": bool(options.get("per_type_energy_shifts_trainable", False)),
    }
    names = []
    for name, value in weights.items():
        last = name.rpartition(".")[2]
        constant = last in _BUFFERS or last.startswith(("w3j", "_w3j")) or not trained.get(last, True)
        if value.numel() and not constant:
            names.append(name)
    if [weights[name].shape for name in names] != [value.shape for value in average]:
        raise InputError("keeps an average of its weights that does not fit them")
    return {**weights, **dict(zip(names, average, strict=True))}


def _radial(options: Mapping[str, Any]) -> Mapping[str, Any]:
    embedding = options.get("radial_chemical_embed")
    return embedding if isinstance(embedding, dict) else options
