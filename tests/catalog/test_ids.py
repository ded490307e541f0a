"""Identifiers: fixed for ever, apart from each other, inside a 64-bit integer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from signarium.catalog.ids import PLACE_BITS, digest, int_id, short_id, text_base

PARTS = st.lists(st.one_of(st.text(), st.integers(), st.none(), st.booleans()), min_size=1, max_size=4)


def test_known_values() -> None:
    # Catalogues out there hold these; a change would make every ingest start anew.
    # `printf '["a", 1]' | sha256sum`
    assert digest("a", 1) == "2657442bb4a48d62f780ea60395ef2d203da2669fa41cdc1f4f080b25ddb1a6a"
    assert short_id("a", 1) == "2657442bb4a48d62"
    assert int_id("a", 1) == 0x2657442BB4A48D62 >> 1
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})


@given(PARTS)
def test_ranges(parts: list[object]) -> None:
    assert digest(*parts).startswith(short_id(*parts))
    assert len(short_id(*parts)) == 16
    assert 0 <= int_id(*parts) < 2**63
    base = text_base(0, *parts)
    assert base % 2**PLACE_BITS == 0
    assert 0 <= base < 2**63 - 2**PLACE_BITS + 1
    assert text_base(1, *parts) != base or digest(0, *parts)[:8] == digest(1, *parts)[:8]


@given(PARTS, PARTS)
def test_by_content(a: list[object], b: list[object]) -> None:
    # As JSON: True and 1 are apart there, though Python finds them equal.
    same = repr(a) == repr(b)
    assert (digest(*a) == digest(*b)) == same
