"""The jobs that fill a catalogue, and access to models in one place.

`signarium.ingest(...)` is the job and `signarium.ingest` the package that holds it, so the package can be called.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .job import Report
    from .progress import Progress


class _Callable(ModuleType):
    def __call__(
        self,
        db: str | Path,
        model: str,
        *,
        text: str | Path | Sequence[str | Path] = (),
        name: str | None = None,
        sites: str | Sequence[str] | None = None,
        stages: str | Sequence[str] | None = None,
        max_tokens: int | None = None,
        context: int | None = None,
        device: str = "auto",
        devices: str | Sequence[str] | None = None,
        dtype: str = "auto",
        batch_tokens: int | None = None,
        bos: bool = False,
        categories: str | Path | None = None,
        seeds: int | None = None,
        random_init: int | None = None,
        revision: str | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Report:
        """Run `model` over its vocabulary and over `text`, into the catalogue at `db`, made if it is not there.

        The options are those of `signarium ingest --help`; see `signarium.ingest.run.ingest`.

        Raises:
            SignariumError: one of its subclasses, for anything that the caller can mend.
        """
        from .run import ingest

        return ingest(
            db,
            model,
            text=text,
            name=name,
            sites=sites,
            stages=stages,
            max_tokens=max_tokens,
            context=context,
            device=device,
            devices=devices,
            dtype=dtype,
            batch_tokens=batch_tokens,
            bos=bos,
            categories=categories,
            seeds=seeds,
            random_init=random_init,
            revision=revision,
            dry_run=dry_run,
            progress=progress,
        )


sys.modules[__name__].__class__ = _Callable
