"""JupyterHub for a room on one machine: accounts and folders, then the hub itself.

CAMP/roster.json   who may log in (labkit camp learners)
CAMP/homes/NAME    the learners' homes, each readable by its owner alone; their copies are in labkit-work/
CAMP/board/        summaries that learners share: everybody may put a file there, nobody but root sees the others
CAMP/hub/          the hub's database and cookie secret, readable by root alone; a jupyterhub_config.py of your own
                   that lies here is read too
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.camp.roster import RosterError, read_roster
from labkit.errors import LabkitError

GROUP = "labkit-camp"  # of every account that this command has made
NUMBERS = range(20_000, 60_000)  # of these accounts


class CampError(LabkitError):
    """The hub cannot start: one line that says why and what to do."""


@dataclass(frozen=True)
class Limits:
    """For each learner: gigabytes of memory, cores (0: all), threads of OpenMP, processes and threads in all."""

    memory: float = 3.0
    cores: int = 1
    threads: int = 1
    processes: int = 256


def make_accounts(folder: Path, names: Sequence[str]) -> list[str]:
    """Make the accounts that are missing, with a home that only its owner can read; the names that are new.

    The accounts have no password: nobody logs in to the machine with them. A home that is there keeps what it holds,
    and its account gets the number that it belongs to (a container that was made anew knows no accounts). New numbers
    are above those of all homes, so that nobody inherits the files of somebody who has left.

    Raises:
        CampError: a name or a number belongs to somebody else on this machine, or an account cannot be made.
    """
    import grp
    import pwd

    try:
        grp.getgrnam(GROUP)
    except KeyError:
        _call("groupadd", "--system", GROUP)
    homes = {name: folder / "homes" / name for name in names}
    new = []
    for name in sorted(names, key=lambda one: not homes[one].is_dir()):  # homes that are there come first
        home = homes[name]
        if home.is_symlink():
            raise CampError(f"{home} is a link: homes are folders of their own")
        try:
            known = pwd.getpwnam(name)
        except KeyError:
            known = None
        if known is None:
            uid = home.stat().st_uid if home.is_dir() and home.stat().st_uid else free_number(folder / "homes")
            options = ["--no-create-home", "--home-dir", str(home), "--shell", "/bin/bash", "--groups", GROUP]
            _call("useradd", "--uid", str(uid), "--user-group", *options, name)
            new.append(name)
        elif name not in grp.getgrnam(GROUP).gr_mem:
            raise CampError(f"{name} is an account of this machine already: choose another name for the roster")
        elif Path(known.pw_dir) != home:
            raise CampError(f"the home of {name} is {known.pw_dir}, not {home}: serve that folder, or userdel {name}")
        make_home(home, *pwd.getpwnam(name)[2:4])
    return new


def free_number(homes: Path) -> int:
    """A number for a new account: above those of the accounts of rooms and of the owners of all homes."""
    import pwd

    taken = [entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid in NUMBERS]
    taken += [path.stat().st_uid for path in homes.iterdir() if path.stat().st_uid in NUMBERS] if homes.is_dir() else []
    number = max([NUMBERS.start - 1, *taken]) + 1
    if number not in NUMBERS:
        raise CampError(f"no account number is left between {NUMBERS.start} and {NUMBERS.stop - 1}")
    return number


def make_home(home: Path, uid: int, gid: int) -> None:
    """A folder that belongs to the account and that only its owner can read; one that is there keeps what it holds."""
    home.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    home.mkdir(mode=0o700, exist_ok=True)
    os.chown(home, uid, gid)
    home.chmod(0o700)


def make_folders(folder: Path) -> None:
    """The folders of a room, with the rights that the module docstring names."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)  # homes and board can be reached, nothing can be listed
    for name, mode in (("homes", 0o711), ("board", 0o1733), ("hub", 0o700)):
        (folder / name).mkdir(exist_ok=True)
        (folder / name).chmod(mode)


def reachable(name: str) -> str:
    """What keeps an account from running labkit; "" for nothing (an install under /root keeps everybody out)."""
    import pwd

    account = pwd.getpwnam(name)
    environment = {"PATH": os.defpath, "HOME": account.pw_dir, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import labkit.camp.desk, jupyterhub.singleuser"],
            **{"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [], "cwd": "/"},
            **{"env": environment, "capture_output": True, "text": True},
        )
    except OSError as error:  # a Python in a home that is closed to others
        return str(error)
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1] if done.returncode else ""


def hub_command(
    folder: Path,
    *,
    address: str,
    port: int,
    limits: Limits,
    lang: str,
    proxy: str,
    certificate: Path | None = None,
    key: Path | None = None,
) -> list[str]:
    """The command of the hub; what CAMP/hub/jupyterhub_config.py says is read too, what stands here wins."""
    folder = folder.resolve()
    options = {
        "JupyterHub.bind_url": f"{'https' if certificate else 'http'}://{address}:{port}",
        "JupyterHub.authenticator_class": "labkit.camp.hub.RosterAuthenticator",
        "JupyterHub.spawner_class": "labkit.camp.hub.CampSpawner",
        "JupyterHub.concurrent_spawn_limit": 5,
        "JupyterHub.cleanup_servers": "True",
        "ConfigurableHTTPProxy.command": proxy,
        "RosterAuthenticator.roster": folder / "roster.json",
        "Spawner.cmd": f"['{sys.executable}', '-m', 'labkit.camp.desk']",
        "Spawner.mem_limit": f"{int(limits.memory * 1024)}M",
        "Spawner.poll_interval": 5,
        "Spawner.start_timeout": 300,
        "CampSpawner.interrupt_timeout": 2,  # it asks a terminal whether it shall stop; SIGTERM does not
        "Spawner.http_timeout": 300,
        "CampSpawner.cores": limits.cores,
        "CampSpawner.threads": limits.threads,
        "CampSpawner.processes": limits.processes,
        "CampSpawner.lang": lang,
        "CampSpawner.board": folder / "board",
    }
    if certificate:
        options |= {"JupyterHub.ssl_cert": certificate.resolve(), "JupyterHub.ssl_key": (key or certificate).resolve()}
    return [sys.executable, "-m", "jupyterhub", *(f"--{name}={value}" for name, value in options.items())]


def prepare(folder: Path) -> tuple[str, list[str]]:
    """(command of the proxy, accounts that were made). CampError where this machine cannot serve a room."""
    import importlib.util

    if sys.platform != "linux":
        raise CampError("labkit camp serve needs Linux; on Windows and macOS give each learner a bundle instead")
    if importlib.util.find_spec("jupyterhub") is None:
        raise CampError('JupyterHub is missing: pip install -c constraints.txt -e ".[course,camp]"')
    proxy = shutil.which("configurable-http-proxy")
    if proxy is None:
        raise CampError(
            "configurable-http-proxy is missing: npm install -g configurable-http-proxy (Node.js 20 or newer)"
        )
    if os.geteuid() != 0:
        raise CampError("start it as root: each learner gets an account of their own, so that nobody reads the others")
    try:
        people = read_roster(folder / "roster.json")
    except RosterError as error:
        raise CampError(str(error)) from None
    if not people:
        raise CampError(f"nobody may log in yet: labkit camp learners {folder} 20 --teacher NAME")
    make_folders(folder)
    new = make_accounts(folder.resolve(), list(people))
    problem = reachable(next(iter(people)))
    if problem:
        raise CampError(
            f"learners cannot run labkit from {sys.prefix}: {problem}; install it where all may read, as /opt"
        )
    return proxy, new


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CampError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
