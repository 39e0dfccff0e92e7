"""Configuration: models, reading, checking, and compiling for the data plane."""

from typing import TYPE_CHECKING

from mitu._lazy import lazy

if TYPE_CHECKING:
    from mitu.config.checker import check
    from mitu.config.compile import Compiled, compile_runtime, python_handlers
    from mitu.config.diagnostic import Diagnostic, Report
    from mitu.config.load import load_config, parse_config
    from mitu.config.model import Config
    from mitu.config.resolve import resolved

__all__ = [
    "Compiled",
    "Config",
    "Diagnostic",
    "Report",
    "check",
    "compile_runtime",
    "load_config",
    "parse_config",
    "python_handlers",
    "resolved",
]

__getattr__ = lazy(
    __name__,
    {
        "Compiled": "mitu.config.compile",
        "Config": "mitu.config.model",
        "Diagnostic": "mitu.config.diagnostic",
        "Report": "mitu.config.diagnostic",
        "check": "mitu.config.checker",
        "compile_runtime": "mitu.config.compile",
        "load_config": "mitu.config.load",
        "parse_config": "mitu.config.load",
        "python_handlers": "mitu.config.compile",
        "resolved": "mitu.config.resolve",
    },
)
