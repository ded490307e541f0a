"""Stage `types`: every row of the vocabulary alone, or behind a BOS, at every wanted site.

The centre `mean` is known only after the last token, so the hidden states wait in scratch files beside the
catalogue (one a shard, gone when the run ends) and the codes of both centres are taken from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sqlalchemy.orm import Session

from ...catalog import bulk, schema, store
from ...catalog.codes import n_bytes
from ...catalog.errors import DiskFull, InvalidInput, option
from ...catalog.files import make_scratch, replacing
from ...catalog.text import spelled
from .. import size as sizes
from ..job import Context, Done, See, Watch
from ..journal import Journal, RunSpec, Shard, scratch
from ..known import OldRun, old_runs
from ..passes.forward import Clock, mark, one_pass, seconds
from ..passes.pack import SiteRows, Statistics, check_norms, norms_of, pack_signs
from ..plan import JobPlan, new_spec, run_plan, size_of
from ..size import Size, Step
from ..stats.moments import Moments, stored_moments
from ..text.vocabulary import write_tokens

if TYPE_CHECKING:
    from ..model.load import LoadedModel
    from ..model.sites import Site
    from ..progress import Progress


JOBS = {"types": "type", "types_bos": "type_bos"}
"""The jobs of this stage, and the subject of the codes that each of them writes."""


class TypeStage:
    """Codes of the vocabulary at every site that lacks them; with the option `bos`, behind a BOS too.

    Raises:
        InvalidInput: if a BOS is asked for that the tokenizer does not have.
    """

    name: ClassVar[str] = "types"
    needs: ClassVar[tuple[str, ...]] = ()
    watch: Watch | None = None

    def __init__(self, context: Context) -> None:
        model, known = context.model, context.known
        self.context = context
        self.old = old_runs(context.path, known.model_id, tuple(JOBS))
        self.plans = plan_types(context, self.old, "types")
        if context.request.bos:
            if model.bos_id is None:
                raise InvalidInput(
                    f"the tokenizer of {model.name} has no BOS token", f"leave {option('bos')} out"
                )
            self.plans += plan_types(context, self.old, "types_bos")
        context.plans += self.plans
        context.typed |= {one.name for one in context.sites}
        self.size = size_of(self.plans)

    def run(self, progress: Progress) -> Done:
        """Do all that is missing."""
        done = Done(changed=not all(one.done for one in self.plans))
        seen_by = [one.see for one in self.context.watches if one.stage == self.name]
        for plan in self.plans:
            left_out: list[int] = []
            work = partial(run_types, self.context, plan, progress.computed, seen_by, left_out)
            run_plan(self.context, plan, self.old, work, progress)
            done.notes += _of_those_left_out(self.context, left_out)
            done.runs.append(plan.spec.run_id)
            done.tokens += max(0, plan.tokens - plan.tokens_done)
        return done


def _of_those_left_out(context: Context, ids: Sequence[int]) -> list[str]:
    """What to say of types without finite states."""
    if not ids:
        return []
    strings = context.model.token_strings()
    named = ", ".join(spelled(strings[i], i) for i in ids[:5]) + (", ..." if len(ids) > 5 else "")
    verb, stay = ("type gives", "stays") if len(ids) == 1 else ("types give", "stay")
    return [f"{len(ids)} {verb} NaN or infinity, and {stay} without a code: {named}"]


def plan_types(context: Context, old: Sequence[OldRun], job: str) -> list[JobPlan]:
    """Runs of a job for those sites that lack it; what an earlier run began is finished first."""
    planned: list[JobPlan] = []
    missing = list(context.sites)
    for run in old:
        shared = [site for site in missing if site in run.spec.sites]
        if run.spec.job != job or not shared:
            continue
        missing = [site for site in missing if site not in shared]
        if not run.complete:
            planned.append(_plan(context, run.spec, run.tokens_done))
    if missing:
        units = [(site, centre) for site in missing for centre in ("zero", "mean")]
        planned.append(_plan(context, new_spec(context, job, JOBS[job], units, {}), 0))
    return planned


def _plan(context: Context, spec: RunSpec, done: int) -> JobPlan:
    model, n = context.model, context.model.vocab_size
    item = {"float32": 4, "bfloat16": 2, "float16": 2}[model.dtype]
    tokens = 0 if context.known.tokenizer_known else sizes.TOKEN_BYTES * n
    dimensions = sizes.DIMENSION_BYTES * sum(one.width for one in spec.sets) / 2
    left = Size(
        tokens=n - done,
        rows=(n - done) * len(spec.sets),
        catalogue_bytes=sizes.code_bytes(spec.sets, n - done, dimensions + tokens),
        index_bytes=sum(n * n_bytes(one.width) for one in spec.sets),
        scratch_bytes=sum(n * model.width_of(site) * item for site in spec.sites),
        steps=(Step(spec.job, sizes.pass_seconds(model, n - done), "passes"),),
    )
    return JobPlan(spec, (), n, done, left, sizes.shard_tokens(spec.sets), True)


def run_types(
    context: Context,
    plan: JobPlan,
    computed: Callable[[int], None],
    seen_by: Sequence[See],
    left_out: list[int],
    journal: Journal,
    start: int,
) -> None:
    """Compute and commit a run of types from token `start` on.

    Every code of a site has the same centre: `context.means` holds that of the types, which the job `types` adds to it
    and the job `types_bos` takes from it where it is there. `computed` hears of tokens as they are computed, `seen_by` see
    the states of the job `types` once their mean is known.

    Types whose states are not finite have no code; `left_out` gets them.

    Raises:
        ModelError: if more than a few types in a hundred have such states.
        DiskFull: if the scratch files do not fit.
    """
    path, replicas, spec, model = context.path, context.replicas, plan.spec, context.model
    means = context.means if spec.job == "types_bos" else {}
    folder = scratch(path, spec.run_id)
    bounds = [
        (a, min(a + plan.shard_tokens, plan.tokens)) for a in range(start, plan.tokens, plan.shard_tokens)
    ]
    bos = model.bos_id if spec.job == "types_bos" else None
    seen_by = seen_by if spec.job == "types" else ()
    try:
        make_scratch(folder)
    except OSError as error:
        raise DiskFull(folder, during=True) from error
    clocks = {a: (Clock(), 0.0) for a, _ in bounds}
    missing = []
    for a, b in bounds:
        if _readable(folder / str(a), spec, b - a):
            computed(b - a)
        else:
            missing.append((a, b))

    def ignored(_: int) -> None:
        # Progress is told from this thread alone: where devices have threads of their own, a shard at a time.
        pass

    heard = ignored if replicas.threaded else computed

    def work(place: tuple[int, int]) -> Callable[[int], _Computed]:
        return lambda i: _compute(replicas.models[i], spec, *place, bos, context.batch_tokens, heard)

    with replicas:
        begun = time.perf_counter()
        for made in replicas.in_order(map(work, missing)):
            _save(folder / str(made.start), made)
            clocks[made.start] = made.clock, time.perf_counter() - begun
            begun = time.perf_counter()
            if replicas.threaded:
                computed(made.n)
    statistics: dict[str, Statistics] = {}
    if start:
        # The first shard brought them. Scratch files that had to be made anew, in other batches, must not
        # move the centre under the codes that stand already.
        with store.reading(path) as connection:
            moments = stored_moments(connection, context.known.model_id, run_id=spec.run_id)
    else:
        statistics = {site.name: _merged(folder, [a for a, _ in bounds], site.name) for site in spec.sites}
        moments = {name: Moments(one.total / one.n, one.columns()["std"]) for name, one in statistics.items()}
    moments = {name: Moments(means.get(name, one.mean), one.std) for name, one in moments.items()}
    strings = model.token_strings()
    with journal:
        for a, b in bounds:
            clock, wall = clocks[a]
            begun = time.perf_counter()
            rows = {
                site.name: _rows(folder / str(a), site.name, moments[site.name], model.device, a, seen_by)
                for site in spec.sites
            }
            absent = _absent(folder / str(a))
            left_out += absent.tolist()
            kept = np.setdiff1d(np.arange(a, b), absent)
            clock.pack_s += time.perf_counter() - begun

            def write(
                session: Session,
                a: int = a,
                kept: NDArray[np.int64] = kept,
                rows: dict[str, SiteRows] = rows,
            ) -> None:
                if a == 0:
                    _write_dimensions(session, spec, statistics)
                    write_tokens(session, model.tokenizer_sha256, strings)
                bulk.insert_codes(
                    session,
                    [
                        bulk.code_columns(
                            one.code_set_id,
                            kept,
                            rows[one.site.name].norms[kept - a],
                            rows[one.site.name].codes[one.centre][kept - a],
                        )
                        for one in spec.sets
                    ],
                )

            wall += time.perf_counter() - begun
            journal.submit(Shard(a, b - a, len(kept), clock.forward_s, clock.pack_s, wall, write))
    if spec.job == "types":
        context.means.update({name: one.mean for name, one in moments.items()})


_ROWS = 8192
"""States that are summed up at a time."""


@dataclass(frozen=True)
class _Computed:
    """Hidden states of `n` tokens from `start` on, by site, with their statistics; those of `absent` ones are zero, and
    not in the statistics."""

    start: int
    n: int
    absent: NDArray[np.int64]
    states: dict[str, torch.Tensor]
    statistics: dict[str, Statistics]
    clock: Clock


def _compute(
    model: LoadedModel,
    spec: RunSpec,
    start: int,
    stop: int,
    bos: int | None,
    batch_tokens: int,
    computed: Callable[[int], None],
) -> _Computed:
    """Hidden states of tokens `start` .. `stop` at every site. `computed` hears of each batch.

    Raises:
        ModelError: if one is NaN or infinite.
    """
    step = max(1, batch_tokens // (1 if bos is None else 2))
    parts: dict[str, list[torch.Tensor]] = {site.name: [] for site in spec.sites}
    # Copying to the host would wait for the device at every site, and sums in float64 are its work too.
    where = model.device if model.device.type == "cuda" else torch.device("cpu")

    def keep(site: Site, x: torch.Tensor) -> None:
        parts[site.name].append(x[:, -1].to(where, copy=True))

    begun = mark(model.device)
    for a in range(start, stop, step):
        ids = torch.arange(a, min(a + step, stop))[:, None]
        if bos is not None:
            ids = torch.cat([torch.full_like(ids, bos), ids], dim=1)
        with one_pass(ids.numel()):
            model.forward(ids, None, spec.sites, keep)  # type: ignore[arg-type]
        computed(len(ids))
    passed = mark(model.device)
    states, statistics = {}, {}
    with one_pass(stop - start):
        together = {name: torch.cat(pieces) for name, pieces in parts.items()}
        bad = _not_finite(together)
        for name, x in together.items():
            states[name] = x
            if bad.any():
                x[torch.from_numpy(bad).to(x.device)] = 0
                x = x[torch.from_numpy(~bad).to(x.device)]
            # In float64, twice: a part at a time, or it takes more memory than the pass did.
            statistics[name] = reduce(Statistics.merge, map(Statistics.of, x.split(_ROWS)))
    ended = mark(model.device)
    if where.type == "cuda":
        torch.cuda.current_stream(where).synchronize()
    clock = Clock(seconds(begun, passed), seconds(passed, ended))
    return _Computed(start, stop - start, start + np.flatnonzero(bad), states, statistics, clock)


_MOST_ABSENT = 0.05
"""Share of a shard's types that may have no finite states: where more have none, the model is broken."""


