"""The tables. They may change from one revision to the next; what stays are the views (`views.py`).

Tables are named in the singular, views in the plural. No foreign keys and no secondary indexes: DuckDB
refuses to alter a table that has one. No sequences: ids come from content.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import REAL, BigInteger, Column, DateTime, Double, Integer, LargeBinary, String, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

BLOCK_BYTES = 65_536
"""Block size of a new file. Each small table fills a block of its own; DuckDB's default of 256 KiB makes a small
catalogue three times as large, and one of 16 KiB halves the loading speed."""


class Base(DeclarativeBase):
    """Base of the tables; its metadata is what Alembic compares a file with."""


class Model(Base):
    """One set of weights with its tokenizer, at one float type."""

    __tablename__ = "model"
    model_id: Mapped[str] = mapped_column(String, primary_key=True)
    name: Mapped[str] = mapped_column(String)
    source: Mapped[str] = mapped_column(String)
    revision: Mapped[str | None] = mapped_column(String)
    architecture: Mapped[str] = mapped_column(String)
    width: Mapped[int] = mapped_column(Integer)
    n_layers: Mapped[int] = mapped_column(Integer)
    d_ffn: Mapped[int] = mapped_column(Integer)
    vocab_size: Mapped[int] = mapped_column(Integer)
    dtype: Mapped[str] = mapped_column(String)
    weights_sha256: Mapped[str] = mapped_column(String)
    tokenizer_sha256: Mapped[str] = mapped_column(String)
    random_init_seed: Mapped[int | None] = mapped_column(BigInteger)
    added_at: Mapped[datetime] = mapped_column(DateTime)


class Run(Base):
    """One job over one content. `complete` is False while `--max-tokens` left some of its text unread."""

    __tablename__ = "run"
    run_id: Mapped[str] = mapped_column(String, primary_key=True)
    job: Mapped[str] = mapped_column(String)
    model_id: Mapped[str] = mapped_column(String)
    params: Mapped[str] = mapped_column(String)
    versions: Mapped[str] = mapped_column(String)
    device: Mapped[str] = mapped_column(String)
    complete: Mapped[bool]
    failure: Mapped[str | None] = mapped_column(String)
    started_at: Mapped[datetime] = mapped_column(DateTime)
    finished_at: Mapped[datetime | None] = mapped_column(DateTime)


class Shard(Base):
    """What one transaction of a run committed: items `start` .. `start + n` of the run's plan."""

    __tablename__ = "shard"
    run_id: Mapped[str] = mapped_column(String, primary_key=True)
    start: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    n: Mapped[int] = mapped_column(BigInteger)
    tokens: Mapped[int] = mapped_column(BigInteger)
    forward_s: Mapped[float] = mapped_column(Double)
    pack_s: Mapped[float] = mapped_column(Double)
    write_s: Mapped[float] = mapped_column(Double)
    wall_s: Mapped[float] = mapped_column(Double)


class Site(Base):
    """A named point of one model."""

    __tablename__ = "site"
    site_id: Mapped[str] = mapped_column(String, primary_key=True)
    model_id: Mapped[str] = mapped_column(String)
    name: Mapped[str] = mapped_column(String)
    point: Mapped[str] = mapped_column(String)
    layer: Mapped[int | None] = mapped_column(Integer)
    width: Mapped[int] = mapped_column(Integer)


class CodeSet(Base):
    """All codes of one run, site, subject, centre and basis."""

    __tablename__ = "code_set"
    code_set_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    run_id: Mapped[str] = mapped_column(String)
    site_id: Mapped[str] = mapped_column(String)
    subject: Mapped[str] = mapped_column(String)
    centre: Mapped[str] = mapped_column(String)
    basis: Mapped[str] = mapped_column(String)
    width: Mapped[int] = mapped_column(Integer)


class Sae(Base):
    """A sparse autoencoder of one model's site, in a file of its own."""

    __tablename__ = "sae"
    sae_id: Mapped[str] = mapped_column(String, primary_key=True)
    model_id: Mapped[str] = mapped_column(String)
    site_id: Mapped[str] = mapped_column(String)
    run_id: Mapped[str] = mapped_column(String)
    name: Mapped[str] = mapped_column(String)
    source: Mapped[str] = mapped_column(String)
    sha256: Mapped[str] = mapped_column(String)
    n_features: Mapped[int] = mapped_column(Integer)
    seed: Mapped[int | None] = mapped_column(BigInteger)
    params: Mapped[str] = mapped_column(String)
    added_at: Mapped[datetime] = mapped_column(DateTime)


