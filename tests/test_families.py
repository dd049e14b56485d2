"""Qwen3-VL and Qwen2.5-VL: a video is read once there too, with positions of three axes.

Small random models of transformers' own classes; every byte is a token, so that times in words have
different lengths. What the library computes by itself is the oracle: pixels by its processor,
positions and features by its model. What is asked behind the video is compared with ordinary,
separate sequences.
"""

import base64
import copy
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

import common
import critique
import dpo
import generate
import vlm
from conftest import MODEL
from fixtures import qwen_processors
from fixtures.qwen_processors import choose_indices, draw
from shapes import world
from test_placement import VirtualDevices, move_video, spread
from tools import memory, merge, page_frames, page_tokens, prompt
from vlm import families, prefix

KINDS = families.QWEN
slow = pytest.mark.slow
ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
QUESTIONS = ["Which way?", "How many shapes are there?", "Why?"]
ANSWERS = ["It moves up.", "Two.", "Because it is hit."]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SECONDS = [0.25, 1.75, 3.25, 4.75]


def make_internvl_tokenizer():
    return make_tokenizer(["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"])


def make_tokenizer(special=qwen_processors.SPECIAL):
    made = qwen_processors.make_tokenizer(special)
    made.chat_template = CHAT
    return made


def make_config(kind, tokenizer, **changed):
    """Three of six layers of Qwen3-VL's language model take features of its tower's first layers."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        "initializer_range": 0.2,  # so that answers differ
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {"depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    if kind == "qwen3_vl":
        text["head_dim"] = 8
        text["rope_parameters"]["mrope_interleaved"] = True
        vision |= {"deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 64, "patch_size": 16}
        make = transformers.Qwen3VLConfig
    else:
        vision |= {"tokens_per_second": 2, "fullatt_block_indexes": [3], "window_size": 112, "patch_size": 14}
        make = transformers.Qwen2_5_VLConfig
    ids = {}
    for name in ("video", "image"):
        ids[f"{name}_token_id"] = tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>")
    for name in ("vision_start", "vision_end"):
        ids[f"{name}_token_id"] = tokenizer.convert_tokens_to_ids(f"<|{name}|>")
    config = make(text_config=text, vision_config=vision, **ids, **changed)
    config.frame_tokens = [4, 12]  # tiny pictures: two frames have so many tokens
    return config


@pytest.fixture(scope="module", params=KINDS)
def directory(request, tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(request.param)
    tokenizer = make_tokenizer()
    config = make_config(request.param, tokenizer, tie_word_embeddings=False)
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(directory):
    return vlm.load_model(directory, ["cpu"])


@pytest.fixture(scope="module")
def tokenizer(directory):
    return vlm.load_tokenizer(directory)


def name_case(case):
    return f"{case['kind']}-{'x'.join(map(str, case['frames']))}"


def draw_frames(n, height=96, width=160):
    return np.random.default_rng(n).integers(0, 256, (n, height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def video(model, tokenizer):
    return vlm.Video(model, tokenizer, draw_frames(4), SECONDS)


# ------------------------------------------------------------------------------
# Pixels, ids, positions


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        ((864, 1152), 24 * 31),
        ((360, 640), 13 * 23),
        ((1080, 1920), 20 * 36),
        ((30, 200), 5 * 30),
        ((1920, 1080), 36 * 20),
        ((144, 144), 12 * 12),
    ],
)
def test_a_frame_keeps_its_shape_and_has_not_too_many_tokens(size, tokens):
    """By hand, units of 28 pixels: 360 / 28 = 12.9 and 640 / 28 = 22.9 are 13 x 23.

    39 x 69 are more than 768, so 1080 x 1920 is scaled by sqrt(768 / (1080 * 1920)) and rounded down;
    1 x 7 and 5 x 5 are fewer than 128, and are scaled and rounded up. 864 x 1152 divides by sqrt(864 * 1152 / (768 *
    784)) into 24 x 32 exactly, which floats make 24 x 31: so does qwen-vl-utils.
    """
    height, width = families.fit(*size, 28, 128, 768)
    assert (height // 28) * (width // 28) == tokens
    assert families.fit(height, width, 28, 128, 768) == (height, width)  # once is enough


def test_patches_are_those_of_the_librarys_processor(model):
    """A picture is to it a pair of equal frames; of the size that is wanted, so nothing is resized."""
    vision = model.config.vision_config
    height, width = 4 * vision.patch_size, 6 * vision.patch_size
    frame = draw_frames(1, height, width)
    mean, std = families.QWEN_PIXELS[model.config.model_type]
    processor = transformers.Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size, image_mean=mean, image_std=std, size={"shortest_edge": 1, "longest_edge": 10**6}
    )
    theirs = processor(list(frame), return_tensors="pt")
    pixels = families.pixel_values(np.repeat(frame, 2, 0), (height, width), mean, std)
    assert theirs["image_grid_thw"].tolist() == [[1, 4, 6]]
    torch.testing.assert_close(families.cut_in_patches(pixels, vision.patch_size), theirs["pixel_values"])


CASES = common.read_json(FIXTURES / "qwen_processors.json")
FIRST = [case if case["frames"] == CASES[0]["frames"] else pytest.param(case, marks=slow) for case in CASES]


@pytest.mark.parametrize("case", FIRST, ids=name_case)
def test_pixels_are_those_of_the_librarys_video_processors(case):
    """Grids, and some of the numbers, that tests/fixtures/qwen_processors.py wrote down where torchvision was.

    Resizing is the same function, on the same bytes: they differ by float32's rounding alone.
    """
    _, *size = case["frames"]
    config = make_config(case["kind"], make_tokenizer())
    config.frame_tokens = list(families.QWEN_TOKENS)
    height, width = families.choose_size(config, *size)
    patch = config.vision_config.patch_size
    frames = families.make_even(draw(*case["frames"]))
    assert [len(frames) // 2, height // patch, width // patch] == case["grid"]
    pixels = families.pixel_values(frames, (height, width), *families.QWEN_PIXELS[case["kind"]])
    values = families.cut_in_patches(pixels, patch).flatten()
    assert len(values) == case["n_values"]
    torch.testing.assert_close(values[:: qwen_processors.STRIDE], torch.tensor(case["values"]), atol=2e-6, rtol=0)


@pytest.mark.parametrize("case", CASES, ids=name_case)
def test_a_prompt_has_the_token_ids_of_the_librarys_processors(case):
    """But for two marks around all of Qwen3-VL's pairs of frames, which transformers has since 5.0."""
    n_frames, *size = case["frames"]
    made = make_tokenizer()
    config = make_config(case["kind"], made)
    config.frame_tokens = list(families.QWEN_TOKENS)
    seconds = np.array(choose_indices(n_frames)) / qwen_processors.FPS
    mine = families.encode_video(made, config, families.choose_size(config, *size), seconds)
    mine += vlm.encode_branch(made, qwen_processors.QUESTION).prompt

    theirs = [id for id, n in case["ids"] for _ in range(n)]
    if case["kind"] == "qwen3_vl":
        first = theirs.index(config.vision_start_token_id)
        last = len(theirs) - 1 - theirs[::-1].index(config.vision_end_token_id)
        del theirs[last], theirs[first]
    assert mine == theirs


