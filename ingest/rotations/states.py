"""States of two models over the same windows, in scratch files beside the catalogue: they need not fit into memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...catalog.errors import DiskFull, ModelError, option
from ...catalog.files import make_scratch, remove_folder
from ..model.sites import Site
from ..passes.gather import Windows, record, row_starts, split, sum_of
from ..progress import Progress
from ..size import free_bytes
from ..stats.paired import Paired

if TYPE_CHECKING:
    from ..model.loaded import LoadedModel


class States:
    """States of `models`, A and B, called `names`, at any site over `windows`, in `folder`.

    `seed` decides which windows are fitted on, validated on and tested on.
    """

    def __init__(
        self,
        folder: Path,
        models: tuple[LoadedModel, LoadedModel],
        names: tuple[str, str],
        windows: Windows,
        seed: int,
    ) -> None:
        self.folder, self.models, self.names, self.windows = folder, models, names, windows
        self._parts = list(split(windows, seed))
        """Windows of each part; rows of a `Paired` are in that order."""
        self._order = [i for part in self._parts for i in part]
        device = models[1].device
        self.device = device if device.type == "cuda" else torch.device("cpu")
        """Where sums are taken: float64 is not everywhere."""

    @property
    def n_rows(self) -> int:
        """Tokens that are compared: all but first positions."""
        return sum(len(one) - 1 for one in self.windows)

    def check_disk(self, path: Path, sites: Sequence[Site]) -> None:
        """Refuse what does not fit beside the catalogue at `path`.

        Raises:
            DiskFull: with the bytes that are needed and those that are free.
        """
        needed = sum(
            self.n_rows * model.width_of(site) * _dtype(model).itemsize
            for end, model in enumerate(self.models)
            for site in sites
            if not self._mark(end, site).exists()
        )
        needed += sum(4 * self.models[0].width_of(site) ** 2 for site in sites)
        free = free_bytes(path)
        if free < needed:
            raise DiskFull(path, needed, free)

    def gather(self, sites: Sequence[Site], progress: Progress) -> None:
        """Run both models at `sites`; what a killed run left whole is used.

        Raises:
            ModelError: if a state is NaN or infinity.
        """
        make_scratch(self.folder)
        todo = {end: [site for site in sites if not self._mark(end, site).exists()] for end in (0, 1)}
        passes = [end for end, missing in todo.items() if missing]
        if not passes:
            return
        windows = [self.windows[i] for i in self._order]
        starts = row_starts(windows)
        progress.started("states", len(passes) * sum_of(windows), 0)
        for end in passes:
            outputs = {site: self._mapped(end, site, write=True) for site in todo[end]}
            record(self.models[end], windows, todo[end], outputs, starts, progress.computed)
            for site, x in outputs.items():
                _check_finite(x, self.names[end], site)
                self._mark(end, site).touch()
        progress.ended()

    def paired(self, site: Site) -> Paired:
        """The states of both models at `site`, which were gathered."""
        windows = [self.windows[i] for i in self._order]
        sizes = [len(one) - 1 for one in windows]
        ends = np.cumsum([sum(len(self.windows[i]) - 1 for i in part) for part in self._parts]).tolist()
        slices = [slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]
        return Paired(
            self._mapped(0, site),
            self._mapped(1, site),
            (slices[0], slices[1]),
            slices[2],
            slices[3],
            np.concatenate([one[1:] for one in windows]),
            np.repeat(np.array(self._order, np.int64), sizes),
            np.concatenate([np.arange(1, n + 1, dtype=np.int64) for n in sizes]),
            self.device,
            np.repeat(self.windows.groups[self._order], sizes),
        )

    def remove(self) -> None:
        """Delete the files."""
        with suppress(OSError):
            remove_folder(self.folder)

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Around their use: the files go at the end, and where the disk is full; a killed run's stay.

        Raises:
            DiskFull: if the disk is full.
        """
        try:
            yield
        except OSError as error:
            if error.errno not in (ENOSPC, EDQUOT):
                raise
            # What filled the disk must not stay there.
            self.remove()
            raise DiskFull(self.folder, during=True) from error
        self.remove()

    def _mark(self, end: int, site: Site) -> Path:
        return self.folder / f"done-{end}-{site}"

    def _mapped(self, end: int, site: Site, write: bool = False) -> Tensor:
        model = self.models[end]
        width = model.width_of(site)
        file = self.folder / f"{end}-{site}"
        if write:
            # Space that is promised only would kill the process where the disk is full.
            with file.open("wb") as handle:
                size = self.n_rows * width * _dtype(model).itemsize
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(handle.fileno(), 0, size)
                else:
                    handle.truncate(size)
        flat = torch.from_file(str(file), shared=True, size=self.n_rows * width, dtype=_dtype(model))
        return flat.view(self.n_rows, width)


def _dtype(model: LoadedModel) -> torch.dtype:
    kind: torch.dtype = model.embedding().dtype
    return kind


def _check_finite(x: Tensor, name: str, site: Site) -> None:
    for part in x.split(8192):
        if not bool(part.isfinite().all()):
            raise ModelError(
                f"{name} gives NaN or infinity at {site}", f"ingest it with {option('dtype', 'float32')}"
            )
