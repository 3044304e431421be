"""Who writes the difference sentences: a template, a local language model, or an OpenAI-compatible endpoint.

All are called as writer(pairs, values) and return `Written`. The template knows the truth and is the default; it also
stands in wherever a language model's answer is rejected. A language model sees two captions, never the images, so it
can only repeat what captions mention, and its mistakes are systematic: every answer is checked against the attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch

from labkit.models.clip_inputs import ClipInputs
from labkit.pairwise.filters import judge
from labkit.pairwise.frames import Frame, phrase
from labkit.pairwise.pairs import Pair, Values
from labkit.pairwise.records import AnswerCache, DifferenceRecord, WriteReport, Written, content_hash, template_record
from labkit.pairwise.wording import FORMS, ORDERS, Wording, pick, sentence, swap_markers

TEMPLATE_VERSION = "template-1"
PROMPT_VERSION = "prompt-1"
SYSTEM = (
    "You compare two pictures that you know from their descriptions. Answer with one JSON object and nothing else: "
    '{"sentence": "..."}. The sentence has two clauses, "the first ..." and "the second ...", and names one visible '
    "difference in the words of the descriptions. Never guess what the descriptions do not say."
)


def question(first: str, second: str) -> list[dict[str, str]]:
    """The chat messages that ask for one difference between two described pictures."""
    asked = f"First picture: {first}\nSecond picture: {second}\nHow does the first differ from the second?"
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]


def without_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same messages for models whose template has no system role: its text leads the first question."""
    system = [m["content"] for m in messages if m["role"] == "system"]
    rest = [m for m in messages if m["role"] != "system"]
    return [{"role": "user", "content": "\n\n".join([*system, rest[0]["content"]])}, *rest[1:]]


def token_budget(inputs: ClipInputs) -> Callable[[str], str | None]:
    """A check for `judge`: "over the token budget" if a text or its mirror does not fit the context."""

    def problem(text: str) -> str | None:
        try:
            inputs([text, swap_markers(text)])
        except ValueError:
            return "over the token budget"
        return None

    return problem


CAPTION = "caption"  # the key of `values` under which a caption stands when nothing else is known


def _told(pair: Pair, values: Sequence[Values]) -> tuple[str, str] | None:
    told = tuple(values[i].get(CAPTION, "") for i in (pair.first, pair.second))
    return told if all(told) else None


def caption_sentences(first: str, second: str) -> tuple[str, str]:
    """ "the first shows A, the second shows B" in both clause orders, from two captions."""
    said = [
        f"the {which} shows {' '.join(text.split()).rstrip('.')}"
        for which, text in (("first", first), ("second", second))
    ]
    return ", ".join(said), ", ".join(said[::-1])


class TemplateWriter:
    """Sentences from the attributes, both clause orders; the paraphrase follows from a hash of the pair.

    forms: how many paraphrases of the plain sentence. frames: frames of the bank to draw from instead.
    """

    def __init__(self, wording: Wording, *, forms: int = FORMS, frames: Sequence[str | Frame] = ()):
        self.wording, self.forms, self.frames = wording, forms, tuple(frames)

    def write(self, pair: Pair, told: tuple[str, str] | None = None) -> DifferenceRecord:
        """The record of one pair; told: captions of its images, for a pair whose attributes are not known."""
        if not pair.statement.attributes:
            if told is None:
                raise ValueError("a pair without attributes needs the captions of its images: pass told=")
            said, back = (caption_sentences(*sides) for sides in (told, told[::-1]))
            return template_record(pair, said, back, TEMPLATE_VERSION)
        chosen = pick(f"{TEMPLATE_VERSION}:{pair.id}", len(self.frames) or self.forms)
        say = partial(phrase, frame=self.frames[chosen]) if self.frames else partial(sentence, form=chosen)
        said, back = (
            tuple(say(s, self.wording, order=order) for order in ORDERS)
            for s in (pair.statement, pair.statement.mirrored())
        )
        return template_record(pair, said, back, TEMPLATE_VERSION)

    def __call__(self, pairs: Sequence[Pair], values: Sequence[Values]) -> Written:
        records = [self.write(pair, _told(pair, values)) for pair in pairs]
        return Written(records, WriteReport(asked=len(pairs), accepted=len(pairs)))


