"""Reading the model files of ``mace-torch`` without that package, and without running what they contain.

Such a file is a pickle of Python objects. Here every object that is not plain data or a tensor becomes a record of its
class's name and its attributes, so that nothing of the file is executed and the package need not be installed.
"""

from __future__ import annotations

import pickle
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pimlip_zoo.errors import InputError, no_such_file

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Record", "read_records", "state_of"]

_PLAIN = {
    "collections": {"OrderedDict"},
    "torch": {"Size", "device", "float32", "float64", "int32", "int64", "bool"},
    "torch._utils": {"_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state"},
    "torch.serialization": {"_get_layout"},
    "builtins": {
        "set",
        "frozenset",
        "dict",
        "list",
        "tuple",
        "int",
        "float",
        "bool",
        "str",
        "slice",
        "complex",
    },
    "__builtin__": {"set", "frozenset", "slice", "complex"},
    "numpy": {"dtype", "ndarray", "float64", "float32", "int64"},
    "numpy.core.multiarray": {"scalar", "_reconstruct"},
    "numpy._core.multiarray": {"scalar", "_reconstruct"},
}


class Record:
    """An object of a class that was not loaded: its name, what it was made with, its attributes."""

    qualified_name = ""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments, self.attributes = arguments, dict(named)
        self.items: list[Any] = []

    def __new__(cls, *arguments: Any, **_: Any) -> Self:
        """Pickle makes most objects without calling ``__init__``."""
        made = super().__new__(cls)
        made.arguments, made.attributes, made.items = arguments, {}, []
        return made

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {"state": state}

    def append(self, item: Any) -> None:
        """For records of lists."""
        self.items.append(item)

    def extend(self, items: Any) -> None:
        """For records of lists."""
        self.items.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.attributes[key] = value

    def __hash__(self) -> int:
        return id(self)

    @property
    def name(self) -> str:
        """Name of the class or function, without its module."""
        return self.qualified_name.rpartition(".")[2]

    @property
    def children(self) -> dict[str, Any]:
        """Submodules of a module, by name."""
        return dict(self.attributes.get("_modules") or {})

    def __getitem__(self, path: str) -> Any:
        """A submodule, parameter, buffer or attribute by dotted path; None where there is none."""
        here: Any = self
        for name in path.split("."):
            if not isinstance(here, Record):
                return None
            for place in ("_modules", "_parameters", "_buffers"):
                if name in (here.attributes.get(place) or {}):
                    here = here.attributes[place][name]
                    break
            else:
                here = here.attributes.get(name)
        return here

    def __len__(self) -> int:
        return len(self.children)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.children.values())


class _Unpickler(pickle.Unpickler):
    """Knows tensors and plain data; records everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _PLAIN.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and name.endswith("Storage"):
            return super().find_class(module, name)
        return type(name.rpartition(".")[2], (Record,), {"qualified_name": f"{module}.{name}"})


def read_records(path: Path) -> Record:
    """The objects of a file that ``torch.save`` wrote.

    Raises:
        InputError: when there is no such file or it is something else.
    """
    _check_archive(path)
    module = types.ModuleType("records")
    module.__dict__.update(Unpickler=_Unpickler, UnpicklingError=pickle.UnpicklingError)
    try:
        content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=module)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"cannot be read ({type(error).__name__}: {reason[:120]})", file=path) from error
    if not isinstance(content, Record):
        raise InputError(
            f"holds a {type(content).__name__}, not a model",
            file=path,
            mend="give the .model file of mace-torch",
        )
    return content


def _check_archive(path: Path) -> None:
    """Anything but a plain archive of pickled objects torch would run or compile."""
    if not path.is_file():
        raise no_such_file(path)
    if not zipfile.is_zipfile(path):
        raise InputError(
            "not a file that torch.save wrote", file=path, mend="give the .model file of mace-torch"
        )
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise InputError(
                "a TorchScript file has no options to read",
                file=path,
                mend="give the .model file of mace-torch",
            )


def state_of(record: Record, prefix: str = "") -> dict[str, Tensor]:
    """All parameters and buffers under a recorded module, by their names in its state dict."""
    state: dict[str, Tensor] = {}
    for place in ("_parameters", "_buffers"):
        for name, value in (record.attributes.get(place) or {}).items():
            if isinstance(value, Tensor):
                state[prefix + name] = value.detach()
    for name, child in record.children.items():
        if isinstance(child, Record):
            state |= state_of(child, f"{prefix}{name}.")
    return state
