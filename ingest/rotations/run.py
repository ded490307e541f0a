"""`align`: the rotations between two models, with all that could explain them away. One call is one run, a shard a site."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from sqlalchemy.orm import Session
from torch import Tensor

from ...catalog import bulk, schema, store
from ...catalog.bulk import Figure
from ...catalog.carry import Rotation
from ...catalog.errors import DiskFull, InvalidInput, ModelError, NotFound, SiteError
from ...catalog.ids import int_id, short_id
from ..encode import reload
from ..journal import RunSpec, Units, run_units
from ..known import model_row
from ..model.sites import Site
from ..passes.gather import Windows, cut, record, row_starts, split, sum_of
from ..progress import Progress, Silent
from ..stats.paired import Paired
from ..text import windows as texts
from . import measure
from .contrasts import Contrast, contrasts
from .labels import Label, labels
from .steer import Steered
from .steer import figures as steered_figures
from .steer import steer as try_directions

if TYPE_CHECKING:
    import duckdb

    from ..model.loaded import LoadedModel

VERSION = 1
"""Part of a run's identity: another number where the same arguments come to mean another measurement."""
LIMIT_TOKENS = 65_536


@dataclass(frozen=True)
class SiteRotation:
    """What a run found at one site."""

    rotation_id: int
    site: str
    ev_identity: float
    ev_mean_shift: float
    ev_rotation: float
    ev_affine: float
    ev_shuffled: float
    ev_token_mean: float
    halves_agreement: float | None
    rank_warning: str | None


@dataclass
class AlignReport:
    """What `align` did. `already` says that the run was in the catalogue before."""

    run_id: str
    model_a: str
    model_b: str
    already: bool = False
    rotations: list[SiteRotation] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class _End:
    """One of the two models, as the catalogue knows it."""

    name: str
    model_id: str
    width: int
    tokenizer: str


