"""LoRA adapters: a fresh one changes nothing, the reference is exact, and no state or flag is ever left changed.

Numbers in brackets are the property tests of dpo.md, section 4.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from labkit.diffusion import (
    AdapterError,
    active_adapters,
    adapter_names,
    adapter_parameters,
    adapter_state,
    add_lora,
    base_fingerprint,
    base_parameters,
    base_sums,
    check_gradients,
    disabled_adapters,
    load_adapter_state,
    lora,
    lora_targets,
    merge_lora,
    remove_lora,
    use_adapters,
)
from tests.tiny_models import tiny_text_encoder, tiny_unet


class UNetCase:
    model = staticmethod(tiny_unet)
    targets = 32  # four transformer blocks (one down, one mid, two up) with 2 x 4 projections

    @staticmethod
    def call(model):
        g = torch.Generator().manual_seed(0)
        x, text = torch.randn((2, 4, 8, 8), generator=g), torch.randn((2, 5, 32), generator=g)
        return model(x, 401, encoder_hidden_states=text).sample


class TextCase:
    model = staticmethod(tiny_text_encoder)
    targets = 8  # two layers of four projections

    @staticmethod
    def call(model):
        return model(torch.tensor([[512, 5, 6, 513], [512, 7, 513, 513]])).last_hidden_state


@pytest.fixture(params=[UNetCase, TextCase], ids=["unet", "text_encoder"])
def case(request):
    return request.param


def stir(model, name: str, seed: int = 1, std: float = 0.1) -> None:
    """Leave the symmetric start: B ~ N(0, std)."""
    generator = torch.Generator().manual_seed(seed)
    for path, parameter in adapter_parameters(model, name).items():
        if ".lora_B." in path:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * std)


def flags(model) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in model.named_parameters()}


def snapshot(model):
    """Everything a context manager might leave changed."""
    from labkit.diffusion.adapters import adapter_layers

    layers = adapter_layers(model).items()
    return flags(model), {k: (list(v.active_adapters), v.disable_adapters, dict(v.scaling)) for k, v in layers}


def test_a_fresh_adapter_changes_nothing_bitwise(case):
    """[1]"""
    model = case.model()
    before = case.call(model)
    parameters = add_lora(model, "policy", seed=0, rank=4)
    assert torch.equal(case.call(model), before)
    assert len(parameters) == 2 * case.targets == 2 * len(lora_targets(model))
    assert active_adapters(model) == ("policy",)


def test_the_disabled_adapter_is_the_model_before_lora_bitwise_also_after_training(case):
    """[2]"""
    model = case.model()
    base = copy.deepcopy(model)
    add_lora(model, "policy", seed=0, rank=4)
    stir(model, "policy")
    assert not torch.equal(case.call(model), case.call(base))
    with disabled_adapters(model):
        assert torch.equal(case.call(model), case.call(base))
        assert active_adapters(model) == ()
    assert not torch.equal(case.call(model), case.call(base))


def test_disabling_keeps_a_frozen_adapter_frozen_and_the_active_set(case):
    """[22] Plain libraries: 0 -> all tensors of the frozen adapter trainable after one cycle."""
    model = case.model()
    add_lora(model, "frozen", seed=0, rank=4)
    add_lora(model, "policy", seed=1, rank=4)
    for parameter in adapter_parameters(model, "frozen").values():
        parameter.requires_grad_(False)
    before = snapshot(model)
    with disabled_adapters(model):
        assert flags(model) == before[0]
    assert snapshot(model) == before
    with use_adapters(model, {"frozen": 0.5}):
        assert flags(model) == before[0] and active_adapters(model) == ("frozen",)
    assert snapshot(model) == before
    # what the plain library does to the same model
    model.disable_adapters()
    model.enable_adapters()
    assert any(p.requires_grad for p in adapter_parameters(model, "frozen").values())


def test_state_comes_back_after_exceptions_and_from_nested_use(case):
    model = case.model()
    add_lora(model, "a", seed=0, rank=2)
    add_lora(model, "b", seed=1, rank=2)
    stir(model, "a")
    stir(model, "b", seed=2)
    before, output = snapshot(model), case.call(model)
    with pytest.raises(ZeroDivisionError), disabled_adapters(model):
        raise ZeroDivisionError
    assert snapshot(model) == before
    with disabled_adapters(model):
        base = case.call(model)
        with use_adapters(model, {"a": 1.0}):
            assert active_adapters(model) == ("a",)
            assert not torch.equal(case.call(model), base)
        assert torch.equal(case.call(model), base) and active_adapters(model) == ()
        with disabled_adapters(model):
            pass
        assert active_adapters(model) == ()
    assert snapshot(model) == before and torch.equal(case.call(model), output)


def test_several_models_are_disabled_together_and_models_without_adapters_are_fine():
    unet, text = tiny_unet(), tiny_text_encoder()
    add_lora(unet, "policy", seed=0)
    stir(unet, "policy")
    with disabled_adapters(unet, text):
        assert active_adapters(unet) == active_adapters(text) == ()
    assert active_adapters(unet) == ("policy",)


def test_scale_zero_is_the_base_bitwise_and_scale_multiplies_the_update(case):
    """[29]"""
    model = case.model()
    base = case.call(model)
    add_lora(model, "policy", seed=0, rank=4)
    stir(model, "policy", std=1e-3)  # small, so that the output is nearly linear in the update
    full = (case.call(model) - base).norm()
    with use_adapters(model, {"policy": 0.0}):
        assert torch.equal(case.call(model), base)
    with use_adapters(model, {"policy": 0.5}):
        half = (case.call(model) - base).norm()
    assert float((half / full).detach()) == pytest.approx(0.5, abs=0.02)
    with use_adapters(model, {}):
        assert torch.equal(case.call(model), base)


def test_where_restricts_an_adapter_to_some_layers():
    model = tiny_unet()
    add_lora(model, "policy", seed=0)
    stir(model, "policy")
    only_up = copy.deepcopy(model)
    for path, parameter in adapter_parameters(only_up, "policy").items():
        if not path.startswith("up_blocks") and ".lora_B." in path:
            parameter.data.zero_()
    with use_adapters(model, {"policy": 1.0}, where=lambda name: name.startswith("up_blocks")):
        restricted = UNetCase.call(model)
    torch.testing.assert_close(restricted, UNetCase.call(only_up), rtol=1e-6, atol=1e-6)
    assert not torch.equal(restricted, UNetCase.call(model))


def test_gradients_arrive_when_the_reference_runs_first_and_the_guard_catches_when_they_do_not(case):
    """[21]"""
    model = case.model()
    parameters = add_lora(model, "policy", seed=0, rank=4)
    stir(model, "policy")
    with torch.no_grad(), disabled_adapters(model):
        reference = case.call(model)
    (case.call(model) - reference).square().mean().backward()
    assert check_gradients(parameters) == len(parameters)
    assert all(p.grad is None for p in base_parameters(model).values())
    for parameter in parameters:
        parameter.grad = None
    with disabled_adapters(model):
        output = case.call(model)  # the mistake: the policy's forward pass inside the reference block
    if output.requires_grad:
        output.square().mean().backward()
    with pytest.raises(AdapterError, match=f"only 0 of {len(parameters)} trainable tensors have a gradient"):
        check_gradients(parameters)


def test_the_guard_also_catches_frozen_and_non_finite_parameters():
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, float("nan")])
    with pytest.raises(AdapterError, match="1 of 1 gradients are not finite"):
        check_gradients([weight])
    with pytest.raises(AdapterError, match="none of 1 tensors needs a gradient"):
        check_gradients({"w": weight.requires_grad_(False)})


def test_gradient_checkpointing_gives_identical_gradients():
    """[20]"""
    gradients = []
    for checkpointing in (False, True):
        model = tiny_unet()
        parameters = add_lora(model, "policy", seed=0)
        stir(model, "policy")
        if checkpointing:
            model.enable_gradient_checkpointing()
        with torch.no_grad(), disabled_adapters(model):
            reference = UNetCase.call(model)
        (UNetCase.call(model) - reference).square().mean().backward()
        gradients.append([p.grad for p in parameters])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_training_leaves_the_base_alone(case):
    """[23]"""
    model = case.model()
    before, sums = base_fingerprint(model), base_sums(model)
    parameters = add_lora(model, "policy", seed=0, rank=4)
    assert base_fingerprint(model) == before and torch.equal(base_sums(model), sums)
    stir(model, "policy")
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    case.call(model).square().mean().backward()
    optimizer.step()
    assert base_fingerprint(model) == before and torch.equal(base_sums(model), sums)
    weights = next(iter(base_parameters(model).values())).data.view(-1)
    weights[:2] = weights[:2].flip(0)
    assert base_fingerprint(model) != before and int((base_sums(model) != sums).sum()) == 1
    weights[:2] = weights[:2].flip(0)
    assert base_fingerprint(model) == before
    weights[0] += 1e-6
    assert base_fingerprint(model) != before and int((base_sums(model) != sums).sum()) == 1


def test_removing_restores_the_module_tree_and_leaves_other_adapters_as_they_were(case):
    model = case.model()
    tree, output = [name for name, _ in model.named_modules()], case.call(model)
    add_lora(model, "a", seed=0, rank=2)
    stir(model, "a")
    with_a, before = case.call(model), snapshot(model)
    add_lora(model, "b", seed=1, rank=2)
    stir(model, "b")
    assert adapter_names(model) == active_adapters(model) == ("a", "b")
    assert not torch.equal(case.call(model), with_a)
    remove_lora(model, "b")
    assert snapshot(model) == before and torch.equal(case.call(model), with_a)
    remove_lora(model, "a")
    assert [name for name, _ in model.named_modules()] == tree and torch.equal(case.call(model), output)
    add_lora(model, "a", seed=0, rank=2)  # the name is free again
    assert adapter_names(model) == ("a",)


def test_merging_keeps_the_output_and_the_next_stage_starts_from_it_bitwise(case):
    """[28]"""
    model = case.model()
    add_lora(model, "easy", seed=0, rank=4)
    stir(model, "easy")
    policy = case.call(model)
    merge_lora(model, "easy")
    assert adapter_names(model) == ()
    merged = case.call(model)
    torch.testing.assert_close(merged, policy, rtol=1e-4, atol=1e-5)
    add_lora(model, "normal", seed=1, rank=4)
    assert torch.equal(case.call(model), merged)
    stir(model, "normal")
    with disabled_adapters(model):
        assert torch.equal(case.call(model), merged)


def test_merging_takes_the_present_scale_and_other_adapters_survive():
    model = tiny_unet()
    add_lora(model, "a", seed=0, rank=4, alpha=2)
    add_lora(model, "b", seed=1, rank=4)
    stir(model, "a")
    stir(model, "b", seed=3)
    output = UNetCase.call(model)
    merge_lora(model, "a")
    assert adapter_names(model) == active_adapters(model) == ("b",)
    torch.testing.assert_close(UNetCase.call(model), output, rtol=1e-4, atol=1e-5)


def test_the_context_manager_leaves_nothing_behind(case):
    model = case.model().requires_grad_(True)
    tree, before = [name for name, _ in model.named_modules()], flags(model)
    with pytest.raises(ZeroDivisionError), lora(model, seed=0, rank=2) as parameters:
        assert all(p.requires_grad for p in parameters)
        assert not any(p.requires_grad for p in base_parameters(model).values())
        raise ZeroDivisionError
    assert [name for name, _ in model.named_modules()] == tree and flags(model) == before


def test_the_start_depends_on_the_seed_alone(case):
    states = []
    for seed, noise in ((5, 0), (5, 1), (6, 0)):
        torch.manual_seed(noise)
        state = torch.random.get_rng_state()
        model = case.model()
        add_lora(model, "policy", seed=seed, rank=4)
        assert torch.equal(torch.random.get_rng_state(), state)
        states.append(adapter_state(model, "policy"))
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert any(not torch.equal(states[0][k], states[2][k]) for k in states[0])
    a = torch.cat([v.flatten() for k, v in states[0].items() if ".lora_A." in k])
    assert float(a.std()) == pytest.approx(1 / 4, rel=0.1)  # N(0, 1 / rank^2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapters_are_float32_on_a_half_precision_base(dtype):
    """[26]"""
    model = tiny_unet().to(dtype)
    parameters = add_lora(model, "policy", seed=0)
    assert {p.dtype for p in parameters} == {torch.float32}
    assert {p.dtype for p in base_parameters(model).values()} == {dtype}
    if dtype == torch.bfloat16:  # float16 does not run on every CPU
        stir(model, "policy")
        x, text = torch.ones((1, 4, 8, 8), dtype=dtype), torch.ones((1, 5, 32), dtype=dtype)
        output = model(x, 401, encoder_hidden_states=text).sample
        assert output.dtype == dtype
        output.float().square().mean().backward()
        assert check_gradients(parameters) == len(parameters)


def test_states_round_trip_through_safetensors(case, tmp_path):
    from safetensors.torch import load_file, save_file

    model, other = case.model(), case.model()
    add_lora(model, "policy", seed=0, rank=4)
    stir(model, "policy")
    save_file(adapter_state(model, "policy"), str(tmp_path / "lora.safetensors"))
    add_lora(other, "policy", seed=9, rank=4)
    load_adapter_state(other, "policy", load_file(str(tmp_path / "lora.safetensors")))
    assert torch.equal(case.call(model), case.call(other))
    wider = case.model()
    add_lora(wider, "policy", seed=0, rank=8)
    with pytest.raises(AdapterError, match="do not fit adapter 'policy'"):
        load_adapter_state(wider, "policy", adapter_state(model, "policy"))


def test_targets_can_be_chosen():
    model = tiny_unet()
    every = lora_targets(model)
    up = lora_targets(model, where=lambda name: name.startswith("up_blocks"))
    assert 0 < len(up) < len(every) and set(up) < set(every)
    assert len(lora_targets(model, ("to_q",))) * 4 == len(every)
    add_lora(model, "up", seed=0, where=lambda name: name.startswith("up_blocks"))
    assert all(path.startswith("up_blocks") for path in adapter_parameters(model, "up"))
    assert lora_targets(model) == every  # wrapped layers are found under the same names


def test_every_layer_can_carry_an_adapter_and_merge_it():
    model, case = tiny_unet(), UNetCase
    layers = lora_targets(model, None)
    kinds = {type(model.get_submodule(name)) for name in layers}
    assert kinds == {torch.nn.Linear, torch.nn.Conv2d} and set(lora_targets(model)) < set(layers)
    assert not {"conv_in", "conv_out"} & set(layers)
    before = case.call(model)
    add_lora(model, "policy", seed=0, rank=2, suffixes=None)
    assert lora_targets(model, None) == layers
    assert torch.equal(case.call(model), before)  # B = 0
    stir(model, "policy")
    with_adapter = case.call(model)
    assert not torch.allclose(with_adapter, before, atol=1e-4)
    merge_lora(model, "policy")
    assert lora_targets(model, None) == layers
    assert torch.allclose(case.call(model), with_adapter, atol=1e-5)


def test_wrong_calls_are_refused(case):
    model = case.model()
    with pytest.raises(AdapterError, match="no adapter named 'ghost': the model has none"):
        remove_lora(model, "ghost")
    add_lora(model, "a", seed=0)
    with pytest.raises(AdapterError, match="'a' is taken"):
        add_lora(model, "a", seed=0)
    with pytest.raises(AdapterError, match="has a dot"):
        add_lora(model, "a.b", seed=0)
    with pytest.raises(AdapterError, match="rank is 0"):
        add_lora(model, "b", seed=0, rank=0)
    with pytest.raises(AdapterError, match="no layer of"):
        add_lora(model, "b", seed=0, suffixes=("nothing",))
    with pytest.raises(AdapterError, match=r"no adapter named \['ghost'\]"), use_adapters(model, {"ghost": 1.0}):
        pass
    with pytest.raises(AdapterError, match="takes no adapters"):
        add_lora(torch.nn.Linear(2, 2), "a", seed=0)


# ---- a torchao that PEFT refuses, as on Colab ----------------------------------------------------------------------

FORK = """
import json, os, sys, traceback
import torch
from transformers import CLIPTextModel
assert not {"peft", "torchao"} & set(sys.modules)
for code in json.loads(sys.argv[1]):  # each in a process of its own that has imported the above
    child = os.fork()
    if not child:
        os.dup2(1, 2)
        try:
            exec(code, {})
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
    print("== end ==", flush=True)