class IndexPart(Base):
    """A FAISS file that was built over the first `n` items of a code set (the file itself may be gone)."""

    __tablename__ = "index_part"
    code_set_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    n: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    built_at: Mapped[datetime] = mapped_column(DateTime)


class TextFile(Base):
    """A text as one tokenizer cut it: owner of a range of document and state ids."""

    __tablename__ = "text_file"
    text_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String)
    sha256: Mapped[str] = mapped_column(String)
    size: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(String)
    tokenizer_sha256: Mapped[str] = mapped_column(String)
    context: Mapped[int] = mapped_column(Integer)
    added_at: Mapped[datetime] = mapped_column(DateTime)


# The bulk tables: written as Arrow by `bulk.py`, a shard at a time, without a key to maintain.


def _bulk(name: str, /, *, optional: Sequence[str] = (), **columns: type) -> Table:
    return Table(
        name, Base.metadata, *(Column(key, kind, nullable=key in optional) for key, kind in columns.items())
    )


code_row = _bulk("code_row", code_set_id=BigInteger, item=BigInteger, norm=REAL, code=LargeBinary)
"""One sign code. `item` is a token id, a state id, ... as the code set's subject says."""

state_row = _bulk(
    "state_row", state_id=BigInteger, document_id=BigInteger, position=Integer, token_id=Integer
)
"""Which token stands where: shared by every site, and by every model with the same tokenizer."""

document_row = _bulk(
    "document_row",
    document_id=BigInteger,
    source=String,
    chunk=Integer,
    sha256=String,
    n_tokens=Integer,
    text=String,
)
"""One window of text as the model saw it."""

run_text = _bulk("run_text", run_id=String, place=Integer, text_id=BigInteger)
"""The texts of a run, in the order in which it reads them."""

token_row = _bulk("token_row", tokenizer=String, token_id=Integer, token=String)
"""The decoded text of each row of a vocabulary, by the tokenizer's hash."""

dimension_row = _bulk(
    "dimension_row",
    run_id=String,
    site_id=String,
    subject=String,
    dim=Integer,
    p_positive=Double,
    entropy=Double,
    mean=Double,
    std=Double,
    argmax_share=Double,
    argmin_share=Double,
)
"""Statistics of one dimension over the vocabulary's type states at one site."""

measurement_row = _bulk(
    "measurement_row",
    optional=("seed", "std_error"),
    run_id=String,
    site_id=String,
    subject=String,
    subject_id=String,
    metric=String,
    control=String,
    split=String,
    value=Double,
    n=BigInteger,
    seed=BigInteger,
    std_error=Double,
)
"""One figure with the control that it stands beside. Many: some thirty a feature."""

_CONTROLS = ("auc_rotated", "null_p95", "p_value")

feature_row = _bulk(
    "feature_row",
    optional=(
        "threshold",
        "seed_token",
        "best_dim",
        "best_dim_auc",
        "auc_in_sample",
        "auc_held_out",
        *_CONTROLS,
    ),
    feature_id=BigInteger,
    run_id=String,
    site_id=String,
    kind=String,
    name=String,
    centre=String,
    basis=String,
    n_dims=Integer,
    mask=LargeBinary,
    polarity=LargeBinary,
    threshold=Double,
    n_members=Integer,
    seed_token=Integer,
    repeats=Integer,
    best_dim=Integer,
    best_dim_auc=Double,
    auc_in_sample=Double,
    auc_held_out=Double,
    auc_rotated=Double,
    null_p95=Double,
    p_value=Double,
    fire_rate=Double,
    agreement_mean=Double,
    agreement_std=Double,
)
"""One feature: the dimensions in `mask` and the sign that each should have. `p_value` is the largest over its controls,
before it is corrected for how many features were tried."""

feature_member = _bulk("feature_member", feature_id=BigInteger, token_id=Integer, part=String)
"""The types that a feature was made from: `define` and `score` of a category, `neighbour` of a discovered one."""

