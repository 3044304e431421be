"""The sources of the site in one language: executed lessons, article maps, claims, studies, glossary, API pages."""

from __future__ import annotations

import json
import pkgutil
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from labkit import __version__
from labkit.authoring.site.lessons import lesson_page
from labkit.authoring.stamp import Stamp, read_stamp
from labkit.course.claim_file import declared
from labkit.course.claims import load_records, value_text
from labkit.course.evidence import evidence
from labkit.course.i18n import LANGUAGES, Catalogue, load_messages
from labkit.course.ledger import SIGNS, article_table, ledger_rows, verdict_text
from labkit.course.lesson_files import lesson_files
from labkit.course.manifest import Lesson, Project, all_lessons
from labkit.course.render import language, pick, table
from labkit.course.yamlfile import load_yaml
from labkit.errors import LabkitError
from labkit.files import write_atomically

HERE = Path(__file__).parent
TEXTS = HERE / "texts.yaml"
GLOSSARY = HERE.parent / "glossary.yaml"
ROOMS = (
    *("diffusion", "models", "portraits", "metrics", "worlds", "dpo", "fabric", "density", "pairwise", "survey"),
    *("inspection", "measuring", "studies", "figures", "course", "camp", "training", "authoring"),
)
TEACHING, OWN = ("guide", "camp"), ("own_pairs", "scale")  # docs/NAME.LANG.md
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?://|#)([^)\s]+)\)")
Say = Callable[..., str]


class SiteError(LabkitError):
    """The site cannot be made from what is there; the message says what to do."""


def texts(lang: str) -> Say:
    """The texts of the site in one language, by key."""
    catalogue = Catalogue(load_messages(TEXTS))
    return lambda key, **values: catalogue.text(key, lang, strict=True, **values)


def executed(lesson: Lesson, lane: Path) -> Path:
    """The executed notebook of a lesson in a lane of a run, `build/run/cpu-solution-en`; SiteError if it has none."""
    path = lane / f"{lesson.stem}.ipynb"
    if not path.is_file():
        tier, _, lang = lane.name.split("-")
        command = f"labkit run {lesson.number} --tier {tier} --lang {lang}"
        raise SiteError(f"lesson {lesson.number} has not been executed: {path} is missing; run {command}")
    status = path.with_suffix(".json")  # written last: a run that was killed leaves the notebook alone
    if not status.is_file() or json.loads(status.read_text("utf-8"))["outcome"]["status"] != "passed":
        raise SiteError(f"the run of lesson {lesson.number} in {lane} did not pass or end; see report.html above it")
    return path


def write_sources(folder: Path, lane: Path, lang: str, *, project: Project, api: bool = True) -> None:
    """Write the sources of the site in one language into an empty folder.

    Args:
        folder: made anew.
        lane: the folder of a run, TIER-solution-LANG, that holds executed notebooks and results/.
        api: whether to write pages for the modules of the package.

    Raises:
        SiteError: a lesson was not executed, or did not pass.
    """
    say, lessons, stamp = texts(lang), all_lessons(project), read_stamp(project.stamp)
    found = {lesson.number: executed(lesson, lane) for lesson in lessons}
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "_static").mkdir(parents=True)
    for path in (HERE / "static").iterdir():
        shutil.copy(path, folder / "_static" / path.name)
    picture = project.root / "data" / "readme.png"
    if picture.exists():
        shutil.copy(picture, folder / "_static" / "portraits.png")
    tier = lane.name.split("-")[0]
    with language(lang):
        for lesson in lessons:
            _write_lesson(folder, lesson, found[lesson.number], tier, say)
        about = say("articles_about")
        _page(folder, "articles", say("articles"), about, *_articles(lessons, lane, tier, project, say))
        about = say("claims_about", tier=tier)
        _page(folder, "claims", say("claims"), about, *_claims(lessons, lane, tier, project, say))
        _page(folder, "studies", say("studies"), say("studies_about"), *_studies(lessons, project, say))
        _page(folder, "glossary", say("glossary"), say("glossary_about"), _glossary(say))
        modules = _write_api(folder, say) if api else []
        pages = [name for name in (*TEACHING, *OWN) if (project.root / "docs" / f"{name}.{lang}.md").is_file()]
        for name in pages:
            text = (project.root / "docs" / f"{name}.{lang}.md").read_text("utf-8")
            write_atomically(folder / f"{name}.md", teaching_page(text, lang, pages, stamp))
        has_picture = picture.exists()
        _write_index(folder, lessons, stamp, lang, say, api=bool(modules), picture=has_picture, pages=pages)


