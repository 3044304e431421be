"""`labkit fetch` against a hub on this machine: pinned revisions, digests, resumes, substitutes, one-line errors."""

import hashlib
import json
import shutil
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from labkit import cli
from labkit.models import fetch as F
from labkit.models.fetch import FetchError, fetch, models_of
from labkit.models.published import CLIP, PICKSCORE, PUBLISHED, SD15, SDXL, Published, Source

MAIN, OTHER = Source("team/model", "a" * 40), Source("team/other", "b" * 40)
MODEL = Published("model", (MAIN, OTHER), ("config.json", "unet/*.safetensors"), 3_000_000)
WEIGHTS = bytes(range(256)) * 10_000  # 2.56 MB: more than one read


class Hub:
    """Repositories as {name: {file: content}}; `refused`: repository -> HTTP status; `cut`: bytes after which the
    next answers end, one each; `asked`: (path, Range) of every request; `tokens`: what came with it."""

    def __init__(self):
        self.files = {
            "team/model": {"config.json": b'{"a": 1}', "unet/w.safetensors": WEIGHTS, "unet/w.bin": b"pickle"},
            "team/other": {"config.json": b'{"b": 2}', "unet/w.safetensors": WEIGHTS[::-1]},
        }
        self.revisions = {"team/model": "a" * 40, "team/other": "b" * 40}
        self.refused, self.cut, self.asked, self.tokens, self.ranges = {}, [], [], [], True
        self.stated, self.redirect, self.busy = {}, None, 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                hub.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request):
        path = request.path.partition("?")[0]
        self.asked.append((path, request.headers.get("Range")))
        self.tokens.append((path, request.headers.get("Authorization")))
        if self.busy:
            self.busy -= 1
            return request.send_error(503)
        parts = path.strip("/").split("/")
        api, blob = parts[0] == "api", parts[0] == "blob"
        repository = "/".join(parts[2:4] if api else parts[1:3] if blob else parts[:2])
        if repository in self.refused:
            return request.send_error(self.refused[repository])
        files = self.files[repository]
        if api:
            known = [self.described(repository, name, content) for name, content in files.items()]
            return self.send(request, json.dumps({"sha": self.revisions[repository], "siblings": known}).encode())
        name = "/".join(parts[3:] if blob else parts[4:])
        if self.redirect and not blob:
            request.send_response(302)
            request.send_header("Location", f"{self.redirect}/blob/{repository}/{name}")
            request.send_header("Content-Length", "0")
            return request.end_headers()
        content, status = files[name], 200
        asked = request.headers.get("Range")
        if asked and self.ranges:
            content, status = content[int(asked.removeprefix("bytes=").rstrip("-")) :], 206
        return self.send(request, content, status, cut=self.cut.pop(0) if self.cut and name.endswith("rs") else None)

    def described(self, repository, name, content):
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry = {"rfilename": name, "size": len(content), "blobId": git}
        if not name.endswith(".json"):
            digest = self.stated.get((repository, name)) or hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": digest, "size": len(content)}
        return entry

    def send(self, request, content, status=200, cut=None):
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[:cut])
        request.wfile.flush()
        request.close_connection = True

    def of_weights(self):
        return [asked for path, asked in self.asked if path.endswith("w.safetensors")]


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(F, "WAIT", 0.0)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub = Hub()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def test_what_is_needed_arrives_checked_and_is_not_asked_for_again(hub, tmp_path):
    told = []
    taken = fetch([MODEL], tmp_path, hub=hub.address, report=lambda what, numbers: told.append((what, numbers)))
    assert taken == {"model": MAIN}
    assert (tmp_path / "model/unet/w.safetensors").read_bytes() == WEIGHTS
    assert json.loads((tmp_path / "model/config.json").read_text()) == {"a": 1}
    found = sorted(p.relative_to(tmp_path / "model").as_posix() for p in (tmp_path / "model").rglob("*") if p.is_file())
    assert found == ["config.json", "labkit-source.json", "unet/w.safetensors"]  # no pickle, no .part
    record = json.loads((tmp_path / "model/labkit-source.json").read_text())
    assert (record["repository"], record["revision"]) == ("team/model", "a" * 40)
    assert record["files"]["unet/w.safetensors"]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert [what for what, _ in told] == ["model", "file", "file", "done"]
    assert told[0][1]["gigabytes"] == pytest.approx((len(WEIGHTS) + 8) / 1e9)
    assert all(f"/resolve/{'a' * 40}/" in path for path, _ in hub.asked[1:])
    hub.asked.clear()
    fetch([MODEL], tmp_path, hub=hub.address)
    assert [path for path, _ in hub.asked] == [f"/api/models/team/model/revision/{'a' * 40}"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub, tmp_path, ranges):
    hub.cut, hub.ranges = [1_000_000, 300_000], ranges
    fetch([MODEL], tmp_path, hub=hub.address)
    assert (tmp_path / "model/unet/w.safetensors").read_bytes() == WEIGHTS
    starts = [0 if asked is None else int(asked[6:-1]) for asked in hub.of_weights()]
    assert starts == ([0, 1_000_000, 1_300_000] if ranges else [0, 1_000_000, 300_000])


