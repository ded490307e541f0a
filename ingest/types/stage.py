"""Stage `types`: every row of the vocabulary alone, or behind a BOS, at every wanted site.

The centre `mean` is known only after the last token, so the hidden states wait in scratch files beside the
catalogue (one a shard, gone when the run ends) and the codes of both centres are taken from there.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sqlalchemy.orm import Session

from ...catalog import bulk, schema, store
from ...catalog.errors import DiskFull
from ..journal import Journal, RunSpec, Shard
from ..passes.forward import Clock, mark, one_pass, seconds
from ..passes.pack import SiteRows, Statistics, check_norms, norms_of, pack_signs

if TYPE_CHECKING:
    from ..model.load import LoadedModel
    from ..model.sites import Site
    from ..passes.replicas import Replicas
    from ..plan import JobPlan


Floats = NDArray[np.float64]
Also: TypeAlias = Callable[[str, int, torch.Tensor, Floats, Floats], None]
"""Site, first token, states (n, width), and mean and standard deviation over the vocabulary, each (width,)."""


def scratch(path: Path, run_id: str) -> Path:
    """Folder of the hidden states of a run that has not ended."""
    return store.sidecar(path, f".scratch-{run_id}")


def run_types(
    path: Path,
    replicas: Replicas,
    plan: JobPlan,
    journal: Journal,
    start: int,
    means: dict[str, NDArray[np.float64]],
    batch_tokens: int,
    computed: Callable[[int], None],
    also: Also | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Compute and commit a run of types from token `start` on; the means by site, each (width,) float64.

    `means` holds those that are known already: for `types_bos` all of them, since every code of a site has the
    same centre. `computed` hears of tokens as they are computed, `also` sees the states once their mean is known.

    Raises:
        ModelError: if a hidden state is NaN or infinite.
        DiskFull: if the scratch files do not fit.
    """
    spec, model = plan.spec, replicas.models[0]
    folder = scratch(path, spec.run_id)
    bounds = [
        (a, min(a + plan.shard_tokens, plan.tokens)) for a in range(start, plan.tokens, plan.shard_tokens)
    ]
    bos = model.bos_id if spec.job == "types_bos" else None
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise DiskFull(folder, during=True) from error
    clocks = {a: (Clock(), 0.0) for a, _ in bounds}
    missing = []
    for a, b in bounds:
        if _readable(folder / str(a), spec, b - a):
            computed(b - a)
        else:
            missing.append((a, b))

    def work(place: tuple[int, int]) -> Callable[[int], _Computed]:
        return lambda i: _compute(replicas.models[i], spec, *place, bos, batch_tokens)

    with replicas:
        begun = time.perf_counter()
        for made in replicas.in_order(map(work, missing)):
            _save(folder / str(made.start), made)
            clocks[made.start] = made.clock, time.perf_counter() - begun
            begun = time.perf_counter()
            computed(made.n)
    statistics: dict[str, Statistics] = {}
    if start:
        # The first shard brought them. Scratch files that had to be made anew, in other batches, must not
        # move the centre under the codes that stand already.
        own, stds = _stored_moments(path, spec)
    else:
        statistics = {site.name: _merged(folder, [a for a, _ in bounds], site.name) for site in spec.sites}
        own = {name: one.total / one.n for name, one in statistics.items()}
        stds = {name: one.columns()["std"] for name, one in statistics.items()}
    centres = {name: means.get(name, own[name]) for name in own}
    strings = model.token_strings()
    with journal:
        for a, b in bounds:
            clock, wall = clocks[a]
            begun = time.perf_counter()
            rows = {
                site.name: _rows(
                    folder / str(a), site.name, centres[site.name], stds[site.name], model.device, a, also
                )
                for site in spec.sites
            }
            clock.pack_s += time.perf_counter() - begun

            def write(session: Session, a: int = a, b: int = b, rows: dict[str, SiteRows] = rows) -> None:
                if a == 0:
                    _write_dimensions(session, spec, statistics)
                    write_tokens(session, model.tokenizer_sha256, strings)
                bulk.insert_codes(
                    session,
                    [
                        bulk.code_columns(
                            one.code_set_id,
                            np.arange(a, b),
                            rows[one.site.name].norms,
                            rows[one.site.name].codes[one.centre],
                        )
                        for one in spec.sets
                    ],
                )

            wall += time.perf_counter() - begun
            journal.submit(Shard(a, b - a, b - a, clock.forward_s, clock.pack_s, wall, write))
    return centres


