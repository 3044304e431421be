"""Difference records: one type for every writer, and a cache so that training never waits for a live model."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from labkit.pairwise.pairs import Pair
from labkit.pairwise.wording import Statement


@dataclass(frozen=True)
class DifferenceRecord:
    """Sentences about one pair of images.

    sentences   true of (first, second), one or more clause orders; the first as written
    mirrored    true of (second, first), in as many orders
    backend     who wrote it: "template", "transformers" or "http"; model and prompt_version say it exactly
    """

    first: int
    second: int
    statement: Statement
    sentences: tuple[str, ...]
    mirrored: tuple[str, ...]
    backend: str
    model: str
    prompt_version: str
    seed: int


def content_hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


@dataclass
class WriteReport:
    """How a writer did. hallucination_rate: share of the answers whose words contradict what is known of the pair."""

    asked: int = 0
    accepted: int = 0
    from_cache: int = 0
    rejected: Counter = field(default_factory=Counter)
    examples: list[tuple[str, str]] = field(default_factory=list)

    @property
    def hallucination_rate(self) -> float:
        wrong = self.rejected["contradicts"] + self.rejected["swapped"]
        return wrong / self.asked if self.asked else 0.0

    @property
    def rejection_rate(self) -> float:
        return sum(self.rejected.values()) / self.asked if self.asked else 0.0


@dataclass
class Written:
    """Records in the order of the pairs, and the report."""

    records: list[DifferenceRecord]
    report: WriteReport


def shuffled(records: Sequence[DifferenceRecord], generator: torch.Generator) -> list[DifferenceRecord]:
    """The control: the same sentences, each given to a pair drawn at random. Train on them with true_targets=False:
    targets from the attributes would give every sentence back to the pairs that it is true of."""
    order = torch.randperm(len(records), generator=generator).tolist()
    return [
        DifferenceRecord(
            r.first, r.second, o.statement, o.sentences, o.mirrored, o.backend, o.model, o.prompt_version, o.seed
        )
        for r, o in zip(records, (records[k] for k in order), strict=True)
    ]


class AnswerCache:
    """Answers by content hash of the question, one JSON line each, appended as they come: a stopped run resumes.

    path=None keeps them in memory. A half-written last line is ignored.
    """

    def __init__(self, path: str | Path | None = None):
        self.path = Path(path) if path is not None else None
        self._answers: dict[str, str] = {}
        self._torn = False
        if self.path is not None and self.path.exists():
            text = self.path.read_text("utf-8")
            self._torn = bool(text) and not text.endswith("\n")
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                    self._answers[entry["key"]] = entry["answer"]
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> str | None:
        return self._answers.get(key)

    def put(self, key: str, answer: str) -> None:
        self._answers[key] = answer
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"key": key, "answer": answer}, ensure_ascii=True) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if self._torn else "") + line)
        self._torn = False


def template_record(
    pair: Pair, sentences: tuple[str, ...], mirrored: tuple[str, ...], version: str
) -> DifferenceRecord:
    """A record of the template writer."""
    return DifferenceRecord(
        pair.first, pair.second, pair.statement, sentences, mirrored, "template", "template", version, 0
    )
