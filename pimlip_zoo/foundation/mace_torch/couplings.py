"""The coupling coefficients that compiled tensor products have beside their program.

e3nn stores each product as a TorchScript archive within the file, with the Wigner 3j symbols that it multiplies with as
tensors. The program is not read, and nothing of it is run; the numbers are compared with those of this package.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from e3nn import o3
from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.arrays import Storage, make_storage
from pimlip_zoo.foundation.unpickle import Record, unpickle

_SYMBOL = re.compile(r"_w3j_(\d)_(\d)_(\d)")
_LARGEST = 1 << 26
_UNREADABLE = (OSError, KeyError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile)


def check_couplings(place: str, module: Record) -> None:
    """Compare the coefficients of a recorded tensor product.

    Args:
        place: its name in the model.
        module: it.

    Raises:
        InputError: naming the first that differs, or a part that cannot be read.
    """
    programs = module.attributes.get("__codegen__")
    for program in programs.values() if isinstance(programs, dict) else ():
        if not isinstance(program, bytes):
            continue
        for name, value in _tensors(program, place).items():
            found = _SYMBOL.fullmatch(name)
            if found is None:
                continue
            expected = o3.wigner_3j(*map(int, found.groups()), dtype=torch.float64)
            given = value.to(torch.float64)
            if given.shape != expected.shape or not torch.allclose(given, expected, rtol=0, atol=1e-6):
                raise InputError(f"{place[:80]} couples by other numbers than e3nn's in {name}")


def _tensors(program: bytes, place: str) -> Mapping[str, Tensor]:
    try:
        with zipfile.ZipFile(io.BytesIO(program)) as archive:
            names = archive.namelist()
            (pickle,) = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
            root = pickle.partition("/")[0]

            def read(name: str) -> bytes:
                if archive.getinfo(name).file_size > _LARGEST:
                    raise ValueError(f"{name} is too large")
                return archive.read(name)

            def storage(kind: str, key: str, count: int) -> Storage:
                return make_storage(kind, memoryview(read(f"{root}/data/{key}")), count)

            content: Any = unpickle(read(pickle), storage)
    except (*_UNREADABLE, InputError) as error:
        reason = (str(error).splitlines() or [""])[0][:120]
        raise InputError(f"the compiled part of {place[:80]} cannot be read: {reason}") from error
    attributes = content.attributes if isinstance(content, Record) else {}
    return {str(name): value for name, value in attributes.items() if isinstance(value, Tensor)}
