"""`mitu dev`: trusted HTTPS on this machine, at once."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from mitu.cli.check import to_yaml
from mitu.cli.output import Exit, console, print_error, print_json

if TYPE_CHECKING:
    from mitu.dev.authority import Authority
    from mitu.dev.serve import Serving
    from mitu.dev.trust import Outcome

DEFAULT_BIND, DEFAULT_PORT = "127.0.0.1", 8443
_SERVING = "What is served"
_TRUST = "Trust"
_OUTPUT = "Output"


def command(
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="ADDRESS",
            help="The HTTP server that gets the requests: 3000, 127.0.0.1:3000, http://host:3000 or unix:/path."
            " Without it, a page tells what was negotiated.",
            rich_help_panel=_SERVING,
        ),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="A name for the certificate besides localhost: app.localhost, 192.168.1.5. May be given again.",
            show_default=False,
            rich_help_panel=_SERVING,
        ),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, help="0 takes a free one.", rich_help_panel=_SERVING)
    ] = DEFAULT_PORT,
    bind: Annotated[
        str,
        typer.Option(
            "--bind",
            metavar="IP",
            help="The address to listen on; 0.0.0.0 lets other machines in.",
            rich_help_panel=_SERVING,
        ),
    ] = DEFAULT_BIND,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Add the local authority to the stores of the system, Chromium and Firefox, and exit.",
            rich_help_panel=_TRUST,
        ),
    ] = False,
    untrust: Annotated[
        bool, typer.Option("--untrust", help="Remove it from all of them, and exit.", rich_help_panel=_TRUST)
    ] = False,
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config",
            help="Print the same as a configuration for 'mitu run', and exit.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    access_log: Annotated[
        bool, typer.Option("--log", help="Print one JSON line for each request.", rich_help_panel=_OUTPUT)
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one line of JSON once it serves, for machines.", rich_help_panel=_OUTPUT),
    ] = False,
) -> None:
    """Serve HTTPS on this machine with a certificate that its browsers can trust.

    The first time, it makes a certificate authority for this machine; 'mitu dev --trust' makes browsers trust it.

    That authority can vouch for localhost, .test, .local, .internal and .home.arpa, and for no public name.

    Exit code 0: ended by Ctrl-C, or done; 1: it could not start, or a store could not be changed; 2: wrong usage.
    """
    from mitu.dev import WantedError
    from mitu.dev.authority import Authority, default_folder
    from mitu.errors import MituError

    if sum((trust, untrust, print_config)) > 1:
        raise typer.BadParameter("--trust, --untrust and --print-config exclude each other")
    try:
        authority = Authority.open(default_folder())
        if trust or untrust:
            _change_trust(authority, add=trust, as_json=as_json)
        elif print_config:
            _print_config(authority, to, names or [], _address(bind, port))
        else:
            _serve(authority, to, names or [], _address(bind, port), access_log=access_log, as_json=as_json)
    except WantedError as error:
        raise typer.BadParameter(str(error)) from None
    except MituError as error:
        print_error(f"{error}{_next_step(str(error), port)}", console(stderr=True))
        raise typer.Exit(int(Exit.PROBLEM)) from None


def _address(bind: str, port: int) -> str:
    from ipaddress import ip_address

    try:
        host = ip_address("127.0.0.1" if bind == "localhost" else bind.strip("[]"))
    except ValueError:
        raise typer.BadParameter(f"--bind takes an IP address of this machine, not '{bind}'") from None
    return f"[{host}]:{port}" if host.version == 6 else f"{host}:{port}"


def _serve(
    authority: Authority, to: str | None, names: list[str], bind: str, *, access_log: bool, as_json: bool
) -> None:
    from mitu import logs
    from mitu.config.model import Logging
    from mitu.dev.config import target
    from mitu.dev.serve import serve

    logs.configure(Logging(level="warning"))
    wanted = None if to is None else target(to)
    ready = _print_facts if as_json else _welcome
    asyncio.run(serve(authority, names, bind, wanted, ready, access_log=access_log))


def _welcome(serving: Serving) -> None:
    """What people want to know now: where it is, how to try it, how to trust it, how to go on."""
    from mitu.dev.trust import by_this_system

    trusted = by_this_system(serving.pair)
    url, ca = serving.urls[0], str(serving.authority.certificate)
    curl = ["curl", url] if trusted else ["curl", "--cacert", ca, url]
    to = "a page that tells what was negotiated" if serving.to is None else serving.to.url
    out = console()
    out.print()
    out.print(Text.assemble(("  mitu dev  ", "bold green"), (url, "bold"), ("  ->  ", "dim"), to))
    for more in serving.urls[1:]:
        out.print(Text(f"            {more}", style="bold"))
    out.print()
    _row(out, "certificate", f"{', '.join(serving.covered)}; until {serving.expires:%Y-%m-%d}")
    _row(out, "authority", ca)
    _row(out, "", "trusted by this system" if trusted else "not trusted here yet; 'mitu dev --trust' changes that")
    _row(out, "try it", shlex.join(curl))
    _row(out, "grow out", f"{shlex.join(['mitu', 'dev', *_options(serving), '--print-config'])} > mitu.yaml")
    _row(out, "", "mitu run mitu.yaml")
    out.print()
    if not serving.reachable:
        told = f"  nothing listens at {to} yet: start it, and load the page again\n"
        out.print(Text(told, style="yellow"))
    out.print(Text("  Ctrl-C ends it", style="dim"))


def _row(out: Console, label: str, value: str) -> None:
    out.print(Text.assemble((f"  {label:<14}", "dim"), value))


def _options(serving: Serving) -> list[str]:
    """The options that lead to the same again."""
    from mitu.config.types import split_host_port

    to = [] if serving.to is None else ["--to", serving.to.url]
    names = [word for name in serving.names for word in ("--name", name)]
    host, port = split_host_port(serving.address) or ("", 0)
    bind = [] if host == DEFAULT_BIND else ["--bind", host]
    return [*to, *names, *bind, *([] if port == DEFAULT_PORT else ["--port", str(port)])]


def _print_facts(serving: Serving) -> None:
    from mitu.dev.trust import by_this_system

    facts = {
        "url": serving.urls[0],
        "urls": serving.urls,
        "address": serving.address,
        "to": None if serving.to is None else serving.to.url,
        "reachable": serving.reachable,
        "protocols": ["h2", "http/1.1"],
        "names": serving.covered,
        "ca": str(serving.authority.certificate),
        "certificate": str(serving.pair.certificate),
        "key": str(serving.pair.key),
        "expires": serving.expires.isoformat(),
        "trusted": by_this_system(serving.pair),
        "pid": os.getpid(),
    }
    print(json.dumps(facts), flush=True)


def _print_config(authority: Authority, to: str | None, names: list[str], bind: str) -> None:
    from mitu.dev.config import configuration, target

    form = configuration(authority.server(names), bind, None if to is None else target(to))
    print("# What 'mitu dev' serves. 'mitu check mitu.yaml' checks it, 'mitu run mitu.yaml' runs it.")
    print(to_yaml(form), end="")


def _change_trust(authority: Authority, *, add: bool, as_json: bool) -> None:
    from mitu.dev import trust

    outcomes = [trust.install(one) if add else trust.uninstall(one) for one in trust.stores(authority)]
    advice = trust.advice(authority)
    if as_json:
        print_json({"ca": str(authority.certificate), "stores": [asdict(one) for one in outcomes], "advice": advice})
    else:
        out = console()
        for outcome in outcomes:
            out.print(_told(outcome, add=add))
        for line in advice:
            out.print(Text(line, style="yellow"))
    # What could not be looked at is not well: a browser whose store needs a tool that is missing.
    well = bool(outcomes) and all(outcome.error is None for outcome in outcomes) and not advice
    if well and add and not as_json:
        console().print("restart browsers that are open, then: mitu dev", markup=False)
    raise typer.Exit(int(Exit.OK if well else Exit.PROBLEM))


def _told(outcome: Outcome, *, add: bool) -> Text:
    if outcome.error is not None:
        text = Text.assemble(("failed", "bold red"), f"  {outcome.store}: {outcome.error}")
        return text.append(f"\n        by hand: {outcome.by_hand}") if outcome.by_hand else text
    changed, unchanged = (
        ("trusts it now", "trusted it already") if add else ("no longer trusts it", "did not trust it")
    )
    return Text.assemble(("ok", "green"), f"      {outcome.store} {changed if outcome.changed else unchanged}")


def _next_step(error: str, port: int) -> str:
    """What most people do about an error of the operating system."""
    if "Address already in use" in error:
        other = port + 1 if port < 65535 else DEFAULT_PORT
        return (
            f"\n  = take another: 'mitu dev --port {other}', or '--port 0' for any that is free"
            f"\n  = who has it: ss -ltnp 'sport = :{port}'"
        )
    if "Permission denied" in error:
        return f"\n  = ports below 1024 are root's; 'mitu dev --port {DEFAULT_PORT}' needs no rights"
    if "Cannot assign requested address" in error:
        return "\n  = no interface of this machine has that address: 'ip addr' lists them"
    return ""
