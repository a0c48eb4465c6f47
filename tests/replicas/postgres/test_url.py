"""URLs of a PostgreSQL and a schema."""

import pytest

from kvd.replicas.postgres.url import PostgresUrl, parse


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("postgres://h1/config", PostgresUrl((("h1", 5432),), "config")),
        ("postgresql://h1:1/a?schema=b_2", PostgresUrl((("h1", 1),), "a", "b_2")),
        (
            "postgres://h1,[::1]:7/a?sslmode=verify-full&target_session_attrs=read-write",
            PostgresUrl((("h1", 5432), ("::1", 7)), "a", "kvd", "verify-full"),
        ),
    ],
)
def test_hosts_database_and_schema(text, url):
    assert parse(text) == url
    assert parse(str(url)) == url


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("etcd://h1/kvd", "does not begin with postgres:// or postgresql://"),
        ("postgres:/h1/kvd", "does not begin with"),
        ("postgres://h1", "names no database: a name of at most 63"),
        ("postgres://h1/?schema=a", "names no database"),
        ("postgres://h1/a/b", "has the database 'a/b'"),
        ('postgres://h1/a"b', "has the database"),
        ("postgres://h1/a%20b", "has the database"),
        ("postgres://h1/A?schema=A", "has the schema"),
        (f"postgres://h1/{'a' * 64}", "at most 63"),
        ("postgres://h1/a?schema=", "names no schema"),
        ("postgres://h1/a?schema=B", "has the schema 'B'"),
        ("postgres://h1/a?schema=pg_a", "lower case, not pg_"),
        ("postgres:///kvd", "has an empty host"),
        ("postgres://h1,,h2/kvd", "has an empty host"),
        ("postgres://h1:0/kvd", "is no port from 1 to 65535"),
        ("postgres://::1/kvd", "in brackets, [::1]:5432"),
        ("postgres://me:secret@h1/kvd", "they have flags"),
        ("postgres://h1/kvd?password=secret", "has the parameter password"),
        ("postgres://h1/?password=secret", "has the parameter password"),
        ("postgres://h1/kvd?user=me", "has the parameter user; known are schema, sslmode"),
        ("postgres://h1/kvd?sslmode=allow", "the URL has sslmode=allow; it may be"),
        ("postgres://h1/kvd?target_session_attrs=any", "it may be read-write"),
        ("postgres://h1/kvd?schema=a&schema=b", "has a parameter twice"),
        ("postgres://h1,h1:5432/kvd", "names a host twice"),
    ],
)
def test_what_is_wrong_is_named(text, part):
    with pytest.raises(ValueError, match=r".") as refused:
        parse(text)
    assert part in str(refused.value)
    assert "secret" not in str(refused.value)
