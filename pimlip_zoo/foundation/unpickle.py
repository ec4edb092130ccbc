"""Pickles read as data: nothing that a pickle names is imported or called.

Python's unpickler calls what the file names; one that is restricted to harmless names still hands the file's arguments
to code that was not written for hostile ones. Here the instructions are carried out on plain data alone. The few
functions that files of tensors cannot do without (tensors, arrays of numbers, ordered dictionaries) are known by name
and done by this package; every other object becomes a :class:`Record` of its class's name and its attributes.
"""

from __future__ import annotations

import codecs
import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.arrays import (
    DType,
    PendingArray,
    Storage,
    numpy_array,
    numpy_scalar,
    tensor_view,
)

_LONGEST_KEY = 64
_LARGEST_KEY = 2**60
_EXPANSION, _ALWAYS = 16, 1 << 24
"""How many bytes all that a pickle makes may hold: so many times its length, and so much."""
_ITEM = 8
"""Bytes of a reference, the least that an item of a list or table costs."""


class Named:
    """A class or function by its name; it was not imported."""

    def __init__(self, module: str, name: str) -> None:
        self.qualified_name = f"{module}.{name}"

    @property
    def name(self) -> str:
        """The name without its module."""
        return self.qualified_name.rpartition(".")[2]


class Record:
    """An object of a class that was not loaded: its name, what it was made with, its attributes."""

    def __init__(self, qualified_name: str, arguments: tuple[Any, ...] = ()) -> None:
        self.qualified_name, self.arguments = qualified_name, arguments
        self.attributes: dict[Any, Any] = {}
        self.items: list[Any] = []

    @property
    def name(self) -> str:
        """Name of the class or function, without its module."""
        return self.qualified_name.rpartition(".")[2]

    @property
    def children(self) -> dict[str, Any]:
        """Submodules of a module, by name."""
        return self.place("_modules")

    def __getitem__(self, path: str) -> Any:
        """A submodule, parameter, buffer or attribute by dotted path; None where there is none."""
        here: Any = self
        for name in path.split("."):
            if not isinstance(here, Record):
                return None
            for place in ("_modules", "_parameters", "_buffers"):
                found = here.place(place)
                if name in found:
                    here = found[name]
                    break
            else:
                here = here.attributes.get(name)
        return here

    def __len__(self) -> int:
        return len(self.children)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.children.values())

    def place(self, name: str) -> dict[str, Any]:
        """One of the dictionaries that a module keeps its parts in; empty where it has none."""
        place = self.attributes.get(name)
        return place if isinstance(place, dict) else {}


def unpickle(content: bytes, storage: Callable[[str, str, int], Storage]) -> Any:
    """What a pickle holds.

    Args:
        content: the pickle, of protocol 2 to 5.
        storage: gives the bytes that a tensor refers to, by the name of the kind of number, the entry of the
            archive and how many numbers there are.

    Raises:
        InputError: when it cannot be read, whatever its bytes are.
    """
    try:
        return _Machine(storage).run(content)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"its pickle cannot be read ({type(error).__name__}: {reason[:120]})") from error


