"""Sites: the named points of a model, and what a request for them may say.

Where they are in a module tree is found by `layout`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...catalog.errors import SiteError

BLOCK_POINTS = ("k", "v", "attn_out", "resid_mid", "ffn", "mlp_out", "resid_post")
"""Points that every block has one of, in the order in which a pass reaches them."""
POINTS = ("embed", *BLOCK_POINTS, "final_norm")


@dataclass(frozen=True)
class Site:
    """A named point of a model; `layer` counts from 0 and is None for `embed` and `final_norm`."""

    point: str
    layer: int | None = None

    @property
    def name(self) -> str:
        """`resid_post.12`, `embed`."""
        return self.point if self.layer is None else f"{self.point}.{self.layer}"

    @classmethod
    def from_name(cls, name: str) -> Site:
        """The site called `name`.

        Raises:
            SiteError: if `name` is no site's name.
        """
        point, dot, layer = name.partition(".")
        if point not in POINTS or bool(dot) != (point in BLOCK_POINTS) or (dot and not layer.isdecimal()):
            raise SiteError(f"{name!r} is no site", "sites look like resid_post.12 or embed")
        return cls(point, int(layer) if dot else None)

    def __str__(self) -> str:
        return self.name


def parse_sites(spec: str, available: Sequence[Site], notes: Mapping[str, str] | None = None) -> list[Site]:
    """The sites that `spec` asks for, in model order, each once.

    `spec` is items separated by `;`: `embed`, `final_norm`, or a point and its layers: `resid_post.8,16`,
    `k.0-3`, `ffn.*`. `available` are the sites of the model in model order; `notes` says why a site is not
    among them (by its name).

    Raises:
        SiteError: for an unknown point, a layer out of range, a site that the model lacks, an empty spec.
    """
    wanted: set[Site] = set()
    n_layers = 1 + max((s.layer for s in available if s.layer is not None), default=-1)
    spec = re.sub(r"\s*,\s*", ",", spec)
    for item in (part.strip() for part in re.split(r"[;\s]+", spec) if part.strip()):
        point, dot, layers = item.partition(".")
        if "," in point:
            raise SiteError(f"{item!r} is no site", "separate sites with ; and layers with ,")
        if point not in POINTS:
            raise SiteError(f"no point {point!r} in {item!r}", f"there is {', '.join(POINTS)}")
        if point not in BLOCK_POINTS:
            if dot:
                raise SiteError(f"{point} has no layers ({item!r})", f"write {point}")
            wanted.add(_existing(Site(point), available, notes))
        elif not layers:
            raise SiteError(
                f"{item!r} names no layer", f"write {point}.* or {point}.0-{max(n_layers - 1, 0)}"
            )
        elif layers == "*":
            found = [s for s in available if s.point == point]
            # Asking for every layer of a point is asking for those that are there; none at all is a mistake.
            wanted.update(found or [_existing(Site(point, 0), available, notes)])
        else:
            for layer in _layers(item, layers):
                if layer >= n_layers:
                    raise SiteError(f"no layer {layer} in {item!r}", f"layers count from 0 to {n_layers - 1}")
                wanted.add(_existing(Site(point, layer), available, notes))
    if not wanted:
        raise SiteError("no sites were asked for", "sites look like resid_post.8,16;k.8;ffn.*;embed")
    return [site for site in available if site in wanted]


def _layers(item: str, text: str) -> Iterator[int]:
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise SiteError(f"cannot read {part!r} in {item!r}", "layers look like 8 or 8,16 or 0-3 or *")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise SiteError(f"the range {part} in {item!r} runs backwards", f"write {last}-{first}")
        # Cut before counting: a typo such as 0-99999999999 must fail at its first layer, not fill the memory.
        yield from range(first, last + 1)


def _existing(site: Site, available: Sequence[Site], notes: Mapping[str, str] | None) -> Site:
    if site in available:
        return site
    why = (notes or {}).get(site.name)
    same = [s.name for s in available if s.point == site.point]
    there = same or list(dict.fromkeys(s.point for s in available))
    shown = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
    raise SiteError(f"this model has no site {site.name}" + (f" ({why})" if why else ""), f"there is {shown}")


def default_sites(available: Sequence[Site], n: int = 5) -> list[Site]:
    """Up to `n` evenly spaced `resid_post` sites, the last block's always among them."""
    blocks = [site for site in available if site.point == "resid_post"]
    n = min(n, len(blocks))
    return [blocks[(i + 1) * len(blocks) // n - 1] for i in range(n)]
