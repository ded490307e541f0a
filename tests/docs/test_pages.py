"""The documents are fresh: references and tables are what the program writes, links lead somewhere, the README is short."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]


def test_references_and_tables_are_what_the_program_writes() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_is_read_in_three_minutes() -> None:
    assert len(README.splitlines()) <= 120


def test_the_readme_shows_six_claims_from_the_catalogue() -> None:
    table = re.search(r"<!-- evidence: .*? -->\n(.*?)<!-- end of evidence -->", README, re.S)
    assert table is not None
    assert len(table[1].strip().splitlines()) == 2 + 6


def test_the_readme_shows_the_two_commands() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for command in ("make demo", "make test"):
        assert command in README
        assert command.split()[1] in targets


def test_links_of_the_documents_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