class LanguageModelWriter:
    """What the two language-model writers share: questions, cache, judgement, the template as a stand-in."""

    backend = ""

    def __init__(
        self,
        model: str,
        wording: Wording,
        describe: Callable[[Values], str],
        *,
        cache: AnswerCache | None = None,
        seed: int = 0,
        inputs: ClipInputs | None = None,
    ):
        self.model, self.wording, self.describe, self.seed = model, wording, describe, seed
        self.cache = AnswerCache() if cache is None else cache
        self.template = TemplateWriter(wording)
        self.token_problem = token_budget(inputs) if inputs is not None else (lambda text: None)

    def ask(self, questions: list[tuple[str, list[dict[str, str]]]]) -> Iterable[tuple[str, str | None]]:
        """Yield (key, answer) for each (key, messages) as the answers come in, in any order; None: it failed."""
        raise NotImplementedError

    def __call__(self, pairs: Sequence[Pair], values: Sequence[Values]) -> Written:
        """Sentences for the pairs. Answers of the cache are used first and new ones are stored as they come; they are
        judged anew each time. Rejected answers are replaced by the template's (backend "template")."""
        messages = [question(self.describe(values[p.first]), self.describe(values[p.second])) for p in pairs]
        keys = [content_hash([self.backend, self.model, PROMPT_VERSION, self.seed, m]) for m in messages]
        missing = {k: m for k, m in zip(keys, messages, strict=True) if self.cache.get(k) is None}
        report = WriteReport(asked=len(pairs), from_cache=sum(k not in missing for k in keys))
        if missing:
            for key, answer in self.ask(list(missing.items())):
                if answer is not None:
                    self.cache.put(key, answer)
        records = []
        for pair, key in zip(pairs, keys, strict=True):
            answer = self.cache.get(key)
            verdict = "no answer" if answer is None or not answer.strip() else None
            verdict = verdict or judge(
                answer, pair, dict(values[pair.first]), dict(values[pair.second]), self.wording, self.token_problem
            )
            if isinstance(verdict, str):
                report.rejected[verdict] += 1
                report.examples.append((verdict, answer or ""))
                records.append(self.template.write(pair, _told(pair, values)))
                continue
            text, said = verdict
            report.accepted += 1
            records.append(
                DifferenceRecord(
                    pair.first,
                    pair.second,
                    said,
                    (text,),
                    (swap_markers(text),),
                    self.backend,
                    self.model,
                    PROMPT_VERSION,
                    self.seed,
                )
            )
        return Written(records, report)


class TransformersWriter(LanguageModelWriter):
    """A chat model of transformers: greedy, left-padded batches, the tokenizer's own chat template.

    Raises:
        ValueError: the tokenizer has no chat template.
    """

    backend = "transformers"

    def __init__(
        self,
        language_model,
        tokenizer,
        wording: Wording,
        describe: Callable[[Values], str],
        *,
        max_new_tokens: int = 60,
        batch: int = 16,
        **options,
    ):
        name = getattr(language_model.config, "name_or_path", "") or type(language_model).__name__
        super().__init__(name, wording, describe, **options)
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("the tokenizer has no chat template: choose an instruction-tuned model")
        self.language_model, self.tokenizer = language_model.eval(), tokenizer
        self.max_new_tokens, self.batch = max_new_tokens, batch

    @torch.no_grad()
    def ask(self, questions: list[tuple[str, list[dict[str, str]]]]) -> Iterable[tuple[str, str]]:
        device = next(self.language_model.parameters()).device
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        for start in range(0, len(questions), self.batch):
            part = questions[start : start + self.batch]
            rows = [self._rows(messages) for _, messages in part]
            length = max(len(row) for row in rows)
            ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows])
            mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
            out = self.language_model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                do_sample=False,
                max_new_tokens=self.max_new_tokens,
                pad_token_id=pad,
            )
            for (key, _), row in zip(part, out[:, length:], strict=True):
                yield key, self.tokenizer.decode(row, skip_special_tokens=True)

    def _rows(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a question; a template without a system role (Gemma) gets the system's text as the user's."""
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
        try:
            return self.tokenizer.apply_chat_template(messages, **options)["input_ids"]
        except Exception:  # noqa: BLE001 - templates raise whatever they like; if it is not the role, it raises again
            return self.tokenizer.apply_chat_template(without_system(messages), **options)["input_ids"]
