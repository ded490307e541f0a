"""The jobs that fill a catalogue, and access to models in one place.

`signarium.ingest(...)` is the job and `signarium.ingest` the package that holds it, so the package can be called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from .run import Report


class _Callable(ModuleType):
    def __call__(self, db: str | Path, model: str, **options: Any) -> Report:
        """Run a model over its vocabulary and text into the catalogue at `db`; see `ingest.run.ingest`."""
        from .run import ingest

        return ingest(db, model, **options)


sys.modules[__name__].__class__ = _Callable
