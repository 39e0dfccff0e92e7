"""What a Kubernetes API server sends: only the fields that are used, checked as they are read."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mitu.discovery.provider import ProviderError


class Part(BaseModel):
    """Part of a document of others: what is not known is left out, and no value ever gets into an error."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, populate_by_name=True)


P = TypeVar("P", bound=Part)


def parse(model: type[P], data: bytes | object, what: str) -> P:
    """`data`, JSON or what was read from it, as `model`. ProviderError, which names it `what`, when it is none."""
    try:
        return model.model_validate_json(data) if isinstance(data, bytes) else model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        raise ProviderError(f"{what} is malformed: {place + ': ' if place else ''}{first['msg'].lower()}") from error


class ListMeta(Part):
    resource_version: str = Field(alias="resourceVersion")
    more: str = Field(default="", alias="continue")


class ObjectMeta(Part):
    name: str = ""
    """Bookmarks have none."""
    resource_version: str = Field(alias="resourceVersion")
    annotations: dict[str, str] | None = None


class Conditions(Part):
    """None means: ready and serving, and not terminating."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Reference(Part):
    name: str | None = None


class Endpoint(Part):
    addresses: tuple[str, ...]
    conditions: Conditions = Conditions()
    target: Reference | None = Field(default=None, alias="targetRef")
    zone: str | None = None


class Port(Part):
    name: str | None = None
    protocol: str | None = None
    port: int | None = Field(default=None, ge=1, le=65535)
    app_protocol: str | None = Field(default=None, alias="appProtocol")


class EndpointSlice(Part):
    """`discovery.k8s.io/v1`. Lists that are empty may be null."""

    metadata: ObjectMeta
    address_type: str = Field(default="", alias="addressType")
    endpoints: tuple[Endpoint, ...] | None = None
    ports: tuple[Port, ...] | None = None


class EndpointSliceList(Part):
    metadata: ListMeta
    items: tuple[EndpointSlice, ...] | None = None


class Event(Part):
    """A line of a watch. `object`: a slice, or a `Status` when `type` is ERROR."""

    type: str
    object: dict[str, Any]


class Status(Part):
    """Why a request, or a watch, has failed."""

    code: int = 0
    message: str = ""
