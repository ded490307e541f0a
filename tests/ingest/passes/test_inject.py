"""The rest of a pass from a changed state, and what its logits say."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from signarium.catalog.errors import SiteError
from signarium.ingest.model.loaded import LoadedModel
from signarium.ingest.model.probe import first_tensor
from signarium.ingest.model.sites import Site
from signarium.ingest.passes import inject

CAUSAL = [one for one in tiny.ARCHITECTURES if one != "bert"]
IDS = torch.randint(4, tiny.N_TOKENS, (3, 12), generator=torch.Generator().manual_seed(0))


def forwards(model: LoadedModel) -> list[bool]:
    return ["forward" in module.__dict__ for module in model.module.modules()]


def hooked(model: LoadedModel, site: Site, h: Tensor) -> Tensor:
    """A whole pass whose block's output a hook replaces."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        return inject._with_first(output, h.reshape(first_tensor(output).shape))  # type: ignore[union-attr]

    module = model.layout.taps[site].module
    assert module is not None
    handle = module.register_forward_hook(hook)
    try:
        return inject._run(model, IDS)
    finally:
        handle.remove()


@pytest.mark.parametrize("architecture", CAUSAL)
def test_the_rest_of_a_pass_is_that_of_the_whole_one(architecture: str) -> None:
    model = tiny.loaded(architecture)
    before = forwards(model)
    sites = [Site("resid_post", i) for i in range(model.n_layers)]
    shown = tiny.capture(model, IDS, sites)
    recorded = inject.record(model, IDS, sites)
    for site in sites:
        h = recorded.states[site]
        assert torch.equal(h, shown[site])
        assert torch.equal(inject.rest(model, recorded, site, h), recorded.last)
        changed = h + torch.randn(h.shape, generator=torch.Generator().manual_seed(1))
        found = inject.rest(model, recorded, site, changed)
        assert torch.equal(found, hooked(model, site, changed))
        assert not torch.allclose(found, recorded.last, atol=1e-3)
    inject.check(model, IDS[:1], sites)
    assert forwards(model) == before
    assert torch.equal(inject._run(model, IDS), recorded.last)


def test_only_later_blocks_run_and_all_is_put_back_after_an_error() -> None:
    model = tiny.loaded("llama")
    ran: list[int] = []
    blocks = inject._blocks(model)
    recorded = inject.record(model, IDS, [Site("resid_post", 1)])
    handles = [
        block.get_submodule("mlp").register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, block in enumerate(blocks)
    ]
    own = blocks[0].forward
    blocks[0].forward = own
    try:
        h = recorded.states[Site("resid_post", 1)]
        inject.rest(model, recorded, Site("resid_post", 1), h)
        assert ran == [2, 3]
        with pytest.raises(RuntimeError):
            inject.rest(model, recorded, Site("resid_post", 1), h[..., :5])
        assert blocks[0].__dict__["forward"] is own
        assert "forward" not in blocks[1].__dict__
    finally:
        del blocks[0].forward
        for handle in handles:
            handle.remove()


def test_a_model_that_reads_more_than_the_residual_stream_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.loaded("llama")
    blocks = inject._blocks(model)
    kept: dict[str, Tensor] = {}
    own = blocks[3].forward
    with inject.hooks() as handles:
        handles.append(blocks[0].get_submodule("mlp").register_forward_hook(lambda *a: kept.update(x=a[2])))

        def later(hidden: Tensor, **options: Any) -> Any:
            return own(hidden + kept.pop("x"), **options)

        monkeypatch.setitem(blocks[3].__dict__, "forward", later)
        with pytest.raises(SiteError, match=r"after resid_post\.1 needs more than its residual stream"):
            inject.check(model, IDS, [Site("resid_post", 1)])


def test_logit_changes_and_divergence_are_those_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inject, "_LOGITS", 7 * 50)
    made = torch.Generator().manual_seed(0)
    rows, bias = torch.randn(50, 8, generator=made), torch.randn(50, generator=made)
    clean = torch.randn(20, 8, generator=made)
    changed = clean + torch.randn(20, 8, generator=made)
    own, other = torch.tensor([3, 4, 9]), torch.tensor([1, 7])
    readout = inject.Readout(rows, bias, own, other, clean)
    found = readout(changed)
    before, after = (one.double() @ rows.double().T + bias for one in (clean, changed))
    for mine, ids in ((found.own, own), (found.other, other)):
        assert torch.allclose(mine, (after - before)[:, ids].mean(1), atol=1e-5)
    p, q = before.log_softmax(1), after.log_softmax(1)
    assert torch.allclose(found.kl, (p.exp() * (p - q)).sum(1), atol=1e-5)
    same = readout(clean)
    assert not same.kl.any() and not same.own.any() and not same.other.any()
