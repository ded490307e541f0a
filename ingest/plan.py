"""What an ingest has to do: which code sets are still missing, over which texts, and how large it will be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalog import schema, store
from ..catalog.codes import n_bytes
from ..catalog.errors import InvalidInput, RunConflict
from ..catalog.ids import int_id, short_id, text_base
from . import size
from .journal import RunSpec, SetSpec, now
from .known import Known, site_key
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
        catalogue_bytes=size.code_bytes(
            spec.sets,
            n - done,
            size.DIMENSION_BYTES * sum(one.width for one in spec.sets) / 2
            + (0 if known.tokenizer_known else size.TOKEN_BYTES * n),
        ),
        index_bytes=sum(n * n_bytes(one.width) for one in spec.sets),
        scratch_bytes=sum(n * model.width_of(site) * item for site in spec.sites),
        shard_tokens=size.shard_tokens(spec.sets),
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
        identity = (file.sha256, file.kind, model.tokenizer_sha256, context)
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
            kind=file.kind,
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
        catalogue_bytes=size.code_bytes(
            spec.sets,
            left,
            share * (size.STATE_BYTES * tokens + size.WINDOW_BYTES * windows + size.TEXT_SHARE * text_bytes),
        ),
        index_bytes=sum(tokens * n_bytes(one.width) for one in spec.sets),
        scratch_bytes=0,
        shard_tokens=size.shard_tokens(spec.sets),
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
        for site, centre in sorted(units, key=lambda unit: (*site_key(unit[0]), unit[1] == "mean"))
    )
    shown = {"sites": list(dict.fromkeys(site.name for site, _ in units)), **params}
    return RunSpec(
        run_id, job, {**shown, "texts": len(text_ids)} if text_ids else shown, sets, tuple(text_ids)
    )
