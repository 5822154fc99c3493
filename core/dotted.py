"""Dotted paths: how a setting names a whole part (a codec, a partitioner, a transport) by where it is defined."""

from __future__ import annotations

import importlib

from .errors import ConfigurationError

__all__ = ["load"]


def load(path: str, setting: str) -> object:
    """The object that `package.module:name` (or `…:Class.attribute`) names.

    Raises `ConfigurationError` naming `setting`, the path and what is missing.
    """
    module_name, colon, name = path.partition(":")
    if not (colon and module_name and name):
        raise ConfigurationError(f"{setting}={path!r} is not a dotted path; expected 'package.module:name'")
    try:
        found: object = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigurationError(f"{setting}={path!r}: cannot import {module_name!r}: {error}") from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigurationError(f"{setting}={path!r}: {module_name!r} has no {name!r}") from None
    return found
