"""Who writes difference sentences: filters, cache, a random language model, and a fake OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from tiny_models import seeded

from labkit.models.sd_layout import clip_tokenizer
from labkit.pairwise import (
    AnswerCache,
    EndpointError,
    HttpWriter,
    Pair,
    Statement,
    TransformersWriter,
    natural_pairs,
    portrait_wording,
)
from labkit.pairwise.filters import judge
from labkit.pairwise.wording import read
from labkit.pairwise.writers import question
from labkit.portraits import caption, sample_specs

WORDING = portrait_wording()
SPECS = sample_specs(20, seed=5)
VALUES = [spec.to_dict() for spec in SPECS]
PAIRS = natural_pairs(VALUES, 6, WORDING, torch.Generator().manual_seed(0))


def describe(values) -> str:
    return next(caption(s).text for s in SPECS if s.to_dict() == values)


# ---- filters ------------------------------------------------------------------------------------------------------

FIRST, SECOND = {"mood": "sad", "hair_color": "red"}, {"mood": "happy", "hair_color": "black"}
PAIR = Pair(0, 1, Statement({"mood": "sad"}, {"mood": "happy"}))


def verdict(text: str):
    return judge(json.dumps({"sentence": text}), PAIR, FIRST, SECOND, WORDING)


def test_a_true_sentence_is_accepted_with_what_it_says():
    text, said = verdict("The first has red hair,  the second has black hair.")
    assert text == "The first has red hair, the second has black hair."
    assert said == Statement({"hair_color": "red"}, {"hair_color": "black"})
    fenced = '```json\n{"sentence": "the first has a sad face, the second has a happy face"}\n```'
    assert judge(fenced, PAIR, FIRST, SECOND, WORDING)[1] == PAIR.statement


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("the first has black hair, the second has red hair", "swapped"),
        ("the first has blue hair, the second has black hair", "contradicts"),
        ("the first has red hair and blue hair, the second has black hair", "contradicts"),
        ("the first is brighter than the second", "says nothing"),
        ("the first has red hair, the second has a happy face", "says nothing"),
        ("12345 67890 12345 67890 !?", "empty"),
        ("the first has red hair, the second has blåck hair", "non-ASCII"),
        ("first red, second", "too short"),
        ("the first has red hair, the second has black hair" * 6, "too long"),
        ("see https://x.y: the first has red hair, the second has black hair", "boilerplate"),
        ("the caption of the first has red hair, the second has black hair", "boilerplate"),
        ("the first red hair red hair red hair, the second black hair black hair", "repetition"),
        ("first is a face is a face is a face, second black hair", "repetition"),
        ("this one has red hair, that one has black hair", "one-sided"),
    ],
)
def test_every_kind_of_bad_sentence_has_its_reason(text, reason):
    assert verdict(text) == reason


def test_answers_that_are_no_json_and_sentences_over_the_token_budget_are_rejected():
    for answer in ("", "sure!", '{"sentence": 3}', "[1]", '{"sentence": "the first', '{"text": "x"}'):
        assert judge(answer, PAIR, FIRST, SECOND, WORDING) == "not the JSON asked for"
    good = json.dumps({"sentence": "the first has red hair, the second has black hair"})
    assert judge(good, PAIR, FIRST, SECOND, WORDING, lambda text: "over the token budget") == "over the token budget"


def test_equal_values_on_both_sides_are_no_difference():
    first, second = FIRST, SECOND | {"hair_color": "red"}
    answer = json.dumps({"sentence": "the first has red hair, the second has red hair"})
    assert judge(answer, PAIR, first, second, WORDING) == "same value"


# ---- cache --------------------------------------------------------------------------------------------------------


def test_the_cache_survives_a_torn_last_line(tmp_path):
    path = tmp_path / "answers" / "cache.jsonl"
    cache = AnswerCache(path)
    cache.put("a", "one")
    cache.put("b", "two\nlines")
    path.write_text(path.read_text("utf-8") + '{"key": "c", "ans', "utf-8")
    again = AnswerCache(path)
    assert (len(again), again.get("a"), again.get("b"), again.get("c")) == (2, "one", "two\nlines", None)
    again.put("c", "three")
    assert AnswerCache(path).get("c") == "three"


# ---- a fake endpoint ----------------------------------------------------------------------------------------------

Reply = Callable[[BaseHTTPRequestHandler, dict], None]


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(body)), "Content-Type": "application/json"} | headers).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def completion(content: str, finish_reason: str = "stop") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    return json.dumps({"id": "1", "object": "chat.completion", "model": "fake", "choices": [choice]}).encode()


def honest(handler, request) -> None:
    """Copies hair colour or background out of the two captions, as a good model would."""
    lines = request["messages"][1]["content"].splitlines()
    first, second = (line.split(": ", 1)[1] for line in lines[:2])
    index = {describe(v): v for v in VALUES}
    a, b = index[first], index[second]
    name = next(n for n in ("background", "clothes", "skin", "mood", "style") if a[n] != b[n])
    said = f"the first has {WORDING[name][a[name]]}, the second has {WORDING[name][b[name]]}"
    send(handler, 200, completion(json.dumps({"sentence": said})))


def liar(handler, request) -> None:
    text = "the first has a happy face and pink clothes, the second has sunglasses"
    both = "the first has a flat style, the second has a flat style"
    send(handler, 200, completion(json.dumps({"sentence": both if "pink" in str(request) else text})))


def garbage(handler, request) -> None:
    send(handler, 200, completion("Sure! Here is the difference you asked for:"))


def no_protocol(handler, request) -> None:
    send(handler, 200, b"<html>welcome</html>")


def busy(handler, request) -> None:
    send(handler, 429, b'{"error": "slow down"}', Retry_After="0.05")


def forbidden(handler, request) -> None:
    send(handler, 401, b'{"error": "key"}')


def silent(handler, request) -> None:
    time.sleep(0.6)


def half(handler, request) -> None:
    """Promises more bytes than it sends, then hangs up."""
    body = completion('{"sentence": "the first has')
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body) + 500))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def cut_off(handler, request) -> None:
    send(handler, 200, completion('{"sentence": "the first has', "length"))


class Endpoint:
    """An OpenAI-compatible server on the loopback: `script` holds one behaviour per request, the last one repeats."""

    def __init__(self) -> None:
        self.script: list[Reply] = [honest]
        self.requests: list[dict] = []
        self.authorization: list[str | None] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path != "/v1/chat/completions":
                    return send(self, 404, b"{}")
                with lock:
                    reply = outer.script[min(len(outer.requests), len(outer.script) - 1)]
                    outer.requests.append(request)
                    outer.authorization.append(self.headers["Authorization"])
                reply(self, request)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


def writer(endpoint: Endpoint, **options) -> HttpWriter:
    settings = {"timeout": 5.0, "pause": 0.01, "concurrency": 1} | options
    return HttpWriter(endpoint.url, "fake", WORDING, describe, **settings)


def test_a_good_endpoint_speaks_the_protocol_and_is_believed(endpoint):
    written = writer(endpoint, api_key="secret", seed=7, concurrency=3)(PAIRS, VALUES)
    assert written.report.accepted == written.report.asked == len(PAIRS)
    assert written.report.hallucination_rate == written.report.rejection_rate == 0
    assert set(endpoint.authorization) == {"Bearer secret"}
    request = endpoint.requests[0]
    assert (request["model"], request["temperature"], request["seed"]) == ("fake", 0, 7)
    assert request["response_format"] == {"type": "json_object"}
    asked = [question(describe(VALUES[p.first]), describe(VALUES[p.second])) for p in PAIRS]
    assert all(r["messages"] in asked for r in endpoint.requests)
    for record, pair in zip(written.records, PAIRS, strict=True):
        assert (record.first, record.second, record.backend) == (pair.first, pair.second, "http")
        assert read(record.sentences[0], WORDING) == (dict(record.statement.first), dict(record.statement.second))
        assert read(record.mirrored[0], WORDING) == (dict(record.statement.second), dict(record.statement.first))


def test_equal_runs_ask_nothing_twice_and_give_equal_records(endpoint, tmp_path):
    path = tmp_path / "cache.jsonl"
    one = writer(endpoint, cache=AnswerCache(path))(PAIRS, VALUES)
    asked = len(endpoint.requests)
    two = writer(endpoint, cache=AnswerCache(path))(PAIRS, VALUES)
    assert len(endpoint.requests) == asked
    assert two.report.from_cache == len(PAIRS)
    assert two.records == one.records
    writer(endpoint, cache=AnswerCache(path), seed=1)(PAIRS, VALUES)
    assert len(endpoint.requests) == 2 * asked  # another seed is another question


def test_lies_are_rejected_counted_and_replaced_by_the_template(endpoint):
    endpoint.script = [liar]
    written = writer(endpoint)(PAIRS, VALUES)
    assert written.report.accepted == 0
    assert written.report.rejection_rate == 1
    assert sum(written.report.rejected.values()) == len(PAIRS) == len(written.report.examples)
    assert [r.backend for r in written.records] == ["template"] * len(PAIRS)
    assert [r.statement for r in written.records] == [p.statement for p in PAIRS]


def test_a_contradiction_is_a_hallucination(endpoint):
    def wrong(handler, request):
        send(handler, 200, completion('{"sentence": "the first has outlined style, the second has hand-drawn style"}'))

    endpoint.script = [wrong, honest]
    written = writer(endpoint)(PAIRS, VALUES)
    assert written.report.rejected == {"contradicts": 1}
    assert written.report.hallucination_rate == pytest.approx(1 / len(PAIRS))


@pytest.mark.parametrize(("reply", "reason"), [(garbage, "not the JSON"), (cut_off, "no answer")])
def test_garbage_and_answers_cut_at_the_limit_are_rejected_without_asking_again(endpoint, reply, reason):
    endpoint.script = [reply, honest]
    written = writer(endpoint)(PAIRS, VALUES)
    assert written.report.accepted == len(PAIRS) - 1
    assert [k for k in written.report.rejected if k.startswith(reason)]
    assert len(endpoint.requests) == len(PAIRS)


@pytest.mark.parametrize("reply", [busy, half, no_protocol, silent])
def test_a_busy_broken_or_silent_endpoint_is_asked_again(endpoint, reply):
    endpoint.script = [reply, honest]
    written = writer(endpoint, timeout=0.3 if reply is silent else 5.0)(PAIRS[:2], VALUES)
    assert written.report.accepted == 2
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize(
    ("reply", "reason"),
    [(busy, "HTTP 429"), (half, "no answer in 2 tries"), (silent, "timed out"), (no_protocol, "not a chat completion")],
)
def test_an_endpoint_that_stays_broken_is_named_in_one_line(endpoint, reply, reason):
    endpoint.script = [reply]
    with pytest.raises(EndpointError, match=reason) as caught:
        writer(endpoint, retries=1, timeout=0.3)(PAIRS[:1], VALUES)
    assert "\n" not in str(caught.value)
    assert "0 answers are cached" in str(caught.value)
    assert len(endpoint.requests) == 2


# ---- servers as they are --------------------------------------------------------------------------------------------


def message(**fields) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant"} | fields, "finish_reason": "stop"}]}).encode()


@pytest.mark.parametrize(
    "fields",
    [{"content": None, "reasoning": "hm"}, {"content": None}, {"content": "", "reasoning_content": "hm"},
     {"reasoning": "hm"}, {"content": " "}, {"content": "<think>the first has"}],
)  # fmt: skip
def test_a_model_that_only_thinks_gives_one_rejected_answer_and_the_run_goes_on(endpoint, fields):
    endpoint.script = [lambda handler, request: send(handler, 200, message(**fields)), honest]
    written = writer(endpoint)(PAIRS, VALUES)
    assert written.report.accepted == len(PAIRS) - 1 and len(endpoint.requests) == len(PAIRS)
    assert set(written.report.rejected) <= {"no answer", "not the JSON asked for"}


def test_thoughts_before_the_answer_and_content_in_parts_are_read(endpoint):
    said = json.dumps({"sentence": "the first has red hair, the second has black hair"})
    for answer in (f"<think>maybe {{'sentence': 1}}</think>\n{said}", f"I think so.</think>{said}", f"{{}} so {said}"):
        assert judge(answer, PAIR, FIRST, SECOND, WORDING)[0] == "the first has red hair, the second has black hair"
    parts = [{"type": "text", "text": said}]
    assert HttpWriter._content(message(content=parts)) == said


def test_a_server_that_refuses_json_object_or_the_system_role_is_asked_in_its_own_way(endpoint):
    def plain(handler, request):
        if "response_format" in request:
            text = "'response_format.type' must be 'json_schema' or 'text'"  # LM Studio
            return send(handler, 400, json.dumps({"error": text}).encode())
        if request["messages"][0]["role"] == "system":
            return send(handler, 500, b'{"error": {"message": "System role not supported"}}')  # templates of Gemma
        assert "Answer with one JSON object" in request["messages"][0]["content"]
        return send(handler, 200, completion('{"sentence": "no"}'))

    endpoint.script = [plain]
    written = writer(endpoint, retries=0)(PAIRS[:3], VALUES)
    assert written.report.rejected == {"too short": 3}  # answered
    assert len(endpoint.requests) == 2 + 3  # learnt once


def test_questions_asked_at_the_same_time_all_learn_what_the_server_refuses(endpoint):
    together = threading.Barrier(4, timeout=5)

    def plain(handler, request):
        if "response_format" not in request:
            return honest(handler, request)
        together.wait()  # all four are refused before the first is answered
        send(handler, 400, b'{"error": "response_format must be text"}')

    endpoint.script = [plain]
    written = writer(endpoint, concurrency=4, retries=0)(PAIRS, VALUES)
    assert written.report.accepted == len(PAIRS)


def test_one_question_that_always_fails_does_not_stop_the_run_and_a_dead_server_does(endpoint):
    first = question(describe(VALUES[PAIRS[0].first]), describe(VALUES[PAIRS[0].second]))

    def crash(handler, request):
        if request["messages"] == first:
            return send(handler, 500, b'{"error": "CUDA error: device-side assert"}')
        return honest(handler, request)

    endpoint.script = [crash]
    one = writer(endpoint, retries=1)
    written = one(PAIRS, VALUES)
    assert written.report.rejected == {"no answer": 1} and len(one.cache) == len(PAIRS) - 1
    endpoint.script = [honest]
    assert one(PAIRS, VALUES).report.accepted == len(PAIRS)  # it is asked again, not remembered as failed
    endpoint.script = [lambda handler, request: send(handler, 500, b'{"error": "CUDA error: out of memory"}')]
    with pytest.raises(EndpointError, match="HTTP 500: CUDA error: out of memory.*0 answers are cached"):
        writer(endpoint, retries=0, seed=3)(PAIRS, VALUES)


def test_the_time_limit_holds_for_all_questions_together(endpoint):
    def slow(handler, request):
        time.sleep(0.06)
        honest(handler, request)

    endpoint.script = [slow]
    with pytest.raises(EndpointError, match=r"time limit of 0.1 s is over; \d answers are cached"):
        writer(endpoint, time_limit=0.1)(PAIRS, VALUES)


def test_a_refused_request_is_not_repeated(endpoint):
    endpoint.script = [forbidden]
    with pytest.raises(EndpointError, match="HTTP 401.*check URL, model and key"):
        writer(endpoint)(PAIRS[:1], VALUES)
    assert len(endpoint.requests) == 1


def test_a_run_that_breaks_down_resumes_from_the_cache(endpoint, tmp_path):
    path = tmp_path / "cache.jsonl"
    endpoint.script = [honest, honest, forbidden]
    with pytest.raises(EndpointError, match="2 answers are cached: call again"):
        writer(endpoint, cache=AnswerCache(path))(PAIRS, VALUES)
    endpoint.script = [honest]
    written = writer(endpoint, cache=AnswerCache(path))(PAIRS, VALUES)
    assert written.report.from_cache == 2
    assert written.report.accepted == len(PAIRS)


def test_nobody_listening_is_an_error_of_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nobody = HttpWriter(f"http://127.0.0.1:{port}/v1", "x", WORDING, describe, retries=0)
    with pytest.raises(EndpointError, match="no answer in 1 tries"):
        nobody(PAIRS[:1], VALUES)
    with pytest.raises(ValueError, match="expected http://"):
        HttpWriter("localhost:8000", "x", WORDING, describe)


# ---- a language model in this process -----------------------------------------------------------------------------

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def random_model(context: int = 768):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=514, n_positions=context, n_embd=16, n_layer=1, n_head=2, bos_token_id=512, eos_token_id=513
    )
    tokenizer = clip_tokenizer(514, context)
    tokenizer.chat_template = TEMPLATE
    return seeded(lambda: GPT2LMHeadModel(config), 0), tokenizer


def test_a_model_that_babbles_is_never_believed():
    model, tokenizer = random_model()
    written = TransformersWriter(model, tokenizer, WORDING, describe, max_new_tokens=8)(PAIRS[:3], VALUES)
    assert written.report.rejected == {"not the JSON asked for": 3}
    assert [r.backend for r in written.records] == ["template"] * 3


def test_answers_do_not_depend_on_the_batch_because_padding_is_on_the_left():
    model, tokenizer = random_model()
    answers = []
    for batch in (1, 3):
        cache = AnswerCache()
        TransformersWriter(model, tokenizer, WORDING, describe, max_new_tokens=8, batch=batch, cache=cache)(
            PAIRS[:3], VALUES
        )
        answers.append(cache._answers)
    assert answers[0] == answers[1]
    assert len(answers[0]) == 3


def test_a_model_without_a_chat_template_is_refused():
    model, tokenizer = random_model()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        TransformersWriter(model, tokenizer, WORDING, describe)
