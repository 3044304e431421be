"""A room for tests and benchmarks: a real hub of `labkit camp serve` on this machine, and learners who use it as a
browser does: they log in, wait for their server, open a notebook, run cells over the kernel's websocket."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import websocket

ROOT = Path(__file__).resolve().parents[1]


def why_not(python: str) -> str:
    """What this machine lacks for a hub, "" for nothing. Learners must be able to run `python`."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a hub makes accounts: it needs Linux and root"
    if shutil.which("configurable-http-proxy") is None:
        return "configurable-http-proxy is not on the path"
    if shutil.which("useradd") is None:
        return "useradd is missing"
    try:
        done = subprocess.run(
            [python, "-c", "import jupyterhub, torch"], user=65534, group=65534, cwd="/", capture_output=True, text=True
        )
    except OSError as error:
        return f"other accounts cannot run {python} ({error.strerror}): LABKIT_HUB_PYTHON names one that they can"
    return (done.stderr.splitlines() or ["it fails"])[-1] if done.returncode else ""


@dataclass
class Room:
    """A hub that runs: its address, its folder, passphrases by name, and the file of its log."""

    address: str
    folder: Path
    passphrases: dict[str, str]
    log: Path

    def learner(self, name: str) -> Learner:
        return Learner(self.address, name, self.passphrases[name])


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def room(python: str, names: list[str], *options: str) -> Iterator[Room]:
    """`labkit camp learners`, `labkit camp serve`, and at the end everything away again: hub, accounts, folder."""
    stem = f"lk{secrets.token_hex(3)}"
    names = [f"{stem}-{name}" for name in names]
    folder = Path(tempfile.mkdtemp(prefix="labkit-room-"))
    folder.chmod(0o711)
    camp, log, port = folder / "camp", folder / "hub.log", free_port()
    (folder / "names.txt").write_text("\n".join(names))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [python, "-m", "labkit.cli", "camp"]
    subprocess.run([*command, "learners", camp, folder / "names.txt"], check=True, env=environment, capture_output=True)
    lines = (camp / "slips.csv").read_text().splitlines()[1:]
    serve = [*command, "serve", str(camp), "--address", "127.0.0.1", "--port", str(port), *options]
    # The hub talks to its proxy on a port of its own; two hubs on one machine must not share it.
    (camp / "hub").mkdir(mode=0o700)
    api = f"c.ConfigurableHTTPProxy.api_url = 'http://127.0.0.1:{free_port()}'\nc.JupyterHub.hub_port = {free_port()}\n"
    (camp / "hub/jupyterhub_config.py").write_text(api)
    with log.open("wb") as out:
        hub = subprocess.Popen(serve, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        ends = time.monotonic() + 300
        while time.monotonic() < ends:
            try:
                if requests.get(f"{address}/hub/health", timeout=2).ok:
                    break
            except requests.RequestException:
                pass
            if hub.poll() is not None:
                break
            time.sleep(0.25)
        else:
            raise RuntimeError(f"the hub does not answer:\n{log.read_text()[-3000:]}")
        if hub.poll() is not None:
            raise RuntimeError(f"the hub has ended:\n{log.read_text()[-3000:]}")
        yield Room(address, camp, dict(line.split(",") for line in lines), log)
    except RuntimeError:
        print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
        raise
    finally:
        if hub.poll() is None:
            os.killpg(hub.pid, signal.SIGTERM)
            try:
                hub.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(hub.pid, signal.SIGKILL)
        for name in names:
            subprocess.run(["pkill", "-KILL", "-u", name], capture_output=True)  # processes of this account alone
            for _ in range(20):
                if subprocess.run(["userdel", name], capture_output=True).returncode in (0, 6):
                    break
                time.sleep(0.2)
        shutil.rmtree(folder, ignore_errors=True)


class Learner:
    """A browser, as far as a room needs one. `name` is the account."""

    def __init__(self, address: str, name: str, passphrase: str) -> None:
        self.address, self.name, self.passphrase = address, name, passphrase
        self.session = requests.Session()
        self.server = f"{address}/user/{name}"

    def log_in(self, passphrase: str | None = None) -> bool:
        """Whether the hub lets this learner in."""
        page = self.session.get(f"{self.address}/hub/login", timeout=60)
        token = re.search(r'name="_xsrf" value="([^"]+)"', page.text)[1]
        given = {"username": self.name, "password": passphrase or self.passphrase, "_xsrf": token}
        done = self.session.post(f"{self.address}/hub/login?next=%2Fhub%2Fhome", data=given, timeout=60)
        return done.ok and "/hub/home" in done.url

    def open(self, seconds: float = 900) -> float:
        """Start the server and wait until JupyterLab answers; seconds that took."""
        begun = time.monotonic()
        self.session.get(f"{self.address}/hub/spawn/{self.name}", timeout=120)
        while time.monotonic() - begun < seconds:
            answer = self.session.get(f"{self.server}/lab", timeout=120)
            if answer.ok and answer.url.startswith(f"{self.server}/lab"):
                return time.monotonic() - begun
            if "/hub/spawn-pending/" not in answer.url:  # it had not been asked yet, or was stopping
                self.session.get(f"{self.address}/hub/spawn/{self.name}", timeout=120)
            time.sleep(0.3)
        raise RuntimeError(f"no server for {self.name} after {seconds:.0f} s: {answer.status_code} {answer.url}")

    def stop(self) -> None:
        """Stop the server and wait until it has ended."""
        self.api("DELETE", f"{self.address}/hub/api/users/{self.name}/server").raise_for_status()
        for _ in range(240):
            known = self.api("GET", f"{self.address}/hub/api/users/{self.name}").json()
            if not known.get("server") and not known.get("pending"):
                return
            time.sleep(0.5)
        raise RuntimeError(f"the server of {self.name} does not end")

    def api(self, method: str, address: str, **kwargs: Any) -> requests.Response:
        """A call with the cookies of this browser and the token that the page would send."""
        path = address.removeprefix(self.address)
        tokens = [
            cookie.value for cookie in sorted(self.session.cookies, key=lambda one: -len(one.path))
            if cookie.name == "_xsrf" and path.startswith(cookie.path)
        ]  # fmt: skip
        headers = {"X-XSRFToken": tokens[0] if tokens else "", "Referer": f"{self.address}/hub/home"}
        return self.session.request(method, address, headers=headers, timeout=120, **kwargs)

    def notebook(self, path: str) -> dict[str, Any]:
        """The content of a notebook, as the server gives it."""
        answer = self.api("GET", f"{self.server}/api/contents/{path}")
        answer.raise_for_status()
        return answer.json()["content"]

    def save(self, path: str, content: dict[str, Any]) -> None:
        """Write a notebook, as Ctrl-S does."""
        body = {"type": "notebook", "format": "json", "content": content}
        self.api("PUT", f"{self.server}/api/contents/{path}", json=body).raise_for_status()

    @contextmanager
    def kernel(self, folder: str = "") -> Iterator[Kernel]:
        """A kernel in `folder` of this learner's copies, shut down at the end."""
        body = {"name": "python3", "path": folder}
        answer = self.api("POST", f"{self.server}/api/kernels", json=body)
        answer.raise_for_status()
        number = answer.json()["id"]
        host = self.server.replace("http://", "ws://")
        cookies = "; ".join(
            f"{one.name}={one.value}"
            for one in self.session.cookies
            if self.server.endswith(one.path.rstrip("/")) or one.path == "/"
        )
        line = websocket.create_connection(f"{host}/api/kernels/{number}/channels", cookie=cookies, timeout=600)
        try:
            yield Kernel(line)
        finally:
            line.close()
            self.api("DELETE", f"{self.server}/api/kernels/{number}")


class Kernel:
    """Runs code and says what it printed."""

    def __init__(self, line: websocket.WebSocket) -> None:
        self.line, self.session = line, uuid.uuid4().hex

    def run(self, code: str) -> tuple[str, str]:
        """(status, what was printed or the error): status "ok" or "error", or "dead" if the kernel ended."""
        number = uuid.uuid4().hex
        header = {
            "msg_id": number,
            "msg_type": "execute_request",
            "session": self.session,
            "username": "",
            "version": "5.3",
            "date": "",
        }
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        self.line.send(
            json.dumps(
                {
                    "header": header,
                    "parent_header": {},
                    "metadata": {},
                    "content": content,
                    "channel": "shell",
                    "buffers": [],
                }
            )
        )
        printed, status, idle = [], "", False
        while not (status and idle):
            raw = self.line.recv()
            if not isinstance(raw, str):  # a message with buffers (widgets)
                continue
            message = json.loads(raw)
            kind, said = message["msg_type"], message["content"]
            if kind == "status" and said.get("execution_state") in ("restarting", "dead", "autorestarting"):
                return "dead", "".join(printed)
            if message["parent_header"].get("msg_id") != number:
                continue
            if kind == "stream":
                printed.append(said["text"])
            elif kind == "error":
                printed.append(f"{said['ename']}: {said['evalue']}")
            elif kind == "execute_reply":
                status = said["status"]
            elif kind == "status":
                idle = said["execution_state"] == "idle"
        return status, "".join(printed)
