"""`make mutants`: change the equations one by one: does a test notice?

    python tests/mutants.py                  # every labkit/*/equations.py; goes on where it was stopped
    python tests/mutants.py dpo fabric       # of these packages alone
    python tests/mutants.py dpo --alive      # after new tests: only what no test noticed the last time

mutmut makes the changes: another operator, number, argument, comparison or text at one place of one function. Its own
runner starts pytest anew for each, which takes a second or more; here the tests are collected once and run once without
a change, which tells who calls what and for how long. Then, for each change, a forked process runs the tests that call
the changed function, the fastest first, until one fails: most take a tenth of a second of CPU. Nothing is copied;
results lie in mutants/NAME.json.

Exit code 1 where less than `GOAL` of a file's changes are noticed. Time is counted on the CPU, not by the clock: a busy
machine makes no endless loops. Needs fork, so not on Windows.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import resource
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import Phase, settings
from mutmut.mutation.file_mutation import MutatedFile, mutate_file_contents
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state

from labkit.files import write_atomically

GOAL = 0.95
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "mutants"
TESTS = {  # package -> the tests of its equations
    "density": "test_density_equations.py",
    "dpo": "test_dpo_equations.py",
    "fabric": "test_fabric_attention.py",
    "inspection": "test_inspection_equations.py",
    "pairwise": "test_pairwise.py",
    "survey": "test_survey_equations.py",
}
NOTICED, ENDLESS, ALIVE, UNTESTED = "noticed", "ran out of time", "alive", "no test"
SECONDS = 5.0  # of CPU for a change, and four times what its tests take without it


class Equations:
    """One file of equations with all its changes in it, and what is known of them."""

    def __init__(self, package: str):
        self.package, self.module = package, f"labkit.{package}.equations"
        self.path = ROOT / "labkit" / package / "equations.py"
        source = self.path.read_text(encoding="utf-8")
        self.mutated: MutatedFile = mutate_file_contents(str(self.path), source)
        test = ROOT / "tests" / TESTS[package]
        self.made_of = {"equations": _digest(source), "tests": _digest(test.read_text(encoding="utf-8"))}
        self.found: dict[str, str] = {}
        self.earlier: dict[str, str] = {}
        self.file = RESULTS / f"{package}.json"
        if self.file.exists():
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            if kept["made of"] == self.made_of:
                self.found = kept["found"]
            elif kept["made of"]["equations"] == self.made_of["equations"]:
                self.earlier = kept["found"]

    def waiting(self, alive_only: bool) -> list[str]:
        """Changes to try. alive_only: what tests noticed before they were changed is still noticed."""
        if alive_only:
            known = {**self.earlier, **self.found}
            self.found = {name: how for name, how in known.items() if how in (NOTICED, ENDLESS)}
        return [name for name in self.mutated.mutant_names if name not in self.found]

    def save(self) -> None:
        write_atomically(self.file, json.dumps({"made of": self.made_of, "found": self.found}, indent=1))

    def lines(self, name: str) -> list[str]:
        """What a change changes: the lines before and after."""
        code = self.mutated.code.splitlines()
        function = name.rpartition("__mutmut_")[0]
        texts = []
        for one in (f"{function}__mutmut_orig", name):
            span = self.mutated.line_span_by_function_name[one]
            texts.append([line.replace(one, function) for line in code[span.start - 1 : span.end]])
        diff = difflib.unified_diff(*texts, n=0, lineterm="")
        return [line for line in diff if line[:3] not in ("---", "+++", "@@ ")]

    def report(self) -> bool:
        """Print the score and what no test noticed. True at or above the goal."""
        tried = [name for name in self.mutated.mutant_names if name in self.found]
        alive = [name for name in tried if self.found[name] in (ALIVE, UNTESTED)]
        endless = sum(self.found[name] == ENDLESS for name in tried)
        score = 1 - len(alive) / max(1, len(tried))
        left = len(self.mutated.mutant_names) - len(tried)
        print(f"{self.path.relative_to(ROOT)}: {score:.1%} of {len(tried)} noticed", end="")
        print(f", {endless} of them endless" * bool(endless) + f", {left} not tried" * bool(left))
        for name in alive:
            print(f"  {name} ({self.found[name]})", *self.lines(name), sep="\n    ")
        return score >= GOAL and not left


class Finder(importlib.machinery.PathFinder):
    """Imports the equations with all their changes in them; which one is active, the trampolines ask each time."""

    def __init__(self, files: list[Equations]):
        self.code = {one.module: (str(one.path), one.mutated.code) for one in files}

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in self.code:
            return None
        file, code = self.code[fullname]

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, _):  # never from, and never into, __pycache__
                return compile(code, file, "exec", dont_inherit=True)

        return importlib.util.spec_from_file_location(fullname, file, loader=Loader(fullname, file))


class Runner:
    """The pytest plugin that replaces the run of the collected tests."""

    def __init__(self, files: list[Equations], jobs: int, alive_only: bool):
        self.files, self.jobs, self.alive_only = files, jobs, alive_only
        self.callers: dict[str, list[pytest.Item]] = defaultdict(list)
        self.seconds: dict[str, float] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        set_mutant_under_test("stats")
        for item, following in zip(session.items, [*session.items[1:], None], strict=True):
            start = time.process_time()
            if not passes(item, following):
                print(f"{item.nodeid} fails without any change: run pytest")
                raise session.Failed
            self.seconds[item.nodeid] = time.process_time() - start
            for function in state()._stats:
                self.callers[function].append(item)
            state()._stats.clear()
        for tests in self.callers.values():
            tests.sort(key=lambda item: self.seconds[item.nodeid])
        set_mutant_under_test("")
        gc.collect()
        gc.freeze()
        self.try_all()
        return True

    def try_all(self) -> None:
        work = [(one, name) for one in self.files for name in one.waiting(self.alive_only)]
        running: dict[int, tuple[Equations, str]] = {}
        start, total = time.monotonic(), len(work)
        for done, (one, name) in enumerate(work):
            tests = self.callers[f"{one.module}.{name.rpartition('__mutmut_')[0]}"]
            if not tests:
                one.found[name] = UNTESTED
                continue
            if len(running) == self.jobs:
                self.collect(running)
            running[self.start(f"{one.module}.{name}", tests)] = one, name
            if done % 20 == 0:
                one.save()
                print(f"\r{done} of {total} changes, {time.monotonic() - start:.0f} s ", end="", flush=True)
        while running:
            self.collect(running)
        for one in self.files:
            one.save()
        used = sum(os.times()[:4])
        print(f"\r{total} changes in {time.monotonic() - start:.0f} s; {used:.0f} s of CPU with the tests' own run")

    def start(self, mutant: str, tests: list[pytest.Item]) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 2
        try:
            limit = int(SECONDS + 4 * sum(self.seconds[item.nodeid] for item in tests))
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1), os.dup2(nothing, 2)
            set_mutant_under_test(mutant)
            code = 0 if all(map(passes, tests, [*tests[1:], None])) else 1
        finally:
            os._exit(code)

    def collect(self, running: dict[int, tuple[Equations, str]]) -> None:
        pid, status = os.wait()
        one, name = running.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        # a change that ends the process (a signal, an error outside the tests) is noticed; SIGXCPU, SIGKILL: time
        one.found[name] = {0: ALIVE, -24: ENDLESS, -9: ENDLESS}.get(code, NOTICED)


def passes(item: pytest.Item, following: pytest.Item | None) -> bool:
    """Whether a test passes; what `following` shares with it stays set up."""
    return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=following))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main() -> int:
    known = sorted(path.parent.name for path in (ROOT / "labkit").glob("*/equations.py"))
    if known != sorted(TESTS):
        raise SystemExit(f"equations of {known}, but tests named for {sorted(TESTS)}: complete TESTS in {__file__}")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="*", help=", ".join(known))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--alive", action="store_true", help="try only what was not noticed the last time")
    asked = parser.parse_args()
    if unknown := set(asked.package) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    os.chdir(ROOT)
    # neither threads nor a GPU's state survive a fork; torch is imported with the tests
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    RESULTS.mkdir(exist_ok=True)
    files = [Equations(package) for package in asked.package or known]
    if any(one.waiting(asked.alive) for one in files):
        sys.meta_path.insert(0, Finder(files))
        # a failing example is enough: none is made smaller
        settings.register_profile("mutants", deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
        options = ["-qq", "--tb=native", "--assert=plain", "--capture=sys", "-p", "no:cacheprovider"]
        tests = [f"tests/{TESTS[one.package]}" for one in files]
        plugin = Runner(files, asked.jobs, asked.alive)
        code = pytest.main([*options, "--hypothesis-profile=mutants", *tests], plugins=[plugin])
        if code:
            return int(code)
    return 0 if all([one.report() for one in files]) else 1


if __name__ == "__main__":
    sys.exit(main())
