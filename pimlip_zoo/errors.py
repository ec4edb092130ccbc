"""The one exception that means: the user can mend this.

The command line turns it into a single line on stderr and exit code 2.
"""

from __future__ import annotations

import difflib
import errno
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

_FEW = 25
_LONGEST = 200


class InputError(ValueError):
    """Input that cannot be used; the message names where, what and how to mend it.

    Args:
        message: what is wrong, in one line.
        file: the file concerned.
        frame: index of the structure in that file, counted from 0.
        key: the label, option or field concerned.
        hint: what to do about it.
    """

    def __init__(
        self,
        message: str,
        *,
        file: object | None = None,
        frame: int | None = None,
        key: str | None = None,
        hint: str | None = None,
    ) -> None:
        place = [str(file)] if file is not None else []
        if frame is not None:
            place.append(f"frame {frame}")
        if key is not None:
            place.append(key)
        text = f"{', '.join(place)}: {message}" if place else message
        super().__init__(" ".join((f"{text} ({hint})" if hint else text).splitlines()))
        self.message, self.file, self.frame, self.key, self.hint = message, file, frame, key, hint

    def at(
        self, *, file: object | None = None, frame: int | None = None, hint: str | None = None
    ) -> InputError:
        """The same error, of this file and frame."""
        return InputError(
            self.message,
            file=self.file if file is None else file,
            frame=self.frame if frame is None else frame,
            key=self.key,
            hint=hint or self.hint,
        )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known ones, or all of them if they are few.

    >>> did_you_mean("nequp", ["nequip", "mace"])
    'did you mean nequip?'
    """
    names = sorted(known)
    if near := _nearest(str(name), names):  # keys of YAML may be numbers or truth values
        return near
    if not names:
        return "none is known"
    return f"known: {', '.join(names)}" if len(names) <= _FEW else f"{len(names)} others are known"


def no_such_file(path: str | PathLike[str]) -> InputError:
    """What to raise for a file that is not there: it names files of its folder whose names are near."""
    folder = Path(path).parent
    if folder.is_dir():
        hint = _nearest(Path(path).name, sorted(entry.name for entry in folder.iterdir()))
    else:
        hint = f"the folder {folder} is not there"
    return InputError("no such file", file=path, hint=hint)


def reason_of(error: BaseException) -> str:
    """What an exception says, in one line that is not too long; its type where it says nothing.

    >>> reason_of(ValueError("cannot", "be"))
    "('cannot', 'be')"
    >>> reason_of(KeyError("cell"))
    "it has no 'cell'"
    """
    text = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"it has no {text}"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


@contextmanager
def reading(file: object) -> Iterator[None]:
    """What fails in this block is a file's fault: parsers throw anything at damaged bytes.

    Args:
        file: the file that is read.

    Raises:
        InputError: in place of every other exception, which stays its cause; one that names no file gets this one.
    """
    try:
        yield
    except InputError as error:
        if error.file is not None:
            raise
        raise error.at(file=file) from error
    except FileNotFoundError as error:
        raise no_such_file(error.filename or str(file)) from error
    except OSError as error:
        few = error.errno in (errno.EMFILE, errno.ENFILE)
        raise InputError(
            f"cannot be read: {reason_of(error)}", file=file, hint="raise `ulimit -n`" if few else None
        ) from error
    except Exception as error:
        raise InputError(f"cannot be read: {reason_of(error)}", file=file) from error


def _nearest(name: str, known: list[str]) -> str | None:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else None


def plain_number(value: float, digits: int = 3) -> str:
    """A number for a sentence, in so many significant digits and without powers of ten.

    >>> plain_number(1106.4), plain_number(0.04336), plain_number(0.0000123)
    ('1,110', '0.0434', '0.0000123')
    """
    if value == 0.0 or not math.isfinite(value):
        return f"{value:g}"
    size = math.floor(math.log10(abs(value)))
    rounded = round(value, digits - 1 - size)
    if size >= digits - 1:
        return f"{rounded:,.0f}"
    return f"{rounded:,.{digits - 1 - size}f}".rstrip("0").rstrip(".")
