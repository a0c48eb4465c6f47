"""The command `kvdctl`."""

import gc
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

_COLLECT_AFTER = 20_000


def run() -> NoReturn:
    """Run kvdctl as a process, and end it.

    A call is over in a tenth of a second, of which the garbage collector during the imports, and
    the interpreter that takes itself apart at the end, would be a fifth (measured).
    """
    gc.set_threshold(_COLLECT_AFTER)
    is_interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_interruptible:  # during the imports Ctrl-C would print where these were
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from kvd.ctl.main import main  # noqa: PLC0415 -- that is what the threshold is for

    status = main(is_interruptible=is_interruptible)
    if is_interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # its errors are reported before
            stream.flush()
    os._exit(status)
