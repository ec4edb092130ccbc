"""The command line, called as the shell calls it: what comes back is an exit code and two texts."""

import logging
import sys
from typing import NamedTuple

import pytest

import pimlip_zoo.cli


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pimlip-zoo", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            pimlip_zoo.cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            logging.getLogger("pimlip_zoo").handlers.clear()
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture
def refused(cli, tmp_path, monkeypatch):
    """Call a command that must be refused in one line, leaving the folder that it was called in as it was."""

    def call(*arguments, says=()):
        before = sorted(tmp_path.rglob("*"))
        result = cli(*arguments)
        assert result.code == 2, result
        lines = result.err.strip().splitlines()
        assert len(lines) == 1, result.err
        assert lines[0].startswith("pimlip-zoo: ")
        assert "Traceback" not in result.out
        for words in says:
            assert words in lines[0], lines[0]
        assert sorted(tmp_path.rglob("*")) == before
        return lines[0]

    monkeypatch.chdir(tmp_path)
    return call
