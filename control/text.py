"""Text of others on its way to a log or a terminal."""

from __future__ import annotations


def one_line(text: str, *, lines: bool = False) -> str:
    """Control characters escaped: a line stays a line, and a terminal is not steered by what somebody sent.

    With `lines` those that divide it into lines stay.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or (lines and char == "\n") else char.encode("unicode_escape").decode()
        for char in text
    )
