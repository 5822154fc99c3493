"""`sqlite:///file`: a durable broker in one file, shared by all processes of one machine. Standard library only.

The schema is in `schema.py`, and a program without Thalweg can use it with any SQLite library or the `sqlite3` shell:

    INSERT INTO messages (topic, partition, key, value) VALUES ('withdrawals', 0, 'ada', '{"amount": 5}');
    SELECT position, timestamp, key, value, headers FROM messages
     WHERE topic = 'withdrawals' AND partition = 0 AND position > 41 ORDER BY position LIMIT 100;

Timestamps are milliseconds since the epoch. Positions are dense per partition, start at 0 and are never reused. A NULL
value is a tombstone. Headers are NULL or a JSON list of [name, value], where a value that is not UTF-8 is
{"base64": "…"}.
"""

from __future__ import annotations

from .transport import SqliteOptions, SqliteTransport

__all__ = ["SqliteOptions", "SqliteTransport"]
