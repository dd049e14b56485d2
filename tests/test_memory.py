"""tools.memory counts without numbers; here its counts are held against what a real forward pass keeps."""

import argparse
import copy
from pathlib import Path

import pytest
import torch
import transformers

import common
import dpo
import prompts
import vlm
from conftest import MODEL
from tools import memory

ROOT = Path(__file__).parent.parent
INTERNVL_8B = ROOT / "tests" / "fixtures" / "internvl2_5-8b"
GIB = 2**30


def options(**changed):
    """The options of the command, with their defaults but for those that are changed."""
    defaults = {
        "dtype": "bfloat16",
        "frames": 32,
        "pairs": 6,
        "question_tokens": 40,
        "answer_tokens": 100,
        "videos_per_batch": 1,
        "videos_per_step": 8,
        "activation_checkpointing": False,
        "tune": "full",
        "lora_rank": 16,
    }
    return argparse.Namespace(**defaults | changed)


def plan_8b(n_devices, **changed):
    config = transformers.InternVLConfig.from_pretrained(INTERNVL_8B)
    return memory.plan(config, [f"cuda:{number}" for number in range(n_devices)], options(**changed))


def test_internvl2_5_8b_by_hand():
    """Published as 8.08 billion parameters: language model 7.74, vision tower 0.30, projector 0.03."""
    [row] = plan_8b(1)
    attention = 2 * 4096 * 4096 + 2 * 1024 * 4096  # q and o, k and v
    mlp = 3 * 4096 * 14336
    norms = 2 * 4096
    embedding_and_head = 2 * 92553 * 4096
    language = embedding_and_head + 32 * (attention + mlp + norms) + 4096
    assert row.gradients == 2 * language
    assert row.optimizer == 16 * language
    assert row.weights == pytest.approx(2 * 8.08e9, rel=2e-3)
    # layers x keys and values x heads x their size x bytes x frames x tokens
    assert row.cache == 32 * 2 * 8 * 128 * 2 * 32 * (256 + 8)
    [row_of_four] = plan_8b(1, videos_per_batch=4)
    assert row_of_four.answering == row.answering + 3 * row.cache


def test_lora_by_hand():
    """Each of 32 layers has q, k, v, o, gate, up and down, each with factors of (in + out) x 16 numbers in float32;
    AdamW has two moments of each."""
    [row] = plan_8b(1, tune="lora")
    in_and_out = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    numbers = 32 * 16 * in_and_out
    assert row.gradients == 4 * numbers
    assert row.optimizer == 8 * numbers
    assert row.weights == pytest.approx(2 * 8.08e9 + 4 * numbers, rel=2e-3)


def test_four_devices_share_what_one_has():
    [one] = plan_8b(1)
    four = plan_8b(4)
    for key in ("layers", "weights", "gradients", "optimizer", "cache"):
        assert sum(getattr(row, key) for row in four) == getattr(one, key)

    # Each device but the first has copies of mask, cosines and sines. All forward passes of a step come first.
    branches = 2 * 6 * (40 + 100)
    tokens = 32 * (256 + 8) + branches
    mask = branches * tokens * 2
    rotary = 2 * tokens * 128 * 2
    copies = 3 * (mask + rotary)
    videos_per_step = 8
    assert sum(row.activations for row in four) == videos_per_step * (one.activations + copies)


@pytest.mark.parametrize("tune, rank", [("full", 0), ("lora", 16)])
def test_what_is_counted_on_meta_is_what_a_real_pass_keeps(model, tokenizer, frames, tune, rank):
    """The tiny model's own forward pass over [video | branches]: all that autograd keeps of it, but for the weights."""
    video = vlm.Video(model, tokenizer, frames)
    prompt = prompts.fill(prompts.DEFAULT.answer, question="how many shapes are there?")
    branches = [vlm.encode_branch(tokenizer, prompt, "there are two shapes.")] * 6
    n_answers = sum(len(branch.answer) for branch in branches)
    n_tokens = video.ids.shape[1] + sum(len(branch.prompt) for branch in branches) + n_answers

    model = copy.deepcopy(model)
    if tune == "lora":
        vlm.add_lora(model.model.language_model.layers, 16, 32)
    dpo.freeze_weights(model, tune=tune)
    with memory.count_kept(list(model.parameters())) as kept:
        vlm.branch_logps(model, video, branches)
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    one = memory.kept_bytes(model.config, 1, n_tokens, n_answers, torch.float32, rank)
    two = memory.kept_bytes(model.config, 2, n_tokens, n_answers, torch.float32, rank)
    layer = two - one
    head = one - layer
    n_layers = model.config.text_config.num_hidden_layers
    assert n_layers * layer + head == pytest.approx(real, rel=0.1)


