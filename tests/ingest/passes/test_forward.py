from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from signarium.catalog.errors import InvalidInput, ModelError
from signarium.ingest.model.load import LoadedModel, load_model
from signarium.ingest.passes.forward import batches, begin_pass, default_batch_tokens, one_pass, signs_of
from signarium.ingest.passes.pack import Centres, Packer, empty_rows


@given(st.lists(st.integers(1, 300)), st.integers(1, 1000))
def test_batches_part_the_windows_and_keep_the_bound(lengths: list[int], batch_tokens: int) -> None:
    found = list(batches(lengths, batch_tokens))
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    in_order = [lengths[i] for batch in found for i in batch]
    assert in_order == sorted(lengths, reverse=True)
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= batch_tokens
    # No batch could have taken the next one's first window.
    for one, following in itertools.pairwise(found):
        assert (len(one) + 1) * lengths[one[0]] > batch_tokens and following
    assert found == list(batches(list(lengths), batch_tokens))


def test_batches_of_nothing() -> None:
    assert list(batches([], 10)) == []


def test_default_batches_are_larger_on_an_accelerator() -> None:
    assert default_batch_tokens(torch.device("cpu")) < default_batch_tokens(torch.device("cuda"))


@pytest.fixture(scope="module", params=["llama", "bert"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(tiny.folder(tmp_path_factory.mktemp("model"), request.param)), device="cpu")


def test_rows_land_where_their_windows_start(model: LoadedModel) -> None:
    # llama needs no mask for padding on the right, bert does. Bits may flip where a value is within rounding
    # of zero; with these seeds none is, and a misplaced row would differ in half of its bits.
    draw = np.random.default_rng(3)
    windows = [draw.integers(4, tiny.N_TOKENS, n).astype(np.int32) for n in (17, 3, 9)]
    sites = model.parse_sites("embed;resid_post.0,1;k.1")
    starts = [20, 0, 5]
    centres: Centres = {one.name: {"zero": None} for one in sites}
    together = empty_rows(40, {one.name: model.width_of(one) for one in sites}, centres)
    clock = begin_pass(model, Packer(model.device, centres), windows, starts, sites).settle(together)
    for window, start in zip(windows, starts, strict=True):
        for name, rows in signs_of(model, [window], sites, centres, 100).items():
            n = len(window)
            assert np.array_equal(together[name].codes["zero"][start : start + n], rows.codes["zero"])
            assert np.allclose(together[name].norms[start : start + n], rows.norms, rtol=1e-5)
    assert clock.forward_s > 0 and clock.pack_s > 0


def test_signs_come_in_the_order_of_the_windows(model: LoadedModel) -> None:
    draw = np.random.default_rng(3)
    windows = [draw.integers(4, tiny.N_TOKENS, n).astype(np.int32) for n in (3, 17, 9, 1)]
    sites = model.parse_sites("resid_post.1")
    centres: Centres = {"resid_post.1": {"zero": None}}
    # Batches of one window each, and of all.
    found = [signs_of(model, windows, sites, centres, n)["resid_post.1"] for n in (1, 100)]
    assert np.array_equal(found[0].codes["zero"], found[1].codes["zero"])
    assert np.allclose(found[0].norms, found[1].norms, rtol=1e-5)
    alone = [signs_of(model, [one], sites, centres, 1)["resid_post.1"].norms for one in windows]
    assert np.array_equal(found[0].norms, np.concatenate(alone))


def test_nan_in_a_pass_is_refused_with_the_site_but_not_in_its_padding(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LoadedModel.forward
    where = 5

    def broken(self: LoadedModel, ids: Any, lengths: Any, sites: Any, sink: Any) -> None:
        def spoiled(site: Any, x: torch.Tensor) -> None:
            x = x.clone()
            x[1, where] = float("nan")
            sink(site, x)

        real(self, ids, lengths, sites, spoiled)

    monkeypatch.setattr(LoadedModel, "forward", broken)
    windows = [np.arange(4, 4 + n, dtype=np.int32) for n in (9, 5)]
    sites, centres = model.parse_sites("embed"), {"embed": {"zero": None}}
    assert np.isfinite(signs_of(model, windows, sites, centres, 100)["embed"].norms).all()
    where = 4
    with pytest.raises(ModelError, match="embed hold NaN or infinity"):
        signs_of(model, windows, sites, centres, 100)


def test_no_log_lines_even_with_padding_tokens_in_the_text(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # transformers warns once of a padding token (2 here) at either end of a row without a mask.
    model = load_model(str(tiny.folder(tmp_path, "gpt2")), device="cpu")
    sites = model.parse_sites("resid_post.0")
    signs_of(model, [np.array([2, 7, 2], dtype=np.int32)], sites, {"resid_post.0": {"zero": None}}, 3)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        MemoryError(),
    ],
)
def test_too_little_memory_says_what_to_do(error: Exception) -> None:
    with pytest.raises(ModelError, match=r"2,048 positions .* --batch-tokens"), one_pass(2048):
        raise error


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"), one_pass(1):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(InvalidInput), one_pass(1):
        raise InvalidInput("no")