def test_two_frames_of_a_pair_are_not_exchanged(model):
    """Both frames are in a patch, after the channel: red of the first, red of the second, green ..."""
    pixels = torch.arange(4 * 3).view(4, 3, 1, 1).expand(4, 3, 28, 28).float()  # frame 0 is 0, 1, 2
    first, second = families.cut_in_patches(pixels, 14).view(2, 4, 3, 2, 14 * 14)[:, 0, :, :, 0]
    assert first.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert second.tolist() == [[6, 9], [7, 10], [8, 11]]


def test_the_prefix_in_words(model, tokenizer, video):
    """96 x 160 has 3 x 5 tokens of 32 pixels, or 3 x 6 of 28; 12 at most are 2 x 4."""
    pads = "<|video_pad|>" * 8
    shown = tokenizer.decode(video.ids[0])
    if model.config.model_type == "qwen3_vl":  # the mean of a pair's seconds, of which 4.0 is 4.0
        assert shown == (
            f"<|im_start|>user\n<1.0 seconds><|vision_start|>{pads}<|vision_end|>"
            f"<4.0 seconds><|vision_start|>{pads}<|vision_end|>"
        )
    else:
        assert shown == f"<|im_start|>user\n<|vision_start|>{pads}{pads}<|vision_end|>"


