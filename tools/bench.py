"""Time the shared video prefix against what one would use instead.

    python -m tools.bench train            # a DPO step
    python -m tools.bench decode --long    # answers, 8,192 video tokens
    python -m tools.bench load             # a larger checkpoint
    python -m tools.bench scale            # a pair's cost, a long run's cost
    python -m tools.bench profile          # where a training step's time goes

The model is a random InternVL of a given shape.

    train     ours, a plain step on two sequences, and TRL where it is
              installed (pip install trl==1.16.0 pillow)
    decode    ours, one generate a question, one left-padded batch; then
              tokens a second by the number of videos at a time
    load      bfloat16 in shards, read to float32 on a CPU: ours,
              from_pretrained; peak memory in multiples of the model's
    scale     seconds a pair by questions and frames; seconds a video in the
              first and in the last tenth of a run over 4,000 videos
    profile   our own training step by kind of operation

In train, decode and load every configuration is a process of its own (so
that its peak memory is its own); they take turns, --rounds times. Printed
are medians and ratios of one run. Their results are compared before any of
their times is believed.
"""

import argparse
import functools
import itertools
import multiprocessing
import os
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import tokenizers
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutputWithPooling

import common
import critique
import dpo
import outputs
import prompts
import vlm
from shapes import world

# The language model
LAYERS = 8
HIDDEN = 512
MLP = 1408
HEADS = 8
VOCABULARY = 32000

# A frame
IMAGE = 448  # pixels a side
TOKENS = 256  # visual tokens

# What is asked and answered; a word is a token
QUESTIONS = 6
QUESTION_WORDS = 20
ANSWER_WORDS = 63  # and the end of turn: 64 answer tokens
BETA = 0.1

# One chat template for our stages and for TRL's processor, which finds images by their placeholders
SPECIAL = ("<unk>", "<|im_start|>", vlm.END_OF_TURN, "<img>", "</img>", "<IMG_CONTEXT>")
CHAT = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# ------------------------------------------------------------------------------
# What all configurations share: a model, pairs, frames


def write_model(directory, layers: int = LAYERS, dtype=torch.float32):
    """Write a checkpoint in shards: a random model of this shape, with a small vision tower."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE,
        "patch_size": 14,
    }
    text = {
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=TOKENS,
        tie_word_embeddings=False,
    )
    model = InternVLForConditionalGeneration(config).to(dtype)
    model.save_pretrained(directory, max_shard_size="250MB")
    tokenizer.save_pretrained(directory)


def make_tokenizer():
    """Make a tokenizer with a token for each of the words w0, w1, w2, ..."""
    words = [*SPECIAL]
    for n in range(VOCABULARY - len(SPECIAL)):
        words.append(f"w{n}")
    ids = {word: n for n, word in enumerate(words)}

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special = [tokenizers.AddedToken(token, normalized=False) for token in SPECIAL]
    backend.add_special_tokens(special)

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token=vlm.END_OF_TURN,
        pad_token=vlm.END_OF_TURN,
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def make_pairs(n: int = QUESTIONS) -> list[dict]:
    """Make n pairs of random words. Questions are equally long, and so are answers."""
    rng = np.random.default_rng(0)

    def say(length):
        return " ".join(f"w{word}" for word in rng.integers(100, 30000, length))

    pairs = []
    for number in range(n):
        question = say(QUESTION_WORDS)
        pair = {
            "id": str(number),
            "question": question,
            "prompt": prompts.fill(prompts.DEFAULT.answer, question=question),
            "chosen": say(ANSWER_WORDS),
            "rejected": say(ANSWER_WORDS),
        }
        pairs.append(pair)
    return pairs


def make_prompts() -> list[str]:
    """Make the prompts that ask the pairs' questions."""
    return [pair["prompt"] for pair in make_pairs()]


def encode_pairs(tokenizer, pairs: list[dict]) -> list[vlm.Branch]:
    """Encode 2 B branches of B pairs: the chosen answers of all, then the rejected of all."""
    branches = []
    for side in ("chosen", "rejected"):
        for pair in pairs:
            branches.append(vlm.encode_branch(tokenizer, pair["prompt"], pair[side]))
    return branches


