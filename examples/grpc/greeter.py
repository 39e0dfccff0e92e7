"""A gRPC service and its client, without generated code: messages are UTF-8 text.

python greeter.py serve PORT
python greeter.py call HOST:PORT CA
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

SERVICE = "fleet.Greeter"


def hello(request: bytes, context: grpc.ServicerContext) -> bytes:
    """One message in, one out."""
    if not request:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a name is missing")
    return f"hello, {request.decode()}".encode()


def count(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    """One message in, a stream out."""
    for number in range(1, int(request) + 1):
        yield str(number).encode()
        time.sleep(0.1)


def serve(port: str) -> None:
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Hello": grpc.unary_unary_rpc_method_handler(hello),
        "Count": grpc.unary_stream_rpc_method_handler(count),
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


def call(address: str, ca: str) -> None:
    credentials = grpc.ssl_channel_credentials(Path(ca).read_bytes())
    with grpc.secure_channel(address, credentials) as channel:
        say_hello: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/Hello")
        print(say_hello(b"fleet", timeout=10).decode())
        counted: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{SERVICE}/Count")
        print(*(number.decode() for number in counted(b"3", timeout=10)))
        try:
            say_hello(b"", timeout=10)
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", port]:
            serve(port)
        case ["call", address, ca]:
            call(address, ca)
        case _:
            sys.exit(__doc__)
