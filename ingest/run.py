"""`ingest`: plan, estimate, run the stages, build the indexes. One call is one command."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..catalog import index, schema, store
from ..catalog.errors import CatalogueMissing, DiskFull, InvalidInput, SignariumError
from .job import Estimate, Report
from .journal import Journal
from .known import Known, look_up, model_id, model_row
from .passes.forward import default_batch_tokens
from .plan import JobPlan, TextPlan, place_texts, plan_states, plan_types
from .progress import Progress, Silent
from .size import EMPTY_BYTES, free_bytes
from .text import windows as texts

if TYPE_CHECKING:
    from .features.stage import Options, Stage
    from .model.load import LoadedModel
    from .neurons.stage import NeuronStage
    from .passes.replicas import Replicas
    from .types.stage import Also
    from .writers.stage import WriterStage

STAGES = ("types", "states", "features", "neurons", "writers")
DEFAULT_STAGES = STAGES
CONTEXT = 256


def ingest(
    db: str | Path,
    model: str,
    *,
    text: str | Path | Sequence[str | Path] = (),
    name: str | None = None,
    sites: str | Sequence[str] | None = None,
    stages: str | Sequence[str] | None = None,
    max_tokens: int | None = None,
    context: int | None = None,
    device: str = "auto",
    devices: str | Sequence[str] | None = None,
    dtype: str = "auto",
    batch_tokens: int | None = None,
    bos: bool = False,
    categories: str | Path | None = None,
    seeds: int | None = None,
    random_init: int | None = None,
    revision: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Run `model` over its vocabulary and over `text`, and leave its sign codes and features in the catalogue at `db`.

    What is there already is left alone, and an earlier try that was cut short is gone on with. `stages`
    defaults to all, states only if there is a text. `devices` (names, or one string with commas) takes the place of
    `device`: batches of the stages types and states are shared out among these, of one kind all of them, and the
    rest runs on the first. See `signarium ingest --help` for the options.

    Raises:
        SignariumError: one of its subclasses, for anything that the caller can mend.
    """
    path = Path(db)
    progress = progress or Silent()
    text = [text] if isinstance(text, str | Path) else list(text)
    stages = stages.split(",") if isinstance(stages, str) else stages
    sites = sites if isinstance(sites, str | None) else ";".join(sites)
    wanted = _stages(stages, bool(text), bos)
    if (
        (context is not None and context < 1)
        or (max_tokens is not None and max_tokens < 1)
        or (batch_tokens is not None and batch_tokens < 1)
    ):
        raise InvalidInput("--context, --max-tokens and --batch-tokens must be positive")
    if "features" not in wanted and (categories is not None or seeds is not None):
        raise InvalidInput(
            "--categories and --seeds belong to the stage features",
            "add features to --stages, or leave them out",
        )
    if seeds is not None and seeds < 1:
        raise InvalidInput("--seeds must be positive")
    if devices is not None and device != "auto":
        raise InvalidInput("--device and --devices exclude each other", "pass one of them")
    names = devices.split(",") if isinstance(devices, str) else devices
    features = None
    if "features" in wanted:
        from .features.discovery import DEFAULT_SEEDS
        from .features.stage import Options

        features = Options(Path(categories) if categories is not None else None, seeds or DEFAULT_SEEDS)
    files = texts.find_texts(text) if text else []
    try:
        # A file that is no catalogue should be said before a model is loaded for minutes.
        with store.reading(path):
            pass
    except CatalogueMissing:
        if not path.parent.is_dir():
            raise InvalidInput(
                f"there is no folder {path.parent}", "make it, or pass another --db PATH"
            ) from None
    with nullcontext() if dry_run else store.job_lock(path):
        return _ingest(
            path,
            model,
            wanted,
            files,
            name,
            sites,
            max_tokens,
            context,
            [device] if names is None else [one.strip() for one in names],
            dtype,
            batch_tokens,
            bos,
            features,
            random_init,
            revision,
            dry_run,
            progress,
            stages is not None,
        )


