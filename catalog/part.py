"""The socket of the catalogue: what a method keeps there, and how that is shown, checked and judged.

A method has one file in `parts/` with one `Part`: its tables, its views, the published claims that its figures stand
for, and the words for its metrics and controls. Nothing here imports SQLAlchemy: commands that only read need views and
claims, and start without it. `schema.py` makes SQLAlchemy's tables for those that write. Most classes are named tuples:
each is made at every start, and a dataclass takes four times as long to make.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

# ---- tables ---------------------------------------------------------------------------------------

VARCHAR, INTEGER, BIGINT, DOUBLE = "VARCHAR", "INTEGER", "BIGINT", "DOUBLE"
REAL, BLOB, BOOLEAN, TIMESTAMP = "REAL", "BLOB", "BOOLEAN", "TIMESTAMP"
KINDS = (VARCHAR, INTEGER, BIGINT, DOUBLE, REAL, BLOB, BOOLEAN, TIMESTAMP)
"""Types of columns, as DuckDB names them. INTEGER has 32 bits, BIGINT 64; REAL is float32, DOUBLE float64."""


class Reference(NamedTuple):
    """A column whose values stand in another table. `check` is what `db verify` calls rows for which they do not."""

    table: str
    check: str = ""


def ref(table: str, check: str = "") -> Reference:
    """A reference to `table`: to its column of the same name, else to its key. `db verify` checks it."""
    return Reference(table, check)


class Column(NamedTuple):
    """One column. `kind` is one of `KINDS`, or empty where the column has the type of what it refers to."""

    name: str
    kind: str
    optional: bool = False
    reference: Reference | None = None


class Table(NamedTuple):
    """A table of a method: its columns, its key, and what `db verify` calls its rows.

    `primary`: columns of a primary key, which DuckDB enforces: for small tables. `key`: columns that name one row of
    a bulk table, which has no key to maintain; `db verify` looks for doubled rows. `changing`: columns that are written
    again later, which no digest covers. `group`: rows with one value of the first and about a thousand side by side of
    the second have one digest (`digests.py`); if it is empty, those of a run, or of the first column.
    """

    name: str
    about: str
    rows: str
    row: str
    columns: tuple[Column, ...]
    primary: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    changing: tuple[str, ...] = ()
    group: tuple[str, ...] = ()

    def column(self, name: str) -> Column | None:
        """The column called `name`, or None."""
        return next((column for column in self.columns if column.name == name), None)


def table(
    name: str,
    about: str,
    rows: str,
    row: str = "",
    /,
    *,
    key: str = "",
    primary: str = "",
    optional: str = "",
    changing: str = "",
    group: str = "",
    **columns: str | Reference,
) -> Table:
    """A table: `table("flip_row", "...", "flips", "flip", run_id=ref("run"), dose=DOUBLE, key="run_id, dose")`.

    Args:
        about: what one row is.
        rows: what messages call its rows; `row` is one of them, for tables that others refer to.
        key, primary, optional, changing: names of columns, separated by commas; optional ones may be NULL.
        group: an owner and an id, for tables whose rows are read again a few at a time.

    Raises:
        ValueError: if a list names a column that is not there, or a column's type is none of `KINDS`.
    """
    given = {"primary": primary, "key": key, "changing": changing, "group": group, "optional": optional}
    lists = {what: _names(text) for what, text in given.items()}
    for what, names in lists.items():
        if unknown := [one for one in names if one not in columns]:
            raise ValueError(f"{name}: {what} names {', '.join(unknown)}, which is not among its columns")
    made = []
    for column, kind in columns.items():
        reference = kind if isinstance(kind, Reference) else None
        written = "" if isinstance(kind, Reference) else kind
        if written not in ("", *KINDS):
            raise ValueError(f"{name}.{column}: {written!r} is no type; use one of {', '.join(KINDS)}")
        made.append(Column(column, written, column in lists["optional"], reference))
    del lists["optional"]
    return Table(name, about, rows, row or rows, tuple(made), **lists)


def _names(text: str) -> tuple[str, ...]:
    return tuple(one.strip() for one in text.split(",") if one.strip())


# ---- views and macros -----------------------------------------------------------------------------


class View(NamedTuple):
    """A view, part of the SQL surface that stays: what its rows are, its columns with their meaning, and its query.

    `order`: by which columns a list of its rows is sorted. `shown`: the columns of it that a terminal shows; empty: all.
    A view with `order` can be listed by its name. `total`: SQL that counts its rows for less than the view costs.
    `after`: behind which view it stands in the reference and in `db info`; empty: behind those of its part.
    """

    name: str
    about: str
    columns: Mapping[str, str]
    query: str
    order: str = ""
    shown: tuple[str, ...] = ()
    total: str = ""
    after: str = ""


class Macro(NamedTuple):
    """A scalar macro: its signature, what it gives, and its expression."""

    name: str
    arguments: tuple[str, ...]
    about: str
    expression: str


# ---- claims ---------------------------------------------------------------------------------------

BAG_OF_DIMS = "Bag of Dims (arXiv 2606.12629)"
POLYMORPHISM = "Polymorphism Is Rotation (arXiv 2605.24577)"


class Control(NamedTuple):
    """A figure that a claim stands beside, and what it must do for the claim to survive.

    `rule`: `above` or `below` (the claim's figure lies there, by more than chance), `reaches` (this figure is still at
    least `bound`), `stays` (it is at most `bound`), `near` (it is at most `bound` away), `within` (at most that share of
    itself away). `control` is a pattern of `measurements.control`; `random weights` is the claim's own figure in the
    random-weight twin. Empty metric, split: the claim's own.
    """

    name: str
    control: str
    rule: str
    metric: str = ""
    split: str = ""
    bound: float = 0.0


class Claim(NamedTuple):
    """What was published, and where to find the same figure here.

    `point`: at which sites, `*` for any; for `resid_post` the one that the layer sweep chose, else the mean over all.
    `centres` are the `subject_id` of the measurements; `*` for figures of a pair of models, whose `subject_id` is the
    name of the other.
    """

    claim_id: str
    where: str
    claim: str
    published: str
    subject: str
    metric: str
    split: str
    controls: tuple[Control, ...]
    point: str = "resid_post"
    centres: tuple[str, ...] = ("zero", "mean")
    source: str = BAG_OF_DIMS
    everywhere: bool = False
    """The mean over all sites, not the one that the layer sweep chose."""
    bound: float | None = None
    """The weakest published figure: ours must reach it, or stay below it where `small`."""
    small: bool = False
    """A smaller figure is the stronger one."""
    paired: bool = True
    """The standard errors of its controls are those of their difference to the figure, over the same things measured."""

    @property
    def judged(self) -> tuple[Control, ...]:
        """The published range as a control of its own, and the others."""
        if self.bound is None:
            return self.controls
        rule = "stays" if self.small else "reaches"
        return (Control("the published range", "none", rule, bound=self.bound), *self.controls)


def rotated(rule: str = "above", metric: str = "", split: str = "") -> Control:
    """The same figure in Haar-rotated bases."""
    return Control("rotated basis", "haar:%", rule, metric, split)


def scaled(rule: str = "above") -> Control:
    """The same in rotated bases, after giving every dimension one variance."""
    return Control("rotated, dimensions of one variance", "scaled:%", rule)


def random_weights(rule: str = "above") -> Control:
    """The same in a model of the same shape with random weights."""
    return Control("random weights", "random weights", rule)


# ---- the part -------------------------------------------------------------------------------------


class Word(NamedTuple):
    """What people call a metric or a control: a name for a heading, and a sentence for a legend."""

    name: str
    about: str = ""


@dataclass(frozen=True, eq=False)
class Part:
    """What one method keeps in the catalogue.

    `words` has an entry for each metric and control that a page shows, by its name in `measurements` (draws such as
    `haar:7` under `haar`), in the order in which pages show them.
    """

    name: str
    tables: tuple[Table, ...] = ()
    views: tuple[View, ...] = ()
    macros: tuple[Macro, ...] = ()
    claims: tuple[Claim, ...] = ()
    words: Mapping[str, Word] = field(default_factory=dict)
