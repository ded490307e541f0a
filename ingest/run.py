"""`ingest`: plan the stages, say how large they are, run them, build the indexes. One call is one command.

Nothing here knows a stage: `stages` lists them, and `job.Stage` says what a stage is.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from ..catalog import index, store
from ..catalog.errors import CatalogueMissing, DiskFull, InvalidInput, option
from .job import Context, Estimate, Report, Stage
from .journal import clear_complete
from .known import look_up, remember_source
from .progress import Progress, Silent
from .request import IngestRequest
from .size import Size, free_bytes
from .text.sources import TextFile, find_texts, without_text

WINDOW = 256
"""Tokens of a window of text where nothing else is asked for."""


def ingest(path: str | Path, request: IngestRequest, progress: Progress | None = None) -> Report:
    """Run a model over its vocabulary and over text, and leave its codes and features in the catalogue at `path`.

    What is there already is left alone, and an earlier try that was cut short is gone on with.

    Raises:
        SignariumError: one of its subclasses, for anything that the caller can mend.
    """
    path, progress = Path(path), progress or Silent()
    notes: list[str] = []
    texts = find_texts(request.texts, request.column, notes) if request.texts else []
    try:
        # A file that is no catalogue should be said before a model is loaded for minutes.
        with store.reading(path):
            pass
    except CatalogueMissing:
        if not path.parent.is_dir():
            raise InvalidInput(
                f"there is no folder {path.parent}", f"make it, or pass another {option('db', 'PATH')}"
            ) from None
    if request.dry_run and (missing := _to_fetch(request)):
        listed = ", ".join(f"{name} ({size / 1e6:,.1f} MB)" for name, size in missing.items())
        note = f"would fetch {sum(missing.values()) / 1e6:,.1f} MB first: {listed}"
        return Report(request.name or request.model, Estimate(), dry_run=True, notes=[note])
    with nullcontext() if request.dry_run else store.job_lock(path):
        context = _context(path, request, texts, progress)
        stages: list[Stage] = []
        for entry in request.chosen:
            stages.append(entry.plan(context))
            context.coming += stages[-1].size
        context.watches = [one.watch for one in stages if one.watch is not None]
        report = _report(context, stages)
        report.notes += notes
        progress.planned(report.estimate)
        report.estimate.must_fit(path)
        if not request.dry_run:
            _run(context, stages, report)
        report.notes += without_text(texts)
    return report


def _to_fetch(request: IngestRequest) -> dict[str, int]:
    """Bytes by name of the files that the model lacks here, if it is one of the Hugging Face hub."""
    from .model import hub
    from .model.source import is_id

    if not is_id(request.model):
        return {}
    return hub.to_fetch(request.model, request.revision, request.random_init is None)


def _context(path: Path, request: IngestRequest, texts: list[TextFile], progress: Progress) -> Context:
    """Load the model, and look up what the catalogue holds of it."""
    from .model.devices import find_devices
    from .model.load import load_model
    from .passes.forward import default_batch_tokens
    from .passes.replicas import Replicas

    progress.loading(f"loading {request.model}")
    replicas = Replicas(
        [
            load_model(
                request.model,
                revision=request.revision,
                device=str(device),
                dtype=request.dtype,
                random_init=request.random_init,
                attention=request.attention,
            )
            for device in find_devices(request.device_names)
        ]
    )
    model, spec = replicas.models[0], request.site_spec
    sites = model.parse_sites(spec) if spec else model.default_sites()
    window = request.context or min(WINDOW, model.max_positions or WINDOW)
    if texts:
        model.check_window(window)
    known = look_up(path, model, request.name)
    if known.note and known.added:
        from .recheck import check_config

        check_config(path, model, known.name)
    return Context(
        path=path,
        request=request,
        replicas=replicas,
        known=known,
        sites=sites,
        window=window,
        batch_tokens=request.batch_tokens or default_batch_tokens(model.device),
        texts=texts,
        progress=progress,
        typed=set(known.means),
        means=dict(known.means),
    )


def _report(context: Context, stages: list[Stage]) -> Report:
    size = Size.empty(context.path) + context.coming
    estimate = Estimate(
        **vars(size),
        model=context.known.name,
        device=context.replicas.device,
        sites=tuple(one.name for one in context.sites),
        free_bytes=free_bytes(context.path),
        stages=tuple((one.name, one.size.steps) for one in stages),
    )
    notes = [one for one in (context.known.note, *context.model.notes, *context.notes) if one]
    return Report(context.known.name, estimate, context.request.dry_run, notes=notes)


def _run(context: Context, stages: list[Stage], report: Report) -> None:
    from ..migrations import manage

    path, progress, known = context.path, context.progress, context.known
    manage.ensure(path)
    clear_complete(path, known.model_id)
    if known.added:
        remember_source(path, context.model)
    report.already = True
    for stage in stages:
        progress.entered(stage.name)
        done = stage.run(progress)
        report.runs += done.runs
        report.tokens += done.tokens
        report.notes += done.notes
        report.already = report.already and not done.changed
    progress.loading("building indexes")
    report.notes += index.build_all(path, known.model_id)
    _settle(path)


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
