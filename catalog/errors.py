"""Every error that a user can cause or must act on.

Each class carries its data as attributes and renders as one line: what is wrong, then what to do.
The command line prints that line and exits with 1; anything else that escapes is a defect.

A message names an option with `option`: whoever calls a function reads `within`, whoever types a command `--in`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

_OPTION = re.compile("\ue000([^\ue000-\ue002]*)(?:\ue001([^\ue000-\ue002]*))?\ue002")
"""Characters of the private use area, which no text of ours has, stand around a name and its value."""


def option(name: str, value: object = None) -> str:
    """An option inside a message, by its Python name, with the value that it has or should have.

    `f"leave out {option('where')}"` reads "leave out `where`" in Python and "leave out --where" on the command line;
    `option("within", "types")` reads "`within='types'`" and "--in types".
    """
    return f"\ue000{name}" + ("" if value is None else f"\ue001{value}") + "\ue002"


def in_python(name: str, value: str | None) -> str:
    """An option as Python spells it."""
    if value is None:
        return f"`{name}`"
    # A number, and what stands for a value, such as PATH.
    bare = value.removeprefix("-").replace(".", "", 1).isdecimal() or value.isupper()
    return f"`{name}={value if bare else repr(value)}`"


class SignariumError(Exception):
    """Base of all errors meant for the user. `str(error)` is one line, with options as Python names them.

    `what` and `todo` are its two halves, whose options are still marked, so that they may become part of another message.
    """

    def __init__(self, what: str, todo: str = "") -> None:
        self.what = " ".join(str(what).split())
        self.todo = " ".join(str(todo).split())
        super().__init__(self.line())

    def line(self, spell: Callable[[str, str | None], str] = in_python) -> str:
        """The message, with each option and its value (None: the option alone) as `spell` writes it."""
        text = f"{self.what}: {self.todo}" if self.todo else self.what
        return _OPTION.sub(lambda found: spell(found[1], found[2]), text)


# ---- the catalogue file -------------------------------------------------------------------------


class CatalogueMissing(SignariumError):
    """A command that only reads was pointed at a file that is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"no catalogue at {path}", "make one with `signarium ingest`, or pass --db PATH")


class NotACatalogue(SignariumError):
    """The file is no DuckDB file, is damaged, or holds something else."""

    def __init__(self, path: Path, why: str) -> None:
        self.path = path
        if why.startswith("damaged"):
            super().__init__(f"{path} is {why}", "restore it from a copy, or pass another --db PATH")
        else:
            super().__init__(f"{path} is not a signarium catalogue ({why})", "pass another --db PATH")


class CatalogueTooOld(SignariumError):
    """The file was made by an earlier schema revision."""

    def __init__(self, path: Path, revision: str) -> None:
        self.path, self.revision = path, revision
        super().__init__(
            f"{path} has schema {revision}, older than this signarium",
            f"run `signarium --db {path} db upgrade`",
        )


class CatalogueTooNew(SignariumError):
    """The file was made by a schema revision that this program does not know."""

    def __init__(self, path: Path, revision: str) -> None:
        self.path, self.revision = path, revision
        super().__init__(f"{path} has schema {revision}, newer than this signarium", "upgrade signarium")


class CatalogueAltered(SignariumError):
    """Views of the file are not signarium's, although it says so: whoever wrote them decides what they show."""

    def __init__(self, path: Path, views: Sequence[str]) -> None:
        self.path, self.views = path, list(views)
        some = ", ".join(self.views[:3]) + (", ..." if len(views) > 3 else "")
        super().__init__(
            f"{path} has views that signarium did not write ({some})",
            f"restore them with `signarium --db {path} db upgrade`",
        )


class CatalogueBusy(SignariumError):
    """Another process held the file for longer than we wait."""

    def __init__(self, path: Path, holder: str, waited_s: float) -> None:
        self.path, self.holder, self.waited_s = path, holder, waited_s
        super().__init__(
            f"{path} is held by {holder} (waited {waited_s:.0f} s)",
            "try again, or set SIGNARIUM_WAIT to more seconds",
        )


class HeldHere(CatalogueBusy):
    """This very process has the file open, and not through signarium: waiting would not help."""

    def __init__(self, path: Path) -> None:
        self.path, self.holder, self.waited_s = path, "this process", 0.0
        SignariumError.__init__(
            self,
            f"{path} is open in this process already, by DuckDB or otherwise",
            "close that connection first",
        )


class LeftoverLog(SignariumError):
    """A log of DuckDB beside the file that does not belong to it as it is."""

    def __init__(self, path: Path, log: Path, why: str) -> None:
        self.path, self.log = path, log
        super().__init__(
            f"{log} does not belong to {path} ({why})",
            f"move {log.name} away: without it the catalogue is as it was last saved",
        )


class IngestRunning(SignariumError):
    """Another ingest or upgrade works on the same catalogue."""

    def __init__(self, path: Path, holder: str) -> None:
        self.path, self.holder = path, holder
        super().__init__(
            f"another job works on {path} ({holder})", "wait until it ends, or use another --db PATH"
        )


class DiskFull(SignariumError):
    """The disk cannot hold, or could not hold, what was to be written."""

    def __init__(
        self, path: Path, needed: int | None = None, free: int | None = None, during: bool = False
    ) -> None:
        self.path, self.needed, self.free, self.during = path, needed, free, during
        if during:
            what = f"the disk under {path} filled up; what was committed is kept"
        else:
            what = f"the disk under {path} has {_mb(free)} free and {_mb(needed)} are needed"
        super().__init__(what, "free some space and run the same command again, or choose fewer --sites")


class MigrationFailed(SignariumError):
    """An upgrade failed; the file is as it was."""

    def __init__(self, path: Path, why: str) -> None:
        self.path = path
        super().__init__(
            f"upgrading {path} failed ({why}); the file is as it was", "report this with the file's schema"
        )


class CodesChanged(SignariumError):
    """Codes in the catalogue are not those that were written."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} are not as they were written: the file was damaged or changed",
            "`signarium db verify` says where; restore it from a copy, or remove that run and ingest again",
        )


class IndexDamaged(SignariumError):
    """An index file does not hold the catalogue's codes."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the index of {what} does not hold the catalogue's codes", "run `signarium db index`"
        )


# ---- what was asked for -------------------------------------------------------------------------


class InvalidInput(SignariumError):
    """An argument that cannot be used: names the thing and the way out."""


class NotFound(SignariumError):
    """Something asked for by name is not in the catalogue."""

    def __init__(self, kind: str, name: str, known: Sequence[str] = (), todo: str = "") -> None:
        self.kind, self.name, self.known = kind, name, list(known)
        if known and not todo:
            shown = ", ".join(self.known[:12]) + (", ..." if len(self.known) > 12 else "")
            todo = f"there is {shown}"
        super().__init__(f"no {kind} {name!r} in the catalogue", todo)


class QueryRefused(SignariumError):
    """`sql` was given something other than one SELECT or EXPLAIN."""


class QueryFailed(SignariumError):
    """DuckDB's own message for a query that cannot run, on one line."""


class QueryLimit(SignariumError):
    """A query ran past its deadline or its memory."""


# ---- models and text ----------------------------------------------------------------------------


class ModelError(SignariumError):
    """A model that cannot be loaded or must not be."""


class SiteError(SignariumError):
    """A site that the model does not have, or that failed its check."""


class TextError(SignariumError):
    """A text that cannot be read."""


class RunConflict(SignariumError):
    """The request contradicts what the catalogue holds (names, unfinished runs)."""


def _mb(n: int | None) -> str:
    return "?" if n is None else f"{n / 1e6:,.1f} MB"
