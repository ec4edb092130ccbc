"""Commands that need no torch do not import it: they answer at once."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pimlip_zoo import __version__, cli
from pimlip_zoo.cli import architectures
from pimlip_zoo.registry import MODELS

ROOT = Path(__file__).parents[2]
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
THEIRS = """
from pimlip_zoo.models.nequip import NequIP, NequIPConfig
from pimlip_zoo.registry import register_model

@register_model("their-model", config=NequIPConfig, presets={"tiny": {"channels": 2}})
class Their(NequIP):
    \"\"\"Of another package.\"\"\"
"""
HEAVY = ("torch", "lightning", "e3nn", "scipy", "sympy", "matplotlib")


def imported(*arguments):
    """Which of the heavy packages a command imports."""
    probe = PROBE.format(arguments=arguments, heavy=HEAVY)
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def called(*arguments):
    """A command in a process of its own."""
    command = [sys.executable, "-m", "pimlip_zoo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True)


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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--data", "nope.extxyz"), "nope.extxyz: no such file"),
        (("--data", "builtin:ethanol-gfn2", "--test", "nope.extxyz"), "nope.extxyz: no such file"),
        (("--max-time", "5x"), "'5x' is not a time"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_train_refuses_a_missing_file_and_a_wrong_time_before_it_imports_torch(arguments, says):
    probe = PROBE.format(arguments=("train", *arguments), heavy=HEAVY).replace(
        "assert not stop.code", "assert stop.code == 2"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert says in result.stderr
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [("models",), ("models", "nequip", "--json")], ids=" ".join)
def test_the_first_list_of_architectures_needs_no_torch(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("PIMLIP_ZOO_CACHE", str(tmp_path / "none"))
    assert imported(*arguments) == "[]"
    assert not (tmp_path / "none").exists()


def test_what_is_said_of_the_architectures_is_what_they_are():
    kept = json.loads(architectures.KEPT.read_text())
    now = json.loads(json.dumps(architectures.own_described()))
    assert kept == now, "write it anew with: python -m pimlip_zoo.cli.architectures"
    assert list(kept) == [module.rsplit(".", 1)[1].replace("_", "-") for module in MODELS.builtin]


def test_what_is_said_of_architectures_of_other_packages_is_kept(tmp_path, monkeypatch):
    """An entry point of an installed package, as far as the standard library can tell."""
    site = tmp_path / "site"
    (site / "theirs-1.dist-info").mkdir(parents=True)
    (site / "theirs-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    offers = "[pimlip_zoo.models]\ntheir-model = their_model\n"
    (site / "theirs-1.dist-info" / "entry_points.txt").write_text(offers)
    (site / "their_model.py").write_text(THEIRS)
    cache = tmp_path / "cache"
    monkeypatch.setenv("PIMLIP_ZOO_CACHE", str(cache))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    first = called("models")
    assert "counting the parameters of their-model" in first.stderr
    assert "their-model" in first.stdout
    (file,) = cache.glob("models-*.json")
    assert imported("models") == "[]"
    again = called("models")
    assert again.stderr == ""
    assert again.stdout == first.stdout
    file.write_text("{")
    assert called("models").stdout == first.stdout


FIRST = """
import sys
said, before = [], []

class Watched:
    def __init__(self, stream): self.stream = stream
    def write(self, text):
        said.append(text)
        return self.stream.write(text)
    def __getattr__(self, name): return getattr(self.stream, name)

def watch(event, arguments):
    if said: return
    heavy = ("torch", "lightning", "e3nn", "ase", "numpy", "scipy")
    if event == "import" and arguments[0] in heavy: before.append(arguments[0])
    if event == "open" and str(arguments[0]).endswith("few.extxyz"): before.append("the data")

sys.stdout = Watched(sys.stdout)
sys.addaudithook(watch)
sys.argv = ["pimlip-zoo", "train", "--data", "few.extxyz"]
from pimlip_zoo.cli import main
try:
    main()
except SystemExit:
    pass
print(before, file=sys.stderr)
print(said[0].strip(), file=sys.stderr)
"""


def test_training_says_something_before_it_imports_or_reads_what_takes_long(tmp_path):
    (tmp_path / "few.extxyz").write_text("1\n\nH 0 0 0\n")
    command = [sys.executable, "-c", FIRST]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    *_, before, first = result.stderr.splitlines()
    assert before == "[]", before
    assert first == f"pimlip-zoo {__version__}: loading PyTorch"
    assert "reading few.extxyz" in result.stdout


def test_only_the_first_rank_says_it(tmp_path):
    environment = {**os.environ, "RANK": "1"}
    command = [sys.executable, "-m", "pimlip_zoo", "train", "--from", "nothing", "--resume"]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert result.returncode == 2
    assert result.stdout == ""


def test_warnings_of_commands_without_a_log_say_that_they_are(monkeypatch):
    monkeypatch.setattr(logging.lastResort, "formatter", None)
    monkeypatch.setattr(cli, "app", lambda: None)
    cli.main()
    record = logging.LogRecord(
        "pimlip_zoo", logging.WARNING, "", 0, "the structure states %s", ("charge +1",), None
    )
    assert logging.lastResort.format(record) == "warning: the structure states charge +1"


def test_the_package_and_its_project_have_one_version():
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version == __version__


def test_what_is_changed_since_a_release_has_another_version_than_it():
    """Cached stages are known by the version."""
    first, second = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[:2]
    assert (first == "Unreleased") == (".dev" in __version__)
    assert __version__ != second
