"""Commands that need no torch do not import it: they answer at once."""

import subprocess
import sys

import pytest

PROBE = """
import contextlib, io, sys
import pimlip_zoo.cli
sys.argv = ["pimlip-zoo", *{arguments!r}]
try:
    with contextlib.redirect_stdout(io.StringIO()):
        pimlip_zoo.cli.main()
except SystemExit as stop:
    assert not stop.code, stop.code
print(sorted(name for name in {heavy!r} if sys.modules.get(name)))
"""
HEAVY = ("torch", "lightning", "e3nn", "scipy", "sympy", "matplotlib")


def imported(*arguments):
    """Which of the heavy packages a command imports."""
    probe = PROBE.format(arguments=arguments, heavy=HEAVY)
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("train", "--help"),
        ("report", "--help"),
        ("models", "--recipes"),
        ("data", "info", "builtin:cual-emt/train@:20"),
    ],
    ids=" ".join,
)
def test_a_command_that_needs_no_torch_does_not_import_it(arguments):
    assert imported(*arguments) == "[]"


def test_the_list_of_architectures_is_kept(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("PIMLIP_ZOO_CACHE", str(tmp_path))
    first = cli("models")
    assert first.code == 0
    (file,) = tmp_path.glob("models-*.json")
    assert imported("models") == imported("models", "nequip", "--json") == "[]"
    assert cli("models").out == first.out
    file.write_text("{")
    assert cli("models").out == first.out
