"""JupyterHub for a room: log in by the roster, work under an account of one's own, within limits.

JupyterHub's LocalProcessSpawner starts each learner's server under their own account, in a home that nobody else can
read. Limits that a learner cannot lift hold for each process (memory) and for the account (processes); the sum of the
memory of an account is watched, and the largest process beside the server is ended when it grows over the limit: the
notebook then says that its kernel has died. Cores are assigned in turn, and one thread each is set for OpenMP: threads
that wait for a core spin, and slow everybody down. These two are settings, not walls; where learners may be hostile,
use containers (docs/camp.en.md).
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from jupyterhub.auth import Authenticator
from jupyterhub.spawner import LocalProcessSpawner
from traitlets import Float, Integer, Unicode, default

from labkit.camp.desk import THREADS
from labkit.camp.roster import matches, read_roster

MEGABYTE = 2**20


class RosterAuthenticator(Authenticator):
    """Logs in who stands on the roster, with their passphrase. The file is read each time: changes count at once."""

    roster = Unicode(help="Path of roster.json").tag(config=True)

    @default("allow_all")
    def _everybody_on_the_roster(self) -> bool:
        return True

    @default("auth_refresh_age")
    def _look_again_after(self) -> int:
        return 60  # seconds

    async def authenticate(self, handler: Any, data: dict[str, str]) -> dict[str, Any] | None:
        """{"name", "admin"} of the person, or None: wrong name or passphrase."""
        people, name = read_roster(Path(self.roster)), self.normalize_username(data["username"])
        known = people.get(name)
        if await asyncio.to_thread(matches, known, data["password"]) and known is not None:
            return {"name": name, "admin": known.teacher}
        return None

    async def refresh_user(self, user: Any, handler: Any = None) -> bool:
        """Whoever has been taken off the roster must log in again, and cannot."""
        return user.name in read_roster(Path(self.roster))


def own_memory(uids: set[int]) -> dict[int, list[tuple[int, int]]]:
    """uid -> [(bytes of memory that are its own, process id)]; libraries that processes share count for nobody."""
    import psutil

    found: dict[int, list[tuple[int, int]]] = {uid: [] for uid in uids}
    for process in psutil.process_iter():
        try:
            uid = process.uids().real
            if uid in found:
                memory = process.memory_info()
                found[uid].append((memory.rss - getattr(memory, "shared", 0), process.pid))
        except psutil.Error:  # it has ended
            continue
    return found


class CampSpawner(LocalProcessSpawner):
    """One account, one server; see the module."""

    processes = Integer(256, help="How many processes and threads an account may have").tag(config=True)
    cores = Integer(1, help="How many cores a learner's processes run on; 0 for all").tag(config=True)
    threads = Integer(1, help="Threads of OpenMP and BLAS in each process").tag(config=True)
    lang = Unicode("en", help="Language of the lesson that opens first").tag(config=True)
    board = Unicode("", help="Folder for the summaries that learners share, or nothing").tag(config=True)
    share = Float(1.0, help="Of mem_limit: what one process may allocate").tag(config=True)

    _turn = 0

    def get_env(self) -> dict[str, str]:
        """The environment of the server: threads, language, where summaries go."""
        env = super().get_env()
        env |= {name: str(self.threads) for name in THREADS}
        env |= {"LABKIT_CAMP_LANG": self.lang, "HF_HUB_OFFLINE": "1"}
        if self.board:
            env["LABKIT_BOARD"] = self.board
        return env

    def make_preexec_fn(self, name: str) -> Any:
        """What the new process does before it becomes the server: limits, cores, then the learner's account."""
        become = super().make_preexec_fn(name)
        limit = int((self.mem_limit or 0) * self.share)
        mine = self._cores()

        def preexec() -> None:
            import resource

            os.umask(0o077)
            if limit:
                resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
            resource.setrlimit(resource.RLIMIT_NPROC, (self.processes, self.processes))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.sched_setaffinity(0, mine)
            os.nice(5)  # the hub and the proxy go first
            become()

        return preexec

    def _cores(self) -> set[int]:
        """The next `cores` of this machine, in turn."""
        known = sorted(os.sched_getaffinity(0))
        if not 0 < self.cores < len(known):
            return set(known)
        begin = CampSpawner._turn
        CampSpawner._turn = (begin + self.cores) % len(known)
        return {known[(begin + at) % len(known)] for at in range(self.cores)}

    async def poll(self) -> int | None:
        """Whether the server runs (None: it does); ends the largest process of an account that has grown too large."""
        status = await super().poll()
        if status is None and self.mem_limit and self.pid:
            self._watch()
        return status

    def _watch(self) -> None:
        import pwd
        import signal

        uid = pwd.getpwnam(self.user.name).pw_uid
        used = memory_of(uid)
        total = sum(size for size, _ in used)
        others = [entry for entry in used if entry[1] != self.pid]
        if total > self.mem_limit and others:
            size, pid = max(others)
            self.log.warning(
                "%s uses %d MB of %d: ending process %d (%d MB)",
                *(self.user.name, total / MEGABYTE, self.mem_limit / MEGABYTE, pid, size / MEGABYTE),
            )
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


_seen: tuple[float, dict[int, list[tuple[int, int]]]] = (0.0, {})


def memory_of(uid: int) -> list[tuple[int, int]]:
    """[(bytes, process id)] of one account; one look at the machine serves all accounts for two seconds."""
    global _seen
    if time.monotonic() - _seen[0] > 2 or uid not in _seen[1]:
        _seen = (time.monotonic(), own_memory({*_seen[1], uid}))
    return _seen[1][uid]