class _Machine:
    """The stack, the marks and the memo that the instructions work on."""

    def __init__(self, storage: Callable[[str, str, int], Storage]) -> None:
        self.storage = storage
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, tuple[str, int, Storage]] = {}
        self.room = 0
        self.steps: Mapping[str, Callable[[Any], None]] = {
            "MARK": self._mark,
            "POP": self._pop,
            "POP_MARK": self._pop_mark,
            "DUP": self._dup,
            "BINPUT": self._binput,
            "MEMOIZE": self._memoize,
            "BINGET": self._binget,
            "TUPLE": self._tuple,
            "TUPLE1": self._tuple1,
            "TUPLE2": self._tuple2,
            "TUPLE3": self._tuple3,
            "LIST": self._list,
            "DICT": self._dict,
            "FROZENSET": self._frozenset,
            "APPEND": self._append,
            "APPENDS": self._appends,
            "ADDITEMS": self._additems,
            "SETITEM": self._setitem,
            "SETITEMS": self._setitems,
            "GLOBAL": self._global,
            "STACK_GLOBAL": self._stack_global,
            "REDUCE": self._reduce,
            "NEWOBJ_EX": self._newobj_ex,
            "BUILD": self._build,
            "BINPERSID": self._binpersid,
            "LONG_BINPUT": self._binput,
            "LONG_BINGET": self._binget,
            "NEWOBJ": self._reduce,
        }

    def run(self, content: bytes) -> Any:
        self.room = _EXPANSION * len(content) + _ALWAYS
        for opcode, argument, _ in pickletools.genops(content):
            name = opcode.name
            if name in _LITERALS:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name == "STOP":
                break
            elif name not in ("PROTO", "FRAME"):
                step = self.steps.get(name)
                if step is None:
                    raise InputError(
                        f"its pickle has the instruction {name}, which torch.save does not write"
                    )
                step(argument)
        (result,) = self.stack
        return result

    def _spend(self, made: Any) -> Any:
        """What an instruction made, unless all of them make far more than the pickle is long.

        An instruction of a few bytes can copy a long text, list or array again and again.
        """
        if isinstance(made, Named):
            self.room -= len(made.qualified_name)
        elif isinstance(made, np.ndarray):
            self.room -= made.nbytes
        elif isinstance(made, str | bytes):
            self.room -= len(made)
        elif isinstance(made, tuple | list | dict | set | frozenset):
            self.room -= _ITEM * len(made)
        if self.room < 0:
            raise InputError("its pickle stands for far more than it is long")
        return made

    def _mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _to_mark(self) -> list[Any]:
        above = self.stack
        self.stack = self.below.pop()
        return above

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._to_mark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _binput(self, index: int) -> None:
        self.memo[index] = value = self.stack[-1]
        if isinstance(value, PendingArray):
            value.places.append(index)

    def _memoize(self, _: Any) -> None:
        self._binput(len(self.memo))

    def _binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def _tuple(self, _: Any) -> None:
        items = self._to_mark()
        self.stack.append(tuple(items))

    def _tuple1(self, _: Any) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def _tuple2(self, _: Any) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def _tuple3(self, _: Any) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def _list(self, _: Any) -> None:
        items = self._to_mark()
        self.stack.append(items)

    def _dict(self, _: Any) -> None:
        items = self._to_mark()
        self.stack.append({})
        self._set_items(items)

    def _frozenset(self, _: Any) -> None:
        items = self._to_mark()
        self.stack.append(frozenset(_key(item) for item in items))

    def _append(self, _: Any) -> None:
        item = self.stack.pop()
        self._extend([item])

    def _appends(self, _: Any) -> None:
        self._extend(self._to_mark())

    def _additems(self, _: Any) -> None:
        items = self._to_mark()
        target = self.stack[-1]
        if not isinstance(target, set):
            raise InputError("its pickle adds items to something that is no set")
        target.update(_key(item) for item in items)

    def _setitem(self, _: Any) -> None:
        items = self.stack[-2:]
        del self.stack[-2:]
        self._set_items(items)

    def _setitems(self, _: Any) -> None:
        self._set_items(self._to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):
            target.items.extend(items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise InputError("its pickle appends to something that is no list")

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        target = target.attributes if isinstance(target, Record) else target
        if not isinstance(target, dict) or len(items) % 2:
            raise InputError("its pickle sets items of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def _global(self, names: str) -> None:
        module, _, name = names.partition(" ")
        self.stack.append(Named(module, name))

    def _stack_global(self, _: Any) -> None:
        module, name = self.stack[-2:]
        if not (isinstance(module, str) and isinstance(name, str)):
            raise InputError("its pickle names an object by something that is no name")
        self.stack[-2:] = [Named(module, name)]

    def _reduce(self, _: Any) -> None:
        called, arguments = self.stack[-2:]
        self.stack[-2:] = [self._spend(_made(called, arguments))]

    def _newobj_ex(self, _: Any) -> None:
        called, arguments, named = self.stack[-3:]
        made = self._spend(_made(called, arguments))
        if isinstance(made, Record) and isinstance(named, dict):
            made.attributes.update(self._spend(named))
        self.stack[-3:] = [made]

    def _build(self, _: Any) -> None:
        target, state = self.stack[-2:]
        self.stack.pop()
        if isinstance(target, Record):
            target.attributes.update(self._spend(state) if isinstance(state, dict) else {"state": state})
        elif isinstance(target, DType):
            target.set_order(state)
        elif isinstance(target, PendingArray):
            filled = self._spend(target.filled(state))
            self.stack[-1] = array = _opaque("numpy.ndarray", state) if filled is None else filled
            for place in target.places:
                self.memo[place] = array
        elif isinstance(target, Tensor):
            raise InputError("its pickle gives a tensor another content, as torch.save does not")
        elif not isinstance(target, dict):  # what it carries beside its content is not needed
            raise InputError("its pickle gives attributes to plain data")

    def _binpersid(self, _: Any) -> None:
        identity = self.stack.pop()
        if not (isinstance(identity, tuple) and len(identity) == 5 and identity[0] == "storage"):
            raise InputError("its pickle refers to something that is no storage")
        _, kind, key, _, count = identity
        # torch.package counts its storages, torch.save names them
        if not (isinstance(kind, Named) and type(key) in (str, int) and type(count) is int):
            raise InputError("its pickle refers to a storage in a way that torch.save does not")
        key = str(key)
        if key not in self.storages:
            self.storages[key] = (kind.name, count, self.storage(kind.name, key, count))
        *same, numbers = self.storages[key]
        if same != [kind.name, count]:
            raise InputError(f"has two storages {key[:60]}")
        self.stack.append(numbers)


_LITERALS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
    | {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}


def _key(value: Any) -> Any:
    """The value, when hashing it is harmless and fast."""
    if isinstance(value, tuple) and len(value) <= _LONGEST_KEY:
        simple = all(_is_simple(item) for item in value)
    else:
        simple = _is_simple(value) or isinstance(value, Record | Named | Tensor)
    if not simple:
        raise InputError(f"its pickle has a key of the type {type(value).__name__}")
    return value


def _is_simple(value: Any) -> bool:
    if isinstance(value, int):
        return abs(value) < _LARGEST_KEY
    return value is None or isinstance(value, str | bytes)


def _made(called: Any, arguments: Any) -> Any:
    if not isinstance(arguments, tuple):
        raise InputError("its pickle calls something with arguments that are no tuple")
    if not isinstance(called, Named | Record):
        raise InputError("its pickle calls something that has no name")
    known = _KNOWN.get(called.qualified_name) if isinstance(called, Named) else None
    return known(*arguments) if known else Record(called.qualified_name, arguments)


def _opaque(name: str, state: Any) -> Record:
    record = Record(name)
    record.attributes["state"] = state
    return record


def _dictionary(*arguments: Any) -> dict[Any, Any]:
    pairs = arguments[0] if arguments and not isinstance(arguments[0], Named) else ()
    return {_key(key): value for key, value in (pairs.items() if isinstance(pairs, dict) else pairs)}


def _set(items: Any = ()) -> set[Any]:
    return {_key(item) for item in items}


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    if codecs.lookup(encoding).name not in ("iso8859-1", "utf-8"):
        raise InputError("its pickle has bytes in an unusual encoding")
    return text.encode(encoding)


def _attribute(owner: Any, name: Any) -> Any:
    """How builtin functions of torch are pickled: as an attribute of the class that has them."""
    if isinstance(owner, Named) and isinstance(name, str):
        return Named(owner.qualified_name, name)
    return Record("builtins.getattr", (owner, name))


def _parameter(data: Any, _: Any = False, __: Any = None, state: Any = None, /) -> Tensor:
    """Its state is attributes that somebody gave it; a tensor's own ones, such as ``data``, would change its value."""
    if not isinstance(data, Tensor):
        raise InputError("its pickle has a parameter that is no tensor")
    for attributes in state if isinstance(state, tuple) else (state,):
        for name in attributes if isinstance(attributes, dict) else ():
            if not isinstance(name, str) or hasattr(Tensor, name):
                raise InputError(f"its pickle sets {str(name)[:60]} of a parameter, which is not supported")
    return data


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> Any:
    array = numpy_array(content, dtype, shape, fortran=order == "F")
    return _opaque("numpy.ndarray", (shape, dtype)) if array is None else array


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, _: Any = False, __: Any = None, marks: Any = None, /
) -> Tensor:
    """Marks stand for another sign than that of the numbers, or for complex conjugates."""
    if marks:
        names = ", ".join(sorted(map(str, marks))) if isinstance(marks, dict) else str(marks)
        raise InputError(f"has a tensor that is marked with {names[:60]}, which is not supported")
    return tensor_view(storage, offset, size, stride)


_KNOWN: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encoded,
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": _dictionary,
    "torch.Size": lambda items=(): tuple(items) if isinstance(items, tuple | list) else (),
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "numpy.dtype": lambda code, *_: DType(code),
    **dict.fromkeys(("builtins.set", "__builtin__.set"), _set),
    **dict.fromkeys(("builtins.frozenset", "__builtin__.frozenset"), lambda items=(): frozenset(_set(items))),
    **dict.fromkeys(("builtins.getattr", "__builtin__.getattr"), _attribute),
    **dict.fromkeys(("builtins.bytes", "__builtin__.bytes"), lambda: b""),
    **dict.fromkeys(("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"), _array),
    **dict.fromkeys(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), numpy_scalar),
    **dict.fromkeys(
        ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
        lambda *_: PendingArray(),
    ),
}
