"""Settings that etcd's history has left: old names, and what a single member cannot do."""

from dataclasses import replace

from kvd.config.etcd_flags import REFUSALS
from kvd.config.flag import ConfigError, shown
from kvd.config.sources import Setting, Settings
from kvd.config.values import boolean, word

# What etcd's loggers write.
_LOGGERS = {"zap": "json", "capnslog": "text"}


def with_present_names(settings: Settings) -> Settings:
    """Return the settings with those of etcd 0.4, 2 and 3.4 under their present names.

    Raises:
        ConfigError: The same is said under two names.
    """
    renamed = dict(settings)
    for old, new in (("addr", "advertise-client-urls"), ("bind-addr", "listen-client-urls")):
        if text := settings[old].text:
            _require_default(settings, new, old)
            renamed[new] = replace(settings[old], text=f"http://{text}")
    if settings["ca-file"].text:
        _require_default(settings, "trusted-ca-file", "ca-file")
        renamed["trusted-ca-file"] = settings["ca-file"]
        renamed["client-cert-auth"] = replace(settings["ca-file"], text="true")
    logger = word(settings, "logger", "", *_LOGGERS)
    if logger and settings["log-format"].is_default:
        renamed["log-format"] = replace(settings["logger"], text=_LOGGERS[logger])
    if boolean(settings, "debug"):
        renamed["log-level"] = Setting("debug", settings["debug"].where)
    return renamed


def refuse_what_cannot_be_ignored(settings: Settings) -> None:
    """Refuse settings that need other members, another API or a proxy.

    Raises:
        ConfigError: With the reason.
    """
    for refused in REFUSALS:
        setting = settings[refused.name]
        if setting.text not in refused.harmless:
            raise ConfigError(f"{setting.where}={shown(setting.text)}: {refused.reason}")
    if not boolean(settings, "enable-v2"):
        where = settings["enable-v2"].where
        raise ConfigError(f"{where}=false: the v2 API is all that kvd serves")
    _refuse_other_members(settings)


def _require_default(settings: Settings, name: str, old: str) -> None:
    setting = settings[name]
    if not setting.is_default:
        raise ConfigError(f"{settings[old].where} and {setting.where} say the same: give one")


def _refuse_other_members(settings: Settings) -> None:
    cluster, name = settings["initial-cluster"], settings["name"]
    # etcd passes over what is empty, and widespread tutorials end the list with a comma.
    listed = [member.strip() for member in cluster.text.split(",")]
    names = {member.partition("=")[0].strip() for member in listed if member}
    found = shown(cluster.text)
    if len(names) > 1:
        raise ConfigError(
            f"{cluster.where}: kvd runs as a single member, found {found}; for several servers "
            "with one store see --replicate"
        )
    # etcd refuses this too: it cannot find itself in the cluster.
    if names and names != {name.text}:
        raise ConfigError(
            f"{cluster.where}: expected this member, {shown(name.text)} ({name.where}), "
            f"found {found}"
        )
