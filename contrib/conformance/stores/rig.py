"""What a property needs of the world around a store: to open it here, and to find its files."""

from __future__ import annotations

from pathlib import Path

from thalweg.contrib.conformance.properties import Unavailable
from thalweg.registry import load_stores
from thalweg.store import Stores
from thalweg.url import Url

__all__ = ["StoreRig"]


class StoreRig:
    """Stores under test. Override what yours do differently."""

    def __init__(self, url: str) -> None:
        self.url = url

    def prepare(self) -> None:
        """Called before each property. May skip or fail it by pytest's means."""

    def open(self) -> Stores:
        return load_stores(self.url)

    def files(self, name: str) -> list[Path]:
        """The files of the store of this name, for properties that damage them.

        By default, all in the folder of the URL that bear the name, or lie in a folder that does.
        """
        folder = Path(Url(self.url).path.removeprefix("/") if Url(self.url).hosts == "" else "")
        if not Url(self.url).path or not folder.is_dir():
            raise Unavailable("this rig does not know the files of a store (StoreRig.files)")
        found = [file for file in folder.rglob("*") if file.is_file() and name in str(file.relative_to(folder))]
        return sorted(file for file in found if file.suffix != ".lock")

    def is_exempt(self, file: Path) -> bool:
        """Whether damage to this one may go unnoticed, as the store's documentation says; then it is left alone."""
        return False
