"""The list of subjects: what stands in it, and what it takes to add to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import toysubject
from click.testing import CliRunner
from made import DECODER

import signarium
from signarium.catalog.errors import InvalidInput, NotFound
from signarium.cli import cli
from signarium.queries import subjects

AT = {"model": DECODER, "site": "resid_post.1", "centre": "mean"}


def test_the_list_agrees_with_its_subjects() -> None:
    every = subjects.every()
    assert [subject.view for subject in every] == subjects.names()
    for subject in every:
        assert subject.prefix is None or subjects.with_prefix(subject.prefix) is subject
    prefixes = [subject.prefix for subject in every if subject.prefix]
    assert len(prefixes) == len(set(prefixes)) and "code" not in prefixes
    for subject in every:
        assert subject.place in ("site", "stream", "own")
        assert subject.prefix is None or subject.example
        assert {"code", "norm"} <= set(subject.columns()) or not subject.indexed
    with pytest.raises(InvalidInput, match="synapses cannot be searched: there is states"):
        subjects.get("synapses")


@pytest.fixture
def toy(catalogue_copy: Path) -> Iterator[Path]:
    toysubject.add(catalogue_copy, DECODER)
    subjects.register(toysubject.TOYTHINGS)
    yield catalogue_copy
    subjects.unregister("toythings")


def test_a_subject_from_outside_is_searched_named_and_filtered(toy: Path) -> None:
    c = signarium.open(toy)
    whole = c.nearest("toything:3", k=1000, **AT)
    assert whole.target.view == "toythings" and whole.searched == whole.table.num_rows == 304
    as_types = c.nearest("toything:3", within="types", k=1000, **AT).table
    for name in ("distance", "norm", "code"):
        assert whole.table.column(name) == as_types.column(name)
    assert whole.table.column("toything_id").to_pylist() == as_types.column("token_id").to_pylist()
    some = c.nearest('type:" king"', within="toythings", where="toything_id % 3 = 1", k=1000, **AT)
    assert {row % 3 for row in some.table.column("toything_id").to_pylist()} == {1}
    code = np.frombuffer(whole.table.column("code")[0].as_py(), np.uint8)
    assert (
        c.search(code[None], within="toythings", **AT).items[0, 0]
        == whole.table.column("toything_id")[0].as_py()
    )
    with pytest.raises(NotFound, match="toything of decoder '999'"):
        c.nearest("toything:999", **AT)
    with pytest.raises(InvalidInput, match="columns are model, site, centre, basis, toything_id"):
        c.nearest("toything:3", where="nothing > 3", **AT)
    with pytest.raises(InvalidInput, match="not a toything_id"):
        c.nearest("toything:x", **AT)


def test_the_command_line_knows_it(toy: Path) -> None:
    run = CliRunner()
    asked = ["nearest", "toything:3", "--in", "toythings", "--model", DECODER, "-k", "2"]
    shown = run.invoke(cli, ["--db", str(toy), *asked])
    assert shown.exit_code == 0, shown.output
    assert "toything_id" in shown.stdout and "toythings of decoder at" in shown.stderr
    assert "toythings" in run.invoke(cli, ["nearest", "--help"]).stdout
