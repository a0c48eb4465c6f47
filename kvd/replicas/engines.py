"""The engine that `--replicate` names: its driver, which is imported only where it is used."""

from pathlib import Path

from kvd.config.flag import ConfigError
from kvd.config.replicas.settings import ReplicaConfig
from kvd.replicas.engine import Access, Engine, EngineRefused

_URL = "--replicate"
_PASSWORD_FILE = "--replicate-password-file"  # noqa: S105 -- the name of a flag


def engine_of(config: ReplicaConfig) -> Engine:
    """Return the engine of these settings, which is not connected yet.

    Raises:
        ConfigError: one of them cannot be used, or the driver is not installed.
    """
    access = Access(
        config.user, _password(config), config.ca_file, config.cert_file, config.key_file
    )
    is_postgres = config.url.startswith("postgres")
    extra = "postgres" if is_postgres else "replicas"
    try:
        return _postgres(config, access) if is_postgres else _etcd(config, access)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{_URL} needs the package {error.name}: pip install 'kvd[{extra}]'"
        ) from None
    except (ValueError, EngineRefused) as error:
        raise ConfigError(f"{_URL}: {error}") from None


def _etcd(config: ReplicaConfig, access: Access) -> Engine:
    from kvd.replicas.etcd.log import EtcdLog  # noqa: PLC0415 -- needs h2
    from kvd.replicas.etcd.url import parse  # noqa: PLC0415

    return EtcdLog(parse(config.url), access, lease_s=config.lease_s)


def _postgres(config: ReplicaConfig, access: Access) -> Engine:
    from kvd.replicas.postgres.log import PostgresLog  # noqa: PLC0415
    from kvd.replicas.postgres.url import parse  # noqa: PLC0415

    return PostgresLog(parse(config.url), access, lease_s=config.lease_s)


def _password(config: ReplicaConfig) -> str:
    if not config.password_file:
        return ""
    try:
        text = Path(config.password_file).read_text()
    except OSError as error:
        reason = f"{config.password_file}: {error.strerror}"
        raise ConfigError(f"{_PASSWORD_FILE}: {reason}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{_PASSWORD_FILE}: {config.password_file}: is no text") from None
    password = text.removesuffix("\n").removesuffix("\r")
    if not password or not password.isprintable():
        raise ConfigError(f"{_PASSWORD_FILE}: {config.password_file}: expected one line")
    return password


def checked_url(text: str) -> str:
    """Return the URL of an engine, as its driver writes it.

    Raises:
        ValueError: it is none.
    """
    if text.startswith("postgres"):
        from kvd.replicas.postgres.url import parse as parse_postgres  # noqa: PLC0415

        return str(parse_postgres(text))
    from kvd.replicas.etcd.url import parse as parse_etcd  # noqa: PLC0415

    return str(parse_etcd(text))
