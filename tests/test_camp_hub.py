"""The hub of a room, for real: accounts, logins, homes, limits, updates. Needs Linux, root, JupyterHub and its proxy:

pytest --optin tests/test_camp_hub.py        LABKIT_HUB_PYTHON names a Python that other accounts can run
"""

import os
import stat
import sys
from pathlib import Path

import pytest

PYTHON = os.environ.get("LABKIT_HUB_PYTHON", sys.executable)
pytestmark = [pytest.mark.optin, pytest.mark.slow]


@pytest.fixture(scope="module")
def hub():
    pytest.importorskip("websocket")
    from tests.hub_room import room, why_not

    if reason := why_not(PYTHON):
        pytest.skip(reason)
    with room(PYTHON, ["aya", "ben"], "--memory", "2", "--processes", "200") as one:
        yield one


@pytest.fixture(scope="module")
def learners(hub):
    aya, ben = (hub.learner(name) for name in hub.passphrases)
    for one in (aya, ben):
        assert one.log_in()
        try:
            one.open()
        except RuntimeError as error:
            pytest.fail(f"{error}\n{hub.log.read_text(errors='replace')[-4000:]}")
    return aya, ben


def test_only_the_right_passphrase_opens(hub):
    name, other = hub.passphrases
    assert not hub.learner(name).log_in("no-such-passphrase")
    assert not hub.learner(name).log_in(hub.passphrases[other])
    stranger = hub.learner(name)
    stranger.name = "root"
    assert not stranger.log_in()


def test_learners_cannot_read_each_others_files(hub, learners):
    aya, ben = learners
    homes = hub.folder / "homes"
    secret = homes / ben.name / "labkit-work" / "secret.txt"
    with ben.kernel() as kernel:
        assert kernel.run("open('secret.txt', 'w').write('mine')")[0] == "ok"
        assert kernel.run("import os; os.chmod('secret.txt', 0o644)")[0] == "ok"  # even what is open to all
    assert secret.read_text() == "mine"
    with aya.kernel() as kernel:
        for path in (secret, hub.folder / "roster.json", hub.folder / "slips.csv", "/etc/shadow"):
            status, said = kernel.run(f"print(open({str(path)!r}).read())")
            assert status == "error" and said.startswith("PermissionError"), (path, said)
        for path in (homes, homes / ben.name, hub.folder / "hub", hub.folder / "board"):
            status, said = kernel.run(f"import os; print(os.listdir({str(path)!r}))")
            assert status == "error" and said.startswith("PermissionError"), (path, said)
        status, said = kernel.run(f"open({str(homes / ben.name / 'x')!r}, 'w')")
        assert status == "error" and "PermissionError" in said
        status, said = kernel.run("import os; print(os.getuid(), os.environ['USER'])")
        assert said.split()[1] == aya.name and int(said.split()[0]) != 0
    for home in homes.iterdir():
        assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_learner_cannot_reach_the_server_of_another(hub, learners):
    aya, ben = learners
    answer = aya.session.get(f"{ben.server}/api/contents", timeout=60)
    assert answer.status_code in (403, 404) or "/hub/" in answer.url
    assert "secret" not in answer.text
    for method, path in (("DELETE", f"users/{ben.name}/server"), ("GET", f"users/{ben.name}"), ("GET", "users")):
        answer = aya.api(method, f"{hub.address}/hub/api/{path}")
        assert answer.status_code in (403, 404) or ben.name not in answer.text, (path, answer.text)
    ben.notebook("en/00_start_here.ipynb")  # still there


def test_threads_memory_and_cores_are_limited(learners):
    aya, ben = learners
    with aya.kernel() as kernel:
        _, said = kernel.run("import os; print(*(os.environ[n] for n in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')))")
        assert said.split() == ["1", "1"]
        assert kernel.run("import torch; print(torch.get_num_threads())")[1].strip() == "1"
        assert kernel.run("import os; print(len(os.sched_getaffinity(0)))")[1].strip() == "1"
        status, said = kernel.run("block = bytearray(3 * 2**30)")
        assert status == "error" and said.startswith("MemoryError")
        status, said = kernel.run("import resource; resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))")
        assert status == "error" and "not allowed" in said
        assert kernel.run("print('alive')") == ("ok", "alive\n")


def test_an_account_that_takes_too_much_in_several_kernels_loses_the_largest(learners):
    import time

    aya, _ = learners
    with aya.kernel() as first, aya.kernel() as second:
        assert first.run("small = bytearray(b'1') * (900 * 2**20); print('ok')")[1] == "ok\n"
        second.line.settimeout(60)
        status, _ = second.run("large = bytearray(b'1') * (1400 * 2**20)\nimport time\ntime.sleep(40)")
        assert status == "dead"
        time.sleep(1)
        assert first.run("print(len(small))")[1].strip() == str(900 * 2**20)
    aya.notebook("en/00_start_here.ipynb")  # the server itself has stayed


def test_a_new_start_never_overwrites_a_learners_work(hub, learners):
    aya, _ = learners
    path = "en/00_start_here.ipynb"
    content = aya.notebook(path)
    content["cells"][0]["source"] = "my own notes"
    aya.save(path, content)
    aya.stop()
    record = hub.folder / "homes" / aya.name / "labkit-work" / ".labkit.json"
    record.write_text(record.read_text().replace('"cells": "', '"cells": "0'))  # as if the course had changed since
    aya.open()
    assert aya.notebook(path)["cells"][0]["source"] == "my own notes"
    assert aya.notebook("en/00_start_here.new.ipynb")["cells"][0]["source"] != "my own notes"


def test_a_summary_lands_on_the_board_under_the_account(hub, learners):
    from labkit.camp.board import read_summaries

    aya, ben = learners
    with ben.kernel() as kernel:
        status, said = kernel.run("!labkit progress --share --name somebody")
        assert status == "ok" and "Shared for the board" in said, said
    found, problems = read_summaries(hub.folder / "board", set())
    assert [one.name for one in found] == [ben.name] and not problems
    with aya.kernel() as kernel:
        path = Path(hub.folder / "board" / "somebody.json")
        assert kernel.run(f"open({str(path)!r}).read()")[1].startswith("PermissionError")
        assert kernel.run(f"import os; os.remove({str(path)!r})")[1].startswith("PermissionError")
