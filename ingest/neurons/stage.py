"""The stage `neurons`: what every FFN neuron writes and every row of the unembedding reads, as codes and in words.

Jobs: `neurons` and `unembedding` store codes, `words` the tokens that each neuron's direction names.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ...catalog import bulk, schema
from ...catalog.codes import Codes, n_bytes, pack
from ...catalog.errors import InvalidInput, ModelError, SiteError
from ...catalog.ids import int_id, neuron_item, short_id
from .. import size as sizes
from ..job import Context, Done, Watch
from ..journal import RunSpec, SetSpec, Units, Write, finished
from ..model.loaded import LoadedModel
from ..model.sites import Site
from ..size import Size, Step
from ..text.vocabulary import write_tokens
from ..words import directions as words

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ..progress import Progress

STREAM = Site("residual")
"""The residual stream at no particular block: where every neuron writes, and one code set holds them all."""
JOBS = ("neurons", "unembedding", "words")
_CHUNK = 1 << 15
"""Rows of the unembedding whose floats are looked at together."""


def writing_blocks(model: LoadedModel) -> list[int]:
    """The blocks whose FFN ends in one linear map, whose columns are what its neurons write."""
    found = []
    for layer in range(model.n_layers):
        try:
            model.ffn_directions(layer)
        except SiteError:
            continue
        found.append(layer)
    return found


def codes_of(directions: torch.Tensor) -> tuple[Codes, NDArray[np.float32]]:
    """Codes (n, bytes) and Euclidean norms float32 (n,) of directions [n, width]."""
    x = directions.float().cpu()
    return pack(x.numpy()), torch.linalg.vector_norm(x.double(), dim=1).float().numpy()


class NeuronStage:
    """Everything that is known before a row is written.

    Raises:
        InvalidInput: if no block has a single last FFN map, and the stage was asked for.
    """

    name: ClassVar[str] = "neurons"
    needs: ClassVar[tuple[str, ...]] = ()
    watch: Watch | None = None
    seed: ClassVar[int] = 0

    def __init__(self, context: Context) -> None:
        self.context = context
        self.path, self.model, self.known = context.path, context.model, context.known
        model, known = context.model, context.known
        self.notes: list[str] = []
        self.blocks = writing_blocks(model)
        self.counts = [len(model.ffn_directions(one)) for one in self.blocks]
        if not self.blocks:
            what = f"no block of {known.name} has a single linear map at the end of its FFN, so it has no neurons"
            if context.asked:
                raise InvalidInput(what, "leave neurons and writers out of --stages")
            self.notes.append(f"{what}: none were stored")
        elif len(self.blocks) < model.n_layers:
            lacking = model.n_layers - len(self.blocks)
            self.notes.append(
                f"{lacking} of {model.n_layers} blocks have no single last FFN map: no neurons of them"
            )
        self.todo = self._todo()
        self.size = self._size()

    def _run_id(self, job: str) -> str:
        key = {"words": [words.TOP, self.seed]}.get(job, [])
        return short_id("run", self.known.model_id, job, key)

    def _todo(self) -> list[str]:
        """The jobs that are not finished."""
        jobs = [one for one in JOBS if self.model.causal or one == "neurons"] if self.blocks else []
        there = finished(self.path, [self._run_id(one) for one in jobs])
        return [one for one in jobs if self._run_id(one) not in there]

    def _size(self) -> Size:
        """Codes, their indexes, and words."""
        width, n = self.model.width, sum(self.counts)
        counts = {"neurons": n, "unembedding": self.model.vocab_size}
        rows = sum(counts.get(one, 0) for one in self.todo)
        stored = rows * (n_bytes(width) + sizes.CODE_BYTES)
        if "words" in self.todo:
            stored += int(n * 4 * min(words.TOP, self.model.vocab_size) * sizes.WORD_BYTES)
        seconds = {"words": sizes.WORD_SECONDS * n * self.model.vocab_size * width}
        steps = tuple(Step(one, seconds.get(one, 1.0)) for one in self.todo)
        return Size(rows=rows, catalogue_bytes=stored, index_bytes=rows * n_bytes(width), steps=steps)

    # ---- running ----

    def run(self, progress: Progress) -> Done:
        """Do all that is missing."""
        done = Done(notes=self.notes)
        for job in self.todo:
            try:
                vocabulary = words.Vocabulary(self.model) if job != "neurons" else None
            except ModelError as error:
                self.notes.append(f"nothing was read in words: {error.what}")
                break
            self._job(job, vocabulary, progress)
            done.changed = True
            done.runs.append(self._run_id(job))
        return done

    def _job(self, job: str, vocabulary: words.Vocabulary | None, progress: Progress) -> None:
        run_id, width = self._run_id(job), self.model.width
        sites = {"unembedding": Site("final_norm")}
        subject = {"neurons": "neuron", "words": ""}.get(job, job)
        site = sites.get(job, STREAM)
        own = SetSpec(
            int_id("code_set", run_id, site.name, subject, "zero", "standard"),
            site,
            f"{self.known.model_id}/{site.name}",
            subject,
            "zero",
            width,
        )
        sets = (own,) if subject else ()
        params = {
            "neurons": {"blocks": len(self.blocks), "neurons": sum(self.counts)},
            "unembedding": {"rows": self.model.vocab_size},
            "words": {"top": words.TOP, "seed": self.seed},
        }[job]
        spec = RunSpec(run_id, job, params, sets)
        compute: Callable[[int], Write]
        if job == "neurons":
            sizes = self.counts
            compute = partial(self._codes, own)
        elif vocabulary is not None and job == "unembedding":
            sizes = [
                min(_CHUNK, self.model.vocab_size - one) for one in range(0, self.model.vocab_size, _CHUNK)
            ]
            compute = partial(self._rows, own, vocabulary.unembedding)
        else:
            assert vocabulary is not None
            # The last unit measures the overlap on a sample of all blocks; it stores no neuron.
            sizes = [*self.counts, 0]
            compute = partial(self._words, run_id, vocabulary)
        unit = "rows" if job == "unembedding" else "neurons"
        self.context.run_units(Units(spec, compute, len(sizes), unit, sizes), progress)

    def _codes(self, own: SetSpec, i: int) -> Write:
        codes, norms = codes_of(self.model.ffn_directions(self.blocks[i]))
        items = neuron_item(self.blocks[i], 0) + np.arange(len(codes), dtype=np.int64)
        part = bulk.code_columns(own.code_set_id, items, norms, codes)
        strings = self.model.token_strings() if i == 0 and not self.known.tokenizer_known else None

        def write(session: Session) -> None:
            if strings is not None:
                write_tokens(session, self.model.tokenizer_sha256, strings)
            bulk.insert_codes(session, [part])

        return write

    def _rows(self, own: SetSpec, head: torch.Tensor, i: int) -> Write:
        codes, norms = codes_of(head[i * _CHUNK : (i + 1) * _CHUNK])
        items = i * _CHUNK + np.arange(len(codes), dtype=np.int64)
        part = bulk.code_columns(own.code_set_id, items, norms, codes)
        return lambda session: bulk.insert_codes(session, [part])

    def _words(self, run_id: str, vocabulary: words.Vocabulary, i: int) -> Write:
        if i == len(self.blocks):
            figures = self._overlap(vocabulary)
            return lambda session: bulk.insert_figures(session, run_id, figures)
        directions = self.model.ffn_directions(self.blocks[i]).float()
        found = vocabulary.sources(directions)
        items = neuron_item(self.blocks[i], 0) + np.arange(len(directions), dtype=np.int64)
        columns = words.rows(run_id, self._site_id, "neuron", items, found)
        return lambda session: bulk.insert(session, schema.projection_row, columns)

    def _overlap(self, vocabulary: words.Vocabulary) -> list[bulk.Figure]:
        chosen = words.evenly(words.SAMPLE, self.counts)
        directions = torch.cat(
            [
                self.model.ffn_directions(layer)[torch.from_numpy(some)].float().cpu()
                for layer, some in zip(self.blocks, chosen, strict=True)
            ]
        )
        return words.overlap_figures(vocabulary, directions, self._site_id, "neuron", "", self.seed)

    @property
    def _site_id(self) -> str:
        return f"{self.known.model_id}/{STREAM.name}"
