"""What an ingest has to do: which code sets are still missing, over which texts, and how large it will be."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..catalog import schema, store
from ..catalog.bulk import ROW_GROUP
from ..catalog.codes import n_bytes
from ..catalog.errors import InvalidInput, RunConflict
from ..catalog.ids import int_id, short_id, text_base
from .journal import RunSpec, SetSpec, now
from .model.sites import Site
from .text import windows as texts

if TYPE_CHECKING:
    from .model.load import LoadedModel

JOBS = {"types": "type", "types_bos": "type_bos", "states": "state"}
"""The jobs of this module's plans, and the subject of the codes that each one writes."""


@dataclass(frozen=True)
class TextPlan:
    """A text as this model's tokenizer cuts it, with its place in the catalogue.

    `counts` is what a limit on tokens leaves of it; `whole` says that it leaves everything.
    """

    file: texts.TextFile
    row: schema.TextFile
    counts: texts.Counts
    whole: bool


@dataclass(frozen=True)
class JobPlan:
    """One run to do or to go on with.

    `tokens` is where it ends and `tokens_done` what is committed; `complete` says that nothing of its content
    is left after that. The bytes are what is still to be written.
    """

    spec: RunSpec
    texts: tuple[TextPlan, ...]
    tokens: int
    tokens_done: int
    rows: int
    catalogue_bytes: int
    index_bytes: int
    scratch_bytes: int
    shard_tokens: int
    complete: bool

    @property
    def done(self) -> bool:
        """Whether nothing is left to compute."""
        return self.tokens_done >= self.tokens


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
    specs.sort(key=lambda one: (*_site_key(one.site), one.centre == "mean"))
    text_ids = connection.execute(
        "SELECT text_id FROM run_text WHERE run_id = ? ORDER BY place", [run_id]
    ).fetchall()
    done = connection.execute(
        "SELECT coalesce(sum(tokens), 0) FROM shard WHERE run_id = ?", [run_id]
    ).fetchone()
    spec = RunSpec(run_id, job, json.loads(params), tuple(specs), tuple(row[0] for row in text_ids))
    return OldRun(spec, finished, complete, int(done[0]))


def _site_key(site: Site) -> tuple[str, int]:
    return site.point, -1 if site.layer is None else site.layer


# ---- types --------------------------------------------------------------------------------------


def plan_types(model: LoadedModel, known: Known, sites: Sequence[Site], bos: bool) -> list[JobPlan]:
    """Runs of the stage `types` (with `bos`: of the tokens behind a BOS) for those `sites` that lack it."""
    job = "types_bos" if bos else "types"
    planned: list[JobPlan] = []
    missing = list(sites)
    for old in known.runs:
        shared = [site for site in missing if site in old.spec.sites]
        if old.spec.job != job or not shared:
            continue
        missing = [site for site in missing if site not in shared]
        if not old.complete:
            planned.append(_types_plan(model, old.spec, known, old.tokens_done))
    if missing:
        spec = _new_spec(
            model, known, job, [(site, centre) for site in missing for centre in ("zero", "mean")], {}
        )
        planned.append(_types_plan(model, spec, known, 0))
    return planned


def _types_plan(model: LoadedModel, spec: RunSpec, known: Known, done: int) -> JobPlan:
    n = model.vocab_size
    item = {"float32": 4, "bfloat16": 2, "float16": 2}[model.dtype]
    return JobPlan(
        spec=spec,
        texts=(),
        tokens=n,
        tokens_done=done,
        rows=(n - done) * len(spec.sets),
        catalogue_bytes=_catalogue_bytes(
            spec.sets,
            n - done,
            _DIMENSION_BYTES * sum(one.width for one in spec.sets) / 2
            + (0 if known.tokenizer_known else _TOKEN_BYTES * n),
        ),
        index_bytes=sum(n * n_bytes(one.width) for one in spec.sets),
        scratch_bytes=sum(n * model.width_of(site) * item for site in spec.sites),
        shard_tokens=_shard_tokens(spec.sets),
        complete=True,
    )