def make_frames(n: int) -> np.ndarray:
    """Make n frames of noise, uint8 (n, IMAGE, IMAGE, 3)."""
    return np.random.default_rng(1).integers(0, 256, (n, IMAGE, IMAGE, 3), np.uint8)


def load_to_decode(directory):
    """Load model and tokenizer on a CPU, as the stages do."""
    return vlm.load_model(directory, ["cpu"]), vlm.load_tokenizer(directory)


def load_to_train(directory):
    """Load model and tokenizer on a CPU, and freeze what dpo.py freezes.

    Returns:
        model, tokenizer, list of the weights that are trained
    """
    model, tokenizer = load_to_decode(directory)
    weights = dpo.freeze_weights(model)
    return model, tokenizer, weights


# ------------------------------------------------------------------------------
# train: each function sets a configuration up and returns its step. A step does one round and
# returns (number of pairs, result); results are compared by compare_training


def train_ours(directory, args) -> Callable:
    """Set up our training: a step is all pairs of a video, in one packed forward and backward.

    The reference comes first; each of the two reads the video anew, as in dpo.py.
    """
    model, tokenizer, weights = load_to_train(directory)
    frames = make_frames(args.frames)

    def compute_logps(pairs):
        video = vlm.Video(model, tokenizer, frames)
        sums, _ = dpo.pair_logps(model, tokenizer, video, pairs)
        return sums  # (2, B)

    def train(pairs):
        with torch.no_grad():
            reference = compute_logps(pairs)
        sums = compute_logps(pairs)
        mean_loss(sums, reference).backward()
        norm = grad_norm(weights)
        model.zero_grad()
        return {"logps": sums.flatten().tolist(), "grad_norm": norm}

    first_pair = make_pairs()[:1]
    first_norm = train(first_pair)["grad_norm"]  # what the other configurations have at first

    def step():
        result = train(make_pairs())
        return QUESTIONS, result | {"first": first_norm}

    return step


def train_plain(directory, args) -> Callable:
    """Set up plain training: a step is one pair, as a batch of two whole sequences.

    The head runs on the answers alone. The reference is taken to be known: it costs nothing here.
    """
    model, tokenizer, weights = load_to_train(directory)
    pairs = make_pairs()
    frames = make_frames(args.frames)
    prefix = vlm.encode_prefix(tokenizer, model.config, args.frames)
    branches = encode_pairs(tokenizer, pairs)
    turn = itertools.cycle(range(len(pairs)))

    def step():
        number = next(turn)
        chosen = branches[number]
        rejected = branches[number + len(pairs)]
        # (2, tokens); both are equally long, so nothing is padded
        ids = torch.tensor(
            [prefix + branch.prompt + branch.answer for branch in (chosen, rejected)]
        )
        n_answer = len(chosen.answer)
        video = vlm.Video(model, tokenizer, frames)
        features = video.inputs["mm_encoder_outputs"]["image"].pooler_output.repeat(2, 1, 1)
        logits = model(
            ids,
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=features)},
            use_cache=False,
            logits_to_keep=n_answer + 1,
        ).logits[:, :-1]  # (2, answer tokens, vocabulary)
        logps = logits.log_softmax(-1).gather(2, ids[:, -n_answer:, None])
        sums = logps.sum((1, 2))  # (2,)
        mean_loss(sums[:, None], sums[:, None].detach()).backward()
        norm = grad_norm(weights)
        model.zero_grad()
        return 1, {"pair": number, "logps": sums.tolist(), "grad_norm": norm}

    return step


def mean_loss(sums, reference):
    """Compute DPO's mean loss of B pairs from log-probs (2, B): the policy's, the reference's."""
    policy_chosen, policy_rejected = sums
    ref_chosen, ref_rejected = reference
    losses, _, _ = dpo.dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, BETA)
    return losses.mean()


def grad_norm(weights) -> float:
    """Compute the norm of all gradients together."""
    return torch.stack([weight.grad.norm() for weight in weights]).norm().item()


