"""What every test run shares: offline, headless, at most two threads, and nothing written to the learner's home.

Tests seed their own generators; nothing here does it for them.
"""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

MAX_THREADS = 2  # asked for with OMP_NUM_THREADS; else one: on tiny models a second mostly waits, and burns CPU
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Set before any test imports torch, matplotlib or the Hugging Face libraries; subprocesses inherit all of it.
_asked = os.environ.get("OMP_NUM_THREADS", "")
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # alike: PyTorch obeys MKL's before OMP's
    os.environ[_name] = str(min(int(_asked), MAX_THREADS)) if _asked.isdigit() else "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

settings.register_profile("labkit", deadline=None, derandomize=True)
settings.load_profile("labkit")

# Files that take long or wait much: they start first, so that no worker is left alone with one of them at the end.
LONG = (
    *("test_browser", "test_studies_recorded", "test_course_run", "test_fabric_properties", "test_train_recipe"),
    *("test_install", "test_cli", "test_dpo_trainer"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--optin", action="store_true", help="also run the tests marked optin")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Benchmarks run only when they are asked for by path, as `make bench` does."""
    benchmarks = Path(__file__).with_name("benchmarks")
    if collection_path.is_relative_to(benchmarks) and not any("benchmarks" in str(arg) for arg in config.args):
        return True
    return None


def pytest_configure(config: pytest.Config) -> None:
    """xdist would hand out the files with the most tests first, and those with a few long ones last."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(LONG)))  # stable: the rest stays in order
    if config.getoption("--optin") or os.environ.get("LABKIT_OPTIN") == "1":
        return
    for item in items:
        if item.get_closest_marker("optin"):
            item.add_marker(pytest.mark.skip(reason="opt-in: run with --optin or LABKIT_OPTIN=1"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With LABKIT_REQUIRE_BROWSER=1, as in CI, a browser test that is skipped has failed."""
    report = yield
    if report.skipped and item.get_closest_marker("browser") and os.environ.get("LABKIT_REQUIRE_BROWSER") == "1":
        report.outcome = "failed"
        report.longrepr = f"LABKIT_REQUIRE_BROWSER=1, but the browser test was skipped: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def browser_path() -> str:
    """The Chromium that browser tests start: LABKIT_BROWSER or the distribution's; skips with a reason without one."""
    for name in (os.environ.get("LABKIT_BROWSER"), *BROWSERS):
        if name and (path := shutil.which(name)):
            return path
    pytest.skip(f"no browser found: install one of {', '.join(BROWSERS)}, or set LABKIT_BROWSER")


@pytest.fixture(scope="session", autouse=True)
def _home_and_results_aside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Progress and results of tests go to a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("LABKIT_RESULTS", str(tmp_path_factory.mktemp("results")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """A test that opens a connection to another machine fails: the course works offline."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guarded(original):
        def call(self: socket.socket, address):
            if self.family in (socket.AF_INET, socket.AF_INET6):
                host = str(address[0])
                if host not in ("localhost", "::1") and not host.startswith("127."):
                    raise OSError(f"tests run offline, but something connected to {host!r}: remove that call")
            return original(self, address)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(connect))
        patch.setattr(socket.socket, "connect_ex", guarded(connect_ex))
        yield


@pytest.fixture
def inspect(tmp_path, capsys, monkeypatch):
    """Runs `labkit inspect WORDS` in tmp_path: status, output, errors."""
    from labkit import cli

    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = cli.main(["inspect", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err

    return run
