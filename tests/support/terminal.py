"""Programs under a terminal of their own."""

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

from tests.support.server import PATIENCE_S


class Terminal:
    """A program under a terminal.

    Attributes:
        shown: what it has written so far.
    """

    def __init__(self, argv, server, directory):
        self._fd, own = pty.openpty()
        self._mode = termios.tcgetattr(own)
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *argv],
            stdin=own,
            stdout=own,
            stderr=own,
            env={
                **os.environ,
                "HOME": str(directory),
                "XDG_CONFIG_HOME": str(directory),
                "KVDCTL_ENDPOINTS": server.url,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "TERM": "xterm",
            },
        )
        os.close(own)
        self.shown = ""

    def send(self, text):
        os.write(self._fd, text.encode())

    def wait_for(self, pattern):
        deadline = time.monotonic() + PATIENCE_S
        while not re.search(pattern, self.shown):
            assert time.monotonic() < deadline, self.shown
            if select.select([self._fd], [], [], 0.1)[0]:
                self.shown += os.read(self._fd, 4096).decode("utf-8", "replace")

    def wait(self):
        """Return the exit status, once it has ended and has left the terminal as it was."""
        status = self._process.wait(PATIENCE_S)
        assert termios.tcgetattr(self._fd) == self._mode
        return status

    def close(self):
        self._process.kill()
        self._process.wait(PATIENCE_S)
        os.close(self._fd)
