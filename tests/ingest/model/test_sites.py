from __future__ import annotations

import pytest

from signarium.catalog.errors import SiteError
from signarium.ingest.model.sites import Site, default_sites, parse_sites

BLOCKS = [Site("resid_post", i) for i in range(30)]
SOME = [Site("embed"), *(Site(p, i) for i in range(4) for p in ("k", "v", "resid_post")), Site("final_norm")]


def names(sites: list[Site]) -> list[str]:
    return [site.name for site in sites]


def test_names_go_both_ways() -> None:
    assert Site("resid_post", 12).name == "resid_post.12"
    assert Site("embed").name == "embed"
    for site in SOME:
        assert Site.from_name(site.name) == site


@pytest.mark.parametrize("name", ["resid_post", "embed.0", "resid.3", "k.-1", "k.1.2", "k.", ""])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(SiteError):
        Site.from_name(name)


def test_parse_in_model_order_without_duplicates() -> None:
    assert names(parse_sites("resid_post.3,1; k.0-2;resid_post.1;embed", SOME)) == [
        *("embed", "k.0", "k.1", "resid_post.1", "k.2", "resid_post.3")
    ]
    assert names(parse_sites("v.*", SOME)) == ["v.0", "v.1", "v.2", "v.3"]
    assert names(parse_sites("final_norm", SOME)) == ["final_norm"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("resid.1", "there is embed, k, v"),
        ("resid_post.4", "layers count from 0 to 3"),
        ("resid_post.0-99999999999999", "layers count from 0 to 3"),
        ("resid_post", "write resid_post.* or resid_post.0-3"),
        ("resid_post.", "write resid_post.* or resid_post.0-3"),
        ("resid_post.3-1", "write 1-3"),
        ("resid_post.a", "layers look like"),
        ("resid_post.-1", "layers look like"),
        ("embed.1", "write embed"),
        ("mlp_out.1", "no site mlp_out.1 (because of x): there is embed, k, v"),
        ("mlp_out.*", "no site mlp_out.0: there is"),
        ("", "no sites were asked for"),
        (" ; ", "no sites were asked for"),
    ],
)
def test_parse_refuses_by_name(spec: str, says: str) -> None:
    with pytest.raises(SiteError) as error:
        parse_sites(spec, SOME, {"mlp_out.1": "because of x"})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_default_sites_are_evenly_spaced_and_end_with_the_last() -> None:
    assert [s.layer for s in default_sites(BLOCKS)] == [5, 11, 17, 23, 29]
    assert [s.layer for s in default_sites(BLOCKS[:3])] == [0, 1, 2]
    assert [s.layer for s in default_sites(BLOCKS, 1)] == [29]
