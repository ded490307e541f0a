"""Sparse autoencoders: dictionaries of a model's site, and how they read another model."""

from __future__ import annotations

from ..ids import PLACE_BITS
from ..part import BIGINT, INTEGER, TIMESTAMP, VARCHAR, Control, Part, View, Word, ref, table
from ..shared import AS_IS, FROM_CODES, MEAN_SHIFT, NORM, SITE, carried, linear

_TABLES = (
    table(
        "sae", "A sparse autoencoder of one model's site, in a file of its own.", "dictionaries", "dictionary",
        primary="sae_id", optional="seed",
        # Its site has a model, which is checked there.
        sae_id=VARCHAR, model_id=VARCHAR, site_id=ref("site"), run_id=ref("run"), name=VARCHAR, source=VARCHAR, sha256=VARCHAR,
        n_features=INTEGER, seed=BIGINT, params=VARCHAR, added_at=TIMESTAMP,
    ),
)  # fmt: skip

_VIEWS = (
    View(
        "directions",
        "One row per direction of a dictionary's decoder: what a feature of a sparse autoencoder writes.",
        {
            "sae_id": "see `saes`",
            **SITE,
            "name": "of the dictionary",
            "feature": "row of its decoder, from 0",
            **NORM,
        },
        f"""SELECT x.sae_id, m.name AS model, s.name AS site, x.name, (c.item & {(1 << PLACE_BITS) - 1})::INTEGER AS feature,
  c.norm, c.code
{FROM_CODES} JOIN sae x ON x.run_id = cs.run_id AND x.site_id = cs.site_id
WHERE cs.subject = 'direction'""",
        after="unembedding",
    ),
    View(
        "saes",
        "One row per sparse autoencoder: a file of its own, whose decoder directions are a code set (subject `direction`).",
        {
            "sae_id": "from the file's content, the model and the site",
            "name": "what it is called here",
            **SITE,
            "n_features": "columns of its dictionary",
            "seed": "that its training started from; NULL if nobody said",
            "source": "the file that it was read from",
            "sha256": "of that file",
            "params": "JSON: how it was trained, as far as the file says",
            "run_id": "the job that read it",
            "added_at": "UTC",
        },
        """SELECT x.sae_id, x.name, m.name AS model, s.name AS site, x.n_features, x.seed, x.source, x.sha256,
  x.params::JSON AS params, x.run_id, x.added_at FROM sae x JOIN model m USING (model_id) JOIN site s USING (site_id)""",
        order="model, site, name, sae_id",
        shown=("name", "model", "site", "n_features", "seed", "source"),
    ),
)

_CLAIMS = (
    carried(
        "12.1", "sections 3, 7", "the other's dictionary reconstructs these states, rotated: explained variance",
        "0.85 to 0.99 (about one mean for all dimensions)", "sae_ev",
        (
            Control("the published range, about one mean", "none", "reaches", "sae_ev_scalar", bound=0.85),
            Control("as it is fails, about one mean", "as_is", "stays", "sae_ev_scalar", bound=0.75),
            AS_IS,
            MEAN_SHIFT,
            Control("noise of its own moments", "gaussian", "above"),
            Control("noise of these moments, rotated", "gaussian_b", "above"),
            Control("Haar matrix in its place", "random_rotation", "above"),
            Control("its own states", "self", "within", bound=0.1),
        ),
    ),
    carried(
        "12.2", "section 6", "decoders of two models match: mean cosine to the nearest", "0.89 to 0.93", "decoder_cosine",
        (
            Control("independent dictionary seeds", "independent_seed", "reaches", bound=0.89),
            Control("random directions", "random", "above"),
        ),
        bound=0.89, split="in_sample",
    ),
    carried(
        "12.3", "section 6", "the same with independent seeds, one of them rotated", "not run", "decoder_cosine_rotated",
        (
            Control("before the rotation", "as_is", "above"),
            Control("untrained", "untrained_independent", "above"),
            Control("random directions", "random", "above"),
        ),
        split="in_sample",
    ),
    carried(
        "12.4", "section 8", "the other's features fire together on rotated states: mean correlation", "0.25 to 0.44",
        "firing_correlation", (AS_IS, MEAN_SHIFT, Control("shuffled tokens", "shuffled", "above"), linear(0.2)), bound=0.25,
    ),
)  # fmt: skip

_WORDS = {
    "sae_ev": Word(
        "explained", "variance of the states that A's dictionary reconstructs, about each dimension's mean"
    ),
    "firing_correlation": Word(
        "firing", "correlation of a live feature's firing on B's states with that on A's"
    ),
    "sae_ev_scalar": Word("paper's EV", "the same about one mean of all dimensions"),
    "l0": Word("fire at once"),
    "dead_share": Word("dead"),
    "live_share": Word("live"),
    "decoder_cosine": Word(
        "cosine",
        "of each direction of A's dictionary to the nearest one of B's, mean; dictionaries that started from one seed are alike "
        "before they are trained, so those of independent seeds count",
    ),
    "decoder_cosine_live": Word("live alone"),
    "decoder_match_0.5": Word("above 0.5"),
    "decoder_cosine_rotated": Word("cosine"),
}

PART = Part(name="saes", tables=_TABLES, views=_VIEWS, claims=_CLAIMS, words=_WORDS)
