"""Panics of the tokenizers library, which are no exceptions of Python's and write to the standard error themselves."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ...catalog.errors import ModelError

_stderr = threading.Lock()


@contextmanager
def unbroken(where: str) -> Iterator[None]:
    """Around work of the tokenizers library: a panic of its, which it prints in many lines, is one line of ours.

    Raises:
        ModelError: in place of the panic.
    """
    with _away():
        try:
            yield
        except BaseException as error:
            # The class of a panic stands outside Exception and cannot be imported.
            if type(error).__name__ != "PanicException":
                raise
            what = f"the tokenizer breaks on {where} ({' '.join(str(error).split())})"
            raise ModelError(what, "mend the regular expressions in its tokenizer.json") from None


@contextmanager
def _away() -> Iterator[None]:
    """The standard error of the process goes nowhere: Rust writes to it past Python."""
    with _stderr, tempfile.TemporaryFile() as sink:
        try:
            kept = os.dup(2)
        except OSError:
            # It is closed already.
            yield
            return
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
