"""Rotations: what carries one model's states to another's, and what it carries."""

from __future__ import annotations

from ..part import (
    BIGINT,
    BLOB,
    DOUBLE,
    INTEGER,
    VARCHAR,
    Control,
    Part,
    View,
    Word,
    ref,
    rotated,
    scaled,
    table,
)
from ..shared import AS_IS, FEATURE, HAAR, MEAN_SHIFT, SHUFFLED_PAIRS, carried, linear

_TABLES = (
    table(
        "rotation_row", "One rotation between two models at one site. BLOBs are float32, little-endian, row-major.",
        "rotations", "rotation",
        key="rotation_id",
        optional="ev_permutation, ev_exchanged, ev_exchanged_error, ev_shuffled_error, ev_unseen, halves_agreement, rank_warning",
        rotation_id=BIGINT, run_id=ref("run"), site_a_id=ref("site", "rotations without their site in A"),
        site_b_id=ref("site", "rotations without their site in B"), width=INTEGER, n_fit=BIGINT, n_validation=BIGINT,
        n_test=BIGINT, ev_identity=DOUBLE, ev_mean_shift=DOUBLE, ev_rotation=DOUBLE, ev_scaled=DOUBLE, ev_affine=DOUBLE,
        ev_permutation=DOUBLE, ev_shuffled=DOUBLE, ev_exchanged=DOUBLE, ev_exchanged_error=DOUBLE, ev_shuffled_error=DOUBLE,
        ev_unseen=DOUBLE, ev_token_mean=DOUBLE, scale=DOUBLE, ridge=DOUBLE, effective_rank_a=DOUBLE, effective_rank_b=DOUBLE,
        halves_agreement=DOUBLE, frobenius_from_identity=DOUBLE, rank_warning=VARCHAR, matrix=BLOB, mean_a=BLOB, mean_b=BLOB,
        std_a=BLOB, std_b=BLOB,
    ),
    table(
        "rotation_component_row", "How much of one principal component of B's states a rotation explains.", "components",
        key="rotation_id, component",
        rotation_id=ref("rotation_row"), component=INTEGER, variance_share=DOUBLE, ev_rotation=DOUBLE, ev_affine=DOUBLE,
        ev_shuffled=DOUBLE,
    ),
    table(
        "carried_row", "A feature of B that was carried there, and the feature of A that it was.", "carried features",
        key="feature_id",
        feature_id=ref("feature_row", "carried features that are not there"), rotation_id=ref("rotation_row"),
        source_feature_id=BIGINT,
    ),
    table(
        "steering_row", "What adding a direction to the residual stream does, as means over positions.", "steering",
        key="rotation_id, direction, arm, dose", optional="target_std_error, other_std_error, kl_std_error",
        rotation_id=ref("rotation_row", "steering directions without their rotation"), direction=VARCHAR, arm=VARCHAR,
        dose=DOUBLE, norm=DOUBLE, target=VARCHAR, target_change=DOUBLE, other_change=DOUBLE, kl=DOUBLE, n=BIGINT,
        target_std_error=DOUBLE, other_std_error=DOUBLE, kl_std_error=DOUBLE,
    ),
)  # fmt: skip

