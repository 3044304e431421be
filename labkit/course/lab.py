"""`start("01", ...)` opens a lesson: the object `lab` of every notebook."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from labkit.course import claims, ledger
from labkit.course import quiz as quizzes
from labkit.course.answers import MISSING, cells_run, lend, look_up, watch_cells
from labkit.course.checks import Exercise, Result, judge, load_exercises
from labkit.course.evidence import evidence
from labkit.course.feedback import (
    HINT_LEVELS,
    hint_box,
    next_level,
    result_texts,
    show_result,
    solution_box,
    what_to_type,
)
from labkit.course.i18n import checked_language, get_language, set_language, t, use_lesson
from labkit.course.injected import check_injected
from labkit.course.lesson_files import CourseError, known_id, lesson_files
from labkit.course.library import speak_to_learners, translated
from labkit.course.manifest import Project
from labkit.course.progress import Progress, overview, report
from labkit.course.progressbar import Item, progress_bar
from labkit.course.render import pick, set_interactive, show, show_box
from labkit.errors import LabkitError

if TYPE_CHECKING:
    import torch

WORTH_KEEPING = 1.0  # seconds
SEED_STRIDE = 10_000  # offsets below this never give two seeds the same generator
NO_GPU = 'tier gpu needs a GPU, and none was found: set tier = "cpu", or check torch and the driver with labkit env'

_current: Lab | None = None


class CheckFailed(LabkitError, AssertionError):
    """Raised by `check` and `use` in strict mode (batch runs of solution editions), with the message as plain text."""


class Sizes(SimpleNamespace):
    """The tier's sizes from lesson.yaml as attributes; an unknown name gives an error that lists the known ones."""

    def __getattr__(self, name: str) -> Any:
        names = ", ".join(sorted(vars(self))) or "none"
        raise AttributeError(f"this lesson has no size {name!r}; lesson.yaml gives: {names}")


