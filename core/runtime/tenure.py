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
        self._claims: set[bytes] = set()
        self._opened: set[bytes] = set()

    def claims(self, token: bytes) -> None:
        """It is about to write a marker, which may turn out to lie there though the call fails."""
        self._claims.add(token)

    def goes_on(self, fold: Fold, crashes: int) -> None:
        """A claim has succeeded; the journal's rows count so many crashes until then."""
        assert fold.marker is not None
        before = [(token, abandoned) for token, abandoned in fold.past if token not in self._claims - self._opened]
        if not before or before[-1][0] not in self._opened:
            died = any(abandoned for token, abandoned in before if token not in self._opened)
            self.crashes = crashes + 1 if died else 0
            self.abandoned = bool(before) and before[-1][1]
            self.noted.clear()
        self._opened.add(fold.marker.token)
