"""Makes the certificates that the examples name: `certs/` in the folder where it is run.

    python ../certificates.py

ca.crt signed edge.crt (localhost, 127.0.0.1, ::1) and device.crt, with which a client says that it is device-17.
"""

from pathlib import Path

from mitu.dev.authority import Authority

authority = Authority.open(Path("certs"))
authority.server(file="edge")
authority.client("device-17", ["spiffe://fleet.test/device/17"], file="device")
