"""A catalogue of random codes of any size, written through the catalogue's own functions; no model is run.

`python benchmarks/synthetic.py PATH --states 1000000` makes one to time searches on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from sqlalchemy.orm import Session

from signarium.catalog import bulk, index, schema, store
from signarium.catalog.ids import int_id, short_id, text_base
from signarium.catalog.shared import ROW_GROUP
from signarium.migrations import manage

MODEL = "synthetic"
_NOW = datetime(2000, 1, 1)
_WORDS = ("the", "king", "saw", "a", "ship", "on", "sea", "and", "its", "queen", "of", "old")


def build(
    path: Path,
    *,
    states: int = 1_000_000,
    types: int = 49_152,
    width: int = 576,
    sites: Sequence[str] = ("resid_post.0",),
    centres: Sequence[str] = ("mean",),
    context: int = 256,
    seed: int = 0,
    indexes: bool = True,
) -> Path:
    """Make the catalogue `path`: `states` state codes and `types` type codes per site and centre, of `width` bits.

    Codes are random, tokens are numbered words, documents have `context` tokens each. The rows depend on the
    arguments alone.
    """
    random = np.random.default_rng(seed)
    model_id, tokenizer = short_id(MODEL, seed, width), f"tokenizer-{seed}"
    base = text_base(0, MODEL, seed)
    with store.job_lock(path):
        manage.ensure(path)
        sets = {}
        with store.writing(path) as session:
            session.add(
                schema.Model(
                    model_id=model_id,
                    name=MODEL,
                    source=MODEL,
                    revision=None,
                    architecture="none",
                    width=width,
                    n_layers=len(sites),
                    d_ffn=4 * width,
                    vocab_size=types,
                    dtype="float32",
                    weights_sha256="0" * 64,
                    tokenizer_sha256=tokenizer,
                    random_init_seed=seed,
                    added_at=_NOW,
                )
            )
            for site in sites:
                point, _, layer = site.partition(".")
                session.add(
                    schema.Site(
                        site_id=f"{model_id}/{site}",
                        model_id=model_id,
                        name=site,
                        point=point,
                        layer=int(layer) if layer else None,
                        width=width,
                    )
                )
            for subject, job in (("type", "types"), ("state", "states")):
                run_id = short_id(model_id, job)
                session.add(
                    schema.Run(
                        run_id=run_id,
                        job=job,
                        model_id=model_id,
                        params=json.dumps({"sites": list(sites)}),
                        versions="{}",
                        device="none",
                        complete=True,
                        started_at=_NOW,
                        finished_at=_NOW,
                    )
                )
                for site in sites:
                    for centre in centres:
                        ident = int_id(run_id, site, subject, centre, "standard")
                        sets[subject, site, centre] = ident
                        session.add(
                            schema.CodeSet(
                                code_set_id=ident,
                                run_id=run_id,
                                site_id=f"{model_id}/{site}",
                                subject=subject,
                                centre=centre,
                                basis="standard",
                                width=width,
                            )
                        )
            bulk.insert(
                session,
                schema.token_row,
                {
                    "tokenizer": [tokenizer] * types,
                    "token_id": np.arange(types, dtype=np.int32),
                    "token": [f" {_WORDS[i % len(_WORDS)]}{i}" for i in range(types)],
                },
            )
        for subject, total, first in (("type", types, 0), ("state", states, base)):
            run_id = short_id(model_id, f"{subject}s")
            for start in range(0, total, ROW_GROUP):
                n = min(ROW_GROUP, total - start)
                with store.writing(path) as session:
                    if subject == "state":
                        _texts(session, random, base, start, n, context, types, total)
                    bulk.insert_codes(
                        session,
                        [
                            bulk.code_columns(
                                ident,
                                np.arange(first + start, first + start + n, dtype=np.int64),
                                random.random(n, dtype=np.float32),
                                _codes(random, n, width),
                            )
                            for (what, _, _), ident in sets.items()
                            if what == subject
                        ],
                    )
                    session.add(
                        schema.Shard(
                            run_id=run_id,
                            start=start,
                            n=n,
                            tokens=n,
                            forward_s=0.0,
                            pack_s=0.0,
                            write_s=0.0,
                            wall_s=1.0,
                        )
                    )
        if indexes:
            index.build_all(path)
    return path


def first_state(seed: int = 0) -> int:
    """The smallest state_id of a catalogue built with `seed`; the others follow it without a gap."""
    return text_base(0, MODEL, seed)


def _codes(random: np.random.Generator, n: int, width: int) -> np.ndarray:
    codes = random.integers(0, 256, (n, -(-width // 8)), dtype=np.uint8)
    if width % 8:
        codes[:, -1] &= (0xFF << (8 - width % 8)) & 0xFF
    return codes


def _texts(
    session: Session,
    random: np.random.Generator,
    base: int,
    start: int,
    n: int,
    context: int,
    types: int,
    total: int,
) -> None:
    places = np.arange(start, start + n, dtype=np.int64)
    bulk.insert(
        session,
        schema.state_row,
        {
            "state_id": base + places,
            "document_id": base + places // context,
            "position": (places % context).astype(np.int32),
            "token_id": random.integers(0, types, n, dtype=np.int32),
        },
    )
    documents = np.unique(places[places % context == 0] // context)
    bulk.insert(
        session,
        schema.document_row,
        {
            "document_id": base + documents,
            "source": ["synthetic.txt"] * len(documents),
            "chunk": documents.astype(np.int32),
            "sha256": ["0" * 64] * len(documents),
            "n_tokens": np.minimum(context, total - documents * context).astype(np.int32),
            "text": [""] * len(documents),
        },
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--states", type=int, default=1_000_000)
    parser.add_argument("--types", type=int, default=49_152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--sites", type=int, default=1)
    given = parser.parse_args()
    sites = [f"resid_post.{i}" for i in range(given.sites)]
    build(given.path, states=given.states, types=given.types, width=given.width, sites=sites)
    print(given.path)


if __name__ == "__main__":
    main()
