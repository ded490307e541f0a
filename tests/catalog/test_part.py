"""The socket of the catalogue: tables that are declared once, and what follows from them."""

from __future__ import annotations

from typing import get_type_hints

import pytest
from sqlalchemy.orm import Mapped

from signarium.catalog import parts, schema
from signarium.catalog.part import BIGINT, KINDS, VARCHAR, ref, table


def test_a_table_is_declared_by_its_columns() -> None:
    made = table(
        "toy_row", "One toy.", "toys", "toy",
        key="run_id, n", optional="note", run_id=ref("run"), n=BIGINT, note=VARCHAR,
    )  # fmt: skip
    assert [one.name for one in made.columns] == ["run_id", "n", "note"]
    assert [one.optional for one in made.columns] == [False, False, True]
    assert made.key == ("run_id", "n") and made.primary == ()
    assert [parts.kind(one) for one in made.columns] == [VARCHAR, BIGINT, VARCHAR]


@pytest.mark.parametrize("wrong", [{"key": "other"}, {"optional": "n, other"}, {"other": "TEXT"}])
def test_a_table_that_contradicts_itself(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="other"):
        table("toy_row", "One toy.", "toys", n=BIGINT, **wrong)


def test_every_reference_leads_somewhere() -> None:
    references = 0
    for one in parts.tables().values():
        for column in one.columns:
            assert parts.kind(column) in KINDS
            if column.reference is not None:
                other, name = parts.target(column)
                assert other.column(name) is not None
                assert other.row != other.rows, f"{other.name} has no name for one row"
                references += 1
    assert references > 30


def test_rows_with_types_are_the_tables_of_the_parts() -> None:
    """The classes say their columns once more, for the type checker."""
    classes = [one for one in vars(schema).values() if isinstance(one, type) and one is not schema.Base]
    mapped = [one for one in classes if issubclass(one, schema.Base)]
    assert len(mapped) == 8
    for one in mapped:
        made = parts.tables()[one.__table__.name]
        hints = {name: kind for name, kind in get_type_hints(one).items() if name in one.__annotations__}
        assert list(hints) == [column.name for column in made.columns]
        for column in made.columns:
            kind = one.__table__.c[column.name].type.python_type
            assert hints[column.name] == Mapped[kind | None if column.optional else kind], column.name
    # Digests are written in bulk.
    assert {one.name for one in parts.tables().values() if one.primary} - {"digest_row"} == {
        one.__table__.name for one in mapped
    }


def test_an_unknown_table() -> None:
    with pytest.raises(AttributeError, match="nothing_row"):
        _ = schema.nothing_row


def test_words() -> None:
    assert parts.word("haar:7", "features").name == "rotated"
    assert parts.word("haar:7", "rotations").name == "random rotations"
    assert parts.word("sae_ev").name == parts.word("sae_ev", "features").name == "explained"
    assert parts.word("nobody_named_it:3").name == "nobody named it"
