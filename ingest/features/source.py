"""What every job of the stage reads: categories, the codes of types in every basis, and the moments of the sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...catalog import bulk, store
from ...catalog.codes import n_bytes
from ...catalog.ids import digest
from ..job import Context
from ..journal import site_id
from ..progress import Progress
from ..stats.bases import bases
from ..stats.bits import TypeBits
from ..stats.moments import Moments, stored_moments
from ..words import anchors
from . import discovery
from .controls import ControlCodes


@dataclass(frozen=True)
class Options:
    """What a user may choose. `categories` is a CSV, the pack's own if None; `seeds` of discovery; `seed` of all that
    is random."""

    categories: Path | None = None
    seeds: int = discovery.DEFAULT_SEEDS
    seed: int = 0


@dataclass(frozen=True)
class Source:
    """The model's vocabulary and categories, and its codes: those of the catalogue and those of `controls`."""

    context: Context
    options: Options
    sites: tuple[str, ...]
    strings: Sequence[str]
    vocabulary: anchors.Vocabulary
    anchors: list[anchors.Anchors]
    seeds: np.ndarray
    controls: ControlCodes

    @property
    def seed(self) -> int:
        """Of all that is random."""
        return self.options.seed

    @property
    def model_id(self) -> str:
        """The id of the ingested model."""
        return self.context.known.model_id

    @property
    def words(self) -> str:
        """A digest of the words of all categories."""
        return digest([[one.category, one.token_ids.tolist()] for one in self.anchors])[:16]

    def site_id(self, site: str) -> str:
        """The id of a site of the model."""
        return site_id(self.model_id, site)

    def moments(self) -> dict[str, Moments]:
        """Of the types at each site, as they are stored."""
        with store.reading(self.context.path) as connection:
            return stored_moments(connection, self.model_id)

    def fill(self, sites: Sequence[str], progress: Progress) -> None:
        """Compute the control codes that the stage types has not left on its way."""
        if left := self.controls.to_compute(sites):
            context = self.context
            progress.started("control bases", left, 0)
            self.controls.fill(context.model, self.moments(), sites, context.batch_tokens, progress.computed)
            progress.ended()

    def types(self, site: str, basis: str, centre: str) -> TypeBits:
        """Codes of the types at a site, whole and in order."""
        if basis != "standard":
            return self.controls.types(site, basis, centre)
        width = self.controls.widths[site]
        with store.reading(self.context.path) as connection:
            rows = connection.execute(
                "SELECT cs.code_set_id FROM code_set cs JOIN site s USING (site_id) JOIN run r USING (run_id) "
                "WHERE s.model_id = ? AND s.name = ? AND cs.subject = 'type' AND cs.centre = ? AND cs.basis = 'standard' "
                "AND r.finished_at IS NOT NULL ORDER BY r.started_at LIMIT 1",
                [self.model_id, site, centre],
            ).fetchall()
            items, codes = bulk.read_codes(connection, rows[0][0], n_bytes(width))
        if len(items) < (n := self.context.model.vocab_size):
            # A type without a finite state has no code: here it has that of nothing, as in the control bases.
            whole = np.zeros((n, codes.shape[1]), codes.dtype)
            whole[items] = codes
            codes = whole
        return TypeBits(codes, width)

    def in_bases(self, site: str, centre: str) -> dict[str, TypeBits]:
        """Codes of the types at a site in the standard basis and in every control basis."""
        return {basis: self.types(site, basis, centre) for basis in ("standard", *bases())}