def test_another_run_goes_on_from_what_an_interrupted_one_left(hub, tmp_path):
    part = tmp_path / "model/unet/w.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS[:777_777])
    fetch([MODEL], tmp_path, hub=hub.address)
    assert hub.of_weights() == ["bytes=777777-"] and not part.exists()
    assert (tmp_path / "model/unet/w.safetensors").read_bytes() == WEIGHTS


def test_a_connection_that_never_brings_anything_ends_in_one_line_and_keeps_what_came(hub, tmp_path):
    hub.cut = [500_000] + [0] * F.TRIES
    with pytest.raises(FetchError, match="run the command again") as error:
        fetch([MODEL], tmp_path, hub=hub.address)
    assert "\n" not in str(error.value)
    assert (tmp_path / "model/unet/w.safetensors.part").stat().st_size == 500_000
    hub.cut = []
    fetch([MODEL], tmp_path, hub=hub.address)
    assert (tmp_path / "model/unet/w.safetensors").read_bytes() == WEIGHTS


def test_damage_on_the_way_is_noticed_and_mended(hub, tmp_path):
    part = tmp_path / "model/unet/w.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    fetch([MODEL], tmp_path, hub=hub.address)
    assert hub.of_weights() == ["bytes=1000-", None]
    assert (tmp_path / "model/unet/w.safetensors").read_bytes() == WEIGHTS


def test_files_with_another_digest_are_refused_and_leave_nothing(hub, tmp_path):
    hub.stated["team/model", "unet/w.safetensors"] = "0" * 64
    with pytest.raises(FetchError, match="not what the hub says it is"):
        fetch([MODEL], tmp_path, hub=hub.address)
    assert not list((tmp_path / "model/unet").iterdir())
    assert not (tmp_path / "model/labkit-source.json").exists()


def test_a_small_file_is_checked_by_its_hash_in_git(hub, tmp_path, monkeypatch):
    described = hub.described
    monkeypatch.setattr(hub, "described", lambda *one: described(*one) | {"blobId": "0" * 40})
    with pytest.raises(FetchError, match="config.json of team/model is not what"):
        fetch([MODEL], tmp_path, hub=hub.address)


def test_a_file_that_changed_on_the_disk_is_fetched_again(hub, tmp_path):
    fetch([MODEL], tmp_path, hub=hub.address)
    (tmp_path / "model/unet/w.safetensors").write_bytes(WEIGHTS[:-1])
    hub.asked.clear()
    fetch([MODEL], tmp_path, hub=hub.address)
    assert hub.of_weights() == [None] and (tmp_path / "model/unet/w.safetensors").read_bytes() == WEIGHTS


def test_a_copy_made_by_hand_is_recognised(hub, tmp_path):
    (tmp_path / "model/unet").mkdir(parents=True)
    (tmp_path / "model/unet/w.safetensors").write_bytes(WEIGHTS)
    fetch([MODEL], tmp_path, hub=hub.address)
    assert hub.of_weights() == []


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_gated_or_vanished_model_has_a_named_substitute(hub, tmp_path, status):
    hub.refused["team/model"] = status
    told = []
    taken = fetch([MODEL], tmp_path, hub=hub.address, report=lambda what, numbers: told.append((what, numbers)))
    assert taken == {"model": OTHER}
    assert (tmp_path / "model/unet/w.safetensors").read_bytes() == WEIGHTS[::-1]
    expected = {"folder": "model", "repository": "team/model", "instead": "team/other", "status": str(status)}
    assert told[0] == ("substitute", expected)
    hub.refused["team/other"] = 404
    with pytest.raises(FetchError, match=r"tried team/model, team/other.*accept its licence.*HF_TOKEN"):
        fetch([MODEL], tmp_path / "again", hub=hub.address)


