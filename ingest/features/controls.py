"""Control bases: the same types in Haar-rotated bases, as scratch files of codes beside the catalogue.

What a rotated basis shows as well as the standard one is no evidence for the axes (Bag of Dims never ran this
control). A few dimensions can be so much larger than the rest that in a rotated basis every bit says what they do; so
there is also a basis in which every dimension is given the same variance before it is rotated. The codes are needed
for figures only, so they are gone when the ingest ends; seeds are stored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ...catalog import store
from ...catalog.codes import n_bytes
from ...catalog.errors import DiskFull
from ...catalog.files import make_scratch, remove_folder
from ...catalog.ids import digest
from ..model.sites import Site
from ..passes.forward import one_pass
from ..passes.pack import pack_signs
from ..stats.bases import HAAR_SEEDS, SCALED_SEED, bases, haar
from ..stats.bits import TypeBits
from ..stats.moments import Moments

if TYPE_CHECKING:
    from ..model.load import LoadedModel

CENTRES = ("zero", "mean")
_SHARD = 8192


class Rotations:
    """The control bases of one site on one device.

    `moments` are of the site's types; without them there is no centre `mean` and no scaled basis.
    """

    def __init__(self, width: int, moments: Moments | None, device: torch.device | None = None) -> None:
        device = device or torch.device("cpu")
        self._width, self._device = width, device
        self._mean = self._scale = None
        if moments is not None:
            self._mean = torch.from_numpy(moments.mean.astype(np.float32)).to(device)
            # A dimension that never moves says nothing in any basis.
            inverse = np.divide(1.0, moments.std, out=np.zeros_like(moments.std), where=moments.std > 0)
            self._scale = torch.from_numpy(inverse.astype(np.float32)).to(device)

    def codes(self, x: torch.Tensor) -> dict[tuple[str, str], NDArray[np.uint8]]:
        """Codes of the rows of `x` (n, width) by basis and centre: centred first, then turned."""
        found = {}
        wide = x.float()
        centred = wide if self._mean is None else wide - self._mean
        for name, seed in [(f"haar:{seed}", seed) for seed in HAAR_SEEDS] + [
            (f"scaled:{SCALED_SEED}", SCALED_SEED)
        ]:
            turn = haar(self._width, seed).to(self._device)
            scaled = name.startswith("scaled")
            if self._mean is None or self._scale is None:
                if not scaled:
                    found[name, "zero"] = pack_signs(centred @ turn).cpu().numpy()
                continue
            # From the centred ones: first positions are so large that the difference would lose its digits.
            turned = (centred * self._scale if scaled else centred) @ turn
            away = (self._mean * self._scale if scaled else self._mean) @ turn
            found[name, "mean"] = pack_signs(turned).cpu().numpy()
            found[name, "zero"] = pack_signs(turned + away).cpu().numpy()
        return found


class ControlCodes:
    """Scratch codes of every type of one model in every control basis, filled shard by shard.

    Args:
        path: the catalogue. `widths`: of its sites, by name. `n`: types.
    """

    def __init__(self, path: Path, model_id: str, widths: dict[str, int], n: int) -> None:
        self.folder = folder(path, model_id)
        self.widths, self.n = widths, n
        self._rotations: dict[str, Rotations] = {}

    @property
    def nbytes(self) -> int:
        """What the files of all sites take."""
        each = len(bases()) * len(CENTRES) * self.n
        return sum(each * n_bytes(width) for width in self.widths.values())

    def put(self, site: str, start: int, x: torch.Tensor, moments: Moments) -> None:
        """Keep the codes of types `start` .. `start + len(x)` from their states `x` (n, width) at `site`."""
        if site not in self._rotations:
            self._rotations[site] = Rotations(self.widths[site], moments, x.device)
        try:
            make_scratch(self.folder)
            found = self._rotations[site].codes(x)
            for (basis, centre), codes in found.items():
                file = self._file(site, basis, centre)
                handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
                try:
                    _write_all(handle, codes.tobytes(), start * codes.shape[1])
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
        moments: dict[str, Moments],
        sites_wanted: Sequence[str],
        batch_tokens: int,
        computed: Callable[[int], None],
    ) -> None:
        """Run the model over those types whose codes are missing at some of `sites_wanted`."""
        for start, stop, sites in self._todo(sites_wanted):
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
                    self.put(site, a, torch.cat(parts.pop(site)), moments[site])

    def to_compute(self, sites: Sequence[str]) -> int:
        """Tokens that `fill` would send through the model."""
        return sum(stop - start for start, stop, _ in self._todo(sites))

    def _todo(self, sites: Sequence[str]) -> list[tuple[int, int, list[str]]]:
        by_range: dict[tuple[int, int], list[str]] = {}
        for site in sites:
            for gap in self.missing(site):
                by_range.setdefault(gap, []).append(site)
        return [(*gap, some) for gap, some in sorted(by_range.items())]

    def types(self, site: str, basis: str, centre: str) -> TypeBits:
        """The codes in one control basis, mapped from their file."""
        width = self.widths[site]
        file = self._file(site, basis, centre)
        return TypeBits(np.memmap(file, np.uint8, "r", shape=(self.n, n_bytes(width))), width)

    def _file(self, site: str, basis: str, centre: str) -> Path:
        return self.folder / f"{site}-{basis.replace(':', '')}-{centre}"

    def _mark(self, site: str, start: int, n: int) -> Path:
        return self.folder / f"done-{site}-{start}-{n}"


def _write_all(handle: int, data: bytes, at: int) -> None:
    """A disk that fills up in the middle takes a part and says so by a number alone."""
    while data:
        written = os.pwrite(handle, data, at)
        data, at = data[written:], at + written


def folder(path: Path, model_id: str) -> Path:
    """Where the control codes of a model lie while its features are made; another set of bases lies elsewhere."""
    return store.sidecar(path, f".scratch-haar-{digest(bases())[:6]}-{model_id}")


def clear(path: Path, model_id: str) -> None:
    """Delete them."""
    remove_folder(folder(path, model_id))
