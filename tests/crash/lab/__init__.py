"""A laboratory for crash recovery: named experiments on a private server, each with a seed.

    experiment.py   what an experiment is, and a trial of it
    process.py      the server under test: plain, under strace, or with a bug put in
    nursery.py      forks it from a process that is ready, and traces its threads one by one
    calls.py        every system call of a life: written down, then made to fail
    mutant.py       the bugs, each of which an experiment must catch
    disks.py        looking into a data directory without a server
    killing.py      kill-random, kill-failpoint, history
    readback.py     read-back
    callfaults.py   kill-syscall, syscall-eio, syscall-enospc, syscall-refused
    transfers.py    transfers
    limits.py       short-write
    damage.py       truncate, bitflip
    disorder.py     shuffle
    exchange.py     exchange
    indexflip.py    index-flip
    incomplete.py   index-incomplete
    faults.py       fsync-eio, full-disk, slow-disk, clock, recovery-time
    lives.py        replay, expiry, churn
    powerloss.py    power-loss, power-loss-kernel: a model of a disk, fed with recorded system calls
    witness.py      has a server tell of the syncs that the kernel makes on its own
    powercut.py     power-cut, forced-reuse: a real file system that loses what it had not written
    realdisk.py     fsync-lost, block-image
    report/         what a run leaves: the JSON, its schema, and the page
    __main__.py     the command, `scripts/crashlab`

The clients, and the ledger that their responses are checked against, are those that anyone can use:
kvd/testing/crash. A violation is found by comparing with what clients were told, never by asking
the server whether it is well. Every experiment names the bug it must catch; `--mutant` runs it with
that bug put in.
"""

from tests.crash.lab import (
    callfaults,
    damage,
    disorder,
    exchange,
    faults,
    incomplete,
    indexflip,
    killing,
    limits,
    lives,
    powercut,
    powerloss,
    readback,
    realdisk,
    transfers,
)
from tests.crash.lab.experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for module in (
        *(
            killing,
            readback,
            transfers,
            callfaults,
            limits,
            damage,
            disorder,
            exchange,
            indexflip,
            incomplete,
        ),
        *(faults, lives),
        *(powerloss, powercut, realdisk),
    )
    for experiment in module.EXPERIMENTS
}
