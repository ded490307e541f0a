"""The SQL surface in a file: the views and macros that users write against, made from the parts."""

from __future__ import annotations

from collections.abc import Callable

from . import parts


def install(execute: Callable[[str], object]) -> None:
    """Define every view and macro through `execute`, in the transaction that the caller holds."""
    for macro in parts.macros():
        execute(f'CREATE OR REPLACE MACRO "{macro.name}"({", ".join(macro.arguments)}) AS {macro.expression}')
    for view in parts.views().values():
        execute(f"CREATE OR REPLACE VIEW {view.name} AS {view.query}")
