"""A model spread over several devices computes what it computes on one: shown on virtual devices, so that no GPU is needed.

A virtual tensor says that it lies on cpu:1, cpu:2, ... and holds its numbers on the CPU. Operations between different devices raise, as
they do between GPUs; only copies may cross. (Real cpu:0 and cpu:1 would prove nothing: to torch they are the same.)
"""

import argparse
import contextlib
import copy
import re
import types

import pytest
import safetensors
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers.modeling_outputs import BaseModelOutputWithPooling

import common
import dpo
from conftest import MODEL

COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Virtual(torch.Tensor):
    """A tensor that says it lies on a device; its numbers are in `held`."""

    @staticmethod
    def __new__(cls, held, device):
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
            requires_grad=held.requires_grad,
        )
        self.held = held.detach()
        return self

    def __format__(self, spec):
        return format(self.held, spec)

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


class VirtualDevices(TorchDispatchMode):
    """Makes new tensors (arange, zeros, ...) virtual as well, where a virtual device is asked for."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


def compute(operation, args, kwargs):
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    devices = {
        tensor.device for tensor in tensors if tensor.dim() and tensor.numel()
    }  # numbers and empty tensors may lie anywhere
    if len(devices) > 1 and operation not in COPIES:
        raise RuntimeError(f"{operation} between {' and '.join(sorted(map(str, devices)))}")
    asked = kwargs.get("device")
    device = (
        torch.device(asked)
        if asked is not None
        else tensors[0].device
        if operation in COPIES
        else next(iter(devices or {tensor.device for tensor in tensors}), torch.device("cpu"))
    )
    held = lambda leaf: (
        leaf.held if isinstance(leaf, Virtual) else torch.device("cpu") if isinstance(leaf, torch.device) else leaf
    )
    result = operation(*tree_map(held, args), **tree_map(held, kwargs))
    if operation._schema.is_mutable:
        return args[0] if operation._schema.returns else None
    return tree_map(
        lambda leaf: Virtual(leaf, device) if isinstance(leaf, torch.Tensor) and device.index is not None else leaf,
        result,
    )


def spread(model, n_devices):
    """A copy of a model on n virtual devices, as load_model would place it -> (model, its first device)."""
    model, devices = copy.deepcopy(model), [torch.device(f"cpu:{n + 1}") for n in range(n_devices)]
    place = common.plan_placement(model.config, devices)
    for name, module in model.named_modules():
        for key, weight in module._parameters.items():
            if weight is not None:
                module._parameters[key] = torch.nn.Parameter(Virtual(weight.data, place(f"{name}.{key}")))
        for key, buffer in module._buffers.items():
            module._buffers[key] = Virtual(buffer, place(f"{name}.{key}"))
    common.move_activations(model)
    return model, devices[0]


def look(video, device):
    features, moved = video.inputs["mm_encoder_outputs"]["image"].pooler_output, copy.copy(video)
    moved.ids, moved.inputs = (
        Virtual(video.ids, device),
        {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=Virtual(features, device))}},
    )
    moved.cache = None
    return moved


BRANCHES = [
    ("which way does the red square move?", "it moves up."),
    ("how many shapes are there?", "there are two shapes."),
]


@pytest.fixture
def video(model, tokenizer, frames):
    return common.Video(model, tokenizer, frames)


def step(model, tokenizer, video, tune="full"):
    """Log-probs, gradients and the weights after one step of AdamW."""
    branches = [common.encode_branch(tokenizer, *branch) for branch in BRANCHES]
    weights = dpo.freeze_all_but_language(model, tune=tune)
    sums, _ = common.branch_logps(model, video, branches)
    (sums[0] - sums[1]).backward()
    gradients = [weight.grad for weight in weights]
    torch.optim.AdamW(weights, 1e-3, foreach=False).step()
    hold = lambda tensor: tensor.held if isinstance(tensor, Virtual) else tensor.detach()
    return [hold(tensor).clone() for tensor in (sums, *gradients, *weights)]


@pytest.fixture(scope="module")
def five_layers(model):
    """A fifth decoder layer, so that devices hold unequal numbers of them; as its answers do not matter here, it is a copy of the first."""
    model = copy.deepcopy(model)
    extra = copy.deepcopy(model.model.language_model.layers[0])
    extra.self_attn.layer_idx = 4
    model.model.language_model.layers.append(extra)
    model.config.text_config.num_hidden_layers = 5
    model.config.text_config.layer_types = ["full_attention"] * 5
    return model


@pytest.mark.parametrize("n_devices", [1, 2, 3, 5, 6])  # of the last one device has no layer
def test_split_equals_unsplit(five_layers, tokenizer, video, n_devices):
    whole = step(copy.deepcopy(five_layers), tokenizer, video)
    with VirtualDevices():
        parts, device = spread(five_layers, n_devices)
        split = step(parts, tokenizer, look(video, device))
    for mine, theirs in zip(split, whole, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_split_equals_unsplit_with_lora(model, tokenizer, video):
    """Factors lie where their weights do. B is random here: where it is 0, A has no gradient."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    common.add_lora(model.model.language_model.layers, rank=2, alpha=4)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            weight.data = 0.05 * torch.randn(weight.shape, generator=generator)
    whole = step(copy.deepcopy(model), tokenizer, video, "lora")
    assert len(whole) == 1 + 2 * 2 * 28 and all(part.abs().max() > 0 for part in whole)
    with VirtualDevices():
        parts, device = spread(model, 3)
        split = step(parts, tokenizer, look(video, device), "lora")
    for mine, theirs in zip(split, whole, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def trace(model, tokenizer, videos, monkeypatch):
    """The order of forward (F) and backward (B) passes over the videos of a step of dpo.py, its loss and its log-probs."""
    order, pair_logps = [], dpo.pair_logps

    def traced(model, tokenizer, video, rows):
        sums, lengths = pair_logps(model, tokenizer, video, rows)
        order.append(f"F{rows[0]['video']}")
        sums.register_hook(lambda gradient: order.append(f"B{rows[0]['video']}"))
        return sums, lengths

    args = argparse.Namespace(loss="sigmoid", sft_on="chosen", beta=0.5, label_smoothing=0.0, nll_weight=0.0)
    (question, chosen), (_, rejected) = BRANCHES
    batch = [(name, [{"video": name, "question": question, "chosen": chosen, "rejected": rejected}]) for name in "123"]
    reference = {name: (torch.tensor([[-7.0], [-8.0]]), torch.tensor([[5], [6]])) for name, _ in batch}
    dpo.freeze_all_but_language(model)
    with monkeypatch.context() as patch:
        patch.setattr(dpo, "pair_logps", traced)
        loss, _, sums, _ = dpo.accumulate(
            model, tokenizer, zip((rows for _, rows in batch), videos), batch, reference, args
        )
    return order, loss, sums


def test_over_several_devices_all_forward_passes_come_first(model, tokenizer, video, monkeypatch):
    order, loss, sums = trace(copy.deepcopy(model), tokenizer, [video] * 3, monkeypatch)
    assert order == ["F1", "B1", "F2", "B2", "F3", "B3"]  # the activations of one video at a time
    with VirtualDevices():
        parts, device = spread(model, 2)
        order, split_loss, split_sums = trace(parts, tokenizer, [look(video, device)] * 3, monkeypatch)
    assert order[:3] == ["F1", "F2", "F3"] and sorted(order[3:]) == ["B1", "B2", "B3"]
    assert split_loss == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(split_sums.held, sums)


def test_answers_of_a_split_model_are_the_same(model, tokenizer, video):
    prompts = [common.ANSWER_PROMPT.format(question=question) for question, _ in BRANCHES]
    whole = common.decode(model, tokenizer, video, prompts, 12)
    with VirtualDevices():
        parts, device = spread(model, 3)
        assert common.decode(parts, tokenizer, look(video, device), prompts, 12) == whole


def test_the_plan_is_printed_and_followed(model, monkeypatch, capsys):
    """To load_model cpu and cpu:0 are two devices (that they are one to torch does not matter for what is read where)."""
    read, safe_open = {"cpu": set(), "cpu:0": set()}, safetensors.safe_open

    @contextlib.contextmanager
    def watched(file, framework, device):
        with safe_open(file, framework, "cpu") as tensors:
            get_tensor = lambda key: read[device].add(key) or tensors.get_tensor(key)
            yield types.SimpleNamespace(keys=tensors.keys, get_slice=tensors.get_slice, get_tensor=get_tensor)

    monkeypatch.setattr(safetensors, "safe_open", watched)
    split = common.load_model(MODEL, ["cpu", "cpu:0"])
    first, last = capsys.readouterr().out.splitlines()
    behind = {
        key
        for key in read["cpu"] | read["cpu:0"]
        if re.search(r"layers\.[23]\.|language_model\.model\.norm|lm_head", key.replace("encoder.layer", ""))
    }
    assert read["cpu:0"] == behind and not read["cpu"] & behind  # each tensor by one device, and no other
    assert first.startswith(
        "cpu: model.vision_tower.embeddings.cls_token to model.language_model.layers.1."
    ) and last.startswith("cpu:0: model.language_model.layers.2.")
    assert "to lm_head.weight, 0.00 GiB" in last
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(split.parameters(), model.parameters(), strict=True))


def test_a_device_gets_one_copy_of_the_mask(model, tokenizer, video, monkeypatch):
    """Layers 2 and 3 lie on the second device. Each copy makes the devices wait for each other, so the second layer gets the first one's."""
    masks = []
    with VirtualDevices():
        parts, device = spread(model, 2)
        for layer in parts.model.language_model.layers[2:]:
            layer.register_forward_pre_hook(
                lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
            )
        for _ in range(2):  # two videos
            common.branch_logps(
                parts, look(video, device), [common.encode_branch(tokenizer, *branch) for branch in BRANCHES]
            )
    assert (
        masks[0] is masks[1] and masks[2] is masks[3] and masks[0] is not masks[2] and str(masks[0].device) == "cpu:2"
    )


def test_without_a_hook_it_raises(model, tokenizer, video):
    with VirtualDevices():
        parts, device = spread(model, 2)
        parts.model.language_model.layers[2]._forward_pre_hooks.clear()
        with pytest.raises(RuntimeError, match="between cpu:1 and cpu:2"):
            step(parts, tokenizer, look(video, device))
