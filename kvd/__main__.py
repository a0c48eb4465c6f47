"""The command: arguments to a server, signals to its end, problems to one line and a status.

Exit status: 0 after SIGTERM or SIGINT, 64 for a bad flag, 65 for damaged data, 69 for an address
that is taken, 70 for a bug, 73 for a directory that is locked or cannot be used, 74 for an I/O
error, 78 for a data directory of another format.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

from kvd import __version__
from kvd.config import EXIT_USAGE, Config, ConfigError, Request, help_text, parse
from kvd.server import EXIT_IO, EXIT_UNAVAILABLE, AddressUnavailable, KvdServer
from storage.errors import StorageError

log = logging.getLogger("kvd")

# How soon a waiting thread gets the interpreter. The default of 5 ms would keep the sync thread,
# back from the disk, waiting behind a busy loop for longer than the disk took.
_SWITCH_S = 0.0005


def main(argv: Sequence[str] | None = None) -> int:  # noqa: PLR0911 -- one per status
    """Run the command; return its exit status."""
    try:
        config = parse(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:
        sys.stderr.write(f"kvd: {error}\n")
        return EXIT_USAGE
    if config is Request.HELP:
        sys.stdout.write(help_text())
        return 0
    if isinstance(config, Request):
        sys.stdout.write(f"kvd {__version__}\n")
        return 0
    logging.basicConfig(
        stream=sys.stderr,
        level=config.log_level,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    if config.ignored:
        log.warning("without effect here, ignored: %s", " ".join(config.ignored))
    sys.setswitchinterval(_SWITCH_S)
    os.umask(0o077)
    try:
        with asyncio.Runner(loop_factory=_new_loop()) as runner:
            runner.run(_run(config))
    except AddressUnavailable as error:
        log.critical("%s", error)
        return EXIT_UNAVAILABLE
    except StorageError as error:
        log.critical("%s", error)
        return error.exit_status
    except OSError as error:
        log.critical("%s: %s", config.data_dir, error)
        return EXIT_IO
    return 0


def _new_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the event loop: uvloop where it is installed (the extra `fast`)."""
    try:
        import uvloop  # noqa: PLC0415 -- it need not be there
    except ImportError:
        return asyncio.new_event_loop
    new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return new_loop


async def _run(config: Config) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = KvdServer(config)
    await server.start()
    await stop.wait()
    log.info("stopping")
    await server.stop()


if __name__ == "__main__":
    sys.exit(main())
