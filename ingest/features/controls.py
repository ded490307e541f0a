"""Control bases: the same types in Haar-rotated bases, as scratch files of codes beside the catalogue.

What a rotated basis shows as well as the standard one is no evidence for the axes (Bag of Dims never ran this
control). The codes are needed for figures only, so they are gone when the ingest ends; seeds are stored.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ...catalog import store
from ...catalog.codes import n_bytes
from ...catalog.errors import DiskFull
from ..forward import one_pass
from ..pack import pack_signs
from ..sites import Site
from .bits import TypeBits

if TYPE_CHECKING:
    from ..model import LoadedModel

HAAR_SEEDS = (1, 2, 3)
CENTRES = ("zero", "mean")
_SHARD = 8192


def haar(width: int, seed: int) -> torch.Tensor:
    """A Haar-random orthogonal matrix, float32 (width, width), drawn from `seed` (Mezzadri 2007: QR with fixed signs)."""
    gaussian = torch.from_numpy(np.random.default_rng([seed, width]).standard_normal((width, width)))
    q, r = torch.linalg.qr(gaussian)
    return (q * torch.sign(torch.diagonal(r))).float()


class Rotations:
    """The Haar matrices of one width on one device, drawn once."""

    def __init__(self, width: int, device: torch.device | None = None) -> None:
        self.by_name = {f"haar:{seed}": haar(width, seed).to(device or "cpu") for seed in HAAR_SEEDS}

    def codes(self, x: torch.Tensor, mean: torch.Tensor | None) -> dict[tuple[str, str], NDArray[np.uint8]]:
        """Codes of the rows of `x` (n, width) by basis and centre: centred first, then rotated (x Q)."""
        found = {}
        for name, rotation in self.by_name.items():
            if mean is None:
                found[name, "zero"] = pack_signs(x.float() @ rotation).cpu().numpy()
                continue
            # From the centred ones: first positions are so large that the difference would lose its digits.
            centred = (x.float() - mean) @ rotation
            found[name, "mean"] = pack_signs(centred).cpu().numpy()
            found[name, "zero"] = pack_signs(centred + mean @ rotation).cpu().numpy()
        return found


class ControlCodes:
    """Scratch codes of every type of one model in every control basis, filled shard by shard.

    Args:
        path: the catalogue. `widths`: of its sites, by name. `n`: types.
    """

    def __init__(self, path: Path, model_id: str, widths: dict[str, int], n: int) -> None:
        self.folder = folder(path, model_id)
        self.widths, self.n = widths, n
        self._rotations: dict[int, Rotations] = {}

    @property
    def nbytes(self) -> int:
        """What the files of all sites take."""
        each = len(HAAR_SEEDS) * len(CENTRES) * self.n
        return sum(each * n_bytes(width) for width in self.widths.values())

    def put(self, site: str, start: int, x: torch.Tensor, mean: NDArray[np.float64]) -> None:
        """Keep the codes of types `start` .. `start + len(x)` from their states `x` (n, width) at `site`."""
        width = self.widths[site]
        rotations = self._rotations.get(width) or Rotations(width, x.device)
        self._rotations[width] = rotations
        try:
            self.folder.mkdir(exist_ok=True)
            found = rotations.codes(x, torch.from_numpy(mean.astype(np.float32)).to(x.device))
            for (basis, centre), codes in found.items():
                file = self._file(site, basis, centre)
                handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
                try:
                    os.pwrite(handle, codes.tobytes(), start * codes.shape[1])
                finally:
                    os.close(handle)
            self._mark(site, start, len(x)).touch()
        except OSError as error:
            raise DiskFull(self.folder, during=True) from error

    def missing(self, site: str) -> list[tuple[int, int]]:
        """Ranges of types, (start, stop), that `put` has not been given yet."""
        done = sorted(
            tuple(int(part) for part in one.name.split("-")[-2:])
            for one in self.folder.glob(f"done-{site}-*")
        )
        gaps, at = [], 0
        for start, n in done:
            if start > at:
                gaps.append((at, start))
            at = max(at, start + n)
        return gaps + ([(at, self.n)] if at < self.n else [])

    def fill(
        self,
        model: LoadedModel,
        means: dict[str, NDArray[np.float64]],
        batch_tokens: int,
        computed: Callable[[int], None],
    ) -> None:
        """Run the model over those types whose codes are missing at some site."""
        for start, stop, sites in self._todo():
            for a in range(start, stop, _SHARD):
                b = min(a + _SHARD, stop)
                parts: dict[str, list[torch.Tensor]] = {site: [] for site in sites}

                def keep(site: Site, x: torch.Tensor, parts: dict[str, list[torch.Tensor]] = parts) -> None:
                    parts[site.name].append(x[:, -1].clone())

                for i in range(a, b, batch_tokens):
                    ids = torch.arange(i, min(i + batch_tokens, b))[:, None]
                    with one_pass(ids.numel()):
                        model.forward(ids, None, [Site.from_name(site) for site in sites], keep)  # type: ignore[arg-type]
                    computed(len(ids))
                for site in sites:
                    self.put(site, a, torch.cat(parts.pop(site)), means[site])

    @property
    def to_compute(self) -> int:
        """Tokens that `fill` would send through the model."""
        return sum(stop - start for start, stop, _ in self._todo())

    def _todo(self) -> list[tuple[int, int, list[str]]]:
        by_range: dict[tuple[int, int], list[str]] = {}
        for site in self.widths:
            for gap in self.missing(site):
                by_range.setdefault(gap, []).append(site)
        return [(*gap, sites) for gap, sites in sorted(by_range.items())]

    def types(self, site: str, basis: str, centre: str) -> TypeBits:
        """The codes in one control basis, mapped from their file."""
        width = self.widths[site]
        file = self._file(site, basis, centre)
        return TypeBits(np.memmap(file, np.uint8, "r", shape=(self.n, n_bytes(width))), width)

    def _file(self, site: str, basis: str, centre: str) -> Path:
        return self.folder / f"{site}-{basis.replace(':', '')}-{centre}"

    def _mark(self, site: str, start: int, n: int) -> Path:
        return self.folder / f"done-{site}-{start}-{n}"


def folder(path: Path, model_id: str) -> Path:
    """Where the control codes of a model lie while its features are made."""
    return store.sidecar(path, f".scratch-haar-{model_id}")


def clear(path: Path, model_id: str) -> None:
    """Delete them."""
    if (found := folder(path, model_id)).exists():
        shutil.rmtree(found)


def bases() -> Sequence[str]:
    """Names of the control bases."""
    return [f"haar:{seed}" for seed in HAAR_SEEDS]
