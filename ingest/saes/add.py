"""Dictionaries in the catalogue: a row that says where the file is, and the signs of the decoder as a code set."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy.orm import Session

from ...catalog import bulk, schema, store
from ...catalog.codes import pack
from ...catalog.errors import InvalidInput, NotFound, RunConflict, SignariumError, SiteError, option
from ...catalog.ids import int_id, sae_item, short_id
from ..job import run_once
from ..journal import RunSpec, SetSpec, Units, now, run_units
from ..model.sites import Site
from ..model.weights import hash_file
from ..progress import Progress, Silent
from .dictionary import Dictionary, load
from .request import SaeAddRequest

_HOOK = re.compile(r"blocks\.(\d{1,4})\.(.*)")
_HOOKS = {
    "hook_resid_pre": "resid_post", "hook_resid_post": "resid_post", "hook_resid_mid": "resid_mid",
    "hook_attn_out": "attn_out", "hook_mlp_out": "mlp_out", "mlp.hook_post": "ffn", "attn.hook_v": "v",
}  # fmt: skip
"""The points of a block as TransformerLens names them; what is before a block is after the one before it."""

_SAME = ("st_ino", "st_size", "st_mtime_ns")
VERSION = 1
"""Part of a run's identity: another number where the same file comes to mean other rows."""


@dataclass
class SaeReport:
    """What an import did. `already` says that the dictionary was in the catalogue before."""

    sae_id: str
    run_id: str
    name: str
    model: str
    site: str
    n_features: int
    already: bool = False
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def add_sae(path: Path, request: SaeAddRequest, progress: Progress | None = None) -> SaeReport:
    """Import the dictionary in a file (see `dictionary.load`) as one of a model at a site.

    Its decoder rows become a code set of subject `direction`, centre zero: `sae_item(sae_id, j)` is the sign code of row
    j, with its norm. The file stays where it is. The same file again does nothing, and an import that was cut short is
    gone on with. The model need not be at hand; a site that the catalogue has nothing of yet can be `resid_post` of any
    block.

    Raises:
        NotFound: if there is no such model, or nothing is known of such a site of it.
        InvalidInput: if the file is no dictionary, or one of another width.
        RunConflict: if the name is taken by another file, or this file is in under another name.
    """
    begun = time.perf_counter()
    path, progress = Path(path), progress or Silent()
    model, site, file = _model(path, request.model), Site.from_name(request.site), request.source
    site_id, width = _find_site(path, model, site)
    progress.loading(f"reading {file.name}")
    sha256, dictionary = _read(file)
    if dictionary.width != width:
        raise InvalidInput(
            f"{file} is of width {dictionary.width}, and {site} of {request.model} of width {width}",
            "pass the model and the site that it was trained on",
        )
    _must_be_of(dictionary, site, file)
    job = _Job(path, request, model, site, site_id, sha256, dictionary)
    done = run_once(path, job, progress)
    return SaeReport(
        job.sae_id, done.runs[0], job.name, request.model, site.name, dictionary.n_features, not done.changed,
        job.moved + done.notes, time.perf_counter() - begun,
    )  # fmt: skip


def _must_be_of(dictionary: Dictionary, site: Site, file: Path) -> None:
    """Refuse a dictionary of SAELens whose configuration says that it was trained at another site."""
    hook = str(dictionary.params.get("hook_name", ""))
    place = _HOOK.fullmatch(hook)
    if place is None or (point := _HOOKS.get(place[2])) is None:
        return
    layer = int(place[1])
    if place[2] == "hook_resid_pre":
        layer -= 1
    said = Site(point, layer) if layer >= 0 else Site("embed")
    if said != site:
        raise InvalidInput(
            f"{file} was trained at {hook}, by its configuration, which is {said} here and not {site}",
            f"pass {option('site', said)}",
        )


