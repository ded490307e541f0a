"""Texts in the catalogue: how many windows a model's tokenizer makes of each, and which range of ids it gets."""

from __future__ import annotations

from ...catalog import schema, store
from ...catalog.errors import InvalidInput
from ...catalog.ids import text_base
from ..job import Context
from ..journal import now
from ..plan import TextPlan
from ..text import windows as texts


def place_texts(context: Context) -> list[TextPlan]:
    """Count the windows of each text, up to the limit of tokens in all, and find, or choose, its range of ids.

    Raises:
        TextError: if a text cannot be read, or none has a token.
    """
    model, limit, window = context.model, context.request.max_tokens, context.window
    prefix, suffix = model.tokenizer_adds()
    placed: list[TextPlan] = []
    taken: dict[int, tuple[str, str, str, int]] = {}
    if context.path.exists():
        with store.reading(context.path) as connection:
            for base, *rest in connection.execute(
                "SELECT text_id, sha256, kind, tokenizer_sha256, context FROM text_file"
            ).fetchall():
                taken[base] = (rest[0], rest[1], rest[2], rest[3])
    tokens = 0
    for file in context.texts:
        counts = texts.Counts(0, 0, 0)
        left = None if limit is None else limit - tokens
        if left is None or left > 0:
            counts = texts.count(
                file,
                model.tokenizer,
                window,
                prefix,
                suffix,
                left,
                lambda so_far, name=file.name: context.progress.counted(name, so_far.n_tokens),  # type: ignore[misc]
            )
        tokens += counts.n_tokens
        if counts.n_tokens >= 1 << 32:
            raise InvalidInput(f"{file.name} has more than 2**32 tokens", "split it")
        identity = (file.sha256, file.kind, model.tokenizer_sha256, window)
        text_id = next(
            base
            for base in (text_base(salt, *identity) for salt in range(1000))
            if taken.get(base, identity) == identity
        )
        taken[text_id] = identity
        row = schema.TextFile(
            text_id=text_id,
            name=file.name,
            sha256=file.sha256,
            size=file.size,
            kind=file.kind,
            tokenizer_sha256=model.tokenizer_sha256,
            context=window,
            added_at=now(),
        )
        # Of a text that ends just where the limit does, nobody has seen yet that it ends.
        placed.append(TextPlan(file, row, counts, left is None or counts.n_tokens < left))
    if not tokens:
        raise InvalidInput("the text holds no token", "give a text with words in it")
    return placed
