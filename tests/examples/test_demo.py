"""The demos: their sentences, that every command they show or name is one, and (with --full) what the short one finds."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from signarium.cli import cli

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SENSES = "bank spring bat seal crane match light bark pitcher palm bow current lead mint pupil row"
RIVER = re.compile(r"river|water|stream|edge|muddy|steep|drink|tent|boat|fox|Willows|herons")
MONEY = re.compile(r"account|wages|cheque|robbed|lent|fee|clerk|loan|savings|Saturdays")


def sentences() -> list[str]:
    lines = (EXAMPLES / "sentences.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_the_sentences_are_short_and_hold_words_of_two_senses() -> None:
    texts = sentences()
    assert len(set(texts)) == len(texts) == 398
    assert (EXAMPLES / "sentences.jsonl").stat().st_size < 60_000
    assert max(len(text) for text in texts) < 80
    for word in SENSES.split():
        assert sum(bool(re.search(rf"\b{word}", text, re.I)) for text in texts) >= 8, word


def checked(words: list[str]) -> None:
    """Raises click's UsageError for what is no command, or has an option that it lacks."""
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command, context = found, click.Context(found, info_name=name, parent=context)
    command.make_parser(context).parse_args(list(words))


@pytest.mark.parametrize("script", ["demo.sh", "demo-full.sh"])
def test_every_command_of_a_demo_is_one(script: str, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    for name in ("signarium", "python"):
        stub = tmp_path / name
        stub.write_text(
            f'#!/bin/sh\n[ {name} = python ] || {{ printf "%s\\0" "$@"; printf "\\1"; }} >> {calls}\n'
        )
        stub.chmod(0o755)
    environment = os.environ | {"BIN": str(tmp_path), "FOLDER": str(tmp_path / "full")}
    environment["SIGNARIUM_DB"] = str(tmp_path / "demo.duckdb")
    done = subprocess.run(
        [str(EXAMPLES / script)], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    ran = [call.split("\0")[:-1] for call in calls.read_text("utf-8").split("\1")[:-1]]
    shown = [
        shlex.split(line[2:]) for line in re.split(r"\n(?=\$ )|\n\n# ", done.stdout) if line.startswith("$ ")
    ]
    assert [words[1:] for words in shown] == ran
    assert len(ran) >= 8
    # Before each step one line says what one is about to see.
    assert "\n\n\n" not in done.stdout
    named = re.findall(rf"^  {tmp_path}/signarium (.*)$", done.stdout, re.M)
    assert len(named) == (4 if script == "demo.sh" else 0)
    for words in [*ran, *map(shlex.split, named)]:
        checked(words)


@pytest.mark.real
@pytest.mark.full
def test_the_short_demo_tells_the_two_banks_apart(tmp_path: Path) -> None:
    environment = os.environ | {
        "BIN": str(Path(sys.executable).parent),
        "SIGNARIUM_DB": str(tmp_path / "demo.duckdb"),
        "COLUMNS": "80",
    }
    done = subprocess.run(
        [str(EXAMPLES / "demo.sh")], env=environment, capture_output=True, text=True, check=True, timeout=1800
    )
    by_the_river, with_money = re.findall(r"^\d .*«bank».*$(?:\n\d .*$)+", done.stdout, re.M)
    assert all(RIVER.search(row) for row in by_the_river.splitlines())
    assert all(MONEY.search(row) for row in with_money.splitlines())
