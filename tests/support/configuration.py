"""A configuration of a command line."""

from kvd.config.config import Config
from kvd.config.load import parse


def config(*argv: str) -> Config:
    parsed = parse(argv)
    assert isinstance(parsed, Config)
    return parsed
