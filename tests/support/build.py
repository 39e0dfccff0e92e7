"""Clients that are built from source once, into a cache outside the checkout."""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

CLIENTS = Path(__file__).parents[1] / "integration" / "clients"


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mitu-tests"


def go_client() -> Path:
    """The program of `clients/go`, built again when its source or the compiler changes."""
    source = CLIENTS / "go"
    version = subprocess.run(["go", "version"], check=True, capture_output=True).stdout
    content = b"".join(file.read_bytes() for file in sorted(source.iterdir()))
    program = cache_folder() / f"go-client-{hashlib.sha256(version + content).hexdigest()[:16]}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        aside = program.with_suffix(f".{os.getpid()}")
        subprocess.run(["go", "build", "-o", aside, "."], cwd=source, check=True)
        aside.replace(program)
    return program


def talk_stubs(folder: Path) -> tuple[ModuleType, ModuleType]:
    """The messages and the service of `clients/talk.proto`, generated into `folder`."""
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={CLIENTS}"]
    subprocess.run([*command, f"--python_out={folder}", f"--grpc_python_out={folder}", "talk.proto"], check=True)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("talk_pb2"), importlib.import_module("talk_pb2_grpc")
    finally:
        sys.path.remove(str(folder))