_VIEWS = (
    View(
        "rotations",
        "One row per rotation between two models at one site: x_b ~ (x_a - mean_a) R + mean_b for rows x, fitted on some documents "
        "of a text and scored on others. Explained variance is about B's own mean per dimension; first positions are left out.",
        {
            "rotation_id": "from the run and the site",
            "model_a": "whose states are carried",
            "model_b": "to whose basis",
            "site_a": "of A",
            "site_b": "of B",
            "width": "dimensions of both",
            "n_fit": "tokens that it was fitted on",
            "n_test": "tokens that it was scored on, of other documents",
            "ev_identity": "explained variance if nothing is done",
            "ev_mean_shift": "if A's mean is moved to B's",
            "ev_rotation": "with the rotation",
            "ev_affine": "with any linear map (ridge, its strength chosen on further documents)",
            "ev_shuffled": "with the rotation fitted on shuffled pairs of tokens",
            "frobenius_from_identity": "|R - I|; sqrt(2 width) if R is any rotation",
            "matrix": "float32, little-endian, row-major, width x width",
            "mean_a": "float32, over the fit",
            "mean_b": "the same of B",
            "n_validation": "tokens that the strength of the ridge was chosen on",
            "ev_scaled": "with the rotation and one factor for all dimensions",
            "ev_permutation": "with the best signed permutation of dimensions; NULL above width 2,048",
            "ev_exchanged": "with a rotation fitted and scored on pairs whose token types were exchanged for others as frequent: what "
            "unrelated models with one tokenizer would reach, mean of several draws",
            "ev_exchanged_error": "standard error of ev_rotation less ev_exchanged, the spread of the draws in it",
            "ev_shuffled_error": "standard error of ev_rotation less ev_shuffled",
            "ev_unseen": "with the rotation, on test tokens whose type the fit never saw; NULL if there are too few",
            "ev_token_mean": "if B's state is taken for the mean of its states at the same token in the fit: no model A at all",
            "scale": "that factor",
            "ridge": "strength of the ridge, as a share of A's mean variance",
            "effective_rank_a": "exp of the entropy of the spectrum of A's covariance",
            "effective_rank_b": "the same of B",
            "halves_agreement": "cosine of the rotations fitted on disjoint halves, trace(R1^T R2) / width; 1 if they are one",
            "rank_warning": "why the rotation is not determined; NULL if it is",
            "std_a": "float32, standard deviation per dimension over the fit",
            "std_b": "the same of B",
            "run_id": "the job that fitted it",
        },
        """SELECT x.rotation_id, m.name AS model_a, n.name AS model_b, s.name AS site_a, t.name AS site_b, x.width, x.n_fit, x.n_test,
  x.ev_identity, x.ev_mean_shift, x.ev_rotation, x.ev_affine, x.ev_shuffled, x.frobenius_from_identity, x.matrix, x.mean_a,
  x.mean_b, x.n_validation, x.ev_scaled, x.ev_permutation, x.ev_exchanged, x.ev_exchanged_error,
  x.ev_shuffled_error,  x.ev_unseen, x.ev_token_mean, x.scale, x.ridge, x.effective_rank_a,
  x.effective_rank_b, x.halves_agreement, x.rank_warning, x.std_a, x.std_b, x.run_id
FROM rotation_row x JOIN site s ON s.site_id = x.site_a_id JOIN model m ON m.model_id = s.model_id
JOIN site t ON t.site_id = x.site_b_id JOIN model n ON n.model_id = t.model_id""",
    ),
    View(
        "rotation_components",
        "One row per principal component of B's states: how much of it a rotation explains on held-out documents.",
        {
            "rotation_id": "see `rotations`",
            "component": "from 1, the largest variance first (over the fit)",
            "variance_share": "of B's variance on the test documents",
            "ev_rotation": "explained variance of this component with the rotation",
            "ev_affine": "with any linear map",
            "ev_shuffled": "with the rotation fitted on shuffled pairs",
        },
        "SELECT rotation_id, component, variance_share, ev_rotation, ev_affine, ev_shuffled FROM rotation_component_row",
    ),
    View(
        "carried_features",
        "One row per feature of B that a rotation carried there from A.",
        {
            **FEATURE,
            "rotation_id": "see `rotations`",
            "source_feature_id": "the feature of A",
        },
        "SELECT feature_id, rotation_id, source_feature_id FROM carried_row",
    ),
    View(
        "steering",
        "One row per direction, arm and dose: what adding it to B's residual stream does to the labels or tokens that it is about.",
        {
            "rotation_id": "see `rotations`",
            "direction": "what the difference of means is between",
            "arm": "`source` (A's direction in A itself), `as_is` (A's direction in B), `rotated` (carried by the rotation), `random` "
            "(a random one of that norm) or `own` (B's difference of means)",
            "dose": "what the direction is multiplied by",
            "norm": "Euclidean norm of what is added",
            "target": "the labels or tokens whose logits are measured",
            "target_change": "of their mean logit less that of the others, mean over positions",
            "other_change": "of the others' mean logit",
            "kl": "divergence of the changed from the model's own distribution, in nats, mean over positions",
            "n": "positions",
            "target_std_error": "over windows",
            "other_std_error": "over windows",
            "kl_std_error": "over windows",
        },
        """SELECT rotation_id, direction, arm, dose, norm, target, target_change, other_change, kl, n, target_std_error,
  other_std_error, kl_std_error FROM steering_row""",
    ),
)

