"""kvdctl detach and replicate-anew."""

import re

import pytest

from kvd.storage.directory import replica_file
from kvd.storage.directory.replica_file import Replica
from tests.support.ctl import kvdctl, printed_digest

URL = "etcd://h1:2379/kvd/prod"


@pytest.fixture
def replica(data):
    replica_file.write(data, Replica(URL, 0xC1, joined=True))
    return data


def test_detach_makes_a_store_of_its_own_with_all_that_it_held(replica, capsys):
    before = printed_digest(capsys, replica)
    status, out, err = kvdctl(capsys, "detach", replica)
    assert (status, err) == (0, "")
    assert re.fullmatch(r"a store of its own: cluster [0-9a-f]+, member [0-9a-f]+\n", out)
    assert printed_digest(capsys, replica) == before
    assert replica_file.read(replica) is None


def test_detach_of_a_store_that_is_no_replica_is_a_mistake(data, capsys):
    status, out, err = kvdctl(capsys, "detach", data)
    assert (status, out) == (64, "")
    assert err == f"kvdctl: {data}: is no replica: it is a store of its own already\n"


def test_replicate_again_names_the_next_step(replica, capsys):
    status, out, _ = kvdctl(capsys, "replicate-anew", replica, "etcd://h1,h2:2379/kvd//two/")
    assert (status, out) == (
        0,
        "the next start with --replicate etcd://h1:2379,h2:2379/kvd/two makes the log there\n",
    )


@pytest.mark.parametrize("url", ["h1:2379/kvd", "etcd://h1", "etcd://u@h1/kvd"])
def test_replicate_again_refuses_what_is_no_engine(replica, capsys, url):
    status, _, err = kvdctl(capsys, "replicate-anew", replica, url)
    assert status == 64
    assert err.startswith("kvdctl: ")
    assert len(err.splitlines()) == 1
    assert replica_file.read(replica) == Replica(URL, 0xC1, joined=True)
