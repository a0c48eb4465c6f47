"""Things in the wrong place: frames and segments lost, doubled, swapped or of another time."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kvd.storage.format import frame
from kvd.storage.format.frame import PAGE_SIZE, FrameState
from tests.crash.lab.damage import bug, make_store, sample
from tests.crash.lab.disks import recover, verified
from tests.crash.lab.experiment import ALL, Experiment, Trial
from tests.crash.lab.powerloss import fast_directory

_SEGMENTS = 5
_FLAGS_AT = 27  # of a frame, see storage/format/frame.py
_PLACE = ("offset", ".wal", "segment", "frame")


class Segment(NamedTuple):
    """A segment, taken apart; `rest` is what follows its frames."""

    name: str
    page: bytes
    frames: list[bytes]
    rest: bytes

    @property
    def whole(self) -> bytes:
        """The bytes of the file."""
        return b"".join((self.page, *self.frames, self.rest))


def take_apart(path: Path) -> Segment:
    """Return the frames of a segment."""
    data = path.read_bytes()
    salt = frame.decode_segment_header(data[:PAGE_SIZE], magic=frame.WAL_MAGIC).salt
    frames = []
    at = PAGE_SIZE
    while (parsed := frame.parse(data, at, salt)).state is FrameState.INTACT:
        frames.append(data[at : at + parsed.size])
        at += parsed.size
    return Segment(path.name, data[:PAGE_SIZE], frames, data[at:])


class Disorder(NamedTuple):
    """One thing that is wrong: what to call it, and the files as they are then."""

    name: str
    files: dict[str, bytes]


def frame_disorders(log: list[Segment]) -> Iterator[Disorder]:
    """Drop, double, swap and replace each frame of each segment.

    The last frame of all may go: nobody could know of it. If it is a seal it may also stand twice:
    nothing that was acknowledged can be behind it, so the second one is cut off and kept, as any
    torn tail is. What replaces a frame is an older one.
    """
    for number, segment in enumerate(log):
        frames = segment.frames
        last = len(frames) - (1 if number == len(log) - 1 else 0)
        for at in range(len(frames)):
            before, this, after = frames[:at], frames[at], frames[at + 1 :]
            ways = {}
            if at < last or not this[_FLAGS_AT] & frame.SEAL:
                ways["doubled"] = [*before, this, this, *after]
            if at < last:
                ways["dropped"] = [*before, *after]
            if after:
                ways["swapped"] = [*before, after[0], this, *after[1:]]
            older = frames[at - 1] if at else (log[number - 1].frames[0] if number else None)
            if older is not None and (at < last or len(older) != len(this)):
                ways["replaced"] = [*before, older, *after]
            for way, changed in ways.items():
                data = segment._replace(frames=changed).whole
                name = f"frame {at} of {segment.name} {way}"
                yield Disorder(name, {segment.name: data})


def segment_disorders(log: list[Segment], other: list[Segment]) -> Iterator[Disorder]:
    """Drop, double, swap and replace each segment; the last one may not be missed by the log."""
    for number, segment in enumerate(log):
        name = segment.name
        if number < len(log) - 1:
            following = log[number + 1]
            yield Disorder(f"{name} dropped", {name: b""})
            swapped = {name: following.whole, following.name: segment.whole}
            yield Disorder(f"{name} swapped", swapped)
            yield Disorder(f"{name} doubled", {following.name: segment.whole})
        if number:
            yield Disorder(f"{name} replaced by an older one", {name: log[number - 1].whole})
        yield Disorder(f"{name} of another store", {name: other[number].whole})


def shuffle(trial: Trial) -> None:
    """Bring a log of five segments into each kind of disorder, recover it, and verify it."""
    log_of: list[list[Segment]] = []
    for name in ("data", "other"):
        # Frames of 3 KB, so that the log has its segments.
        make_store(
            trial.directory / name,
            140,
            None,
            *("--snapshot-count", "1000000"),
            clean=False,
            value_bytes=6000,
        )
        paths = sorted((trial.directory / name / "wal").glob("*.wal"))
        log_of.append([take_apart(path) for path in paths][:_SEGMENTS])
    log, other = log_of
    assert len(log) == _SEGMENTS
    cases = [*frame_disorders(log), *segment_disorders(log, other)]
    cases = sample(trial.dice, cases, trial.rounds)
    trial.rounds = len(cases)
    with tempfile.TemporaryDirectory(dir=fast_directory()) as place, bug(trial.mutant):
        for done, case in enumerate(cases, 1):
            data = Path(place) / "data"
            _lay_out(trial.directory / "data", data, log, case)
            good, starts = verified(data)
            trial.check(
                not good and not starts, f"{case.name}: `kvdctl verify` finds nothing wrong"
            )
            refusal = recover(data).refusal
            trial.check(refusal, f"{case.name}: the store opens")
            received = any(word in refusal for word in _PLACE)
            trial.check(received, f"{case.name}: the refusal names no place: {refusal}")
            kind = "frames" if case.name.startswith("frame") else "segments"
            trial.count(f"refused: {kind}")
            trial.figures["accepted"] = 0
            trial.progress(done)


def _lay_out(pristine: Path, data: Path, log: list[Segment], case: Disorder) -> None:
    shutil.rmtree(data, ignore_errors=True)
    ignore = shutil.ignore_patterns("index", "*.wal", "next.tmp")
    shutil.copytree(pristine, data, ignore=ignore)
    for segment in log:
        content = case.files.get(segment.name, segment.whole)
        if content:
            (data / "wal" / segment.name).write_bytes(content)


EXPERIMENTS = (
    Experiment(
        "shuffle",
        "a log with a frame or a segment that is missing, doubled, swapped, older or another's is "
        "refused with its place, by the server and by `kvdctl verify`",
        ("no-order",),
        *(ALL, 60, "disorders", shuffle),
    ),
)
