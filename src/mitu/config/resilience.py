"""What an upstream does about endpoints that fail, are new, or have enough to do."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from mitu.config.base import Model
from mitu.config.types import Bool, DurationRange, IntRange, Share, fail

RETRIED_STATUSES = ("502", "503", "504")


class OutlierDetection(Model):
    """When an endpoint is left alone because its requests fail; `false` stands for `{enabled: false}`."""

    enabled: Bool = Field(default=True, description="Whether it ever is.")
    consecutive_failures: Annotated[int, IntRange(1, 1000)] = Field(
        default=5,
        description="Failures in a row: no connection, no response in time, one that is cut short, one of `statuses`.",
    )
    statuses: tuple[Annotated[int, IntRange(500, 599)], ...] = Field(
        default=(502, 503, 504), description="Statuses that are failures."
    )
    ejection: Annotated[timedelta, DurationRange("100ms", "1h")] = Field(
        default=timedelta(seconds=30),
        description="For how long, the first time; each further time, by as much longer.",
    )
    max_ejection: Annotated[timedelta, DurationRange("100ms", "1d")] = Field(
        default=timedelta(minutes=5), description="For how long at most."
    )
    max_ejected: Share = Field(
        default=0.5,
        description="Share of the endpoints that may be left alone at once; never the last, always one of two.",
    )

    @model_validator(mode="after")
    def _coherent(self) -> OutlierDetection:
        if self.max_ejection < self.ejection:
            fail("E022", "max_ejection is less than ejection", hint="set both")
        return self


def detection(value: object) -> object:
    """`true` and `false` in place of a mapping."""
    return {"enabled": value} if isinstance(value, bool) else value


class EndpointLimits(Model):
    """What one endpoint is asked for at once, by all workers together. Further requests go elsewhere, or get 503."""

    connections: Annotated[int, IntRange(1, 1_000_000)] | None = Field(
        default=None, description="HTTP/1.1 connections and relays; unlimited when left out."
    )
    pending: Annotated[int, IntRange(0, 1_000_000)] = Field(
        default=100, description="Requests that may wait for one of these connections, until their route's `timeout`."
    )
    requests: Annotated[int, IntRange(1, 1_000_000)] | None = Field(
        default=None, description="Requests and relays in progress; unlimited when left out."
    )


def _event(value: object) -> object:
    """A status is a number in YAML."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


_EVENTS: dict[str, Any] = {"enum": ["connect", "reset", "refused_stream", *map(int, RETRIED_STATUSES)]}


class Retries(Model):
    """When a request is sent once more: where its work is not done twice by that, and none of its body has left."""

    attempts: Annotated[int, IntRange(0, 10)] = Field(default=2, description="Further tries of one request or relay.")
    budget: Share = Field(default=0.2, description="Retries there may be, as a share of the requests of late.")
    min_per_second: Annotated[int, IntRange(0, 1_000_000)] = Field(
        default=10, description="Retries there may be, however few requests there are."
    )
    on: tuple[
        Annotated[
            Literal["connect", "reset", "refused_stream", "502", "503", "504"],
            BeforeValidator(_event),
            WithJsonSchema(_EVENTS),
        ],
        ...,
    ] = Field(
        default=("connect", "reset", "refused_stream"),
        description="`connect`: no connection; `reset`: the connection ended before a response; `refused_stream`:"
        " HTTP/2 says that the request was not looked at; a status. But for `connect` and `refused_stream`, only GET,"
        " HEAD, OPTIONS, PUT and DELETE.",
    )
