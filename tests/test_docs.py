"""The documents say what the program does: references are fresh, and what the README shows runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_references_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def queries() -> list[str]:
    block = re.search(r"```sql\n(.*?)```", README, re.S)
    assert block is not None
    return [one.strip() for one in block[1].split(";") if one.strip()]


def test_the_readme_has_six_queries() -> None:
    assert len(queries()) == 6


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.split("\n")[0][:30])
def test_each_query_of_the_readme_runs(query: str, tmp_path: Path) -> None:
    from signarium.catalog import store
    from signarium.migrations import manage
    from signarium.queries.sql import sql

    path = tmp_path / "c.duckdb"
    with store.job_lock(path):
        manage.ensure(path)
    assert sql(path, query).num_rows == 0


def test_the_readme_shows_the_two_commands() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for command in ("make demo", "make test"):
        assert command in README
        assert command.split()[1] in targets


def test_commands_and_options_of_the_readme_exist() -> None:
    import click
    from terminal import ALL

    shown = re.findall(r"^\$? ?signarium ([a-z]+)(.*)$", README, re.M)
    assert {name for name, _ in shown} >= {"ingest", "nearest"}
    for name, rest in shown:
        command = ALL[name,]
        if isinstance(command, click.Group):
            command = ALL[name, rest.split()[0]]
        known = {flag for one in command.params if isinstance(one, click.Option) for flag in one.opts}
        for flag in re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", re.sub(r"'[^']*'|\"[^\"]*\"|#.*", "", rest)):
            assert flag in known, f"{name} {flag}"


def test_links_of_the_documents_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text()):
            assert (ROOT / target).exists(), f"{name}: {target}"
