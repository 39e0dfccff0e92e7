"""The examples do what their README says: each command in it is run, and what it prints is compared."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.go_servers import SERVERS
from support.net import eventually, free_port
from support.process import Program
from support.programs import WANTED, which

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NAMES = sorted(file.parent.name for file in EXAMPLES.glob("*/mitu.*") if file.suffix in (".yaml", ".toml"))
GATEWAY_PORT, APP_PORT, BROKER_PORT = 8470, 8490, 8491
# The ports that examples use; each gets a free one instead.
PORT = re.compile(r"(?<![\w.])(?:8443|8470|8490|8500|1883|900\d)(?!\d)")


@dataclass(frozen=True)
class Step:
    """A command of a README, and the lines that follow it."""

    command: str
    expected: str

    @property
    def stays(self) -> bool:
        """Whether it goes on in the background."""
        return self.command.endswith(" &")

    def matches(self, printed: str) -> bool:
        """`...` in what is expected stands for anything, over several lines where it is a line of its own."""
        parts = re.split(r"(^\.\.\.\n|\.\.\.)", self.expected, flags=re.MULTILINE)
        wild = {"...\n": r"(?:.*\n)*", "...": ".*"}
        pattern = "".join(wild.get(part, re.escape(part)) for part in parts)
        # What a README cannot show does not count: blanks at the end of a line, and whether the last one ends.
        return re.fullmatch(pattern, "".join(f"{line.rstrip()}\n" for line in printed.splitlines())) is not None


def steps(readme: str) -> Iterator[Step]:
    for block in re.findall(r"^```console\n(.*?)^```", readme, re.MULTILINE | re.DOTALL):
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, expected = step.partition("\n")
            yield Step(command, expected)


def programs(name: str) -> set[str]:
    """What the commands of an example run that may be missing."""
    commands = "\n".join(step.command for step in steps((EXAMPLES / name / "README.md").read_text()))
    return {program for program in WANTED if re.search(rf"(?:^|\| ){program} ", commands, re.MULTILINE)}


class Session:
    """A shell in a copy of an example, on ports of its own."""

    def __init__(self, name: str, root: Path) -> None:
        shutil.copytree(EXAMPLES, root, ignore=shutil.ignore_patterns("certs", "__pycache__"), dirs_exist_ok=True)
        self.folder = root / name
        ports: dict[str, str] = {}
        for file in self.folder.iterdir():
            text = file.read_text(encoding="utf-8")
            file.write_text(PORT.sub(lambda found: ports.setdefault(found[0], str(free_port())), text), "utf-8")
        self._use_own_admin_socket()
        # Also where only root looks for programs; `mitu` and `python` are those that run this test.
        built = [str(server.path(name).parent) for server in SERVERS for name in server.programs]
        places = [str(Path(sys.executable).parent), *built, os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"]
        path = os.pathsep.join(places)
        self.environment = {**os.environ, "PATH": path, "COLUMNS": "100"}
        self.running: list[Program] = []
        self._numbers = itertools.count()

    def _use_own_admin_socket(self) -> None:
        """Not the machine's, which a real gateway may have."""
        file = next(self.folder.glob("mitu.*ml"))
        text = file.read_text(encoding="utf-8")
        own = "admin.socket = 'admin.sock'" if file.suffix == ".toml" else "admin: {socket: admin.sock}"
        text = f"{own}\n{text}"
        file.write_text(text, encoding="utf-8")

    @property
    def readme(self) -> list[Step]:
        return list(steps((self.folder / "README.md").read_text(encoding="utf-8")))

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, command: str) -> None:
        log = self.folder / f"{next(self._numbers)}.log"
        # `env`, since a command may begin with variables; `exec`, so that the program is the one that is stopped.
        self.running.append(Program(["bash", "-c", f"exec env {command}"], log, environment=self.environment))

    def follow(self, step: Step) -> None:
        """Run a step as a reader would, who waits a moment for what is starting."""
        if step.stays:
            self.start(step.command.removesuffix(" &"))
            return

        def as_told() -> bool:
            done = self.run(step.command)
            assert done.returncode == 0, (step.command, done.stdout, done.stderr)
            assert step.matches(done.stdout), f"{step.command}\nexpected:\n{step.expected}\nprinted:\n{done.stdout}"
            return True

        eventually(as_told, timeout=20, interval=0.3)

    def close(self) -> None:
        for program in reversed(self.running):
            program.stop()
            print(f"--- {shlex.join(program.command)}\n{program.log[-4000:]}")


@pytest.fixture
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    name = request.param
    for program in sorted(programs(name)):
        if not WANTED[program].found():
            pytest.skip(f"{program} is missing: {WANTED[program].advice}")
    # Short, since the path of a Unix socket may be 107 bytes long at most.
    with tempfile.TemporaryDirectory(prefix="mitu-") as root:
        session = Session(name, Path(root))
        yield session
        session.close()


@pytest.mark.parametrize("session", NAMES, indirect=True)
def test_the_readme(session: Session) -> None:
    certificates = Step("python ../certificates.py", "")
    assert session.readme[0] == certificates
    session.follow(certificates)
    assert session.run("PYTHONPATH=. mitu check --strict mitu.*ml").returncode == 0
    if "systemd-socket-activate" in str(session.readme) and shutil.which("systemd-socket-activate") is None:
        pytest.skip("systemd-socket-activate is missing: apt-get install systemd")
    for step in session.readme[1:]:
        session.follow(step)
        ended = [program.log for program in session.running if not program.alive()]
        assert not ended, ended
    gateway = next(program for program in reversed(session.running) if "mitu run" in program.command[-1])
    assert gateway.stop() == 0, gateway.log


