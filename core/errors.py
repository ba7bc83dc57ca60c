"""The one error type that a user is meant to read."""

from __future__ import annotations

__all__ = ["PolyditError"]


class PolyditError(Exception):
    """A failure that the user can act on.

    The message is one line: the file or option, what is wrong, what to do. The command line prints it
    without a stack trace and exits with code 2.
    """
