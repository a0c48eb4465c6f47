"""`edit`: a value in an editor, written back only over what was read.

Each write is tied to the index of the value that the user has seen. If others were faster, both
changes are merged and shown again first; a text with unresolved conflicts is never written.
"""

from __future__ import annotations

import difflib
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic

import click

from kvd.client.errors import CompareFailed, KeyExists, KeyNotFound, KvdError, NotAFile
from kvd.client.model import Node
from kvd.ctl import terminal
from kvd.ctl.command import Call, Verb, keys, pass_call
from kvd.ctl.etcdctl.output import write
from kvd.ctl.failures import CONFLICT, INTERRUPTED, REFUSED, USAGE, Failure, explained, failure
from kvd.ctl.verbs import editors
from kvd.ctl.verbs.merge import has_marks, merge
from kvd.lines import printable

_AT_ONCE_S = 0.5
_NO_WAIT = (
    "kvdctl: the editor ended at once: one with windows needs its flag to wait, such as "
    "--editor 'code --wait' or 'gvim -f'\n"
)
_NO_TEXT = "its value is no text: use get --raw and set --raw"


@click.command(cls=Verb, help="Change a value in an editor.")
@click.argument("key", shell_complete=keys)
@click.option("--create", is_flag=True, help="a new key, if it is not there")
@click.option("--editor", metavar="E", help="instead of $VISUAL, $EDITOR or vi")
@pass_call
def command(call: Call, *, key: str, create: bool, editor: str | None) -> None:
    """Change a value in an editor."""
    seen = _read(call, key)
    if seen is None and not create:
        raise failure(f"{key} is not there; --create makes it", REFUSED)
    command = editors.command_of(editor)
    directory = Path(tempfile.mkdtemp(prefix="kvdctl-"))
    is_kept = True
    edit = _Edit(call, key, seen, editors.file_name(directory, key, seen), command)
    try:
        edit.run()
        is_kept = False
    except _Stopped as stopped:
        is_kept = stopped.is_kept
        kept = f"; kept in {edit.file}" if is_kept else ""
        raise failure(f"{stopped}{kept}", stopped.status) from None
    except KeyboardInterrupt:
        raise Failure(f"kvdctl: interrupted; kept in {edit.file}", INTERRUPTED) from None
    except KvdError as error:
        raise Failure(f"{explained(error).text}; kept in {edit.file}", REFUSED) from error
    except Failure as error:
        raise Failure(f"{error.text}; kept in {edit.file}", error.status) from error
    finally:
        if not is_kept:
            shutil.rmtree(directory, ignore_errors=True)


class _Stopped(Exception):
    """The end of an edit that has written nothing."""

    def __init__(self, message: str, status: int, *, is_kept: bool = True) -> None:
        super().__init__(message)
        self.status = status
        self.is_kept = is_kept


