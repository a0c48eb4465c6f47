"""The descriptors 0 to 2 of the process: open at its start, and an output that has failed."""

import os
import sys

_STANDARD = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def open_standard_descriptors() -> None:
    """Open /dev/null as what is closed of the descriptors 0 to 2, before any file becomes one.

    A server whose event loop is descriptor 2 would end in an abort, and a log whose data file is
    would be written into the data.
    """
    for number, (name, mode) in enumerate(_STANDARD):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
            stream = os.fdopen(number, mode, encoding="utf-8", closefd=False)
            setattr(sys, name, stream)


def discard_output() -> None:
    """Let what is still to be written to standard output go nowhere: it is closed, or full."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