def _not_finite(states: dict[str, torch.Tensor]) -> NDArray[np.bool_]:
    """Of each type, whether its state is NaN or infinite at some site.

    Raises:
        ModelError: if that are many.
    """
    norms = {name: norms_of(x).cpu().numpy() for name, x in states.items()}
    bad: NDArray[np.bool_] = ~np.isfinite(np.stack(list(norms.values()))).all(axis=0)
    if bad.sum() > max(1, _MOST_ABSENT * len(bad)):
        for name, one in norms.items():
            check_norms(one, name)
    return bad


def _save(file: Path, made: _Computed) -> None:
    """Write them into one file; safetensors takes them from the host.

    Raises:
        DiskFull: if they do not fit.
    """
    tensors: dict[str, torch.Tensor] = {"absent": torch.as_tensor(made.absent)}
    for name, x in made.states.items():
        # All of it is there already, so it need not queue behind what the device computes by now.
        with torch.cuda.stream(torch.cuda.Stream(x.device) if x.is_cuda else None):
            tensors[name] = x.cpu()
        for key, value in vars(made.statistics[name]).items():
            tensors[f"{name}/{key}"] = torch.as_tensor(value)
    try:
        with replacing(file, sync=False) as temporary:
            save_file(tensors, str(temporary))
    except (OSError, SafetensorError) as error:
        raise DiskFull(file.parent, during=True) from error