def test_the_model_itself_replaces_its_substitute_once_it_can_be_had(hub, tmp_path):
    hub.refused["team/model"] = 403
    fetch([MODEL], tmp_path, hub=hub.address)
    hub.refused.clear()
    assert fetch([MODEL], tmp_path, hub=hub.address) == {"model": MAIN}
    assert (tmp_path / "model/unet/w.safetensors").read_bytes() == WEIGHTS
    assert json.loads((tmp_path / "model/config.json").read_text()) == {"a": 1}


def test_another_revision_or_no_hub_at_all_is_refused(hub, tmp_path):
    hub.revisions["team/model"] = "c" * 40
    with pytest.raises(FetchError, match=f"revision {'c' * 40}, expected {'a' * 40}"):
        fetch([MODEL], tmp_path, hub=hub.address)
    hub.files["team/other"] = {"config.json": b"{}"}
    only = Published("model", (OTHER,), MODEL.patterns, 1)
    with pytest.raises(FetchError, match="none of the safetensors"):
        fetch([only], tmp_path, hub=hub.address)
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(FetchError, match="cannot be reached"):
        fetch([MODEL], tmp_path, hub=hub.address)


def test_names_that_leave_the_folder_are_refused(hub, tmp_path):
    hub.files["team/model"]["unet/../../../w.safetensors"] = b"x"
    with pytest.raises(FetchError, match="outside its folder"):
        fetch([MODEL], tmp_path / "models", hub=hub.address)
    assert not (tmp_path / "w.safetensors").exists()


def test_a_busy_hub_is_asked_again(hub, tmp_path):
    hub.busy = F.TRIES - 1
    fetch([MODEL], tmp_path, hub=hub.address)
    hub.busy = F.TRIES
    with pytest.raises(FetchError, match="HTTP 503"):
        fetch([MODEL], tmp_path / "again", hub=hub.address)


def test_a_disk_that_is_too_small_is_noticed_before_the_first_byte(hub, tmp_path, monkeypatch):
    free = namedtuple("usage", "total used free")(0, 0, F.SPARE + len(WEIGHTS))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free)
    with pytest.raises(FetchError, match="1.1 GB free, 1.1 GB are needed"):
        fetch([MODEL], tmp_path / "new" / "folder", hub=hub.address)
    assert hub.of_weights() == []
    part = tmp_path / "model/unet/w.safetensors.part"  # half of it is there: the rest fits
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS[:1_000_000])
    fetch([MODEL], tmp_path, hub=hub.address)