def align(
    path: Path,
    model_a: str,
    model_b: str,
    *,
    text: str | Path | Sequence[str | Path],
    sites: str | None = None,
    max_tokens: int = LIMIT_TOKENS,
    context: int = 256,
    output: str | Path | None = None,
    steer: bool | str = True,
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> AlignReport:
    """Fit and store the rotation from `model_a` to `model_b` at each of `sites`, and measure what it is worth.

    Both models run over the same windows of `text` (`max_tokens` at most). Documents are parted into two halves of the
    fit, validation and test; first positions are left out. `sites` defaults to those where both have states in the
    catalogue, else to a few evenly spaced `resid_post` sites. Directions of A are tried on B at the middle one of them, or
    at the one that `steer` names, or nowhere if it is False. `output` names a `.npy` file for the matrix; with several
    sites, the site is put before its ending. The same call again does nothing, and one that was cut short is gone on with.

    Raises:
        NotFound: for a model that is not in the catalogue.
        InvalidInput: for models of different widths or tokenizers, for one model twice, and for a text that is too short.
        ModelError: if the weights of one are no longer at hand.
        SiteError: for a site that one of them lacks, or that is of another width there.
        DiskFull: if the states do not fit beside the catalogue.
    """
    begun = time.perf_counter()
    path, progress = Path(path), progress or Silent()
    if max_tokens < 1 or context < 2:
        raise InvalidInput("--max-tokens must be positive, and --context at least 2")
    if not 0 <= seed < 1 << 62:
        raise InvalidInput(f"--seed is {seed}", "it must be 0 or more, and below 2^62")
    with store.reading(path) as connection:
        a, b = (_end(connection, name) for name in (model_a, model_b))
        usual = _shared_sites(connection, a, b) if sites is None else []
    _check_pair(a, b)
    target = None if output is None else _writable(Path(output))
    files = texts.find_texts([text] if isinstance(text, str | Path) else list(text))
    kinds = [one.path.suffix.lower() for one in files]
    read = [
        [one.sha256, kind if kind in (".jsonl", ".parquet") else "text"]
        for one, kind in zip(files, kinds, strict=True)
    ]
    with store.job_lock(path):
        progress.loading(f"loading {a.name}")
        first = reload(path, a.name, device)
        progress.loading(f"loading {b.name}")
        second = reload(path, b.name, device)
        chosen = _choose(first, second, sites, usual)
        at = _steered(chosen, steer)
        steered = None if at is None else at.name
        dictionaries = _dictionaries(path, a, b, chosen)
        made = _made(path, a, b)
        key = {
            "a": a.model_id, "b": b.model_id, "texts": read, "sites": [one.name for one in chosen], "max_tokens": max_tokens,
            "context": context, "steer": steered, "seed": seed, "dictionaries": dictionaries, "made": made, "version": VERSION,
        }  # fmt: skip
        run_id = short_id("run", "align", key)
        report = AlignReport(run_id, a.name, b.name)
        report.already = _finished(path, run_id)
        if not report.already:
            progress.loading("reading the text")
            limit = min(context, *(one.max_positions or context for one in (first, second)))
            windows = cut(first, files, limit, max_tokens, progress.counted)
            params = key | {"model_a": a.name, "model_b": b.name, "context": limit, "tokens": sum_of(windows)}
            params["documents"] = len(windows)
            job = _Job(
                path,
                RunSpec(run_id, "align", params, ()),
                (first, second),
                (a, b),
                chosen,
                windows,
                at,
                seed,
            )
            job.run(progress)
            report.notes += job.notes
    with store.reading(path) as connection:
        report.rotations = _report(connection, run_id)
        if target is not None:
            report.outputs = _write_matrices(connection, run_id, target)
    report.seconds = time.perf_counter() - begun
    return report


# ---- what is asked ----------------------------------------------------------------------------------


def _end(connection: duckdb.DuckDBPyConnection, name: str) -> _End:
    row = connection.execute(
        "SELECT name, model_id, width, tokenizer_sha256 FROM models WHERE name = ?", [name]
    ).fetchone()
    if row is None:
        names = [one for (one,) in connection.execute("SELECT name FROM models ORDER BY name").fetchall()]
        raise NotFound(
            "model", name, names, todo="" if names else "run `signarium ingest` on both models first"
        )
    return _End(*row)


def _check_pair(a: _End, b: _End) -> None:
    if a.model_id == b.model_id:
        raise InvalidInput(f"{a.name} is aligned with itself", "name two models")
    if a.width != b.width:
        raise InvalidInput(
            f"{a.name} is {a.width:,} wide and {b.name} {b.width:,}: no rotation leads from one to the other",
            "align models of one width",
        )
    if a.tokenizer != b.tokenizer:
        raise InvalidInput(
            f"{a.name} and {b.name} have different tokenizers: their states are not of the same tokens",
            "align models that share a tokenizer",
        )


def _writable(output: Path) -> Path:
    """`output` with the ending .npy, refused before minutes are spent."""
    if not output.name:
        raise InvalidInput("--output names no file", "name one such as R.npy")
    found = output if output.suffix == ".npy" else output.with_name(output.name + ".npy")
    folder = found.parent
    if found.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InvalidInput(f"{found} cannot be written", "name a file in a folder that is there")
    return found


def _shared_sites(connection: duckdb.DuckDBPyConnection, a: _End, b: _End) -> list[str]:
    """Sites at which both have states."""
    rows = connection.execute(
        "SELECT s.name FROM site s JOIN code_set cs USING (site_id) WHERE cs.subject = 'state' AND s.model_id IN (?, ?) "
        "AND s.point IN ('embed', 'resid_post', 'resid_mid', 'final_norm') GROUP BY s.name, s.point, s.layer "
        "HAVING count(DISTINCT s.model_id) = 2 ORDER BY s.layer NULLS FIRST, s.name",
        [a.model_id, b.model_id],
    ).fetchall()
    return [row[0] for row in rows]


def _choose(a: LoadedModel, b: LoadedModel, spec: str | None, usual: Sequence[str]) -> list[Site]:
    if spec is not None:
        found = a.parse_sites(spec)
    else:
        found = [Site.from_name(name) for name in usual] or [
            one for one in a.default_sites() if one in b.sites
        ]
    if not found:
        raise SiteError(f"{a.name} and {b.name} have no site in common", "name some with --sites")
    for site in found:
        b.require_site(site)
        if a.width_of(site) != b.width_of(site):
            raise SiteError(
                f"{site} is {a.width_of(site)} wide in {a.name} and {b.width_of(site)} in {b.name}"
            )
    return found


def _dictionaries(path: Path, a: _End, b: _End, sites: Sequence[Site]) -> list[str]:
    """The dictionaries that will be tried: one more makes it another run."""
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT x.sae_id FROM sae x JOIN site s USING (site_id) WHERE x.model_id IN (?, ?) AND list_contains(?, s.name) "
            "ORDER BY x.sae_id",
            [a.model_id, b.model_id, [one.name for one in sites]],
        ).fetchall()
    return [row[0] for row in rows]


