"""The verdicts: what the view `evidence` makes of the claims and of the measurements beside their controls.

It is a view, so that SQL sees what the command prints. Its text holds the claims of the program that made it, and
`surface.py` sees to it that a reader never gets those of another program.
"""

from __future__ import annotations

from collections.abc import Sequence

from .part import Claim, Control, View

Z_95 = 1.645
"""One-sided 5%: how many standard errors lie between a figure and a control that it is said to beat."""


def view(claims: Sequence[Claim]) -> View:
    """The view `evidence` of these claims."""
    return View(
        "evidence",
        "One row per published claim, model and control: the figure here, the control's, and whether the claim survives it.",
        {
            "claim_id": "stays the same",
            "source": "paper and table",
            "claim": "in words",
            "metric": "see `measurements`",
            "published": "the published figure",
            "model": "name of the model",
            "value": "this model's figure",
            "control": "what could explain it away",
            "control_value": "the same figure under the control",
            "verdict": "`survives`, `does not survive` or `not measured`",
            "site": "where: for residual sites the one that the layer sweep chose",
            "centre": "of the codes; empty where there are none",
            "from_model": "the model that was carried here, for claims about a pair; else NULL",
        },
        query(claims),
    )


def _is_paired(claim: Claim, control: Control) -> bool:
    """Whether the control's standard error is that of its difference to the figure, over the same features."""
    return claim.paired and control.control not in ("none", "random weights")


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def query(claims: Sequence[Claim]) -> str:
    """The SQL of the view `evidence` for these claims: a row a claim, centre, model and control."""
    stated, centres, controls = list[str](), list[str](), list[str]()
    for order, one in enumerate(claims):
        texts = (
            one.claim_id, f"{one.source}, {one.where}", one.claim, one.metric, one.published, one.subject, one.split, one.point
        )  # fmt: skip
        stated.append(f"({order}, {', '.join(map(_text, texts))}, {str(one.everywhere).lower()})")
        centres += [f"({order}, {_text(centre)})" for centre in one.centres]
        for place, control in enumerate(one.judged):
            beside = (
                control.name, control.control, control.rule, control.metric or one.metric, control.split or one.split
            )  # fmt: skip
            paired = str(_is_paired(one, control)).lower()
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
