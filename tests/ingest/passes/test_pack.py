from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from signarium.catalog.errors import ModelError
from signarium.ingest.passes.pack import (
    Brought,
    Packer,
    SiteRows,
    Statistics,
    check_norms,
    empty_rows,
    norms_of,
    pack_bits,
    pack_signs,
)

WIDTHS = (1, 7, 8, 9, 44, 48, 576, 1001)

matrices = st.tuples(st.integers(0, 5), st.integers(1, 70)).flatmap(
    lambda shape: hnp.arrays(
        np.float32,
        shape,
        elements=st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 3e38, -3e38])
        | st.floats(-10, 10, width=32),
    )
)


def normal(n: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


@given(matrices)
def test_codes_are_numpys_packbits_of_the_positive_values(x: Any) -> None:
    expected = np.packbits(x > 0, axis=-1)
    assert np.array_equal(pack_signs(torch.from_numpy(x)).numpy(), expected)
    # What accelerators run, here on the CPU.
    assert np.array_equal(pack_bits(torch.from_numpy(x) > 0).numpy(), expected)


@pytest.mark.parametrize("width", WIDTHS)
def test_states_need_not_lie_row_by_row(width: int) -> None:
    x = normal(width, 6).T
    assert not x.is_contiguous() or width == 1
    expected = np.packbits(x.numpy() > 0, axis=-1)
    assert np.array_equal(pack_signs(x).numpy(), expected)
    assert np.array_equal(pack_bits(x > 0).numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_centre_is_not_rounded_to_the_states_type(dtype: torch.dtype) -> None:
    # 0.9999 would become 1.0 in either half type, and 1 > 1 is false.
    x = torch.tensor([[1.0, 1.0, -1.0, 0.0]], dtype=dtype)
    centre = torch.tensor([0.9999, 1.0001, -1.0001, 0.0])
    assert pack_signs(x, centre).tolist() == [[0b1010_0000]]
    assert pack_bits(x.float() > centre).tolist() == [[0b1010_0000]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype: torch.dtype) -> None:
    x = normal(50, 44).to(dtype)
    assert np.array_equal(pack_signs(x).numpy(), np.packbits(x.float().numpy() > 0, axis=-1))
    # The squares of 576 times 300 are beyond float16, their sum beyond its integers.
    big = torch.full((2, 576), 300.0, dtype=dtype)
    assert norms_of(big).dtype == torch.float32
    assert np.allclose(norms_of(big).numpy(), big[0, 0].item() * 24, rtol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinity_are_refused_by_the_name_of_the_site(bad: float, dtype: torch.dtype) -> None:
    centres = {"embed": {"zero": None}, "k.3": {"zero": None}}
    packer, rows = Packer(torch.device("cpu"), centres), empty_rows(4, {"embed": 5, "k.3": 5}, centres)
    packer.take("embed", normal(4, 5).to(dtype))
    x = normal(4, 5).to(dtype)
    x[2, 3] = bad
    packer.take("k.3", x)
    brought = packer.bring()
    brought.wait()
    with pytest.raises(ModelError, match=r"k\.3 hold NaN or infinity"):
        brought.fill(rows, np.arange(4), None)
    # Where nobody asks for that row it does not matter.
    brought.fill(rows, np.array([3, 0, 1]), np.array([0, 1, 3]))
    assert np.array_equal(
        rows["k.3"].codes["zero"][[3, 0, 1]], np.packbits(x[[0, 1, 3]].float().numpy() > 0, -1)
    )
    with pytest.raises(ModelError, match="mlp_out"):
        check_norms(norms_of(x).numpy(), "mlp_out.1")


def in_parts(x: torch.Tensor, centre: torch.Tensor, device: str, cuts: list[int]) -> SiteRows:
    """Rows of `x` in random order, some at a time, with two batches out at once."""
    centres = {"embed": {"zero": None, "mean": centre}}
    packer, rows = Packer(torch.device(device), centres), empty_rows(len(x), {"embed": x.shape[1]}, centres)
    out: list[tuple[Brought, np.ndarray]] = []
    for part in np.split(np.random.default_rng(0).permutation(len(x)), cuts):
        packer.take("embed", x[part].to(device))
        out.append((packer.bring(), part))
        if len(out) == 2:
            brought, rows_of = out.pop(0)
            brought.wait()
            brought.fill(rows, rows_of, None)
    brought, rows_of = out.pop()
    brought.wait()
    brought.fill(rows, rows_of, None)
    return rows["embed"]


def test_a_packer_puts_batches_where_they_belong() -> None:
    x, centre = normal(20, 19), normal(1, 19, 1)[0]
    rows = in_parts(x, centre, "cpu", [3, 4, 11])
    assert np.array_equal(rows.codes["zero"], np.packbits(x.numpy() > 0, axis=-1))
    assert np.array_equal(rows.codes["mean"], np.packbits(x.numpy() > centre.numpy(), axis=-1))
    assert np.allclose(rows.norms, np.linalg.norm(x.numpy().astype(float), axis=1), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cuts", [(), (1,), (5, 6, 190)])
def test_statistics_are_those_of_the_whole(dtype: torch.dtype, cuts: tuple[int, ...]) -> None:
    # Far from zero, where a sum of squares less the square of the sum would lose everything; some bits constant.
    t = normal(200, 13).to(dtype) * 2 + torch.arange(13, dtype=dtype) * 16
    t[:, 4] = 0.0
    x = t.double().numpy()
    parts = [Statistics.of(part) for part in torch.tensor_split(t, cuts)]
    p = (x > 0).mean(0)
    expected = {
        "p_positive": p,
        "entropy": np.array([-sum(q * np.log2(q) for q in (a, 1 - a) if q > 0) for a in p]),
        "mean": x.mean(0),
        "std": x.std(0),
        "argmax_share": np.bincount(x.argmax(1), minlength=13) / 200,
        "argmin_share": np.bincount(x.argmin(1), minlength=13) / 200,
    }
    for order in permutations(parts):
        merged = order[0]
        for one in order[1:]:
            merged = merged.merge(one)
        columns = merged.columns()
        assert list(columns) == list(expected)
        for name, value in expected.items():
            assert np.allclose(columns[name], value, rtol=1e-12, atol=1e-12), name
        assert (columns["entropy"][[4, 12]] == 0).all() and not np.signbit(columns["entropy"]).any()


@pytest.mark.gpu
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_takes_the_same_signs(width: int, dtype: torch.dtype) -> None:
    x, centre = normal(300, width).to(dtype), normal(1, width, 1)[0]
    assert torch.equal(pack_signs(x.cuda()).cpu(), pack_signs(x))
    assert torch.equal(pack_signs(x.cuda(), centre.cuda()).cpu(), pack_signs(x, centre))
    # Buffers that are used again, and one that must grow.
    rows = in_parts(x, centre, "cuda", [100, 101, 140, 280])
    assert np.array_equal(rows.codes["zero"], pack_signs(x).numpy())
    assert np.array_equal(rows.codes["mean"], pack_signs(x, centre).numpy())
    assert np.allclose(rows.norms, norms_of(x).numpy(), rtol=1e-5)
    ours, theirs = Statistics.of(x).columns(), Statistics.of(x.cuda()).columns()
    for name, value in ours.items():
        assert np.allclose(theirs[name], value, rtol=1e-12, atol=1e-12), name