def _made(path: Path, a: _End, b: _End) -> list[str]:
    """The jobs whose categories will be carried, and whose types they will be scored on: later ones make another run."""
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT DISTINCT r.run_id FROM run r WHERE r.finished_at IS NOT NULL AND ((r.job = 'categories' AND r.model_id = ?) "
            "OR (r.job = 'types' AND r.model_id IN (?, ?))) ORDER BY ALL",
            [a.model_id, a.model_id, b.model_id],
        ).fetchall()
    return [row[0] for row in rows]


def _finished(path: Path, run_id: str) -> bool:
    with store.reading(path) as connection:
        row = connection.execute(
            "SELECT finished_at IS NOT NULL FROM run WHERE run_id = ?", [run_id]
        ).fetchone()
    return bool(row and row[0])


def _report(connection: duckdb.DuckDBPyConnection, run_id: str) -> list[SiteRotation]:
    rows = connection.execute(
        "SELECT r.rotation_id, r.site_b, r.ev_identity, r.ev_mean_shift, r.ev_rotation, r.ev_affine, r.ev_shuffled, "
        "r.ev_token_mean, r.halves_agreement, r.rank_warning FROM rotations r JOIN site s ON s.name = r.site_b "
        "JOIN model m ON m.model_id = s.model_id AND m.name = r.model_b WHERE r.run_id = ? "
        "ORDER BY s.point = 'final_norm', s.layer NULLS FIRST, s.point, s.name",
        [run_id],
    ).fetchall()
    return [SiteRotation(*row) for row in rows]


def _write_matrices(connection: duckdb.DuckDBPyConnection, run_id: str, output: Path) -> list[Path]:
    """The matrices of a run as `.npy` files of float32, each whole or not at all."""
    rows = connection.execute(
        "SELECT site_b, width, matrix FROM rotations WHERE run_id = ? ORDER BY site_b", [run_id]
    ).fetchall()
    written = []
    names = {
        site: output if len(rows) == 1 else output.with_name(f"{output.stem}.{site}.npy")
        for site, _, _ in rows
    }
    for file in names.values():
        if file.is_dir():
            raise InvalidInput(f"{file} is a folder", "name another file")
    for site, width, matrix in rows:
        file = names[site]
        partial_file = file.with_name(file.name + ".part")
        try:
            with partial_file.open("wb") as handle:
                np.save(handle, np.frombuffer(matrix, "<f4").reshape(width, width))
            partial_file.replace(file)
        except OSError as error:
            partial_file.unlink(missing_ok=True)
            raise InvalidInput(
                f"{file} cannot be written ({error.strerror or error})", "name another file"
            ) from None
        written.append(file)
    return written


# ---- the run ----------------------------------------------------------------------------------------