def train_trl(directory, args, completions_only: bool = False) -> Callable:
    """Set up TRL's DPOTrainer as it comes: a step is the first pair, its frames a list of images.

    Args:
        completions_only: run the head on the answers alone, which TRL does by itself only on CUDA
    """
    trainer, batch, weights = load_trl(directory, args, completions_only)

    def step():
        inputs = trainer._prepare_inputs(dict(batch))
        trainer.compute_loss(trainer.model.train(), inputs).backward()
        norm = grad_norm(weights)
        trainer.model.zero_grad()
        metrics = trainer._metrics["train"]
        logps = [metrics["logps/chosen"][-1], metrics["logps/rejected"][-1]]
        return 1, {"pair": 0, "logps": logps, "grad_norm": norm}

    return step


def train_trl_completions(directory, args) -> Callable:
    """Set up TRL's DPOTrainer with its head on the answers alone."""
    return train_trl(directory, args, completions_only=True)


def load_trl(directory, args, completions_only: bool):
    """Load the same model into TRL's trainer.

    Returns:
        trainer, a batch of the first pair, list of the weights that are trained
    """
    import datasets
    import trl
    import trl.trainer.utils

    def use_triton(device):
        return completions_only

    # This alone decides in TRL whether the head runs on completions only
    trl.trainer.utils._use_triton = use_triton
    config = trl.DPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=1,
        use_cpu=True,
        bf16=False,
        remove_unused_columns=False,
        max_length=None,
        report_to="none",
        gradient_checkpointing=False,
        beta=BETA,
    )
    trainer = trl.DPOTrainer(
        model=str(directory),
        args=config,
        train_dataset=datasets.Dataset.from_list([make_trl_row(args.frames)]),
        processing_class=make_trl_processor(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    weights = dpo.freeze_weights(trainer.model)
    return trainer, batch, weights


def make_trl_processor():
    """Make what TRL needs where torchvision is missing: a processor of images, but not of videos.

    Images are resized by Pillow.
    """
    from transformers import GotOcr2ImageProcessorPil, InternVLProcessor, ProcessorMixin

    class Processor(InternVLProcessor):
        def __init__(self, image_processor, tokenizer, image_seq_length=TOKENS, **_):
            self.image_seq_length = image_seq_length
            self.start_image_token = "<img>"
            self.end_image_token = "</img>"
            self.image_token = "<IMG_CONTEXT>"
            self.video_token = None
            self.start_image_token_id = tokenizer.convert_tokens_to_ids("<img>")
            self.end_image_token_id = tokenizer.convert_tokens_to_ids("</img>")
            self.image_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
            self.multimodal_pattern = re.compile("(?P<image>" + re.escape(self.image_token) + ")")
            # Not InternVLProcessor's __init__, which asks for a video processor
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=CHAT)

    images = GotOcr2ImageProcessorPil(
        size={"height": IMAGE, "width": IMAGE},
        crop_to_patches=False,
        image_mean=vlm.IMAGE_MEAN,
        image_std=vlm.IMAGE_STD,
    )
    return Processor(images, make_tokenizer())


def make_trl_row(n_frames: int) -> dict:
    """Make a row of TRL's data set: the first pair, with the words of vlm.encode_prefix."""
    from PIL import Image

    def text(words):
        return {"type": "text", "text": words}

    pair = make_pairs()[0]
    content = []
    for n in range(n_frames):
        content += [text(f"Frame{n + 1}: "), {"type": "image"}, text("\n")]
    content.append(text(pair["prompt"]))
    return {
        "prompt": [{"role": "user", "content": content}],
        "images": [Image.fromarray(frame) for frame in make_frames(n_frames)],
        "chosen": [{"role": "assistant", "content": [text(pair["chosen"])]}],
        "rejected": [{"role": "assistant", "content": [text(pair["rejected"])]}],
    }


# ------------------------------------------------------------------------------
# decode and load: likewise; a step returns (number of answers, or 1 load; result)


def decode_ours(directory, args) -> Callable:
    """Set up our decoding: all questions as one batch on top of one cache of the video."""
    model, tokenizer = load_to_decode(directory)
    prompts = make_prompts()
    frames = make_frames(args.frames)

    def step():
        video = vlm.Video(model, tokenizer, frames)
        [answers] = vlm.decode(model, tokenizer, [video], [prompts], ANSWER_WORDS)
        return len(prompts), {"answers": [text for text, _ in answers]}

    return step


def decode_videos(directory, args, n_videos: int) -> Callable:
    """Set up our decoding of the answers about several videos at a time, all prefilled before."""
    model, tokenizer = load_to_decode(directory)
    videos = [vlm.Video(model, tokenizer, make_frames(args.frames)) for _ in range(n_videos)]
    asked = [make_prompts()] * n_videos
    vlm.decode(model, tokenizer, videos, asked, 1)

    def step():
        answers = vlm.decode(model, tokenizer, videos, asked, ANSWER_WORDS)
        return n_videos * QUESTIONS, {"answers": [text for text, _ in answers[0]]}

    return step


def decode_alone(directory, args, batch: int = 1) -> Callable:
    """Set up transformers' generate on whole prompts, each with the pixels of its frames.

    Args:
        batch: number of questions at a time
    """
    model, tokenizer = load_to_decode(directory)
    prefix = vlm.encode_prefix(tokenizer, model.config, args.frames)
    prompts = []
    for prompt in make_prompts():
        prompts.append(prefix + vlm.encode_branch(tokenizer, prompt).prompt)
    assert len(set(map(len, prompts))) == 1, "the questions are equally long, so nothing is padded"
    pixels = vlm.pixel_values(make_frames(args.frames), (IMAGE, IMAGE))  # (F, 3, IMAGE, IMAGE)
    end = tokenizer.eos_token_id

    @torch.no_grad()
    def step():
        answers = []
        for first in range(0, len(prompts), batch):
            ids = torch.tensor(prompts[first : first + batch])  # (batch, prompt)
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=pixels.repeat(len(ids), 1, 1, 1),  # (batch F, 3, IMAGE, IMAGE)
                do_sample=False,
                max_new_tokens=ANSWER_WORDS,
                eos_token_id=end,
                pad_token_id=end,
            )  # (batch, prompt + answer)
            answers += tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        return len(prompts), {"answers": answers}

    return step


