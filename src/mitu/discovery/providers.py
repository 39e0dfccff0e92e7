"""From a provider's settings to the provider. Each is imported when it is first needed."""

from __future__ import annotations

from mitu.config import discovery as settings
from mitu.discovery.provider import Provider


def make_provider(one: settings.Provider) -> Provider:
    """The provider that `one` configures. It opens nothing yet."""
    if one.consul is not None:
        from mitu.discovery.consul import Consul

        return Consul(one.consul)
    if one.etcd is not None:
        from mitu.discovery.etcd import Etcd

        return Etcd(one.etcd)
    if one.dns is not None:
        from mitu.discovery.dns import Dns

        return Dns(one.dns)
    if one.kubernetes is not None:
        from mitu.discovery.kubernetes import Kubernetes

        return Kubernetes(one.kubernetes)
    from mitu.discovery.file import File

    if one.file is None:
        raise ValueError(f"the provider '{one.name}' is of no kind")
    return File(one.file)
