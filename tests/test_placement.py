"""A model spread over several devices computes what it computes on one, shown on virtual devices: no GPU is needed.

A virtual tensor says that it lies on cpu:1, cpu:2, ... and holds its numbers on the CPU. Operations between different
devices raise, as they do between GPUs; only copies may cross. (Real cpu:0 and cpu:1 would prove nothing: to torch they
are the same.)
"""

import argparse
import contextlib
import copy
import re
import types

import pytest
import safetensors
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import common
import dpo
import prompts
import vlm
from conftest import MODEL
from tools import memory
from vlm import placement

# ------------------------------------------------------------------------------
# Virtual devices

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
    """Run one of torch's operations on the tensors that are held -> virtual tensors on the device it runs on."""
    device = choose_device(operation, args, kwargs)

    def make_virtual(leaf):
        if isinstance(leaf, torch.Tensor) and device.index is not None:
            return Virtual(leaf, device)
        return leaf

    result = operation(*tree_map(to_held, args), **tree_map(to_held, kwargs))
    if operation._schema.is_mutable:
        return args[0] if operation._schema.returns else None
    return tree_map(make_virtual, result)


def choose_device(operation, args, kwargs):
    """Say where an operation runs; RuntimeError if its tensors lie on different devices."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    # Numbers and empty tensors may lie anywhere
    devices = {tensor.device for tensor in tensors if tensor.dim() and tensor.numel()}
    if len(devices) > 1 and operation not in COPIES:
        raise RuntimeError(f"{operation} between {' and '.join(sorted(map(str, devices)))}")

    asked = kwargs.get("device")
    if asked is not None:
        return torch.device(asked)
    if operation in COPIES:
        return tensors[0].device
    for candidates in (devices, {tensor.device for tensor in tensors}):
        if candidates:
            return next(iter(candidates))
    return torch.device("cpu")


def to_held(leaf):
    """Replace a virtual tensor by the tensor that it holds, and any device by the CPU."""
    if isinstance(leaf, Virtual):
        return leaf.held
    if isinstance(leaf, torch.device):
        return torch.device("cpu")
    return leaf


def spread(model, n_devices):
    """Copy a model to n virtual devices, as load_model would place it -> (model, its first device)."""
    model = copy.deepcopy(model)
    devices = [torch.device(f"cpu:{number + 1}") for number in range(n_devices)]
    place = vlm.plan_placement(model.config, devices)
    for name, module in model.named_modules():
        for key, weight in module._parameters.items():
            if weight is not None:
                moved = Virtual(weight.data, place(f"{name}.{key}"))
                module._parameters[key] = torch.nn.Parameter(moved)
        for key, buffer in module._buffers.items():
            module._buffers[key] = Virtual(buffer, place(f"{name}.{key}"))
    placement.move_activations(model)
    return model, devices[0]


def move_video(video, device):
    """Copy a video that a model has looked at to a virtual device."""

    def move(leaf):
        return Virtual(leaf, device) if isinstance(leaf, torch.Tensor) else leaf

    [(kind, features)] = video.inputs["mm_encoder_outputs"].items()
    features = type(features)(**{key: tree_map(move, value) for key, value in features.items()})
    moved = copy.copy(video)
    moved.ids = move(video.ids)
    moved.positions = move(video.positions)
    moved.inputs = {"mm_encoder_outputs": {kind: features}}
    moved.cache = None
    return moved


# ------------------------------------------------------------------------------
# Split equals unsplit

# (question, answer)
TEXTS = [
    ("which way does the red square move?", "it moves up."),
    ("how many shapes are there?", "there are two shapes."),
]


@pytest.fixture
def video(model, tokenizer, frames):
    return vlm.Video(model, tokenizer, frames)


@pytest.fixture
def branches(tokenizer):
    return [vlm.encode_branch(tokenizer, question, answer) for question, answer in TEXTS]


def update(model, video, branches, tune="full"):
    """Give log-probs, gradients, and the weights after one step of AdamW."""
    weights = dpo.freeze_weights(model, tune=tune)
    sums, _ = vlm.branch_logps(model, video, branches)
    (sums[0] - sums[1]).backward()
    gradients = [weight.grad for weight in weights]
    torch.optim.AdamW(weights, 1e-3, foreach=False).step()
    return [to_held(tensor).detach().clone() for tensor in (sums, *gradients, *weights)]


def check_that_split_equals_unsplit(model, n_devices, video, branches, tune="full"):
    unsplit = update(copy.deepcopy(model), video, branches, tune)
    with VirtualDevices():
        split_model, device = spread(model, n_devices)
        split = update(split_model, move_video(video, device), branches, tune)
    for mine, theirs in zip(split, unsplit, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)
    return unsplit


@pytest.fixture(scope="module")
def five_layers(model):
    """A fifth decoder layer, so that devices hold unequal numbers of them.

    As the model's answers do not matter here, it is a copy of the first.
    """
    model = copy.deepcopy(model)
    layers = model.model.language_model.layers
    extra = copy.deepcopy(layers[0])
    extra.self_attn.layer_idx = 4
    layers.append(extra)
    model.config.text_config.num_hidden_layers = 5
    model.config.text_config.layer_types = ["full_attention"] * 5
    return model


@pytest.mark.parametrize("n_devices", [1, 2, 3, 5, 6])  # of the last one device has no layer
def test_split_equals_unsplit(five_layers, video, branches, n_devices):
    check_that_split_equals_unsplit(five_layers, n_devices, video, branches)


def test_split_equals_unsplit_with_lora(model, video, branches):
    """Factors lie where their weights do. B is random here: where it is 0, A has no gradient."""
    model = copy.deepcopy(model)
    vlm.add_lora(model.model.language_model.layers, rank=2, alpha=4)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            weight.data = 0.05 * torch.randn(weight.shape, generator=generator)

    unsplit = check_that_split_equals_unsplit(model, 3, video, branches, "lora")
    # The log-probs, then gradient and weight of A and B in 28 linear layers
    assert len(unsplit) == 1 + 2 * 2 * 28
    assert all(tensor.abs().max() > 0 for tensor in unsplit)


def test_answers_of_a_split_model_are_the_same(model, tokenizer, video):
    texts = [prompts.fill(prompts.DEFAULT.answer, question=question) for question, _ in TEXTS]
    unsplit = vlm.decode(model, tokenizer, [video], [texts], 12)
    with VirtualDevices():
        split_model, device = spread(model, 3)
        assert vlm.decode(split_model, tokenizer, [move_video(video, device)], [texts], 12) == unsplit


def test_without_a_hook_it_raises(model, video, branches):
    with VirtualDevices():
        split_model, device = spread(model, 2)
        split_model.model.language_model.layers[2]._forward_pre_hooks.clear()
        with pytest.raises(RuntimeError, match="between cpu:1 and cpu:2"):
            update(split_model, move_video(video, device), branches)


# ------------------------------------------------------------------------------
# The order of passes


def trace(model, tokenizer, video, monkeypatch):
    """Do a step of dpo.py about three videos -> (the order of its passes, dpo.Step).

    The order has F1 for the forward pass over the first video, B1 for the backward pass, and so on.
    """
    order = []
    pair_logps = dpo.pair_logps

    def traced(model, tokenizer, video, pairs):
        name = pairs[0]["video"]
        sums, lengths = pair_logps(model, tokenizer, video, pairs)
        order.append(f"F{name}")
        sums.register_hook(lambda gradient: order.append(f"B{name}"))
        return sums, lengths

    (question, chosen), (_, rejected) = TEXTS
    batch = []
    reference = {}
    for name in "123":
        batch.append((name, [{"video": name, "prompt": question, "chosen": chosen, "rejected": rejected}]))
        reference[name, None, None] = torch.tensor([[-7.0], [-8.0]]), torch.tensor([[5], [6]])
    watched = ((pairs, video) for _, pairs in batch)

    args = argparse.Namespace(loss="sigmoid", sft_on="chosen", beta=0.5, label_smoothing=0.0, nll_weight=0.0)
    dpo.freeze_weights(model)
    with monkeypatch.context() as patch:
        patch.setattr(dpo, "pair_logps", traced)
        step = dpo.accumulate(model, tokenizer, watched, batch, reference, args)
    return order, step


def test_over_several_devices_all_forward_passes_come_first(model, tokenizer, video, monkeypatch):
    order, unsplit = trace(copy.deepcopy(model), tokenizer, video, monkeypatch)
    assert order == ["F1", "B1", "F2", "B2", "F3", "B3"]  # the activations of one video at a time

    with VirtualDevices():
        split_model, device = spread(model, 2)
        order, split = trace(split_model, tokenizer, move_video(video, device), monkeypatch)
    assert order[:3] == ["F1", "F2", "F3"]
    assert sorted(order[3:]) == ["B1", "B2", "B3"]
    assert split.loss == pytest.approx(unsplit.loss, abs=1e-6)
    torch.testing.assert_close(split.sums.held, unsplit.sums)


def test_a_device_gets_one_copy_of_the_mask(model, video, branches):
    """Layers 2 and 3 lie on the second device.

    Each copy makes the devices wait for each other, so the second layer gets the first one's.
    """
    masks = []

    def note_mask(module, args, kwargs):
        masks.append(kwargs["attention_mask"])

    with VirtualDevices():
        split_model, device = spread(model, 2)
        for layer in split_model.model.language_model.layers[2:]:
            layer.register_forward_pre_hook(note_mask, with_kwargs=True)
        for _ in range(2):  # two videos
            vlm.branch_logps(split_model, move_video(video, device), branches)

    first, also_first, second, also_second = masks
    assert first is also_first
    assert second is also_second
    assert first is not second
    assert str(first.device) == "cpu:2"


# ------------------------------------------------------------------------------
# Loading


def test_the_plan_is_printed_and_followed(model, monkeypatch, capsys):
    """To load_model cpu and cpu:0 are two devices; that torch takes them for one does not matter here."""
    safe_open = safetensors.safe_open
    read = {"cpu": set(), "cpu:0": set()}

    @contextlib.contextmanager
    def watched(file, framework, device):
        with safe_open(file, framework, "cpu") as tensors:

            def get_tensor(key):
                read[device].add(key)
                return tensors.get_tensor(key)

            yield types.SimpleNamespace(keys=tensors.keys, get_slice=tensors.get_slice, get_tensor=get_tensor)

    monkeypatch.setattr(safetensors, "safe_open", watched)
    split = vlm.load_model(MODEL, ["cpu", "cpu:0"])

    # Each tensor is read by one device, and by no other
    on_last = set()
    for key in read["cpu"] | read["cpu:0"]:
        of_language = key.replace("encoder.layer", "")  # the vision tower has layers, too
        if re.search(r"layers\.[23]\.|language_model\.model\.norm|lm_head", of_language):
            on_last.add(key)
    assert read["cpu:0"] == on_last
    assert not read["cpu"] & on_last

    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("cpu: model.vision_tower.embeddings.cls_token to model.language_model.layers.1.")
    assert last.startswith("cpu:0: model.language_model.layers.2.")
    assert "to lm_head.weight, 0.00 GiB" in last
    for mine, theirs in zip(split.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


# ------------------------------------------------------------------------------
# Several GPUs, and a model that fits on one

GIB = 2**30


@pytest.fixture
def gpus(monkeypatch):
    """Make torch see GPUs with so many bytes each."""

    def see(*sizes):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(sizes))
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda number: types.SimpleNamespace(total_memory=sizes[number])
        )

    return see


def ask_for(**changed):
    """The options of an answering stage that are looked at before a model is loaded."""
    options = {"model": MODEL, "devices": None, "dtype": None, "frames": None, "videos_per_batch": 1}
    return argparse.Namespace(**options | changed)


def test_answering_is_the_weights_and_the_cache_of_a_video_by_hand(tmp_path):
    config = vlm.load_model(MODEL, ["cpu"]).config
    n_weights = sum(entry.shape.numel() for entry in placement.files.read_header(MODEL / "model.safetensors").values())
    # 4 layers, keys and values, 128 channels; 8 frames of 16 visual tokens, and 8 that name the frame
    cache = 4 * 2 * 128 * 8 * (16 + 8)
    assert placement.count_answering(MODEL, config, 8, torch.bfloat16) == 2 * (n_weights + cache)
    assert placement.count_answering(MODEL, config, 8, torch.float32) == 4 * (n_weights + cache)
    assert placement.count_answering(MODEL, config, 8, torch.float32, 3) == 4 * (n_weights + 3 * cache)

    model = vlm.load_model(MODEL, ["cpu"])
    vlm.add_lora(model.model.language_model.layers, 2, 4)
    vlm.save_adapter(model, tmp_path, vlm.Adapter(str(MODEL), 2, 4))
    factors = 4 * 2 * (4 * (128 + 128) + 3 * (128 + 320))  # of rank 2, in float32 whatever the weights are
    assert placement.count_answering(tmp_path, config, 8, torch.bfloat16) == 2 * (n_weights + cache) + 4 * factors


def test_it_counts_what_the_memory_tool_counts():
    config = transformers.InternVLConfig.from_pretrained(MODEL)
    options = {"dtype": "bfloat16", "frames": 8, "pairs": 6, "question_tokens": 40, "answer_tokens": 100}
    options |= {
        "videos_per_step": 8,
        "activation_checkpointing": False,
        "tune": "full",
        "lora_rank": 16,
        "videos_per_batch": 2,
    }
    [row] = memory.plan(config, ["cuda:0"], argparse.Namespace(**options))
    assert placement.count_answering(MODEL, config, 8, torch.bfloat16, 2) == row.answering


def test_one_process_a_gpu_is_said_to_be_faster_where_the_model_fits_on_the_smallest(gpus, capsys):
    needed = 16 * GIB
    for sizes, said in (
        ((80 * GIB, 20 * GIB), True),  # 4 GiB are left for the prefill
        ((80 * GIB, 20 * GIB - 1), False),
        ((80 * GIB,), False),  # nothing to spread over
        ((), False),
    ):
        gpus(*sizes)
        placement.tell_faster_way(needed)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == said
        if said:
            assert "spreads the model over 2 GPUs, though it fits on one (16.0 of 20.0 GiB)" in lines[0]
            assert "torchrun --standalone --nproc-per-node 2" in lines[0]


@pytest.mark.parametrize(
    "changed, said",
    [({}, True), ({"devices": "cuda:0"}, False), ({"ask": "what is there?"}, False)],
)
def test_it_is_said_by_stages_that_answer_and_take_all_gpus(gpus, monkeypatch, capsys, changed, said):
    gpus(80 * GIB, 80 * GIB)
    monkeypatch.setattr(placement, "load_model", lambda *arguments: "a model")
    placement.load(ask_for(**changed))
    assert ("faster is one process a GPU" in capsys.readouterr().out) == said


def test_dpo_which_does_not_answer_says_nothing_of_it(gpus, monkeypatch, capsys):
    gpus(80 * GIB, 80 * GIB)
    monkeypatch.setattr(placement, "load_model", lambda *arguments: "a model")
    args = ask_for()
    del args.videos_per_batch
    placement.load(args)
    assert capsys.readouterr().out == ""


# ------------------------------------------------------------------------------
# Several processes


@pytest.mark.parametrize(
    "n_gpus, n_processes, shares",
    [
        (8, 8, [[0], [1], [2], [3], [4], [5], [6], [7]]),
        (8, 4, [[0, 1], [2, 3], [4, 5], [6, 7]]),  # layers over two each
        (5, 2, [[0, 1], [2, 3]]),  # the fifth is left over
        (0, 2, [[], []]),  # on a CPU
    ],
)
def test_each_process_takes_its_share_of_the_machines_gpus(gpus, monkeypatch, n_gpus, n_processes, shares):
    gpus(*[80 * GIB] * n_gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(n_processes))
    for rank, share in enumerate(shares):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert placement.list_own_gpus() == [f"cuda:{number}" for number in share]


def test_more_processes_than_gpus_are_refused(gpus, monkeypatch):
    gpus(80 * GIB, 80 * GIB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(common.InputError, match="3 processes for 2 GPUs: at most --nproc-per-node 2"):
        placement.list_own_gpus()


def test_gpus_by_name_are_refused_under_torchrun(gpus, monkeypatch):
    """All processes would take the same one."""
    gpus(80 * GIB, 80 * GIB)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(common.InputError, match="--devices cuda:0: under torchrun every process takes its share"):
        placement.load(ask_for(devices="cuda:0"))