def _stages(stages: Sequence[str] | None, has_text: bool, bos: bool) -> list[str]:
    usual = [one for one in DEFAULT_STAGES if has_text or one != "states"]
    wanted = list(stages) if stages is not None else usual
    for one in wanted:
        if one not in STAGES:
            raise InvalidInput(f"no stage {one!r}", f"there is {', '.join(STAGES)}")
    if not wanted:
        raise InvalidInput("no stage was given", f"there is {', '.join(STAGES)}")
    if "states" in wanted and not has_text:
        raise InvalidInput("the stage states needs a text", "pass --text PATH")
    if bos and "types" not in wanted:
        raise InvalidInput("--bos belongs to the stage types", "add types to --stages, or leave --bos out")
    if has_text and "states" not in wanted:
        raise InvalidInput(
            "a text was given but not the stage states", "add states to --stages, or leave --text out"
        )
    return [one for one in STAGES if one in wanted]


def _ingest(
    path: Path,
    source: str,
    stages: list[str],
    files: list[texts.TextFile],
    name: str | None,
    spec: str | None,
    max_tokens: int | None,
    context: int | None,
    devices: list[str],
    dtype: str,
    batch_tokens: int | None,
    bos: bool,
    features: Options | None,
    random_init: int | None,
    revision: str | None,
    dry_run: bool,
    progress: Progress,
    asked: bool,
) -> Report:
    from .model.load import find_devices, load_model
    from .passes.replicas import Replicas

    progress.loading(f"loading {source}")
    replicas = Replicas(
        [
            load_model(source, revision=revision, device=str(one), dtype=dtype, random_init=random_init)
            for one in find_devices(devices)
        ]
    )
    model = replicas.models[0]
    sites = model.parse_sites(spec) if spec else model.default_sites()
    if context is None:
        context = min(CONTEXT, model.max_positions or CONTEXT)
    if files and model.max_positions is not None and context > model.max_positions:
        raise InvalidInput(
            f"a context of {context} is more than the {model.max_positions} positions of {model.name}",
            f"pass --context {model.max_positions}",
        )
    if bos and model.bos_id is None:
        raise InvalidInput(f"the tokenizer of {model.name} has no BOS token", "leave --bos out")
    known = look_up(path, model, name)
    plans: list[JobPlan] = []
    if "types" in stages:
        plans += plan_types(model, known, sites, bos=False)
        if bos:
            plans += plan_types(model, known, sites, bos=True)
    if "states" in stages:
        progress.loading("counting tokens")
        placed = place_texts(path, model, files, context, max_tokens, progress.counted)
        centred = [one.name for one in sites] if "types" in stages else list(known.means)
        plans += plan_states(model, known, sites, placed, context, centred)
    stage = None
    if features is not None:
        from .features.stage import Stage

        typed = [one.name for one in sites] if "types" in stages else list(known.means)
        stage = Stage(path, model, known, sites, typed, features)
    neurons = writers = None
    if "neurons" in stages:
        from .neurons.stage import NeuronStage

        neurons = NeuronStage(path, model, known, asked)
    if "writers" in stages:
        from .writers.stage import WriterStage

        writers = WriterStage(path, model, known, stage.n_features if stage is not None else 0, asked)
    estimate = _estimate(
        path, replicas, known, plans, stage, neurons, writers, tuple(one.name for one in sites)
    )
    progress.planned(estimate)
    report = Report(known.name, estimate, dry_run)
    estimate.must_fit(path)
    if dry_run:
        return report
    from ..migrations import manage
    from .types.stage import clear

    manage.ensure(path)
    for old in known.runs:
        # Killed between its last commit and this.
        if old.complete:
            clear(path, old.spec.run_id)
    if known.added:
        _remember_source(path, model)
    report.already = all(plan.done for plan in plans)
    also = stage.keep_controls if stage is not None else None
    means = dict(known.means)
    for plan in plans:
        before = plan.tokens_done
        _run(
            path,
            replicas,
            known,
            plan,
            means,
            context,
            batch_tokens or default_batch_tokens(model.device),
            progress,
            also,
        )
        report.runs.append(plan.spec.run_id)
        report.tokens += max(0, plan.tokens - before)
    if stage is not None:
        made = stage.run(
            _text_runs(path, model), batch_tokens or default_batch_tokens(model.device), progress
        )
        report.runs += made
    for later in (neurons, writers):
        if later is not None:
            report.runs += later.run(progress)
    for done in (stage, neurons, writers):
        if done is not None:
            report.notes += done.notes
            report.already = report.already and not done.changed
    progress.loading("building indexes")
    report.notes += index.build_all(path, model_id(model))
    _settle(path)
    return report


