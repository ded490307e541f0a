"""Texts as a model saw them: files, windows, and which token stands where."""

from __future__ import annotations

from ..part import BIGINT, INTEGER, TIMESTAMP, VARCHAR, Part, View, ref, table

_TABLES = (
    table(
        "text_file", "A text as one tokenizer cut it: owner of a range of document and state ids.", "texts", "text",
        primary="text_id",
        text_id=BIGINT, name=VARCHAR, sha256=VARCHAR, size=BIGINT, kind=VARCHAR, tokenizer_sha256=VARCHAR, context=INTEGER,
        added_at=TIMESTAMP,
    ),
    table(
        "document_row", "One window of text as the model saw it.", "documents", "document",
        key="document_id",
        document_id=BIGINT, source=VARCHAR, chunk=INTEGER, sha256=VARCHAR, n_tokens=INTEGER, text=VARCHAR,
    ),
    # No key: `verify` compares the states of a document with its number of tokens.
    table(
        "state_row", "Which token stands where: shared by every site, and by every model with the same tokenizer.",
        "states", "state",
        state_id=BIGINT, document_id=ref("document_row"), position=INTEGER, token_id=INTEGER,
    ),
    table(
        "run_text", "The texts of a run, in the order in which it reads them.", "texts of runs",
        key="run_id, place",
        run_id=ref("run", "texts without their run"), place=INTEGER,
        text_id=ref("text_file", "texts of runs that are not there"),
    ),
)  # fmt: skip

_VIEWS = (
    View(
        "documents",
        "One row per window of text as the model saw it.",
        {
            "document_id": "from the text's content and the window's number",
            "source": "file, or `file:record`",
            "chunk": "number of the window in its source, from 0",
            "sha256": "of `text`",
            "n_tokens": "special tokens included",
            "text": "the exact slice of the source",
        },
        "SELECT document_id, source, chunk, sha256, n_tokens, text FROM document_row",
    ),
)

PART = Part(name="texts", tables=_TABLES, views=_VIEWS)
