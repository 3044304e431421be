"""Difference sentences from an OpenAI-compatible endpoint: vLLM (port 8000), Ollama (port 11434), llama.cpp, ...

Answers are stored in the cache as they come. If the endpoint goes down the run stops with an error that says how many
answers are safe; calling again asks only for the rest.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed

from labkit.errors import LabkitError
from labkit.pairwise.pairs import Values
from labkit.pairwise.wording import Wording
from labkit.pairwise.writers import LanguageModelWriter, without_system

MAX_ANSWER_BYTES = 1_000_000
_NO_CONTENT = {"reasoning", "reasoning_content", "refusal", "tool_calls"}  # keys beside which content may be missing
_RETRY = (408, 425, 429, 500, 502, 503, 504)


class EndpointError(LabkitError):
    """The endpoint does not answer, or answers what no such endpoint should."""


class _QuestionFailed(EndpointError):
    """One question got no answer; others may."""


class HttpWriter(LanguageModelWriter):
    """POST {base_url}/chat/completions with temperature 0 and a seed, a few requests at a time.

    base_url    with its /v1, such as http://localhost:11434/v1
    api_key     sent as a bearer token if given (Ollama ignores it)
    time_limit  seconds for all questions of one call together (None: no limit); then an error says what is cached
    patience    how many questions in a row may fail, retries included, before the run stops; a single question that
                always fails is given to the template instead
    retries     how often a timeout, a lost connection or a busy server (429, 5xx) is tried again, with growing pauses;
                a Retry-After of the server is obeyed up to `longest_pause` seconds
    """

    backend = "http"

    def __init__(
        self,
        base_url: str,
        model: str,
        wording: Wording,
        describe: Callable[[Values], str],
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 2,
        pause: float = 0.5,
        longest_pause: float = 30.0,
        concurrency: int = 4,
        max_tokens: int = 120,
        time_limit: float | None = None,
        patience: int = 3,
        **options,
    ):
        super().__init__(model, wording, describe, **options)
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url is {base_url!r}: expected http://host:port/v1")
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.api_key, self.timeout, self.retries = api_key, timeout, retries
        self.pause, self.longest_pause = pause, longest_pause
        self.concurrency, self.max_tokens = concurrency, max_tokens
        self.time_limit, self.patience = time_limit, patience
        self.json_object, self.system_role = True, True  # until the server refuses them

    def ask(self, questions: list[tuple[str, list[dict[str, str]]]]) -> Iterable[tuple[str, str | None]]:
        """Yield (key, answer); None where one question alone got none."""
        pool = ThreadPoolExecutor(self.concurrency)
        end = None if self.time_limit is None else time.monotonic() + self.time_limit
        try:
            jobs = {pool.submit(self._answer, messages, end): key for key, messages in questions}
            stop: EndpointError | None = None
            last: EndpointError | None = None
            failed: list[str] = []
            answered = in_a_row = 0
            for job in as_completed(jobs):
                try:
                    answer = job.result()
                    answered, in_a_row = answered + 1, 0
                    yield jobs[job], answer
                except _QuestionFailed as error:
                    failed.append(jobs[job])
                    last, in_a_row = error, in_a_row + 1
                    if stop is None and in_a_row >= self.patience:
                        stop = error
                except EndpointError as error:
                    stop = stop or error
                except CancelledError:
                    continue
                if stop is not None:
                    for other in jobs:
                        other.cancel()
            if stop is None and not answered:
                stop = last  # nobody is there
            if stop is not None:
                raise EndpointError(
                    f"{stop}; {len(self.cache)} answers are cached: call again to go on from there"
                ) from stop
            yield from ((key, None) for key in failed)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _answer(self, messages: list[dict[str, str]], end: float | None) -> str:
        """The text of the first choice, "" if it was cut off or is thought alone.

        Raises:
            _QuestionFailed: after the last retry. EndpointError: the server refuses everybody, or time is up.
        """
        reason, attempt = "", 0
        while attempt <= self.retries:
            left = self.timeout if end is None else min(self.timeout, end - time.monotonic())
            if left <= 0:
                raise EndpointError(f"{self.url}: the time limit of {self.time_limit:g} s is over")
            pause = self.pause * 2**attempt
            body = self._body(messages)
            try:
                return self._content(self._post(body, left))
            except urllib.error.HTTPError as error:
                said = _server_text(error)
                reason = f"HTTP {error.code}{': ' + said if said else ''}"
                if self._understood(error.code, said, body):
                    continue  # asked again in words that the server knows
                if error.code in (401, 403, 404):
                    raise EndpointError(
                        f"{self.url} refuses the request ({reason}): check URL, model and key"
                    ) from None
                if error.code not in _RETRY:
                    raise _QuestionFailed(f"{self.url} refuses the question ({reason})") from None
                pause = max(pause, _seconds(error.headers.get("Retry-After")))
            except (OSError, http.client.HTTPException) as error:  # refused, timed out, half an answer
                reason = f"{type(error).__name__}: {error}"[:120]
            except ValueError as error:
                reason = f"not a chat completion: {error}"[:120]
            attempt += 1
            if attempt <= self.retries:
                pause = min(pause, self.longest_pause)
                time.sleep(pause if end is None else max(0.0, min(pause, end - time.monotonic())))
        raise _QuestionFailed(f"{self.url} gave no answer in {self.retries + 1} tries ({reason})")

    def _body(self, messages: list[dict[str, str]]) -> dict:
        """The request, without what this server has refused before."""
        body = {
            "model": self.model,
            "messages": messages if self.system_role else without_system(messages),
            "temperature": 0,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
        }
        return body | ({"response_format": {"type": "json_object"}} if self.json_object else {})

    def _understood(self, code: int, said: str, body: dict) -> bool:
        """Whether the server's complaint is one of two that can be met: json_object (LM Studio), the system role. It
        must be about this body: another question, asked at the same time, may have taught us meanwhile."""
        said = said.lower()
        asked_json = "response_format" in body and code in (400, 422)
        if asked_json and ("response_format" in said or "json_object" in said):
            self.json_object = False
            return True
        had_role = any(m["role"] == "system" for m in body["messages"]) and code in (400, 422, 500)
        if had_role and "system" in said and "role" in said:
            self.system_role = False
            return True
        return False

    def _post(self, body: dict, timeout: float) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.read(MAX_ANSWER_BYTES)

    @staticmethod
    def _content(raw: bytes) -> str:
        """The answer of a chat completion. One that ran into max_tokens is "": half a sentence is none; so is one
        whose content is empty or null because the model only thought (content beside `reasoning`) or refused.

        Raises:
            ValueError: not a chat completion.
        """
        try:
            choice = json.loads(raw)["choices"][0]
            message = choice["message"]
            content = message.get("content", None if message.keys() & _NO_CONTENT else 0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise ValueError(raw[:60].decode("utf-8", "replace")) from None
        if isinstance(content, list):  # parts, as some servers send them
            content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
        if content is None:
            return ""
        if not isinstance(content, str):
            raise ValueError("the content is no text")
        return "" if choice.get("finish_reason") == "length" else content


def _seconds(value: str | None) -> float:
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        return 0.0


def _server_text(error: urllib.error.HTTPError) -> str:
    """What the server itself says about an error, in one line: {"error": {"message"}}, {"error"}, {"detail"}, text."""
    try:
        raw = error.read(2000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        told = json.loads(raw)
        for key in ("error", "detail", "message"):
            if isinstance(told, dict) and key in told:
                told = told[key]
        raw = told if isinstance(told, str) else json.dumps(told)
    except ValueError:
        pass
    return " ".join(raw.split())[:200]