# ---- states -------------------------------------------------------------------------------------


def place_texts(
    path: Path,
    model: LoadedModel,
    files: Sequence[texts.TextFile],
    context: int,
    limit: int | None,
    counted: Callable[[str, int], None],
) -> list[TextPlan]:
    """Count the windows of each text, up to `limit` tokens in all, and find, or choose, its range of ids.

    Raises:
        TextError: if a text cannot be read, or none has a token.
    """
    prefix, suffix = model.tokenizer_adds()
    placed: list[TextPlan] = []
    taken: dict[int, tuple[str, str, str, int]] = {}
    if path.exists():
        with store.reading(path) as connection:
            for base, *rest in connection.execute(
                "SELECT text_id, sha256, kind, tokenizer_sha256, context FROM text_file"
            ).fetchall():
                taken[base] = (rest[0], rest[1], rest[2], rest[3])
    tokens = 0
    for file in files:
        counts = texts.Counts(0, 0, 0)
        left = None if limit is None else limit - tokens
        if left is None or left > 0:
            counts = texts.count(
                file,
                model.tokenizer,
                context,
                prefix,
                suffix,
                left,
                lambda so_far, name=file.name: counted(name, so_far.n_tokens),  # type: ignore[misc]
            )
        tokens += counts.n_tokens
        if counts.n_tokens >= 1 << 32:
            raise InvalidInput(f"{file.name} has more than 2**32 tokens", "split it")
        kind = file.path.suffix.lower() if file.path.suffix.lower() in (".jsonl", ".parquet") else "text"
        identity = (file.sha256, kind, model.tokenizer_sha256, context)
        text_id = next(
            base
            for base in (text_base(salt, *identity) for salt in range(1000))
            if taken.get(base, identity) == identity
        )
        taken[text_id] = identity
        row = schema.TextFile(
            text_id=text_id,
            name=file.name,
            sha256=file.sha256,
            size=file.size,
            kind=kind,
            tokenizer_sha256=model.tokenizer_sha256,
            context=context,
            added_at=now(),
        )
        # Of a text that ends just where the limit does, nobody has seen yet that it ends.
        placed.append(TextPlan(file, row, counts, left is None or counts.n_tokens < left))
    if not tokens:
        raise InvalidInput("the text given with --text holds no token", "give a text with words in it")
    return placed


def plan_states(
    model: LoadedModel,
    known: Known,
    sites: Sequence[Site],
    placed: Sequence[TextPlan],
    context: int,
    means: Sequence[str],
) -> list[JobPlan]:
    """Runs of the stage `states` for those sites, centres and texts that lack it.

    `means` names the sites whose centre `mean` is known by then. A run that was started earlier and needs only
    texts that are given again is finished first.

    Raises:
        RunConflict: if an unfinished run shares a text but also reads one that was not given.
    """
    units: list[tuple[Site, str]] = [
        (site, centre) for site in sites for centre in (("zero", "mean") if site.name in means else ("zero",))
    ]
    by_id = {one.row.text_id: one for one in placed}
    missing: dict[tuple[Site, str], list[int]] = {unit: list(by_id) for unit in units}
    planned: list[JobPlan] = []
    for old in known.runs:
        if old.spec.job != "states":
            continue
        here = [(one.site, one.centre) for one in old.spec.sets]
        shared = {text for unit in here for text in missing.get(unit, ()) if text in old.spec.texts}
        if not shared:
            continue
        for unit in here:
            if unit in missing:
                missing[unit] = [text for text in missing[unit] if text not in shared]
        if old.complete:
            continue
        if not set(old.spec.texts) <= set(by_id):
            names = ", ".join(by_id[one].file.name for one in sorted(shared))
            raise RunConflict(
                f"{names} is part of an unfinished run ({old.spec.run_id}) that reads other texts too",
                "give the same --text again to finish it first",
            )
        planned.append(_states_plan(old.spec, [by_id[one] for one in old.spec.texts], old.tokens_done))
    groups: dict[tuple[int, ...], list[tuple[Site, str]]] = {}
    for unit, left in missing.items():
        if left:
            groups.setdefault(tuple(left), []).append(unit)
    for needed, group in groups.items():
        spec = _new_spec(model, known, "states", group, {"context": context}, needed)
        plan = _states_plan(spec, [by_id[one] for one in needed], 0)
        # Nothing to read: the limit is used up by texts that are in already.
        if plan.tokens:
            planned.append(plan)
    return planned