class Lab:
    """An open lesson. Ids may be short ("add_noise") or full ("l01.add_noise")."""

    def __init__(
        self,
        number: int | str,
        *,
        tier: str,
        lang: str,
        seed: int,
        strict: bool,
        interactive: bool,
        project: Project | None = None,
        home: Path | str | None = None,
        results: Path | str | None = None,
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise CourseError(f"seed is {seed!r}: expected a whole number, e.g. seed=0")
        self.project = project
        self.files = lesson_files(number, project)
        self.sizes = Sizes(**self.files.lesson.sizes_for(tier))
        self.number, self.name, self.tier = self.files.number, self.files.lesson.name, tier
        self.lang, self.seed, self.strict, self.interactive = checked_language(lang), seed, strict, interactive
        self.results = results
        self.keeps = interactive  # whether `keep` reads and writes; batch runs measure
        self._loaded_in: int | None = None  # the cell that last said that a result was loaded
        self.records: list[claims.Record] = []
        self._told_unsaved = False
        self._judged: dict[str, tuple[Any, Result]] = {}  # exercise id -> what was checked last, and the result
        self._checked_last: str | None = None  # exercise id
        set_language(lang)
        use_lesson(self.files.folder)
        self.exercises = load_exercises(self.files.folder)
        self.progress = Progress(home)

    # ---- the run ------------------------------------------------------------------------------------------------

    @cached_property
    def device(self) -> torch.device:
        """CPU on the tiers smoke and cpu; on tier gpu the GPU (CUDA or Apple). CourseError where there is none."""
        import torch

        if self.tier == "gpu" and torch.cuda.is_available():
            return torch.device("cuda")
        if self.tier == "gpu" and torch.backends.mps.is_available():
            return torch.device("mps")
        if self.tier == "gpu":
            raise CourseError(NO_GPU)
        return torch.device("cpu")

    def generator(self, offset: int = 0) -> torch.Generator:
        """A new CPU generator for this run's seed; another `offset` (0 to 9999) is another stream of numbers."""
        import torch

        if not 0 <= offset < SEED_STRIDE:
            raise CourseError(f"offset is {offset}: expected 0 to {SEED_STRIDE - 1}")
        return torch.Generator().manual_seed(self.seed * SEED_STRIDE + offset)

    def t(self, key: str, /, **values: Any) -> str:
        """The text of `key` in the lesson's language."""
        return t(key, lang=self.lang, **values)

    def progress_bar(self, iterable: Iterable[Item], desc: str = "", total: int | None = None) -> Iterator[Item]:
        """Go through `iterable` and show a forecast; a batch run writes at most ten lines."""
        return progress_bar(iterable, desc, total, interactive=self.interactive)

    def real(self, pipe: Any, *, rounds: int = 1, pools: int = 0, runs: int = 0, **choices: Any) -> Any:
        """Stable Diffusion with published judges on tier gpu, `pipe` with those of the course elsewhere: the same
        attributes (`labkit.real.Real`). Shows what will be drawn and trained, with its forecast.

        Args:
            pipe: the lesson's small pipeline. rounds, pools, runs: how much the cell does (`labkit.real.forecast`).
            choices: of tier gpu, `model="sdxl"` and `reward="hpsv2.1"`, "imagereward", "aesthetic" or "clip-iqa"; of
                smoke and cpu, `model="portrait-flow"`: a flow-matching transformer in the place of `pipe`.

        Raises:
            ValueError: the tier or the lesson has no such model. TooSmall, ModelLoadError: of one line, if the GPU has
                no room or weights are missing.
        """
        from labkit import real

        if self.number in real.NEED_UNET and choices.get("model") in real.SMALL_NAMES:
            raise ValueError(
                f"model is {choices['model']!r}: lesson {self.number} counts the work of a U-Net and takes its steps "
                "with DDIM; leave model out"
            )
        show_box("info", *real_lines(self.tier, rounds=rounds, pools=pools, runs=runs, **choices))
        return real.load(self.tier, self.device, pipe, seed=self.seed, rounds=rounds, pools=pools, runs=runs, **choices)

    # ---- results that are kept -----------------------------------------------------------------------------------

    def keep(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """function(*args, **kwargs), or what this very call gave before, also in a kernel that is gone by now.

        The result must hold everything that the lesson needs of the call: what the function changes elsewhere is lost
        when it is loaded. It is computed anew when its code, its arguments, the notebook's names that it uses, the
        tier, the sizes, the seed or labkit have changed, after `lab.fresh()`, and always where `lab.keeps` is False
        (batch runs, which measure). What takes less than a second is not kept.
        """
        from labkit.course import keep

        path = self._store().path(name, function, args, kwargs) if self.keeps or self.strict else None
        if not self.keeps:
            value = function(*args, **kwargs)
            if self.strict:
                keep.pack(value, 0.0, 0.0)  # raises where an interactive run could not keep it
            return value
        try:
            kept = self._store().read(path, self.device)
        except keep.DamagedResult as error:
            show_box("warn", t("keep.damaged", name=name, error=translated(str(error))))
            kept = None
        if kept is not None:
            if self._loaded_in != (cell := len(cells_run())):  # one line per cell
                at = datetime.fromtimestamp(kept.at).strftime("%Y-%m-%d %H:%M")
                show_box("info", t("keep.loaded", at=at))
            self._loaded_in = cell
            return kept.value
        begun = time.perf_counter()
        value = function(*args, **kwargs)
        seconds = time.perf_counter() - begun
        if seconds >= WORTH_KEEPING:
            try:
                self._store().write(path, value, seconds)
            except (CourseError, OSError) as error:
                show_box("warn", t("keep.not_kept", name=name, error=translated(str(error))))
        return value

    def fresh(self) -> None:
        """Forget the kept results of this lesson and tier, so that its cells compute them anew."""
        show_box("info", t("keep.forgotten", count=self._store().forget()))

    def _store(self) -> Any:
        from labkit.course.keep import Store

        return Store(self.progress.path.parent, self.number, self.tier, sizes=vars(self.sizes), seed=self.seed)

    # ---- exercises ----------------------------------------------------------------------------------------------

    def check(self, id: str, obj: Any = MISSING) -> Result:
        """Check `obj` (default: what the notebook calls by the exercise's name) and show the result.

        Never raises because of the learner's object, unless the session is strict (CheckFailed); an unknown id is a
        CourseError.
        """
        exercise = self.exercise(id)
        obj = look_up(exercise, obj)
        result = self._judge(exercise, obj)
        self._checked_last = exercise.id
        counted = result.status if result.status in ("passed", "failed") else "todo"  # only the learner's own answers
        seen = self.progress.record_check(self.number, exercise.id, counted).get("hints", 0)
        if result.key == "check.raised":  # shows the first hint by itself
            seen = max(seen, HINT_LEVELS[0])
            self.progress.record_help(self.number, exercise.id, hint=seen)

        def record(**help: Any) -> None:
            self.progress.record_help(self.number, exercise.id, **help)

        show_result(exercise, obj, result, seen=seen, record=record, interactive=self.interactive)
        if self.strict and not result:
            title, paragraphs = result_texts(result)
            raise CheckFailed(" ".join([title, *paragraphs]))
        return result

    def use(self, id: str, obj: Any = MISSING) -> Any:
        """The learner's object if it passes, else the reference, lent; says which. Strict: raises in that case.

        What is lent is recognised by later checks, so binding it to the learner's own name does no harm; the answer of
        a `value=True` exercise needs another name (see the guide in `labkit.course.checks`).
        """
        exercise = self.exercise(id)
        obj = look_up(exercise, obj)
        known, result = self._judged.get(exercise.id, (MISSING, None))
        if result is None or known is not obj or exercise.value:  # values may have changed since
            result = self._judge(exercise, obj)
        if result:
            show_box("pass", t("use.yours", name=exercise.name))
            return obj
        show_box("info", t("use.reference", name=exercise.name))
        if self.strict:
            raise CheckFailed(t("use.reference", name=exercise.name))
        return lend(exercise)

    def _judge(self, exercise: Exercise, obj: Any) -> Result:
        result = judge(exercise, obj)
        self._judged[exercise.id] = (obj, result)
        return result

    def hint(self, id: str | None = None, level: int | None = None) -> None:
        """Show a hint: of the exercise checked last without `id`; without `level` the next one not seen yet."""
        exercise = self._asked_about(id, "hint")
        seen = self.progress.entry(self.number, "exercises", exercise.id).get("hints", 0)
        if level is None:
            level = next_level(exercise, seen) or HINT_LEVELS[-1]
        if level not in HINT_LEVELS:
            raise CourseError(f"hint level {level!r}: choose 1, 2 or 3")
        self.progress.record_help(self.number, exercise.id, hint=level)
        show(*hint_box(exercise, level, what_to_type(exercise, max(level, seen))))

    def solution(self, id: str | None = None) -> None:
        """Show the source of the reference solution, of the exercise checked last without `id`."""
        exercise = self._asked_about(id, "solution")
        self.progress.record_help(self.number, exercise.id, solution=True)
        show(*solution_box(exercise))

    def _asked_about(self, id: str | None, help: str) -> Exercise:
        """The exercise with this id, else the one checked last; help for it without an id is about this one too."""
        if id is None and self._checked_last is None:
            names = ", ".join(exercise.short for exercise in self.exercises.values())
            raise CourseError(f'no exercise has been checked yet: write lab.{help}("name") with one of {names}')
        exercise = self.exercise(id or self._checked_last)
        self._checked_last = exercise.id
        return exercise

    def verdict(self, text: str, ok: Any) -> None:
        """Show whether a property holds that is true of every right solution; for results, which may differ, `claim`.

        Args:
            text: the property as a statement, in the lesson's language, with the number that decided.
            ok: whether it holds; NaN is no.

        Raises:
            CheckFailed: it does not hold and the session is strict, so a solution edition fails with it.
        """
        title = t("verdict.holds" if ok else "verdict.fails", text=text)
        show_box("pass" if ok else "fail", title, *([] if ok else [t("verdict.advice")]))
        if self.strict and not ok:
            raise CheckFailed(title)

    def exercise(self, id: str) -> Exercise:
        """The exercise with this id; else a CourseError that lists those of the lesson."""
        return self.exercises[known_id(self.number, id, self.exercises, "exercise")]

    # ---- questions ----------------------------------------------------------------------------------------------

    def quiz(self, id: str | None = None, choice: str | None = None) -> None:
        """Show a question (all of the lesson without `id`); `choice="B"` answers it without widgets."""
        known = self.files.questions
        ids = list(known) if id is None else [known_id(self.number, id, known, "question")]
        for full in ids:

            def answered(option: quizzes.Option, full: str = full) -> None:
                self.progress.record_quiz(self.number, full, option.correct)

            quizzes.show_question(full, known[full], answered, interactive=self.interactive, choice=choice)

    def predict(self, id: str, answer: Any = None) -> None:
        """Ask for a prediction before a run; `answer` ("A", a number, a text) keeps one without widgets."""
        full = known_id(self.number, id, self.files.predictions, "prediction")
        short = full.split(".", 1)[1]
        prompt = self.files.predictions[full]
        example = "0.5" if prompt.get("number") else '"A"' if prompt.get("options") else '"..."'

        def keep(prediction: Any) -> None:
            self.progress.record_prediction(self.number, full, prediction)

        quizzes.show_prompt(
            prompt, f'lab.predict("{short}", {example})', keep, interactive=self.interactive, answer=answer
        )

    def reveal(self, id: str, value: Any) -> None:
        """Compare the learner's prediction, if there is one, with the result: option id, number or text."""
        full = known_id(self.number, id, self.files.predictions, "prediction")
        prediction = self.progress.entry(self.number, "predictions", full).get("prediction")
        kind, paragraphs = quizzes.reveal_texts(self.files.predictions[full], prediction, value)
        show_box(kind, t("predict.reveal_title"), *paragraphs)

    # ---- claims -------------------------------------------------------------------------------------------------

    @cached_property
    def claims(self) -> dict[str, claims.Claim]:
        """The claims this lesson declared before the run."""
        return claims.declared(self.number, self.project)

    def claim(
        self,
        id: str,
        measured: Any = None,
        value: Any = None,
        interval: Sequence[Any] | None = None,
        seeds: Iterable[int] = (),
        reason: str = "",
    ) -> claims.Record:
        """Record what was measured for a declared claim, show the verdict and write it to the ledger.

        measured: what it is, in words (text or {en, ja}); value: a number, or None and a `reason`; interval: (lo, hi).
        """
        claim = self.claims[known_id(self.number, id, self.claims, "claim")]
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        measurement = {"measured": measured, "value": value, "interval": interval, "seeds": seeds, "reason": reason}
        record = claims.make_record(claim, tier=self.tier, lang=self.lang, at=at, **measurement)
        self.records.append(record)
        show(*ledger.record_box(claim, record, evidence(claim)))
        try:
            claims.save(record, self.results)
        except OSError as error:
            if not self._told_unsaved:  # once: the next claim meets the same folder
                self._told_unsaved = True
                show_box("warn", t("claim.not_saved", error=error.strerror or type(error).__name__))
        return record

    @cached_property
    def recorded(self) -> Any:
        """The lesson's recorded study (`labkit.studies.Recorded`): values(metric, arm) -> [seeds, prompts]."""
        from labkit.studies import Recorded, read_record

        return Recorded(read_record(self.number))

    def article_map(self) -> None:
        """Show what the Japanese article says, what the paper says and what was measured on this tier."""
        saved = claims.load_records(self.results)
        html_text, text = ledger.article_table(self.files, self.claims, [*saved, *self.records], self.tier)
        title = t("article.title")
        show(f"<b>{title}</b>{html_text}", f"{title}\n\n{text}")

    def summary(self) -> None:
        """Show the learner's state in this lesson."""
        rows = [row for row in overview(self.progress, self.project) if row["lesson"] == self.number]
        show(*report(rows, self.progress.path))

    def __repr__(self) -> str:
        return f"<Lab {self.number} {self.name}: tier {self.tier}, lang {self.lang}, seed {self.seed}>"


def real_lines(
    tier: str, *, model: str = "sd15", reward: str = "pickscore", rounds: int = 1, pools: int = 0, runs: int = 0
) -> list[str]:
    """What `Lab.real` says before it loads anything: who is who on this tier, and the forecast of tier gpu, or that of
    this tier if its own model was chosen."""
    from labkit import real
    from labkit.models.sizing import TooSmall

    said = {"model": real.NAMES.get(model, model), "reward": real.REWARDS.get(reward, reward)}
    plan, own = real.plan_of(tier, model), model in real.SMALL_NAMES
    plan = plan if own else real.PLANS["gpu"]
    lines = [t("real.flow" if own else "real.gpu" if tier == "gpu" else "real.small", tier=tier, **said)]
    try:
        found = real.forecast(model=model, tier=tier, rounds=rounds, pools=pools, runs=runs)
    except TooSmall as error:
        if tier == "gpu":
            raise
        return [*lines, translated(str(error))]
    lines.append(t("real.draw", gpu=found.gpu, images=found.images, steps=plan.steps,
                   batch=found.draw.batch_size))  # fmt: skip
    if found.train is not None:
        lines.append(t("real.train", steps=found.train_steps, pairs=plan.pairs,
                       batch=found.train.batch_size))  # fmt: skip
    cost = {"gigabytes": found.gigabytes, "free": found.free_gb, "minutes": found.minutes}
    lines.append(t("real.core", seconds=60 * found.minutes) if own else t("real.cost", **cost))
    return lines


def start(
    lesson: int | str,
    tier: str = "cpu",
    lang: str | None = None,
    seed: int = 0,
    strict: bool = False,
    interactive: bool = True,
    *,
    project: Project | None = None,
    home: Path | str | None = None,
    results: Path | str | None = None,
) -> Lab:
    """Open a lesson and show its title, tier and device.

    tier: smoke, cpu or gpu; lang: en or ja; strict: failed checks raise (batch runs); interactive: draw widgets.
    project, home, results: other places for lessons, progress file and claim records. Unknown values give one-line
    ValueErrors that list the known ones.
    """
    global _current
    speak_to_learners(errors=interactive and not strict)
    set_language(get_language() if lang is None else lang)  # before the first error that can occur
    check_injected()
    watch_cells()
    session = Lab(
        lesson,
        tier=tier,
        lang=get_language(),
        seed=seed,
        strict=strict,
        interactive=interactive,
        project=project,
        home=home,
        results=results,
    )
    device = session.device  # tier gpu stops here where there is none
    _current = session
    set_interactive(session.interactive)
    if session.lang == "ja":
        from labkit.figures.style import add_japanese_font  # brings matplotlib, which nothing else here needs

        add_japanese_font()
    planned = session.files.lesson.minutes.get(tier)
    minutes = t("session.minutes", minutes=f"{planned:g}") if planned else ""
    line = t("session.line", tier=tier, device=str(device), seed=seed, minutes=minutes)
    show_box("info", t("session.title", number=session.number, title=pick(session.files.lesson.title)), line)
    return session


def current() -> Lab:
    """The lesson that was started last; a CourseError tells how to start one."""
    if _current is None:
        raise CourseError('no lesson is open: run the setup cell at the top of the notebook, lab = start("01", ...)')
    return _current
