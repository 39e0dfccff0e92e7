"""Configuration: models, reading, checking, and compiling for the data plane."""

from mitu.config.checker import check
from mitu.config.compile import Compiled, compile_runtime, python_handlers
from mitu.config.diagnostic import Diagnostic, Report
from mitu.config.load import load_config, parse_config
from mitu.config.model import Config

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
]
