"""Settings of an app that its surroundings may give."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Generic, TypeVar, cast

if TYPE_CHECKING:
    from .app import App

__all__ = ["FromEnvironment"]

T = TypeVar("T")


class FromEnvironment(Generic[T]):
    """An attribute of an app: its variable in the environment (`THALWEG_BROKER`) beats what the program says.

    To set it is the command line's word, which beats both.
    """

    def __set_name__(self, owner: type[App], name: str) -> None:
        self._name, self._program = name.upper(), f"_{name}"

    def _variable(self, app: App) -> str:
        return f"{app.env_prefix}_{self._name}"

    def __get__(self, app: App, owner: type[App] | None = None) -> T:
        return cast(T, os.environ.get(self._variable(app)) or getattr(app, self._program))

    def __set__(self, app: App, value: T) -> None:
        os.environ.pop(self._variable(app), None)
        setattr(app, self._program, value)