def test_the_token_goes_to_the_hub_and_not_where_it_redirects_to(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_word")
    storage = Hub()
    hub.redirect = storage.address
    hub.cut, storage.cut = [], [1_000_000]
    fetch([MODEL], tmp_path, hub=hub.address)
    storage.server.shutdown()
    assert {token for _, token in hub.tokens} == {"Bearer hf_word"} and {token for _, token in storage.tokens} == {None}
    assert storage.of_weights() == [None, "bytes=1000000-"]  # a resume passes through the redirect
    assert (tmp_path / "model/unet/w.safetensors").read_bytes() == WEIGHTS


# ---- what is pinned, and the command -------------------------------------------------------------------------------


def test_every_source_is_pinned_and_lies_where_labkit_looks_for_it():
    from labkit.dpo.gpu_scorers import PICKSCORE as SCORER
    from labkit.models.load import CLIP_GPU
    from labkit.models.load import SD15 as NAME

    for model in PUBLISHED:
        for source in model.sources:
            assert len(source.revision) == 40 and set(source.revision) <= set("0123456789abcdef")
        assert not any(pattern.endswith((".bin", ".ckpt", "*")) for pattern in model.patterns)
    assert SD15.sources[0].repository == NAME and SD15.folder == NAME.split("/")[-1]
    assert CLIP.sources[0].repository == CLIP_GPU and CLIP.folder == CLIP_GPU.split("/")[-1]
    assert PICKSCORE.sources[0].repository == SCORER and PICKSCORE.folder == SCORER.split("/")[-1]
    assert models_of("gpu") == [SD15, CLIP, PICKSCORE] and models_of("cpu") == []
    assert models_of("gpu", [SDXL.folder]) == [SD15, CLIP, PICKSCORE, SDXL]
    with pytest.raises(FetchError, match="no model 'sd9': there are stable-diffusion-v1-5"):
        models_of("gpu", ["sd9"])


@pytest.mark.parametrize("model", [SD15, SDXL, CLIP, PICKSCORE], ids=lambda model: model.folder)
def test_the_patterns_take_what_the_loaders_read_and_no_more(model, tmp_path, hub, monkeypatch):
    """A published layout in small: written by diffusers and transformers, offered by the hub, fetched, loaded."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from labkit.models import load_clip, load_pipeline
    from labkit.models.load import quiet
    from labkit.models.sd_layout import build_sd15, build_sdxl, clip_tokenizer

    made = tmp_path / "made"
    with quiet():
        if model in (CLIP, PICKSCORE):
            sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
            text = sizes | {"vocab_size": 600, "bos_token_id": 598, "eos_token_id": 599}
            config = CLIPConfig(text_config=text, vision_config=sizes | {"image_size": 32}, projection_dim=32)
            CLIPModel(config).save_pretrained(made)
            clip_tokenizer(600).save_pretrained(made)
        else:
            pipe = (build_sd15 if model is SD15 else build_sdxl)()
            pipe.save_pretrained(made, variant="fp16")
            pipe.save_pretrained(made)  # the same in full precision lies beside it and is not needed
    content = {p.relative_to(made).as_posix(): p.read_bytes() for p in made.rglob("*") if p.is_file()}
    extra = {"model.fp16-non-ema.safetensors": b"x", "safety_checker/model.fp16.safetensors": b"x", "README.md": b"x"}
    hub.files["team/model"] = content | extra
    one = Published(model.folder, (MAIN,), model.patterns, 1)
    fetch([one], tmp_path / "models", hub=hub.address)
    got = {p.relative_to(tmp_path / "models" / model.folder).as_posix() for p in (tmp_path / "models").rglob("*.*")}
    assert not got & set(extra)
    monkeypatch.setenv("LABKIT_MODELS", str(tmp_path / "models"))
    if model in (CLIP, PICKSCORE):
        clip, inputs = load_clip("gpu", "cpu", folder=tmp_path / "models" / model.folder)
        assert clip.get_text_features(**inputs(["a"])) is not None
        return
    assert not any(name.endswith(".safetensors") and ".fp16" not in name for name in got)
    pipe = load_pipeline("gpu", "cpu", torch.float32, folder=tmp_path / "models" / model.folder)
    assert sum(p.numel() for p in pipe.unet.parameters()) > 1e6


def test_the_command_fetches_says_what_it_would_take_and_fails_in_one_line(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("LABKIT_MODELS", raising=False)
    monkeypatch.setattr(F, "PUBLISHED", (Published("model", MODEL.sources, MODEL.patterns, 3_000_000_000),))
    assert cli.main(["fetch", "--tier", "gpu"]) == 1
    assert capsys.readouterr().err == "labkit fetch: no folder: set LABKIT_MODELS, or give --folder\n"
    assert cli.main(["fetch", "--folder", str(tmp_path), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "team/model: about 3.0 GB, to" in out and "GB are free there" in out and not list(tmp_path.iterdir())
    assert "64 images of 20 steps:" in out and "at a time, about" in out
    hub.refused["team/model"] = 403
    assert cli.main(["fetch", "--folder", str(tmp_path), "--hub", hub.address]) == 0
    out = capsys.readouterr().out
    assert "team/model is gated or gone (HTTP 403); model becomes team/other" in out
    assert "2 files, checked" in out and f"now set LABKIT_MODELS={tmp_path}" in out
    hub.refused["team/other"] = 404
    assert cli.main(["fetch", "--folder", str(tmp_path / "x"), "--hub", hub.address, "--lang", "ja"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "代わりに team/other を入れます" in captured.out
    assert cli.main(["fetch", "--tier", "cpu"]) == 0 and "nothing to download" in capsys.readouterr().out
