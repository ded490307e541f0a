"""The first catalogue: models, runs, sites, codes, texts, statistics and measurements."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "model",
        sa.Column("model_id", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("revision", sa.String(), nullable=True),
        sa.Column("architecture", sa.String(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("n_layers", sa.Integer(), nullable=False),
        sa.Column("d_ffn", sa.Integer(), nullable=False),
        sa.Column("vocab_size", sa.Integer(), nullable=False),
        sa.Column("dtype", sa.String(), nullable=False),
        sa.Column("weights_sha256", sa.String(), nullable=False),
        sa.Column("tokenizer_sha256", sa.String(), nullable=False),
        sa.Column("random_init_seed", sa.BigInteger(), nullable=True),
        sa.Column("added_at", sa.DateTime(), nullable=False),
    )
    op.create_table(
        "run",
        sa.Column("run_id", sa.String(), primary_key=True),
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("params", sa.String(), nullable=False),
        sa.Column("versions", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("complete", sa.Boolean(), nullable=False),
        sa.Column("failure", sa.String(), nullable=True),
        sa.Column("started_at", sa.DateTime(), nullable=False),
        sa.Column("finished_at", sa.DateTime(), nullable=True),
    )
    op.create_table(
        "shard",
        sa.Column("run_id", sa.String(), primary_key=True),
        sa.Column("start", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("forward_s", sa.Double(), nullable=False),
        sa.Column("pack_s", sa.Double(), nullable=False),
        sa.Column("write_s", sa.Double(), nullable=False),
        sa.Column("wall_s", sa.Double(), nullable=False),
    )
    op.create_table(
        "site",
        sa.Column("site_id", sa.String(), primary_key=True),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("point", sa.String(), nullable=False),
        sa.Column("layer", sa.Integer(), nullable=True),
        sa.Column("width", sa.Integer(), nullable=False),
    )
    op.create_table(
        "code_set",
        sa.Column("code_set_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("site_id", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("centre", sa.String(), nullable=False),
        sa.Column("basis", sa.String(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
    )
    op.create_table(
        "index_part",
        sa.Column("code_set_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("n", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("built_at", sa.DateTime(), nullable=False),
    )
    op.create_table(
        "text_file",
        sa.Column("text_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("tokenizer_sha256", sa.String(), nullable=False),
        sa.Column("context", sa.Integer(), nullable=False),
        sa.Column("added_at", sa.DateTime(), nullable=False),
    )
    op.create_table(
        "measurement",
        *(
            sa.Column(name, sa.String(), primary_key=True)
            for name in ("run_id", "site_id", "subject", "subject_id", "metric", "control", "split")
        ),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=True),
    )
    # Random bits do not compress, and DuckDB's attempt at them costs a third of the loading time.
    op.execute(
        "CREATE TABLE code_row (code_set_id BIGINT NOT NULL, item BIGINT NOT NULL, "
        "norm FLOAT NOT NULL USING COMPRESSION uncompressed, code BLOB NOT NULL USING COMPRESSION uncompressed)"
    )
    op.create_table(
        "state_row",
        sa.Column("state_id", sa.BigInteger(), nullable=False),
        sa.Column("document_id", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("token_id", sa.Integer(), nullable=False),
    )
    op.create_table(
        "document_row",
        sa.Column("document_id", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("chunk", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("n_tokens", sa.Integer(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
    )
    op.create_table(
        "run_text",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("text_id", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "token_row",
        sa.Column("tokenizer", sa.String(), nullable=False),
        sa.Column("token_id", sa.Integer(), nullable=False),
        sa.Column("token", sa.String(), nullable=False),
    )
    op.create_table(
        "dimension_row",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("site_id", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("dim", sa.Integer(), nullable=False),
        *(
            sa.Column(name, sa.Double(), nullable=False)
            for name in ("p_positive", "entropy", "mean", "std", "argmax_share", "argmin_share")
        ),
    )
