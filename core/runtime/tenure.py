"""What a process knows of its ownership of one journal, however often it opens the task: whether it took over from an
owner that died, or only from itself (a commit failed, a lock was lost and had again).
"""

from __future__ import annotations

from thalweg.journal.records import Fold

__all__ = ["Tenure"]


class Tenure:
    """crashes: of owners in a row. abandoned: the owner before this process did not release the journal.
    noted: agents whose row of suspicion is this process's own.
    """

    def __init__(self) -> None:
        self.crashes = 0
        self.abandoned = False
        self.noted: set[str] = set()
        self._tokens: set[bytes] = set()

    def goes_on(self, fold: Fold, crashes: int) -> None:
        """The journal has been claimed; its rows count so many crashes until then."""
        assert fold.marker is not None
        if fold.taken_from not in self._tokens:
            self.crashes = crashes + 1 if fold.unclean else 0
            self.abandoned = fold.abandoned
            self.noted.clear()
        self._tokens.add(fold.marker.token)
