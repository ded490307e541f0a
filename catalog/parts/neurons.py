"""Neurons: the directions that they write, and the rows of the unembedding."""

from __future__ import annotations

from ..ids import NEURON_BITS
from ..part import Part, View
from ..shared import FROM_CODES, MODEL, NORM, count_codes

_VIEWS = (
    View(
        "neurons",
        "One row per FFN neuron: the direction that it writes to the residual stream, no norm gain applied.",
        {
            **MODEL,
            "layer": "block, from 0",
            "neuron": "in its block, from 0",
            **NORM,
        },
        f"""SELECT m.name AS model, (c.item >> {NEURON_BITS})::INTEGER AS layer,
  (c.item & {(1 << NEURON_BITS) - 1})::INTEGER AS neuron, c.norm, c.code
{FROM_CODES}
WHERE cs.subject = 'neuron'""",
        total=count_codes("neuron"),
    ),
    View(
        "unembedding",
        "One row per row of the unembedding: the direction that raises a token's logit, as it is read after the final norm.",
        {**MODEL, "token_id": "row of the vocabulary", "token": "its text", **NORM},
        f"""SELECT m.name AS model, c.item AS token_id, t.token, c.norm, c.code
{FROM_CODES}
LEFT JOIN token_row t ON t.tokenizer = m.tokenizer_sha256 AND t.token_id = c.item
WHERE cs.subject = 'unembedding'""",
        total=count_codes("unembedding"),
    ),
)

PART = Part(name="neurons", views=_VIEWS)
