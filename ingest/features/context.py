"""Features in text: what a sample of states, run through the model anew, shows in every basis.

First positions are left out of everything here: a few of their dimensions are so large that their signs say little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ...catalog import store
from ...catalog.bulk import Figure
from ...catalog.codes import n_bytes
from ...catalog.errors import ModelError
from ..model.sites import Site
from ..passes.forward import batches, one_pass
from ..passes.pack import pack_signs
from ..stats.bases import HAAR_SEEDS, bases, haar
from ..stats.bits import Patterns, TypeBits, agreements, among, percentiles
from ..stats.draws import rng
from ..stats.figures import Scope
from .categories import Split
from .controls import CENTRES, Moments, Rotations
from .independence import Pairs, measure
from .prediction import sign_majority, sign_only
from .prototypes import define

if TYPE_CHECKING:
    from ..model.load import LoadedModel

SAMPLE_TOKENS = 16_384
_SAMPLE_BYTES = 1 << 30
PREDICTED = 512
"""Positions that sign-only prediction is tried at."""
LOUDEST = 800 / 2560
"""Share of the dimensions that the paper calls loudest (Table 1: 800 of Qwen's 2560)."""
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """Token ids of one stored document."""

    document_id: int
    ids: NDArray[np.int64]


def sample_tokens(widths: Sequence[int], tokens: int) -> int:
    """How many of a text's `tokens` the sample takes, so that its codes at sites of such `widths` stay in memory.

    Half of a small text is left for the baselines that must not see what they predict.
    """
    each = sum(n_bytes(width) for width in widths) * (len(bases()) + 1) * len(CENTRES)
    return min(SAMPLE_TOKENS, _SAMPLE_BYTES // max(1, each), max(1, tokens // 2))


def sample_windows(
    path: Path, tokenizer: str, text_ids: Sequence[int], widths: Sequence[int], seed: int
) -> tuple[list[Window], Ids]:
    """Random documents of some texts, as many tokens as `sample_tokens` says, and how often each token stands in the
    others.

    The counts, (largest token id + 1,), are the frequency baseline's: of text that nothing is predicted in.
    """
    with store.reading(path) as connection:
        where = " OR ".join(f"document_id BETWEEN {one} AND {one + (1 << 32) - 1}" for one in text_ids)
        documents = connection.execute(
            f"SELECT document_id, n_tokens FROM document_row WHERE {where} ORDER BY document_id"
        ).fetchnumpy()
        order = rng(seed, "sample", tokenizer).permutation(len(documents["document_id"]))
        limit = sample_tokens(widths, int(documents["n_tokens"].sum()))
        running = documents["n_tokens"][order].cumsum()
        chosen = np.sort(documents["document_id"][order[: int(np.searchsorted(running, limit)) + 1]])
        listed = ", ".join(map(str, chosen))
        rows = connection.execute(
            f"SELECT document_id, list(token_id ORDER BY position) FROM state_row WHERE document_id IN ({listed}) "
            "GROUP BY document_id ORDER BY document_id"
        ).fetchall()
        others = connection.execute(
            f"SELECT token_id, count(*) AS n FROM state_row WHERE ({where}) AND document_id NOT IN ({listed}) GROUP BY token_id"
        ).fetchnumpy()
    counts = np.zeros(int(others["token_id"].max()) + 1 if len(others["token_id"]) else 0, np.int64)
    counts[others["token_id"]] = others["n"]
    return [Window(row[0], np.array(row[1], np.int64)) for row in rows], counts


@dataclass
class Sample:
    """States of the sample, first positions left out: `tokens` (n,), and codes by site, basis and centre.

    `final` (m, width) are states after the final norm, at random positions that have a next token: `contexts` and
    `targets` belong to them. Empty where the model has no such site.
    """

    tokens: Ids
    codes: dict[tuple[str, str, str], TypeBits]
    final: torch.Tensor
    contexts: list[Ids]
    targets: Ids


def run_sample(
    model: LoadedModel,
    windows: Sequence[Window],
    moments: dict[str, Moments],
    sites: Sequence[str],
    batch_tokens: int,
    seed: int,
    computed: Callable[[int], None],
) -> Sample:
    """Send `windows` through the model; see `Sample`."""
    lengths = [len(one.ids) for one in windows]
    # Prompts end where a next token is known.
    ends = [(i, p) for i, n in enumerate(lengths) for p in range(1, n - 1)]
    chosen = rng(seed, "prompts").permutation(len(ends))[:PREDICTED]
    prompts = sorted(ends[i] for i in chosen)
    final_site = next((one for one in model.sites if one.point == "final_norm"), None)
    wanted = [Site.from_name(one) for one in sites]
    if final_site is not None and final_site not in wanted:
        wanted.append(final_site)
    rotations = {
        one: Rotations(model.width_of(Site.from_name(one)), moments.get(one), model.device) for one in sites
    }
    parts: dict[tuple[str, str, str], dict[int, NDArray[np.uint8]]] = {}
    finals: dict[tuple[int, int], torch.Tensor] = {}
    at = {i: [p for j, p in prompts if j == i] for i in range(len(windows))}
    shifts = {
        one: torch.from_numpy(moments[one].mean.astype(np.float32)).to(model.device)
        for one in sites
        if one in moments
    }
    for batch in batches(lengths, batch_tokens):
        longest = max(lengths[i] for i in batch)
        ids = torch.zeros((len(batch), longest), dtype=torch.int64)
        for row, i in enumerate(batch):
            ids[row, : lengths[i]] = torch.from_numpy(windows[i].ids)

        def take(site: Site, x: torch.Tensor, batch: list[int] = batch) -> None:
            for row, i in enumerate(batch):
                if site == final_site:
                    for p in at[i]:
                        finals[i, p] = x[row, p].float().cpu().clone()
                if site.name in rotations:
                    states = x[row, 1 : lengths[i]]
                    found = rotations[site.name].codes(states)
                    found["standard", "zero"] = pack_signs(states).cpu().numpy()
                    if site.name in shifts:
                        found["standard", "mean"] = pack_signs(states, shifts[site.name]).cpu().numpy()
                    for key, codes in found.items():
                        parts.setdefault((site.name, *key), {})[i] = codes

        with one_pass(ids.numel()):
            model.forward(ids, [lengths[i] for i in batch], wanted, take)  # type: ignore[arg-type]
        computed(sum(lengths[i] for i in batch))
    order = range(len(windows))
    return Sample(
        np.concatenate([one.ids[1:] for one in windows]),
        {
            key: TypeBits(np.concatenate([pieces[i] for i in order]), model.width_of(Site.from_name(key[0])))
            for key, pieces in parts.items()
        },
        torch.stack([finals[one] for one in prompts]) if finals else torch.empty(0, model.width),
        [windows[i].ids[: p + 1] for i, p in prompts],
        np.array([windows[i].ids[p + 1] for i, p in prompts], np.int64),
    )


def bases_of(sample: Sample, site: str) -> Iterator[tuple[str, str]]:
    """(basis, centre) that the sample has codes of at a site, the standard basis first."""
    keys = [(basis, centre) for name, basis, centre in sample.codes if name == site]
    return iter(sorted(keys, key=lambda one: (one[0] != "standard", one)))


def context_figures(
    sample: Sample,
    site: str,
    site_id: str,
    types: Callable[[str, str], TypeBits],
    split: Split,
    seed: int,
) -> list[Figure]:
    """Independence in context, signs kept from type to context, and contextual AUC, in every basis at one site.

    `types` gives the codes of the vocabulary in a basis and centre; `split` holds the words of each category. The AUC
    in sample finds the words that define, held out those that do not.
    """
    figures: list[Figure] = []
    read: dict[tuple[str, str, str], NDArray[np.float64]] = {}
    for basis, centre in bases_of(sample, site):
        control = "none" if basis == "standard" else basis
        states = sample.codes[site, basis, centre]
        own = types(basis, centre)
        figures += independence_figures(states, site_id, "state", centre, control, seed)
        kept = 1 - np.bitwise_count(states.codes ^ own.codes[sample.tokens]).sum(1) / states.width
        # What agreement of signs is worth depends on how often any two of them agree.
        other = own.codes[rng(seed, "shuffled").permutation(sample.tokens)]
        shuffled = 1 - np.bitwise_count(states.codes ^ other).sum(1) / states.width
        read[centre, control, "kept"] = kept
        read[centre, "shuffled" if control == "none" else f"shuffled {control}", "kept"] = shuffled
        if split.anchors:
            for name, define_on, found in (
                ("in_sample", split.anchors, split.anchors),
                ("held_out", split.define, split.score),
            ):
                patterns = define(own, split.anchors, define_on).patterns
                read[centre, control, name] = _auc_in_context(states, patterns, sample.tokens, split, found)
    for (centre, control, name), values in read.items():
        paired = None if control == "none" else read[centre, "none", name] - values
        subject, metric = ("state", "sign_kept_share") if name == "kept" else ("category", "auc_context")
        part = "in_sample" if name == "kept" else name
        figures.append(Scope(site_id, subject, centre, seed).mean(metric, control, part, values, paired))
    return figures


def _auc_in_context(
    states: TypeBits, patterns: Patterns, tokens: Ids, split: Split, found: Sequence[Ids]
) -> NDArray[np.float64]:
    """(categories,): occurrences of the words `found` against those of no word of the category; NaN without any."""
    aucs = np.full(len(found), np.nan)
    for i, row in agreements(states, patterns):
        inside, others = among(tokens, found[i]), ~among(tokens, split.anchors[i])
        if inside.any() and others.any():
            aucs[i] = percentiles(row[inside], row[others]).mean()
    return aucs


def independence_figures(
    codes: TypeBits, site_id: str, subject: str, centre: str, control: str, seed: int
) -> list[Figure]:
    """Mutual information over all pairs of dimensions, and the participation ratio of their correlations."""
    found = measure(Pairs.of(codes.codes, codes.width))
    values = {
        "mi_mean": (found.mean_mi, found.n_pairs),
        "mi_above_0.01_share": (found.share_above, found.n_pairs),
        "mi_max": (found.max_mi, found.n_pairs),
        "mi_bias": (found.bias, found.n_pairs),
        "participation_ratio": (found.participation_ratio, found.n),
        "constant_dims": (float(found.constant), found.n),
    }
    return [
        Figure(site_id, subject, centre, metric, control, "in_sample", value, n, seed)
        for metric, (value, n) in values.items()
    ]


@dataclass
class Prediction:
    """Figures about what signs predict, and why some are missing."""

    figures: list[Figure] = field(default_factory=list)
    note: str = ""


def prediction_figures(
    model: LoadedModel, sample: Sample, counts: Ids, site_id: str, seed: int
) -> Prediction:
    """Sign-only next token and sign majority (Bag of Dims, sections 4 and 5), each beside its baselines."""
    if not len(sample.final):
        why = (
            "no position with a next token"
            if not len(sample.targets)
            else f"{model.name} has no site final_norm"
        )
        return Prediction(note=f"sign-only prediction was not measured: {why}")
    try:
        unembedding = model.unembedding()
    except ModelError as error:
        return Prediction(note=f"sign-only prediction was not measured: {error.what}")
    rotations = [haar(model.width, one).T for one in HAAR_SEEDS]
    n = len(sample.targets)
    loudest = max(1, round(LOUDEST * model.width))
    only = sign_only(
        sample.final,
        unembedding,
        loudest=loudest,
        seed=seed,
        rotations=rotations,
        bias=model.unembedding_bias(),
    )
    figures = []

    def add(metric: str, control: str, share: float) -> None:
        error = float(np.sqrt(share * (1 - share) / n))
        figures.append(Figure(site_id, "prediction", "", metric, control, "held_out", share, n, seed, error))

    for method, shares in only.items():
        loud = method.startswith("loudest")
        control = method.removeprefix("loudest").lstrip("_") or "none"
        for k, share in shares.items():
            add(f"sign_{'loudest' if loud else 'only'}_top{k}", control, share)
    embedding = model.embedding()
    padded = np.zeros(len(embedding), np.int64)
    padded[: len(counts)] = counts[: len(embedding)]
    majority = sign_majority(
        embedding, sample.contexts, sample.targets, padded, h_final=sample.final, rotations=rotations
    )
    for method, shares in majority.items():
        if method in ("frequency", "repeat") and not counts.sum():
            # No other text to count in: token ids would stand for frequencies.
            continue
        for k, share in shares.items():
            add(f"sign_majority_top{k}", method, share)
    return Prediction(figures)
