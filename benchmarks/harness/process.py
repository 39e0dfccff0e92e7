"""What a server has used, from `/proc`: CPU by the scheduler's own count, memory, and the sockets it listens on."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_LISTEN = "0A"


def family(pid: int) -> list[int]:
    """`pid` and every process below it."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                # The name (field 2) may hold spaces and parentheses; the parent is the second field behind it.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            children[int(fields[1])].append(int(entry.name))
    found = [pid]
    for parent in found:
        found.extend(children[parent])
    return found


@dataclass(frozen=True)
class Cpu:
    """CPU time by thread, in nanoseconds."""

    threads: dict[tuple[int, int], int]

    def since(self, earlier: Cpu) -> int:
        """Nanoseconds spent after `earlier`.

        Raises:
            RuntimeError: a thread has ended in between, and its time is lost with it.
        """
        if gone := earlier.threads.keys() - self.threads.keys():
            # A thread that ended takes its count along; the little that an idle helper had would not matter, but
            # what cannot be known is not reported.
            raise RuntimeError(f"{len(gone)} thread(s) of the server ended during the measurement")
        return sum(spent - earlier.threads.get(thread, 0) for thread, spent in self.threads.items())


def cpu(pid: int) -> Cpu:
    """The CPU time so far of every thread of `pid` and of the processes below it."""
    threads: dict[tuple[int, int], int] = {}
    for process in family(pid):
        try:
            tasks = list((PROC / str(process) / "task").iterdir())
        except FileNotFoundError:
            continue
        for task in tasks:
            try:
                threads[process, int(task.name)] = int((task / "schedstat").read_text().split()[0])
            except (FileNotFoundError, ProcessLookupError):
                continue
    return Cpu(threads)


def waited(pid: int, name: str) -> int:
    """Nanoseconds for which threads of `pid` whose name begins with `name` could have run, but others had the core."""
    total = 0
    for task in (PROC / str(pid) / "task").iterdir():
        if (task / "comm").read_text().startswith(name):
            total += int((task / "schedstat").read_text().split()[1])
    return total


def resident(pid: int) -> int:
    """Resident memory of `pid` and the processes below it, in bytes."""
    total = 0
    for process in family(pid):
        try:
            status = (PROC / str(process) / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS:"))
    return total


def kernel_memory() -> int:
    """What the kernel holds for sockets on the whole machine, in bytes: slab objects and socket buffers."""
    meminfo = dict(line.split(":", 1) for line in (PROC / "meminfo").read_text().splitlines())
    slab = int(meminfo["SUnreclaim"].split()[0]) << 10
    tcp = next(line for line in (PROC / "net/sockstat").read_text().splitlines() if line.startswith("TCP:"))
    return slab + int(tcp.rsplit(" ", 1)[1]) * os.sysconf("SC_PAGE_SIZE")


def core_busy(core: int) -> int:
    """Nanoseconds that `core` has spent on anything but idling, since boot."""
    line = next(line for line in (PROC / "stat").read_text().splitlines() if line.startswith(f"cpu{core} "))
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in line.split()[1:9])
    return (user + nice + system + irq + softirq + steal) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def listening_inodes(port: int) -> set[int]:
    """Inodes of the sockets that listen on TCP `port`, on any address."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        for line in (PROC / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(int(fields[9]))
    return inodes


def socket_inodes(pid: int) -> set[int]:
    """Inodes of the sockets that `pid` and the processes below it hold."""
    inodes = set()
    for process in family(pid):
        try:
            descriptors = list((PROC / str(process) / "fd").iterdir())
        except FileNotFoundError:
            continue
        for descriptor in descriptors:
            try:
                target = str(descriptor.readlink())
            except FileNotFoundError:
                continue
            if target.startswith("socket:["):
                inodes.add(int(target[8:-1]))
    return inodes
