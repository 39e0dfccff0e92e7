"""mitu: a TLS edge gateway. One port for HTTP/1.1, HTTP/2, MQTT and private protocols, chosen by ALPN."""

from typing import TYPE_CHECKING

from mitu._lazy import lazy

if TYPE_CHECKING:
    from mitu.config.checker import check
    from mitu.config.diagnostic import Diagnostic, Report
    from mitu.config.load import load_config, parse_config
    from mitu.config.model import Config
    from mitu.errors import AdminError, ConfigError, HandlerError, MituError, ReloadError, StartError
    from mitu.gateway import Gateway
    from mitu.proxy_protocol import Connection

__all__ = [
    "AdminError",
    "Config",
    "ConfigError",
    "Connection",
    "Diagnostic",
    "Gateway",
    "HandlerError",
    "MituError",
    "ReloadError",
    "Report",
    "StartError",
    "check",
    "load_config",
    "parse_config",
]

__getattr__ = lazy(
    __name__,
    {
        "AdminError": "mitu.errors",
        "Config": "mitu.config.model",
        "ConfigError": "mitu.errors",
        "Connection": "mitu.proxy_protocol",
        "Diagnostic": "mitu.config.diagnostic",
        "Gateway": "mitu.gateway",
        "HandlerError": "mitu.errors",
        "MituError": "mitu.errors",
        "ReloadError": "mitu.errors",
        "Report": "mitu.config.diagnostic",
        "StartError": "mitu.errors",
        "check": "mitu.config.checker",
        "load_config": "mitu.config.load",
        "parse_config": "mitu.config.load",
    },
)
