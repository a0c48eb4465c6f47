"""Texts of settings, files and clients in one line of output.

Characters that do not print are escaped: CR and LF, the separators of Unicode, the escapes of a
terminal, marks that turn the direction of text, halves of surrogate pairs. Every line that kvd and
kvdctl write, but for JSON (which escapes by its own rules), goes through `printable`.
"""


def printable(text: str) -> str:
    """Return a text as one line, with characters that do not print escaped."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
