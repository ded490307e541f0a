"""What the catalogue already holds of a model: its row, its runs, the means of its sites."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..catalog import schema, store
from ..catalog.errors import RunConflict
from ..catalog.ids import short_id
from .differences import differences
from .journal import RunSpec, SetSpec, now
from .model.sites import Site
from .stats.moments import stored_moments

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
    note: str = ""
    means: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    tokenizer_known: bool = False


def model_id(model: LoadedModel) -> str:
    """From the content of weights, tokenizer and config, and from the float type and the attention that they run in.

    A model that a catalogue held before configs counted keeps its id there.
    """
    if model.catalogue_id is not None:
        return model.catalogue_id
    return short_id(
        "model", model.weights_sha256, model.tokenizer_sha256, model.dtype, model.config, model.attention
    )


def _earlier_id(model: LoadedModel) -> str:
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
        config=model.config,
        attention=model.attention,
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
        return Known(ident, wanted, False)
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT model_id, name, dtype, weights_sha256, tokenizer_sha256, config, attention FROM model ORDER BY name"
        ).fetchall()
        here = next((row for row in rows if row[0] == ident), None)
        note = ""
        if here is None:
            earlier = _earlier_id(model)
            here = next((row for row in rows if row[0] == earlier and _may_be(row, model, name)), None)
            if here is not None:
                ident = model.catalogue_id = earlier
                if here[5] is None:
                    note = f"{here[1]} was added before its config was kept: it is taken to be the one that is there now"
        if here is not None:
            if name is not None and here[1] != name:
                raise RunConflict(
                    f"these weights are already in the catalogue as {here[1]!r}", "leave --name out"
                )
            wanted = here[1]
        else:
            namesake = next((row for row in rows if row[1] == wanted), None)
            if namesake is not None:
                what = _other(namesake, model)
                raise RunConflict(f"the name {wanted!r} belongs to {what}", "pass another --name")
            twin = next((row for row in rows if row[3] == model.weights_sha256), None)
            if twin is not None:
                note = f"{twin[1]} in the catalogue is {_other(twin, model)}: {wanted} is added beside it"
        known = Known(ident, wanted, here is not None, note)
        found = connection.execute(
            "SELECT count(*) FROM token_row WHERE tokenizer = ?", [model.tokenizer_sha256]
        )
        known.tokenizer_known = (found.fetchone() or (0,))[0] >= model.vocab_size
        known.means = {site: one.mean for site, one in stored_moments(connection, ident).items()}
    return known


def _may_be(row: Sequence[Any], model: LoadedModel, name: str | None) -> bool:
    """Whether a model that was added before configs were kept is the one at hand, as far as its row says."""
    if row[5] is None:
        return name in (None, row[1])
    return (row[5], row[6]) == (model.config, model.attention)


def _other(row: Sequence[Any], model: LoadedModel) -> str:
    """In what the model of a row is another one than that at hand."""
    _, _, dtype, weights, tokenizer, config, attention = row
    if weights != model.weights_sha256:
        return "another model"
    if dtype != model.dtype:
        return f"the same weights in {dtype}"
    if config is not None and config != model.config:
        keys = differences(config, model.config)
        return (
            f"the same weights with another config ({', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''})"
        )
    if tokenizer != model.tokenizer_sha256:
        return "the same weights with another tokenizer, or with this one as an earlier signarium read it"
    return f"the same weights with the attention {attention} (this is {model.attention})"


def remember_source(path: Path, model: LoadedModel) -> None:
    """Note where the model lies now, if it has left its place: what recomputes its codes looks for it there.

    A model that was added before configs were kept gets that of `model`.
    """
    row = model_row(model, model.name)
    with store.reading(path) as connection:
        found = connection.execute(
            "SELECT source, config FROM model WHERE model_id = ?", [row.model_id]
        ).fetchone()
    if found is None:
        return
    moved = Path(found[0]).is_absolute() and not Path(found[0]).exists()
    if not moved and found[1] is not None:
        return
    with store.writing(path) as session:
        kept = session.get_one(schema.Model, row.model_id)
        if moved:
            kept.source, kept.revision = row.source, row.revision
        if kept.config is None:
            kept.config, kept.attention = row.config, row.attention


def text_runs(path: Path, model_id: str) -> list[str]:
    """The runs of a model that stored states, oldest first."""
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT run_id FROM run WHERE model_id = ? AND job = 'states' AND run_id IN (SELECT run_id FROM shard) "
            "ORDER BY started_at, run_id",
            [model_id],
        ).fetchall()
    return [row[0] for row in rows]


def old_runs(path: Path, model_id: str, jobs: Sequence[str]) -> list[OldRun]:
    """The runs of some jobs that the catalogue at `path`, which may not exist yet, holds of a model, oldest first."""
    if not path.exists():
        return []
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT run_id, job, params, finished_at IS NOT NULL, complete AND finished_at IS NOT NULL FROM run "
            "WHERE model_id = ? AND list_contains(?, job) ORDER BY started_at, run_id",
            [model_id, list(jobs)],
        ).fetchall()
        return [_old_run(connection, *row) for row in rows]


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
    # A type without a finite state is done and has no code; a state is a token of a window.
    counted = "tokens" if job == "states" else "n"
    done = connection.execute(
        f"SELECT coalesce(sum({counted}), 0) FROM shard WHERE run_id = ?", [run_id]
    ).fetchone()
    spec = RunSpec(run_id, job, json.loads(params), tuple(specs), tuple(row[0] for row in text_ids))
    return OldRun(spec, finished, complete, int(done[0]))


def site_key(site: Site) -> tuple[str, int]:
    """What sites are sorted by in a run."""
    return site.point, -1 if site.layer is None else site.layer
