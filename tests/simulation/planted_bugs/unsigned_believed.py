"""Headers of ours are believed though they are not signed with the app's secret."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.signing import Signer

RULE = "15"


def planted() -> AbstractContextManager[object]:
    return patch.object(Signer, "believed", lambda self, topic, partition, record: record)
