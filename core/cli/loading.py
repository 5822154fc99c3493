"""From `-A module:app` (or `-A path/to/file.py:app`) to the app."""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType

from thalweg.app import App
from thalweg.errors import ThalwegError

__all__ = ["BadPath", "load_app"]


class BadPath(Exception):
    """The path names no app. The message says what was tried and what would work."""


def load_app(path: str) -> App:
    """Import the module, with the current directory (or the file's) ahead of what is installed, and find the app in it.

    Without `:app`, the module's only App. Raises BadPath, or ThalwegError if the program declares something wrong.
    """
    where, colon, name = path.rpartition(":") if ":" in path else (path, "", "")
    if not where or (colon and not name):
        raise BadPath(f"-A {path!r}: expected module:app or path/to/file.py:app, such as -A bank:app")
    module = _imported(*_module_name(where, path), path)
    return _find(module, where, name, path)


def _module_name(where: str, path: str) -> tuple[str, Path]:
    """The module's dotted name and the directory that it is imported from."""
    if not (where.endswith(".py") or "/" in where):
        return where, Path.cwd()
    file = Path(where).absolute()
    if file.is_dir() and (file / "__init__.py").is_file():
        file = file / "__init__.py"
    if not file.is_file():
        raise BadPath(f"-A {path!r}: there is no file {where!r}{_near(where)}")
    parts = [] if file.name == "__init__.py" else [file.stem]
    root = file.parent
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    return ".".join(parts), root


def _imported(name: str, root: Path, path: str) -> ModuleType:
    if sys.path[:1] != [str(root)]:
        sys.path.insert(0, str(root))
    try:
        return importlib.import_module(name)
    except ThalwegError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise BadPath(
                f"-A {path!r}: there is no module {error.name!r} in {root} or on PYTHONPATH{_near(name)}"
            ) from error
        raise BadPath(_failed(path, error)) from error
    except ValueError as error:  # such as an empty name
        raise BadPath(f"-A {path!r}: {error}") from error
    except Exception as error:
        raise BadPath(_failed(path, error)) from error


def _failed(path: str, error: Exception) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if len(frames) > 1 else ""
    return f"-A {path!r}: importing it raised {type(error).__name__}: {error}{place}. --debug shows the traceback"


def _near(name: str) -> str:
    """What the user may have meant."""
    here = [file.name for file in sorted(Path.cwd().glob("*.py"))]
    wanted = Path(name).name if name.endswith(".py") else f"{name.rpartition('.')[2]}.py"
    near = difflib.get_close_matches(wanted, here, n=3)
    shown = near or here[:5]
    if not shown:
        return ". Expected -A module:app or -A path/to/file.py:app"
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Files here: {', '.join(shown)}."
    return f". {hint} Expected -A module:app or -A file.py:app"


def _find(module: ModuleType, where: str, name: str, path: str) -> App:
    apps = {key: value for key, value in vars(module).items() if isinstance(value, App)}
    found: object = module
    if not name:
        if len({id(app) for app in apps.values()}) == 1:
            return next(iter(apps.values()))
        raise BadPath(f"-A {path!r}: which app? {_listed(where, apps)}")
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise BadPath(f"-A {path!r}: {where!r} has no {name!r}. {_listed(where, apps)}") from None
    if not isinstance(found, App):
        raise BadPath(f"-A {path!r}: {name!r} is a {type(found).__name__}, not an App. {_listed(where, apps)}")
    return found


def _listed(where: str, apps: dict[str, App]) -> str:
    if not apps:
        return "No App is there; write app = App('name')"
    return f"Apps there: {', '.join(f'-A {where}:{name}' for name in apps)}"