def test_what_is_counted_of_the_vision_tower_is_what_a_real_pass_keeps(model, frames, tokenizer):
    """--tune all: the tiny model looks at 8 frames, and autograd keeps what the tower's gradients need."""
    counted = memory.sum_tower(model.config, 1, options(frames=len(frames), dtype="float32"))
    model = copy.deepcopy(model)
    dpo.freeze_weights(model, tune="all")
    with memory.count_kept(list(model.parameters())) as kept:
        vlm.Video(model, tokenizer, frames)
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert counted == pytest.approx(real, rel=0.1)

    # All of it is on the first device, where the tower is, and its weights are trained there
    full, all_weights = (plan_8b(2, tune=tune) for tune in ("full", "all"))
    assert all_weights[1] == full[1]
    [one] = plan_8b(1, tune="all")
    [alone] = plan_8b(1)
    of_tower = one.activations - alone.activations
    assert all_weights[0].activations == full[0].activations + 8 * of_tower  # 8 videos a step come first
    n_tower = (all_weights[0].gradients - full[0].gradients) // 2
    assert n_tower == pytest.approx(338e6, rel=0.01)  # InternViT-300M with its projector: 304 and 34 million


def test_checkpointing_keeps_what_goes_into_the_layers_of_the_vision_tower():
    """By hand: 24 layers, each with 32 frames x 1,025 tokens x 1,024 numbers of 2 bytes, in place of all within."""
    [plain] = plan_8b(1, tune="all")
    [saved] = plan_8b(1, tune="all", activation_checkpointing=True)
    language = plan_8b(1)[0].activations, plan_8b(1, activation_checkpointing=True)[0].activations
    inputs = 24 * 32 * 1025 * 1024 * 2
    kept, left = plain.activations - language[0], saved.activations - language[1]
    layer = (kept - left + inputs) / (24 - 1)  # 24 layers' insides are gone, but for the one at work
    assert inputs < left < inputs + 2 * layer
    assert kept > 24 * layer


@pytest.mark.parametrize("gpus, n_devices", [("1 x 24 GB", 1), ("2 x 80 GB", 2), ("4 x 80 GB", 4), ("8 x 40 GB", 8)])
def test_the_page_has_what_the_tool_prints(gpus, n_devices):
    """A line of its table is | GPUs | answering | training | training with LoRA |, of the fullest device."""
    lines = (ROOT / "docs" / "real-models.md").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"| {gpus} |")]
    _, answering, full, lora = [cell.strip().split(",")[0] for cell in line.strip(" |").split(" | ")]

    rows = plan_8b(n_devices, activation_checkpointing=True)
    assert answering == f"{max(row.answering for row in rows) / GIB:.1f}"
    assert full.removeprefix("does not fit: ") == f"{max(row.training for row in rows) / GIB:.1f}"
    rows = plan_8b(n_devices, activation_checkpointing=True, tune="lora")
    assert lora.removeprefix("does not fit: ") == f"{max(row.training for row in rows) / GIB:.1f}"


