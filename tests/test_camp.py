"""A room of learners: the roster, the board of shared summaries, the bundle and its installer, limits and homes."""

import argparse
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from labkit.camp import bundle as bundles
from labkit.camp import desk
from labkit.camp.board import LARGEST, Learner, board, board_ids, read_summaries
from labkit.camp.bundle import PLATFORMS, BundleError, build_bundle, name_of, read_pins
from labkit.camp.command import add_parser
from labkit.camp.roster import RosterError, enrol, matches, new_passphrase, read_roster
from labkit.course import progress
from labkit.course.manifest import Project

ROOT = Path(__file__).resolve().parents[1]
COURSE = Project(ROOT / "tests" / "data" / "course")
posix = pytest.mark.skipif(os.name == "nt", reason="rights and links of POSIX")


def camp(*words: object) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["camp", *map(str, words)])
    return args.func(args)


# ---- roster ----------------------------------------------------------------------------------------------------------


def test_a_passphrase_opens_its_own_entry_and_no_other(tmp_path):
    given = enrol(tmp_path / "roster.json", ["aya", "ben"], teachers=["sensei"])
    people = read_roster(tmp_path / "roster.json")
    assert set(given) == set(people) == {"aya", "ben", "sensei"}
    assert len(set(given.values())) == 3
    assert [people[name].teacher for name in ("aya", "ben", "sensei")] == [False, False, True]
    assert matches(people["aya"], given["aya"]) and matches(people["aya"], f" {given['aya'].upper()} ")
    assert not matches(people["aya"], given["ben"]) and not matches(people["aya"], "")
    assert not matches(None, given["aya"]) and not matches(None, "")


def test_the_roster_holds_no_passphrase_and_two_equal_ones_look_different(tmp_path):
    from labkit.camp.roster import person

    given = enrol(tmp_path / "roster.json", ["aya"])
    assert given["aya"] not in (tmp_path / "roster.json").read_text("utf-8")
    assert person("kifo-nase").hash != person("kifo-nase").hash
    assert len({new_passphrase() for _ in range(100)}) == 100


def test_enrolling_again_keeps_passphrases_and_reset_changes_one(tmp_path):
    path = tmp_path / "roster.json"
    first = enrol(path, ["aya", "ben"], teachers=["sensei"])
    assert enrol(path, ["aya", "ben", "cho"]).keys() == {"cho"}
    again = enrol(path, [], reset=["sensei"])
    people = read_roster(path)
    assert matches(people["aya"], first["aya"])
    assert matches(people["sensei"], again["sensei"]) and not matches(people["sensei"], first["sensei"])
    assert people["sensei"].teacher
    with pytest.raises(RosterError, match="not on the roster: nobody"):
        enrol(path, [], reset=["nobody"])


@pytest.mark.parametrize("name", ["Aya", "彩", "a b", "../x", "-x", "1st", "", "a" * 40])
def test_what_cannot_be_an_account_is_refused_and_nothing_is_written(name, tmp_path):
    with pytest.raises(RosterError, match="cannot be an account"):
        enrol(tmp_path / "roster.json", ["ok", name])
    assert not (tmp_path / "roster.json").exists()


def test_a_damaged_roster_is_named_and_kept(tmp_path):
    (tmp_path / "roster.json").write_text('{"version": 1, "people": {"aya": {"salt": ""}}}')
    with pytest.raises(RosterError, match="is no roster"):
        enrol(tmp_path / "roster.json", ["ben"])
    assert "aya" in (tmp_path / "roster.json").read_text()


