"""Plugins: modules of the user's that register what signarium lacks, run before a command.

Only what the user names is run, in `--plugin` or `$SIGNARIUM_PLUGINS`; nothing is ever run from a model's folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from .errors import InvalidInput


def load_plugin(name: str | Path) -> ModuleType:
    """Imports a plugin: a Python file, a folder with an `__init__.py`, or the name of an installed module.

    A file or a folder is imported under its own name without its ending. What it registers stays for the process.

    Raises:
        InvalidInput: if there is no such module, or if it cannot be imported.
    """
    path = Path(name).expanduser()
    try:
        return _from_path(path.resolve()) if path.exists() else importlib.import_module(str(name))
    except Exception as error:
        # A module of the user's may fail in any way.
        what = f"the plugin {name} cannot be imported ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        raise InvalidInput(
            what, "name a Python file, a folder with __init__.py or an installed module"
        ) from error


def _from_path(path: Path) -> ModuleType:
    package = path.is_dir()
    file = path / "__init__.py" if package else path
    there = sys.modules.get(path.stem)
    if there is not None:
        if getattr(there, "__file__", None) == str(file):
            return there
        raise ImportError(f"another module is called {path.stem}: rename the plugin")
    found = importlib.util.spec_from_file_location(
        path.stem, file, submodule_search_locations=[str(path)] if package else None
    )
    if found is None or found.loader is None or not file.is_file():
        raise ImportError("not a Python file, nor a folder with __init__.py")
    module = importlib.util.module_from_spec(found)
    sys.modules[path.stem] = module
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module
