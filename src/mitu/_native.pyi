"""The data plane, as Python sees it. Checked against the built module by `make lint`."""

from typing import final

__all__ = [
    "Bench",
    "NativeError",
    "Server",
    "cpu_features",
    "crypto_operations",
    "crypto_providers",
    "start",
    "start_bench",
    "time_crypto",
    "validate",
    "version",
]

class NativeError(Exception):
    """The data plane refused a configuration or could not bind a socket; nothing has changed."""

@final
class Server:
    """A running data plane: its worker threads and their sockets."""

    def reload(self, config: str, secrets: dict[str, bytes], discovered: str) -> None:
        """Make `config` live, whole or (NativeError) not at all. Blocks while new sockets are bound.

        `discovered`: what is known of its upstreams (JSON), as for `discover`.
        """

    def discover(self, discovered: str) -> None:
        """Make what is known of the upstreams (JSON) live, for new requests and new handshakes."""

    def addresses(self) -> dict[str, str]:
        """The bound `host:port` of each listener, by name."""

    def drain(self, within: float) -> None:
        """Stop accepting, and ask every connection to finish (GOAWAY, `Connection: close`).

        Returns once those that had connected already are accepted: after some 100 ms. `within`: seconds until `stop`;
        relays leave before, each at a moment of its own.
        """

    def active(self) -> int:
        """Connections that are open now, handshakes included."""

    def handshakes(self) -> tuple[int, int]:
        """Handshakes that wait because there are more than there is time for, and those that have been shed so far."""

    def overload_changes(self) -> list[tuple[str, str, float | None, float]]:
        """Listeners that have come to another step of overload since this was last asked.

        Name, step (the action that it adds, or `normal`), and the shares of memory (None: there is no ceiling) and of
        connections.
        """

    def stop(self) -> None:
        """Close every connection and join the workers."""

    def metrics(self) -> str:
        """Every metric in Prometheus text format."""

    def connections(self, limit: int) -> str:
        """A JSON array of at most `limit` open connections, oldest first."""

    def endpoints(self) -> str:
        """What is known of the endpoints of each upstream: JSON, by upstream.

        Each has its `address`, `weight`, requests and relays in progress (`active`), `ejected` (seconds for which it
        gets nothing, or null), `causes` (its last failures, oldest first), `ejections`, `alpn` (`h2`, `http/1.1` or
        null, at its last TLS connection), `successes` and `failures`.
        """

    def reopen_logs(self) -> None:
        """Open the access log's path anew, after logrotate has moved the file."""

@final
class Bench:
    """A run of the load generator; dropping it ends it."""

    def report(self) -> str:
        """What it has come to so far, or in the end: JSON. NativeError when it could not go on."""

    def wait(self, seconds: float) -> bool:
        """Wait for the end, `seconds` at most. Whether it has come.

        ValueError when `seconds` is negative or no number.
        """

    def stop(self) -> None:
        """Begin nothing more, and cut off what is under way."""

def start_bench(plan: str) -> Bench:
    """Begin to put load on a server, as `plan` (JSON) says; `crates/mitu-load/src/bench/plan.rs` is its form.

    NativeError when it is no plan, or cannot be begun.
    """

def start(config: str, secrets: dict[str, bytes], discovered: str, inherited: dict[str, list[int]]) -> Server:
    """Start the workers for the runtime configuration `config` (JSON).

    `secrets`: PEM by the identifiers that `config` uses. `discovered`: what is known of the upstreams (JSON).
    `inherited`: listening sockets by listener name, whose file descriptors are taken over.
    """

def validate(config: str, secrets: dict[str, bytes]) -> None:
    """Build everything `config` asks for but the sockets; NativeError says what cannot be."""

def version() -> str:
    """The version of the data plane, which must equal the package's."""

def crypto_providers() -> list[tuple[str, dict[str, str]]]:
    """The crypto providers of this build, AWS-LC first, and the versions of the crates that each comes in."""

def cpu_features(provider: str) -> list[tuple[str, bool, list[str]]]:
    """Extensions of this CPU's instruction set: name, whether it is there, what `provider` uses it for.

    NativeError, here and below: this build lacks the provider.
    """

def crypto_operations(provider: str) -> list[tuple[str, int | None]]:
    """What `time_crypto` times: name, and the bytes that one call works through (None for public-key operations)."""

def time_crypto(provider: str, operation: str, seconds: float) -> tuple[float, float]:
    """Microseconds for one call of a crypto operation: median and fastest of batches, about `seconds` together.

    ValueError when `seconds` is negative or no number; NativeError for an unknown operation, or one that failed.
    """