class _Edit:
    """One edit: what was seen last, and the file of the editor.

    Attributes:
        file: the file.
    """

    def __init__(
        self, call: Call, key: str, seen: Node | None, file: Path, editor: list[str]
    ) -> None:
        self.file = file
        self._call = call
        self._key = key
        self._editor = editor
        self._see(seen)

    def _see(self, node: Node | None) -> None:
        """Take note of what is there now; what follows is tied to it."""
        self._seen = node
        self._seen_at = monotonic()

    @property
    def _before(self) -> str:
        return "" if self._seen is None else self._seen.value or ""

    def run(self) -> None:
        """Let the user edit until the text is written, or given up."""
        before = self._before
        self.file.touch(mode=0o600)
        _put(self.file, before)
        began = monotonic()
        text = self._edited(before)
        if text == before and self._seen is not None:
            write("no change\n")
            if monotonic() - began < _AT_ONCE_S and terminal.is_there():
                sys.stderr.write(_NO_WAIT)
            return
        while True:
            text = self._checked(text)
            try:
                index = self._write(text)
            except (CompareFailed, KeyExists, KeyNotFound, NotAFile):
                again = self._merged(text)
                if again is None:
                    return
                text = again
                continue
            write(f"saved at {index}\n")
            return

    def _write(self, text: str) -> int:
        """Write the text over what was seen; return the index."""
        operations, seen = self._call.session.operations, self._seen
        ttl = None
        if seen is not None and seen.ttl is not None:
            ttl = max(math.ceil(seen.ttl - (monotonic() - self._seen_at)), 1)
        event = self._call.session.run(
            operations.set(
                self._key,
                text,
                ttl=ttl,
                if_index=None if seen is None else seen.modified_index,
                if_value=None,
                if_exists=False if seen is None else None,
            )
        )
        return event.index

    def _edited(self, before: str) -> str:
        """Run the editor; return the text, without the final newline that it has added."""
        try:
            with editors.interrupts():
                ended = subprocess.run([*self._editor, str(self.file)], check=False)  # noqa: S603
        except OSError as error:
            raise self._stopped(f"{self._editor[0]}: {error.strerror}") from None
        if ended.returncode < 0:
            raise self._stopped(f"signal {-ended.returncode} has ended the editor")
        if ended.returncode:
            raise self._stopped(f"the editor ended with status {ended.returncode}")
        try:
            text = self.file.read_bytes().decode()
        except OSError as error:
            raise self._stopped(f"the text cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise self._stopped("the text is no UTF-8") from None
        added = text.endswith("\n") and not before.endswith("\n")
        return text[:-1] if added else text

    def _stopped(self, message: str) -> _Stopped:
        """Return an end after which the file stays only if it has what the server does not."""
        try:
            is_kept = self.file.read_bytes() != _encoded(self._before)
        except OSError:
            is_kept = False
        return _Stopped(message, USAGE, is_kept=is_kept)

    def _checked(self, text: str) -> str:
        """Return a text that is JSON if it was before, or one that the user wants as it is."""
        while (
            self._seen is not None and editors.is_json(self._before) and not editors.is_json(text)
        ):
            match self._choose("it is no JSON any more", "[s]ave [e]dit [q]uit"):
                case "s":
                    return text
                case "e":
                    text = self._edited(self._before)
                case _:
                    raise _Stopped("nothing was changed", CONFLICT)
        return text

    def _choose(self, what: str, choices: str) -> str:
        chosen = terminal.choose(printable(f"{self._key}: {what}: {choices} "))
        if chosen is None:
            raise _Stopped(f"{what}, and there is no terminal to ask on", CONFLICT)
        return chosen

    def _merged(self, text: str) -> str | None:
        """Return a text that may replace what others have written; None if that is the same."""
        before = self._before
        now = _read(self._call, self._key)
        if now is None:
            self._see(None)
            if self._choose("it was removed meanwhile", "[c]reate [q]uit") != "c":
                raise _Stopped("it was removed meanwhile", CONFLICT)
            return text
        self._see(now)
        theirs = self._before
        if theirs == text:
            write(f"others have made the same change at {now.modified_index}\n")
            return None
        merged = merge(before, text, theirs)
        _put(self.file, merged.text)
        if merged.is_clean:
            what = f"it was changed by others at {now.modified_index}; both changes merged"
            return self._agreed(what, merged.text)
        return self._resolved(f"it was changed by others at {now.modified_index}")

    def _agreed(self, what: str, text: str) -> str:
        """Return a merged text once the user agrees with it."""
        while True:
            match self._choose(what, "[s]ave [d]iff [e]dit [q]uit"):
                case "s":
                    return text
                case "d":
                    write(_diff(self._before, text))
                case "e":
                    text = self._edited(self._before)
                case _:
                    raise _Stopped("nothing was changed", CONFLICT)

    def _resolved(self, what: str) -> str:
        """Return a text whose conflicts the user has resolved."""
        if not terminal.is_there():
            raise _Stopped(f"{what}, and both changes meet", CONFLICT)
        while True:
            text = self._edited(self._before)
            if not has_marks(text):
                return text
            if self._choose(f"{what}; there are conflicts in it", "[e]dit [q]uit") != "e":
                raise _Stopped("nothing was changed", CONFLICT)


def _read(call: Call, key: str) -> Node | None:
    operations = call.session.operations
    try:
        node = call.session.run(operations.get(key, quorum=True))
    except KeyNotFound:
        return None
    if node.dir:
        raise Failure(printable(f"kvdctl: {key}: is a directory"), USAGE)
    if "\ufffd" in (node.value or ""):
        if "raw" not in call.session.run(operations.extras()):
            raise failure(f"{key}: {_NO_TEXT}")
        try:
            call.session.run(operations.get_bytes(key)).decode()
        except UnicodeDecodeError:
            raise failure(f"{key}: {_NO_TEXT}") from None
    return node


def _put(file: Path, text: str) -> None:
    file.write_bytes(_encoded(text))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _diff(before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "theirs", "merged", lineterm=""
    )
    return "".join(f"{printable(line)}\n" for line in lines)
