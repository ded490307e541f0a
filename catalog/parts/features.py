"""Features: what they are made of, what agrees with them, and how they stand beside their controls."""

from __future__ import annotations

from ..part import (
    BIGINT,
    BLOB,
    DOUBLE,
    INTEGER,
    VARCHAR,
    Claim,
    Control,
    Part,
    View,
    Word,
    random_weights,
    ref,
    rotated,
    scaled,
    table,
)
from ..shared import CODE_SET, FEATURE, SITE

_TOKEN_OF_FEATURE = """JOIN feature_row f USING (feature_id) JOIN site s USING (site_id) JOIN model m USING (model_id)
LEFT JOIN token_row t ON t.tokenizer = m.tokenizer_sha256 AND t.token_id = x.token_id"""


def _at(point: str, name: str, published: str, bound: float, where: str) -> Claim:
    return Claim(
        f"2.{name}", where, f"categories read at {point} sites: best dimension's AUC", published, "category", "best_dim_auc", "in_sample",
        (rotated(), Control("random anchors, p95", "anchors", "above"), random_weights()), point=point, bound=bound,
    )  # fmt: skip


_TABLES = (
    # `p_value` is the largest over its controls, before it is corrected for how many features were tried.
    table(
        "feature_row", "One feature: the dimensions in `mask` and the sign that each should have.", "features", "feature",
        key="feature_id",
        optional="threshold, seed_token, best_dim, best_dim_auc, auc_in_sample, auc_held_out, auc_rotated, null_p95, p_value",
        feature_id=BIGINT, run_id=ref("run"), site_id=ref("site"), kind=VARCHAR, name=VARCHAR, centre=VARCHAR, basis=VARCHAR,
        n_dims=INTEGER, mask=BLOB, polarity=BLOB, threshold=DOUBLE, n_members=INTEGER, seed_token=INTEGER, repeats=INTEGER,
        best_dim=INTEGER, best_dim_auc=DOUBLE, auc_in_sample=DOUBLE, auc_held_out=DOUBLE, auc_rotated=DOUBLE,
        null_p95=DOUBLE, p_value=DOUBLE, fire_rate=DOUBLE, agreement_mean=DOUBLE, agreement_std=DOUBLE,
    ),
    # `part`: `define` and `score` of a category, `neighbour` of a discovered feature.
    table(
        "feature_member", "The types that a feature was made from.", "members of features",
        key="feature_id, token_id",
        feature_id=ref("feature_row", "members without their feature"), token_id=INTEGER, part=VARCHAR,
    ),
    table(
        "feature_type_row", "The types that agree most with a feature.", "types of features",
        key="feature_id, token_id",
        feature_id=ref("feature_row", "types without their feature"), rank=INTEGER, token_id=INTEGER, agreement=DOUBLE,
    ),
    table(
        "feature_state_row", "The states of one text run that agree most with a feature.", "states of features",
        key="run_id, feature_id, state_id",
        run_id=ref("run"), feature_id=ref("feature_row", "states without their feature"),
        state_id=ref("state_row", "states of features that are not there"), agreement=DOUBLE,
    ),
)  # fmt: skip

