"""Published claims, the figures that stand for them here, and the controls that could explain them away.

The view `evidence` is made from `CLAIMS`: one row a claim, centre, model and control. It is a view, so that SQL sees
what the command prints; that is why the table stands here and not among the queries.
"""

from __future__ import annotations

from dataclasses import dataclass

BAG_OF_DIMS = "Bag of Dims (arXiv 2606.12629)"
POLYMORPHISM = "Polymorphism Is Rotation (arXiv 2605.24577)"
Z_95 = 1.645
"""One-sided 5%: how many standard errors lie between a figure and a control that it is said to beat."""


@dataclass(frozen=True)
class Control:
    """A figure that a claim stands beside, and what it must do for the claim to survive.

    `rule`: `above` or `below` (the claim's figure lies there, by more than chance), `reaches` (this figure is still at
    least `bound`), `stays` (it is at most `bound`), `near` (it is at most `bound` away), `within` (at most that share of
    itself away). `control` is a pattern of `measurements.control`; `random weights` is the claim's own figure in the
    random-weight twin. Empty metric, split: the claim's own.
    """

    name: str
    control: str
    rule: str
    metric: str = ""
    split: str = ""
    bound: float = 0.0


@dataclass(frozen=True)
class Claim:
    """What was published, and where to find the same figure here.

    `point`: at which sites, `*` for any; for `resid_post` the one that the layer sweep chose, else the mean over all.
    `centres` are the `subject_id` of the measurements; `*` for figures of a pair of models, whose `subject_id` is the
    name of the other.
    """

    claim_id: str
    where: str
    claim: str
    published: str
    subject: str
    metric: str
    split: str
    controls: tuple[Control, ...]
    point: str = "resid_post"
    centres: tuple[str, ...] = ("zero", "mean")
    source: str = BAG_OF_DIMS
    everywhere: bool = False
    """The mean over all sites, not the one that the layer sweep chose."""
    bound: float | None = None
    """The weakest published figure: ours must reach it, or, of mutual information and flips, stay below it."""

    @property
    def judged(self) -> tuple[Control, ...]:
        """The published range as a control of its own, and the others."""
        if self.bound is None:
            return self.controls
        rule = "stays" if self.metric in ("mi_mean", "own_logit_change") else "reaches"
        return (Control("the published range", "none", rule, bound=self.bound), *self.controls)


def _rotated(rule: str = "above", metric: str = "", split: str = "") -> Control:
    return Control("rotated basis", "haar:%", rule, metric, split)


def _scaled(rule: str = "above") -> Control:
    return Control("rotated, dimensions of one variance", "scaled:%", rule)


def _random(rule: str = "above") -> Control:
    return Control("random weights", "random weights", rule)


def _at(point: str, name: str, published: str, bound: float, where: str) -> Claim:
    return Claim(
        f"2.{name}", where, f"categories read at {point} sites: best dimension's AUC", published, "category", "best_dim_auc", "in_sample",
        (_rotated(), Control("random anchors, p95", "anchors", "above"), _random()), point=point, bound=bound,
    )  # fmt: skip


_SHUFFLED = Control("shuffled weights", "column_shuffled:%", "above")
_GAUSSIAN = Control("Gaussian weights", "gaussian:%", "above")
_COINS = Control("fair coins", "fair_coin:%", "above")


def _words(number: str, what: str, subject: str, centre: str, point: str) -> Claim:
    return Claim(
        f"9.{number}", "section 1", f"signs alone say in words what {what} says: share of 20 tokens", "not run",
        subject, "projection_overlap", "in_sample",
        (
            Control("another one's signs", "shuffled", "above"),
            Control("the same sizes, signs drawn", "random_signs", "above"),
            _rotated(),
        ),
        point=point, centres=(centre,),
    )  # fmt: skip


def _carried(
    number: str, where: str, claim: str, published: str, metric: str, controls: tuple[Control, ...],
    bound: float | None = None, split: str = "held_out",
) -> Claim:  # fmt: skip
    """A claim about what a rotation from another model carries to this one: the mean over the sites that were aligned."""
    return Claim(
        number, where, claim, published, "rotation", metric, split, controls, point="*", centres=("*",),
        source=POLYMORPHISM, everywhere=True, bound=bound,
    )  # fmt: skip


