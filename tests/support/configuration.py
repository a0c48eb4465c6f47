"""A configuration of a command line."""

from kvd.config.load import Config, parse


def config(*argv: str) -> Config:
    parsed = parse(argv)
    assert isinstance(parsed, Config)
    return parsed
