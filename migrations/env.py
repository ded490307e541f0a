"""Alembic's environment: the connection comes from `manage.py`, and with it the transaction."""

from __future__ import annotations

from typing import Any

from alembic import context
from sqlalchemy import Table

from signarium.catalog import schema


def include_object(thing: Any, name: str | None, kind: str, reflected: bool, compare_to: Any) -> bool:
    """Leave views out: they are made anew after every migration, from `catalog/parts/`."""
    del name, reflected, compare_to
    return kind != "table" or not (isinstance(thing, Table) and thing.info.get("is_view"))


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata(),
    include_object=include_object,
    compare_type=True,
)
context.run_migrations()