def _write_lesson(folder: Path, lesson: Lesson, path: Path, tier: str, say: Say) -> None:
    import nbformat

    note = f":::{{note}}\n{say('executed', tier=tier, version=__version__)}\n:::"
    page = lesson_page(nbformat.read(path, as_version=4), folder / "_static" / "figures", say, note=note)
    target = folder / "lessons" / f"{lesson.stem}.ipynb"
    target.parent.mkdir(exist_ok=True)
    write_atomically(target, nbformat.writes(page))


def _page(folder: Path, name: str, title: str, about: str, *parts: str) -> None:
    write_atomically(folder / f"{name}.md", "\n\n".join([f"# {title}", about, *parts]) + "\n")


def _heading(lesson: Lesson) -> str:
    return f"## {lesson.number} · {pick(lesson.title)}"


def _html(markup: str) -> str:
    """Markup of the course's own tables, in a box that scrolls where the screen is narrow."""
    return f'```{{raw}} html\n<div class="labkit-table" tabindex="0">{markup}</div>\n```'


def _see(lesson: Lesson) -> str:
    return f"[{lesson.number} · {pick(lesson.title)}](lessons/{lesson.stem}.ipynb)"


def _open(lesson: Lesson, say: Say) -> str:
    return f"[{say('open')}](lessons/{lesson.stem}.ipynb)"


def _articles(lessons: Sequence[Lesson], lane: Path, tier: str, project: Project, say: Say) -> list[str]:
    records, parts = load_records(lane / "results"), []
    for lesson in lessons:
        files = lesson_files(lesson.number, project)
        if files.article_rows:
            markup, _ = article_table(files, declared(lesson.number, project), records, tier)
            parts += [_heading(lesson), _open(lesson, say), _html(markup)]
    return parts


def _claims(lessons: Sequence[Lesson], lane: Path, tier: str, project: Project, say: Say) -> list[str]:
    rows = ledger_rows(load_records(lane / "results"), tier=tier, project=project)
    counts = Counter(row["verdict"] for row in rows)
    parts = [" · ".join(f"{verdict_text(one)}: {counts[one]}" for one in SIGNS if counts[one])]
    headers = [say(f"claim_{name}") for name in ("statement", "declared", "study", "run", "verdict")]
    for lesson in lessons:
        cells = [_claim_cells(row) for row in rows if row["claim"].lesson == lesson.number]
        if cells:
            parts += [_heading(lesson), _open(lesson, say), _html(table(headers, cells)[0])]
    return parts


def _claim_cells(row: dict[str, Any]) -> tuple[str, ...]:
    claim, known, record = row["claim"], row["evidence"], row["record"]
    setting = f"\n{pick(claim.setting)}" if claim.setting else ""
    statement = f"**{pick(claim.statement)}**\n{pick(claim.paper)}, {pick(claim.place)}{setting}\n`{claim.id}`"
    study, run = known.text() if known else "", value_text(record) if record else ""
    return statement, claim.region.text(), study, run, verdict_text(row["verdict"])


def _studies(lessons: Sequence[Lesson], project: Project, say: Say) -> list[str]:
    from labkit.studies import read_record, studies

    headers = [say(f"study_{name}") for name in ("claim", "smallest", "result", "seeds", "verdict")]
    parts = []
    for lesson in (one for one in lessons if one.number in studies()):
        record = read_record(lesson.number)
        if not record.facts:
            continue
        facts = record.facts.values()
        line = say(
            "study_facts",
            units=len(record.facts),
            hours=f"{record.seconds() / 3600:.1f}",
            machines=", ".join(sorted({fact["machine"] for fact in facts})),
            torch=", ".join(sorted({fact["versions"]["torch"] for fact in facts})),
            code=f"`{record.conditions['code']}`",
        )
        sizes = ", ".join(f"`{name} = {value}`" for name, value in record.conditions["sizes"].items())
        rows = []
        for claim in declared(lesson.number, project).values():
            if known := evidence(claim):
                smallest = f"{claim.smallest:g}" if claim.smallest else ""
                text = f"{pick(claim.statement)}\n`{claim.id}`"
                rows.append((text, smallest, known.text(), str(known.estimate.seeds), verdict_text(known.verdict)))
        parts += [
            _heading(lesson),
            _open(lesson, say),
            line,
            say("study_sizes", sizes=sizes),
            _html(table(headers, rows)[0]),
        ]
    return parts


def _glossary(say: Say) -> str:
    rows = [(entry["en"], entry["ja"]) for entry in load_yaml(GLOSSARY)]
    return _html(table([say("english"), say("japanese")], sorted(rows, key=lambda row: row[0].lower()))[0])