@pytest.mark.parametrize("n_frames", [2, 4, 6, 8, 16, 32, 64])
@pytest.mark.parametrize("spacing", [0.25, 3.0])
def test_positions_are_the_librarys(model, tokenizer, n_frames, spacing):
    """Of all tokens in Qwen3-VL; in Qwen2.5-VL but for the text behind the video, see below."""
    size = families.choose_size(model.config, 96, 160)
    seconds = np.arange(n_frames) * spacing
    ids = families.encode_video(tokenizer, model.config, size, seconds)
    mine = families.place_qwen(model.config, ids, size, spacing)

    patch = model.config.vision_config.patch_size
    grid = torch.tensor([[n_frames // 2, size[0] // patch, size[1] // patch]])
    is_video = (torch.tensor([ids]) == model.config.video_token_id).int() * 2  # 0: text, 2: video
    told = {}
    if model.config.model_type == "qwen2_5_vl":
        told["second_per_grid_ts"] = [2 * spacing]
    theirs, _ = model.model.get_rope_index(torch.tensor([ids]), is_video, video_grid_thw=grid, **told)
    n_compared = len(ids) if model.config.model_type == "qwen3_vl" else len(ids) - 1
    assert torch.equal(mine[:, None, :n_compared], theirs[..., :n_compared])


def test_text_goes_on_behind_the_time_of_a_long_video():
    """Qwen2.5-VL by hand: 2 pairs, 60 seconds apart, at 2 a second: times 0 and 120, so text goes on at 121.

    The tokens: one of text, 2 x (1 x 2) of the video, one of text.
    """
    config = make_config("qwen2_5_vl", make_tokenizer())
    ids = [1, *[config.video_token_id] * 4, 2]
    positions = families.place_qwen(config, ids, (28, 56), between=30.0)
    assert positions.tolist() == [[0, 1, 1, 121, 121, 122], [0, 1, 1, 1, 1, 122], [0, 1, 2, 1, 2, 122]]


def test_time_is_rounded_down():
    """Seconds 0, 0.4, 0.8, ... are 0.8 a pair, so 1.6 steps: 0, 1.6, 3.2 are 0, 1, 3."""
    config = make_config("qwen2_5_vl", make_tokenizer())
    ids = [config.video_token_id] * 3
    positions = families.place_qwen(config, ids, (28, 28), between=0.4)
    assert positions[0].tolist() == [0, 1, 3]


def test_a_last_frame_that_is_shown_twice_does_not_change_the_times():
    """Qwen2.5-VL by hand: 3 frames, a second apart, are pairs of 2 seconds: at 2 a second times 0 and 4."""
    made = make_tokenizer()
    config = make_config("qwen2_5_vl", made)
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    video = vlm.Video(model, made, draw_frames(3, 28, 28), [0.5, 1.5, 2.5])
    is_video = video.ids == config.video_token_id
    first = video.positions[0, is_video].min()
    assert (video.positions[0, is_video] - first).unique().tolist() == [0, 4]


def test_a_segment_that_ends_before_it_starts_has_no_times_below_0():
    config = make_config("qwen2_5_vl", make_tokenizer())
    assert families.place_qwen(config, [config.video_token_id] * 3, (28, 28), between=-0.5)[0].tolist() == [0, 0, 0]


def test_an_odd_last_frame_is_shown_twice(model, tokenizer):
    odd = vlm.Video(model, tokenizer, draw_frames(3), SECONDS[:3])
    even = vlm.Video(model, tokenizer, draw_frames(3)[[0, 1, 2, 2]], [*SECONDS[:3], SECONDS[2]])
    assert torch.equal(odd.ids, even.ids)
    mine, theirs = (video.inputs["mm_encoder_outputs"]["video"].pooler_output for video in (odd, even))
    torch.testing.assert_close(mine, theirs)


def test_features_that_were_computed_once_are_the_librarys_own(model, video):
    """Its forward pass on pixels; among the features are those of the first layers."""
    kind = model.config.model_type
    size = families.choose_size(model.config, 96, 160)
    pixels = families.pixel_values(draw_frames(4), size, *families.QWEN_PIXELS[kind])
    patches = families.cut_in_patches(pixels, model.config.vision_config.patch_size)
    with torch.no_grad():
        mine = model(video.ids, **video.inputs, position_ids=video.positions).logits
        theirs = model(
            video.ids,
            pixel_values_videos=patches,
            video_grid_thw=torch.tensor([[2, 4, 8]]),
            position_ids=video.positions,
        ).logits
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-5)


def test_loaded_as_the_library_loads_it(model, directory):
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(directory)
    mine = dict([*model.named_parameters(), *model.named_buffers()])
    expected = dict([*theirs.named_parameters(), *theirs.named_buffers()])
    assert mine.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(mine[name], tensor), name


# ------------------------------------------------------------------------------
# One video, many questions


def continue_positions(video, n):
    behind = video.behind + torch.arange(n)
    return torch.cat([video.positions, behind.expand(3, 1, -1)], -1)


def logp_alone(model, video, branch):
    """Oracle: one ordinary causal sequence, in which text goes on counting behind the video."""
    ids = torch.cat([video.ids, torch.tensor([branch.prompt + branch.answer])], 1)
    positions = continue_positions(video, len(branch.prompt + branch.answer))
    logits = model(ids, **video.inputs, position_ids=positions, use_cache=False).logits[0, :-1]
    logps = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logps[-len(branch.answer) :].sum()


def test_packed_log_probs_and_gradients_equal_separate_ones(model, tokenizer, video):
    branches = [vlm.encode_branch(tokenizer, question, answer) for question in QUESTIONS for answer in ANSWERS[:2]]
    parameters = dpo.freeze_weights(model)  # those that are not frozen
    weights = torch.linspace(-1, 1, len(branches))
    packed, _ = vlm.branch_logps(model, video, branches)
    mine = torch.autograd.grad((packed * weights).sum(), parameters)
    separate = torch.stack([logp_alone(model, video, branch) for branch in branches])
    theirs = torch.autograd.grad((separate * weights).sum(), parameters)
    torch.testing.assert_close(packed, separate, atol=1e-4, rtol=1e-6)
    for gradient, expected in zip(mine, theirs):
        largest = max(1, expected.abs().max().item())
        torch.testing.assert_close(gradient, expected, atol=2e-5 * largest, rtol=1e-4)


@torch.no_grad()
def decode_alone(model, tokenizer, video, question, n):
    """Oracle: greedy, one sequence, without a cache."""
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    prompt = vlm.encode_branch(tokenizer, question).prompt
    said = []
    while len(said) < n and end not in said:
        ids = torch.cat([video.ids, torch.tensor([prompt + said])], 1)
        positions = continue_positions(video, len(prompt + said))
        logits = model(ids, **video.inputs, position_ids=positions, use_cache=False).logits
        said.append(logits[0, -1].argmax().item())
    return tokenizer.decode([token for token in said if token != end], skip_special_tokens=True).strip()


def test_decoding_equals_separate_sequences(model, tokenizer, video):
    [replies] = vlm.decode(model, tokenizer, [video], [QUESTIONS], 8)
    assert [reply.text for reply in replies] == [decode_alone(model, tokenizer, video, q, 8) for q in QUESTIONS]
    assert len({reply.text for reply in replies}) > 1  # else one for another would not be seen


def test_videos_of_different_lengths_are_asked_together(model, tokenizer):
    """Two frames more, another shape, times with more digits: none sees another's padding."""
    videos = [
        vlm.Video(model, tokenizer, draw_frames(4), SECONDS),
        vlm.Video(model, tokenizer, draw_frames(6, 160, 64), np.arange(6) * 60.0),
        vlm.Video(model, tokenizer, draw_frames(2, 64, 64), [100.0, 200.0]),
    ]
    assert len({video.ids.shape[1] for video in videos}) == 3
    asked = [QUESTIONS, QUESTIONS[:1], QUESTIONS[1:]]
    together = vlm.decode(model, tokenizer, videos, asked, 8)
    for video, own, replies in zip(videos, asked, together):
        alone = vlm.Video(model, tokenizer, draw_frames(2), SECONDS[:2])
        alone.__dict__ |= vars(video) | {"cache": None}
        assert [reply.text for reply in replies] == [decode_alone(model, tokenizer, alone, q, 8) for q in own]


def test_a_cache_that_was_padded_is_whole_again(model, tokenizer, video):
    """A video that was asked beside a longer one is asked once more, alone."""
    longer = vlm.Video(model, tokenizer, draw_frames(6, 160, 64), np.arange(6) * 60.0)
    own = vlm.Video(model, tokenizer, draw_frames(4), SECONDS)
    vlm.decode(model, tokenizer, [own, longer], [QUESTIONS[:1], QUESTIONS[:1]], 4)
    assert own.cache.layers[0].keys.shape[2] == own.ids.shape[1]
    assert vlm.decode(model, tokenizer, [own], [QUESTIONS], 8) == vlm.decode(model, tokenizer, [video], [QUESTIONS], 8)


@pytest.mark.parametrize("n_devices", [pytest.param(2, marks=slow), 3, pytest.param(6, marks=slow)])
def test_the_layers_of_deepstack_may_lie_on_several_devices(model, tokenizer, video, n_devices):
    branches = [vlm.encode_branch(tokenizer, *both) for both in zip(QUESTIONS, ANSWERS)]
    whole, _ = vlm.branch_logps(model, video, branches)
    with VirtualDevices():
        parts, first = spread(copy.deepcopy(model), n_devices)
        moved = move_video(video, first)
        split, _ = vlm.branch_logps(parts, moved, branches)
        answers = vlm.decode(parts, tokenizer, [moved], [QUESTIONS], 6)
    torch.testing.assert_close(split.held, whole, atol=1e-4, rtol=1e-5)
    assert answers == vlm.decode(model, tokenizer, [video], [QUESTIONS], 6)


# ------------------------------------------------------------------------------
# The stages


@pytest.fixture
def pairs(tmp_path):
    """Two pairs about each of two videos."""
    world.write_split(tmp_path / "videos", "round1", 2, seed=0)
    rows = []
    for number in range(2):
        for which in range(2):
            video = f"round1_{number:04}.mp4"
            row = {"id": f"{video}/spatial/{which}", "video": video, "kind": "spatial"}
            row |= {"question": QUESTIONS[which], "chosen": ANSWERS[which], "rejected": ANSWERS[2]}
            rows.append(row)
    common.write_jsonl(tmp_path / "pairs.jsonl", rows)
    return tmp_path / "pairs.jsonl"


def run(main, name, *options, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
    main()


@pytest.mark.parametrize("tune", ["full", "all", "lora"])
def test_dpo_trains_it(directory, pairs, tmp_path, tune, monkeypatch):
    """At the first step policy and reference are one: the loss is ln 2. What is saved opens again."""
    options = ["--model", directory, "--input", pairs, "--videos", tmp_path / "videos" / "round1"]
    options += ["--output", tmp_path / "model", "--frames", 4, "--tune", tune, "--lr", "1e-3", "--epochs", 4]
    run(dpo.main, "dpo", *options, "--beta", 1, "--videos-per-step", 1, monkeypatch=monkeypatch)
    first, *_, last = common.read_jsonl(tmp_path / "model" / "metrics.jsonl")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert last["rewards/margins"] > 0.1

    before = vlm.load_model(directory, ["cpu"])
    after = vlm.load_model(tmp_path / "model", ["cpu"])
    tokenizer = vlm.load_tokenizer(tmp_path / "model")
    rewards = []
    branches = [vlm.encode_branch(tokenizer, QUESTIONS[0], answer) for answer in (ANSWERS[0], ANSWERS[2])]
    for model in (before, after):
        video = vlm.Video(model, tokenizer, draw_frames(4), SECONDS)
        rewards.append(vlm.branch_logps(model, video, branches)[0])
    chosen, rejected = rewards[1] - rewards[0]
    assert chosen > rejected
    if tune != "lora":
        for name, weight in before.named_parameters():
            is_moved = not torch.equal(weight, dict(after.named_parameters())[name])
            assert is_moved == (tune == "all" or "language_model" in name or "lm_head" in name), name
        theirs = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
        for name, tensor in theirs.named_parameters():
            assert torch.equal(dict(after.named_parameters())[name], tensor), name
        return

    run(merge.main, "merge", tmp_path / "model", tmp_path / "merged", monkeypatch=monkeypatch)
    merged = vlm.load_model(tmp_path / "merged", ["cpu"])
    video = vlm.Video(merged, tokenizer, draw_frames(4), SECONDS)
    torch.testing.assert_close(vlm.branch_logps(merged, video, branches)[0], rewards[1], atol=1e-3, rtol=1e-5)


@pytest.fixture
def clips(tmp_path):
    """Four clips of three shapes and lengths, with a question and an answer about each."""
    (tmp_path / "videos").mkdir()
    rows = []
    for number, (n, height, width) in enumerate([(8, 96, 160), (24, 160, 96), (8, 64, 64), (48, 96, 160)]):
        name = f"{number}.mp4"
        writer = cv2.VideoWriter(str(tmp_path / "videos" / name), cv2.VideoWriter_fourcc(*"mp4v"), 8, (width, height))
        for frame in draw(n, height, width):
            writer.write(frame)
        writer.release()
        row = {"id": f"{name}/spatial/0", "video": name, "kind": "spatial"}
        rows.append(row | {"question": QUESTIONS[number % 3], "initial": ANSWERS[number % 3]})
    common.write_jsonl(tmp_path / "responses.jsonl", rows)
    return tmp_path


def critique_options(directory, clips, output, *more):
    options = ["--model", directory, "--input", clips / "responses.jsonl", "--videos", clips / "videos"]
    options += ["--output", clips / output, "--frames", 4, "--max-new-tokens", 6, "--devices", "cpu"]
    return [*map(str, options), *map(str, more)]


@slow
def test_several_videos_at_a_time_and_several_processes(directory, clips, monkeypatch):
    """Four prefixes of four lengths: as one batch and by two processes of torchrun, byte for byte as one by one."""
    run(critique.main, "critique", *critique_options(directory, clips, "one.jsonl"), monkeypatch=monkeypatch)
    one = (clips / "one.jsonl").read_bytes()
    texts = [row["critique"] for row in common.read_jsonl(clips / "one.jsonl")]
    assert len(set(texts)) > 1
    batch = critique_options(directory, clips, "four.jsonl", "--videos-per-batch", 4)
    run(critique.main, "critique", *batch, monkeypatch=monkeypatch)
    assert (clips / "four.jsonl").read_bytes() == one

    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "critique.py"]
    words += critique_options(directory, clips, "two.jsonl", "--videos-per-batch", 2)
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (clips / "two.jsonl").read_bytes() == one


def test_the_page_draws_its_frames_and_its_tokens(directory, clips, monkeypatch):
    """96 x 160 pixels, 4 frames: a strip of 64 x 4 * 107, or as many as the model's own rounding of the shape has."""
    options = critique_options(directory, clips, "critiques.jsonl")
    run(critique.main, "critique", *options, monkeypatch=monkeypatch)
    shown = page_frames.read_how_shown(clips / "critiques.jsonl")
    row = common.read_jsonl(clips / "critiques.jsonl")[0]
    url = page_frames.make_strip(shown, row)
    strip = cv2.imdecode(np.frombuffer(base64.b64decode(url.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)
    height, width = families.choose_size(shown.config, 96, 160)
    assert strip.shape == (64, 4 * round(64 * width / height), 3)

    pairs = [row | {"chosen": ANSWERS[0], "rejected": ANSWERS[1]}]
    packed = page_tokens.lay_out(shown.model, clips / "critiques.jsonl", pairs)
    owners = [owner for _, owner in packed["tokens"]]
    assert sorted(set(owners)) == [-1, 0, 1]
    assert any("visual tokens" in text for text, _ in packed["tokens"])


def rename(name):
    """Give a tensor of Qwen2.5-VL's published files the name that it has in memory."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def test_old_and_new_names_of_tensors_in_one_file_and_in_several(tmp_path):
    """Published files of Qwen2.5-VL have visual.* and model.layers.*; since then they have longer names in memory."""
    torch.manual_seed(0)
    made = make_tokenizer()
    config = make_config("qwen2_5_vl", made, tie_word_embeddings=False)
    theirs = transformers.AutoModelForImageTextToText.from_config(config)
    theirs.save_pretrained(tmp_path / "old", max_shard_size="200KB")
    files = sorted((tmp_path / "old").glob("*.safetensors"))
    assert len(files) > 1
    old = {}
    for file in files:
        old |= safetensors.torch.load_file(file)
    assert "visual.blocks.0.attn.qkv.weight" in old and "model.layers.0.mlp.up_proj.weight" in old
    (tmp_path / "new").mkdir()
    shutil.copy(tmp_path / "old" / "config.json", tmp_path / "new")
    new = {rename(name): tensor for name, tensor in old.items()}
    safetensors.torch.save_file(new, tmp_path / "new" / "model.safetensors", {"format": "pt"})
    for name in ("old", "new"):
        mine = dict(vlm.load_model(tmp_path / name, ["cpu"]).named_parameters())
        for key, tensor in theirs.named_parameters():
            assert torch.equal(mine[key], tensor), key


def test_a_tied_head_stays_tied(request, tmp_path):
    """As in Qwen2.5-VL-3B and Qwen3-VL-4B, whose files have no head."""
    for kind in KINDS:
        made = make_tokenizer()
        config = make_config(kind, made, tie_word_embeddings=True)
        config.text_config.tie_word_embeddings = True
        transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / kind)
        made.save_pretrained(tmp_path / kind)
        model = vlm.load_model(tmp_path / kind, ["cpu"])
        assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_frame_tokens_is_an_option_of_the_stages_and_of_the_trained_model(directory, monkeypatch):
    """More tokens a frame are another size, and other bytes; a model that is trained keeps them."""
    argv = ["generate.py", "--model", directory, "--input", ".", "--output", "o.jsonl"]
    monkeypatch.setattr(sys, "argv", [*map(str, argv), "--frame-tokens", "16", "40"])
    model, _ = vlm.load(generate.parse_args())
    assert families.choose_size(model.config, 96, 160) == families.fit(
        96, 160, 2 * model.config.vision_config.patch_size, 16, 40
    )
    for wrong in ([0, 40], [40, 16], 5, [True, 2], "16 40"):
        with pytest.raises(common.InputError, match="frame-tokens"):
            vlm.check_model(directory, (), wrong)


def test_a_trained_model_keeps_what_its_base_says_of_frame_tokens(directory, pairs, tmp_path, monkeypatch):
    """As --frames is, the option is given to every stage: with LoRA it could not be kept."""
    options = ["--model", directory, "--input", pairs, "--videos", tmp_path / "videos" / "round1"]
    options += ["--output", tmp_path / "model", "--frames", 4, "--frame-tokens", 6, 20]
    run(dpo.main, "dpo", *options, monkeypatch=monkeypatch)
    assert common.read_json(tmp_path / "model" / "config.json")["frame_tokens"] == [4, 12]


def test_frames_that_were_fitted_are_not_fitted_again(directory, tokenizer):
    """60 x 108 pixels have 5 x 10 tokens where 64 are asked for. To fit these frames again would make them 5 x 11."""
    model = vlm.load_model(directory, ["cpu"], frame_tokens=[64, 64])
    fitted = families.shrink(draw_frames(1, 60, 108)[0], model.config)
    video = vlm.Video(model, tokenizer, np.stack([fitted, fitted]), [0.0, 1.0])
    n_visual = (video.ids == model.config.video_token_id).sum()
    assert n_visual == 5 * 10


def test_room_is_counted_in_positions(model, tokenizer, monkeypatch):
    """A video of fewer positions than tokens leaves room where its tokens would leave none; and the other way round."""
    video = vlm.Video(model, tokenizer, draw_frames(64), np.arange(64) * 0.01)
    n_tokens = video.ids.shape[1]
    n_prompt = len(vlm.encode_branch(tokenizer, QUESTIONS[0]).prompt)
    assert video.behind + n_prompt + 30 < n_tokens
    monkeypatch.setattr(model.config.text_config, "max_position_embeddings", n_tokens)
    pair = {"prompt": QUESTIONS[0], "chosen": ANSWERS[0], "rejected": ANSWERS[1]}
    vlm.decode(model, tokenizer, [video], [QUESTIONS[:1]], 2)
    dpo.pair_logps(model, tokenizer, video, [pair])

    monkeypatch.setattr(model.config.text_config, "max_position_embeddings", video.behind + n_prompt)
    with pytest.raises(common.InputError, match=f"{video.behind} positions of the video"):
        vlm.decode(model, tokenizer, [video], [QUESTIONS[:1]], 2)
    with pytest.raises(common.InputError, match=f"{video.behind} positions of the video"):
        dpo.pair_logps(model, tokenizer, video, [pair])


def test_what_reads_an_output_shows_its_videos_as_it_saw_them(directory, clips, monkeypatch, capsys):
    """meta.json has --frame-tokens: for the page and for tools.prompt."""
    options = critique_options(directory, clips, "c.jsonl", "--frame-tokens", 16, 40)
    run(critique.main, "critique", *options, monkeypatch=monkeypatch)
    shown = page_frames.read_how_shown(clips / "c.jsonl")
    assert shown.config.frame_tokens == [16, 40]
    row = common.read_jsonl(clips / "c.jsonl")[0]
    frames = page_frames.read_frames(shown, row)
    seconds = prefix.sample_segment(shown.root, row, 4, shown.config).seconds
    model = vlm.load_model(directory, ["cpu"], frame_tokens=[16, 40])
    video = vlm.Video(model, vlm.load_tokenizer(directory), frames, seconds)
    run(prompt.main, "prompt", "--model", directory, clips / "c.jsonl", row["id"], monkeypatch=monkeypatch)
    assert f"4 frames, {video.ids.shape[1]} tokens" in capsys.readouterr().out
    without = {key: value for key, value in row.items() if key != "video"}
    common.write_jsonl(clips / "by_hand.jsonl", [without])
    with pytest.raises(common.InputError, match="the row needs `video`"):
        run(prompt.main, "prompt", "--model", directory, clips / "by_hand.jsonl", row["id"], monkeypatch=monkeypatch)


def test_frame_tokens_is_refused_for_internvl():
    config = vlm.load_model(MODEL, ["cpu"]).config
    with pytest.raises(common.InputError, match="--frame-tokens is for Qwen-VL"):
        families.take_frame_tokens(config, [16, 40])


def test_memory_counts_what_a_model_has(directory, monkeypatch, capsys):
    """Weights as in the file, 4 bytes each; and the cache of at most 12 tokens a pair, and what is between."""
    run(memory.main, "memory", directory, "--dtype", "float32", "--frames", 4, monkeypatch=monkeypatch)
    assert "48 tokens of the video" in capsys.readouterr().out  # 2 pairs of 12 + 12
    config = vlm.load_model(directory, ["cpu"]).config
    args = memory.parse_args([str(directory), "--dtype", "float32", "--frames", "4"])
    [row] = memory.plan(config, ["cpu"], args)
    n_weights = sum(weight.numel() for weight in vlm.load_model(directory, ["cpu"]).parameters())
    assert row.weights == 4 * n_weights
    assert row.cache == 48 * 2 * 6 * 2 * 8 * 4  # tokens, keys and values, layers, kv heads, head size, bytes


def test_a_row_is_shown_as_the_model_gets_it(directory, pairs, tmp_path, monkeypatch, capsys):
    """tools.prompt reads the video, on which its tokens depend."""
    meta = {"root": str(tmp_path / "videos" / "round1"), "arguments": {"frames": 8}}
    common.write_json(common.meta_path(pairs), meta)
    run(prompt.main, "prompt", "--model", directory, pairs, "round1_0000.mp4/spatial/0", monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    model = vlm.load_model(directory, ["cpu"])
    sample = prefix.sample_segment(meta["root"], {"video": "round1_0000.mp4"}, 8, model.config)
    video = vlm.Video(model, vlm.load_tokenizer(directory), sample.frames, sample.seconds)
    assert f"8 frames, {video.ids.shape[1]} tokens" in said
    if model.config.model_type == "qwen3_vl":
        assert "... pairs of frames 2 to 3 in the same way ..." in said


# ------------------------------------------------------------------------------
# What is refused, and InternVL's later versions


def test_a_thinking_variant_is_refused_by_name(directory, tmp_path):
    """Its template opens <think> where an answer begins."""
    made = make_tokenizer()
    made.chat_template = CHAT.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
    )
    made.save_pretrained(tmp_path)
    with pytest.raises(common.InputError, match="opens <think>.*Instruct"):
        vlm.load_tokenizer(tmp_path)


@pytest.mark.parametrize("key", ["temporal_patch_size", "spatial_merge_size"])
def test_other_patches_than_the_published_ones_are_refused(directory, tmp_path, key):
    shutil.copytree(directory, tmp_path / "model")
    config = common.read_json(tmp_path / "model" / "config.json")
    config["vision_config"][key] = 1
    common.write_json(tmp_path / "model" / "config.json", config)
    with pytest.raises(common.InputError, match=f"vision_config.{key} is 1; only 2"):
        vlm.check_model(tmp_path / "model")


@pytest.mark.parametrize("mark", ["<|vision_start|>", "<|vision_end|>", "<|video_pad|>"])
def test_a_tokenizer_without_the_marks_of_a_video_is_refused(directory, tmp_path, mark):
    """Else they would be spelled, letter by letter."""
    shutil.copytree(directory, tmp_path / "model")
    others = [token for token in qwen_processors.SPECIAL if token != mark]
    make_tokenizer(others).save_pretrained(tmp_path / "model")
    with pytest.raises(common.InputError, match=f"{re.escape(mark)} is not the control token"):
        vlm.check_model(tmp_path / "model")


@pytest.mark.parametrize("kind", ["qwen3_5", "qwen3_vl_moe", "qwen2_vl", "llava"])
def test_other_classes_are_refused_and_those_that_fit_are_named(kind, tmp_path):
    common.write_json(tmp_path / "config.json", {"model_type": kind})
    with pytest.raises(common.InputError, match=f"{kind}, not internvl, qwen3_vl or qwen2_5_vl"):
        vlm.find_base(tmp_path)


@pytest.mark.parametrize("text", ["qwen2", "qwen3"])
def test_internvl_3_and_3_5_with_their_own_settings(text, tmp_path):
    """InternVL3-...-hf has Qwen2's language model, InternVL3_5-...-HF Qwen3's; at a tiny size."""
    torch.manual_seed(0)
    made = make_internvl_tokenizer()
    language = {
        "model_type": text,
        "vocab_size": len(made),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6} if text == "qwen2" else None,
        "use_sliding_window": False,
        "bos_token_id": None,
        "eos_token_id": made.eos_token_id,
        "initializer_range": 0.2,
    }
    if text == "qwen3":
        language |= {"head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": [56, 56], "patch_size": [14, 14], "use_mean_pooling": True, "norm_type": "layer_norm"}
    config = transformers.InternVLConfig(
        vision_config=vision,
        text_config=language,
        image_token_id=made.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    transformers.InternVLForConditionalGeneration(config).save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    model = vlm.load_model(tmp_path, ["cpu"])
    own = vlm.load_tokenizer(tmp_path)
    video = vlm.Video(model, own, draw_frames(2))
    branches = [vlm.encode_branch(own, question, answer) for question in QUESTIONS for answer in ANSWERS]
    packed, _ = vlm.branch_logps(model, video, branches)
    alone = []
    for branch in branches:
        ids = torch.cat([video.ids, torch.tensor([branch.prompt + branch.answer])], 1)
        logps = model(ids, **video.inputs, use_cache=False).logits[0, :-1].log_softmax(-1)
        alone.append(logps.gather(1, ids[0, 1:, None])[-len(branch.answer) :, 0].sum())
    torch.testing.assert_close(packed, torch.stack(alone), atol=1e-4, rtol=1e-6)
