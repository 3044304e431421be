"""`labkit stamp --repo OWNER/NAME`: write the repository's address into badges, install cells and both READMEs.

The address stands in one committed file, `labkit/authoring/stamp.yaml`; the builder reads it. Without an address the
notebooks have no Colab badge and the install cell says what to do. `--from-git` takes the address of the remote that
the clone came from, so that a fork opens its own notebooks and not those of the course it was forked from.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from labkit.course.yamlfile import YamlError, load_yaml
from labkit.errors import LabkitError
from labkit.files import write_atomically

_REPO = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})/[A-Za-z0-9._-]{1,100}")
_BRANCH = re.compile(r"(?!-)[A-Za-z0-9._/-]{1,100}")
_BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
_FILE = """\
# Where the course lies on GitHub; read by `labkit build`, written by `labkit stamp --repo OWNER/NAME`.
# Empty: the notebooks carry no Colab badge, and their install cell says what to do.
repo: "{repo}"
branch: {branch}
"""


class StampError(LabkitError, ValueError):
    """An address that is none, or a stamp.yaml that cannot be read."""


@dataclass(frozen=True)
class Stamp:
    """The address of the course: `repo` is "OWNER/NAME" or "" (not stamped)."""

    repo: str = ""
    branch: str = "main"

    def __post_init__(self) -> None:
        if self.repo and not _REPO.fullmatch(self.repo):
            raise StampError(f"{self.repo!r} is no GitHub repository; expected OWNER/NAME, for example octocat/course")
        if not _BRANCH.fullmatch(self.branch):
            raise StampError(f"{self.branch!r} is no branch name; expected a name such as main")

    def colab(self, notebook: str) -> str:
        """Address that opens a notebook of the repository (path with forward slashes) in Colab."""
        return f"https://colab.research.google.com/github/{self.repo}/blob/{self.branch}/{notebook}"

    def badge(self, notebook: str, alt: str) -> str:
        """Markdown of the Colab badge; "" if not stamped."""
        return f"[![{alt}]({_BADGE})]({self.colab(notebook)})" if self.repo else ""

    def link(self, text: str, path: str) -> str:
        """Markdown of a link to a file of the repository; the text alone if not stamped.

        A link relative to the notebook would be dead in the learner's own folder, which holds nothing but notebooks.
        """
        return f"[{text}](https://github.com/{self.repo}/blob/{self.branch}/{path})" if self.repo else text

    @property
    def site(self) -> str:
        """Address of the course's pages on GitHub Pages (workflow pages.yml); "" if not stamped."""
        if not self.repo:
            return ""
        owner, _, name = self.repo.partition("/")
        whole = name.lower() == f"{owner.lower()}.github.io"
        return f"https://{owner.lower()}.github.io" + ("" if whole else f"/{name}")

    @property
    def issues(self) -> str:
        """Address where errors are reported; "" if not stamped."""
        return f"https://github.com/{self.repo}/issues" if self.repo else ""


def read_stamp(path: Path) -> Stamp:
    """The stamp in a file; a missing file means not stamped. Raises StampError."""
    if not Path(path).exists():
        return Stamp()
    try:
        data = load_yaml(path) or {}
    except YamlError as error:
        raise StampError(str(error)) from None
    if not isinstance(data, dict) or set(data) - {"repo", "branch"}:
        raise StampError(f'{path}: expected repo: "OWNER/NAME" and branch: main; run labkit stamp --repo OWNER/NAME')
    return Stamp(str(data.get("repo") or ""), str(data.get("branch") or "main"))


def write_stamp(path: Path, stamp: Stamp) -> None:
    """Write the stamp file in one step (a crash leaves the old one)."""
    write_atomically(path, _FILE.format(repo=stamp.repo, branch=stamp.branch))


def repository(address: str) -> str:
    """OWNER/NAME from what people paste: with or without https://github.com/, .git, or a slash at the end."""
    return re.sub(r"^(?:https?://|git@)?(?:www\.)?github\.com[/:]|(?:\.git)?/?$", "", address.strip())


def git_repository(root: Path, remote: str = "origin") -> str:
    """OWNER/NAME of the GitHub repository that a clone came from; "" for no clone, no such remote, or another host."""
    command = ["git", "-C", str(root), "remote", "get-url", remote]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:  # no git here
        return ""
    found = re.search(
        r"(?:^|[/@])(?:www\.)?github\.com(?::\d+)?[/:](?P<repo>[^/]+/[^/]+?)(?:\.git)?/?$", done.stdout.strip()
    )
    return found["repo"] if found and not done.returncode and _REPO.fullmatch(found["repo"]) else ""


def fork_hint(stamp: Stamp, root: Path) -> str:
    """One line for a clone whose notebooks open another repository (a fork, a renamed one); "" for any other."""
    origin = git_repository(root) if stamp.repo else ""
    if not origin or origin.lower() == stamp.repo.lower():
        return ""
    return f"this clone is of {origin}, but its notebooks open {stamp.repo}: run labkit stamp --from-git"


_ROW = re.compile(
    r"(?P<link>\]\(notebooks/(?P<lang>en|ja)/(?P<stem>\d\d_\w+)\.ipynb\))(?: · \[[^]]*\]\(https://[^)\s]*\))*"
)
_NOTE = re.compile(r"<!-- stamp -->.*?<!-- /stamp -->", re.DOTALL)


def with_stamp(readme: str, stamp: Stamp, words: dict[str, str]) -> str:
    """A README whose lesson table links executed copies and Colab where the course has an address.

    Args:
        readme: its text. Rows link notebooks/LANG/NN_name.ipynb; a note stands between the comments stamp and /stamp.
        words: texts by key: executed, unstamped, stamped (with {site}).
    """

    def row(found: re.Match[str]) -> str:
        if not stamp.repo:
            return found["link"]
        page = f"{stamp.site}/{found['lang']}/lessons/{found['stem']}.html"
        colab = stamp.colab(f"notebooks/{found['lang']}/{found['stem']}.ipynb")
        return f"{found['link']} · [{words['executed']}]({page}) · [Colab]({colab})"

    note = words["stamped"].format(site=stamp.site) if stamp.repo else words["unstamped"]
    return _NOTE.sub(lambda _: f"<!-- stamp -->\n{note}\n<!-- /stamp -->", _ROW.sub(row, readme))
