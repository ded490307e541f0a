"""SQLAlchemy's tables, made from those of the parts: for what writes. Readers do without, and start without SQLAlchemy.

`schema.flip_row` is the table of that name, of any part; the small tables have a class for their rows beside it.
Tables may change from one revision to the next; what stays are the views. They are named in the singular, views in the
plural. No foreign keys and no secondary indexes: DuckDB refuses to alter a table that has one. No sequences: ids come
from content.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)
from sqlalchemy.orm import DeclarativeBase, Mapped

from . import part, parts

BLOCK_BYTES = 65_536
"""Block size of a new file. Each small table fills a block of its own; DuckDB's default of 256 KiB makes a small
catalogue three times as large, and one of 16 KiB halves the loading speed."""

_KINDS = {
    part.VARCHAR: String,
    part.INTEGER: Integer,
    part.BIGINT: BigInteger,
    part.DOUBLE: Double,
    part.REAL: REAL,
    part.BLOB: LargeBinary,
    part.BOOLEAN: Boolean,
    part.TIMESTAMP: DateTime,
}


class Base(DeclarativeBase):
    """Base of the classes of rows."""


def table(name: str) -> Table:
    """SQLAlchemy's table of that name; KeyError if no part has it."""
    known = Base.metadata.tables
    if name not in known:
        made = parts.tables()[name]
        Table(
            name,
            Base.metadata,
            *(
                Column(
                    one.name,
                    _KINDS[parts.kind(one)],
                    primary_key=one.name in made.primary,
                    autoincrement=False,
                    nullable=one.optional,
                )
                for one in made.columns
            ),
        )
    return known[name]


def metadata() -> MetaData:
    """Every table: what Alembic compares a file with."""
    for name in parts.tables():
        table(name)
    return Base.metadata


def __getattr__(name: str) -> Table:
    try:
        return table(name)
    except KeyError:
        raise AttributeError(f"no part has a table {name!r}") from None


# ---- rows of the small tables, with types for the type checker; a test compares them with the parts -----------------


class Model(Base):
    """One set of weights with its config and its tokenizer, at one float type."""

    __table__ = table("model")
    model_id: Mapped[str]
    name: Mapped[str]
    source: Mapped[str]
    revision: Mapped[str | None]
    architecture: Mapped[str]
    width: Mapped[int]
    n_layers: Mapped[int]
    d_ffn: Mapped[int]
    vocab_size: Mapped[int]
    dtype: Mapped[str]
    weights_sha256: Mapped[str]
    tokenizer_sha256: Mapped[str]
    random_init_seed: Mapped[int | None]
    added_at: Mapped[datetime]
    config: Mapped[str | None]
    attention: Mapped[str | None]


class Run(Base):
    """One job over one content. `complete` is False while `--max-tokens` left some of its text unread."""

    __table__ = table("run")
    run_id: Mapped[str]
    job: Mapped[str]
    model_id: Mapped[str]
    params: Mapped[str]
    versions: Mapped[str]
    device: Mapped[str]
    complete: Mapped[bool]
    failure: Mapped[str | None]
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]


class Shard(Base):
    """What one transaction of a run committed: items `start` .. `start + n` of the run's plan."""

    __table__ = table("shard")
    run_id: Mapped[str]
    start: Mapped[int]
    n: Mapped[int]
    tokens: Mapped[int]
    forward_s: Mapped[float]
    pack_s: Mapped[float]
    write_s: Mapped[float]
    wall_s: Mapped[float]


class Site(Base):
    """A named point of one model."""

    __table__ = table("site")
    site_id: Mapped[str]
    model_id: Mapped[str]
    name: Mapped[str]
    point: Mapped[str]
    layer: Mapped[int | None]
    width: Mapped[int]


class CodeSet(Base):
    """All codes of one run, site, subject, centre and basis."""

    __table__ = table("code_set")
    code_set_id: Mapped[int]
    run_id: Mapped[str]
    site_id: Mapped[str]
    subject: Mapped[str]
    centre: Mapped[str]
    basis: Mapped[str]
    width: Mapped[int]


class Sae(Base):
    """A sparse autoencoder of one model's site, in a file of its own."""

    __table__ = table("sae")
    sae_id: Mapped[str]
    model_id: Mapped[str]
    site_id: Mapped[str]
    run_id: Mapped[str]
    name: Mapped[str]
    source: Mapped[str]
    sha256: Mapped[str]
    n_features: Mapped[int]
    seed: Mapped[int | None]
    params: Mapped[str]
    added_at: Mapped[datetime]


class IndexPart(Base):
    """A FAISS file that was built over the first `n` items of a code set (the file itself may be gone)."""

    __table__ = table("index_part")
    code_set_id: Mapped[int]
    n: Mapped[int]
    built_at: Mapped[datetime]


class TextFile(Base):
    """A text as one tokenizer cut it: owner of a range of document and state ids."""

    __table__ = table("text_file")
    text_id: Mapped[int]
    name: Mapped[str]
    sha256: Mapped[str]
    size: Mapped[int]
    kind: Mapped[str]
    tokenizer_sha256: Mapped[str]
    context: Mapped[int]
    added_at: Mapped[datetime]
