"""Windows, their split by documents, and the states of both models at the same tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import prose
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from signarium.catalog.errors import InvalidInput
from signarium.ingest.model.sites import Site
from signarium.ingest.passes.gather import Windows, cut, record, row_starts, split


def windows_of(lengths: list[int], groups: list[int]) -> Windows:
    found = Windows(np.arange(n, dtype=np.int64) for n in lengths)
    found.groups = np.array(groups, np.int64)
    return found


@given(
    st.lists(st.tuples(st.integers(2, 40), st.integers(0, 30)), min_size=1, max_size=60), st.integers(0, 9)
)
def test_parts_share_no_document_and_miss_none(made: list[tuple[int, int]], seed: int) -> None:
    windows = windows_of([n for n, _ in made], [group for _, group in made])
    if len(np.unique(windows.groups)) < 4:
        with pytest.raises(InvalidInput, match="too few to fit"):
            list(split(windows, seed))
        return
    parts = list(split(windows, seed))
    assert sorted(i for part in parts for i in part) == list(range(len(windows)))
    assert all(parts)
    held = [set(windows.groups[part]) for part in parts]
    assert sum(map(len, held)) == len(set.union(*held))
    assert parts == list(split(windows, seed))


def test_parts_have_their_shares() -> None:
    windows = windows_of([11] * 1000, list(range(1000)))
    assert [len(part) for part in split(windows, 0)] == [300, 300, 100, 300]
    assert list(split(windows, 0)) != list(split(windows, 1))


def test_states_are_those_of_each_window_alone(tmp_path: Path) -> None:
    model = tiny.loaded("llama")
    file = prose.written(tmp_path, tiny.TEXT * 8)
    windows = cut(model, [file], 24, None, lambda *_: None)
    sites = [Site("embed"), Site("resid_post", 1), Site("final_norm")]
    starts = row_starts(windows)
    out = {site: torch.full((starts[-1], model.width), torch.nan) for site in sites}
    seen: list[int] = []
    record(model, windows, sites, out, starts, seen.append, batch_tokens=60)
    assert sum(seen) == sum(map(len, windows))
    for i, window in enumerate(windows):
        alone: dict[Site, torch.Tensor] = {}
        model.forward(
            torch.from_numpy(window)[None],  # type: ignore[arg-type]
            None,
            sites,
            lambda site, x, alone=alone: alone.update({site: x[0, 1:].clone()}),
        )
        for site in sites:
            torch.testing.assert_close(
                out[site][starts[i] : starts[i + 1]], alone[site], rtol=1e-4, atol=1e-5
            )


def test_a_limit_and_sources(tmp_path: Path) -> None:
    model = tiny.loaded("llama")
    one = prose.written(tmp_path, "".join(tiny.TEXT.replace("12", str(i)) for i in range(30)))
    every = cut(model, [one], 24, None, lambda *_: None)
    some = cut(model, [one], 24, 50, lambda *_: None)
    assert 50 <= sum(map(len, some)) < 50 + 24
    assert all((a == b).all() for a, b in zip(some, every, strict=False))
    # One source: kept apart by window. Many: by source, however many windows each has.
    assert len(np.unique(every.groups)) == len(every) == len({window.tobytes() for window in every}) > 30
    lines = "\n".join(f'{{"text": "{i} {f"the {i} king saw " * 9}"}}' for i in range(25))
    many = cut(model, [prose.written(tmp_path, lines, "m.jsonl")], 24, None, lambda *_: None)
    assert len(np.unique(many.groups)) == 25 < len(many)


def test_what_repeats_counts_once(tmp_path: Path) -> None:
    """A text of few lines again and again has few documents, however long it is."""
    model = tiny.loaded("llama")
    lines = [f'{{"text": "the king saw the queen {i % 5}"}}' for i in range(60)]
    windows = cut(model, [prose.written(tmp_path, "\n".join(lines), "r.jsonl")], 24, None, lambda *_: None)
    assert (len(windows), windows.repeats) == (5, 55)
    alike = cut(
        model, [prose.written(tmp_path, "\n".join(lines[:1] * 60), "a.jsonl")], 24, None, lambda *_: None
    )
    with pytest.raises(InvalidInput, match="makes 1 different document,"):
        list(split(alike, 0))


def test_a_text_without_a_second_token(tmp_path: Path) -> None:
    model = tiny.loaded("llama")
    with pytest.raises(InvalidInput, match="no window of two tokens"):
        cut(model, [prose.written(tmp_path, "a" * 0 + "\n")], 24, None, lambda *_: None)