def _stored_moments(path: Path, spec: RunSpec) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """By site, the mean and the standard deviation that a run which committed its first shard found."""
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT s.name, list(d.mean ORDER BY d.dim), list(d.std ORDER BY d.dim) FROM dimension_row d "
            "JOIN site s USING (site_id) WHERE d.run_id = ? GROUP BY ALL",
            [spec.run_id],
        ).fetchall()
    return {row[0]: np.array(row[1]) for row in rows}, {row[0]: np.array(row[2]) for row in rows}


def clear(path: Path, run_id: str) -> None:
    """Delete the scratch files of a run that is done, or that has not begun."""
    folder = scratch(path, run_id)
    if folder.exists():
        shutil.rmtree(folder)


_ROWS = 8192
"""States that are summed up at a time."""


@dataclass(frozen=True)
class _Computed:
    """Hidden states of `n` tokens from `start` on, by site, with their statistics."""

    start: int
    n: int
    states: dict[str, torch.Tensor]
    statistics: dict[str, Statistics]
    clock: Clock


def _compute(
    model: LoadedModel, spec: RunSpec, start: int, stop: int, bos: int | None, batch_tokens: int
) -> _Computed:
    """Hidden states of tokens `start` .. `stop` at every site.

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
    passed = mark(model.device)
    states, statistics = {}, {}
    with one_pass(stop - start):
        for name, pieces in parts.items():
            states[name] = x = torch.cat(pieces)
            check_norms(norms_of(x).cpu().numpy(), name)
            # In float64, twice: a part at a time, or it takes more memory than the pass did.
            statistics[name] = reduce(Statistics.merge, map(Statistics.of, x.split(_ROWS)))
    ended = mark(model.device)
    if where.type == "cuda":
        torch.cuda.current_stream(where).synchronize()
    clock = Clock(seconds(begun, passed), seconds(passed, ended))
    return _Computed(start, stop - start, states, statistics, clock)


def _save(file: Path, made: _Computed) -> None:
    """Write them into one file; safetensors takes them from the host.

    Raises:
        DiskFull: if they do not fit.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, x in made.states.items():
        # All of it is there already, so it need not queue behind what the device computes by now.
        with torch.cuda.stream(torch.cuda.Stream(x.device) if x.is_cuda else None):
            tensors[name] = x.cpu()
        for key, value in vars(made.statistics[name]).items():
            tensors[f"{name}/{key}"] = torch.as_tensor(value)
    temporary = file.with_name(file.name + ".tmp")
    try:
        save_file(tensors, str(temporary))
        os.replace(temporary, file)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise DiskFull(file.parent, during=True) from error


def _readable(file: Path, spec: RunSpec, n: int) -> bool:
    """Whether an earlier try left the whole shard in `file`."""
    if not file.exists():
        return False
    try:
        with safe_open(str(file), "pt") as tensors:
            return all(len(tensors.get_slice(site.name)[:, :1]) == n for site in spec.sites)
    except SafetensorError:
        return False


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
    file: Path, name: str, mean: Floats, std: Floats, device: torch.device, start: int, also: Also | None
) -> SiteRows:
    with safe_open(str(file), "pt") as tensors:
        x = tensors.get_tensor(name).to(device)
    if also is not None:
        also(name, start, x, mean, std)
    centre = torch.from_numpy(mean.astype(np.float32)).to(device)
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


def write_tokens(session: Session, tokenizer: str, strings: Sequence[str]) -> None:
    """The vocabulary's texts, or the rows that a sibling model with a smaller embedding did not have."""
    table = schema.token_row
    there = session.query(table).filter(table.c.tokenizer == tokenizer).count()
    ids = np.arange(there, len(strings), dtype=np.int32)
    bulk.insert(
        session,
        table,
        {"tokenizer": [tokenizer] * len(ids), "token_id": ids, "token": list(strings[there:])},
    )
