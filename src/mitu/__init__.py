"""mitu: a TLS edge gateway. One port for HTTP/1.1, HTTP/2, MQTT and private protocols, chosen by ALPN."""

from mitu.config import Config, Diagnostic, Report, check, load_config, parse_config
from mitu.errors import AdminError, ConfigError, HandlerError, MituError, ReloadError, StartError

__all__ = [
    "AdminError",
    "Config",
    "ConfigError",
    "Diagnostic",
    "HandlerError",
    "MituError",
    "ReloadError",
    "Report",
    "StartError",
    "check",
    "load_config",
    "parse_config",
]