def decode_batch(directory, args) -> Callable:
    """Set up transformers' generate on all questions at a time."""
    return decode_alone(directory, args, batch=QUESTIONS)


def load_ours(directory, args) -> Callable:
    """Set up vlm.load_model to float32."""
    return lambda: read_all(vlm.load_model(directory, ["cpu"]))


def load_unchecked(directory, args) -> Callable:
    """Set up vlm.load_model to float32, without its look for numbers that are not finite."""

    def look_at_nothing(*_):
        return None

    vlm.placement.check_finite = look_at_nothing  # in this process alone
    return load_ours(directory, args)


def load_bfloat16(directory, args) -> Callable:
    """Set up vlm.load_model to bfloat16, the type in the files."""
    return lambda: read_all(vlm.load_model(directory, ["cpu"], torch.bfloat16))


def load_transformers(directory, args) -> Callable:
    """Set up from_pretrained to float32."""
    load = InternVLForConditionalGeneration.from_pretrained
    return lambda: read_all(load(directory, dtype=torch.float32))


def read_all(model):
    """Add up all weights: only then are they really read from the disk."""
    total = 0
    n_bytes = 0
    for weight in model.parameters():
        total += weight.sum(dtype=torch.float64).item()
        n_bytes += weight.nbytes
    return 1, {"sum": total, "GiB": n_bytes / 2**30}


# ------------------------------------------------------------------------------
# The processes take turns


class Turn(NamedTuple):
    """What a process reports of one round."""

    seconds: float  # of one unit: a pair, an answer, a load
    result: dict
    gib: float  # peak memory so far, above that of the bare interpreter


class Figures(NamedTuple):
    """What all rounds of a configuration gave; --json writes it with these names."""

    seconds: list[float]  # of one unit, for each round but the first, which warms up
    results: list[dict]  # of every round
    GiB: float  # peak memory above that of the bare interpreter


