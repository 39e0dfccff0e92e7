"""Load on a server, and how it bore it: what `mitu bench` measures, judges, compares and draws."""

from mitu.errors import MituError


class BenchError(MituError):
    """The load cannot be put on that target, or the run came to nothing; the message says what to do about it."""


class WantedError(BenchError):
    """What was asked for cannot be: a target that is no address, a share above one, a metric that there is not."""
