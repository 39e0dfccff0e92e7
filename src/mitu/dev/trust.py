"""The certificate stores of this machine, and how each is made to trust the local authority, or no longer to.

A store is data: the commands of its own tool. So what is done can be shown, and done by hand where it cannot be done
from here.
"""

from __future__ import annotations

import os
import shlex
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mitu.dev.authority import Authority, Pair

Command = tuple[str, ...]

_DEBIAN_FOLDER = Path("/usr/local/share/ca-certificates")
_TIMEOUT = 60.0
# Where Chromium and Firefox keep NSS databases: as packages, snaps and Flatpaks.
_NSS_DATABASES = (
    (".pki/nssdb", "Chromium"),
    ("snap/chromium/current/.pki/nssdb", "Chromium"),
    (".mozilla/firefox/*", "Firefox"),
    (".config/mozilla/firefox/*", "Firefox"),
    ("snap/firefox/common/.mozilla/firefox/*", "Firefox"),
    (".var/app/org.mozilla.firefox/.mozilla/firefox/*", "Firefox"),
)


@dataclass(frozen=True, slots=True)
class Store:
    """A certificate store. `add` and `remove` work on it; `holds` succeeds when the authority is in it."""

    name: str
    add: tuple[Command, ...]
    remove: tuple[Command, ...]
    holds: Command | None = None
    as_root: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one store. `by_hand`: the commands that do it, where they failed here."""

    store: str
    changed: bool
    error: str | None = None
    by_hand: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


def stores(authority: Authority, home: Path | None = None) -> list[Store]:
    """The stores that were found: the system's, then those that browsers keep below `home`."""
    found = [store for store in (_system(authority),) if store is not None]
    certutil = shutil.which("certutil")
    if certutil is not None:
        found += [_nss(authority, certutil, *one) for one in nss_databases(home or Path.home())]
    return found


def nss_databases(home: Path) -> Iterator[tuple[Path, str]]:
    """The databases of browsers, each with its browser."""
    for pattern, browser in _NSS_DATABASES:
        for folder in sorted(home.glob(pattern)):
            if (folder / "cert9.db").is_file():
                yield folder, browser


def advice(authority: Authority, home: Path | None = None) -> list[str]:
    """What has to be done by hand, where a tool is missing."""
    told = []
    if shutil.which("certutil") is None and (kept := sorted({name for _, name in nss_databases(home or Path.home())})):
        browsers = " and ".join(kept)
        told.append(f"{browsers}: get certutil (apt install libnss3-tools, dnf install nss-tools), and run this again")
    if _system(authority) is None:
        how = "security add-trusted-cert -r trustRoot -k ~/Library/Keychains/login.keychain-db"
        by_hand = (
            f"{how} {shlex.quote(str(authority.certificate))}" if sys.platform == "darwin" else authority.certificate
        )
        told.append(f"the system's store is not one that can be changed from here; add it by hand: {by_hand}")
    return told


def _system(authority: Authority) -> Store | None:
    """Debian and its kin have `update-ca-certificates`, Fedora and Arch p11-kit's `trust`."""
    certificate = str(authority.certificate)
    update = shutil.which("update-ca-certificates", path=_root_path())
    if update is not None and _DEBIAN_FOLDER.is_dir():
        target = str(_DEBIAN_FOLDER / f"mitu-dev-{authority.fingerprint[:8]}.crt")
        return Store(
            "the system's store",
            add=(("install", "-m", "0644", certificate, target), (update,)),
            remove=(("rm", "-f", target), (update, "--fresh")),
            holds=("cmp", "-s", certificate, target),
            as_root=True,
        )
    trust = shutil.which("trust", path=_root_path())
    if trust is not None:
        return Store(
            "the system's store",
            add=((trust, "anchor", "--store", certificate),),
            remove=((trust, "anchor", "--remove", certificate),),
            as_root=True,
        )
    return None


def _nss(authority: Authority, certutil: str, folder: Path, browser: str) -> Store:
    database = (certutil, "-d", f"sql:{folder}")
    return Store(
        f"{browser} ({folder})",
        # C: an authority for servers' certificates, and for nothing else.
        add=((*database, "-A", "-t", "C,,", "-n", authority.name, "-i", str(authority.certificate)),),
        remove=((*database, "-D", "-n", authority.name),),
        holds=(*database, "-L", "-n", authority.name),
    )


def install(store: Store) -> Outcome:
    """Put the authority into `store`, unless it is there."""
    if store.holds is not None and _run(store.holds) is None:
        return Outcome(store.name, changed=False)
    return _do(store, store.add)


def uninstall(store: Store) -> Outcome:
    """Take the authority out of `store`, if it is there."""
    if store.holds is not None and _run(store.holds) is not None:
        return Outcome(store.name, changed=False)
    return _do(store, store.remove)


def _do(store: Store, commands: Sequence[Command]) -> Outcome:
    become = ("sudo",) if store.as_root and os.geteuid() != 0 else ()
    by_hand = " && ".join(shlex.join((*become, *command)) for command in commands)
    if become and (shutil.which("sudo") is None or not sys.stdin.isatty()):
        return Outcome(store.name, changed=False, error="only root can change it", by_hand=by_hand)
    for command in commands:
        error = _run((*become, *command), interactive=bool(become))
        if error is not None:
            return Outcome(store.name, changed=False, error=error, by_hand=by_hand)
    return Outcome(store.name, changed=True)


def _run(command: Command, *, interactive: bool = False) -> str | None:
    """None when it succeeds, else what it said last. `interactive`: it may ask for a password, without time limit."""
    stdin, timeout = (None, None) if interactive else (subprocess.DEVNULL, _TIMEOUT)
    environment = {**os.environ, "PATH": _root_path()}
    try:
        done = subprocess.run(
            command, stdin=stdin, capture_output=True, text=True, timeout=timeout, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    said = (done.stderr or done.stdout).strip().splitlines()
    return said[-1] if said else f"{command[0]} ended with exit code {done.returncode}"


def _root_path() -> str:
    """Where only root looks for programs, too."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def by_this_system(pair: Pair) -> bool:
    """Whether clients that use the system's store, such as curl, trust `pair`: a handshake in memory tells."""
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(pair.certificate, pair.key)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(to_client, to_server, server_hostname="localhost")
    server = server_tls.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(2):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return True
