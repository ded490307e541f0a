"""A whole method from outside: registered, ingested, listed, verified, searched and judged without an edit elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
import pytest
import tiny
import toymethod
import toysubject
from click.testing import CliRunner
from sqlalchemy.orm import Session

import signarium
from signarium.catalog import bulk, parts, schema, store
from signarium.catalog.ids import int_id, short_id
from signarium.cli import cli
from signarium.ingest import stages
from signarium.ingest.job import Context, Done
from signarium.ingest.journal import RunSpec, SetSpec, Units, Write, site_id
from signarium.ingest.progress import Progress
from signarium.ingest.size import Size, Step
from signarium.queries import subjects

SITES = ("resid_post.0", "resid_post.1")


class ToyStage:
    """For each type a row, a code that is its own, and for each site the share of positive signs beside fair coins."""

    name = "toys"
    needs = ("types",)
    watch = None

    def __init__(self, context: Context) -> None:
        self.context = context
        model_id = context.known.model_id
        sets = tuple(
            SetSpec(
                int_id("code_set", "toys", model_id, site.name), site, site_id(model_id, site.name), "toything", "zero",
                context.model.width_of(site),
            )
            for site in context.sites
        )  # fmt: skip
        self.spec = RunSpec(
            short_id("run", model_id, "toys", [one.site_id for one in sets]), "toys", {}, sets
        )
        self.n = context.model.vocab_size
        self.size = Size(rows=self.n * len(sets), steps=(Step("toys", 0.01),))

    def run(self, progress: Progress) -> Done:
        """All of it, in one shard."""
        self.context.run_units(Units(self.spec, self._rows, 1, "things", sizes=[self.n]), progress)
        return Done([self.spec.run_id], changed=True)

    def _rows(self, _: int) -> Write:
        run_id, codes, table = self.spec.run_id, [], []
        figures = []
        for one in self.spec.sets:
            with store.reading(self.context.path) as connection:
                found = connection.execute(
                    "SELECT token_id, norm, code FROM types WHERE model = ? AND site = ? AND centre = 'zero' "
                    "ORDER BY token_id",
                    [self.context.known.name, one.site.name],
                ).fetchnumpy()
            packed = np.stack([np.frombuffer(code, np.uint8) for code in found["code"]])
            positive = np.unpackbits(packed, axis=1).sum(1).astype(np.int32)
            codes.append(bulk.code_columns(one.code_set_id, found["token_id"], found["norm"], packed))
            table.append(
                {
                    "run_id": [run_id] * self.n, "site_id": [one.site_id] * self.n,
                    "token_id": found["token_id"].astype(np.int64), "positive": positive, "note": [None] * self.n,
                }
            )  # fmt: skip
            for control, value in (("none", float(positive.mean() / one.width)), ("coins", 0.5)):
                figures.append(
                    bulk.Figure(one.site_id, "toy", "", "toy_share", control, "in_sample", value, self.n)
                )

        def write(session: Session) -> None:
            bulk.insert_codes(session, codes)
            for columns in table:
                bulk.insert(session, schema.toy_row, columns)
            bulk.insert_figures(session, run_id, figures)

        return write


def test_a_method_from_outside_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PARTS", list(parts.PARTS))
    parts.register(toymethod.PART)
    subjects.register(toysubject.TOYTHINGS)
    path, folder = tmp_path / "c.duckdb", tiny.folder(tmp_path, "llama")
    try:
        with stages.registered(ToyStage):
            report = signarium.ingest(path, folder, name="model", sites=list(SITES), stages=["types", "toys"])
        assert report.estimate.rows == 3 * len(SITES) * tiny.VOCAB_SIZE
        c = signarium.open(path)
        # Listed, from Python, in SQL and on the command line.
        assert c.rows("toys").num_rows == len(SITES) * tiny.VOCAB_SIZE
        assert c.sql("SELECT count(*) AS n FROM toys WHERE positive > 0").to_pylist() != [{"n": 0}]
        listed = json.loads(
            CliRunner().invoke(cli, ["--db", str(path), "toys", "list", "--format", "json"]).stdout
        )
        assert [row["token_id"] for row in listed[:3]] == [0, 1, 2]
        # Searched and filtered.
        found = c.nearest("toything:3", where="toything_id % 2 = 1", site="resid_post.1", k=5).table
        assert found.column("distance")[0].as_py() == 0 and found.column("toything_id")[0].as_py() == 3
        # Judged.
        judged = [row for row in c.evidence().to_pylist() if row["claim_id"] == "99.1"]
        assert {row["control"]: row["verdict"] for row in judged} == {
            "the published range": "survives", "fair coins": "survives"
        }  # fmt: skip
        # Verified: sound as it is, and not once a row names a run that is not there.
        assert all(one.ok for one in c.verify())
        with duckdb.connect(str(path)) as connection:
            connection.execute("UPDATE toy_row SET run_id = 'none' WHERE token_id = 3")
        broken = {one.check: one.wrong for one in c.verify() if not one.ok}
        # The digest of the run that lost them, and that of a run which never was.
        assert broken == {"toys without their run": len(SITES), "toys that are not as they were written": 2}
    finally:
        subjects.unregister("toythings")
