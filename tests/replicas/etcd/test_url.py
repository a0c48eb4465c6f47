"""URLs of an etcd and a prefix."""

import pytest

from kvd.replicas.etcd.url import EtcdUrl, parse


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("etcd://h1/kvd", EtcdUrl(False, (("h1", 2379),), "/kvd/")),
        ("etcd://h1:1/kvd/prod/", EtcdUrl(False, (("h1", 1),), "/kvd/prod/")),
        ("etcds://h1,h2:99/a", EtcdUrl(True, (("h1", 2379), ("h2", 99)), "/a/")),
        ("etcd://[::1]:7,[fe80::2]/a//b", EtcdUrl(False, (("::1", 7), ("fe80::2", 2379)), "/a/b/")),
    ],
)
def test_members_and_prefix(text, url):
    assert parse(text) == url
    assert parse(str(url)) == url


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("http://h1/kvd", "does not begin with etcd:// or etcds://"),
        ("h1:2379/kvd", "does not begin with etcd://"),
        ("etcd://h1:2379", "has no prefix: end it with one"),
        ("etcd://h1:2379/", "has no prefix"),
        ("etcd:///kvd", "has an empty host"),
        ("etcd://h1,,h2/kvd", "has an empty host"),
        ("etcd://h1:/kvd", "has no port after the colon"),
        ("etcd://h1:0/kvd", "'0' in"),
        ("etcd://h1:65536/kvd", "is no port from 1 to 65535"),
        ("etcd://h1:2379x/kvd", "is no port"),
        ("etcd://::1/kvd", "in brackets"),
        ("etcd://[::1/kvd", "write [::1]:2379"),
        ("etcd://[::1]2379/kvd", "write [::1]:2379"),
        ("etcd://me:secret@h1/kvd", "they have flags"),
        ("etcd://h1/kvd?a=b", "has a query or a fragment"),
        ("etcd://h1,h1:2379/kvd", "names a host twice"),
        ("etcd://h1/k v", "visible ASCII"),
        ("etcd://h1/\u00fc", "visible ASCII"),
    ],
)
def test_what_is_wrong_is_named(text, part):
    with pytest.raises(ValueError, match=r".") as refused:
        parse(text)
    assert part in str(refused.value)
    assert "secret" not in str(refused.value)
