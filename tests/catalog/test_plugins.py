"""Plugins: what may be named, what is said when one is wrong, and an architecture of its own from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import signarium
from signarium.catalog.errors import InvalidInput

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TOY = EXAMPLES / "dyck" / "family" / "shared-0"


@pytest.fixture(autouse=True)
def modules() -> object:
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        if name.startswith("plugin_"):
            del sys.modules[name]


def test_a_file_a_folder_and_a_module(tmp_path: Path) -> None:
    (tmp_path / "plugin_file.py").write_text("RUNS = []\nRUNS.append(1)\n")
    package = tmp_path / "plugin_package"
    package.mkdir()
    (package / "__init__.py").write_text("from .inside import VALUE\n")
    (package / "inside.py").write_text("VALUE = 7\n")
    file = signarium.load_plugin(tmp_path / "plugin_file.py")
    assert signarium.load_plugin(str(tmp_path / "plugin_file.py")) is file
    assert file.RUNS == [1]
    assert signarium.load_plugin(package).VALUE == 7
    assert signarium.load_plugin("json").__name__ == "json"


def test_what_cannot_be_a_plugin(tmp_path: Path) -> None:
    (tmp_path / "plugin_bad.py").write_text("raise ValueError('two\\nlines')\n")
    (tmp_path / "json.py").write_text("")
    (tmp_path / "plugin_empty").mkdir()
    for name, why in (
        (tmp_path / "plugin_bad.py", "ValueError: two lines"),
        (tmp_path / "json.py", "another module is called json"),
        (tmp_path / "plugin_empty", "nor a folder with __init__.py"),
        (tmp_path / "plugin_not_there.py", "ModuleNotFoundError"),
    ):
        with pytest.raises(InvalidInput, match=f"the plugin {name} cannot be imported") as caught:
            signarium.load_plugin(name)
        assert why in str(caught.value)
        assert "\n" not in str(caught.value)
    assert "plugin_bad" not in sys.modules


def test_the_command_line_loads_what_is_named_by_option_or_environment(tmp_path: Path) -> None:
    (tmp_path / "plugin_said.py").write_text("import sys\nsys.stderr.write('it ran; ')\n")
    file, command = str(tmp_path / "plugin_said.py"), [sys.executable, "-m", "signarium"]
    words = ["--db", str(tmp_path / "none.duckdb"), "models", "list"]
    for plugin, environment in (
        (["--plugin", file], {}),
        ([], {"SIGNARIUM_PLUGINS": os.pathsep.join([file, "json"])}),
    ):
        done = subprocess.run(
            [*command, *plugin, *words],
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | environment,
        )
        assert done.returncode == 1
        assert done.stderr.startswith("it ran; error: no catalogue")
        assert done.stderr.count("\n") == 1


def test_an_architecture_that_a_plugin_registers_is_ingested(tmp_path: Path) -> None:
    signarium.load_plugin(EXAMPLES / "dyck")
    report = signarium.ingest(tmp_path / "x.duckdb", str(TOY), stages="types", dry_run=True)
    assert report.dry_run
