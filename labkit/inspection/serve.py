"""The inspection page on this machine alone: pictures out, verdicts in, until every inspector has handed in.

Only pictures of the sample are served, under an address that nobody can guess; nothing listens beyond 127.0.0.1.
"""

from __future__ import annotations

import io
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

from labkit.errors import LabkitError
from labkit.inspection.digest import digest_file
from labkit.inspection.lot import InspectionError, Lot
from labkit.inspection.page import page_html
from labkit.inspection.verdicts import (
    Defect,
    Verdict,
    parse_verdicts,
    read_verdicts,
    same_person,
    tally,
    write_verdicts,
)

MOST = 10_000_000  # bytes of verdicts


class Sitting:
    """One inspection over HTTP: `address` is the page, `wait` returns the verdicts of all inspectors.

    Args:
        lot, sample, defects: what is looked at. inspectors: how many must hand in. barred: names that may not inspect.
        lang: "ja" or "en". keep: folder for each person's verdicts, as the page saves them without a server; those that
        lie there from an interrupted sitting of the same draw count. draw: its name.

    Raises:
        InspectionError: files of that draw in `keep` that are no verdicts of one person on the whole sample.
    """

    def __init__(
        self,
        lot: Lot,
        sample: Sequence[str],
        defects: Sequence[Defect],
        *,
        lang: str,
        inspectors: int = 1,
        barred: Sequence[str] = (),
        keep: Path | str | None = None,
        draw: str = "",
    ) -> None:
        self.keep = None if keep is None else Path(keep)
        self.lot, self.sample, self.defects = lot, list(sample), tuple(defects)
        self.inspectors, self.barred = inspectors, {same_person(name) for name in barred}
        self.draw = draw
        self.by_person: dict[str, list[Verdict]] = {}
        self._lock, self._done = threading.Lock(), threading.Event()
        if self.keep is not None and draw:
            for path in sorted(self.keep.glob(f"{self._stem()}-*.jsonl")):
                verdicts = read_verdicts(path, draw=draw)
                self.by_person[self._person(verdicts)] = verdicts
            self._count()
        root = f"/{secrets.token_urlsafe(16)}"
        pictures = [f"{root}/picture/{i}" for i in range(len(self.sample))]
        orders = [lot[name].text for name in self.sample]
        words = {"lang": lang, "orders": orders, "barred": barred, "submit": f"{root}/verdicts", "draw": draw}
        page = page_html(lot.name, sample, pictures, defects, **words)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, root, page.encode("utf-8")))
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}{root}/"

    def __enter__(self) -> Sitting:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait(self, seconds: float | None = None) -> list[Verdict]:
        """The verdicts, once everybody has handed in.

        Raises:
            InspectionError: not everybody has after `seconds`.
        """
        end = None if seconds is None else time.monotonic() + seconds
        while not self._done.is_set() and (end is None or time.monotonic() < end):
            self._done.wait(0.5 if end is None else min(0.5, max(0.0, end - time.monotonic())))  # Ctrl-C on Windows
        if not self._done.is_set():
            raise InspectionError(
                f"{len(self.by_person)} of {self.inspectors} inspectors handed in: call the same again for the others, "
                "the sample stays"
            )
        return [verdict for told in self.by_person.values() for verdict in told]

    def picture(self, number: int) -> bytes:
        """One picture of the sample as PNG, as the rules saw it.

        Raises:
            InspectionError: the file is not the one that was drawn. ImageError: it is gone.
        """
        item, buffer = self.lot[self.sample[number]], io.BytesIO()
        pixels = item.open()
        if digest_file(item.path) != item.sha256:
            raise InspectionError(f"{item.name} was changed after the draw")
        Image.fromarray(pixels).save(buffer, format="PNG")
        return buffer.getvalue()

    def hand_in(self, text: str) -> str:
        """Accept one person's verdicts on the whole sample; returns how many people have handed in, "1 / 2".

        Raises:
            InspectionError: several names, a barred or known one, or verdicts that do not cover the sample.
        """
        verdicts = parse_verdicts(text, "the page", draw=self.draw)
        with self._lock:
            person = self._person(verdicts)
            if self.keep is not None:  # first on the disk, then counted
                path = self.keep / f"{self._stem()}-{len(self.by_person) + 1}.jsonl"
                write_verdicts(path, verdicts, draw=self.draw)
            self.by_person[person] = verdicts
            return self._count()

    def _stem(self) -> str:
        """How the files of this draw begin: those of another one are never overwritten."""
        return f"verdicts-{self.draw[:8]}" if self.draw else "verdicts"

    def _person(self, verdicts: Sequence[Verdict]) -> str:
        """Whose verdicts these are, if they can count."""
        people = {same_person(verdict.inspector): verdict.inspector for verdict in verdicts}
        if len(people) != 1:
            raise InspectionError(f"expected the verdicts of one person, got {sorted(people.values())}")
        ((person, name),) = people.items()
        if person in self.barred:
            raise InspectionError(f"{name!r} made the pictures: someone else must look")
        if person in self.by_person:
            raise InspectionError(f"{name!r} has handed in already: two people need two names")
        tally(self.sample, verdicts, defects=self.defects)
        return person

    def _count(self) -> str:
        if len(self.by_person) >= self.inspectors:
            self._done.set()
        return f"{len(self.by_person)} / {self.inspectors}"


def _handler(sitting: Sitting, root: str, page: bytes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
            if self.path in (root, f"{root}/"):
                self._answer(200, page, "text/html; charset=utf-8")
                return
            number = self.path.removeprefix(f"{root}/picture/")
            try:
                if number.isdecimal() and int(number) < len(sitting.sample):
                    self._answer(200, sitting.picture(int(number)), "image/png")
                    return
            except LabkitError:
                pass  # the file is gone or was changed: the page says that it cannot be shown
            self._answer(404, b"not found", "text/plain")

        def do_POST(self) -> None:  # noqa: N802
            length = int(self.headers.get("Content-Length") or 0)
            if self.path != f"{root}/verdicts" or not 0 < length <= MOST:
                self._answer(404, b"not found", "text/plain")
                return
            self._guarded(lambda: sitting.hand_in(self.rfile.read(length).decode("utf-8")))

        def _guarded(self, action: Callable[[], str]) -> None:
            try:
                status, text = 200, action()
            except (LabkitError, ValueError, OSError) as error:
                status, text = 400, str(error)
            self._answer(status, text.encode("utf-8"), "text/plain; charset=utf-8")

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing on the terminal for every picture."""

    return Handler