def _readable(file: Path, spec: RunSpec, n: int) -> bool:
    """Whether an earlier try left the whole shard in `file`."""
    if not file.exists():
        return False
    try:
        with safe_open(str(file), "pt") as tensors:
            there = set(tensors.keys())
            # What an earlier signarium left there does not say which types have no finite states.
            return "absent" in there and all(
                len(tensors.get_slice(site.name)[:, :1]) == n for site in spec.sites
            )
    except SafetensorError:
        return False


def _absent(file: Path) -> NDArray[np.int64]:
    with safe_open(str(file), "pt") as tensors:
        ids: NDArray[np.int64] = tensors.get_tensor("absent").numpy()
    return ids


def _merged(folder: Path, starts: Sequence[int], name: str) -> Statistics:
    merged: Statistics | None = None
    for start in starts:
        with safe_open(str(folder / str(start)), "pt") as tensors:
            fields = [tensors.get_tensor(f"{name}/{key}").numpy() for key in Statistics.__dataclass_fields__]
        part = Statistics(int(fields[0]), *fields[1:])
        merged = part if merged is None else merged.merge(part)
    assert merged is not None
    return merged


def _rows(
    file: Path, name: str, moments: Moments, device: torch.device, start: int, seen_by: Sequence[See]
) -> SiteRows:
    with safe_open(str(file), "pt") as tensors:
        x = tensors.get_tensor(name).to(device)
    for see in seen_by:
        see(name, start, x, moments)
    centre = torch.from_numpy(moments.mean.astype(np.float32)).to(device)
    codes = {"zero": pack_signs(x), "mean": pack_signs(x, centre)}
    return SiteRows(norms_of(x).cpu().numpy(), {key: value.cpu().numpy() for key, value in codes.items()})


def _write_dimensions(session: Session, spec: RunSpec, statistics: dict[str, Statistics]) -> None:
    for one in spec.sets:
        if one.centre != "zero":
            continue
        columns = statistics[one.site.name].columns()
        bulk.insert(
            session,
            schema.dimension_row,
            {
                "run_id": [spec.run_id] * one.width,
                "site_id": [one.site_id] * one.width,
                "subject": [one.subject] * one.width,
                "dim": np.arange(one.width, dtype=np.int32),
                **columns,
            },
        )
        entropy = float(columns["entropy"].mean())
        figure = bulk.Figure(
            one.site_id,
            one.subject,
            "",
            "bit_entropy_mean",
            "none",
            "in_sample",
            entropy,
            statistics[one.site.name].n,
        )
        bulk.insert_figures(session, spec.run_id, [figure])
