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
from concurrent.futures import ThreadPoolExecutor, as_completed

from labkit.errors import LabkitError
from labkit.pairwise.pairs import Values
from labkit.pairwise.wording import Wording
from labkit.pairwise.writers import LanguageModelWriter

MAX_ANSWER_BYTES = 1_000_000
_RETRY = (408, 425, 429, 500, 502, 503, 504)


class EndpointError(LabkitError):
    """The endpoint does not answer, or answers what no such endpoint should."""


class HttpWriter(LanguageModelWriter):
    """POST {base_url}/chat/completions with temperature 0 and a seed, a few requests at a time.

    base_url    with its /v1, such as http://localhost:11434/v1
    api_key     sent as a bearer token if given (Ollama ignores it)
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
        **options,
    ):
        super().__init__(model, wording, describe, **options)
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url is {base_url!r}: expected http://host:port/v1")
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.api_key, self.timeout, self.retries = api_key, timeout, retries
        self.pause, self.longest_pause = pause, longest_pause
        self.concurrency, self.max_tokens = concurrency, max_tokens

    def ask(self, questions: list[tuple[str, list[dict[str, str]]]]) -> Iterable[tuple[str, str]]:
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            jobs = {pool.submit(self._answer, messages): key for key, messages in questions}
            failure: EndpointError | None = None
            for job in as_completed(jobs):
                try:
                    yield jobs[job], job.result()
                except EndpointError as error:
                    if failure is None:
                        failure = error
                        for other in jobs:
                            other.cancel()
                except Exception:
                    if not job.cancelled():
                        raise
            if failure is not None:
                raise EndpointError(
                    f"{failure}; {len(self.cache)} answers are cached: call again to go on from there"
                ) from failure
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _answer(self, messages: list[dict[str, str]]) -> str:
        """The text of the first choice, "" if it was cut off. EndpointError after the last retry."""
        body = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "response_format": {"type": "json_object"},
        }
        reason = ""
        for attempt in range(self.retries + 1):
            pause = self.pause * 2**attempt
            try:
                return self._content(self._post(body))
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}"
                if error.code not in _RETRY:
                    raise EndpointError(
                        f"{self.url} refuses the request ({reason}): check URL, model and key"
                    ) from None
                pause = max(pause, _seconds(error.headers.get("Retry-After")))
            except (OSError, http.client.HTTPException) as error:  # refused, timed out, half an answer
                reason = f"{type(error).__name__}: {error}"[:120]
            except ValueError as error:
                reason = f"not a chat completion: {error}"[:120]
            if attempt < self.retries:
                time.sleep(min(pause, self.longest_pause))
        raise EndpointError(f"{self.url} gave no answer in {self.retries + 1} tries ({reason})")

    def _post(self, body: dict) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            return response.read(MAX_ANSWER_BYTES)

    @staticmethod
    def _content(raw: bytes) -> str:
        """The answer of a chat completion. One that ran into max_tokens is "": half a sentence is none.

        Raises:
            ValueError: not a chat completion.
        """
        try:
            choice = json.loads(raw)["choices"][0]
            content = choice["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise ValueError(raw[:60].decode("utf-8", "replace")) from None
        if not isinstance(content, str):
            raise ValueError("the content is no text")
        return "" if choice.get("finish_reason") == "length" else content


def _seconds(value: str | None) -> float:
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        return 0.0