_SHUFFLED_PAIRS = Control("fitted on shuffled pairs", "shuffled", "above")
_AS_IS = Control("as it is", "as_is", "above")
_MEAN_SHIFT = Control("the mean moved alone", "mean_shift", "above")
_HAAR = Control("Haar matrix in its place", "haar:%", "above")


def _linear(bound: float) -> Control:
    return Control("any linear map", "affine", "within", bound=bound)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "1.1", "Table 4", "one dimension reads a category: mean AUC of the best", "0.77 to 0.84",
        "swept", "best_dim_auc", "in_sample",
        (
            Control("held-out half", "none", "reaches", split="held_out", bound=0.77),
            Control("random anchors, p95", "anchors", "above"),
            Control("random words as frequent, p95", "anchors_rank", "above"),
            _rotated(),
            _scaled(),
            _random(),
        ), bound=0.77,
    ),
    Claim(
        "1.2", "Table 4", "share of categories with a dimension at AUC 0.75", "0.78 to 1.00",
        "swept", "discoverable_share", "in_sample", (_rotated(), _scaled(), _random()), bound=0.78,
    ),
    Claim(
        "1.3", "Table 4", "counting signs reads a category: mean AUC of the agreement", "0.975 to 0.993",
        "swept", "auc_agreement", "in_sample",
        (
            Control("held-out half", "none", "reaches", split="held_out", bound=0.975),
            Control("held-out half, among words", "none", "reaches", "auc_agreement_words", "held_out", 0.975),
            _rotated(),
            _scaled(),
            _random(),
        ), bound=0.975,
    ),
    Claim(
        "1.4", "Table 4", "share of categories above the 95th percentile of random anchors", "1.00",
        "swept", "beats_null_share", "in_sample",
        (
            Control("random words as frequent", "none", "reaches", "beats_rank_null_share", bound=0.95),
            _random(),
        ), bound=0.995,
    ),
    Claim(
        "1.5", "section 3", "the held-out agreement reads in the standard basis what others do not", "not run",
        "swept", "auc_agreement", "held_out",
        (
            Control("random anchors", "anchors", "above"),
            Control("random words as frequent", "anchors_rank", "above"),
            _rotated(),
            _scaled(),
            _random(),
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
        "3.1", "Table 3", "pairs of dimensions share little information: mean bits, types", "0.0011 to 0.0051",
        "type", "mi_mean", "in_sample", (
            _rotated("below"),
            _scaled("below"),
            Control("estimator's bias", "none", "near", "mi_bias", bound=0.001),
        ), bound=0.0051,
    ),
    Claim(
        "3.2", "Table 3", "the same in context", "0.0004 to 0.0008",
        "state", "mi_mean", "in_sample", (
            _rotated("below"),
            Control("estimator's bias", "none", "near", "mi_bias", bound=0.001),
        ), bound=0.0008,
    ),
    Claim(
        "3.3", "section 6", "dimensions are independent: participation ratio of their signs, types", "not run",
        "type", "participation_ratio", "in_sample", (_rotated(), _random("above")),
    ),
    Claim(
        "4.1", "Table 1", "signs alone give the model's next token: top 1", "0.38 to 0.63",
        "prediction", "sign_only_top1", "held_out",
        (Control("permuted signs", "permutation", "above"), _rotated()), point="final_norm", centres=("",), bound=0.375,
    ),
    Claim(
        "4.2", "Table 1", "the loudest dimensions' signs do better: top 1", "0.52 to 0.74",
        "prediction", "sign_loudest_top1", "held_out",
        (
            Control("signs of all dimensions", "none", "above", "sign_only_top1"),
            Control("as many random dimensions", "random", "above"),
            _rotated(),
        ),
        point="final_norm", centres=("",), bound=0.515,
    ),
    Claim(
        "4.3", "Table 2", "the majority of the context's signs predicts the next token: top 100", "0.53 to 0.63",
        "prediction", "sign_majority_top100", "held_out",
        (
            Control("most frequent tokens", "frequency", "above"),
            Control("the context's own tokens", "repeat", "above"),
            _rotated(),
        ),
        point="final_norm", centres=("",), bound=0.53,
    ),
    Claim(
        "5.1", "Table 6", "every random token gives a feature: share of seeds", "1.00",
        "discovered", "yield", "in_sample",
        (Control("different features", "none", "near", "yield_distinct", bound=0.05), _rotated(), _random()),
        centres=("mean",), bound=0.995,
    ),
    Claim(
        "5.2", "Table 6", "discovered features are sparse: share that fires on less than 0.1% of types", "0.989 to 0.999",
        "discovered", "fires_below_0.001", "in_sample", (_rotated(), _random()), centres=("mean",), bound=0.989,
    ),
    Claim(
        "5.3", "section 7", "neighbours found on half of the dimensions are read on the other: AUC", "not run",
        "discovered", "auc_agreement", "held_out",
        (Control("random types", "anchors", "above"), _rotated(), _scaled(), _random()), centres=("mean",),
    ),
    Claim(
        "5.4", "section 7", "discovered features are coherent: pairs of top words in one category", "not run",
        "discovered", "category_share", "in_sample",
        (
            Control("tokens spelled alike", "spelling", "above"),
            Control("tokens as frequent", "frequency", "above"),
            Control("random words as frequent", "random", "above"),
            _random(),
        ),
        centres=("mean",),
    ),
    Claim(
        "6.1", "section 10", "prototypes of types read words in text: mean AUC", "0.72 to 0.86",
        "category", "auc_context", "held_out", (_rotated(), _scaled(), _random()), bound=0.722,
    ),
    Claim(
        "6.2", "section 10", "dimensions keep their type's sign in text: share", "about 0.58",
        "state", "sign_kept_share", "in_sample",
        (Control("another token's signs", "shuffled", "above"), _rotated(), _random()), bound=0.55,
    ),
    Claim(
        "7.1", "section 9", "single neurons write features: share with one above 0.70", "0.002 to 0.06",
        "discovered", "writer_above_0.70", "in_sample", (_SHUFFLED, _GAUSSIAN, _random()), centres=("mean",), bound=0.002,
    ),
    Claim(
        "7.2", "section 9", "the same over a neuron's larger weights alone", "0.02 to 0.20 (filter not given)",
        "discovered", "writer_above_0.70_top_half", "in_sample", (_SHUFFLED, _GAUSSIAN, _random()), centres=("mean",),
        bound=0.019,
    ),
    Claim(
        "7.3", "section 13", "writers sit in the feature's own block: agreement of the best", "0.69, elsewhere 0.49 (vision)",
        "discovered", "writer_best", "in_sample",
        (
            Control("other blocks", "other_blocks", "above"),
            Control("the next blocks", "next_blocks", "above"),
            _SHUFFLED,
            _GAUSSIAN,
        ),
        centres=("mean",),
    ),
    Claim(
        "7.4", "section 13", "the same: share of features whose best neuron is in their own block", "not run",
        "discovered", "own_block_share", "in_sample",
        (Control("one block in so many", "chance", "above"), _SHUFFLED), centres=("mean",),
    ),
    Claim(
        "7.5", "section 9", "the best neuron on one half of the dimensions writes the other: agreement", "not run",
        "discovered", "coalition_1", "held_out",
        (_COINS, _SHUFFLED, Control("the next block's best neuron", "later_block", "above"), _random()), centres=("mean",),
    ),
    Claim(
        "8.1", "section 9", "200 neurons write a feature by majority: agreement", "0.73 to 0.85 (medians)",
        "discovered", "coalition_200", "in_sample", (_COINS, _SHUFFLED), centres=("mean",), bound=0.728,
    ),
    Claim(
        "8.2", "section 9", "the same, chosen on half of the dimensions and scored on the other: mean", "not run",
        "discovered", "coalition_200", "held_out",
        (_COINS, _SHUFFLED, Control("the next block's neurons", "later_block", "above"), _random()), centres=("mean",),
    ),
    _words("1", "a neuron", "neuron", "", "residual"),
    _words("2", "a feature", "discovered", "mean", "resid_post"),
    Claim(
        "10.1", "section 10", "flipping a feature's signs lowers its tokens' logits", "-1.9 to -24 (one of 20: +1.2)",
        "flip", "own_logit_change", "held_out", (Control("other tokens", "other_tokens", "below"),),
        everywhere=True, bound=-1.86,
    ),
    Claim(
        "10.2", "section 10", "the same, less what it does to other tokens", "not run",
        "flip", "own_less_other", "held_out",
        (
            Control("random dimensions, same norm", "random", "below"),
            Control("another feature, same norm", "disjoint", "below"),
            Control("push in a rotated basis, same norm", "rotated", "below"),
            Control("difference of means, same norm", "mean_difference", "below"),
        ),
        everywhere=True,
    ),
    _carried(
        "11.1", "section 2", "one rotation carries another model's states here: explained variance",
        "0.20 to 0.48 (in sample, by a replication)", "rotation_ev",
        (
            _SHUFFLED_PAIRS,
            Control("token types exchanged", "types_exchanged:%", "above"),
            _MEAN_SHIFT,
            Control("nothing done", "identity", "above"),
            Control("the token alone, no other model", "token_mean", "above"),
            Control("signed permutation", "permutation", "above"),
            _linear(0.1),
        ),
    ),
    _carried(
        "11.2", "section 2", "the same, at tokens that the fit never saw", "not run", "rotation_ev_unseen",
        (_SHUFFLED_PAIRS, _MEAN_SHIFT, _linear(0.1)),
    ),
    _carried(
        "11.3", "section 2", "the rotation is determined: agreement of two fitted on disjoint halves", "not run",
        "rotation_halves", (Control("at least 0.9", "none", "reaches", bound=0.9), _SHUFFLED_PAIRS), split="in_sample",
    ),
    _carried(
        "11.4", "section 2", "carried sign codes are this model's own: share of bits, about the mean", "not run",
        "code_agreement", (_SHUFFLED_PAIRS, _AS_IS, _MEAN_SHIFT, _HAAR),
    ),
    _carried(
        "11.5", "section 2", "a carried code is nearest to the state of its own place in the text: share", "not run",
        "retrieval_top1",
        (
            Control("the token alone", "token_identity", "above"),
            _SHUFFLED_PAIRS,
            _MEAN_SHIFT,
            Control("from signs alone", "signs_alone", "within", bound=0.2),
        ),
    ),
    _carried(
        "12.1", "sections 3, 7", "the other's dictionary reconstructs these states, rotated: explained variance",
        "0.85 to 0.99 (about one mean for all dimensions)", "sae_ev",
        (
            Control("the published range, about one mean", "none", "reaches", "sae_ev_scalar", bound=0.85),
            Control("as it is fails, about one mean", "as_is", "stays", "sae_ev_scalar", bound=0.75),
            _AS_IS,
            _MEAN_SHIFT,
            Control("noise of its own moments", "gaussian", "above"),
            Control("noise of these moments, rotated", "gaussian_b", "above"),
            Control("Haar matrix in its place", "random_rotation", "above"),
            Control("its own states", "self", "within", bound=0.1),
        ),
    ),
    _carried(
        "12.2", "section 6", "decoders of two models match: mean cosine to the nearest", "0.89 to 0.93", "decoder_cosine",
        (
            Control("independent dictionary seeds", "independent_seed", "reaches", bound=0.89),
            Control("random directions", "random", "above"),
        ),
        bound=0.89, split="in_sample",
    ),
    _carried(
        "12.3", "section 6", "the same with independent seeds, one of them rotated", "not run", "decoder_cosine_rotated",
        (
            Control("before the rotation", "as_is", "above"),
            Control("untrained", "untrained_independent", "above"),
            Control("random directions", "random", "above"),
        ),
        split="in_sample",
    ),
    _carried(
        "12.4", "section 8", "the other's features fire together on rotated states: mean correlation", "0.25 to 0.44",
        "firing_correlation", (_AS_IS, _MEAN_SHIFT, Control("shuffled tokens", "shuffled", "above"), _linear(0.2)), bound=0.25,
    ),
    _carried(
        "13.1", "section 9", "a steering direction works here once rotated: change of its logits", "not run", "steering_target",
        (
            _AS_IS,
            Control("random direction, same norm", "random", "above"),
            Control("this model's own direction", "own", "within", bound=0.2),
            Control("in the other model itself", "source", "within", bound=0.2),
        ),
    ),
    _carried(
        "13.2", "section 9", "as it is, it moves this model more than its own: ratio of divergences", "1.8 to 10.0",
        "steering_kl_ratio", (Control("random direction, same norm", "random", "above"),), bound=1.8,
    ),
    _carried(
        "14.1", "section 7", "its distance from none tells the rotation from that of unrelated data: |R - I| / sqrt(2 width)",
        "1.00 (width 512), 0.83 to 0.99 (toy)", "distance_from_identity",
        (
            Control("fitted on shuffled pairs", "unrelated", "below"),
            Control("a cyclic shift of dimensions", "cyclic_shift", "below"),
        ),
        split="in_sample",
    ),
    _carried(
        "14.2", "section 7", "its angles tell it from that of unrelated data: KS distance from a Haar matrix's",
        "0.0027 (pooled)", "ks_distance",
        (
            Control("fitted on shuffled pairs", "unrelated", "above"),
            Control("a cyclic shift of dimensions", "cyclic_shift", "above"),
        ),
        split="in_sample",
    ),
    _carried(
        "15.1", "section 15", "sign prototypes of the other read these states, rotated back: mean AUC", "not run",
        "prototype_auc",
        (
            Control("at chance before: as it is", "as_is", "stays", bound=0.55),
            Control("at chance before: the mean moved", "mean_shift", "stays", bound=0.55),
            _AS_IS,
            _MEAN_SHIFT,
            _SHUFFLED_PAIRS,
            _HAAR,
            Control("this model's own prototypes", "own", "near", bound=0.02),
            Control("in the other model itself", "source", "near", bound=0.02),
        ),
    ),
    _carried(
        "15.2", "section 15", "the other's own axes matter to its prototypes: mean AUC", "not run", "prototype_basis",
        (_rotated(), _scaled()),
    ),
    _carried(
        "15.3", "section 15", "the other's categories, carried here, read these types: mean AUC", "not run",
        "feature_auc_mean", (_AS_IS, _HAAR, Control("this model's own categories", "own", "near", bound=0.02)),
    ),
)  # fmt: skip


