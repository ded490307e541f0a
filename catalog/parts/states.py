"""States: a token in its text."""

from __future__ import annotations

from ..part import Claim, Control, Part, View, random_weights, rotated
from ..shared import CODE, CODE_SET, FROM_CODES, count_codes

_VIEWS = (
    View(
        "states",
        "One row per token in its text, per site, centre and basis.",
        {
            **CODE_SET,
            "state_id": "from the text's content and the token's place; the same at every site",
            "document_id": "see `documents`",
            "position": "in the window, from 0",
            "token_id": "row of the vocabulary",
            "token": "its text, leading space included",
            "is_first": "position 0, where activations are atypical",
            **CODE,
        },
        f"""SELECT m.name AS model, s.name AS site, cs.centre, cs.basis, c.item AS state_id, w.document_id, w.position,
  w.token_id, t.token, w.position = 0 AS is_first, c.norm, c.code
{FROM_CODES}
JOIN state_row w ON w.state_id = c.item
LEFT JOIN token_row t ON t.tokenizer = m.tokenizer_sha256 AND t.token_id = w.token_id
WHERE cs.subject = 'state'""",
        total=count_codes("state"),
    ),
)

_CLAIMS = (
    Claim(
        "3.2", "Table 3", "the same in context", "0.0004 to 0.0008",
        "state", "mi_mean", "in_sample", (
            rotated("below"),
            Control("estimator's bias", "none", "near", "mi_bias", bound=0.001),
        ), bound=0.0008, small=True, paired=False,
    ),
    Claim(
        "6.2", "section 10", "dimensions keep their type's sign in text: share", "about 0.58",
        "state", "sign_kept_share", "in_sample",
        (Control("another token's signs", "shuffled", "above"), rotated(), random_weights()), bound=0.55,
    ),
)  # fmt: skip

PART = Part(name="states", views=_VIEWS, claims=_CLAIMS)
