"""What a certificate says about the thing it certifies: versions, capabilities, limits."""

from __future__ import annotations

import platform
import re
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from typing import Any

import msgspec
from thalweg.channel import Transport
from thalweg.store import Stores

__all__ = ["facts_of", "facts_of_stores", "versions"]


def facts_of(transport: Transport) -> dict[str, Any]:
    """Of a transport that is open."""
    return {
        "description": transport.description,
        "capabilities": sorted(capability.value for capability in transport.capabilities),
        "limits": msgspec.structs.asdict(transport.limits),
        "warnings": list(transport.warnings),
        "versions": versions(type(transport)),
    }


def facts_of_stores(stores: Stores) -> dict[str, Any]:
    return {"description": stores.description, "versions": versions(type(stores))}


@cache
def versions(driver: type) -> dict[str, str]:
    """Of Thalweg, Python, the driver's distribution, and what of its requirements is imported."""
    found = {"python": platform.python_version(), "thalweg": version("thalweg")}
    homes = packages_distributions()
    for owner in homes.get(driver.__module__.partition(".")[0], []) or ["thalweg"]:
        try:
            found[owner] = version(owner)
            needed = {_plain(re.split(r"[^\w.-]", text)[0]) for text in requires(owner) or ()}
        except PackageNotFoundError:
            continue
        for module in _used_by(driver.__module__.rpartition(".")[0] or driver.__module__):
            for home in homes.get(module, []):
                if _plain(home) in needed - _OURS:
                    found[home] = version(home)
    return dict(sorted(found.items()))


def _used_by(package: str) -> set[str]:
    """Top-level modules that what is in this package comes from."""
    modules = [vars(m) for name, m in list(sys.modules.items()) if name == package or name.startswith(package + ".")]
    values = [value for names in modules for value in names.values()]
    return {
        str(getattr(value, "__module__", None) or getattr(value, "__name__", "")).partition(".")[0] for value in values
    }


_OURS = {"cronsim", "msgspec", "pytest", "pytest-asyncio", "rich", "sortedcontainers", "stevedore", "typer",
         "typing-extensions", "pydantic"}  # fmt: skip


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
