"""Installs the course on Colab; the install cell of a notebook runs this file from a fresh clone.

    python labkit/authoring/colab.py LANG REQUIRED_OF_THE_RUNTIME ... -- REQUIREMENT ...

Colab's torch, numpy and Jupyter stack must stay as they are: another torch or numpy under a running kernel breaks it,
and a newer IPython or ipywidgets breaks Colab itself. So requirements before `--` are only compared with what is there;
of those after it, only the missing ones are installed, with every installed package pinned to its version; the course
itself goes in without dependencies; and at the end the versions are compared once more.

Runs before labkit is installed: standard library, `packaging` and `yaml` only (all on Colab), no import of labkit.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

PROTECTED = ("torch", "numpy", "ipython", "ipykernel", "ipywidgets")
ROOT = Path(__file__).resolve().parents[2]


class InstallError(RuntimeError):
    """The course cannot be installed here; the message is for the learner."""


def canonical(requirement: str) -> str:
    """Name of the distribution in a requirement line: "Resvg_py >=0.5; python_version<'4'" -> "resvg-py"."""
    match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
    if not match:
        raise InstallError(f"cannot read the requirement {requirement!r}; write it as name>=version")
    return re.sub(r"[-_.]+", "-", match[1]).lower()


def installed() -> dict[str, str]:
    """Canonical name -> version of every distribution; the first on the path wins, as in an import."""
    found: dict[str, str] = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    return found


def satisfied(requirement: str, have: Mapping[str, str]) -> bool:
    """Whether what is installed meets a requirement line (one whose marker does not apply is met)."""
    from packaging.requirements import Requirement

    need = Requirement(requirement)
    if need.marker and not need.marker.evaluate():
        return True
    version = have.get(canonical(need.name))
    return version is not None and need.specifier.contains(version, prereleases=True)


def constraints(have: Mapping[str, str], missing: Sequence[str]) -> list[str]:
    """Pins (name==version) that keep everything installed as it is, but for the distributions in `missing`."""
    from packaging.version import InvalidVersion, Version

    open_names, pins = {canonical(line) for line in missing}, []
    for name, version in sorted(have.items()):
        try:
            if name not in open_names:
                pins.append(f"{name}=={Version(version)}")
        except InvalidVersion:  # some Debian packages; pip would reject the whole file
            continue
    return pins


def install(
    needs: Sequence[str], built_in: Sequence[str], say: Callable[..., str], run: Callable[[Sequence[str]], None]
) -> list[str]:
    """Install the course and the `needs` that are missing; returns those. `say(key, **values)` gives the texts, `run`
    runs a pip command line. Raises InstallError if the runtime is too old or a protected package changed."""
    have = installed()
    for line in built_in:
        if not satisfied(line, have):
            raise InstallError(say("old_runtime", need=line, found=have.get(canonical(line), "-")))
    missing = [line for line in needs if not satisfied(line, have)]
    touched = sorted({canonical(line) for line in missing} & set(PROTECTED))
    if touched:
        raise InstallError(say("old_runtime", need=", ".join(touched), found="-"))
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "constraints.txt"
        pins.write_text("\n".join(constraints(have, missing)) + "\n", encoding="utf-8")
        if missing:
            run(["install", "--quiet", "--constraint", str(pins), *missing])
        run(["install", "--quiet", "--no-deps", str(ROOT)])
    now = installed()
    changed = [name for name in PROTECTED if have.get(name) != now.get(name)]
    if changed:
        raise InstallError(say("changed", names=", ".join(changed)))
    return missing


def main(argv: Sequence[str]) -> int:
    """Run the script: 0 installed, 1 not (the reason is printed)."""
    import yaml

    lang, *rest = argv
    split = rest.index("--")
    texts = yaml.safe_load((ROOT / "labkit/course/messages/common.yaml").read_text(encoding="utf-8"))["install"]

    def say(key: str, **values: str) -> str:
        return texts[key][lang].format(**values)

    def run(command: Sequence[str]) -> None:
        done = subprocess.run([sys.executable, "-m", "pip", *command], capture_output=True, text=True)
        if done.returncode:
            raise InstallError(f"pip {' '.join(command)}\n{(done.stdout + done.stderr)[-1500:]}")

    try:
        added = install(rest[split + 1 :], rest[:split], say, run)
    except InstallError as error:
        print(error)
        return 1
    print(say("done", names=", ".join(added) or "-"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