"""
ADD_WITH_PEFT_ALONE = """
from peft import LoraConfig, inject_adapter_in_model
from tests.tiny_models import tiny_unet
inject_adapter_in_model(LoraConfig(target_modules=["to_q"]), tiny_unet())
"""
TRAIN_ONE_STEP = """
import importlib.util, sys
{before}
import torch
from labkit.diffusion import add_lora, merge_lora
from tests.tiny_models import tiny_text_encoder, tiny_unet
loaded = sys.modules.get("torchao")
unet = tiny_unet()
latents, t, context = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 16, 32)
before = unet(latents, t, context).sample
optimizer = torch.optim.SGD(add_lora(unet, "lora", seed=0, rank=2), lr=1.0)
unet(latents, t, context).sample.square().sum().backward()
optimizer.step()
merge_lora(unet, "lora")
add_lora(tiny_text_encoder(), "second", seed=0)
assert not torch.equal(unet(latents, t, context).sample, before)
assert sys.modules.get("torchao") is loaded and importlib.util.find_spec("torchao") is not None
import torchao
print("trained beside torchao", torchao.__version__)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the three cases share an interpreter's imports by forks")
def test_an_old_torchao_does_not_keep_lora_from_training_and_stays_installed(tmp_path):
    """torchao 0.10.0 is on the path, by name at least: never imported, imported before, and what PEFT alone says."""
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao/__init__.py").write_text('__version__ = "0.10.0"\n', encoding="utf-8")
    (tmp_path / "torchao-0.10.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: torchao\nVersion: 0.10.0\n"
    (tmp_path / "torchao-0.10.0.dist-info/METADATA").write_text(metadata, encoding="utf-8")
    root = Path(__file__).resolve().parents[1]
    codes = [TRAIN_ONE_STEP.format(before=""), TRAIN_ONE_STEP.format(before="import torchao"), ADD_WITH_PEFT_ALONE]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(tmp_path)])}
    command = [sys.executable, "-c", FORK, json.dumps(codes)]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    never, before, peft = done.stdout.split("== end ==\n")[:3]
    assert never.strip() == before.strip() == "trained beside torchao 0.10.0", done.stdout[-4000:]
    # When this fails, PEFT has mended it: `_pass_over_an_old_torchao` can go.
    assert "incompatible version of torchao" in peft
