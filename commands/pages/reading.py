"""A text token by token, as a terminal shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...catalog.text import quoted_name

if TYPE_CHECKING:
    import pyarrow as pa


def summary(table: pa.Table) -> str:
    """One line that says where the text was read."""
    row = table.slice(0, 1).to_pylist()[0]
    return f"features of {row['model']} at {row['site']}, centre {row['centre']}; agreement behind each"


def display(table: pa.Table) -> pa.Table:
    """One row a token: position, token, and its features with their agreements, for the renderer to cut."""
    import pyarrow as pa

    lines: dict[tuple[int, int], tuple[str, bool, list[str]]] = {}
    for row in table.to_pylist():
        _, _, shown = lines.setdefault((row["chunk"], row["position"]), (row["token"], row["is_first"], []))
        if row["rank"] is not None:
            shown.append(f"{quoted_name(row['name'])} {row['agreement']:.2f}")
    columns: dict[str, Any] = {}
    if any(chunk for chunk, _ in lines):
        columns["chunk"] = [chunk for chunk, _ in lines]
    columns["position"] = [position for _, position in lines]
    columns["token"] = [token for token, _, _ in lines.values()]
    columns["features"] = [
        "  ".join(shown) or ("(first position)" if is_first else "") for _, is_first, shown in lines.values()
    ]
    return pa.table(columns)
