from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from digest import codes, rows
from effort import is_full

import signarium
from signarium.catalog import store
from signarium.catalog.codes import pack
from signarium.catalog.errors import InvalidInput, ModelError, NotFound
from signarium.ingest import encode
from signarium.ingest.encode import encode_state, encode_text, site_mean
from signarium.ingest.recheck import recheck

CONTEXT = 32
SITES = ("embed", "resid_post.1", "k.1")


@pytest.fixture(scope="module", params=["llama", "bert"])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a text of several windows, and the catalogue of one window a batch."""
    folder = tmp_path_factory.mktemp("home")
    model = tiny.folder(folder, request.param, name="model")
    # ASCII: a window that ends inside a character of several tokens has not all of it in its text.
    (folder / "a.txt").write_text("The king saw 12 ships, and the queen saw the cold sea.\n" * 5)
    options: dict[str, Any] = {"sites": ";".join(SITES), "context": CONTEXT, "device": "cpu"}
    signarium.ingest(  # type: ignore[operator]
        folder / "c.duckdb", model, text=[folder / "a.txt"], batch_tokens=CONTEXT, **options
    )
    return folder


def test_free_text_has_the_code_of_the_state_that_it_is(home: Path) -> None:
    # The first window alone, in a batch of the same shape: not a bit may differ.
    path = home / "c.duckdb"
    (text,) = rows(path, "SELECT text FROM documents WHERE chunk = 0")[0]
    special = rows(path, "SELECT architecture = 'bert' FROM models")[0][0]
    positions = (None, 0, 5, CONTEXT - 1, -1, -CONTEXT)
    for i, site in enumerate(SITES):
        for k, centre in enumerate(("zero", "mean")):
            stored = rows(
                path,
                "SELECT code, token FROM states JOIN documents d USING (document_id) WHERE chunk = 0 AND site = ? "
                "AND centre = ? ORDER BY position",
                [site, centre],
            )
            assert len(stored) == CONTEXT
            # With few examples each position once, each site and centre with another.
            for position in positions if is_full() else positions[2 * i + k :][:1]:
                found = encode_text(path, "model", site, centre, text, position, "cpu")
                # Without a position it is the last token of the text, before a [SEP].
                expected = CONTEXT - 1 - special if position is None else position % CONTEXT
                assert found.position == expected
                assert found.n_tokens == CONTEXT
                assert found.token.strip() == stored[expected][1].strip()
                assert found.code.tobytes() == stored[expected][0], (site, centre, position)


def test_floats_of_a_text_are_what_its_code_has_the_signs_of(home: Path) -> None:
    path = home / "c.duckdb"
    (text,) = rows(path, "SELECT text FROM documents WHERE chunk = 0")[0]
    for i, site in enumerate(SITES):
        for position in (None, 0, 5, -1) if is_full() else ((None, 5, -1)[i],):
            state = encode_state(path, "model", site, text, position, "cpu")
            code = encode_text(path, "model", site, "zero", text, position, "cpu")
            assert state.floats.dtype == np.float64 and state.floats.ndim == 1
            assert np.array_equal(pack(state.floats), code.code)
            assert (state.token, state.position, state.n_tokens) == (code.token, code.position, code.n_tokens)
            centred = encode_text(path, "model", site, "mean", text, position, "cpu")
            shift = site_mean(path, "model", site).astype(np.float32)
            assert np.array_equal(pack(state.floats - shift), centred.code)
    with pytest.raises(InvalidInput, match="holds no token"):
        encode_state(path, "model", "embed", "", None, "cpu")
    with pytest.raises(InvalidInput, match="position=99"):
        encode_state(path, "model", "embed", text, 99, "cpu")


@pytest.mark.parametrize("position", [CONTEXT, -CONTEXT - 1, 10_000])
def test_positions_outside_the_text(home: Path, position: int) -> None:
    (text,) = rows(home / "c.duckdb", "SELECT text FROM documents WHERE chunk = 0")[0]
    with pytest.raises(
        InvalidInput, match=rf"position={position}` is outside the text's 32 tokens: pass 0 to 31"
    ):
        encode_text(home / "c.duckdb", "model", "embed", "zero", text, position, "cpu")


def test_texts_that_cannot_be_searched(home: Path) -> None:
    path = home / "c.duckdb"
    with pytest.raises(InvalidInput, match="holds no token"):
        encode_text(path, "model", "embed", "zero", "", None, "cpu")
    with pytest.raises(InvalidInput, match=r"tokens, model takes 128: search a shorter text"):
        encode_text(path, "model", "embed", "zero", "king " * 300, None, "cpu")
    with pytest.raises(NotFound, match="no model 'none'"):
        encode_text(path, "none", "embed", "zero", "king", None, "cpu")
    with pytest.raises(NotFound, match="centre='zero'"):
        encode_text(path, "model", "resid_post.0", "mean", "king", None, "cpu")


def test_the_mean_is_that_of_the_types(home: Path) -> None:
    mean = site_mean(home / "c.duckdb", "model", "k.1")
    found = rows(home / "c.duckdb", "SELECT mean FROM dimensions WHERE site = 'k.1' ORDER BY dim")
    assert mean.dtype == np.float64 and [(one,) for one in mean.tolist()] == found


def test_weights_that_moved_or_changed(tmp_path: Path) -> None:
    path, model = tmp_path / "c.duckdb", tiny.folder(tmp_path, "llama", name="model")
    signarium.ingest(path, model, sites="embed", device="cpu")  # type: ignore[operator]
    model.rename(tmp_path / "away")
    for call in (
        lambda: encode_text(path, "model", "embed", "zero", "king", None, "cpu"),
        lambda: recheck(path, "model"),
    ):
        with pytest.raises(ModelError, match="weights of model are not at hand") as caught:
            call()
        assert "\n" not in str(caught.value) and "put them back where they were" in str(caught.value)
    tiny.folder(tmp_path, "llama", seed=1, name="model")
    with pytest.raises(
        ModelError, match="holds other weights than model was ingested from: put the old ones back"
    ):
        encode_text(path, "model", "embed", "zero", "king", None, "cpu")


def test_recheck_finds_what_was_changed(home: Path, tmp_path: Path) -> None:
    path = home / "c.duckdb"
    n = rows(path, "SELECT vocab_size FROM models")[0][0]
    # Every type: the batch of the ingest, in which one row stands for one token, was CONTEXT tokens; these
    # models are too small for that to matter (their float32 products are summed in the same order).
    found = recheck(path, "model", n=n)
    assert [(one.what, one.codes) for one in found] == [
        (f"types recomputed at {site}", n) for site in sorted(SITES)
    ]
    widths = dict(rows(path, "SELECT site, width FROM sites"))
    assert all(one.bits == n * widths[one.what.split()[-1]] for one in found)
    assert [one.flipped for one in found] == [0, 0, 0]
    # A sample is a sample, the same each time.
    assert [one.codes for one in recheck(path, "model", n=10)] == [10, 10, 10]
    broken = tmp_path / "broken.duckdb"
    broken.write_bytes(path.read_bytes())
    import sqlalchemy

    with store.writing(broken) as session:
        ids = "SELECT code_set_id FROM code_set JOIN site USING (site_id) WHERE name = 'k.1' AND centre = 'zero'"
        session.execute(
            sqlalchemy.text(
                "UPDATE code_row SET code = (~(code::BIT))::BLOB WHERE item % 2 = 0 AND code_set_id IN "
                f"({ids} AND subject = 'type')"
            )
        )
    flipped = {one.what.split()[-1]: one.flipped for one in recheck(broken, "model", n=n)}
    assert flipped == {"embed": 0, "resid_post.1": 0, "k.1": n // 2 * widths["k.1"]}


def test_the_catalogue_is_not_held_while_a_model_loads(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = 0
    real_reading, real_load = store.reading, encode.load_model

    @contextmanager
    def reading(*args: Any) -> Iterator[Any]:
        nonlocal held
        with real_reading(*args) as connection:
            held += 1
            yield connection
            held -= 1

    def load(*args: Any, **kwargs: Any) -> Any:
        assert held == 0
        return real_load(*args, **kwargs)

    monkeypatch.setattr(store, "reading", reading)
    monkeypatch.setattr(encode, "load_model", load)
    recheck(home / "c.duckdb", "model", n=5)
    encode_text(home / "c.duckdb", "model", "embed", "mean", "king", None, "cpu")


def test_a_catalogue_without_types_has_nothing_to_check(tmp_path: Path) -> None:
    model = tiny.folder(tmp_path, "llama")
    (tmp_path / "a.txt").write_text(tiny.TEXT)
    path = tmp_path / "c.duckdb"
    signarium.ingest(  # type: ignore[operator]
        path, model, text=[tmp_path / "a.txt"], stages=["states"], sites="embed", context=32, device="cpu"
    )
    assert recheck(path, "llama-0") == []
    assert codes(path, "states", "embed", "zero")[2].shape[1] == 6
