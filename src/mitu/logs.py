"""What the gateway says of itself, on stderr: text for people on a terminal, else one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from mitu.config.model import Logging


def configure(settings: Logging) -> None:
    """Set up the loggers of this process as the configuration wants them, again after a reload.

    What asyncio and other libraries have to say comes in the same form, from warnings on.
    """
    as_text = settings.format == "text" or (settings.format == "auto" and sys.stderr.isatty())
    handler: logging.Handler
    if as_text:
        from rich.console import Console
        from rich.logging import RichHandler

        console = Console(stderr=True, soft_wrap=True, highlight=False)
        handler = RichHandler(console=console, show_path=False, omit_repeated_times=False, log_time_format="%H:%M:%S")
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("mitu").setLevel(settings.level.upper())


class JsonFormatter(logging.Formatter):
    """One object a line: ts (RFC 3339), level, logger, message, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
