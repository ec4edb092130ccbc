"""What an exported file says of itself, for our pair style and for those of others."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pimlip_zoo import __version__
from pimlip_zoo.errors import InputError, reading
from pimlip_zoo.files import check_archive, regular_file

if TYPE_CHECKING:
    import torch

    from pimlip_zoo.models.potential import Potential

_LONGEST = 1 << 24

FORMAT_VERSION = 1
"""Of the keys below and of the module's tensors; ``pair_style pimlip`` reads this version only."""

AOT_ENTRY = "pimlip"
"""Name of the entry point of ``pair_style pimlip`` in a compiled file, which may have several."""

_UNREADABLE = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    AttributeError,
    EOFError,
    KeyError,
    RuntimeError,
    ValueError,
)

REQUIRED_KEYS = (
    "pimlip_format",
    "pimlip_version",
    "model_name",
    "model_config",
    "model_dtype",
    "interaction_depth",
    "force_head",
    "units",
    "torch_version",
    "weights_sha256",
    "training",
    "r_max",
    "type_names",
    "num_types",
    "n_species",
    "allow_tf32",
    "nequip_version",
)
OPTIONAL_KEYS = ("charge", "multiplicity")
"""In a file that is for one charge and multiplicity."""


def torch_version() -> str:
    """The version of torch without its build suffix, as C++ sees it."""
    import torch

    return torch.__version__.split("+")[0]


def export_metadata(
    potential: Potential, *, name: str, dtype: torch.dtype, training: Mapping[str, object]
) -> dict[str, str]:
    """Everything that a pair style, or a person, wants to know of the file.

    ``r_max``, ``type_names``, ``num_types``, ``allow_tf32`` are what ``pair_style nequip`` and
    ``allegro`` read, ``n_species`` and a ``nequip_version`` that is not empty what their older versions
    ask for; none of them says what is wrong when a key is missing. ``charge`` and ``multiplicity`` are there in a file
    that is for one of each.

    Args:
        potential: the potential as exported.
        name: of the architecture.
        dtype: of the model inside.
        training: a summary of where the weights come from, anything that JSON takes.
    """
    species = potential.species
    config = potential.model.config
    options = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else {}
    return {
        "pimlip_format": str(FORMAT_VERSION),
        "pimlip_version": __version__,
        "model_name": name,
        "model_config": _json(options),
        "model_dtype": str(dtype).removeprefix("torch."),
        **{key: str(value) for key, value in potential.model.fixed_electrons().items()},
        "interaction_depth": str(int(potential.model.interaction_depth)),
        "force_head": "direct" if potential.is_direct else "conservative",
        "units": "eV Angstrom",
        "torch_version": torch_version(),
        "weights_sha256": weights_hash(potential),
        "training": _json(dict(training)),
        "r_max": repr(float(potential.cutoff)),
        "type_names": " ".join(species),
        "num_types": str(len(species)),
        "n_species": str(len(species)),
        "allow_tf32": "0",
        "nequip_version": f"pimlip-zoo {__version__}",
    }


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of an exported file, TorchScript or compiled, without loading the model.

    Raises:
        InputError: when the file is missing, truncated, changed, not ours, or of another format version.
    """
    regular_file(os.fspath(path))
    check_archive(path, "not a complete exported model", hint="write it with `pimlip-zoo export`")
    with reading(path), zipfile.ZipFile(path) as archive:
        found = _metadata_entries(archive)
    version = found.get("pimlip_format", "")
    if not version:
        raise InputError("has no metadata of pimlip-zoo", file=path, hint="write it with `pimlip-zoo export`")
    if version != str(FORMAT_VERSION):
        raise InputError(
            f"its format is version {version}, this is a pimlip-zoo for version {FORMAT_VERSION}",
            file=path,
            hint="export it again",
        )
    missing = [key for key in REQUIRED_KEYS if key not in found]
    if missing:
        raise InputError(f"its metadata lack {', '.join(missing)}", file=path, hint="export it again")
    return found


def _metadata_entries(archive: zipfile.ZipFile) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in archive.infolist():
        name = item.filename
        if item.file_size > _LONGEST and ("/extra/" in name or name.endswith("_metadata.json")):
            raise ValueError("an entry is larger than what describes a model")
        parts = name.split("/")
        if len(parts) == 3 and parts[1] == "extra":  # TorchScript: one entry for each key
            found[parts[2]] = archive.read(name).decode()
        elif name.endswith("_metadata.json") and f"/{AOT_ENTRY}/" in name:  # compiled: one JSON file
            found.update({key: str(value) for key, value in json.loads(archive.read(name)).items()})
    return found


def weights_hash(potential: Potential) -> str:
    """SHA-256 over names and values of all parameters and persistent buffers."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(potential.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().to(torch.float64).numpy().tobytes())
    return digest.hexdigest()


def hashes_of_exports(potential: Potential) -> set[str]:
    """What files that are written of a potential have as ``weights_sha256``, in the one or the other precision."""
    import copy

    import torch

    found, copied = {weights_hash(potential)}, copy.deepcopy(potential)
    with suppress(InputError):  # a weight that is too large for single precision is exported in none
        found.add(weights_hash(copied.set_dtype(torch.float32)))
    return found


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, default=str)