@posix
def test_learners_writes_slips_and_roster_that_only_their_owner_reads(tmp_path, capsys):
    room = tmp_path / "room"
    assert camp("learners", room, 3, "--teacher", "sensei") == 0
    lines = (room / "slips.csv").read_text().splitlines()
    assert lines[0] == "name,passphrase" and len(lines) == 5
    people = read_roster(room / "roster.json")
    assert all(matches(people[name], passphrase) for name, passphrase in (line.split(",") for line in lines[1:]))
    for path in (room / "slips.csv", room / "roster.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(room.stat().st_mode) == 0o700
    assert camp("learners", room, 3) == 0 and "nobody new" in capsys.readouterr().out
    (tmp_path / "names.txt").write_text("# group A\naya\n\nben\n")
    assert camp("learners", room, tmp_path / "names.txt") == 0
    assert {"aya", "ben", "learner01", "sensei"} <= set(read_roster(room / "roster.json"))


# ---- the board -------------------------------------------------------------------------------------------------------


def ids() -> list[str]:
    return [row["id"] for row in progress.overview(progress.Progress(Path("none")), COURSE)]


def shared(folder: Path, name: str, **record: str) -> Path:
    """What `labkit progress --share` writes for somebody whose exercises stand as given ("passed" or "failed")."""
    home = progress.Progress(folder / f"home-{name}")
    for exercise, status in record.items():
        home.record_check("00", f"l00.{exercise}", status)
    return progress.share(progress.overview(home, COURSE), folder / "board", name)


def exercise_of_00() -> str:
    return next(
        row["id"] for row in progress.overview(progress.Progress(Path("none")), COURSE) if row["lesson"] == "00"
    )


def test_a_summary_says_what_is_solved_and_nothing_about_answers_or_times(tmp_path):
    name = exercise_of_00().split(".")[1]
    home = progress.Progress(tmp_path / "home")
    home.record_check("00", f"l00.{name}", "failed")
    home.record_check("00", f"l00.{name}", "passed")
    home.record_prediction("00", "l00.guess", "my secret guess")
    path = progress.share(progress.overview(home, COURSE), tmp_path / "board", "Aya K./x")
    assert path.name == "Aya_K_x.json"
    data = json.loads(path.read_text("utf-8"))
    assert set(data) == {"version", "name", "passed", "tried", "right"}
    assert data["passed"] == [f"l00.{name}"] and data["tried"] == [] and data["name"] == "Aya K./x"
    assert "secret" not in path.read_text("utf-8") and "20" not in path.read_text("utf-8")


def test_sharing_is_asked_for_and_needs_a_folder(tmp_path, monkeypatch, capsys):
    from labkit import cli

    room = ["--root", str(COURSE.root), "--home", str(tmp_path / "home")]
    monkeypatch.delenv("LABKIT_BOARD", raising=False)
    assert cli.main(["progress", *room]) == 0 and not list(tmp_path.rglob("*.json"))
    assert cli.main(["progress", *room, "--share"]) == 2
    assert "labkit progress --share FOLDER" in capsys.readouterr().err
    monkeypatch.setenv("LABKIT_BOARD", str(tmp_path / "board"))
    assert cli.main(["progress", *room, "--share", "--name", "aya"]) == 0
    assert (tmp_path / "board/aya.json").is_file()
    assert cli.main(["progress", *room, "--share", str(tmp_path / "other"), "--name", "aya"]) == 0
    assert (tmp_path / "other/aya.json").is_file()


def test_the_board_counts_what_was_shared(tmp_path, capsys):
    name = exercise_of_00().split(".")[1]
    shared(tmp_path, "aya", **{name: "passed"})
    shared(tmp_path, "ben", **{name: "failed"})
    shared(tmp_path, "cho")
    assert camp("board", tmp_path / "board", "--root", COURSE.root, "--html", tmp_path / "b.html", "--lang", "ja") == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    total = sum(1 for row in progress.overview(progress.Progress(tmp_path / "x"), COURSE) if row["kind"] == "exercise")
    of_00 = len([one for one in ids() if one.startswith("l00.") and one in board_ids(COURSE)])
    assert total >= 1 and of_00 >= 1
    assert rows["aya"][0].startswith("1/") and rows["aya"][-2:] == ["1", "0"]
    assert rows["ben"][:2] == [f"0/{rows['aya'][0][2:]}", "+1"] and rows["cho"][-2:] == ["0", "0"]
    assert rows[f"l00.{name}"] == ["1", "1"]  # one stuck, one through
    page = (tmp_path / "b.html").read_text("utf-8")
    assert 'lang="ja"' in page and "受講者3人の進捗" in page


def test_nothing_that_a_learner_writes_runs_on_the_board(tmp_path):
    evil = "<script>alert(1)</script>"
    learners = [Learner(evil, frozenset(), frozenset({exercise_of_00()}))]
    markup, _ = board(learners, COURSE, "en")
    assert "<script" not in markup and "&lt;script" in markup and "default-src 'none'" in markup


@posix
def test_links_pipes_large_files_and_foreign_ids_are_left_out(tmp_path):
    folder = tmp_path / "board"
    good = shared(tmp_path, "aya")
    data = json.loads(good.read_text()) | {"passed": ["l99.none", exercise_of_00()], "name": "aya"}
    good.write_text(json.dumps(data))
    (tmp_path / "outside.json").write_text(json.dumps(data | {"name": "outside"}))
    (folder / "link.json").symlink_to(tmp_path / "outside.json")
    os.link(tmp_path / "outside.json", folder / "second_name.json")
    os.mkfifo(folder / "pipe.json")
    (folder / "large.json").write_text(json.dumps(data | {"name": "large", "more": "x" * LARGEST}))
    (folder / "no.json").write_text("[]")
    (folder / "old.json").write_text(json.dumps(data | {"version": 99}))
    learners, problems = read_summaries(folder, board_ids(COURSE))
    assert [one.name for one in learners] == ["aya"] and learners[0].passed == {exercise_of_00()}
    left = {line.split(":")[0] for line in problems}
    assert left == {"link.json", "second_name.json", "pipe.json", "large.json", "no.json", "old.json"}


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root can give files away")
def test_on_a_hub_the_account_is_the_name_whatever_the_file_says(tmp_path):
    path = shared(tmp_path, "somebody_else")
    os.chown(path, 65534, 65534)
    learners, _ = read_summaries(tmp_path / "board", board_ids(COURSE))
    assert [one.name for one in learners] in (["nobody"], ["65534"])


# ---- the bundle ------------------------------------------------------------------------------------------------------


def test_pins_keep_the_index_they_came_from():
    printed = (
        "numpy==2.4.6\n    # via torch\n    # from https://one.example/simple\n"
        "torch==2.13.0+cpu ; python_full_version < '3.14'  # via x\n    # from https://two.example/whl/cpu\n"
    )
    want = {"numpy==2.4.6": "https://one.example/simple", "torch==2.13.0+cpu": "https://two.example/whl/cpu"}
    assert read_pins(printed) == want
    with pytest.raises(BundleError, match="resolved no package"):
        read_pins("# nothing\n")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with two files, and what a bundle needs."""
    root = tmp_path / "clone"
    (root / "notebooks/ja").mkdir(parents=True)
    (root / "notebooks/ja/00_a.ipynb").write_text("{}")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    return root


def fake_run(calls: list[list[str]]):
    """Stands in for git, pip and uv: lists two files, resolves two packages, downloads empty wheels."""

    def run(command):
        calls.append(list(map(str, command)))
        words = calls[-1]
        if "ls-files" in words:
            return "pyproject.toml\0constraints.txt\0notebooks/ja/00_a.ipynb\0gone.txt\0"
        if "compile" in words:
            return "numpy==2.4.6\n    # from https://one.example\ntorch==2.13.0+cpu\n    # from https://two.example\n"
        if "wheel" in words or "download" in words:
            target = Path(words[words.index("--wheel-dir" if "wheel" in words else "--dest") + 1])
            name = "diffusion_labkit-0.1.0" if "wheel" in words else "numpy-2.4.6"
            (target / f"{name}-py3-none-any.whl").write_bytes(name.encode())
        return ""

    return run


def built(clone: Path, platform: str, *pythons: str, site: Path | None = None) -> tuple[Path, list[list[str]]]:
    calls: list[list[str]] = []
    archive = build_bundle(
        clone, platform, pythons, clone.parent / "out", site=site, say=lambda text: None, run=fake_run(calls)
    )
    return archive, calls


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_bundle_asks_for_wheels_of_the_other_platform_and_python(platform, clone, monkeypatch):
    monkeypatch.setattr(bundles, "uv", lambda: ["uv"])
    _, calls = built(clone, platform, "3.11", "3.12")
    compiled = [call for call in calls if "compile" in call]
    fetched = [call for call in calls if "download" in call]
    checked = [call for call in calls if "--dry-run" in call]
    for call, python in zip(compiled, ("3.11", "3.12"), strict=True):
        assert call[call.index("--python-platform") + 1] == PLATFORMS[platform].uv
        assert call[call.index("--python-version") + 1] == python
        assert str(clone / "constraints.txt") in call
    for call, python in zip(fetched, ("3.11", "3.12"), strict=True):
        assert call[call.index("--python-version") + 1] == python and f"cp{python.replace('.', '')}" in call
        assert "--only-binary=:all:" in call and PLATFORMS[platform].tags[0] in call
        assert [call[at + 1] for at, word in enumerate(call) if word == "--extra-index-url"] == ["https://two.example"]
    assert len(checked) == 2 and all("--no-index" in call and "hatchling" in call for call in checked)
    assert not list(clone.rglob("camp-backend.in"))


def test_an_archive_is_whole_and_its_checksums_hold(clone, tmp_path, monkeypatch):
    monkeypatch.setattr(bundles, "uv", lambda: ["uv"])
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("<p>")
    archive, _ = built(clone, "linux-x86_64", "3.12", site=tmp_path / "site")
    assert archive.name == f"{name_of('linux-x86_64', ['3.12'])}.zip"
    digest, name = archive.with_name(f"{archive.name}.sha256").read_text().split()
    assert digest == hashlib.sha256(archive.read_bytes()).hexdigest() and name == archive.name
    assert not archive.with_suffix("").exists()
    zipfile.ZipFile(archive).extractall(tmp_path / "unpacked")
    (folder,) = (tmp_path / "unpacked").iterdir()
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    want = {"README.txt", "install.py", "install.sh", "install.ps1", "constraints.txt", "pythons.txt", "SHA256SUMS"}
    want |= {"wheels/diffusion_labkit-0.1.0-py3-none-any.whl", "wheels/numpy-2.4.6-py3-none-any.whl"}
    want |= {f"course/{name}" for name in ("pyproject.toml", "constraints.txt", "notebooks/ja/00_a.ipynb")}
    assert found == want | {"site/index.html"}
    lines = (folder / "SHA256SUMS").read_text("utf-8").splitlines()
    assert {line.split("  ")[1] for line in lines} == found - {"SHA256SUMS"}
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def installer(folder: Path, *words: str) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONUTF8": "1"}
    command = [sys.executable, str(folder / "install.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)
    return done.returncode, done.stdout


def test_the_installer_finds_damage_and_a_python_that_the_wheels_are_not_for(clone, tmp_path, monkeypatch):
    monkeypatch.setattr(bundles, "uv", lambda: ["uv"])
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    archive, _ = built(clone, "linux-x86_64", here)
    zipfile.ZipFile(archive).extractall(tmp_path)
    folder = tmp_path / archive.stem
    assert installer(folder, "--check")[0] == 0
    wheel = folder / "wheels/numpy-2.4.6-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes() + b"x")
    (folder / "course/pyproject.toml").unlink()
    code, said = installer(folder, "--check")
    assert code == 1 and wheel.name in said and "course/pyproject.toml" in said and "壊れている" in said
    assert installer(folder)[0] == 1 and not (folder / ".venv").exists()
    (folder / "pythons.txt").write_text("3.99\n")
    code, said = installer(folder)
    assert code == 2 and here in said and "3.99" in said


@posix
def test_the_shell_script_takes_a_python_that_fits_and_names_the_versions_else(clone, tmp_path, monkeypatch):
    monkeypatch.setattr(bundles, "uv", lambda: ["uv"])
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    archive, _ = built(clone, "linux-x86_64", here)
    zipfile.ZipFile(archive).extractall(tmp_path)
    folder = tmp_path / archive.stem
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "python3").symlink_to(sys.executable)
    for name in ("sh", "dirname", "cat", "tr"):
        (programs / name).symlink_to(shutil.which(name))
    command, environment = ["sh", str(folder / "install.sh"), "--check"], {"PATH": str(programs), "PYTHONUTF8": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0 and "intact" in done.stdout, done.stderr
    (folder / "pythons.txt").write_text("3.98\n3.99\n")
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "3.98 3.99" in done.stderr


def test_a_bundle_without_clone_or_uv_says_what_is_missing(tmp_path, monkeypatch, capsys):
    with pytest.raises(BundleError, match="no clone"):
        build_bundle(tmp_path, "linux-x86_64", ["3.12"], tmp_path / "out", run=lambda command: "")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(BundleError, match="pip install uv"):
        bundles.uv()
    assert camp("bundle", "--platform", "amiga", "--output", tmp_path / "out") == 2
    assert "linux-x86_64" in capsys.readouterr().err


def test_what_builds_the_course_is_in_the_wheelhouse(clone, monkeypatch):
    """`pip install -e` without network fails where the build backend, or what it asks for by itself, is missing."""
    asked: list[str] = []

    def run(command):
        asked.append(Path(command[-1]).read_text())
        return "numpy==2.4.6\n"

    monkeypatch.setattr(bundles, "uv", lambda: ["uv"])
    bundles.resolve(clone, "linux-x86_64", "3.12", run=run)
    hatchling = pytest.importorskip("hatchling.build")
    monkeypatch.chdir(ROOT)
    needed = [*hatchling.get_requires_for_build_editable(), *hatchling.get_requires_for_build_wheel()]
    assert "hatchling>=" in asked[0]
    assert all(line.split("~")[0] in asked[0] for line in needed)


# ---- what starts as the learner --------------------------------------------------------------------------------------


def test_the_desk_hands_lessons_out_and_never_over_a_learners_work(tmp_path, capsys):
    folder, env = desk.prepare(tmp_path, "ja", {"PATH": "/bin", "OMP_NUM_THREADS": "2"})
    first = sorted(path.name for path in (folder / "ja").glob("*.ipynb"))[0]
    assert env["JUPYTERHUB_DEFAULT_URL"] == f"/lab/tree/ja/{first}"
    assert env["OMP_NUM_THREADS"] == "2" and env["MKL_NUM_THREADS"] == "1"
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert Path(env["LABKIT_RESULTS"]).is_relative_to(tmp_path)
    mine = folder / "ja" / first
    mine.write_text(mine.read_text("utf-8") + "\n", encoding="utf-8")
    untouched = folder / "en" / first
    before, record = mine.read_bytes(), json.loads((folder / ".labkit.json").read_text())
    for name in record["given"]:  # as if the course had changed since
        record["given"][name]["cells"] = "0"
    untouched.write_bytes(b"old")
    record["given"][f"en/{first}"]["file"] = hashlib.sha256(b"old").hexdigest()
    (folder / ".labkit.json").write_text(json.dumps(record))
    desk.prepare(tmp_path, "ja", {})
    assert mine.read_bytes() == before
    assert untouched.read_bytes() != b"old"


def test_a_full_disk_does_not_keep_a_learner_from_their_work(tmp_path, monkeypatch, capsys):
    def full(project, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("labkit.course.workspace.hand_out", full)
    folder, env = desk.prepare(tmp_path, "en", {})
    assert folder.is_dir() and env["OMP_NUM_THREADS"] == "1"
    assert "No space left" in capsys.readouterr().err


# ---- accounts of the hub ---------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """Accounts and groups of a machine that is not this one: dictionaries that useradd and groupadd write to."""
    grp, pwd = pytest.importorskip("grp"), pytest.importorskip("pwd")
    from labkit.camp import serve

    accounts = {"root": (0, "/root"), "www": (33, "/var/www"), "old": (20_004, "/srv/camp/homes/old")}
    groups: dict[str, list[str]] = {}

    def entry(name):
        uid, home = accounts[name]
        return pwd.struct_passwd((name, "x", uid, uid, "", home, "/bin/sh"))

    def group(name):
        return grp.struct_group((name, "x", 999, groups[name]))

    def call(*words):
        if words[0] == "groupadd":
            groups[words[-1]] = []
        else:
            options = dict(zip(words[1::1], words[2::1], strict=False))
            accounts[words[-1]] = (int(options["--uid"]), options["--home-dir"])
            groups[options["--groups"]].append(words[-1])

    owned: dict[str, tuple[int, int]] = {}
    monkeypatch.setattr(pwd, "getpwnam", entry)
    monkeypatch.setattr(pwd, "getpwall", lambda: [entry(name) for name in accounts])
    monkeypatch.setattr(grp, "getgrnam", group)
    monkeypatch.setattr(serve, "_call", call)
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: owned.__setitem__(Path(path).name, (uid, gid)))
    return accounts, owned


@posix
def test_accounts_get_numbers_and_closed_homes_of_their_own(machine, tmp_path):
    from labkit.camp.serve import make_accounts, make_folders

    accounts, owned = machine
    make_folders(tmp_path / "camp")
    assert make_accounts(tmp_path / "camp", ["aya", "ben"]) == ["aya", "ben"]
    assert [accounts[name][0] for name in ("aya", "ben")] == [20_005, 20_006]  # never the number of `old`
    assert owned == {"aya": (20_005, 20_005), "ben": (20_006, 20_006)}
    for name in ("aya", "ben"):
        assert stat.S_IMODE((tmp_path / "camp/homes" / name).stat().st_mode) == 0o700
    modes = {name: stat.S_IMODE((tmp_path / "camp" / name).stat().st_mode) for name in ("homes", "board", "hub")}
    assert modes == {"homes": 0o711, "board": 0o1733, "hub": 0o700}
    (tmp_path / "camp/homes/aya/mine").write_text("x")
    assert make_accounts(tmp_path / "camp", ["aya", "ben"]) == []
    assert (tmp_path / "camp/homes/aya/mine").read_text() == "x"


@posix
def test_a_new_container_gives_each_home_its_number_back_and_nobody_inherits(machine, tmp_path, monkeypatch):
    """Homes on a volume, accounts gone: whoever joins now must not get the number of somebody's files."""
    from labkit.camp.serve import make_accounts, make_folders

    accounts, _ = machine
    make_folders(tmp_path / "camp")
    numbers = {"ben": 20_010, "left": 20_030}
    for name in numbers:
        (tmp_path / "camp/homes" / name).mkdir()
    stat_of = Path.stat

    def owned(path, **options):
        found = stat_of(path, **options)
        uid = numbers.get(path.name)
        return found if uid is None else os.stat_result((*found[:4], uid, *found[5:]))

    monkeypatch.setattr(Path, "stat", owned)
    make_accounts(tmp_path / "camp", ["aya", "ben"])
    assert accounts["ben"][0] == 20_010
    assert accounts["aya"][0] == 20_031


@posix
def test_a_name_that_belongs_to_somebody_else_is_refused(machine, tmp_path):
    from labkit.camp.serve import CampError, make_accounts, make_folders

    accounts, _ = machine
    make_folders(tmp_path / "camp")
    with pytest.raises(CampError, match="www is an account of this machine"):
        make_accounts(tmp_path / "camp", ["www"])
    assert accounts["www"] == (33, "/var/www") and not (tmp_path / "camp/homes/www").exists()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "camp/homes/aya").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CampError, match="is a link"):
        make_accounts(tmp_path / "camp", ["aya"])
    assert "aya" not in accounts


