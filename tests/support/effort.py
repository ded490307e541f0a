"""How much the tests do: `make test` draws few examples, always the same; `make test-full` draws all, and others each time.

Which of the two is the profile of hypothesis, loaded by `conftest` before any test is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

FAST, FULL = "fast", "full"
_EVERY = 100
"""The examples of a property that names no number, in full."""
_LEAST = 5


def choose(full: bool) -> None:
    """Sets how much is done from here on."""
    # A fixture of a function holds for all examples of a property, and a busy machine is no failure.
    same: dict[str, Any] = {
        "deadline": None,
        "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    }
    settings.register_profile(FULL, max_examples=_EVERY, **same)
    settings.register_profile(FAST, max_examples=_EVERY // 5, derandomize=True, database=None, **same)
    settings.load_profile(FULL if full else FAST)


def is_full() -> bool:
    """Whether everything is done."""
    return settings.get_current_profile_name() == FULL


def examples(n: int) -> int:
    """How many examples of `n` are drawn."""
    return n if is_full() else max(min(n, _LEAST), n * settings().max_examples // _EVERY)


def in_full(*values: Any) -> Any:
    """A parameter of a test that only `make test-full` runs: another one is like it."""
    return pytest.param(*values, marks=pytest.mark.full)


def some(values: Sequence[Any], every: int) -> Sequence[Any]:
    """All values, or with few examples every so-manieth."""
    return values if is_full() else values[::every]