def test_the_examples_that_there_are() -> None:
    linked = re.findall(r"^\| \[(\w+)\]\(\1\) \|", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(linked) == sorted([*NAMES, "demo"])
    assert len(NAMES) >= 9


def test_the_smallest_is_the_one_that_the_project_began_with() -> None:
    smallest = (EXAMPLES / "smallest" / "mitu.yaml").read_text(encoding="utf-8")
    assert smallest == (ROOT / "tests" / "golden" / "good" / "smallest.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("expected", "printed", "matches"),
    [
        ("a\n", "a\n", True),
        ("a\n", "a\nb\n", False),
        ("a\n...\nb\n", "a\nb\n", True),
        ("a\n...\nb\n", "a\nx\ny\nb\n", True),
        ("a\n...\nb\n", "a\nx\nc\n", False),
        ("a ... c\n", "a b c\n", True),
        ("a ... c\n", "a b\nc\n", False),
        ("1.5\n", "125\n", False),
        ("a\n", "a ", True),
        ("a\n", "", False),
    ],
)
def test_what_matches(expected: str, printed: str, matches: bool) -> None:
    assert Step("", expected).matches(printed) == matches


class TestTheDemo:
    PROTOCOLS = ("HTTP/1.1", "HTTP/2", "HTTP/3", "MQTT", "private/1", "smtp")

    @pytest.fixture
    def folder(self) -> Iterator[Path]:
        # Short, for the admin socket in it.
        with tempfile.TemporaryDirectory(prefix="mitu-") as folder:
            yield Path(folder)

    @staticmethod
    def command(folder: Path, *options: str) -> list[str]:
        return [sys.executable, "-m", "examples.demo", "--folder", str(folder), *options]

    def once(self, folder: Path, **environment: str) -> tuple[int, str]:
        """Exit code and output of a run that ends by itself."""
        done = subprocess.run(
            self.command(folder),
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8", **environment},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        print(done.stdout + done.stderr)
        return done.returncode, done.stdout + done.stderr

    @staticmethod
    def ports(text: str) -> list[int]:
        """Of the HTTP server, the broker and the gateway."""
        return [
            int(port) for port in re.findall(r"^  (?:HTTP server|MQTT broker|gateway) +127\.0\.0\.1:(\d+)", text, re.M)
        ]

    @pytest.mark.needs("curl")
    @pytest.mark.needs("openssl")
    @pytest.mark.needs("mosquitto")
    @pytest.mark.needs("mosquitto_pub")
    def test_every_protocol_is_answered(self, folder: Path) -> None:
        # Where the preferred ports are free they are taken away: it must not matter.
        with contextlib.ExitStack() as stack:
            taken = []
            for port in (GATEWAY_PORT, APP_PORT, BROKER_PORT):
                with contextlib.suppress(OSError):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
                taken.append(port)
            code, text = self.once(folder)
        assert code == 0
        for protocol in self.PROTOCOLS:
            assert re.search(rf"^  ✓ {re.escape(protocol)} ", text, re.MULTILINE), protocol
        assert "6 of 6 answered as they should be\n" in text
        assert text.count("app answers GET /hello") == 3
        assert "refused (no_application_protocol)" in text
        assert len(re.findall(r"over TLS 1\.3; handshake [0-9.]+ ms, [0-9.]+ ms of it in the gateway", text)) == 5
        assert "drained and stopped" in text
        found = self.ports(text)
        assert len(found) == 3
        assert not set(found) & set(taken)
        for port in found:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=5)

    @pytest.mark.parametrize("here", [(), ("mosquitto_pub", "mosquitto_sub")])
    def test_without_the_clients(self, folder: Path, tmp_path: Path, here: tuple[str, ...]) -> None:
        for program in ("sh", "head", "grep", *here):
            found = which(program)
            if found is None:
                pytest.skip(f"{program} is missing")
            (tmp_path / program).symlink_to(found)
        code, text = self.once(folder, PATH=str(tmp_path))
        if here and which("mosquitto"):
            assert (code, "6 of 6 answered as they should be\n" in text) == (0, True)
        else:
            assert (code, "5 of 5 answered as they should be, MQTT left out\n" in text) == (1, True)
            assert "is missing, so MQTT is left out; get it with: apt-get install mosquitto" in text
        assert text.count("app answers GET /hello") == 3
        assert len(re.findall(r"/client\.py localhost:\d+ ", text)) == 5

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_it_goes_on_on_a_terminal_and_leaves_nothing_behind(self, folder: Path, number: signal.Signals) -> None:
        ours, theirs = os.openpty()
        with os.fdopen(ours, "rb", buffering=0) as terminal:
            program = subprocess.Popen(
                self.command(folder), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
            )
            os.close(theirs)
            said = b""
            with contextlib.suppress(OSError):  # What reading says once nobody has the other end.
                while b"Ctrl-C ends it" not in said:
                    said += terminal.read(65536)
            text = re.sub(r"\x1b\[[0-9;]*m", "", said.decode()).replace("\r\n", "\n")
            assert program.poll() is None, text
            parts = [int(pid) for pid in Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()]
            assert len(parts) == len(self.ports(text)) >= 2
            other, complaint = self.once(folder)
            assert (other, "a demo is running in" in complaint) == (1, True)
            program.send_signal(number)
            with contextlib.suppress(OSError):
                while terminal.read(65536):
                    pass
            code = program.wait(30)
        assert code in {signal.SIGINT: (0, 1), signal.SIGTERM: (143,), signal.SIGKILL: (-9,)}[number]
        eventually(lambda: not any(map(runs, parts)), 20)

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        code, text = self.once(tmp_path / "file" / "demo")
        assert (code, "name another one with --folder" in text) == (1, True)


def runs(pid: int) -> bool:
    """Whether a process is there, and not only waiting for somebody to take note of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
