"""What a run came to: the document that `--json` prints, `mitu bench compare` reads and `--html` draws."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mitu.bench import BenchError

NOUNS = {"handshake": "connections", "requests": "requests", "storm": "devices"}
"""What counts as one, by the command."""
STAGES = ("late", "connect", "handshake", "response", "total", "since_start")
SHOWN = ("mean", "P50", "P90", "P99", "P99.9", "max")
_LATENESS = 0.1

Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Latency(_Part):
    """Milliseconds."""

    count: Count
    mean: Amount
    min: Amount
    p50: Amount
    p90: Amount
    p95: Amount
    p99: Amount
    p999: Amount
    p9999: Amount
    max: Amount

    @property
    def shown(self) -> tuple[float, ...]:
        """What tables show, as `SHOWN` calls it."""
        return self.mean, self.p50, self.p90, self.p99, self.p999, self.max


class Stages(_Part):
    """`late`: from when it was due until the load generator began it. `total`: from when it was due until it was done.
    `since_start`: of devices, from the start of the storm until they were in."""

    late: Latency
    connect: Latency
    handshake: Latency
    response: Latency
    total: Latency
    since_start: Latency


class Trouble(_Part):
    count: Count
    example: str
    """What the first of them said."""


class Slot(_Part):
    """`at`: seconds from the start. `p50`, `p99`: milliseconds, of what was completed in this slot."""

    at: Amount
    begun: Count
    completed: Count
    failed: Count
    p50: Amount | None
    p99: Amount | None


class Timeline(_Part):
    slot_seconds: Amount
    slots: tuple[Slot, ...]


class Outcome(_Part):
    """What the load generator saw. One is a connection, a request or a device, as the command has it."""

    phase: Literal["preparing", "running", "done", "stopped"]
    seconds: Amount
    begun: Count
    completed: Count
    failed: Count
    unfinished: Count
    per_second: Amount
    connections: Count
    resumed: Count
    prepared: Count
    """Handshakes before the start, each with a request, to get session tickets; they count nowhere else."""
    retries: Count
    held: Count
    dropped: Count
    negotiated: Mapping[str, Count]
    statuses: Mapping[str, Count]
    errors: Mapping[str, Trouble]
    stages: Stages
    curve: tuple[tuple[float, float], ...]
    timeline: Timeline
    threads: Count
    client_cpu_seconds: Amount | None

    @property
    def is_late(self) -> bool:
        """Whether the load generator fell behind itself, so that it was measured as well: by a tenth, at P99."""
        late, total = self.stages.late, self.stages.total
        return late.count > 0 and total.count > 0 and late.p99 > _LATENESS * total.p99


class To(_Part):
    url: str
    address: str
    own: bool
    """A gateway that was made for this run."""


class Machine(_Part):
    cpu: str
    cores: Count
    kernel: str


class Own(_Part):
    """The gateway that was made for the run, by its own account."""

    workers: Count
    cpu_seconds: Amount
    requests: Count


class Check(_Part):
    condition: str
    value: str | None
    """What it came to; None: nothing was measured."""
    failed: bool


class Result(_Part):
    format: Literal["mitu-bench/1"] = "mitu-bench/1"
    version: str
    command: Literal["handshake", "requests", "storm"]
    started_at: str
    to: To
    settings: Mapping[str, str]
    machine: Machine
    outcome: Outcome
    gateway: Own | None
    checks: tuple[Check, ...]
    ok: bool
    """Something was completed, the run came to its end, and no `--fail-if` holds."""

    @property
    def client_cpu_us(self) -> float | None:
        """Of the load generator, for each that was completed, or made before the start."""
        return self._each(self.outcome.client_cpu_seconds)

    @property
    def gateway_cpu_us(self) -> float | None:
        return self._each(None if self.gateway is None else self.gateway.cpu_seconds)

    def _each(self, seconds: float | None) -> float | None:
        count = self.outcome.completed + (0 if self.command == "requests" else self.outcome.prepared)
        return None if seconds is None or not count else seconds / count * 1e6


def machine() -> Machine:
    import os

    from mitu.crypto import cpu_model

    return Machine(cpu=cpu_model(), cores=len(os.sched_getaffinity(0)), kernel=platform.release())


def read(file: Path) -> Result:
    """BenchError when it is not what `mitu bench … --json` printed."""
    try:
        text = file.read_bytes()
    except OSError as error:
        raise BenchError(f"cannot read {file}: {(error.strerror or str(error)).lower()}") from error
    try:
        return Result.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise BenchError(
            f"{file} is not a result of this version: {where}: {first['msg'].lower()}"
            "\n  = make one with: mitu bench handshake --json > FILE"
        ) from None
