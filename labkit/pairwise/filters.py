"""What an answer of a language model must look like before anything is trained on it.

The paper drops junk with a blacklist (markup, links, non-ASCII, repetitions, texts under 60 characters). Here the
attributes of both images are known, so the content is checked as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from labkit.pairwise.pairs import Pair
from labkit.pairwise.wording import Statement, Wording, read

MIN_LENGTH, MAX_LENGTH = 20, 240
_JUNK = re.compile(r"https?:|www\.|[<>{}*#`|\\]|\bcaption|\bas an ai\b|\bnote\b:?|\bQ:|\bA:|\n", re.I)


_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)|\A.*?</think(?:ing)?>", re.S | re.I)


def form_problem(text: str) -> str | None:
    """Why a sentence is junk whatever it says, or None: "empty", "non-ASCII", "too short", "too long", "boilerplate",
    "repetition", "one-sided"."""
    if not any(c.isalpha() for c in text):
        return "empty"
    if not text.isascii():
        return "non-ASCII"
    if len(text) < MIN_LENGTH:
        return "too short"
    if len(text) > MAX_LENGTH:
        return "too long"
    if _JUNK.search(text):
        return "boilerplate"
    words = re.findall(r"\w+", text.lower())
    if any(words[k : k + n] == words[k + n : k + 2 * n] for n in (1, 2, 3) for k in range(len(words) - 2 * n + 1)):
        return "repetition"
    if "first" not in words or "second" not in words:
        return "one-sided"
    return None


def content_problem(text: str, pair_first: dict, pair_second: dict, wording: Wording) -> str | None:
    """Why a sentence is not true of the pair, or None: "says nothing", "same value", "swapped", "contradicts"."""
    first, second = read(text, wording)
    named = [a for a in first if a in second]
    if not named or set(first) ^ set(second):
        return "says nothing"
    wrong = [a for a in named if (first[a], second[a]) != (pair_first[a], pair_second[a])]
    if wrong:
        swapped = all((first[a], second[a]) == (pair_second[a], pair_first[a]) for a in named)
        return "swapped" if swapped else "contradicts"
    return "same value" if first == second else None


def wordless_problem(text: str) -> str | None:
    """Why a sentence about two captioned images says no difference: "same value" (both clauses are alike), or None."""
    clauses = re.split(r"\b(?:the )?(?:first|second)\b", text.lower())[1:]
    said = {" ".join(re.findall(r"\w+", clause)) for clause in clauses}
    return "same value" if len(said - {""}) < 2 else None


def parse_answer(answer: str) -> str | None:
    """The sentence of an answer: the "sentence" of the last JSON object that has one (in a code fence or not, after
    <think>...</think> or not); None if there is none."""
    answer = _THOUGHT.sub("", answer)
    for match in reversed(list(re.finditer(r"\{[^{}]*\}", answer))):
        try:
            sentence = json.loads(match[0]).get("sentence")
        except (json.JSONDecodeError, AttributeError):
            continue
        if isinstance(sentence, str):
            return " ".join(sentence.split())
    return None


def judge(
    answer: str,
    pair: Pair,
    first: dict,
    second: dict,
    wording: Wording,
    token_problem: Callable[[str], str | None] = lambda text: None,
) -> tuple[str, Statement] | str:
    """(sentence, what it says) of an acceptable answer, or the reason why it is rejected.

    first, second: all known attributes of the two images. token_problem: says why a text does not fit the context.
    """
    text = parse_answer(answer)
    if text is None:
        return "not the JSON asked for"
    if not pair.statement.attributes:  # from captions alone: nothing is known that could be held against it
        problem = form_problem(text) or wordless_problem(text) or token_problem(text)
        return problem or (text, pair.statement)
    problem = form_problem(text) or content_problem(text, first, second, wording) or token_problem(text)
    if problem:
        return problem
    return text, Statement(*read(text, wording))
