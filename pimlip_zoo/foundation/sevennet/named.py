"""Published models by name: where an installed ``sevenn`` keeps their files. The package is found, not imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pimlip_zoo.errors import InputError, did_you_mean

NAMES = {
    "7net-0": "SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
    "7net-0_11July2024": "SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
    "7net-0_22May2024": "SevenNet_0__22May2024/checkpoint_sevennet_0.pth",
    "7net-l3i5": "SevenNet_l3i5/checkpoint_l3i5.pth",
    "7net-mf-0": "SevenNet_MF_0/checkpoint_sevennet_mf_0.pth",
}
"""The models whose weights are in the package, by the package's names for them, and their files there."""

_OTHERS = ("7net-omat", "7net-mf-ompa", "7net-omni", "7net-omni-i8", "7net-omni-i12")
"""Names whose weights the package downloads."""

_INSTALL = "`pip install --no-deps sevenn`, its weights are inside, or give a checkpoint file"


def find_file(name: str | Path) -> Path:
    """The checkpoint that a name or a path stands for; names are those of :data:`NAMES`, in any case.

    Raises:
        InputError: for a name that is neither, or when ``sevenn`` is not installed or lacks the file.
    """
    text = str(name)
    known = {key.lower(): file for key, file in NAMES.items()}
    if text.lower() in known:
        folder = _package()
        if folder is None:
            raise InputError(
                f"{text} is in the package sevenn, which is not installed", key="sevennet", hint=_INSTALL
            )
        file = folder / "pretrained_potentials" / known[text.lower()]
        if not file.is_file():
            raise InputError("the installed sevenn has no such file", file=file, hint=_INSTALL)
        return file
    if Path(text).exists():
        return Path(text)
    if text.lower() in _OTHERS:
        raise InputError(
            f"the weights of {text} are not inside the package sevenn, which downloads them",
            key="sevennet",
            hint="download the checkpoint as its pages say, and give the file",
        )
    looks_like_path = text.endswith((".pth", ".pt")) or "/" in text
    hint = "give a checkpoint of sevenn" if looks_like_path else did_you_mean(text, NAMES)
    raise InputError(
        "no such file" if looks_like_path else f"no model is called {text!r}",
        file=text if looks_like_path else None,
        key=None if looks_like_path else "sevennet",
        hint=hint,
    )


def _package() -> Path | None:
    """The folder of the installed package; nothing of it runs."""
    spec = importlib.util.find_spec("sevenn")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]) if places else None
