"""The one error for a caller's mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Say that the input is wrong: the rule, what was found, and the next step.

    The command line prints the message as one line, without a traceback, and exits with 2.
    """


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint that offers the valid name closest to a wrong one, or an empty string.

    >>> nearest("taget", ["target", "time"])
    ' Did you mean "target"?'
    >>> nearest("zzz", ["target", "time"])
    ''
    """
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f' Did you mean "{close[0]}"?' if close else ""
