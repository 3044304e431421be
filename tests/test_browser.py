"""In a real browser: widgets and a learner's evening in JupyterLab, in both languages, and pages that run no script.

Needs a Chromium on the machine (fixture `browser_path` in conftest.py); nothing is downloaded. Screenshots are kept in
the folder that LABKIT_SCREENSHOTS names, if it is set.
"""

import hashlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from payloads import PAYLOADS, spoiled_ledger, spoiled_notebook, spoiled_report

from labkit.course.i18n import t
from labkit.course.manifest import ROOT, Project
from labkit.course.render import POLICY

pytestmark = pytest.mark.browser

SECONDS = 1000  # milliseconds, Playwright's unit
PATIENCE = 180 * SECONDS
SETTINGS = {
    "@jupyterlab/translation-extension/plugin": {"locale": "{locale}"},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}
LOCALES = {"en": "en", "ja": "ja_JP"}
FILE_MENU = {"en": "File", "ja": "ファイル"}

# In the page. The kernel is ready (until it is, JupyterLab asks which kernel to take) and idle.
READY = """() => {
    const context = window.jupyterapp?.shell.currentWidget?.sessionContext;
    return context?.isReady && context.session?.kernel?.status === "idle";
}"""
# Every code cell has its number, or one has failed.
ALL_RAN = """() => document.querySelector("[data-mime-type='application/vnd.jupyter.error']") !== null
    || [...document.querySelectorAll(".jp-CodeCell .jp-InputArea-prompt")].every(one => /\\d/.test(one.textContent))"""


def notebooks():
    """The small notebook of tests/data in both languages, and lesson 00 where it has been built."""
    cases = [pytest.param(ROOT / "tests" / "data" / "widget.ipynb", lang, id=f"widget-{lang}") for lang in LOCALES]
    for path in sorted((ROOT / "notebooks" / "ja").glob("00_*.ipynb")):
        cases.append(pytest.param(path, "ja", id="lesson00-ja"))
    return cases


def up_to_the_widget(notebook):
    """The notebook as far as its first widget, without the cell that starts Python anew; smoke runs run the rest."""
    cells = notebook["cells"]
    end = next(at for at, cell in enumerate(cells) if "widget" in cell["metadata"].get("tags", []))
    return notebook | {"cells": [cell for cell in cells[: end + 1] if cell["id"] != "cold-start"]}


class Server:
    """A JupyterLab that has been started: free port, token, Jupyter's and the learner's folders in a temporary one."""

    def __init__(self, folder, command, **environment):
        self.log = (folder / "lab.log").open("w+")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.token = secrets.token_hex(16)
        env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
        for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
            env[f"JUPYTER_{name}"] = str(folder / name.lower())
        paths = [str(ROOT), *filter(None, [env.get("PYTHONPATH")])]
        env.update(
            IPYTHONDIR=str(folder / "ipython"),
            LABKIT_HOME=str(folder / "home"),
            LABKIT_RESULTS=str(folder / "results"),
            PYTHONPATH=os.pathsep.join(paths),
            PYDEVD_DISABLE_FILE_VALIDATION="1",
        )
        options = {
            "ServerApp.port": self.port,
            "ServerApp.port_retries": 0,
            "ServerApp.open_browser": False,
            "IdentityProvider.token": self.token,
            "LabApp.expose_app_in_browser": True,
        }
        command = [sys.executable, "-m", *command, *(f"--{name}={value}" for name, value in options.items())]
        self.process = subprocess.Popen(
            command, cwd=folder, env={**env, **environment}, stdout=self.log, stderr=subprocess.STDOUT
        )

    def wait(self, seconds=180):
        end = time.monotonic() + seconds
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                with direct.open(self.url("api/status"), timeout=5):
                    return self
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"JupyterLab did not start:\n{self.said()[-3000:]}")

    def said(self):
        return Path(self.log.name).read_text(encoding="utf-8")

    def url(self, path):
        return f"http://127.0.0.1:{self.port}/{path}?token={self.token}"

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