feature_type_row = _bulk(
    "feature_type_row", feature_id=BigInteger, rank=Integer, token_id=Integer, agreement=Double
)
"""The types that agree most with a feature."""

feature_state_row = _bulk(
    "feature_state_row", run_id=String, feature_id=BigInteger, state_id=BigInteger, agreement=Double
)
"""The states of one text run that agree most with a feature."""

writer_row = _bulk(
    "writer_row",
    feature_id=BigInteger,
    layer=Integer,
    neuron=Integer,
    rank=Integer,
    polarity=Integer,
    agreement=Double,
)
"""The neurons of a feature's block whose write directions agree most with it, in either polarity."""

coalition_row = _bulk(
    "coalition_row",
    optional=("agreement_split_half",),
    feature_id=BigInteger,
    layer=Integer,
    k=Integer,
    agreement=Double,
    agreement_split_half=Double,
    agreement_random=Double,
)
"""The majority vote of a feature's k best neurons, beside its controls. No halves where it has one dimension."""

projection_row = _bulk(
    "projection_row",
    run_id=String,
    site_id=String,
    subject=String,
    item=BigInteger,
    source=String,
    direction=String,
    rank=Integer,
    token_id=Integer,
    logit=REAL,
)
"""The tokens that a direction raises and lowers most when it is read through the final norm and the unembedding."""

flip_row = _bulk(
    "flip_row",
    optional=("own_std_error", "other_std_error", "kl_std_error"),
    run_id=String,
    feature_id=BigInteger,
    site_id=String,
    arm=String,
    dose=Double,
    at_norm=String,
    norm=Double,
    own_logit_change=Double,
    other_logit_change=Double,
    kl=Double,
    n=BigInteger,
    own_std_error=Double,
    other_std_error=Double,
    kl_std_error=Double,
)
"""What one intervention on the residual stream does to the logits, as means over positions."""

rotation_row = _bulk(
    "rotation_row",
    optional=(
        "ev_permutation",
        "ev_exchanged",
        "ev_exchanged_error",
        "ev_shuffled_error",
        "ev_unseen",
        "halves_agreement",
        "rank_warning",
    ),
    rotation_id=BigInteger,
    run_id=String,
    site_a_id=String,
    site_b_id=String,
    width=Integer,
    n_fit=BigInteger,
    n_validation=BigInteger,
    n_test=BigInteger,
    ev_identity=Double,
    ev_mean_shift=Double,
    ev_rotation=Double,
    ev_scaled=Double,
    ev_affine=Double,
    ev_permutation=Double,
    ev_shuffled=Double,
    ev_exchanged=Double,
    ev_exchanged_error=Double,
    ev_shuffled_error=Double,
    ev_unseen=Double,
    ev_token_mean=Double,
    scale=Double,
    ridge=Double,
    effective_rank_a=Double,
    effective_rank_b=Double,
    halves_agreement=Double,
    frobenius_from_identity=Double,
    rank_warning=String,
    matrix=LargeBinary,
    mean_a=LargeBinary,
    mean_b=LargeBinary,
    std_a=LargeBinary,
    std_b=LargeBinary,
)
"""One rotation between two models at one site. BLOBs are float32, little-endian, row-major."""

rotation_component_row = _bulk(
    "rotation_component_row",
    rotation_id=BigInteger,
    component=Integer,
    variance_share=Double,
    ev_rotation=Double,
    ev_affine=Double,
    ev_shuffled=Double,
)
"""How much of one principal component of B's states a rotation explains."""

carried_row = _bulk(
    "carried_row", feature_id=BigInteger, rotation_id=BigInteger, source_feature_id=BigInteger
)
"""A feature of B that was carried there, and the feature of A that it was."""

steering_row = _bulk(
    "steering_row",
    optional=("target_std_error", "other_std_error", "kl_std_error"),
    rotation_id=BigInteger,
    direction=String,
    arm=String,
    dose=Double,
    norm=Double,
    target=String,
    target_change=Double,
    other_change=Double,
    kl=Double,
    n=BigInteger,
    target_std_error=Double,
    other_std_error=Double,
    kl_std_error=Double,
)
"""What adding a direction to the residual stream does, as means over positions."""