def take_turns(configurations: dict[str, Callable], directory, args) -> dict[str, Figures]:
    """Run every configuration in a process of its own: a round to warm up, then --rounds more.

    Args:
        configurations: {name: function that sets it up}
    """
    pipes = {}
    for name, configuration in configurations.items():
        pipes[name] = start_worker(configuration, directory, args)

    turns = {name: [] for name in configurations}
    for number in range(args.rounds + 1):
        note = " (to warm up)" if number == 0 else ""
        for name, pipe in pipes.items():
            pipe.send("go")
            turn = pipe.recv()
            turns[name].append(turn)
            print(f"  {name}: {turn.seconds:.2f} s, {turn.gib:.2f} GiB{note}", flush=True)
    for pipe in pipes.values():
        pipe.send("stop")
    return {name: collect(of_one) for name, of_one in turns.items()}


def start_worker(configuration: Callable, directory, args):
    """Start a configuration's process, and wait until it is set up -> our end of the pipe."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    arguments = (theirs, configuration, directory, args)
    spawn.Process(target=worker, args=arguments, daemon=True).start()
    theirs.close()  # so that recv fails, and does not wait forever, if the process dies
    assert ours.recv() == "ready"
    return ours


def worker(pipe, configuration: Callable, directory, args):
    """Set a configuration up, then do a round of it whenever the pipe says "go"."""
    bare = peak_gib()
    step = configuration(directory, args)
    pipe.send("ready")
    while pipe.recv() == "go":
        started = time.perf_counter()
        n_units, result = step()
        seconds = (time.perf_counter() - started) / n_units
        pipe.send(Turn(seconds, result, peak_gib() - bare))


def peak_gib() -> float:
    """Get the peak memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def collect(turns: list[Turn]) -> Figures:
    """Collect the figures of a configuration's rounds, of which the first one warmed up."""
    seconds = [turn.seconds for turn in turns[1:]]
    results = [turn.result for turn in turns]
    return Figures(seconds, results, turns[-1].gib)


def print_table(figures: dict[str, Figures], unit: str):
    """Print medians of seconds a unit, their ratios to ours, and peak memory."""
    ours = statistics.median(figures["ours"].seconds)
    print(f"\n{'':24}{'s a ' + unit:>14}{'ours is faster':>16}{'peak GiB':>10}")
    for name, figure in figures.items():
        seconds = statistics.median(figure.seconds)
        print(f"{name:24}{seconds:14.2f}{seconds / ours:15.1f}x{figure.GiB:10.2f}")


def to_json(figures: dict[str, Figures]) -> dict[str, dict]:
    """Turn figures into what --json writes."""
    return {name: figure._asdict() for name, figure in figures.items()}


# ------------------------------------------------------------------------------
# What is counted: floating point operations


def forward_flops(config, n_frames: int, branches: list[vlm.Branch]) -> float:
    """Count the FLOPs (2 a multiply-add) of one forward pass over [video | branches].

    Language model and head; attention as its causal half, the head on answers alone.
    """
    n_video = n_frames * (TOKENS + 3) + 2  # Frame1: <img> ... </img>; before it the user's turn
    text = config.text_config
    projections = 4 * text.hidden_size**2 + 3 * text.hidden_size * text.intermediate_size
    weights = text.num_hidden_layers * projections

    n_tokens = n_video
    n_answer = 0
    seen = n_video**2 / 2  # (token, token that it sees) pairs
    for prompt, answer in branches:
        length = len(prompt) + len(answer)
        n_tokens += length
        n_answer += len(answer)
        seen += length * n_video + length**2 / 2

    attention = 4 * text.num_hidden_layers * text.hidden_size * seen
    head = 2 * text.hidden_size * text.vocab_size * n_answer
    return 2 * weights * n_tokens + attention + head


def train_flops(config, args) -> float:
    """Count the model FLOPs of a pair in our training step.

    In forward passes: 1 for the reference, 1 forward, 2 backward; nothing is computed twice.
    """
    branches = encode_pairs(make_tokenizer(), make_pairs())
    return 4 * forward_flops(config, args.frames, branches) / QUESTIONS


def matmul_rate() -> float:
    """Measure the best rate of square float32 matrix products, FLOP/s.

    It is the machine's limit, as far as this program can see it.
    """
    matrix = torch.randn(2048, 2048)
    best = float("inf")
    for _ in range(40):  # long enough for the processor to reach its clock rate
        started = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - started)
    return 2 * 2048**3 / best