_VIEWS = (
    View(
        "features",
        "One row per feature: registered dimensions with an expected sign each, and how it stands beside its controls.",
        {
            "feature_id": "from the run, and the feature's place in it",
            **SITE,
            "kind": "`category` (from words), `discovered` (without labels) or `direction` (carried here by a rotation)",
            "name": "of the category, or of the token that it was discovered from",
            "centre": CODE_SET["centre"],
            "basis": CODE_SET["basis"],
            "n_dims": "registered dimensions",
            "mask": "bits of the registered dimensions",
            "polarity": "the sign that each should have; zero outside the mask",
            "best_dim_auc": "of the best single dimension, in sample",
            "auc_in_sample": "of the agreement, defined and scored on all members",
            "auc_held_out": "defined on one half of the members and scored on the other; if discovered, also found on one "
            "half of the dimensions and read on the other",
            "auc_rotated": "`auc_held_out` in Haar-rotated bases, their mean",
            "null_p95": "95th percentile of `best_dim_auc` over random members; NULL if discovered, since neighbours always beat it",
            "fire_rate": "share of types that agree to at least 0.80",
            "beats_null": "best_dim_auc > null_p95: the paper's own test",
            "survives": "held-out AUC above random members and above rotated bases, Benjamini-Hochberg at 5% over all "
            "features of the model",
            "p_value": "the largest over those controls, before that correction",
            "threshold": "AUC that a registered dimension reaches; NULL: the single best one, or no labels",
            "n_members": "types that it was made from; see `feature_members`",
            "repeats": "discovered features that were this one again",
            "best_dim": "that dimension",
            "agreement_mean": "over the types",
            "agreement_std": "over the types",
            "run_id": "the job that made it",
        },
        """SELECT f.feature_id, m.name AS model, s.name AS site, f.kind, f.name, f.centre, f.basis, f.n_dims, f.mask, f.polarity,
  f.best_dim_auc, f.auc_in_sample, f.auc_held_out, f.auc_rotated, f.null_p95, f.fire_rate,
  f.best_dim_auc > f.null_p95 AS beats_null, coalesce(f.p_value <= c.cut, false) AS survives, f.p_value, f.threshold,
  f.n_members, f.repeats, f.best_dim, f.agreement_mean, f.agreement_std, f.run_id
FROM feature_row f JOIN site s USING (site_id) JOIN model m USING (model_id)
LEFT JOIN (SELECT model_id, max(p_value) AS cut FROM
  (SELECT t.model_id, g.p_value, row_number() OVER (PARTITION BY t.model_id ORDER BY g.p_value) AS place,
    count(*) OVER (PARTITION BY t.model_id) AS tried FROM feature_row g JOIN site t USING (site_id) WHERE g.p_value IS NOT NULL)
  WHERE p_value <= 0.05 * place / tried GROUP BY model_id) c USING (model_id)""",
    ),
    View(
        "feature_members",
        "One row per type that a feature was made from.",
        {
            **FEATURE,
            "part": "`define` or `score`: the half of a category's words; `neighbour` of the token it was discovered from",
            "token_id": "row of the vocabulary",
            "token": "its text",
        },
        f"""SELECT x.feature_id, x.part, x.token_id, t.token
FROM feature_member x {_TOKEN_OF_FEATURE}""",
    ),
    View(
        "feature_types",
        "One row per type among the 50 that agree most with a feature.",
        {
            **FEATURE,
            "rank": "from 1; ties by token_id",
            "token_id": "row of the vocabulary",
            "token": "its text",
            "agreement": "share of the registered dimensions with the expected sign",
        },
        f"""SELECT x.feature_id, x.rank, x.token_id, t.token, x.agreement
FROM feature_type_row x {_TOKEN_OF_FEATURE}""",
    ),
    View(
        "feature_states",
        "One row per state among the 20 that agree most with a feature, over all texts; never a first position.",
        {
            **FEATURE,
            "rank": "from 1; ties by state_id",
            "state_id": "see `states`",
            "document_id": "see `documents`",
            "position": "in the window, from 0",
            "token": "its text",
            "context": "the text around it",
            "agreement": "share of the registered dimensions with the expected sign",
        },
        # The text is a subquery of the outermost SELECT: DuckDB reads it for the distinct states that the filters left. Its
        # LEFT JOIN keeps DuckDB from joining tokens with states before the places are known.
        """SELECT top.feature_id, top.rank, top.state_id, top.document_id, top.position, t.token,
  (SELECT string_agg(u.token, '' ORDER BY near.state_id)
    FROM (SELECT v.state_id, v.token_id, top.tokenizer_sha256 AS tokenizer
      FROM (SELECT unnest(range(top.state_id - 8, top.state_id + 5)) AS state_id) JOIN state_row v USING (state_id)
      WHERE v.document_id = top.document_id) near
    LEFT JOIN token_row u USING (tokenizer, token_id)) AS context, top.agreement
FROM (SELECT x.feature_id, x.rank, x.state_id, x.agreement, w.document_id, w.position, w.token_id, m.tokenizer_sha256
  FROM (SELECT feature_id, state_id, agreement,
    row_number() OVER (PARTITION BY feature_id ORDER BY agreement DESC, state_id) AS rank
    FROM (SELECT DISTINCT feature_id, state_id, agreement FROM feature_state_row)) x
  JOIN feature_row f USING (feature_id) JOIN site s USING (site_id) JOIN model m USING (model_id)
  JOIN state_row w ON w.state_id = x.state_id WHERE x.rank <= 20) top
LEFT JOIN token_row t ON t.tokenizer = top.tokenizer_sha256 AND t.token_id = top.token_id""",
        # The view reads the text around each of them.
        total="SELECT coalesce(sum(least(n, 20)), 0)::BIGINT FROM (SELECT count(*) AS n FROM feature_state_row GROUP BY feature_id)",
    ),
)

