"""Every command that the documents show runs, on a tiny model that has the names which they use."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import tiny
import wordy

import signarium
from signarium.cli import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CATEGORIES = ("european_country", "calendar", "animal", "color")
PAIR = re.compile(r"align A|show A|--model [AB]")
"""Examples about two models, which have a catalogue of their own."""


def examples() -> Iterator[tuple[str, str]]:
    """The page and the line of each command in a shell block."""
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            for line in block.splitlines():
                if line.startswith("signarium "):
                    yield page.name, line


@dataclass(frozen=True)
class Library:
    """A folder with the texts that the examples name, and the catalogues that they read."""

    home: Path
    model: Path
    catalogue: Path
    pair: Path
    states: dict[Path, int]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    home = tmp_path_factory.mktemp("library")
    words = [word for name in CATEGORIES for word in wordy.words((name,), 24)[name]]
    extra = ["king", "Monday", "bank", "We", "walked", "along", "the", "name", "exception", "raise"]
    sentences = [f" The {word} and the king walked along the bank on Monday." for word in words]
    (home / "notes.txt").write_text("\n".join(sentences), encoding="utf-8")
    (home / "corpus").mkdir()
    (home / "corpus" / "more.txt").write_text("\n".join(sentences[:20]), encoding="utf-8")
    shape = {"vocab_size": wordy.ROWS, "hidden_size": 32, "intermediate_size": 310, "num_attention_heads": 2,
             "num_key_value_heads": 1, "num_hidden_layers": 30}  # fmt: skip
    folders = {}
    for name, seed, layers in (("SmolLM2-135M", 0, 30), ("A", 1, 3), ("B", 2, 3)):
        folders[name] = tiny.folder(home, "llama", seed, name=name, **shape | {"num_hidden_layers": layers})
        wordy.tokenizer([*words, *extra]).save_pretrained(folders[name])
    catalogue, pair = home / "catalogue.duckdb", home / "pair.duckdb"
    signarium.ingest(
        catalogue, str(folders["SmolLM2-135M"]), text=[home / "notes.txt"], seeds=20,
        sites="resid_post.5,17,29", stages=["types", "states", "features", "neurons", "writers"],
    )  # fmt: skip
    for name in ("A", "B"):
        signarium.ingest(
            pair, str(folders[name]), text=[home / "notes.txt"], sites="resid_post.1",
            stages=["types", "states"] + ["features"] * (name == "A"), seeds=20 if name == "A" else None,
        )  # fmt: skip
    signarium.open(pair).align("A", "B", text=home / "notes.txt", sites="resid_post.1", steer=False)
    states = {
        path: signarium.open(path)
        .sql(f"SELECT min(state_id) AS id FROM states WHERE model = '{model}' AND position = 7")
        .to_pylist()[0]["id"]
        for path, model in ((catalogue, "SmolLM2-135M"), (pair, "A"))
    }
    return Library(home, folders["A"], catalogue, pair, states)


@pytest.mark.parametrize(("page", "line"), list(examples()), ids=lambda value: str(value)[:60])
def test_each_example_runs(
    page: str, line: str, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(library.home)
    path = library.pair if PAIR.search(line) else library.catalogue
    words = shlex.split(line, comments=True)[1:]
    if words[0] in ("ingest", "flip", "align", "sae"):
        # What writes gets a catalogue of its own.
        path = wordy.copy(path, tmp_path) if words[0] != "ingest" else tmp_path / "fresh.duckdb"
    words = [word.replace("state:STATE_ID", f"state:{library.states.get(path, 0)}") for word in words]
    words = [str(library.model) if word == "Qwen/Qwen3-0.6B" else word for word in words]
    cli.main(["--db", str(path), *words], standalone_mode=False)


def queries() -> list[str]:
    """The queries of the cookbook."""
    block = re.search(r"```sql\n(.*?)```", (ROOT / "docs" / "sql.md").read_text(encoding="utf-8"), re.S)
    assert block is not None
    return [query.strip() for query in block[1].split(";") if query.strip()]


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.split("\n")[0][:40])
def test_each_query_of_the_cookbook_runs(query: str, library: Library) -> None:
    assert signarium.open(library.catalogue).sql(query).num_columns > 1


def test_the_documents_name_only_options_that_exist() -> None:
    shown = re.findall(r"`signarium ((?:[a-z_]+ ?)+)", "".join(one.read_text() for one in PAGES))
    for words in shown:
        command: click.Command = cli
        for word in words.split():
            if isinstance(command, click.Group):
                found = command.get_command(click.Context(command), word)
                assert found is not None, words
                command = found