def modules(room: str) -> list[str]:
    """Names of the public modules of one folder of labkit: "labkit.dpo", "labkit.dpo.equations", ..."""
    import labkit

    found = [f"labkit.{room}"]
    for path in labkit.__path__:
        below = pkgutil.walk_packages([str(Path(path) / room)], prefix=f"labkit.{room}.")
        found += [one.name for one in below if not any(part.startswith("_") for part in one.name.split("."))]
    return [name for name in found if ".lessons." not in name]


def teaching_page(text: str, lang: str, pages: Sequence[str], stamp: Stamp) -> str:
    """A page of docs/ as the site has it: the switch of languages goes (the site has its own), links to pages that the
    site holds lead there, and links to other files to GitHub, or nowhere in a copy that does not know its address."""
    others = "|".join(one for one in LANGUAGES if one != lang)
    text = re.sub(rf"\[[^\]]*\]\((?:{'|'.join(pages)})\.(?:{others})\.md\)(?: · )?", "", text)

    def lead(found: re.Match[str]) -> str:
        label, (path, _, place) = found[1], found[2].partition("#")
        name = path.removesuffix(f".{lang}.md")
        if name in pages:
            return f"[{label}]({name}.md{'#' + place if place else ''})"
        return f"[{label}](https://github.com/{stamp.repo}/blob/{stamp.branch}/docs/{path})" if stamp.repo else label

    return _LINK.sub(lead, text)


def _write_api(folder: Path, say: Say) -> list[str]:
    (folder / "api").mkdir()
    lines = [f"# {say('api')}", "", say("api_about"), "", "```{toctree}", ":maxdepth: 1", ""]
    written = []
    for room in ROOMS:
        names = modules(room)
        title = f"labkit.{room}"
        rst = [title, "=" * len(title), ""]
        for name in names:
            if name != title:
                rst += [name, "-" * len(name), ""]
            whole = name != title or len(names) == 1  # what a package passes on stands where it is written
            rst += [f".. automodule:: {name}", *(["   :members:", "   :member-order: bysource"] if whole else []), ""]
        write_atomically(folder / "api" / f"{room}.rst", "\n".join(rst))
        lines.append(room)
        written += names
    write_atomically(folder / "api" / "index.md", "\n".join([*lines, "```", ""]))
    return written


def _write_index(
    folder: Path, lessons: Sequence[Lesson], stamp: Stamp, lang: str, say: Say,
    *, api: bool, picture: bool, pages: Sequence[str] = (),
) -> None:  # fmt: skip
    def tree(caption: str, *pages: str) -> str:
        return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"])

    parts = [f"# {say('home')}", say("about")]
    if picture:
        parts.append(f"![{say('portraits')}](_static/portraits.png)")
    parts.append(f"## {say('lessons')}")
    for lesson in lessons:
        minutes = lesson.minutes["cpu"]
        facts = [say("minutes", minutes=f"{minutes:g}")] if minutes else []
        if stamp.repo:
            facts.append(f"[{say('colab')}]({stamp.colab(f'notebooks/{lang}/{lesson.stem}.ipynb')})")
        text = f": {pick(lesson.summary)}" + (f" *{' · '.join(facts)}*" if facts else "")
        parts.append(f"{_see(lesson)}\n{text}")
    parts += [f"## {say('run_yourself')}", say("run_yourself_text")]
    parts += [
        tree(say("lessons"), *(f"lessons/{lesson.stem}" for lesson in lessons)),
        tree(say("evidence"), "articles", "claims", "studies"),
        *(
            tree(say(key), *found)
            for key, names in (("own", OWN), ("teaching", TEACHING))
            if (found := [name for name in names if name in pages])
        ),
        tree(say("reference"), "glossary", *(["api/index"] if api else [])),
    ]
    write_atomically(folder / "index.md", "\n\n".join(parts) + "\n")


def front_page(langs: Sequence[str]) -> str:
    """The page at the top of the site: it sends a browser to its language, and has a link to each without scripts."""
    links = "".join(f'<li><a href="{lang}/index.html" lang="{lang}">{texts(lang)("home")}</a></li>' for lang in langs)
    known: dict[str, Any] = {"langs": list(langs)}
    script = (
        f"var langs = {json.dumps(known['langs'])};"
        "var wanted = (navigator.languages || [navigator.language || '']).map(function (l) { return l.slice(0, 2); });"
        "var lang = wanted.filter(function (l) { return langs.indexOf(l) >= 0; })[0] || langs[0];"
        "location.replace(lang + '/index.html');"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{texts('en')('site')}</title><script>{script}</script></head>\n"
        f"<body><main><h1>{texts('en')('site')}</h1><ul>{links}</ul></main></body></html>\n"
    )