class Lab(Server):
    """JupyterLab over a folder `root`, with settings that a test writes."""

    def __init__(self, folder):
        self.root, self.settings = folder / "root", folder / "settings"
        self.root.mkdir()
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.root_dir": self.root,
            "ServerApp.allow_root": True,
            "LabApp.news_url": "None",
            "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        }
        own = {"JUPYTERLAB_SETTINGS_DIR": self.settings, "JUPYTERLAB_WORKSPACES_DIR": folder / "workspaces"}
        command = ["jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
        super().__init__(folder, command, **{name: str(value) for name, value in own.items()})

    def speak(self, lang):
        """Settings are read when a page is loaded."""
        for plugin, values in SETTINGS.items():
            path = self.settings / f"{plugin}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(values).replace("{locale}", LOCALES[lang])
            path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def browser(browser_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    arguments = ["--no-proxy-server", "--disable-dev-shm-usage"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=browser_path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        yield lab.wait()
    finally:
        lab.stop()


@pytest.fixture
def opened(browser, lab, request, notebook, lang):
    """The notebook in a fresh page of JupyterLab in the language, kernel ready."""
    lab.speak(lang)
    name = f"{lang}_{notebook.name}"
    source = json.dumps(up_to_the_widget(json.loads(notebook.read_text(encoding="utf-8"))))
    for old, new in (('lang = \\"en\\"', f'lang = \\"{lang}\\"'), ('tier = \\"cpu\\"', 'tier = \\"smoke\\"')):
        source = source.replace(old, new)
    (lab.root / name).write_text(source, encoding="utf-8")
    page = browser.new_page(viewport={"width": 1280, "height": 1500}, locale=lang)
    page.set_default_timeout(PATIENCE)
    try:
        page.goto(lab.url(f"lab/tree/{name}") + "&reset")  # not the tabs of the page before
        page.wait_for_function(READY)
        yield page
    finally:
        keep_screenshot(page, request.node.callspec.id)
        page.evaluate("() => {window.jupyterapp?.serviceManager.sessions.shutdownAll(); return 0}")
        page.close()


def run_all(page):
    """Run every cell and wait until each has its number, or one has failed."""
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); return 0 }")
    page.wait_for_function(ALL_RAN)
    page.wait_for_function(READY)


# Radio buttons and the text of their options: [[box, box], ...] in pixels of the page.
CHOICES = """() => [...document.querySelectorAll(".labkit-choice label")].filter(label => label.querySelector("input"))
    .map(label => { const text = document.createRange();
        const words = [...label.childNodes].find(node => node.nodeName !== "INPUT"); text.selectNode(words);
        return [label.querySelector("input"), text].map(one => one.getBoundingClientRect().toJSON()); })"""


def change_a_control(widget):
    """Move the first slider a step with the keyboard, or choose the next entry of the first list; press the button."""
    handles, lists = widget.locator(".noUi-handle"), widget.locator("select")
    if handles.count():
        handles.first.focus()
        handles.first.press("ArrowRight")
    else:
        entries = lists.first.locator("option").count()
        lists.first.select_option(index=(lists.first.evaluate("list => list.selectedIndex") + 1) % entries)
    button = widget.locator("button.mod-primary")
    if button.count():
        button.first.click()


def live_source(page, widget, other_than=None):
    """Address of the widget's picture, once it differs from `other_than`."""
    image = widget.locator("img.labkit-live")
    image.wait_for()
    if other_than is not None:
        handle = image.element_handle()
        page.wait_for_function("([image, old]) => !image.isConnected || image.src !== old", arg=[handle, other_than])
    return widget.locator("img.labkit-live").get_attribute("src")


@pytest.mark.parametrize(("notebook", "lang"), notebooks())
def test_moving_a_widget_shows_another_picture(opened, lang):
    page = opened
    assert page.locator("#jp-MainMenu").get_by_text(FILE_MENU[lang], exact=True).count() == 1
    run_all(page)
    errors = page.locator("[data-mime-type='application/vnd.jupyter.error']")
    assert errors.count() == 0, errors.first.inner_text()

    for radio, text in page.evaluate(CHOICES):  # of a quiz or a prediction: each option beside its own button
        assert text["left"] - 25 < radio["right"] <= text["left"]
        assert abs(radio["top"] + radio["height"] / 2 - text["top"] - min(text["height"], 20) / 2) < 5

    widget = page.locator(".labkit-explore").first
    widget.wait_for()
    widget.scroll_into_view_if_needed()
    output = page.locator(".jp-OutputArea", has=widget).first
    still = output.locator("img.labkit-figure").first  # the picture for the initial values
    first = still.get_attribute("src")
    assert first.startswith("data:image/png") and len(still.get_attribute("alt")) > 5
    assert widget.locator("img.labkit-live").count() == 0

    change_a_control(widget)
    second = live_source(page, widget)
    assert second.startswith("data:image/png") and second != first
    change_a_control(widget)
    third = live_source(page, widget, other_than=second)
    assert third != second

    image = widget.locator("img.labkit-live")
    assert image.evaluate("image => image.complete && image.naturalWidth > 50")
    assert len(image.get_attribute("alt")) > 5
    assert still.get_attribute("src") == first  # it stays for comparison


# ---- a learner's evening --------------------------------------------------------------------------------------------

# In the page: the notebook in front, its cells by id, and what a cell shows.
FIND = "const cells = window.jupyterapp.shell.currentWidget.content.widgets;"
CELLS = f"""() => {{ {FIND} return cells.map(cell => ({{
    id: cell.model.sharedModel.id, type: cell.model.type, tags: cell.model.getMetadata("tags") ?? [],
    exercise: cell.model.getMetadata("labkit")?.exercise }})) }}"""
WRITE = f"([at, text]) => {{ {FIND} cells[at].model.sharedModel.setSource(text) }}"
# The window holds what is awaited: a promise that nothing else refers to may be collected before it is settled.
RUN = f"""at => window.awaited = (async () => {{ {FIND}
    const notebook = window.jupyterapp.shell.currentWidget.content;
    notebook.deselectAll(); notebook.activeCellIndex = at;
    await window.jupyterapp.commands.execute("notebook:run-cell");
    return cells[at].outputArea?.node.innerText ?? ""; }})()"""
IN_FRONT = "path => window.jupyterapp.shell.currentWidget?.context?.path === path"
SAVE = "() => window.awaited = (async () => { await window.jupyterapp.commands.execute('docmanager:save') })()"


def evening_lesson(lang):
    """(path of the first lesson's source, its solution edition in the language)."""
    from labkit.authoring.notebook import Course

    path = Project().source_files()[0]
    return path, json.loads(Course.of(Project()).notebook(path, lang, "solution"))


def checksums(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.ipynb"))}


def keep_screenshot(shown, name):
    """Of a page, or of one element in it."""
    folder = os.environ.get("LABKIT_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        shown.screenshot(path=Path(folder) / f"{name}.png")


def look_at(cell, name):
    """Keep a screenshot of what a cell shows."""
    cell.scroll_into_view_if_needed()
    keep_screenshot(cell, name)


@pytest.fixture
def evening(browser, tmp_path, lang):
    """(server, page): `labkit lab` in a folder of its own, as a learner sees it after the command; kernel ready."""
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")
    command = ["labkit.cli", "lab", "--lang", lang, "--folder", str(tmp_path / "work"), "--no-browser"]
    server = Server(tmp_path, command)
    page = browser.new_page(viewport={"width": 1280, "height": 1500}, locale=lang)
    page.set_default_timeout(PATIENCE)
    try:
        page.goto(server.wait().url(""))
        page.wait_for_function(READY)
        yield server, page
    finally:
        keep_screenshot(page, f"evening-{lang}")
        page.close()
        server.stop()


@pytest.mark.parametrize("lang", list(LOCALES))
def test_an_evening_of_a_learner_a_wrong_answer_a_hint_the_right_one_a_restart(evening, tmp_path, lang):
    server, page = evening
    path, solution = evening_lesson(lang)
    mine = tmp_path / "work" / lang / f"{path.stem}.ipynb"
    tracked = checksums(ROOT / "notebooks")
    # JupyterLab is in the learner's language, with the first lesson in front, and asks nothing.
    assert page.locator("#jp-MainMenu").get_by_text(FILE_MENU[lang], exact=True).count() == 1
    in_front = page.evaluate("() => window.jupyterapp.shell.currentWidget.context.path")
    assert in_front == f"{lang}/{path.stem}.ipynb"
    assert page.locator(".jp-Dialog, .jp-toast-button").count() == 0

    cells = page.evaluate(CELLS)
    at = next(index for index, cell in enumerate(cells) if cell["exercise"])
    check = next(index for index, cell in enumerate(cells) if index > at and "check" in cell["tags"])
    name = cells[at]["exercise"]
    right = next("".join(cell["source"]) for cell in solution["cells"] if cell["id"] == cells[at]["id"])
    wrong = re.sub(r"(def .+:)\n(?s:.*)", r"\1\n    return []", right)
    assert wrong != right

    def run_all_above():
        for index, cell in enumerate(cells[:at]):
            if cell["type"] == "code":
                page.evaluate(RUN, index)

    def answer(text):
        """Write an answer, run it and its check; what the check shows."""
        page.evaluate(WRITE, [at, text])
        page.evaluate(RUN, at)
        return page.evaluate(RUN, check)

    passed, failed = (shown(key, lang, name) for key in ("check.passed", "check.title_failed"))
    run_all_above()
    for shown_text in (answer(wrong), answer(wrong)):
        assert failed in shown_text and passed not in shown_text, shown_text
    below = page.locator(".jp-Cell").nth(check)
    below.get_by_role("button", name=t("help.button_hint", lang=lang, level=1)).click()
    below.get_by_text(shown("help.hint_title", lang, name, level=1)).wait_for()
    below.get_by_role("button", name=t("help.button_hint", lang=lang, level=2)).wait_for()  # what comes next
    look_at(below, f"evening-{lang}-hint")
    assert passed not in page.evaluate(RUN, check)  # the reference that the lesson lent is no answer
    assert shown("check.lent", lang, name) in below.inner_text()
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:insert-cell-below'); return 0 }")
    page.evaluate(WRITE, [check + 1, "lab.hint()"])
    assert shown("help.hint_title", lang, name, level=2) in page.evaluate(RUN, check + 1)  # 1 was seen
    shown_text = answer(right)
    assert passed in shown_text and failed not in shown_text, shown_text
    below.get_by_text(t("help.compare", lang=lang)).click()
    look_at(below, f"evening-{lang}-passed")
    page.evaluate(SAVE)

    # The next day: a fresh kernel, the answer still there.
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:restart-kernel'); return 0 }")
    page.locator(".jp-Dialog button.jp-mod-accept").click()
    page.wait_for_function(READY)
    run_all_above()
    page.evaluate(RUN, at)
    assert passed in page.evaluate(RUN, check)
    page.evaluate(SAVE)

    # The footer leads to the next lesson, as a tab of JupyterLab.
    page.locator(".jp-Cell").last.get_by_role("link").first.click()
    page.wait_for_function(IN_FRONT, arg=f"{lang}/{Project().source_files()[1].stem}.ipynb")

    answers = [cell for cell in json.loads(mine.read_text(encoding="utf-8"))["cells"] if cell["id"] == cells[at]["id"]]
    assert "".join(answers[0]["source"]) == right
    assert checksums(ROOT / "notebooks") == tracked


def shown(key, lang, name, **values):
    """The part of a message that is there whatever the counts in it are, as a page shows it."""
    text = t(key, lang=lang, name=name, steps="{steps}", **values)
    return text.split("{steps}")[0].rstrip(" (").replace("`", "")


# ---- pages -----------------------------------------------------------------------------------------------------------


# Whatever can be clicked or pointed at, without ordinary links, which lead to other pages.
CLICK = """() => { for (const one of document.querySelectorAll("a, button, summary, div")) {
    if (!one.getAttribute("href")?.match(/^(https?:|[^:#]+$)/))
        one.dispatchEvent(new MouseEvent("click", {bubbles: true, cancelable: true, view: window}));
    one.dispatchEvent(new Event("mouseover")); } }"""


def test_a_real_browser_runs_no_script_of_our_pages_and_loads_nothing(browser, tmp_path):
    hits, requests = [], []
    page = browser.new_page()
    page.expose_function("hit", lambda: hits.append(1))
    page.on("request", lambda request: requests.append(request.url))

    def opened(text):
        """Open a page and click on whatever it has; (scripts that ran, addresses that were asked for)."""
        file = tmp_path / "page.html"
        file.write_text(text, encoding="utf-8")
        hits.clear(), requests.clear()
        page.goto(file.as_uri())
        page.evaluate(CLICK)
        page.wait_for_timeout(10)
        asked = [url for url in requests if not url.startswith(("data:", file.as_uri()))]
        return len(hits), asked

    naked = "<!doctype html><html><head>{}</head><body>{}</body></html>"
    dangerous = ["<script>hit()</script>", "<img src=x onerror=hit()>", "<svg/onload=hit()>"]
    assert all(opened(naked.format("", payload))[0] for payload in dangerous)  # this test can fail
    for payload in PAYLOADS:
        for text in (spoiled_notebook(payload), spoiled_report(payload, tmp_path), spoiled_ledger(payload)):
            assert POLICY in text
            assert opened(text.replace(POLICY, "")) == (0, []), payload  # the markup alone is harmless
        assert opened(naked.format(POLICY, payload))[0] == 0, payload  # and the policy alone is enough
    page.close()
