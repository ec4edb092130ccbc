"""The page on the architecture of the code names what there is."""

import ast
import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import pimlip_zoo

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_layers_of_the_page_are_those_that_import_linter_checks():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    checked = [set(layer.split(" | ")) for layer in contracts[0]["layers"] if layer != "__main__"]
    table = PAGE.split("<!-- layers: begin -->\n")[1].split("<!-- layers: end -->")[0]
    cells = [line.split("|")[2] for line in table.splitlines()[2:]]
    shown = [set(re.findall(r"`([^`]+)`", layer)) for cell in cells for layer in cell.split(";")]
    assert shown == checked


def test_every_module_at_the_root_of_the_package_is_in_the_list_of_folders():
    listed = set(re.findall(r"^  ([a-z_]+(?:\.py|/))", PAGE.split("```")[1], flags=re.MULTILINE))
    package = ROOT / "pimlip_zoo"
    there = {path.name for path in package.glob("[a-z]*.py")}
    there |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert listed == there


def test_what_python_users_call_is_called_by_commands_alone():
    """The package's own name is no layer, so that import-linter does not see who goes through it."""
    found = set()
    for path in (ROOT / "pimlip_zoo").rglob("*.py"):
        text = path.read_text()
        named = "import pimlip_zoo" in text or "from pimlip_zoo import" in text
        for node in ast.walk(ast.parse(text)) if named else ():
            names = (
                {name.name for name in node.names}
                if isinstance(node, (ast.Import, ast.ImportFrom))
                else set()
            )
            of_package = isinstance(node, ast.ImportFrom) and node.module == "pimlip_zoo"
            if names & pimlip_zoo._PLACES.keys() if of_package else "pimlip_zoo" in names:
                found.add(path.relative_to(ROOT / "pimlip_zoo").parts[0])
    assert found == {"cli"}
