"""signarium: a catalogue of what the signs of a transformer's hidden states encode.

>>> import signarium
>>> signarium.ingest("catalogue.duckdb", "HuggingFaceTB/SmolLM2-135M")
>>> c = signarium.open("catalogue.duckdb")
>>> c.sql("SELECT name, width FROM models").to_pylist()
>>> c.nearest('type:" king"', k=5).table
>>> c.features(survives=True).to_pylist()

Every command of the command line is a function or a method here, with the same names and options (`--in` is
`within`). They return Arrow tables or small dataclasses and print nothing. Importing this does not import torch, nor DuckDB.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from typing import TypeAlias

    import pyarrow as pa

    from .catalog.codes import Codes
    from .catalog.verify import Finding
    from .ingest.encode import EncodedText, TextEncoder
    from .ingest.flips.run import FlipReport
    from .ingest.job import Report
    from .ingest.progress import Progress
    from .ingest.rotations.report import AlignReport
    from .ingest.saes.add import SaeReport
    from .ingest.saes.train import TrainReport
    from .queries.features.card import FeatureCard
    from .queries.nearest.answers import Answer
    from .queries.nearest.ask import Neighbours
    from .queries.nearest.asked import Asked
    from .queries.nearest.subject import Target
    from .queries.neurons.lists import NeuronCard
    from .queries.rotations.card import RotationCard
    from .queries.rotations.stored import StoredRotation

    Texts: TypeAlias = str | Path | Sequence[str | Path]

from .catalog.plugins import load_plugin

# Loads the package of the function `ingest` below: a later `import signarium.ingest.run` then leaves the function there.
from .ingest.model.registered import register_model

__all__ = ["Catalogue", "__version__", "ingest", "load_plugin", "open", "register_model"]
__version__ = "0.1.0"


def open(path: str | Path | None = None) -> Catalogue:
    """The catalogue at `path`, else at `$SIGNARIUM_DB`, else at `./catalogue.duckdb`.

    One of an older schema cannot be read; `signarium.Catalogue(path).upgrade()` brings it up.
    """
    from .catalog import store

    found = Catalogue(path).path
    with store.reading(found):
        # A notebook may change its folder between two calls.
        return Catalogue(found.absolute())


def ingest(
    db: str | Path, model: str | Path, *, text: Texts = (),
    name: str | None = None, sites: str | Sequence[str] | None = None,
    stages: str | Sequence[str] | None = None, max_tokens: int | None = None, context: int | None = None,
    device: str = "auto", devices: str | Sequence[str] | None = None, dtype: str = "auto",
    attention: str = "auto", batch_tokens: int | None = None, bos: bool = False, categories: str | Path | None = None,
    seeds: int | None = None, random_init: int | None = None, revision: str | None = None, column: str = "text",
    dry_run: bool = False, progress: Progress | None = None
) -> Report:  # fmt: skip
    """Run `model` over its vocabulary and over `text`, into the catalogue at `db`, made if it is not there.

    The options are those of `signarium ingest --help`. What is in the catalogue already is not done again, and an ingest that
    was cut short is gone on with. Raises a `SignariumError` for anything that the caller can mend.
    """
    from .catalog.place import given
    from .ingest.request import IngestRequest
    from .ingest.run import ingest

    request = IngestRequest(
        str(model), text=text, name=name, sites=sites, stages=stages, max_tokens=max_tokens,
        context=context, device=device, devices=devices, dtype=dtype, attention=attention, batch_tokens=batch_tokens,
        bos=bos, categories=categories, seeds=seeds, random_init=random_init, revision=revision, column=column,
        dry_run=dry_run,
    )  # fmt: skip
    return ingest(given(db), request, progress)


class Catalogue:
    """A catalogue to read. Holds no file open between two calls, so that an ingest can go on beside it.

    Every method may raise one of the subclasses of `signarium.catalog.errors.SignariumError` (`InvalidInput`, `NotFound`,
    `ModelError` ...). Its text is one line that says what is wrong and what to do, naming what there is.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        from .catalog import place, store

        self.path = place.given(path if path is not None else store.default_path())

    def __repr__(self) -> str:
        return f"signarium.open({str(self.path)!r})"

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open that would have to be closed: `with` is for those who expect it."""

    def sql(
        self, query: str, *, allow_files: bool = False, timeout: float = 60.0, memory: int | str = "2GB"
    ) -> pa.Table:
        """The result of one SELECT or EXPLAIN over the views, run in a process of its own, read-only.

        `timeout` is in seconds, `memory` in bytes or text such as "512MB"; `allow_files` lets the query read
        other files. The result may have up to 1 GB. Raises QueryRefused, QueryFailed or QueryLimit.
        """
        from .queries.sql import MAX_BYTES, Limits, sql

        return sql(self.path, query, Limits(allow_files, timeout, memory, max_bytes=MAX_BYTES, check=True))

    def sql_batches(
        self, query: str, *, exact: bool = False, rows: int | None = None, batch_rows: int = 8192,
        allow_files: bool = False, timeout: float = 60.0, memory: int | str = "2GB"
    ) -> AbstractContextManager[pa.RecordBatchReader]:  # fmt: skip
        """As `sql`, a result of any size in batches as they arrive: `with c.sql_batches("...") as reader: for batch in reader: ...`

        Of `rows` the first so many are computed. With `exact`, values of types that Arrow lacks (BIT, HUGEINT ...) come in its
        extension types `arrow.opaque`, without it in the nearest that it has.
        """
        from .queries.sql import Limits, stream

        limits = Limits(allow_files, timeout, memory, rows=rows, check=True)
        return stream(self.path, query, limits, exact=exact, batch_rows=batch_rows)

    def nearest(
        self, query: str, *, within: str | None = None, model: str | None = None,
        across: str | None = None, site: str | None = None, centre: str | None = None, k: int = 10,
        where: str | None = None, position: int | None = None, approximate: bool = False,
        engine: str = "auto", device: str = "auto"
    ) -> Answer:  # fmt: skip
        """The `k` codes nearest to a free text's token, or to a stored item (`type:`, `state:`, `feature:`, `neuron:`,
        `direction:`, `code:`). Only free text loads the model.

        `within` is the command line's `--in`. What is not given is chosen, and `.target` of the answer says how: the only model;
        states if there are any (types for a `type:`); the middle one of its resid_post sites; centre mean for types and
        zero for states. Neurons and the unembedding are at no site: there `site` and `centre` say where the query is looked
        up (`.place`). `where` is a condition over the columns of the view searched. `position` counts from 0, from the end
        of the text if it is negative; without it the last token is searched.

        `across` names another model: the newest rotation that `align` stored between the two carries the query there. A stored
        item is carried by its signs alone, free text by its floats; `.across` says what the rotation is worth.

        Returns:
            `.table` has rank, distance (in bits), a state's context, and the columns of the view searched, in order of
            (distance, item). From a feature, and among features, distance counts the registered dimensions that have
            another sign. Where a neuron is on either side, `polarity` is -1 if its opposite is that near.
        """
        from .queries.nearest.ask import nearest
        from .queries.nearest.asked import Asked

        asked = Asked(
            query=query, within=within, model=model, across=across, site=site, centre=centre, k=k,
            where=where, position=position, approximate=approximate, engine=engine, device=device
        )  # fmt: skip
        return nearest(self.path, asked, self._encoder)

    def search(
        self, queries: Codes, *, within: str | None = None, model: str | None = None,
        site: str | None = None, centre: str | None = None, k: int = 10, where: str | None = None,
        engine: str = "auto"
    ) -> Neighbours:  # fmt: skip
        """The `k` codes nearest to each of `queries`, packed sign codes uint8 (q, bytes), all in one exact search.

        What is searched is chosen as `nearest` does; neurons count in the polarity that they have. Answers are those of the
        index file, checked by its size and a sample; `nearest` also compares each hit with the catalogue.

        Returns:
            `.distances` int32 and `.items` int64, both (q, k'), by (distance, item); `.target` says what was searched.
        """
        from .queries.nearest.ask import search_all
        from .queries.nearest.asked import Options

        options = Options(
            within=within, model=model, site=site, centre=centre, k=k, where=where, engine=engine
        )
        return search_all(self.path, queries, options)

    def features(
        self, *, model: str | None = None, site: str | None = None, kind: str | None = None,
        centre: str | None = None, survives: bool | None = None, sort: str = "auc_held_out",
        limit: int | None = 20
    ) -> pa.Table:  # fmt: skip
        """Rows of the view `features`, the strongest first; `limit` 0 or None gives all."""
        from .queries.features.lists import Listing, list_features

        listing = Listing(
            model=model, site=site, kind=kind, centre=centre, survives=survives, sort=sort, limit=limit
        )
        return list_features(self.path, listing)

    def feature(
        self, feature: int | str, *, model: str | None = None, site: str | None = None,
        centre: str | None = None, flip_run: str | None = None
    ) -> FeatureCard:  # fmt: skip
        """All about one feature, by its id, or by its name if that is its alone at that model, site and centre.

        Of several runs of `flip` the card has the latest, or the one whose id is `flip_run`.
        """
        from .queries.features.card import show

        return show(self.path, str(feature), model=model, site=site, centre=centre, flip_run=flip_run)

    def find(
        self, token: str, *, model: str | None = None, site: str | None = None,
        centre: str | None = None, least: float = 0.8, limit: int | None = 20
    ) -> pa.Table:  # fmt: skip
        """The features that a token alone has (`" king"`, leading space included, or `"id:123"`).

        Columns: rank, agreement, surprise (standard deviations above the mean of all types), and those of the
        view `features`; agreements below `least` are left out.
        """
        from .queries.features.lists import find

        return find(self.path, token, model=model, site=site, centre=centre, least=least, limit=limit)

    def read(
        self, text: str | None = None, *, file: str | Path | None = None, model: str | None = None,
        site: str | None = None, centre: str | None = None, top: int = 3, least: float = 0.8,
        first: bool = False, every: bool = False, context: int = 256, device: str = "auto"
    ) -> pa.Table:  # fmt: skip
        """A text, or that of a file, token by token with the features that each has most; loads the model.

        A row for each of the `top` features of a token: chunk, position, token, is_first, rank, feature_id, name,
        kind, agreement, surprise (standard deviations above what is usual in a text, or for types without one). `first`
        includes a window's first token, `every` features that do not beat their controls or have fewer than 5 dimensions.
        Without `site` it is read at the resid_post site with the most category features that are shown.
        """
        from .queries.features.annotate import Reading, read, text_of

        reading = Reading(
            model=model, site=site, centre=centre, top=top, least=least, first=first, every=every
        )
        text = text_of(text, file)

        def encode(target: Target) -> EncodedText:
            from .ingest.encode import encode_tokens

            at = [(target.site, target.centre)]
            return encode_tokens(self.path, target.model, at, text, context, device)

        return read(self.path, reading, encode)

    def neurons(
        self, *, model: str | None = None, layer: int | None = None, sort: str = "surprise",
        limit: int | None = 20
    ) -> pa.Table:  # fmt: skip
        """The neurons, each with the feature that it writes best, the strongest first; `limit` 0 or None gives all.

        Columns: model, layer, neuron, norm; features, among whose 50 writers it is; best_agreement, best_feature_id,
        best_feature, best_n_dims and polarity of the best; surprise, that agreement in standard deviations of fair coins.
        """
        from .queries.neurons.lists import list_neurons

        return list_neurons(self.path, model=model, layer=layer, sort=sort, limit=limit)

    def neuron(self, neuron: str, *, model: str | None = None) -> NeuronCard:
        """All about one neuron, by block and number in it, both from 0, such as `"12/305"`."""
        from .queries.neurons.lists import show

        return show(self.path, neuron, model=model)

    def flip(
        self, feature: int | str, *, text: Texts, model: str | None = None,
        site: str | None = None, centre: str | None = None, windows: int = 32, context: int = 128,
        seed: int = 0, device: str = "auto", column: str = "text", progress: Progress | None = None
    ) -> FlipReport:  # fmt: skip
        """Flip a feature's signs in the model over a text, beside the controls, into the catalogue; loads the model.

        `text` are paths as for `ingest`; `model`, `site` and `centre` say which feature a name means. Of the text
        `windows` windows of `context` tokens count. `.feature(...)` then has the rows: `.flips`. The same call again does
        nothing, and one that was cut short is gone on with.
        """
        from .catalog import store
        from .queries.features.resolve import find_one

        with store.reading(self.path) as connection:
            one = find_one(connection, str(feature), model, site, centre)
        from .ingest.flips.request import FlipRequest
        from .ingest.flips.run import flip

        request = FlipRequest(one.feature_id, text, windows, context, device, seed, column)
        return flip(self.path, request, progress)

    def align(
        self, model_a: str, model_b: str, *, text: Texts,
        sites: str | None = None, output: str | Path | None = None, max_tokens: int = 65_536,
        context: int = 256, steer: bool | str = True, device: str = "auto", seed: int = 0,
        column: str = "text", progress: Progress | None = None
    ) -> AlignReport:  # fmt: skip
        """Fit and store the rotation from one model to another at each of `sites`, beside its controls; loads both.

        The models are of one width and have one tokenizer. Of `text`, `max_tokens` tokens count, in windows of `context`;
        `sites` is a text such as `resid_post.8,16`. `output` names a file for the matrices (.npy, one a site). Directions are
        tried at the middle site, at the one that `steer` names, or nowhere if it is False. The same call again does nothing,
        and one that was cut short is gone on with.
        """
        from .ingest.rotations.request import AlignRequest
        from .ingest.rotations.run import align

        request = AlignRequest(
            model_a, model_b, text, sites, max_tokens, context, output, steer, device, seed, column
        )
        return align(self.path, request, progress)

    def rotations(self, model: str | None = None, *, run_id: str | None = None) -> pa.Table:
        """The view `rotations` without its matrices, by models and site; of one model on either side if given.

        `run_id` asks for those that one `align` made, which its report names.
        """
        from .queries.rotations.stored import rows

        return rows(self.path, model, run_id)

    def rotation(self, model_a: str, model_b: str, site: str | None = None) -> StoredRotation:
        """The newest rotation from one model to another as numbers: at a site of the first, or at the middle one there is.

        `.matrix` is (width, width) and `.mean_a`, `.mean_b`, `.std_a`, `.std_b` are (width,), all float32, with x_b ~ (x_a -
        mean_a) matrix + mean_b for rows x, which `.states(x)` computes; `.directions(v)` moves no mean. One that is stored the
        other way is turned back, as `.about` then says beside its explained variance and its null.
        """
        from .queries.rotations.stored import rotation

        return rotation(self.path, model_a, model_b, site)

    def rotation_card(self, model_a: str, model_b: str, site: str | None = None) -> RotationCard:
        """All about the newest rotation from one model to another, as tables: what it explains beside its controls, what it
        carries, and what that steers; at a site of the first, or at the middle one there is.
        """
        from .queries.rotations.card import show

        return show(self.path, model_a, model_b, site)

    def train_sae(
        self, model: str, site: str, *, text: Texts, output: str | Path,
        seed: int = 0, expansion: int = 8, steps: int = 1500, l1: float = 1e-3, max_tokens: int = 65_536,
        context: int = 256, device: str = "auto", column: str = "text", progress: Progress | None = None
    ) -> TrainReport:  # fmt: skip
        """Train a sparse autoencoder on a model's states over a text, into the file `output` (.safetensors); loads the model.

        The dictionary has `expansion` directions for each dimension. `.add_sae(...)` then brings it into the catalogue.
        """
        from .ingest.saes.request import SaeTrainRequest, Settings
        from .ingest.saes.train import train_sae

        settings = Settings(expansion, steps, l1, seed)
        request = SaeTrainRequest(
            model, site, text, Path(output), settings, max_tokens, context, device, column
        )
        return train_sae(self.path, request, progress)

    def add_sae(
        self, file: str | Path, *, model: str, site: str, name: str | None = None,
        progress: Progress | None = None
    ) -> SaeReport:  # fmt: skip
        """Bring the dictionary in a file into the catalogue, as one of a model at a site; the file stays where it is.

        Its directions are then searched `within="directions"` and named `direction:NAME/17`; `name` is the file's own unless
        it is given. The same file again does nothing.
        """
        from .ingest.saes.add import add_sae
        from .ingest.saes.request import SaeAddRequest

        return add_sae(self.path, SaeAddRequest(model, site, Path(file), name), progress)

    def saes(self, model: str | None = None) -> pa.Table:
        """The view `saes`, by model, site and name."""
        return self.rows("saes", model)

    def evidence(
        self, model: str | None = None, *, measured: bool = False, claims: Sequence[str] | None = None
    ) -> pa.Table:
        """The view `evidence`, claim by claim: published, here, its control, and whether it survives.

        With `measured`, only the claims that were; with `claims`, those of these ids, such as `["1.1", "3.2"]`.
        """
        from .queries.evidence import rows

        return rows(self.path, model, measured, claims)

    def models(self) -> pa.Table:
        """The view `models`, by name."""
        return self.rows("models")

    def runs(self, model: str | None = None) -> pa.Table:
        """The view `runs`, oldest first."""
        return self.rows("runs", model)

    def sites(self, model: str | None = None) -> pa.Table:
        """The view `sites`, by model, point and layer."""
        return self.rows("sites", model)

    def info(self) -> pa.Table:
        """Sizes and counts."""
        from .queries.models import info

        return info(self.path)

    def verify(self, model: str | None = None) -> list[Finding]:
        """Integrity checks; see `signarium.catalog.verify`. With `model`, a sample of its codes is recomputed: a site counts as
        wrong when more than 5% of its bits differ."""
        from .catalog.verify import verify

        if model is None:
            return verify(self.path)
        from .ingest.recheck import findings
        from .queries.usual import check_model

        check_model(self.path, model)
        return [*verify(self.path), *findings(self.path, model)]

    def index(self) -> list[str]:
        """Build the indexes that are missing, stale or damaged; what could not be done, in words."""
        from .catalog import store
        from .catalog.index import build_all

        with store.reading(self.path):
            pass
        with store.job_lock(self.path):
            return build_all(self.path)

    def remove(self, kind: str, name: str, *, dry_run: bool = False) -> dict[str, int]:
        """Take out a `run` by its run_id or a `model` by its name, with what depends on it: with a run of types the
        features, neurons and figures computed after it, and texts that no other run read. How many rows go, by what they are.
        """
        from .catalog.remove import remove

        return remove(self.path, kind, "run_id" if kind == "run" else "name", name, dry_run)

    def engines(self) -> pa.Table:
        """Which search engine `auto` takes for 1, 64 and 1,024 queries over the largest code set of each width, and why:
        the seconds that each is expected to take, from costs that `make bench` measured, and what keeps the others."""
        from .queries.engines import engines

        return engines(self.path)

    def upgrade(self) -> Path | None:
        """Bring an older catalogue to this schema; the copy that was kept, or None if nothing was to do."""
        from .migrations.manage import upgrade

        return upgrade(self.path)

    def _encoder(self, asked: Asked) -> TextEncoder:
        from .ingest.encode import TextEncoder

        return TextEncoder(self.path, asked.query, asked.position, asked.device)

    def rows(self, view: str, model: str | None = None) -> pa.Table:
        """Every row of a view that has an order, in that; of one model if it is given."""
        from .queries.models import rows

        return rows(self.path, view, model)
