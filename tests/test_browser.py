"""Widgets in a real browser: JupyterLab in Japanese and English, run all cells, move a control, see another picture.

Needs a Chromium on the machine (fixture `browser_path` in conftest.py); nothing is downloaded. Screenshots are kept in
the folder that LABKIT_SCREENSHOTS names, if it is set.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from labkit.course.manifest import ROOT

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
    for lang in LOCALES:
        for path in sorted((ROOT / "notebooks" / lang).glob("00_*.ipynb")):
            cases.append(pytest.param(path, lang, id=f"lesson00-{lang}"))
    return cases


class Lab:
    """A JupyterLab of its own: free port, token, settings and home in a temporary folder."""

    def __init__(self, folder):
        self.root, self.settings = folder / "root", folder / "settings"
        self.root.mkdir()
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
            JUPYTERLAB_SETTINGS_DIR=str(self.settings),
            JUPYTERLAB_WORKSPACES_DIR=str(folder / "workspaces"),
            IPYTHONDIR=str(folder / "ipython"),
            PYTHONPATH=os.pathsep.join(paths),
            PYDEVD_DISABLE_FILE_VALIDATION="1",
        )
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": self.port,
            "ServerApp.port_retries": 0,
            "ServerApp.root_dir": self.root,
            "ServerApp.open_browser": False,
            "ServerApp.allow_root": True,
            "IdentityProvider.token": self.token,
            "LabApp.expose_app_in_browser": True,
            "LabApp.news_url": "None",
            "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        }
        command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
        self.process = subprocess.Popen(command, cwd=self.root, env=env, stdout=self.log, stderr=subprocess.STDOUT)

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
        self.log.seek(0)
        raise AssertionError(f"JupyterLab did not start:\n{self.log.read()[-3000:]}")

    def url(self, path):
        return f"http://127.0.0.1:{self.port}/{path}?token={self.token}"

    def speak(self, lang):
        """Settings are read when a page is loaded."""
        for plugin, values in SETTINGS.items():
            path = self.settings / f"{plugin}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(values).replace("{locale}", LOCALES[lang])
            path.write_text(text, encoding="utf-8")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


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
    source = notebook.read_text(encoding="utf-8")
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
        folder = os.environ.get("LABKIT_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(folder) / f"{request.node.callspec.id}.png")
        page.evaluate("() => {window.jupyterapp?.serviceManager.sessions.shutdownAll(); return 0}")
        page.close()


def run_all(page):
    """Run every cell and wait until each has its number, or one has failed."""
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); return 0 }")
    page.wait_for_function(ALL_RAN)
    page.wait_for_function(READY)


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