def print_share(flops: float, seconds: float, rate: float):
    """Print a pair's FLOPs, and the FLOP/s of our step as a share of the matrix products' rate."""
    print(
        f"ours: {flops / 1e12:.2f} model TFLOP a pair, {flops / seconds / 1e9:.0f} GFLOP/s, "
        f"{flops / seconds / rate:.0%} of the best square matmul rate ({rate / 1e9:.0f} GFLOP/s)"
    )


# ------------------------------------------------------------------------------
# The benches: each prints, and returns what --json writes


def bench_train(directory, args) -> dict:
    """Time a training step: seconds a pair."""
    configurations = {"ours": train_ours, "plain two sequences": train_plain}
    try:
        import trl

        print(f"TRL {trl.__version__}")
        configurations["TRL"] = train_trl
        configurations["TRL, completions only"] = train_trl_completions
    except ImportError:
        print("TRL is not installed (pip install trl==1.16.0 pillow), so it is left out")

    rate = matmul_rate()
    figures = take_turns(configurations, directory, args)
    compare_training(figures)
    print_table(figures, "pair")

    config = InternVLConfig.from_pretrained(directory)
    flops = train_flops(config, args)
    branches = encode_pairs(make_tokenizer(), make_pairs())
    alone = sum(forward_flops(config, args.frames, [branch]) for branch in branches) / QUESTIONS
    print(
        f"token counts alone allow {3 * alone / flops:.1f}x over two sequences a pair "
        f"with a precomputed reference, {4 * alone / flops:.1f}x with its own"
    )
    seconds = statistics.median(figures["ours"].seconds)
    print_share(flops, seconds, max(rate, matmul_rate()))
    return to_json(figures)


def compare_training(figures: dict[str, Figures]):
    """Check that all configurations have our log-probs, and our gradient of the first pair."""
    ours = figures["ours"].results[0]
    for name, figure in figures.items():
        if name == "ours":
            continue
        for result in figure.results:
            pair = result["pair"]
            theirs = result["logps"]
            mine = [ours["logps"][pair], ours["logps"][pair + QUESTIONS]]
            assert np.allclose(theirs, mine, rtol=1e-4), (
                f"{name} has other log-probs: {theirs}, ours {mine}"
            )
            norm = result["grad_norm"]
            assert pair > 0 or np.isclose(norm, ours["first"], rtol=1e-3), (
                f"{name} has another gradient: {norm}, ours {ours['first']}"
            )
    print("log-probs agree to 1e-4 of their size, the norms of the first pair's gradient to 1e-3")


def bench_decode(directory, args) -> dict:
    """Time decoding: seconds an answer."""
    configurations = {"ours": decode_ours, "one generate a question": decode_alone}
    if not args.long:  # there it would take twice the time allowed, and 6 caches
        configurations["one padded batch"] = decode_batch
    figures = take_turns(configurations, directory, args)

    answers = [figure.results[0]["answers"] for figure in figures.values()]
    same = sum(len(set(texts)) == 1 for texts in zip(*answers))
    print(
        f"{same} of {QUESTIONS} answers are the same word by word in all "
        "(a random model has near ties)"
    )
    print_table(figures, "answer")
    return to_json(figures) | bench_batches(directory, args)


def bench_batches(directory, args) -> dict:
    """Time decoding by the number of videos at a time: tokens a second, without the prefill."""
    configurations = {}
    for n_videos in (1, 2, 4, 8):
        name = f"{n_videos} at a time"
        configurations[name] = functools.partial(decode_videos, n_videos=n_videos)
    figures = take_turns(configurations, directory, args)

    config = InternVLConfig.from_pretrained(directory)
    weights, cache = count_read(config, args.frames)
    one = statistics.median(figures["1 at a time"].seconds)
    print(
        f"\na step of decoding reads {weights / 2**20:.0f} MiB of weights, and {cache / 2**20:.0f} "
        "MiB of keys and values a video. If reading is all it costs, V videos at a time are faster "
        "by V (weights + cache) / (weights + V cache)"
    )
    print(f"{'videos':14}{'tokens/s':>10}{'faster':>10}{'by reading alone':>20}{'peak GiB':>10}")
    for n_videos, figure in zip((1, 2, 4, 8), figures.values()):
        seconds = statistics.median(figure.seconds)
        bound = n_videos * (weights + cache) / (weights + n_videos * cache)
        print(
            f"{n_videos:<14}{ANSWER_WORDS / seconds:10.0f}{one / seconds:9.2f}x"
            f"{bound:19.2f}x{figure.GiB:10.2f}"
        )
    return to_json(figures)


