"""Our codec against the package protobuf, and against bytes that are no messages."""

import dataclasses
from random import Random

import pytest

from kvd.replicas.etcd import messages
from kvd.replicas.etcd.protobuf import Malformed, Unsigned, decode, encode

MESSAGES = [
    kind
    for kind in vars(messages).values()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind is not messages.Method
]
NUMBERS = [0, 1, 127, 128, 2**31, 2**63 - 1]
TYPES = {int: 3, Unsigned: 4, bool: 8, str: 9, bytes: 12}  # as in descriptor.proto
MESSAGE, OPTIONAL, REPEATED = 11, 1, 3


def kind_of(field):
    return field.metadata["kind"] or type(field.default)


def drawn(kind, random, depth=0):
    """A random message."""
    values = {}
    for field in dataclasses.fields(kind):
        if random.random() < 0.3 or depth > 3:
            continue
        inner = kind_of(field)
        if field.default == ():
            count = random.randrange(4)
            values[field.name] = tuple(value(inner, random, depth) for _ in range(count))
        else:
            values[field.name] = value(inner, random, depth)
    return kind(**values)


def value(kind, random, depth):
    match kind.__name__:
        case "int":
            return random.choice([*NUMBERS, -1, -(2**63)])
        case "Unsigned":
            return random.choice([*NUMBERS, 2**64 - 1])
        case "bool":
            return random.random() < 0.5
        case "str":
            return random.choice(["", "a", "\u00fc\u4e2d", "x" * 200])
        case "bytes":
            return random.randbytes(random.choice([0, 1, 127, 128, 20_000]))
    return drawn(kind, random, depth + 1)


@pytest.fixture(scope="module")
def theirs():
    """The classes that the package protobuf makes of our fields."""
    descriptor_pb2, descriptor_pool, message_factory = (
        pytest.importorskip(f"google.protobuf.{name}")
        for name in ("descriptor_pb2", "descriptor_pool", "message_factory")
    )
    file = descriptor_pb2.FileDescriptorProto(name="e.proto", package="e", syntax="proto3")
    for kind in MESSAGES:
        message = file.message_type.add(name=kind.__name__)
        for field in dataclasses.fields(kind):
            label = REPEATED if field.default == () else OPTIONAL
            made = message.field.add(name=field.name, number=field.metadata["number"], label=label)
            inner = kind_of(field)
            made.type = TYPES.get(inner, MESSAGE)
            if made.type == MESSAGE:
                made.type_name = f".e.{inner.__name__}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        kind: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"e.{kind.__name__}"))
        for kind in MESSAGES
    }


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_the_package_protobuf_reads_what_we_write_and_writes_what_we_read(theirs, kind):
    random = Random(kind.__name__)
    for _ in range(20):
        message = drawn(kind, random)
        encoded = encode(message)
        parsed = theirs[kind].FromString(encoded)
        assert decode(kind, parsed.SerializeToString()) == message
        assert decode(kind, encoded) == message


def test_bytes_of_etcd_are_read():
    # The response of etcd 3.4.23 to a get of the key "a" with the value "b".
    response = bytes.fromhex(
        "0a1908f3cbb9acf3f6f0c52c10b998f5ffcdbfff94d60118022002120c0a01611002180220012a01622001"
    )
    message = decode(messages.RangeResponse, response)
    assert message.header.revision == 2
    assert [(pair.key, pair.value, pair.mod_revision) for pair in message.kvs] == [(b"a", b"b", 2)]
    assert not message.more


def test_unknown_fields_are_skipped():
    # Numbers 99 to 102 of all wire types, then `version` of a status.
    unknown = b"\x98\x06\x05\xa1\x06" + bytes(8) + b"\xaa\x06\x02ab\xb5\x06" + bytes(4)
    status = decode(messages.StatusResponse, unknown + b"\x12\x033.4")
    assert status == messages.StatusResponse(version="3.4")


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",
        b"\x0a\x05abc",
        b"\x80",
        b"\x18" + b"\xff" * 11,
        b"\x0b",
        b"\x21\0",
        b"\x0a\xff\xff\xff\xff\x0f",
    ],
    ids=[
        "no length",
        "cut bytes",
        "cut number",
        "long number",
        "group",
        "cut fixed",
        "long length",
    ],
)
def test_bytes_that_are_no_message_are_refused(data):
    with pytest.raises(Malformed):
        decode(messages.KeyValue, data)


def test_any_prefix_is_a_message_or_refused():
    random = Random(3)
    encoded = encode(drawn(messages.TxnResponse, random))
    for end in range(min(len(encoded), 3000)):
        try:
            decode(messages.TxnResponse, encoded[:end])
        except Malformed:
            continue