class _Job:
    """A run: a unit a site, and one for steering."""

    def __init__(
        self,
        path: Path,
        spec: RunSpec,
        models: tuple[LoadedModel, LoadedModel],
        ends: tuple[_End, _End],
        sites: Sequence[Site],
        windows: Windows,
        steered: Site | None,
        seed: int,
    ) -> None:
        self.path, self.spec, self.models, self.ends, self.seed = path, spec, models, ends, seed
        self.sites, self.windows = list(sites), windows
        self.notes: list[str] = []
        if windows.repeats:
            were = "window was" if windows.repeats == 1 else "windows were"
            self.notes.append(f"{windows.repeats:,} {were} left out: the same tokens stood in an earlier one")
        self.parts = list(split(windows, seed))
        """Windows of each part; rows of a `Paired` are in that order."""
        self.order = [i for part in self.parts for i in part]
        self.steered = steered
        self.folder = store.sidecar(path, f".scratch-{spec.run_id}")
        device = models[1].device
        self.device = device if device.type == "cuda" else torch.device("cpu")
        """Where sums are taken: float64 is not everywhere."""
        self._carried: Rotation[Tensor] | None = None
        self._labels: list[Label] | None = None

    @property
    def n_rows(self) -> int:
        """Tokens that are compared: all but first positions."""
        return sum(len(one) - 1 for one in self.windows)

    def run(self, progress: Progress) -> None:
        """Run what is missing."""
        units = len(self.sites) + (self.steered is not None)
        with store.reading(self.path) as connection:
            (done,) = connection.execute(
                "SELECT coalesce(max(start + n), 0) FROM shard WHERE run_id = ?", [self.spec.run_id]
            ).fetchall()[0]
        todo = [site for i, site in enumerate(self.sites) if i >= done or site == self.steered]
        self._check_disk(todo)
        try:
            self._gather(todo, progress)
            run_units(
                self.path,
                model_row(self.models[1], self.ends[1].name),
                str(self.models[1].device),
                Units(self.spec, self._compute, units, "steps"),
                progress,
            )
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # What filled the disk must not stay there.
            shutil.rmtree(self.folder, ignore_errors=True)
            raise DiskFull(self.folder, during=True) from error
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- states ----

    def _check_disk(self, sites: Sequence[Site]) -> None:
        needed = sum(
            self.n_rows * model.width_of(site) * _dtype(model).itemsize
            for end, model in enumerate(self.models)
            for site in sites
            if not self._mark(end, site).exists()
        )
        needed += sum(4 * self.models[0].width_of(site) ** 2 for site in sites)
        free = shutil.disk_usage(self.path.resolve().parent).free
        if free < needed:
            raise DiskFull(self.path, needed, free)

    def _gather(self, sites: Sequence[Site], progress: Progress) -> None:
        """States of both models in scratch files; what a killed run left whole is used."""
        self.folder.mkdir(exist_ok=True)
        todo = {end: [site for site in sites if not self._mark(end, site).exists()] for end in (0, 1)}
        passes = [end for end, missing in todo.items() if missing]
        if not passes:
            return
        windows = [self.windows[i] for i in self.order]
        starts = row_starts(windows)
        progress.started("states", len(passes) * sum_of(windows), 0)
        for end in passes:
            sites = todo[end]
            outputs = {site: self._mapped(end, site, write=True) for site in sites}
            record(self.models[end], windows, sites, outputs, starts, progress.computed)
            for site, x in outputs.items():
                _check_finite(x, self.ends[end].name, site)
                self._mark(end, site).touch()
        progress.ended()

    def _mark(self, end: int, site: Site) -> Path:
        return self.folder / f"done-{end}-{site}"

    def _mapped(self, end: int, site: Site, write: bool = False) -> Tensor:
        model = self.models[end]
        width = model.width_of(site)
        file = self.folder / f"{end}-{site}"
        if write:
            # Space that is promised only would kill the process where the disk is full.
            with file.open("wb") as handle:
                size = self.n_rows * width * _dtype(model).itemsize
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(handle.fileno(), 0, size)
                else:
                    handle.truncate(size)
        flat = torch.from_file(str(file), shared=True, size=self.n_rows * width, dtype=_dtype(model))
        return flat.view(self.n_rows, width)

    def paired(self, site: Site) -> Paired:
        """The states of both models at `site`."""
        windows = [self.windows[i] for i in self.order]
        sizes = [len(one) - 1 for one in windows]
        ends = np.cumsum([sum(len(self.windows[i]) - 1 for i in part) for part in self.parts]).tolist()
        slices = [slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]
        return Paired(
            self._mapped(0, site),
            self._mapped(1, site),
            (slices[0], slices[1]),
            slices[2],
            slices[3],
            np.concatenate([one[1:] for one in windows]),
            np.repeat(np.array(self.order, np.int64), sizes),
            np.concatenate([np.arange(1, n + 1, dtype=np.int64) for n in sizes]),
            self.device,
            np.repeat(self.windows.groups[self.order], sizes),
        )

    # ---- units ----

    def _site_id(self, end: int, site: Site) -> str:
        return f"{self.ends[end].model_id}/{site}"

    def _rotation_id(self, site: Site) -> int:
        return int_id("rotation", self.spec.run_id, site.name)

    def _compute(self, i: int) -> Callable[[Session], None]:
        if i == len(self.sites):
            assert self.steered is not None
            return self._steer(self.steered)
        site = self.sites[i]
        paired = self.paired(site)
        if self._labels is None:
            # Rows are the same tokens at every site.
            self._labels = labels(self.models[0], self.windows, paired, self.seed)
        between = measure.Between(
            self.path, self.ends[0].name, self.ends[1].name, site, self._site_id(0, site), self._site_id(1, site),
            self.spec.params["texts"], self.seed,
        )  # fmt: skip
        found = measure.measure(between, paired, self._labels)
        self.notes += [one for one in found.notes if one not in self.notes]
        rotation_id = self._rotation_id(site)
        if site == self.steered:
            # The row itself may not be committed by then.
            self._carried = measure.stored_rotation(found.row, self.device)

        def write(session: Session) -> None:
            self._add_ends(session, site)
            row = found.row | {
                "rotation_id": rotation_id,
                "run_id": self.spec.run_id,
                "site_a_id": self._site_id(0, site),
                "site_b_id": self._site_id(1, site),
            }
            bulk.insert(session, schema.rotation_row, _one_row(schema.rotation_row, row))
            width = self.models[1].width_of(site)
            components: dict[str, Any] = {
                "rotation_id": np.full(width, rotation_id),
                "component": np.arange(1, width + 1, dtype=np.int32),
            }
            bulk.insert(session, schema.rotation_component_row, components | found.components)
            found.insert_features(session, self.spec.run_id, rotation_id, site.name, self._site_id(1, site))
            bulk.insert_figures(session, self.spec.run_id, found.figures)

        return write

    def _add_ends(self, session: Session, site: Site) -> None:
        for end in (0, 1):
            if session.get(schema.Site, self._site_id(end, site)) is None:
                session.add(
                    schema.Site(
                        site_id=self._site_id(end, site), model_id=self.ends[end].model_id, name=site.name,
                        point=site.point, layer=site.layer, width=self.models[end].width_of(site),
                    )
                )  # fmt: skip

    def _steer(self, site: Site) -> Callable[[Session], None]:
        paired = self.paired(site)
        rotation = self._carried or measure.read_rotation(self.path, self._rotation_id(site), paired.device)
        chosen: list[Contrast] = []
        steered: list[Steered] = []
        try:
            chosen, notes = contrasts(self.models[0], self.models[1], self.windows, paired)
            self.notes += notes
            if chosen:
                steered, notes = try_directions(
                    self.models[0],
                    self.models[1],
                    site,
                    rotation,
                    paired,
                    self.windows,
                    chosen,
                    seed=self.seed,
                )
                self.notes += notes
        except (SiteError, ModelError) as error:
            self.notes.append(f"no steering at {site}: {error.what}")
        figures = [
            Figure(self._site_id(1, site), "rotation", self.ends[0].name, metric, control, "held_out", value, n, self.seed, error)
            for metric, control, value, n, error in steered_figures(steered)
        ]  # fmt: skip

        def write(session: Session) -> None:
            columns: dict[str, Any] = {
                column.key: pa.array([getattr(one, column.key) for one in steered])
                for column in schema.steering_row.c
                if column.key != "rotation_id"
            }
            columns["rotation_id"] = np.full(len(steered), self._rotation_id(site))
            if steered:
                bulk.insert(session, schema.steering_row, columns)
            bulk.insert_figures(session, self.spec.run_id, figures)

        return write