def _states_plan(spec: RunSpec, own: Sequence[TextPlan], done: int) -> JobPlan:
    tokens = sum(one.counts.n_tokens for one in own)
    windows = sum(one.counts.n_windows for one in own)
    text_bytes = sum(one.counts.text_bytes for one in own)
    left = max(0, tokens - done)
    share = left / tokens if tokens else 0.0
    return JobPlan(
        spec=spec,
        texts=tuple(own),
        tokens=tokens,
        tokens_done=done,
        rows=left * len(spec.sets),
        catalogue_bytes=_catalogue_bytes(
            spec.sets,
            left,
            share * (_STATE_BYTES * tokens + _WINDOW_BYTES * windows + _TEXT_SHARE * text_bytes),
        ),
        index_bytes=sum(tokens * n_bytes(one.width) for one in spec.sets),
        scratch_bytes=0,
        shard_tokens=_shard_tokens(spec.sets),
        complete=all(one.whole for one in own),
    )


def _new_spec(
    model: LoadedModel,
    known: Known,
    job: str,
    units: Sequence[tuple[Site, str]],
    params: dict[str, Any],
    text_ids: Sequence[int] = (),
) -> RunSpec:
    named = [[site.name, centre] for site, centre in units]
    run_id = short_id("run", known.model_id, job, named, params, list(text_ids))
    sets = tuple(
        SetSpec(
            int_id("code_set", run_id, site.name, JOBS[job], centre, "standard"),
            site,
            f"{known.model_id}/{site.name}",
            JOBS[job],
            centre,
            model.width_of(site),
        )
        for site, centre in sorted(units, key=lambda unit: (*_site_key(unit[0]), unit[1] == "mean"))
    )
    shown = {"sites": list(dict.fromkeys(site.name for site, _ in units)), **params}
    return RunSpec(
        run_id, job, {**shown, "texts": len(text_ids)} if text_ids else shown, sets, tuple(text_ids)
    )


# ---- size ---------------------------------------------------------------------------------------
# DuckDB's storage, measured: an uncompressed code costs its bytes and a 4-byte offset, a norm 4 bytes; item and
# code_set_id compress to nearly nothing. A column fills blocks of 64 KiB, and since every shard is committed
# and checkpointed by itself, its last blocks stay part empty.

_BLOCK = schema.BLOCK_BYTES
_SHARD_BLOCKS = 3.0
"""Blocks of a shard beside its codes and norms: the small columns and the metadata."""
_TOKEN_BYTES = 11.0
_DIMENSION_BYTES = 50
_STATE_BYTES = 3.0
_WINDOW_BYTES = 90
_TEXT_SHARE = 0.55
EMPTY_BYTES = 536_576 + 19 * schema.BLOCK_BYTES
"""A catalogue with one small run: each small table and each key fills a block."""


def _catalogue_bytes(sets: Sequence[SetSpec], items: int, other_bytes: float) -> int:
    """Bytes that `items` rows of each code set add to the file, with `other_bytes` in other tables."""
    step = _shard_tokens(sets)
    blocks = float(math.ceil(other_bytes / _BLOCK))
    for n in [step] * (items // step) + [items % step]:
        if n:
            codes = sum(n * (n_bytes(one.width) + 4) for one in sets)
            blocks += math.ceil(codes / _BLOCK) + math.ceil(n * len(sets) * 4 / _BLOCK) + _SHARD_BLOCKS
    return round(blocks * _BLOCK)


def _shard_tokens(sets: Sequence[SetSpec]) -> int:
    """Tokens of a shard: those whose codes fill a row group, within reason for a kill to lose."""
    return max(256, min(65_536, ROW_GROUP // max(1, len(sets))))