_OWN_ERRORS = ("yield", "fires_below_0.001", "mi_mean", "participation_ratio")
"""Metrics whose controls are of other things than the figure: their errors add up."""


def _paired(claim: Claim, control: Control) -> bool:
    """Whether the control's standard error is that of its difference to the figure, over the same features."""
    return (
        claim.subject != "prediction"
        and control.control not in ("none", "random weights")
        and claim.metric not in _OWN_ERRORS
    )


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def query() -> str:
    """The SQL of the view `evidence`."""
    stated, centres, controls = list[str](), list[str](), list[str]()
    for order, one in enumerate(CLAIMS):
        texts = (
            one.claim_id, f"{one.source}, {one.where}", one.claim, one.metric, one.published, one.subject, one.split, one.point
        )  # fmt: skip
        stated.append(f"({order}, {', '.join(map(_text, texts))}, {str(one.everywhere).lower()})")
        centres += [f"({order}, {_text(centre)})" for centre in one.centres]
        for place, control in enumerate(one.judged):
            beside = (
                control.name, control.control, control.rule, control.metric or one.metric, control.split or one.split
            )  # fmt: skip
            paired = str(_paired(one, control)).lower()
            controls.append(f"({order}, {place}, {', '.join(map(_text, beside))}, {control.bound}, {paired})")
    line = "," + chr(10)
    # In three lists: a claim's words once, not once a control, since every file holds them.
    return f"""WITH stated(claim_order, claim_id, source, claim, metric, published, subject, split, point, everywhere) AS (VALUES
{line.join(stated)}),
centres(claim_order, centre) AS (VALUES {", ".join(centres)}),
controls(claim_order, control_order, control, control_key, rule, control_metric, control_split, bound, paired) AS (VALUES
{line.join(controls)}),
claim AS (SELECT * FROM stated JOIN centres USING (claim_order) JOIN controls USING (claim_order)),
figure AS (SELECT m.name AS model, s.name AS site, s.point, x.subject, x.subject_id, x.metric, x.control, x.split, x.value,
    x.std_error, r.started_at, coalesce(json_extract_string(r.params, '$.categories'), 'the pack') <> 'the pack' AS own
  FROM measurement_row x JOIN site s USING (site_id) JOIN model m USING (model_id) JOIN run r USING (run_id)
  WHERE x.subject <> 'feature'
  QUALIFY row_number() OVER (PARTITION BY x.site_id, x.subject, x.subject_id, x.metric, x.control, x.split
    ORDER BY own, CASE x.subject WHEN 'rotation' THEN 0 ELSE x.n END DESC, r.started_at DESC, x.run_id) = 1),
swept AS (SELECT model, subject_id AS centre, site FROM figure WHERE metric = 'layer_sweep_auc' AND control = 'none'
  QUALIFY row_number() OVER (PARTITION BY model, subject_id ORDER BY own, started_at DESC, site) = 1),
mixed AS (SELECT a.name AS model, min(b.name) AS twin FROM model a JOIN model b ON b.random_init_seed IS NOT NULL
    AND b.architecture = a.architecture AND b.width = a.width AND b.n_layers = a.n_layers AND b.d_ffn = a.d_ffn
    AND b.tokenizer_sha256 = a.tokenizer_sha256
  WHERE a.random_init_seed IS NULL GROUP BY a.name),
place AS (SELECT c.*, f.subject_id, f.model, f.site, f.value, f.std_error, t.twin
  FROM claim c JOIN figure f ON f.subject = c.subject AND (f.subject_id = c.centre OR c.centre = '*')
    AND f.metric = c.metric AND f.split = c.split
    AND f.control = 'none' AND (f.point = c.point OR c.point = '*')
  LEFT JOIN mixed t ON t.model = f.model
  WHERE (c.point <> 'resid_post' OR c.everywhere OR (f.model, c.centre, f.site) IN (SELECT (model, centre, site) FROM swept)
      OR NOT EXISTS (SELECT 1 FROM swept w WHERE w.model = f.model AND w.centre = c.centre))
    AND (c.subject = 'rotation' OR f.model IN (SELECT name FROM model WHERE random_init_seed IS NULL))),
beside AS (SELECT p.claim_order, p.control_order, p.subject_id, p.model, p.site, avg(g.value) AS value, avg(g.std_error) AS std_error,
    coalesce(stddev_samp(g.value), 0) * sqrt(1 + 1.0 / count(*)) AS spread
  FROM place p JOIN figure g ON g.site = p.site
    AND g.subject = CASE WHEN p.subject = 'swept' AND p.control_key = 'random weights' THEN 'category' ELSE p.subject END
    AND g.subject_id = p.subject_id
    AND g.metric = p.control_metric AND g.split = p.control_split
    AND CASE WHEN p.control_key = 'random weights' THEN g.model = p.twin AND g.control = 'none'
      ELSE g.model = p.model AND g.control LIKE p.control_key END
  GROUP BY ALL),
judged AS (SELECT p.claim_order, p.control_order, p.claim_id, p.source, p.claim, p.metric, p.published, p.model, p.subject_id, p.centre,
    p.rule, p.bound, p.paired, p.control,
    CASE WHEN count(DISTINCT p.site) = 1 THEN min(p.site)
      WHEN any_value(p.point) = '*' THEN 'mean of ' || count(DISTINCT p.site) || ' sites'
      ELSE any_value(p.point) || ', mean of ' || count(DISTINCT p.site) END AS site,
    coalesce(avg(p.value) FILTER (b.value IS NOT NULL), avg(p.value)) AS value,
    sqrt(avg(p.std_error * p.std_error) / CASE any_value(p.point) WHEN '*' THEN 1 ELSE count(*) END) AS value_error,
    avg(b.value) AS control_value,
    sqrt(avg(coalesce(b.std_error, 0) ** 2 + b.spread ** 2) / CASE any_value(p.point) WHEN '*' THEN 1 ELSE count(*) END)
      AS control_error
  FROM place p LEFT JOIN beside b USING (claim_order, control_order, subject_id, model, site)
  GROUP BY ALL),
missing AS (SELECT c.claim_order, c.control_order, c.claim_id, c.source, c.claim, c.metric, c.published, m.name AS model, c.centre,
    c.control
  FROM claim c CROSS JOIN model m WHERE m.random_init_seed IS NULL AND NOT EXISTS
    (SELECT 1 FROM place p WHERE p.claim_order = c.claim_order AND p.centre = c.centre AND p.model = m.name))
SELECT claim_id, source, claim, metric, published, model, value, control, control_value,
  CASE WHEN control_value IS NULL OR value IS NULL THEN 'not measured'
    WHEN CASE rule WHEN 'above' THEN value - control_value > {Z_95} * error WHEN 'below' THEN control_value - value > {Z_95} * error
      WHEN 'reaches' THEN control_value >= bound WHEN 'stays' THEN control_value <= bound
      WHEN 'within' THEN abs(value - control_value) <= bound * abs(control_value)
      ELSE abs(value - control_value) <= bound END
    THEN 'survives' ELSE 'does not survive' END AS verdict, site, replace(centre, '*', '') AS centre,
  CASE WHEN centre = '*' THEN subject_id END AS from_model
FROM (SELECT *, sqrt(control_error ** 2 + CASE WHEN paired THEN 0 ELSE coalesce(value_error, 0) ** 2 END) AS error FROM judged)
UNION ALL SELECT claim_id, source, claim, metric, published, model, NULL, control, NULL, 'not measured', NULL,
  replace(centre, '*', ''), NULL FROM missing"""