def _dtype(model: LoadedModel) -> torch.dtype:
    kind: torch.dtype = model.embedding().dtype
    return kind


def _steered(sites: Sequence[Site], wanted: bool | str) -> Site | None:
    """Where directions are tried: the site that is `wanted`, or the middle one at which something can be added to the
    residual stream."""
    if isinstance(wanted, str):
        found = [one for one in sites if one.name == wanted]
        if not found:
            raise SiteError(
                f"{wanted} is none of the sites that are aligned", f"name one of {', '.join(map(str, sites))}"
            )
        if found[0].point not in ("resid_post", "resid_mid"):
            raise SiteError(
                f"nothing can be added at {wanted}",
                "steer at a resid_post or resid_mid site, or pass --no-steer",
            )
        return found[0]
    if not wanted:
        return None
    for point in ("resid_post", "resid_mid"):
        found = [one for one in sites if one.point == point]
        if found:
            return found[len(found) // 2] if len(found) > 2 else found[0]
    return None


def _check_finite(x: Tensor, name: str, site: Site) -> None:
    for part in x.split(8192):
        if not bool(part.isfinite().all()):
            raise ModelError(f"{name} gives NaN or infinity at {site}", "ingest it with --dtype float32")


def _one_row(table: Any, values: dict[str, Any]) -> dict[str, Any]:
    """One row as columns; NULL keeps its column's type."""
    kinds = {str: pa.string(), float: pa.float64(), int: pa.int64(), bytes: pa.large_binary()}
    return {column.key: pa.array([values[column.key]], kinds[column.type.python_type]) for column in table.c}