_CLAIMS = (
    carried(
        "11.1", "section 2", "one rotation carries another model's states here: explained variance",
        "0.20 to 0.48 (in sample, by a replication)", "rotation_ev",
        (
            SHUFFLED_PAIRS,
            Control("token types exchanged", "types_exchanged:%", "above"),
            MEAN_SHIFT,
            Control("nothing done", "identity", "above"),
            Control("the token alone, no other model", "token_mean", "above"),
            Control("signed permutation", "permutation", "above"),
            linear(0.1),
        ),
    ),
    carried(
        "11.2", "section 2", "the same, at tokens that the fit never saw", "not run", "rotation_ev_unseen",
        (SHUFFLED_PAIRS, MEAN_SHIFT, linear(0.1)),
    ),
    carried(
        "11.3", "section 2", "the rotation is determined: agreement of two fitted on disjoint halves", "not run",
        "rotation_halves", (Control("at least 0.9", "none", "reaches", bound=0.9), SHUFFLED_PAIRS), split="in_sample",
    ),
    carried(
        "11.4", "section 2", "carried sign codes are this model's own: share of bits, about the mean", "not run",
        "code_agreement", (SHUFFLED_PAIRS, AS_IS, MEAN_SHIFT, HAAR),
    ),
    carried(
        "11.5", "section 2", "a carried code is nearest to the state of its own place in the text: share", "not run",
        "retrieval_top1",
        (
            Control("the token alone", "token_identity", "above"),
            SHUFFLED_PAIRS,
            MEAN_SHIFT,
            Control("from signs alone", "signs_alone", "within", bound=0.2),
        ),
    ),
    carried(
        "13.1", "section 9", "a steering direction works here once rotated: change of its logits", "not run", "steering_target",
        (
            AS_IS,
            Control("random direction, same norm", "random", "above"),
            Control("this model's own direction", "own", "within", bound=0.2),
            Control("in the other model itself", "source", "within", bound=0.2),
        ),
    ),
    carried(
        "13.2", "section 9", "as it is, it moves this model more than its own: ratio of divergences", "1.8 to 10.0",
        "steering_kl_ratio", (Control("random direction, same norm", "random", "above"),), bound=1.8,
    ),
    carried(
        "14.1", "section 7", "its distance from none tells the rotation from that of unrelated data: |R - I| / sqrt(2 width)",
        "1.00 (width 512), 0.83 to 0.99 (toy)", "distance_from_identity",
        (
            Control("fitted on shuffled pairs", "unrelated", "below"),
            Control("a cyclic shift of dimensions", "cyclic_shift", "below"),
        ),
        split="in_sample",
    ),
    carried(
        "14.2", "section 7", "its angles tell it from that of unrelated data: KS distance from a Haar matrix's",
        "0.0027 (pooled)", "ks_distance",
        (
            Control("fitted on shuffled pairs", "unrelated", "above"),
            Control("a cyclic shift of dimensions", "cyclic_shift", "above"),
        ),
        split="in_sample",
    ),
    carried(
        "15.1", "section 15", "sign prototypes of the other read these states, rotated back: mean AUC", "not run",
        "prototype_auc",
        (
            Control("at chance before: as it is", "as_is", "stays", bound=0.55),
            Control("at chance before: the mean moved", "mean_shift", "stays", bound=0.55),
            AS_IS,
            MEAN_SHIFT,
            SHUFFLED_PAIRS,
            HAAR,
            Control("this model's own prototypes", "own", "near", bound=0.02),
            Control("in the other model itself", "source", "near", bound=0.02),
        ),
    ),
    carried(
        "15.2", "section 15", "the other's own axes matter to its prototypes: mean AUC", "not run", "prototype_basis",
        (rotated(), scaled()),
    ),
    carried(
        "15.3", "section 15", "the other's categories, carried here, read these types: mean AUC", "not run",
        "feature_auc_mean", (AS_IS, HAAR, Control("this model's own categories", "own", "near", bound=0.02)),
    ),
)  # fmt: skip

