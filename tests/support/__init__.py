"""Helpers that tests share: certificates, the gateway as a process, upstreams, clients."""
