"""The job `feature_states`: every stored state of a text against the features of a run, a shard a code set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from ...catalog import bulk, schema, store
from ...catalog.ids import short_id
from ..job import Done
from ..journal import RunSpec, Units, Write, is_finished
from ..progress import Progress
from .source import Source
from .stored import score_states, scored_figures, stored_features


@dataclass(frozen=True)
class Stored:
    """The states of a run over text at the sites of some features.

    `sets` are (site, centre, code set, width), `ranges` the first and the last state of each text.
    """

    sets: list[tuple[str, str, int, int]]
    tokens: int
    ranges: list[tuple[int, int]]


def run_feature_states(
    source: Source, feature_runs: Sequence[str], text_runs: Sequence[str], progress: Progress
) -> Done:
    """Score the states of each run over text against the features of each run that has made some."""
    done = Done()
    for features in feature_runs:
        for text_run in text_runs:
            stored = _stored(source, features, text_run)
            if not stored.sets or not stored.tokens:
                continue
            ident = short_id(
                "run", source.model_id, "feature_states", features, text_run, stored.tokens, stored.sets
            )
            params = {"features": features, "states": text_run, "states_tokens": stored.tokens}
            done.runs.append(ident)
            if not is_finished(source.context.path, ident):
                _score(source, RunSpec(ident, "feature_states", params, ()), stored, progress)
                done.changed = True
    return done


def _stored(source: Source, features: str, text_run: str) -> Stored:
    with store.reading(source.context.path) as connection:
        sets: list[Any] = connection.execute(
            "SELECT s.name, cs.centre, cs.code_set_id, cs.width FROM code_set cs JOIN site s USING (site_id) "
            "WHERE cs.run_id = ? AND cs.subject = 'state' AND (s.name, cs.centre) IN (SELECT (t.name, f.centre) "
            "FROM feature_row f JOIN site t USING (site_id) WHERE f.run_id = ?) ORDER BY ALL",
            [text_run, features],
        ).fetchall()
        tokens = connection.execute(
            "SELECT coalesce(sum(tokens), 0)::BIGINT FROM shard WHERE run_id = ?", [text_run]
        ).fetchall()[0][0]
        ranges: list[Any] = connection.execute(
            "SELECT t.text_id, max(w.state_id) FROM run_text t JOIN state_row w ON w.state_id >= t.text_id "
            "AND w.state_id < t.text_id + 4294967296 WHERE t.run_id = ? GROUP BY ALL ORDER BY ALL",
            [text_run],
        ).fetchall()
    return Stored(sets, tokens, ranges)


def _score(source: Source, spec: RunSpec, stored: Stored, progress: Progress) -> None:
    path = source.context.path

    def compute(i: int) -> Write:
        site, centre, code_set_id, width = stored.sets[i]
        features = stored_features(path, spec.params["features"], site, centre)
        scored = score_states(path, features, code_set_id, width, stored.ranges)
        figures, rows = scored_figures(features, scored, source.site_id(site), centre, source.seed)

        def write(session: Session) -> None:
            n = len(rows["feature_id"])
            bulk.insert(session, schema.feature_state_row, {"run_id": [spec.run_id] * n, **rows})
            bulk.insert_figures(session, spec.run_id, figures)

        return write

    source.context.run_units(Units(spec, compute, len(stored.sets), "code sets"), progress)