def count_read(config, n_frames: int) -> tuple[int, int]:
    """Count the bytes that a step of decoding reads, in float32 -> (weights, cache of a video)."""
    text = config.text_config
    projections = 4 * text.hidden_size**2 + 3 * text.hidden_size * text.intermediate_size
    weights = text.num_hidden_layers * projections + text.hidden_size * text.vocab_size
    n_video = n_frames * (TOKENS + 3) + 2
    cache = 2 * text.num_hidden_layers * text.hidden_size * n_video  # as many kv heads as heads
    return 4 * weights, 4 * cache


def bench_load(directory, args) -> dict:
    """Time loading: seconds a load, and peak memory in multiples of the model's."""
    configurations = {
        "ours": load_ours,
        "ours, without a look": load_unchecked,
        "from_pretrained": load_transformers,
        "ours, kept in bfloat16": load_bfloat16,
    }
    figures = take_turns(configurations, directory, args)
    sums = {figure.results[0]["sum"] for figure in figures.values()}
    assert len(sums) == 1, "other weights"
    print_table(figures, "load")
    for name, figure in figures.items():
        model = figure.results[0]["GiB"]
        print(f"{name}: peak memory {figure.GiB / model:.2f} times the model's {model:.2f} GiB")
    return to_json(figures)


def bench_scale(directory, args) -> dict:
    """Time a pair's forward and backward by number of pairs and frames; then a long run."""
    model, tokenizer, _ = load_to_train(directory)
    figures = {}
    for n_frames, n_pairs in ((8, 1), (8, 2), (8, 4), (8, 8), (8, 16), (16, 6), (32, 6)):
        pairs = make_pairs(n_pairs)
        seconds = []  # a pair
        for _ in range(args.rounds + 1):
            started = time.perf_counter()
            video = vlm.Video(model, tokenizer, make_frames(n_frames))
            sums, _ = dpo.pair_logps(model, tokenizer, video, pairs)
            sums.sum().backward()
            model.zero_grad()
            seconds.append((time.perf_counter() - started) / n_pairs)
        seconds = seconds[1:]  # the first one warmed up
        print(
            f"{n_frames:3} frames, {n_pairs:2} pairs: {statistics.median(seconds):6.2f} s a pair, "
            "forward and backward",
            flush=True,
        )
        figures[f"{n_frames} frames, {n_pairs} pairs"] = seconds
    figures["run"] = bench_run(Path(directory) / "run")
    return figures


def bench_run(directory: Path, n: int = 4000) -> dict:
    """Run a stage over n tiny videos: do its pace and its memory stay the same to the end?

    Returns:
        median seconds a video in the first tenth and in the last tenth, peak memory in GiB
    """
    write_run(directory, n)
    stamps = []  # (time, peak GiB) after each video
    write = outputs.Output.write

    def write_and_stamp(self, rows):
        write(self, rows)
        stamps.append((time.perf_counter(), peak_gib()))

    sys.argv = ["critique.py", "--model", "shapes/model", "--devices", "cpu"]
    sys.argv += ["--input", str(directory / "rows.jsonl"), "--videos", str(directory / "videos")]
    sys.argv += ["--output", str(directory / "critiques.jsonl")]
    with mock.patch.object(outputs.Output, "write", write_and_stamp):
        critique.main()

    seconds = [after - before for (before, _), (after, _) in itertools.pairwise(stamps)]
    tenth = n // 10
    # Medians, since other work on the machine comes in bursts
    first = statistics.median(seconds[:tenth])
    last = statistics.median(seconds[-tenth:])
    _, early_gib = stamps[tenth]
    _, gib = stamps[-1]
    print(
        f"{n} videos: {first * 1000:.1f} ms a video in the first tenth, "
        f"{last * 1000:.1f} in the last ({last / first:.2f}x); "
        f"peak memory {early_gib:.2f} GiB after the first tenth, {gib:.2f} at the end"
    )
    return {"first tenth": first, "last tenth": last, "GiB": gib}


