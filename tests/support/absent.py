"""Says at once that pandas is not installed.

DuckDB looks for pandas six times for every value that it binds to a query, and Python does not remember that a module
is missing: each look walks the whole search path, which is long under pytest. Half of what some tests cost was that.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

_NAME = "pandas"


class _Absent:
    """A finder before all others that knows one name."""

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> None:
        """Raises ModuleNotFoundError where the name is imported; who only asks for its spec is told None, as always."""
        del path, target
        if name == _NAME and sys._getframe(2).f_code.co_name == "_find_and_load_unlocked":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def expect_no_pandas() -> None:
    """Fail fast from here on where pandas is not installed; nothing changes where it is."""
    if importlib.util.find_spec(_NAME) is None:
        sys.meta_path.insert(0, _Absent())
