"""What the catalogue already holds of a model: its row, its runs, the means of its sites."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..catalog import schema, store
from ..catalog.errors import RunConflict
from ..catalog.ids import short_id
from .journal import RunSpec, SetSpec, now
from .model.sites import Site

if TYPE_CHECKING:
    from .model.loaded import LoadedModel


@dataclass(frozen=True)
class OldRun:
    """A run that is in the catalogue: `finished` did what it was asked, `complete` left nothing of its content."""

    spec: RunSpec
    finished: bool
    complete: bool
    tokens_done: int


@dataclass
class Known:
    """What the catalogue already holds of one model. Read once, before planning."""

    model_id: str
    name: str
    added: bool
    runs: list[OldRun]
    means: dict[str, NDArray[np.float64]]
    tokenizer_known: bool


def model_id(model: LoadedModel) -> str:
    """From the content of the weights and the tokenizer, and the float type that they run in."""
    return short_id("model", model.weights_sha256, model.tokenizer_sha256, model.dtype)


def model_row(model: LoadedModel, name: str) -> schema.Model:
    """The row of `models` for a loaded model."""
    return schema.Model(
        model_id=model_id(model),
        name=name,
        source=_lasting(model.source),
        revision=model.revision,
        architecture=model.architecture,
        width=model.width,
        n_layers=model.n_layers,
        d_ffn=model.d_ffn,
        vocab_size=model.vocab_size,
        dtype=model.dtype,
        weights_sha256=model.weights_sha256,
        tokenizer_sha256=model.tokenizer_sha256,
        random_init_seed=model.random_init_seed,
        added_at=now(),
    )


def _lasting(source: str) -> str:
    """A local path in full: a relative one means nothing in another folder."""
    local = os.path.expanduser(source)
    return os.path.abspath(local) if os.path.exists(local) else source


def look_up(path: Path, model: LoadedModel, name: str | None) -> Known:
    """What the catalogue at `path` (which may not exist yet) holds of `model`.

    Raises:
        RunConflict: if `name` belongs to another model, or these weights are in under another name.
    """
    ident = model_id(model)
    seed = model.random_init_seed
    # A control stands beside what it controls.
    wanted = name or (model.name if seed is None else f"{model.name}-random-{seed}")
    if not path.exists():
        return Known(ident, wanted, False, [], {}, False)
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT model_id, name, dtype, weights_sha256 FROM model ORDER BY name"
        ).fetchall()
        here = next((row for row in rows if row[0] == ident), None)
        if here is not None:
            if name is not None and here[1] != name:
                raise RunConflict(
                    f"these weights are already in the catalogue as {here[1]!r}", "leave --name out"
                )
            wanted = here[1]
        else:
            namesake = next((row for row in rows if row[1] == wanted), None)
            if namesake is not None:
                what = (
                    f"the same weights in {namesake[2]}"
                    if namesake[3] == model.weights_sha256
                    else "another model"
                )
                raise RunConflict(f"the name {wanted!r} belongs to {what}", "pass another --name")
        known = Known(ident, wanted, here is not None, [], {}, False)
        found = connection.execute(
            "SELECT count(*) FROM token_row WHERE tokenizer = ?", [model.tokenizer_sha256]
        )
        known.tokenizer_known = (found.fetchone() or (0,))[0] >= model.vocab_size
        known.runs = [
            _old_run(connection, *row)
            for row in connection.execute(
                "SELECT run_id, job, params, finished_at IS NOT NULL, complete AND finished_at IS NOT NULL FROM run WHERE model_id = ? "
                "AND job IN ('types', 'types_bos', 'states') ORDER BY started_at, run_id",
                [ident],
            ).fetchall()
        ]
        whole = {one.spec.run_id for one in known.runs if one.complete and one.spec.job == "types"}
        for run_id, site, mean in connection.execute(
            "SELECT d.run_id, s.name, list(d.mean ORDER BY d.dim) FROM dimension_row d JOIN site s USING (site_id) "
            "WHERE s.model_id = ? AND d.subject = 'type' GROUP BY ALL",
            [ident],
        ).fetchall():
            if run_id in whole:
                known.means[site] = np.array(mean, dtype=np.float64)
    return known


def _old_run(connection: Any, run_id: str, job: str, params: str, finished: bool, complete: bool) -> OldRun:
    sets = connection.execute(
        "SELECT c.code_set_id, s.name, s.site_id, c.subject, c.centre, c.width FROM code_set c "
        "JOIN site s USING (site_id) WHERE c.run_id = ?",
        [run_id],
    ).fetchall()
    specs = [SetSpec(i, Site.from_name(name), *rest) for i, name, *rest in sets]
    # The order in which the run was planned, which is what its shards were packed in.
    specs.sort(key=lambda one: (*site_key(one.site), one.centre == "mean"))
    text_ids = connection.execute(
        "SELECT text_id FROM run_text WHERE run_id = ? ORDER BY place", [run_id]
    ).fetchall()
    done = connection.execute(
        "SELECT coalesce(sum(tokens), 0) FROM shard WHERE run_id = ?", [run_id]
    ).fetchone()
    spec = RunSpec(run_id, job, json.loads(params), tuple(specs), tuple(row[0] for row in text_ids))
    return OldRun(spec, finished, complete, int(done[0]))


def site_key(site: Site) -> tuple[str, int]:
    return site.point, -1 if site.layer is None else site.layer
