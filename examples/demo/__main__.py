"""`make demo`: every protocol on one port, each asked once by a client that people use.

    python -m examples.demo [--once] [--folder .demo]

On a terminal it goes on serving until Ctrl-C. Exit code 0: everything was answered as it should be; 1: something was
not, or could not be asked.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from examples.demo.parts import GET_MOSQUITTO, DemoError, Folder, Part, which
from examples.demo.requests import Answer, ask, requests

out = Console(highlight=False, soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description="Every protocol on one port.")
    parser.add_argument("--once", action="store_true", help="end after the requests, on a terminal, too")
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="where it keeps what it makes")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)
    try:
        with _alone(options.folder):
            return run(Folder(options.folder), stay=sys.stdout.isatty() and not options.once)
    except DemoError as error:
        out.print(Text.assemble(("error", "bold red"), f": {error}"))
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def run(folder: Folder, *, stay: bool) -> int:
    """The demo, from its certificates to its end. `stay`: go on serving until Ctrl-C. The exit code."""
    with ExitStack() as parts:
        out.print(Text.assemble("\n  ", ("mitu demo", "bold green"), "  every protocol on one port, chosen by ALPN\n"))
        folder.make()
        _row("certificate", f"localhost, signed by {folder.ca}")
        app = _started(parts, "HTTP server", "examples/app.py", folder.start_app())
        missing = [program for program in ("mosquitto", "mosquitto_pub", "mosquitto_sub") if which(program) is None]
        broker = None
        if missing:
            _row(
                "MQTT broker", f"{missing[0]} is missing, so MQTT is left out; get it with: {GET_MOSQUITTO}", "yellow"
            )
        else:
            broker = _started(parts, "MQTT broker", "mosquitto", folder.start_broker())
        started = folder.start_gateway(app, broker)
        gateway, port = started[0], _started(parts, "gateway", f"mitu run {folder.config}", started)
        out.print()
        asked = requests(port, str(folder.ca), broker=broker is not None)
        answers = [_show(ask(request, folder.access_log)) for request in asked]
        good = sum(answer.ok for answer in answers)
        colour = "green" if good == len(answers) and not missing else "yellow"
        left_out = ", MQTT left out" if missing else ""
        out.print(Text(f"  {good} of {len(answers)} answered as they should be{left_out}\n", style=f"bold {colour}"))
        _next(folder, port)
        if stay:
            out.print(Text("  It goes on serving. Ctrl-C ends it.", style="dim"))
            gateway.wait()
        drained = gateway.stop() == 0
        out.print(Text("  drained and stopped" if drained else "  the gateway did not end well", style="dim"))
    return 0 if good == len(answers) and not missing and drained else 1


def _started(parts: ExitStack, name: str, what: str, started: tuple[Part, int]) -> int:
    """Its port. It ends with `parts`."""
    part, port = started
    parts.callback(part.stop)
    _row(name, f"127.0.0.1:{port}  {what}")
    return port


def _row(label: str, value: str, style: str = "") -> None:
    out.print(Text.assemble((f"  {label:<15}", "dim"), (value, style)))


def _show(answer: Answer) -> Answer:
    mark, colour = ("✓", "green") if answer.ok else ("✗", "red")
    if "utf" not in out.encoding:
        mark = "+" if answer.ok else "!"
    label = f"{answer.request.protocol:<11}"
    for line in answer.request.script.splitlines():
        out.print(Text.assemble((f"  {mark} ", f"bold {colour}"), (label, "bold cyan"), (line, "bold")))
        mark, label = " ", " " * 11
    margin = " " * 15
    for line in answer.text.splitlines() or ["nothing"]:
        out.print(Text(f"{margin}{line}", style="" if answer.ok else "red"))
    if answer.log:
        out.print(Text(f"{margin}{_facts(answer.log[-1])}", style="dim"))
    out.print()
    return answer


def _facts(record: dict[str, Any]) -> str:
    """What the access log says of a connection; the rest of its handshake was waiting for the client."""
    stages = {name.removesuffix("_us"): value / 1000 for name, value in record["stages"].items()}
    ours = f"{stages['accept_wait'] + stages['select'] + stages['crypto']:.2f} ms of it in the gateway"
    if record["event"] == "handshake_failed":
        return f"refused ({record['reason']}) after {stages['total']:.2f} ms, {ours}"
    version = record["tls_version"].removeprefix("TLSv")
    return f"{record['alpn']} over TLS {version}; handshake {stages['total']:.2f} ms, {ours}"


def _next(folder: Folder, port: int) -> None:
    """What to try while it serves: commands that can be pasted as they are."""
    mitu, config = _mitu(), shlex.quote(str(folder.config))
    ca, socket = shlex.quote(str(folder.ca)), shlex.quote(str(folder.admin_socket))
    out.print(Text("  Next, in another terminal:\n"))
    _row("what it serves", f"{mitu} status -c {config}")
    _row("ask it", f"curl --cacert {ca} https://localhost:{port}/health")
    _row("change it", f"edit {config} and save: it reloads by itself, and drops no connection")
    _row("watch it", f"tail -f {shlex.quote(str(folder.access_log))} {shlex.quote(str(folder.path / 'gateway.log'))}")
    _row("metrics", f"curl --unix-socket {socket} http://localhost/metrics")
    _row("end it", f"{mitu} drain -c {config}")
    _row("HTTPS for you", f"{mitu} dev --to 3000")
    _row("read on", "examples/README.md, docs/guide/quickstart.md\n")


def _mitu() -> str:
    """How `mitu` is called here: with its path, unless the environment that it is in is active."""
    own = Path(sys.executable).with_name("mitu")
    if not own.exists():
        return shlex.join([sys.executable, "-m", "mitu"])
    if shutil.which("mitu") == str(own):
        return "mitu"
    return shlex.quote(str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One demo at a time has `folder`. DemoError when another one runs there, or it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DemoError(f"cannot make {folder}: {error.strerror}; name another one with --folder") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        told = f"a demo is running in {folder}; end it with Ctrl-C, or name another folder with --folder"
        raise DemoError(told) from None
    finally:
        os.close(lock)


def _exit(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
