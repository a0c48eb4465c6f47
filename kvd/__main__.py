"""The command: arguments to a server, signals to its end, problems to one line and a status.

Exit status: 0 after SIGTERM or SIGINT, 64 for a bad flag or setting, 65 for damaged data, 69 for an
address that is taken, 70 for a bug, 73 for a directory that is locked or cannot be used, 74 for an
I/O error, 75 for what the next start corrects (a damaged index; a stop that took longer than 10 s),
78 for a data directory of another format or another program. A second signal ends it at once, which
is safe: it is what kill -9 does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from kvd import descriptors, logs, process
from kvd.config.config import Config
from kvd.config.load import EXIT_USAGE, ConfigError, Printout, parse
from kvd.crash_file import CrashFile
from kvd.failures import EXIT_IO, EXIT_TRY_AGAIN, EXIT_UNAVAILABLE
from kvd.net.fd_limit import raise_limit
from kvd.net.listeners import AddressUnavailable
from kvd.net.self_signed import TlsUnusable
from kvd.net.systemd import BadHandover, Handed, Notifier, take_sockets
from kvd.server import KvdServer
from kvd.storage.errors import Behind, DirectoryLost, StorageError
from kvd.storage.failpoints import Faults
from kvd.storage.failpoints import parse as parse_fault
from kvd.storage.tools.repair import explained

log = logging.getLogger("kvd")

# How soon a waiting thread gets the interpreter. The default of 5 ms would keep the sync thread,
# back from the disk, waiting behind a busy loop for longer than the disk took.
_SWITCH_S = 0.0005
_STOP_S = 10.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main(  # noqa: PLR0911 -- one per status
    argv: Sequence[str] | None = None, make_server: Callable[..., KvdServer] = KvdServer
) -> int:
    """Run the command; return its exit status.

    `make_server` is called on the loop, with the arguments of `KvdServer`: for tests that do more
    to a server than its clients can.
    """
    descriptors.open_standard_descriptors()
    process.prepare_signals()
    try:
        config = parse(sys.argv[1:] if argv is None else argv, os.environ, _read_file)
        if isinstance(config, Printout):
            return _print(config.text)
        faults = _prepare(config)
    except ConfigError as error:
        logs.say(f"kvd: {error}")
        return EXIT_USAGE
    environ, notifier = dict(os.environ), Notifier.take(os.environ)
    try:
        handed = take_sockets(os.environ)
        make = partial(make_server, faults=faults, on_fatal=partial(_end_failed, environ, handed))
        with asyncio.Runner(loop_factory=process.new_loop()) as runner:
            runner.run(_run(config, make, notifier, handed))
    except ConfigError as error:  # only the start could find it
        logs.say(f"kvd: {error}")
        return error.exit_status
    except (AddressUnavailable, BadHandover) as error:
        log.critical("%s", error)
        return EXIT_UNAVAILABLE
    except TlsUnusable as error:
        log.critical("%s", error)
        return error.exit_status
    except StorageError as error:
        log.critical("%s", explained(error, config.data_dir))
        return error.exit_status
    except DirectoryLost as error:
        log.critical("%s; the stop is not marked as a clean one", error)
        return error.exit_status
    except OSError as error:
        log.critical("%s: %s", config.data_dir, error)
        return EXIT_IO
    finally:
        process.prepare_signals()  # the loop that has ended has let go of them
    return 0


def _print(text: str) -> int:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        descriptors.discard_output()
    except OSError as error:
        descriptors.discard_output()
        logs.say(f"kvd: standard output: {error.strerror}")
        return EXIT_IO
    return 0


def _prepare(config: Config) -> Faults:
    """Set up what belongs to the process; return the faults that are to be made.

    Raises:
        ConfigError: a fault cannot be made, or the log cannot be written.
    """
    os.umask(0o077)
    try:
        faults = Faults(map(parse_fault, config.failpoints))
    except ValueError as error:
        raise ConfigError(f"--failpoint: {error}") from None
    try:
        logs.configure(config.log_format, config.log_level, config.log_outputs)
    except OSError as error:
        raise ConfigError(f"--log-outputs: {error.filename}: {error.strerror}") from None
    for warning in config.warnings:
        log.warning("%s", warning)
    if config.failpoints:
        log.warning("failpoints are armed: %s", ", ".join(config.failpoints))
    sys.setswitchinterval(_SWITCH_S)
    process.bound_freed_memory()
    return faults


def _read_file(path: str) -> bytes:
    return Path(path).read_bytes()


async def _run(
    config: Config,
    make_server: Callable[..., KvdServer],
    notifier: Notifier,
    handed: Sequence[Handed],
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)
    process.log_meaningless_signals(loop)
    server = make_server(config, handed, CrashFile().watch, open_files=raise_limit())
    loop.add_signal_handler(signal.SIGHUP, _reload, server, notifier)
    for number in _SIGNALS:
        loop.add_signal_handler(number, _end, stop, server)
    notifier.starting(loop, f"recovering {config.data_dir}")
    try:
        await server.start()
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        log.info("stopped before the log of the replicas was there")
        return
    process.settle_collector()
    notifier.serving(loop, f"serving {', '.join(server.urls)}")
    await stop.wait()
    log.info("stopping")
    notifier.stopping("answering what was asked")
    # The loop may stand still while the index is written out: neither may wait for it.
    for number in _SIGNALS:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
    patience = threading.Timer(_STOP_S, _end_unclean)
    patience.daemon = True
    patience.start()
    await server.stop()
    patience.cancel()


def _end(stop: asyncio.Event, server: KvdServer) -> None:
    stop.set()
    server.interrupt()


def _reload(server: KvdServer, notifier: Notifier) -> None:
    if not server.urls:  # nothing is served yet, and so nothing has been read
        return
    notifier.reloading()
    server.reload()
    notifier.ready(f"serving {', '.join(server.urls)}")


def _end_failed(
    environ: Mapping[str, str], handed: Sequence[Handed], error: BaseException, status: int
) -> None:
    """End the process, or start it again where another start is all that is needed."""
    logging.shutdown()
    if isinstance(error, Behind) and not handed:
        # With the environment that it was started with: a service manager sees the same process.
        with suppress(OSError):
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)  # noqa: S606
    os._exit(status)


def _end_unclean() -> None:
    log.warning("the stop takes longer than %.0f s: ending without a clean mark", _STOP_S)
    logging.shutdown()
    os._exit(EXIT_TRY_AGAIN)


if __name__ == "__main__":
    sys.exit(main())