_WORDS = {
    "ev_shuffled": Word(
        "shuffled pairs", "the rotation fitted on pairs of tokens that do not belong together"
    ),
    "ev_exchanged": Word(
        "types exchanged",
        "the rotation fitted and scored on pairs whose types were exchanged for others as frequent, what unrelated models of "
        "one tokenizer would reach",
    ),
    "ev_identity": Word("as it is"),
    "ev_mean_shift": Word("mean shift"),
    "ev_permutation": Word("permutation", "the best signed permutation of dimensions"),
    "ev_token_mean": Word("token mean", "B's mean at the same token, no model A at all"),
    "ev_rotation": Word("rotation"),
    "ev_scaled": Word("rotation, scaled"),
    "ev_affine": Word("any linear map"),
    "rotation_ev_unseen": Word("explained"),
    "frobenius_from_identity": Word("|R - I|"),
    "signed_permutation_distance": Word("|R - signed perm.|"),
    "ks_distance": Word("KS of its angles"),
    "trace_1": Word("trace of R"),
    "trace_2": Word("trace of R²"),
    "trace_3": Word("trace of R³"),
    "code_agreement": Word("bits", "share of B's bits, about its mean, that A's carried state has"),
    "code_agreement_zero": Word("about zero", "the same of B's bits about zero, as states are stored"),
    "retrieval_top1": Word(
        "found first", "share of A's states whose nearest among B's is the same token in the text"
    ),
    "prototype_auc": Word("prototypes", "AUC of A's sign prototypes on B's states, mean over labels"),
    "feature_auc_zero": Word(
        "feat. zero", "AUC of A's categories on B's types, about zero, mean over categories"
    ),
    "feature_auc_mean": Word("feat. mean", "the same about B's mean"),
    "prototype_basis": Word("A in A", "AUC of A's sign prototypes on A's own states"),
    "steering_target": Word("target, all directions, dose 2"),
    "steering_kl_ratio": Word(
        "divergence in B by that in A, dose 2",
        "above 1, A's direction moves B more than A, as was published of directions that are not rotated",
    ),
    "none": Word("here"),
    "p_value": Word("p", "share of Haar-random rotations that are as far out"),
    "unrelated": Word("unrelated", "the rotation fitted on shuffled pairs"),
    "p_value_unrelated": Word("its p"),
    "cyclic_shift": Word("cyclic shift", "dimensions moved on by one"),
    "p_value_cyclic_shift": Word("its p"),
    "source": Word("in A itself", "A's direction in A itself"),
    "self": Word("A's own states"),
    "own": Word("B's own", "its difference of means"),
    "as_is": Word("as it is", "A's direction in B"),
    "rotated": Word("rotated", "carried by the rotation"),
    "mean_shift": Word("mean shift"),
    "mean_only": Word("B's mean alone"),
    "affine": Word("any linear map"),
    "signs_alone": Word("signs alone"),
    "plus_minus_one": Word("signs ±1 alone"),
    "shuffled": Word("shuffled pairs"),
    "token_identity": Word("knowing the token"),
    "haar": Word("random rotations"),
    "random": Word("random", "a random direction of that norm"),
    "random_rotation": Word("random rotation"),
    "scaled": Word("of one variance"),
    "gaussian": Word("noise like A's"),
    "gaussian_b": Word("noise like B's"),
}

PART = Part(name="rotations", tables=_TABLES, views=_VIEWS, claims=_CLAIMS, words=_WORDS)
