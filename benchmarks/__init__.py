"""Benchmarks: mitu beside nginx, HAProxy, Envoy, Caddy and Go, on one machine in one run.

Each module is a program (`python -m benchmarks.handshake --quick`); `python -m benchmarks` runs them all.
"""