@pytest.mark.parametrize("n_devices", [1, 2, 4, 8])
def test_the_page_has_what_the_tool_prints_of_qwen3_vl_8b(n_devices):
    """A line of its table is | GPUs | answering | all weights | LoRA |."""
    text = (ROOT / "docs" / "real-models.md").read_text().partition("**How much memory does Qwen3-VL-8B need?**")[2]
    [line] = [line for line in text.splitlines() if line.startswith(f"| {n_devices} | ")]
    config = transformers.AutoConfig.from_pretrained(ROOT / "tests" / "fixtures" / "qwen3-vl-8b")
    devices = [f"cuda:{number}" for number in range(n_devices)]
    full = memory.plan(config, devices, options(activation_checkpointing=True))
    lora = memory.plan(config, devices, options(activation_checkpointing=True, tune="lora"))
    fullest = [
        max(row.answering for row in full),
        max(row.training for row in full),
        max(row.training for row in lora),
    ]
    assert line == f"| {n_devices} | " + " | ".join(f"{n_bytes / GIB:.1f}" for n_bytes in fullest) + " |"


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("n", [2, 8])
def test_a_process_of_several_by_hand(n, tune):
    """Of what is trained: master, gradient and two moments in float32, 16 bytes, over n; the tower as a whole.

    At work beside them, or AdamW's step, which takes 4 bytes more: two layers, embedding and head in bfloat16, and
    gradients of a layer and the head, of 2 and of 4 bytes.
    """
    config = transformers.InternVLConfig.from_pretrained(INTERNVL_8B)
    asked = options(activation_checkpointing=True, tune=tune, processes=n)
    row = memory.plan_process(config, asked)

    end = 92553 * 4096
    layer = 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 14336 + 2 * 4096
    language = 2 * end + 32 * layer + 4096
    factors = 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    [alone] = plan_8b(1, activation_checkpointing=True, tune=tune)
    if tune == "full":
        tower = alone.weights - 2 * language
        own = tower + 16 * language / n
        at_work = 2 * (2 * layer + 2 * end) + (2 + 4) * (layer + end)
        step = 4 * language / n
    else:
        tower = alone.weights - 2 * language - 4 * factors
        own = tower + (2 * language + 16 * factors) / n
        at_work = 2 * (2 * (layer + factors / 32) + 2 * end) + (2 + 4) * factors / 32
        step = 4 * factors / n
    assert row.training == pytest.approx(own + max(at_work + alone.activations, step), abs=8)


@pytest.mark.parametrize("tune, name", [("full", "**all weights, FSDP2**"), ("lora", "**LoRA, FSDP2**")])
def test_the_page_has_what_the_tool_prints_of_several_processes(tune, name):
    """A line of its table has the GiB of 1, 2, 4, 8 and 16 GPUs, the first of them empty."""
    lines = (ROOT / "docs" / "performance.md").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"| {name} |")]
    config = transformers.InternVLConfig.from_pretrained(INTERNVL_8B)
    cells = []
    for n in (2, 4, 8, 16):
        row = memory.plan_process(config, options(activation_checkpointing=True, tune=tune, processes=n))
        cells.append(f"{row.training / GIB:.1f}")
    assert line == f"| {name} | | {' | '.join(cells)} |"


def print_plan(monkeypatch, capsys, *arguments):
    """Run the command -> the lines that it prints."""
    monkeypatch.setattr("sys.argv", ["memory.py", *map(str, arguments)])
    memory.main()
    return capsys.readouterr().out.splitlines()


def test_a_table_is_printed_with_a_line_for_each_device_and_one_for_all(monkeypatch, capsys):
    sizes = ("--devices", 2, "--dtype", "float32", "--frames", 8)
    _, _, *lines = print_plan(monkeypatch, capsys, MODEL, *sizes, "--activation-checkpointing")
    assert [line.split()[:2] for line in lines] == [["device", "0"], ["device", "1"], ["in", "all"]]


def test_an_adapter_is_counted_like_its_base_and_another_class_is_refused(monkeypatch, capsys, tmp_path):
    adapter_config = {"peft_type": "LORA", "base_model_name_or_path": str(MODEL), "r": 4, "lora_alpha": 8}
    common.write_json(tmp_path / "adapter_config.json", adapter_config)
    of_the_base = print_plan(monkeypatch, capsys, MODEL, "--tune", "lora", "--lora-rank", 4)  # its own, not 16
    assert print_plan(monkeypatch, capsys, tmp_path, "--tune", "lora") == of_the_base

    common.write_json(tmp_path / "config.json", {"model_type": "llava"})
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(common.InputError, match="unknown class llava, not internvl"):
        print_plan(monkeypatch, capsys, tmp_path, "--tune", "lora")