@dataclass(eq=False)
class _Job:
    """See `job.Job`."""

    path: Path
    request: SaeAddRequest
    model: schema.Model
    site: Site
    site_id: str
    sha256: str
    dictionary: Dictionary

    def __post_init__(self) -> None:
        self.sae_id = short_id("sae", self.sha256, self.model.model_id, self.site.name)
        self.name = self.request.name or self.request.source.stem
        self.moved: list[str] = []

    def identify(self, _: Progress) -> str:
        """From the file, the model and the site. A dictionary that is there already keeps its name, and is read from this
        file where the old one is gone."""
        known = self._known()
        if known is not None:
            self.name = known
            self.moved = _moved(self.path, self.sae_id, self.request.source)
        return short_id("run", self.model.model_id, "sae", self.site.name, self.sha256, VERSION)

    def _known(self) -> str | None:
        """The name under which this dictionary is in the catalogue; None if it is not, or not whole.

        Raises:
            RunConflict: if it is in under another name, or the name belongs to another dictionary.
        """
        with store.reading(self.path) as connection:
            here = connection.execute(
                "SELECT x.name, r.finished_at IS NOT NULL FROM sae x JOIN run r USING (run_id) WHERE sae_id = ?",
                [self.sae_id],
            ).fetchone()
            namesake = connection.execute(
                "SELECT x.source FROM sae x JOIN model m USING (model_id) WHERE m.name = ? AND x.name = ? AND sae_id <> ?",
                [self.request.model, self.name, self.sae_id],
            ).fetchone()
        if here is not None:
            if self.request.name is not None and here[0] != self.request.name:
                raise RunConflict(
                    f"this dictionary is already in the catalogue as {here[0]!r}",
                    f"leave {option('name')} out",
                )
            return str(here[0]) if here[1] else None
        if namesake is not None:
            raise RunConflict(
                f"the name {self.name!r} belongs to another dictionary of {self.request.model} ({namesake[0]})",
                f"pass another {option('name')}",
            )
        return None

    def run(self, run_id: str, progress: Progress) -> list[str]:
        """Insert the row and the codes."""
        dictionary, site, file = self.dictionary, self.site, self.request.source
        ident = int_id("code_set", run_id, site.name, "direction", "zero", "standard")
        spec = RunSpec(
            run_id,
            "sae",
            {"sites": [site.name], "name": self.name, "sae": self.sae_id, "sha256": self.sha256},
            (SetSpec(ident, site, self.site_id, "direction", "zero", dictionary.width),),
        )
        row: dict[str, Any] = {
            "sae_id": self.sae_id, "model_id": self.model.model_id, "site_id": self.site_id, "run_id": run_id,
            "name": self.name, "source": str(file), "sha256": self.sha256, "n_features": dictionary.n_features,
            "seed": dictionary.seed, "params": _stored(dictionary),
        }  # fmt: skip

        def compute(_: int) -> Callable[[Session], None]:
            rows = dictionary.w_dec.numpy()
            items = sae_item(self.sae_id, 0) + np.arange(len(rows), dtype=np.int64)
            norms = np.linalg.norm(rows.astype(np.float64), axis=1).astype(np.float32)
            part = bulk.code_columns(ident, items, norms, pack(rows))

            def write(session: Session) -> None:
                session.add(schema.Sae(**row, added_at=now()))
                bulk.insert_codes(session, [part])

            return write

        # One shard: a dictionary's codes are a thirty-second of what was just read.
        units = Units(spec, compute, 1, "features", [dictionary.n_features])
        notes = _notes(dictionary, self.model, site, file)
        run_units(self.path, self.model, "cpu", units, progress)
        return notes


def _model(path: Path, name: str) -> schema.Model:
    columns = [one.key for one in schema.Model.__table__.columns]
    with store.reading(path) as connection:
        found = connection.execute(
            f"SELECT {', '.join(columns)} FROM model WHERE name = ?", [name]
        ).fetchone()
        if found is None:
            every = connection.execute("SELECT name FROM model ORDER BY name").fetchall()
            raise NotFound("model", name, [one[0] for one in every])
    return schema.Model(**dict(zip(columns, found, strict=True)))