_CLAIMS = (
    Claim(
        "1.1", "Table 4", "one dimension reads a category: mean AUC of the best", "0.77 to 0.84",
        "swept", "best_dim_auc", "in_sample",
        (
            Control("held-out half", "none", "reaches", split="held_out", bound=0.77),
            Control("random anchors, p95", "anchors", "above"),
            Control("random words as frequent, p95", "anchors_rank", "above"),
            rotated(),
            scaled(),
            random_weights(),
        ), bound=0.77,
    ),
    Claim(
        "1.2", "Table 4", "share of categories with a dimension at AUC 0.75", "0.78 to 1.00",
        "swept", "discoverable_share", "in_sample", (rotated(), scaled(), random_weights()), bound=0.78,
    ),
    Claim(
        "1.3", "Table 4", "counting signs reads a category: mean AUC of the agreement", "0.975 to 0.993",
        "swept", "auc_agreement", "in_sample",
        (
            Control("held-out half", "none", "reaches", split="held_out", bound=0.975),
            Control("held-out half, among words", "none", "reaches", "auc_agreement_words", "held_out", 0.975),
            rotated(),
            scaled(),
            random_weights(),
        ), bound=0.975,
    ),
    Claim(
        "1.4", "Table 4", "share of categories above the 95th percentile of random anchors", "1.00",
        "swept", "beats_null_share", "in_sample",
        (
            Control("random words as frequent", "none", "reaches", "beats_rank_null_share", bound=0.95),
            random_weights(),
        ), bound=0.995,
    ),
    Claim(
        "1.5", "section 3", "the held-out agreement reads in the standard basis what others do not", "not run",
        "swept", "auc_agreement", "held_out",
        (
            Control("random anchors", "anchors", "above"),
            Control("random words as frequent", "anchors_rank", "above"),
            rotated(),
            scaled(),
            random_weights(),
        ),
    ),
    Claim(
        "1.6", "section 3", "counting loses little to a trained reader", "0.018 of AUC to a logistic probe",
        "swept", "auc_agreement", "held_out",
        (
            Control("logistic probe", "none", "near", "auc_probe", bound=0.02),
            Control("log-odds", "none", "near", "auc_log_odds", bound=0.02),
        ),
    ),
    Claim(
        "1.7", "section 3", "the best layer reads categories: AUC of the agreement at it", "0.975 to 0.993",
        "category", "layer_sweep_auc", "held_out",
        (Control("layer chosen on all categories", "selected_on_test", "near", bound=0.01),), bound=0.975,
    ),
    _at("k", "1", "0.74 to 0.85", 0.744, "Table 9"),
    _at("v", "2", "0.73 to 0.81", 0.734, "Table 9"),
    _at("ffn", "3", "0.79 to 0.86", 0.787, "Table 13"),
    Claim(
        "5.1", "Table 6", "every random token gives a feature: share of seeds", "1.00",
        "discovered", "yield", "in_sample",
        (Control("different features", "none", "near", "yield_distinct", bound=0.05), rotated(), random_weights()),
        centres=("mean",), bound=0.995, paired=False,
    ),
    Claim(
        "5.2", "Table 6", "discovered features are sparse: share that fires on less than 0.1% of types", "0.989 to 0.999",
        "discovered", "fires_below_0.001", "in_sample", (rotated(), random_weights()), centres=("mean",), bound=0.989, paired=False,
    ),
    Claim(
        "5.3", "section 7", "neighbours found on half of the dimensions are read on the other: AUC", "not run",
        "discovered", "auc_agreement", "held_out",
        (Control("random types", "anchors", "above"), rotated(), scaled(), random_weights()), centres=("mean",),
    ),
    Claim(
        "5.4", "section 7", "discovered features are coherent: pairs of top words in one category", "not run",
        "discovered", "category_share", "in_sample",
        (
            Control("tokens spelled alike", "spelling", "above"),
            Control("tokens as frequent", "frequency", "above"),
            Control("random words as frequent", "random", "above"),
            random_weights(),
        ),
        centres=("mean",),
    ),
    Claim(
        "6.1", "section 10", "prototypes of types read words in text: mean AUC", "0.72 to 0.86",
        "category", "auc_context", "held_out", (rotated(), scaled(), random_weights()), bound=0.722,
    ),
)  # fmt: skip

_WORDS = {
    "n_dims": Word("registered dimensions"),
    "best_dim_auc": Word("best dimension"),
    "auc_agreement": Word("agreement"),
    "auc_agreement_words": Word("agreement, among words"),
    "auc_log_odds": Word("log-odds"),
    "auc_log_odds_words": Word("log-odds, among words"),
    "auc_probe": Word("logistic probe"),
    "auc_probe_words": Word("logistic probe, among words"),
    "auc_context": Word("in context"),
    "agreement_context_mean": Word("agreement in context, mean"),
    "agreement_context_std": Word("agreement in context, std"),
    "p_anchors": Word("p beside anchors"),
    "p_anchors_rank": Word("p beside like rank"),
    "p_rotated": Word("p beside rotated"),
    "category_share": Word("other words of a category"),
    "same_word_share": Word("one word in two spellings"),
    "edit_similarity": Word("similar spelling"),
    "rank_distance": Word("distance of log2 rank"),
    "none": Word("here"),
    "haar": Word("rotated", "Haar-random bases"),
    "scaled": Word("scaled", "rotated, after giving every dimension the same variance"),
    "anchors": Word("anchors", "random members, the 95th percentile of their best dimensions, else the mean"),
    "anchors_rank": Word("like rank", "the same of the members' frequency rank"),
    "spelling": Word("spelling", "types that are spelled alike"),
    "frequency": Word("frequency", "types that are as frequent"),
    "random": Word("random", "random words that are as frequent"),
}

PART = Part(name="features", tables=_TABLES, views=_VIEWS, claims=_CLAIMS, words=_WORDS)