def test_the_hub_is_told_of_every_limit_and_of_https(tmp_path):
    from labkit.camp.serve import Limits, hub_command

    how = {"address": "0.0.0.0", "port": 8000, "lang": "ja", "proxy": "/bin/chp"}
    command = hub_command(tmp_path, limits=Limits(1.5, 2, 3, 99), **how)
    given = dict(word.removeprefix("--").split("=", 1) for word in command[3:])
    assert given["Spawner.mem_limit"] == "1536M"
    assert [given[f"CampSpawner.{name}"] for name in ("cores", "threads", "processes", "lang")] == [
        "2",
        "3",
        "99",
        "ja",
    ]
    assert given["JupyterHub.bind_url"] == "http://0.0.0.0:8000" and "JupyterHub.ssl_cert" not in given
    command = hub_command(tmp_path, limits=Limits(), certificate=tmp_path / "c.pem", key=tmp_path / "k.pem", **how)
    given = dict(word.removeprefix("--").split("=", 1) for word in command[3:])
    assert given["JupyterHub.bind_url"].startswith("https://") and given["JupyterHub.ssl_key"].endswith("k.pem")


def test_serving_says_what_this_machine_lacks(tmp_path, monkeypatch, capsys):
    from labkit.camp import serve

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert camp("serve", tmp_path / "none") == 2
    assert "JupyterHub is missing" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(serve.shutil, "which", lambda name: None)
    assert camp("serve", tmp_path / "none") == 2 and "npm install" in capsys.readouterr().err
    monkeypatch.setattr(serve.shutil, "which", lambda name: "/bin/chp")
    monkeypatch.setattr(os, "geteuid", lambda: 1000, raising=False)
    assert camp("serve", tmp_path / "none") == 2 and "as root" in capsys.readouterr().err
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    assert camp("serve", tmp_path / "none") == 2 and "labkit camp learners" in capsys.readouterr().err
    monkeypatch.setattr(sys, "platform", "win32")
    assert camp("serve", tmp_path / "none") == 2 and "needs Linux" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