def _find_site(path: Path, model: schema.Model, site: Site) -> tuple[str, int]:
    """Id and width of a site of a model that is not loaded."""
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT name, site_id, width FROM site WHERE model_id = ? ORDER BY point, layer", [model.model_id]
        ).fetchall()
    known = {name: (str(site_id), int(width)) for name, site_id, width in rows}
    if site.name in known:
        return known[site.name]
    if site.point == "resid_post":
        assert site.layer is not None
        if site.layer >= model.n_layers:
            raise SiteError(
                f"no layer {site.layer} in {site.name!r}", f"layers count from 0 to {model.n_layers - 1}"
            )
        return f"{model.model_id}/{site.name}", model.width
    raise NotFound(
        f"site of {model.name}", site.name, list(known), todo="ingest the model at that site first"
    )


def _read(file: Path) -> tuple[str, Dictionary]:
    """SHA-256 and content of a file.

    Raises:
        InvalidInput: if it cannot be read, or changed meanwhile.
    """
    try:
        before = file.stat() if file.is_file() else None
        dictionary = load(file)
        sha256, after = hash_file(file), file.stat()
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read ({error.strerror})", "try again") from error
    if before is None or any(getattr(before, one) != getattr(after, one) for one in _SAME):
        raise InvalidInput(f"{file} changed while it was read", "try again when it is complete")
    return sha256, dictionary


def _moved(path: Path, sae_id: str, file: Path) -> list[str]:
    """Where a dictionary that is no longer where it was is looked for from now on."""
    with store.reading(path) as connection:
        row = connection.execute("SELECT source FROM sae WHERE sae_id = ?", [sae_id]).fetchone()
    if row is None or Path(row[0]).exists():
        return []
    with store.writing(path) as session:
        session.get_one(schema.Sae, sae_id).source = str(file)
    return [f"it was at {row[0]} and is read from {file} now"]


def _notes(dictionary: Dictionary, model: schema.Model, site: Site, file: Path) -> list[str]:
    notes = []
    if dictionary.width == dictionary.n_features:
        notes.append(
            f"{file.name} is square: W_enc was taken as [width, features], W_dec as [features, width]"
        )
    said = dictionary.params
    trained_on = said.get("model_id", model.model_id), said.get("site", site.name)
    if trained_on != (model.model_id, site.name):
        notes.append(f"{file.name} says that it was trained on {said.get('model', '?')} at {trained_on[1]}")
    return notes


def _stored(dictionary: Dictionary) -> str:
    return json.dumps(dictionary.params, sort_keys=True)


# ---- reading them back ----------------------------------------------------------------------------


class StoredSae(NamedTuple):
    """A row of `sae`, and what is in its file."""

    row: schema.Sae
    dictionary: Dictionary


def read_saes(path: Path, model: str, site: str) -> tuple[list[StoredSae], list[str]]:
    """The dictionaries of a model at a site, by name, and a note for each that is not at hand.

    One counts only if its file is where it was and has the same content.

    Raises:
        NotFound: if there is no such model.
    """
    owner = _model(path, model)
    columns = [one.key for one in schema.Sae.__table__.columns]
    with store.reading(path) as connection:
        found = connection.execute(
            f"SELECT {', '.join(f'x.{one}' for one in columns)} FROM sae x JOIN run r USING (run_id) "
            "JOIN site s ON s.site_id = x.site_id WHERE x.model_id = ? AND s.name = ? AND r.finished_at IS NOT NULL "
            "ORDER BY x.name, x.sae_id",
            [owner.model_id, Site.from_name(site).name],
        ).fetchall()
    there, notes = list[StoredSae](), list[str]()
    for values in found:
        row = schema.Sae(**dict(zip(columns, values, strict=True)))
        file = Path(row.source)
        left_out = f"dictionary {row.name} of {model} is left out: "
        if not file.is_file():
            notes.append(f"{left_out}{file} is gone")
            continue
        try:
            sha256, dictionary = _read(file)
        except SignariumError as error:
            notes.append(left_out + error.what)
            continue
        # A configuration beside the file decides what the encoder does, too.
        if sha256 != row.sha256 or _stored(dictionary) != row.params:
            notes.append(f"{left_out}{file} changed since it was added")
            continue
        there.append(StoredSae(row, dictionary))
    return there, notes
