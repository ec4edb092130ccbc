"""Commands that the environment names: a program, perhaps with flags, perhaps with spaces in its path."""

from __future__ import annotations

import os
import shlex
import shutil


def command_words(variable: str) -> list[str]:
    """The words of ``$CC`` and the like; none where it is not set.

    A program whose path has spaces is taken as it stands; with flags behind it, it has to be quoted as in a shell.

    >>> os.environ["PIMLIP_EXAMPLE"] = "'/opt/my compilers/cc' -O2"
    >>> command_words("PIMLIP_EXAMPLE")
    ['/opt/my compilers/cc', '-O2']
    """
    text = os.environ.get(variable, "").strip()
    if text and shutil.which(text):
        return [text]
    try:
        return shlex.split(text)
    except ValueError:  # a quote that is not closed
        return text.split()
