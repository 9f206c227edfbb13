"""The layout is a promise: what may stand where, and who imports whom."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GATEWAY = ROOT / "gateway"
TOP = {
    *("pyproject.toml", "gateway", "drivers", "systemd", "hil", "tests", "config.example.toml"),
    *("README.md", "LICENSE", "CHANGELOG.md"),
}
ORDER = re.findall(r"^\| `(\w+)(?:\.py|/)` \|", (GATEWAY / "README.md").read_text(), re.MULTILINE)
MODULES = sorted(file for file in GATEWAY.rglob("*.py") if file != GATEWAY / "__init__.py")


def imported(file):
    """Return the first two parts of every module that a file imports, wherever it does so."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name.split(".") for name in names]


def row(file):
    return file.relative_to(GATEWAY).parts[0].removesuffix(".py")


def git(*arguments):
    return subprocess.run(
        ["git", "-c", "safe.directory=*", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )


in_a_clone = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git clone")


def test_the_table_of_modules_is_complete():
    assert sorted(ORDER) == sorted({row(file) for file in MODULES})


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(GATEWAY)))
def test_a_module_imports_only_from_rows_above_it(file):
    above = ORDER[: ORDER.index(row(file))] + (["cli"] if row(file) == "cli" else [])
    own = {parts[1] for parts in imported(file) if parts[0] == "gateway"}
    assert own - {"__version__"} <= set(above)


def test_nothing_but_the_demo_imports_simulated_hardware():
    users = [file for file in MODULES if any(parts[0] == "hil" for parts in imported(file))]
    assert users == [GATEWAY / "cli/demo.py"]


def test_the_daemon_imports_neither_rich_nor_bleak_nor_cryptography():
    program = """
import sys
import gateway.cli, gateway.cli.run, gateway.service
from gateway.driver import find, names
for name in names():
    find(name)
print(sorted({"rich", "bleak", "cryptography", "hil"} & set(sys.modules)))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"


@in_a_clone
def test_the_top_level_holds_what_it_may():
    names = {path.split("/")[0] for path in git("ls-files").stdout.splitlines()}
    assert {name for name in names if not name.startswith(".")} <= TOP


@in_a_clone
@pytest.mark.parametrize("path", ["hil/demo", "tests/run", ".ci/run", ".ci/venv", ".ci/debian"])
def test_commands_are_executable(path):
    assert git("ls-files", "--stage", path).stdout.startswith("100755")


def test_the_readme_is_short_and_begins_with_the_two_commands():
    text = (ROOT / "README.md").read_text()
    first = "\n".join(text.splitlines()[:15])
    assert len(text.split()) <= 400
    assert "hil/demo" in first
    assert "tests/run" in first


def test_links_in_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("[!.]*/*.md")]:
        links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
        assert [link for link in links if not (document.parent / link).exists()] == []