def _remember_source(path: Path, model: LoadedModel) -> None:
    """Where the model lies now, if it has left its place: what recomputes its codes looks for it there."""
    row = model_row(model, model.name)
    with store.reading(path) as connection:
        found = connection.execute(
            "SELECT source, revision FROM model WHERE model_id = ?", [row.model_id]
        ).fetchone()
    if found is None or not Path(found[0]).is_absolute() or Path(found[0]).exists():
        return
    with store.writing(path) as session:
        kept = session.get_one(schema.Model, row.model_id)
        kept.source, kept.revision = row.source, row.revision


def _text_runs(path: Path, model: LoadedModel) -> list[str]:
    """The runs of the model that stored states, oldest first."""
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT run_id FROM run WHERE model_id = ? AND job = 'states' AND run_id IN (SELECT run_id FROM shard) "
            "ORDER BY started_at, run_id",
            [model_id(model)],
        ).fetchall()
    return [row[0] for row in rows]


def _settle(path: Path) -> None:
    """What was committed may stand in DuckDB's log alone, if a full disk kept it from the file.

    Raises:
        DiskFull: if it still does not fit.
    """
    log = store.sidecar(path, ".wal")
    if log.exists():
        with store.writing(path):
            pass
        if log.exists():
            raise DiskFull(path, during=True)


def _estimate(
    path: Path,
    replicas: Replicas,
    known: Known,
    plans: Sequence[JobPlan],
    stage: Stage | None,
    neurons: NeuronStage | None,
    writers: WriterStage | None,
    sites: tuple[str, ...],
) -> Estimate:
    todo = [plan for plan in plans if not plan.done]
    later = [one for one in (stage, neurons, writers) if one is not None]
    fresh = 0 if path.exists() else EMPTY_BYTES
    return Estimate(
        model=known.name,
        device=replicas.device,
        sites=sites,
        tokens=sum(plan.tokens - plan.tokens_done for plan in todo)
        + (stage.tokens(todo) if stage is not None else 0),
        rows=sum(plan.rows for plan in todo) + (neurons.rows if neurons is not None else 0),
        features=stage.n_features if stage is not None else 0,
        catalogue_bytes=(fresh if todo or later else 0)
        + sum(plan.catalogue_bytes for plan in todo)
        + sum(one.catalogue_bytes for one in later),
        index_bytes=sum(plan.index_bytes for plan in todo)
        + (neurons.index_bytes if neurons is not None else 0),
        scratch_bytes=max((plan.scratch_bytes for plan in todo), default=0)
        + (stage.scratch_bytes if stage is not None else 0),
        free_bytes=free_bytes(path),
    )


def _run(
    path: Path,
    replicas: Replicas,
    known: Known,
    plan: JobPlan,
    means: dict[str, NDArray[np.float64]],
    context: int,
    batch_tokens: int,
    progress: Progress,
    also: Also | None,
) -> None:
    from .states.stage import run_states
    from .types.stage import clear, run_types

    journal = Journal(path, plan.spec)
    old = next((one for one in known.runs if one.spec.run_id == plan.spec.run_id), None)
    if old is None:
        # Of a catalogue that lay here before: whatever made them need not be what runs now.
        clear(path, plan.spec.run_id)
    elif plan.done and old.finished:
        if plan.complete and not old.complete:
            # A limit fell together with the end of the text, which is seen only now.
            journal.finish(True)
        return
    rows: list[TextPlan] = list(plan.texts)
    row = model_row(replicas.models[0], known.name)
    start = journal.begin(row, replicas.device, [one.row for one in rows])
    progress.started(plan.spec.job, plan.tokens, plan.tokens_done)
    try:
        if plan.spec.job == "states":
            run_states(replicas, plan, journal, start, means, context, batch_tokens, progress.computed)
        else:
            fixed = means if plan.spec.job == "types_bos" else {}
            plain = plan.spec.job == "types"
            found = run_types(
                path,
                replicas,
                plan,
                journal,
                start,
                fixed,
                batch_tokens,
                progress.computed,
                also if plain else None,
            )
            if plan.spec.job == "types":
                means.update(found)
    except Exception as error:
        # The error itself matters more than its record, for which a full disk may have no room.
        with suppress(Exception):
            journal.fail(
                error.what if isinstance(error, SignariumError) else f"{type(error).__name__}: {error}"
            )
        raise
    journal.finish(plan.complete)
    clear(path, plan.spec.run_id)
    progress.ended()
