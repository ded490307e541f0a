"""Messages are one line, and name an option as whoever reads them writes it."""

from __future__ import annotations

import pickle

from signarium.catalog.errors import InvalidInput, ModelError, option
from signarium.commands.flags import flag


def test_an_option_is_named_as_its_reader_writes_it() -> None:
    error = InvalidInput(
        f"{option('k', -1)} is not positive",
        f"leave it out, or pass {option('within', 'states')} or {option('every')}",
    )
    assert str(error) == "`k=-1` is not positive: leave it out, or pass `within='states'` or `every`"
    assert error.line(flag) == "-k -1 is not positive: leave it out, or pass --in states or --all"
    assert flag("max_tokens", "5") == "--max-tokens 5"


def test_a_message_inside_another_keeps_its_options() -> None:
    inner = InvalidInput(f"{option('device')} is\nwrong")
    outer = ModelError(f"no model ({inner.what})", "mend it")
    assert str(outer) == "no model (`device` is wrong): mend it"
    assert outer.line(flag) == "no model (--device is wrong): mend it"


def test_an_error_survives_a_pipe() -> None:
    error = pickle.loads(pickle.dumps(InvalidInput(f"{option('k')} is missing", "pass it")))
    assert "`k` is missing" in str(error)
