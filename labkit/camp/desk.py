"""What starts as the learner when they log in: new lessons into their copies, then Jupyter's server for one user.

    python -m labkit.camp.desk [arguments of jupyterhub-singleuser]

The hub on one machine and the pods of Zero-to-JupyterHub both start this. Copies are handed out as `labkit update`
does it: what a learner has worked in is never written again; a new version of the lesson lies beside it. A failure of
that (a full disk) is said in the log and does not keep anybody from their work.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def prepare(home: Path, lang: str, environment: dict[str, str]) -> tuple[Path, dict[str, str]]:
    """Hand the lessons out into `home`/labkit-work; returns that folder and the environment of the server."""
    from labkit.course.manifest import Project
    from labkit.course.workspace import hand_out, lab_environment

    project, folder = Project(), home / "labkit-work"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        changes = hand_out(project, folder)
        kept = [f"{change.name} -> {change.beside}" for change in changes if change.kind == "kept"]
        print(f"labkit camp: {len(changes)} lessons written{', beside: ' + ', '.join(kept) if kept else ''}")
        environment = environment | {
            name: value
            for name, value in lab_environment(project, folder, lang).items()
            if name.startswith("JUPYTERLAB_")
        }
    except (OSError, ValueError) as error:
        print(f"labkit camp: the lessons could not be brought up to date: {error}", file=sys.stderr)
    first = min((path.name for path in (folder / lang).glob("[0-9][0-9]_*.ipynb")), default=None)
    environment = {"LABKIT_RESULTS": str(home / ".labkit" / "results"), "HF_HUB_OFFLINE": "1"} | environment
    environment |= {name: environment.get(name) or "1" for name in THREADS}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    if first:
        environment["JUPYTERHUB_DEFAULT_URL"] = f"/lab/tree/{lang}/{first}"
    return folder, environment


def main(words: Sequence[str]) -> None:
    """Become Jupyter's server for one user."""
    os.umask(0o077)
    lang = "ja" if os.environ.get("LABKIT_CAMP_LANG") == "ja" else "en"
    folder, environment = prepare(Path.home(), lang, dict(os.environ))
    options = {
        "ServerApp.root_dir": str(folder),
        "LabApp.news_url": "None",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "MappingKernelManager.cull_idle_timeout": "7200",  # a kernel that nobody has used for two hours
    }
    command = [sys.executable, "-m", "jupyterhub.singleuser", *(f"--{name}={value}" for name, value in options.items())]
    sys.stdout.flush()
    os.execve(command[0], [*command, *words], environment)


if __name__ == "__main__":
    main(sys.argv[1:])
