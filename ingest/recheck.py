"""Stored codes against those that the model gives when they are computed again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ..catalog import bulk, store
from ..catalog.codes import Codes, hamming, n_bytes, pack
from ..catalog.errors import RunConflict, option
from ..catalog.ids import neuron_place
from ..catalog.verify import Finding
from .encode import reload
from .model.loaded import LoadedModel
from .model.sites import Site
from .passes.forward import signs_of

if TYPE_CHECKING:
    import duckdb


_MOST_FLIPPED = 0.05
"""Batches of another shape flip a few bits in a thousand, other weights about half."""


@dataclass(frozen=True)
class Recheck:
    """How many bits of a sample of stored codes differ from those computed again."""

    model: str
    what: str
    codes: int
    bits: int
    flipped: int


def findings(path: Path, name: str) -> list[Finding]:
    """What `recheck` finds, as `db verify` reports it: a site is wrong where more than `_MOST_FLIPPED` of its bits differ."""
    return [
        Finding(
            f"{one.what} ({one.flipped / max(1, one.bits):.2%} of the bits differ)",
            one.codes,
            one.codes if one.flipped > _MOST_FLIPPED * max(1, one.bits) else 0,
        )
        for one in recheck(path, name)
    ]


def recheck(path: Path, name: str, n: int = 256, seed: int = 0) -> list[Recheck]:
    """Recompute `n` random type codes (centre zero) of a model at each of its sites, and those of `n` random neurons,
    and compare.

    Batches are composed otherwise than at ingest, so a few bits in a thousand may differ by the float type
    alone (see `measurements`, metric bit_flip_rate_zero); many mean that the codes are not this model's.

    Raises:
        ModelError: if the model is not at hand.
    """
    with store.reading(path) as connection:
        sets = connection.execute(
            "SELECT site, code_set_id, width FROM code_sets WHERE model = ? AND subject = 'type' AND centre = 'zero' "
            "AND basis = 'standard' AND n > 0 ORDER BY site",
            [name],
        ).fetchall()
        neurons = _some_neurons(connection, name, n, seed)
    if not sets and neurons is None:
        return []
    # Not while the file is held: a model takes its time to load.
    model = reload(path, name)
    results = [_recheck_neurons(model, name, *neurons)] if neurons is not None else []
    if not sets:
        return results
    with store.reading(path) as connection:
        items = np.concatenate(list(bulk.stream_items(connection, sets[0][1])))
        chosen = np.sort(np.random.default_rng(seed).choice(items, min(n, len(items)), replace=False))
        stored = {}
        for site, ident, width in sets:
            table = connection.execute(
                "SELECT item, code FROM code_row WHERE code_set_id = ? AND item IN "
                f"({', '.join(map(str, chosen))}) ORDER BY item",
                [ident],
            ).to_arrow_table()
            stored[site] = (
                table.column("item").to_numpy(),
                bulk.code_matrix(table.column("code"), n_bytes(width)),
                width,
            )
    sites = [Site.from_name(site) for site, _, _ in sets]
    again = signs_of(
        model,
        [np.array([i], dtype=np.int32) for i in chosen],
        sites,
        {one.name: {"zero": None} for one in sites},
        len(chosen),
    )
    for site, (items, codes, width) in stored.items():
        mine = again[site].codes["zero"][np.searchsorted(chosen, items)]
        differing = int(hamming(mine, codes).sum())
        results.append(
            Recheck(name, f"types recomputed at {site}", len(items), len(items) * width, differing)
        )
    return results


_MOST_OF_TYPES = 0.02
"""Types go through alone, so that fewer of their bits flip with the batch."""


def check_config(path: Path, model: LoadedModel, name: str) -> None:
    """Compare codes of a model that was added before configs were kept with those that `model` gives.

    Raises:
        RunConflict: if they are of another config of the same weights.
    """
    with store.reading(path) as connection:
        sets = connection.execute(
            "SELECT c.subject, c.code_set_id, s.name, c.width, min(r.item) FROM code_set c JOIN site s USING (site_id) "
            "JOIN model m USING (model_id) JOIN code_row r USING (code_set_id) WHERE m.name = ? AND c.centre = 'zero' "
            "AND c.basis = 'standard' AND c.subject IN ('state', 'type') GROUP BY ALL "
            "ORDER BY c.subject, any_value(s.layer) DESC NULLS LAST",
            [name],
        ).fetchall()
        for subject, ident, site, width, first in {one[0]: one for one in reversed(sets)}.values():
            windows = [one for one in _first_window(connection, subject, first) if one[1] < model.vocab_size]
            items = [item for item, _ in windows]
            table = connection.execute(
                f"SELECT item, code FROM code_row WHERE code_set_id = ? AND item IN ({', '.join(map(str, items))}) ORDER BY item",
                [ident],
            ).to_arrow_table()
            stored = bulk.code_matrix(table.column("code"), n_bytes(width))
            ids = np.array([token for _, token in windows], dtype=np.int32)
            batch = [ids] if subject == "state" else [ids[i : i + 1] for i in range(len(ids))]
            again = signs_of(model, batch, [Site.from_name(site)], {site: {"zero": None}}, len(ids))
            mine = again[site].codes["zero"][np.searchsorted(items, table.column("item").to_numpy())]
            most = _MOST_FLIPPED if subject == "state" else _MOST_OF_TYPES
            if (share := float(hamming(mine, stored).mean()) / width) > most:
                what = f"{name} has codes of another config of these weights ({share:.1%} of the bits of a {subject} differ)"
                raise RunConflict(what, f"pass another {option('name')}")


def _first_window(connection: duckdb.DuckDBPyConnection, subject: str, first: int) -> list[tuple[int, int]]:
    """Items and token ids of the window that begins with the state `first`; of some types, of which `first` is one."""
    if subject == "type":
        return [(i, i) for i in range(first, first + 64)]
    rows = connection.execute(
        "SELECT state_id, token_id FROM state_row WHERE document_id = (SELECT document_id FROM state_row WHERE state_id = ?) "
        "ORDER BY position",
        [first],
    ).fetchall()
    return [(int(state), int(token)) for state, token in rows]


def _some_neurons(
    connection: duckdb.DuckDBPyConnection, name: str, n: int, seed: int
) -> tuple[NDArray[np.int64], Codes] | None:
    """Items and codes of `n` random neurons; None where none are stored."""
    sets = connection.execute(
        "SELECT code_set_id, width FROM code_sets WHERE model = ? AND subject = 'neuron' AND n > 0", [name]
    ).fetchall()
    if not sets:
        return None
    ident, width = sets[0]
    items = np.concatenate(list(bulk.stream_items(connection, ident)))
    some = np.random.default_rng(seed).choice(items, min(n, len(items)), replace=False)
    table = connection.execute(
        f"SELECT item, code FROM code_row WHERE code_set_id = ? AND item IN ({', '.join(map(str, some))})",
        [ident],
    ).to_arrow_table()
    return table.column("item").to_numpy(), bulk.code_matrix(table.column("code"), n_bytes(width))


def _recheck_neurons(model: LoadedModel, name: str, items: NDArray[np.int64], stored: Codes) -> Recheck:
    """Codes of weights, which are the same bit for bit or those of another model."""
    differing = 0
    places = np.array([neuron_place(int(item)) for item in items])
    for layer in np.unique(places[:, 0]):
        here = places[:, 0] == layer
        rows = torch.from_numpy(places[here, 1])
        mine = pack(model.ffn_directions(int(layer))[rows.to(model.device)].float().cpu().numpy())
        differing += int(hamming(mine, stored[here]).sum())
    return Recheck(name, "neurons read again", len(items), len(items) * model.width, differing)
