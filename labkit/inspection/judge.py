"""Scores from a learned judge: a plain protocol, and answers kept in a file so that everything runs again offline.

A judge is anything with a `name` that turns items into numbers (higher is better): a CLIP score, a reward model on a
GPU, a vision-language model behind an HTTP endpoint. `StoredJudge` asks it only for what the file does not hold;
without a judge it replays the file. The name must change with the weights, the question, the settings: it is the key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from labkit.errors import LabkitError
from labkit.files import read_text
from labkit.inspection.lot import Item


class Judge(Protocol):
    """What every judge offers."""

    name: str

    def __call__(self, items: Sequence[Item]) -> Sequence[float]:
        """One finite number per item, higher is better."""


class JudgeError(LabkitError, ValueError):
    """Answers are missing, damaged, or not numbers."""


class StoredJudge:
    """A judge whose answers are kept, one JSON line each: {"judge": ..., "sha256": ..., "score": ...}.

    Args:
        path: the JSONL file; made when the first answer comes.
        judge: whom to ask for what is missing; None: nobody, a missing answer is an error.
        name: whose answers to replay; needed without a judge if the file holds more than one.
    """

    def __init__(self, path: Path | str, judge: Judge | None = None, *, name: str = "") -> None:
        self.path, self.judge = Path(path), judge
        lines = self._read()
        names = sorted({line["judge"] for line in lines})
        if judge is None and not name:
            if len(names) != 1:
                raise JudgeError(f"{self.path.name} holds answers of {names or 'nobody'}: say whose with name=...")
            name = names[0]
        self.name = judge.name if judge is not None else name
        self.scores = {line["sha256"]: float(line["score"]) for line in lines if line["judge"] == self.name}

    def __call__(self, items: Sequence[Item]) -> list[float]:
        """Scores in the order of the items; new ones are appended to the file at once.

        Raises:
            JudgeError: an item without an answer and nobody to ask, or answers that are no finite numbers.
        """
        missing = list({item.sha256: item for item in items if item.sha256 not in self.scores}.values())
        if missing and self.judge is None:
            raise JudgeError(
                f"{self.path.name} has no answer of {self.name!r} for {len(missing)} of {len(items)} pictures, "
                f"the first is {missing[0].name}: run once with the judge itself"
            )
        if missing:
            self._keep(missing, list(self.judge(missing)))
        return [self.scores[item.sha256] for item in items]

    def _keep(self, items: Sequence[Item], scores: Sequence[float]) -> None:
        if len(scores) != len(items) or not all(math.isfinite(score) for score in scores):
            raise JudgeError(
                f"{self.name!r} answered {len(scores)} numbers for {len(items)} pictures, all must be finite"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            for item, score in zip(items, map(float, scores), strict=True):
                file.write(json.dumps({"judge": self.name, "sha256": item.sha256, "score": score}) + "\n")
                self.scores[item.sha256] = score

    def _read(self) -> list[dict]:
        if not self.path.exists():
            return []
        lines = []
        for number, text in enumerate(read_text(self.path).split("\n"), start=1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
                if not math.isfinite(float(line["score"])):
                    raise ValueError
                lines.append({"judge": str(line["judge"]), "sha256": str(line["sha256"]), "score": line["score"]})
            except (ValueError, KeyError, TypeError):
                raise JudgeError(
                    f"{self.path.name}, line {number} is no answer (judge, sha256, score): delete that line"
                ) from None
        return lines
