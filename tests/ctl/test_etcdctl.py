"""kvdctl in the place of etcdctl: the same output, errors and exit status, command for command.

What etcdctl says is recorded (tests/support/etcdctl.py); `pytest -m clients` compares the record
with the etcdctl of this machine.
"""

import io
import re
import shutil
import sys

import pytest

from tests.support.etcdctl import FLAGS, Said, answers, etcdctl, recorded

# Usage errors are in kvdctl's words, on standard error, with etcdctl's status.
WORDS_OF_ITS_OWN = re.compile(r"kvdctl: .*; see `kvdctl .*--help`\n")
# Verbs that kvdctl has for something else, or that print a text about themselves.
OTHER_VERBS = {
    *("--version", "help set", "import"),
    "backup --data-dir /nowhere --backup-dir /nowhere/else",
}
# etcdctl sends these, and prints that it cannot read the answer.
NO_NAME = {'user add ""', "user add :secret"}


@pytest.fixture
def run_in_process(kvdctl, own_environment):
    def run(argv, stdin):
        own_environment.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return Said(*kvdctl(*argv))

    return run


def test_each_command_prints_and_returns_what_etcdctl_does(make_server, run_in_process):
    found = answers(make_server(*FLAGS).start(), run_in_process)
    expected = recorded()
    assert found.keys() == expected.keys()
    differing = [
        f"{line}\n  etcdctl {expected[line]}\n  kvdctl  {said}"
        for line, said in found.items()
        if line.partition(" ")[2] not in OTHER_VERBS | NO_NAME and not is_same(expected[line], said)
    ]
    assert {found[line].err for line in found if line.partition(" ")[2] in NO_NAME} == {
        "Please provide a username\n"
    }
    assert not differing, "\n".join([f"{len(differing)} differ", *differing])


def is_same(expected, said):
    if expected.out.startswith("NAME:"):  # the help of a verb
        return said.status == expected.status and said.out.startswith("Usage: kvdctl ")
    if "Incorrect Usage" in expected.out:
        return said.status == expected.status and bool(WORDS_OF_ITS_OWN.fullmatch(said.err))
    return said == expected


@pytest.mark.clients
def test_the_record_is_what_etcdctl_says(make_server):
    if shutil.which("etcdctl") is None:
        pytest.skip("there is no etcdctl here")
    assert answers(make_server(*FLAGS).start(), etcdctl) == recorded()
