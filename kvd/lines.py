"""How any text stands in one line: that of a person, a variable, a file or a client.

What does not print is written as an escape: CR and LF, the separators of Unicode, the escapes of a
terminal, marks that turn the direction of text, halves of surrogate pairs. Every line that kvd and
kvdctl write, but for JSON (which escapes by its own rules), goes through `printable`.
"""


def printable(text: str) -> str:
    """Return a text of one line, in which what does not print is written as an escape."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
