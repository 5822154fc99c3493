"""What a program's code raises though it is no Exception, as `pytest.fail` does."""

from __future__ import annotations

__all__ = ["Escaped", "escaped"]


class Escaped(RuntimeError):
    """It meets the policy like an Exception: else its event would be tried for ever. The cause is what was raised."""


def escaped(error: BaseException) -> Exception:
    """`error`, or what stands for it. Raises those that are to end the process."""
    if isinstance(error, Exception):
        return error
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
    instead = Escaped(f"{type(error).__name__}: {error}")
    instead.__cause__ = error
    return instead