def write_run(directory: Path, n: int):
    """Write n videos (links to 50 files) and rows.jsonl, with an answer about each of them."""
    world.write_split(directory, "round1", 50, seed=0)
    files = sorted((directory / "round1").glob("*.mp4"))
    (directory / "videos").mkdir()
    rows = []
    for number in range(n):
        video = f"{number:05}.mp4"
        os.link(files[number % len(files)], directory / "videos" / video)
        row = {
            "id": f"{number:05}",
            "video": video,
            "question": "how many shapes are there?",
            "initial": "there are two shapes.",
        }
        rows.append(row)
    common.write_jsonl(directory / "rows.jsonl", rows)


# How the profiler's names of operators begin, by kind; the first kind that fits counts
OPERATIONS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear"),
    "attention": ("aten::_scaled_dot_product",),
    "soft-max of the head": ("aten::_log_softmax", "aten::gather", "aten::scatter"),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::clone"),
}


def bench_profile(directory, args) -> dict:
    """Profile one round of our training: reference, forward, backward of all pairs of a video.

    Returns:
        {kind of operation: its share of the time that operators take themselves}
    """
    step = train_ours(directory, args)
    rate = matmul_rate()
    seconds = []  # a pair
    for _ in range(args.rounds + 1):
        started = time.perf_counter()
        n_pairs, _ = step()
        seconds.append((time.perf_counter() - started) / n_pairs)
    flops = train_flops(InternVLConfig.from_pretrained(directory), args)
    median = statistics.median(seconds[1:])  # the first one warmed up
    print_share(flops, median, max(rate, matmul_rate()))

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    averages = profile.key_averages()
    times = dict.fromkeys([*OPERATIONS, "all else"], 0.0)
    for event in averages:
        times[kind_of(event.key)] += event.self_cpu_time_total
    total = sum(times.values())
    shares = {kind: time_taken / total for kind, time_taken in times.items()}
    for kind, share in shares.items():
        print(f"{kind:24}{share:6.0%}")
    print(averages.table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=60))
    return shares


def kind_of(operator: str) -> str:
    """Find an operator's kind in OPERATIONS.

    >>> kind_of("aten::bmm")
    'matrix products'
    """
    for kind, beginnings in OPERATIONS.items():
        if operator.startswith(beginnings):
            return kind
    return "all else"


BENCHES = {
    "train": bench_train,
    "decode": bench_decode,
    "load": bench_load,
    "scale": bench_scale,
    "profile": bench_profile,
}


def main():
    """Write the model, run one of the benches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument("what", choices=BENCHES, help="what is timed")
    parser.add_argument("--long", action="store_true", help="8,192 video tokens instead of 2,048")
    parser.add_argument(
        "--rounds",
        type=common.at_least(1),
        default=5,
        help="how often each configuration is timed, after once to warm up",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    args = parser.parse_args()
    args.frames = 32 if args.long else 8
    layers = LAYERS
    dtype = torch.float32
    if args.what == "load":
        layers = 160
        dtype = torch.bfloat16

    with tempfile.TemporaryDirectory() as directory:
        # In a process of its own: a process starts with the peak memory of the one that made it
        spawn = multiprocessing.get_context("spawn")
        writer = spawn.Process(target=write_model, args=(directory, layers, dtype))
        writer.start()
        writer.join()
        print(
            f"{layers} layers x {HIDDEN}, {args.frames * TOKENS} video tokens, "
            f"{QUESTIONS} questions x 2 answers of {ANSWER_WORDS + 1} tokens, "
            f"torch {torch.__version__}, {torch.get_num_threads()} threads"
        )
        figures = BENCHES[args.what](directory, args)
        if args.json:
            common.write_json(args.json, figures)


if __name__ == "__main__":
    common.run(main)
