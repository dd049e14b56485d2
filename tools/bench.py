"""Times the shared video prefix against what one would use instead, on a random InternVL of a given shape.

    python -m tools.bench train            # DPO: ours, a plain two-sequence step, TRL (where it is installed: pip install trl==1.16.0 pillow)
    python -m tools.bench decode --long    # answers: ours, one generate a question, one left-padded batch; 8,192 video tokens
    python -m tools.bench load             # a larger checkpoint, bfloat16 in shards, to float32 on a CPU: ours, from_pretrained; peak memory over the model's
    python -m tools.bench scale            # cost of a pair by questions and frames; cost of a video over a run of 4,000
    python -m tools.bench profile          # where the time of our own training step goes, by kind of operation

In train, decode and load every configuration is a process of its own (so that its peak memory is its own); they take turns, --rounds times, and what is printed are
medians and ratios of one run. Their results are compared before any of their times is believed.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import re
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tokenizers
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutputWithPooling

import common
import critique
import dpo
from shapes import world

LAYERS, HIDDEN, MLP, HEADS, VOCABULARY = 8, 512, 1408, 8, 32000
IMAGE, TOKENS = 448, 256  # of a frame: pixels a side, visual tokens
QUESTIONS, QUESTION_WORDS, ANSWER_WORDS = 6, 20, 63  # and the end of turn: 64 answer tokens
SPECIAL = ("<unk>", "<|im_start|>", common.END_OF_TURN, "<img>", "</img>", "<IMG_CONTEXT>")
# Word by word, and the same for our stages and for TRL's processor, which wants the <image> placeholders in the text
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<IMG_CONTEXT>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# ---------------------------------------------------------------- what all configurations share


def make_tokenizer():
    words = {
        token: n
        for n, token in enumerate([*SPECIAL, *(f"w{n}" for n in range(VOCABULARY - len(SPECIAL)))])
    }
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(
        [tokenizers.AddedToken(token, normalized=False) for token in SPECIAL]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token=common.END_OF_TURN,
        pad_token=common.END_OF_TURN,
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def write_model(directory, layers=LAYERS, dtype=torch.float32):
    """A random model of the preset's shape, with a small vision tower, as a checkpoint in shards."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    vision = dict(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE,
        patch_size=14,
    )
    text = dict(
        model_type="qwen2",
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=VOCABULARY,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=TOKENS,
        tie_word_embeddings=False,
    )
    InternVLForConditionalGeneration(config).to(dtype).save_pretrained(
        directory, max_shard_size="250MB"
    )
    tokenizer.save_pretrained(directory)


def make_pairs(n=QUESTIONS):
    rng = np.random.default_rng(0)
    say = lambda length: " ".join(f"w{word}" for word in rng.integers(100, 30000, length))
    return [
        {
            "id": str(pair),
            "question": say(QUESTION_WORDS),
            "chosen": say(ANSWER_WORDS),
            "rejected": say(ANSWER_WORDS),
        }
        for pair in range(n)
    ]


def make_frames(n):
    return np.random.default_rng(1).integers(0, 256, (n, IMAGE, IMAGE, 3), np.uint8)


def forward_flops(config, n_frames, branches):
    """(multiply-adds x 2) of one forward pass over [video | branches]: language model and head; attention counted as its causal half."""
    prefix = n_frames * (TOKENS + 3) + 2  # Frame1: <img> ... </img>, and the user's turn before it
    lengths = [len(prompt) + len(answer) for prompt, answer in branches]
    text = config.text_config
    weights = text.num_hidden_layers * (
        4 * text.hidden_size**2 + 3 * text.hidden_size * text.intermediate_size
    )
    attention = (
        4
        * text.num_hidden_layers
        * text.hidden_size
        * (prefix**2 / 2 + sum(length * prefix + length**2 / 2 for length in lengths))
    )
    head = 2 * text.hidden_size * text.vocab_size * sum(len(answer) for _, answer in branches)
    return 2 * weights * (prefix + sum(lengths)) + attention + head


def matmul_rate():
    """Best rate of square float32 matrix products, in FLOP/s: the machine's limit, as far as this program can see it."""
    matrix, best = torch.randn(2048, 2048), float("inf")
    for _ in range(40):  # long enough for the processor to find its pace
        clock = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - clock)
    return 2 * 2048**3 / best


def train_flops(config, args):
    """Model FLOPs of a pair in our training step: reference 1, forward 1, backward 2 times a forward pass; nothing is computed again."""
    return (
        4
        * forward_flops(config, args.frames, encode_pairs(make_tokenizer(), make_pairs()))
        / QUESTIONS
    )


def print_share(flops, seconds, rate):
    print(
        f"ours: {flops / 1e12:.2f} model TFLOP a pair, {flops / seconds / 1e9:.0f} GFLOP/s, {flops / seconds / rate:.0%} of the best square matmul rate ({rate / 1e9:.0f} GFLOP/s)"
    )


def trainable(directory):
    model = common.load_model(directory, ["cpu"])
    return model, common.load_tokenizer(directory), dpo.freeze_all_but_language(model)


def grad_norm(weights):
    return torch.stack([weight.grad.norm() for weight in weights]).norm().item()


def encode_pairs(tokenizer, pairs):
    return [
        common.encode_branch(
            tokenizer, common.ANSWER_PROMPT.format(question=pair["question"]), pair[side]
        )
        for side in ("chosen", "rejected")
        for pair in pairs
    ]


# ---------------------------------------------------------------- train: configurations -> a function that does one round


def train_ours(directory, args):
    """All pairs of a video: reference, then one packed forward and backward, each after a reading of the video, as in dpo.py."""
    model, tokenizer, weights = trainable(directory)
    frames = make_frames(args.frames)

    def train(pairs):
        with torch.no_grad():
            reference, _ = dpo.pair_logps(
                model, tokenizer, common.Video(model, tokenizer, frames), pairs
            )
        sums, _ = dpo.pair_logps(model, tokenizer, common.Video(model, tokenizer, frames), pairs)
        dpo.dpo_loss(*sums, *reference, 0.1)[0].mean().backward()
        norm = grad_norm(weights)
        model.zero_grad()
        return len(pairs), {"logps": sums.flatten().tolist(), "grad_norm": norm}

    first = train(make_pairs()[:1])[1]["grad_norm"]  # of the first pair alone, for comparison
    return lambda: (QUESTIONS, train(make_pairs())[1] | {"first": first})


def train_plain(directory, args):
    """One pair: chosen and rejected as two whole sequences in a batch, head on the answers; the reference is taken to be there already."""
    model, tokenizer, weights = trainable(directory)
    pairs, frames = make_pairs(), make_frames(args.frames)
    prefix, branches = (
        common.encode_prefix(tokenizer, model.config, args.frames),
        encode_pairs(tokenizer, pairs),
    )
    turn = itertools.cycle(range(len(pairs)))

    def step():
        pair = next(turn)
        chosen, rejected = branches[pair], branches[pair + len(pairs)]
        ids = torch.tensor(
            [prefix + prompt + answer for prompt, answer in (chosen, rejected)]
        )  # of one length, so nothing is padded
        video = common.Video(model, tokenizer, frames)
        features = video.inputs["mm_encoder_outputs"]["image"].pooler_output.repeat(2, 1, 1)
        n = len(chosen[1])
        logits = model(
            ids,
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=features)},
            use_cache=False,
            logits_to_keep=n + 1,
        ).logits[:, :-1]
        sums = logits.log_softmax(-1).gather(2, ids[:, -n:, None]).sum((1, 2))
        dpo.dpo_loss(*sums[:, None], *sums[:, None].detach(), 0.1)[0].mean().backward()
        norm = grad_norm(weights)
        model.zero_grad()
        return 1, {"pair": pair, "logps": sums.tolist(), "grad_norm": norm}

    return step


def train_trl(directory, args, completions_only=False):
    """One pair a step by TRL's DPOTrainer as it comes, with the frames as a list of images; see load_trl."""
    trainer, batch, weights = load_trl(directory, args, completions_only)

    def step():
        trainer.compute_loss(trainer.model.train(), trainer._prepare_inputs(dict(batch))).backward()
        norm = grad_norm(weights)
        trainer.model.zero_grad()
        return 1, {
            "pair": 0,
            "logps": [
                trainer._metrics["train"][f"logps/{side}"][-1] for side in ("chosen", "rejected")
            ],
            "grad_norm": norm,
        }

    return step


def train_trl_completions(directory, args):
    return train_trl(directory, args, True)


def load_trl(directory, args, completions_only):
    """TRL's trainer on the same model, a batch of the first pair, and the trained weights.

    What it takes without torchvision: a processor without a video processor, and Pillow's image processor. `_use_triton` decides whether
    the head runs on completions alone, which TRL does by itself only on CUDA.
    """
    import datasets
    import trl
    import trl.trainer.utils
    from PIL import Image
    from transformers import GotOcr2ImageProcessorPil, InternVLProcessor, ProcessorMixin

    class Processor(InternVLProcessor):
        def __init__(self, image_processor, tokenizer, image_seq_length=TOKENS, **_):
            self.image_seq_length = image_seq_length
            self.start_image_token, self.end_image_token = "<img>", "</img>"
            self.image_token, self.video_token = "<IMG_CONTEXT>", None
            self.start_image_token_id, self.end_image_token_id, self.image_token_id = (
                tokenizer.convert_tokens_to_ids(["<img>", "</img>", "<IMG_CONTEXT>"])
            )
            self.multimodal_pattern = re.compile("(?P<image>" + re.escape(self.image_token) + ")")
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=CHAT)

    trl.trainer.utils._use_triton = lambda device: completions_only
    processor = Processor(
        GotOcr2ImageProcessorPil(
            size={"height": IMAGE, "width": IMAGE},
            crop_to_patches=False,
            image_mean=common.IMAGE_MEAN,
            image_std=common.IMAGE_STD,
        ),
        make_tokenizer(),
    )
    images = [Image.fromarray(frame) for frame in make_frames(args.frames)]
    text = lambda words: {"type": "text", "text": words}
    pair = make_pairs()[0]
    video = [
        part
        for n in range(args.frames)
        for part in (text(f"Frame{n + 1}: "), {"type": "image"}, text("\n"))
    ]  # as in common.encode_prefix
    rows = [
        {
            "prompt": [
                {
                    "role": "user",
                    "content": [
                        *video,
                        text(common.ANSWER_PROMPT.format(question=pair["question"])),
                    ],
                }
            ],
            "images": images,
            "chosen": [{"role": "assistant", "content": [text(pair["chosen"])]}],
            "rejected": [{"role": "assistant", "content": [text(pair["rejected"])]}],
        }
    ]
    config = trl.DPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=1,
        use_cpu=True,
        bf16=False,
        remove_unused_columns=False,
        max_length=None,
        report_to="none",
        gradient_checkpointing=False,
        beta=0.1,
    )
    trainer = trl.DPOTrainer(
        model=str(directory),
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=processor,
    )
    return (
        trainer,
        next(iter(trainer.get_train_dataloader())),
        dpo.freeze_all_but_language(trainer.model),
    )


# ---------------------------------------------------------------- decode and load


def decode_ours(directory, args):
    model, tokenizer = common.load_model(directory, ["cpu"]), common.load_tokenizer(directory)
    prompts, frames = (
        [common.ANSWER_PROMPT.format(question=pair["question"]) for pair in make_pairs()],
        make_frames(args.frames),
    )
    return lambda: (
        len(prompts),
        {
            "answers": [
                text
                for text, _ in common.decode(
                    model, tokenizer, common.Video(model, tokenizer, frames), prompts, ANSWER_WORDS
                )
            ]
        },
    )


def decode_alone(directory, args, batch=1):
    """Transformers' generate on whole prompts, `batch` questions at a time, each with the pixels of its frames."""
    model, tokenizer = common.load_model(directory, ["cpu"]), common.load_tokenizer(directory)
    prefix = common.encode_prefix(tokenizer, model.config, args.frames)
    prompts = [
        prefix
        + common.encode_branch(tokenizer, common.ANSWER_PROMPT.format(question=pair["question"]))[0]
        for pair in make_pairs()
    ]
    assert len(set(map(len, prompts))) == 1, "the questions are equally long, so nothing is padded"
    pixels, end = common.pixel_values(make_frames(args.frames), IMAGE), tokenizer.eos_token_id

    @torch.no_grad()
    def decode():
        answers = []
        for first in range(0, len(prompts), batch):
            ids = torch.tensor(prompts[first : first + batch])
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=pixels.repeat(len(ids), 1, 1, 1),
                do_sample=False,
                max_new_tokens=ANSWER_WORDS,
                eos_token_id=end,
                pad_token_id=end,
            )
            answers += tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        return len(prompts), {"answers": answers}

    return decode


def decode_batch(directory, args):
    return decode_alone(directory, args, QUESTIONS)


def read_all(model):  # its weights are read from the disk only when they are looked at
    return 1, {
        "sum": sum(weight.sum(dtype=torch.float64).item() for weight in model.parameters()),
        "GiB": sum(weight.nbytes for weight in model.parameters()) / 2**30,
    }


def load_ours(directory, args):
    return lambda: read_all(common.load_model(directory, ["cpu"]))


def load_bfloat16(directory, args):
    return lambda: read_all(common.load_model(directory, ["cpu"], torch.bfloat16))


def load_transformers(directory, args):
    return lambda: read_all(
        InternVLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    )


# ---------------------------------------------------------------- the processes, and what is printed


def worker(pipe, configuration, directory, args):
    """Sets a configuration up, then does a round of it whenever it is told to."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = configuration(directory, args)
    pipe.send("ready")
    while pipe.recv() == "go":
        clock = time.perf_counter()
        n, result = step()
        pipe.send(
            (
                (time.perf_counter() - clock) / n,
                result,
                (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20,
            )
        )


def take_turns(configurations, directory, args):
    """{name: {seconds: [of one unit], results: [...], GiB: peak above the bare interpreter}}, a round of each in turn, after one to warm up."""
    spawn, pipes = multiprocessing.get_context("spawn"), {}
    for name, configuration in configurations.items():
        pipes[name], there = spawn.Pipe()
        spawn.Process(
            target=worker, args=(there, configuration, directory, args), daemon=True
        ).start()
        there.close()  # so that a worker that dies ends this program too, instead of being waited for
        assert pipes[name].recv() == "ready"
    figures = {name: {"seconds": [], "results": [], "GiB": 0.0} for name in configurations}
    for turn in range(args.rounds + 1):
        for name, pipe in pipes.items():
            pipe.send("go")
            seconds, result, gib = pipe.recv()
            figures[name]["results"].append(result)
            figures[name]["GiB"] = gib
            figures[name]["seconds"] += [seconds] * (turn > 0)
            print(
                f"  {name}: {seconds:.2f} s, {gib:.2f} GiB" + " (to warm up)" * (turn == 0),
                flush=True,
            )
    for pipe in pipes.values():
        pipe.send("stop")
    return figures


def print_table(figures, unit):
    ours = statistics.median(figures["ours"]["seconds"])
    print(f"\n{'':24}{'s a ' + unit:>14}{'ours is faster':>16}{'peak GiB':>10}")
    for name, figure in figures.items():
        seconds = statistics.median(figure["seconds"])
        print(f"{name:24}{seconds:14.2f}{seconds / ours:15.1f}x{figure['GiB']:10.2f}")
    return ours


def bench_train(directory, args):
    configurations = {"ours": train_ours, "plain two sequences": train_plain}
    try:
        import trl

        print(f"TRL {trl.__version__}")
        configurations |= {"TRL": train_trl, "TRL, completions only": train_trl_completions}
    except ImportError:
        print("TRL is not installed (pip install trl==1.16.0 pillow), so it is left out")
    config = InternVLConfig.from_pretrained(directory)
    rate, flops = matmul_rate(), train_flops(config, args)
    figures = take_turns(configurations, directory, args)
    logps = figures["ours"]["results"][0]["logps"]
    for name in configurations:
        for result in figures[name]["results"] if name != "ours" else ():
            theirs, mine = (
                result["logps"],
                [logps[result["pair"]], logps[result["pair"] + QUESTIONS]],
            )
            assert np.allclose(theirs, mine, rtol=1e-4), (
                f"{name} has other log-probs: {theirs}, ours {mine}"
            )
            first = figures["ours"]["results"][0]["first"]
            assert result["pair"] or np.isclose(result["grad_norm"], first, rtol=1e-3), (
                f"{name} has another gradient: {result['grad_norm']}, ours {first}"
            )
    print("log-probs agree to 1e-4 of their size, the norms of the first pair's gradient to 1e-3")
    seconds, branches = print_table(figures, "pair"), encode_pairs(make_tokenizer(), make_pairs())
    alone = sum(forward_flops(config, args.frames, [branch]) for branch in branches) / QUESTIONS
    print(
        f"token counts alone allow {3 * alone / (flops):.1f}x over two sequences a pair with a precomputed reference, {4 * alone / flops:.1f}x with its own"
    )
    print_share(flops, seconds, max(rate, matmul_rate()))
    return figures


def bench_decode(directory, args):
    configurations = {"ours": decode_ours, "one generate a question": decode_alone}
    if not args.long:  # there it would take twice the time allowed, and 6 caches
        configurations["one padded batch"] = decode_batch
    figures = take_turns(configurations, directory, args)
    answers = [figure["results"][0]["answers"] for figure in figures.values()]
    same = sum(len(set(texts)) == 1 for texts in zip(*answers))
    print(
        f"{same} of {QUESTIONS} answers are the same word by word in all (a random model has near ties)"
    )
    print_table(figures, "answer")
    return figures


def bench_load(directory, args):
    figures = take_turns(
        {
            "ours": load_ours,
            "from_pretrained": load_transformers,
            "ours, kept in bfloat16": load_bfloat16,
        },
        directory,
        args,
    )
    assert len({figure["results"][0]["sum"] for figure in figures.values()}) == 1, "other weights"
    print_table(figures, "load")
    for name, figure in figures.items():
        model = figure["results"][0]["GiB"]
        print(f"{name}: peak memory {figure['GiB'] / model:.2f} times the model's {model:.2f} GiB")
    return figures


def bench_scale(directory, args):
    model, tokenizer, _ = trainable(directory)
    figures = {}
    for n_frames, n_pairs in [(8, n) for n in (1, 2, 4, 8, 16)] + [(16, 6), (32, 6)]:
        pairs, seconds = make_pairs(n_pairs), []
        for _ in range(args.rounds + 1):  # the first one warms up
            clock = time.perf_counter()
            video = common.Video(model, tokenizer, make_frames(n_frames))
            dpo.pair_logps(model, tokenizer, video, pairs)[0].sum().backward()
            model.zero_grad()
            seconds.append((time.perf_counter() - clock) / n_pairs)
        print(
            f"{n_frames:3} frames, {n_pairs:2} pairs: {statistics.median(seconds[1:]):6.2f} s a pair, forward and backward",
            flush=True,
        )
        figures[f"{n_frames} frames, {n_pairs} pairs"] = seconds[1:]
    return figures | {"run": bench_run(Path(directory) / "run")}


OPERATIONS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear"),
    "attention": ("aten::_scaled_dot_product",),
    "soft-max of the head": ("aten::_log_softmax", "aten::gather", "aten::scatter"),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::clone"),
}


def bench_profile(directory, args):
    """Shares of the time that operators take themselves, in one round of training (reference, forward, backward of all pairs of a video)."""
    train, rate, seconds = train_ours(directory, args), matmul_rate(), []
    for _ in range(args.rounds + 1):  # the first one warms up
        clock = time.perf_counter()
        n_pairs, _ = train()
        seconds.append((time.perf_counter() - clock) / n_pairs)
    print_share(
        train_flops(InternVLConfig.from_pretrained(directory), args),
        statistics.median(seconds[1:]),
        max(rate, matmul_rate()),
    )
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train()
    shares = dict.fromkeys([*OPERATIONS, "all else"], 0.0)
    for event in profile.key_averages():
        kind = next(
            (kind for kind, names in OPERATIONS.items() if event.key.startswith(names)), "all else"
        )
        shares[kind] += event.self_cpu_time_total
    total = sum(shares.values())
    for kind, time_taken in shares.items():
        print(f"{kind:24}{time_taken / total:6.0%}")
    print(
        profile.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=60
        )
    )
    return {kind: time_taken / total for kind, time_taken in shares.items()}


def bench_run(directory, n=4000):
    """A stage over a long run of tiny videos: is the last tenth as fast as the first, and does memory stay where it was?"""
    world.write_split(directory, "round1", 50, seed=0)
    files = sorted((directory / "round1").glob("*.mp4"))
    (directory / "videos").mkdir()
    for number in range(n):
        os.link(files[number % len(files)], directory / "videos" / f"{number:05}.mp4")
    rows = [
        {
            "id": f"{number:05}",
            "video": f"{number:05}.mp4",
            "question": "how many shapes are there?",
            "initial": "there are two shapes.",
        }
        for number in range(n)
    ]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sys.argv = [
        "critique.py",
        "--model",
        "shapes/model",
        "--input",
        str(directory / "rows.jsonl"),
        "--videos",
        str(directory / "videos"),
        "--output",
        str(directory / "critiques.jsonl"),
        "--devices",
        "cpu",
    ]
    stamps, write = [], common.Output.write

    def stamped(self, rows):
        write(self, rows)
        stamps.append(
            (time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        )

    common.Output.write = stamped
    critique.main()
    tenth, times = (
        n // 10,
        [after - before for (before, _), (after, _) in itertools.pairwise(stamps)],
    )
    first, last = (
        statistics.median(times[:tenth]),
        statistics.median(times[-tenth:]),
    )  # medians, since other work on the machine comes in bursts
    print(
        f"{n} videos: {first * 1000:.1f} ms a video in the first tenth, {last * 1000:.1f} in the last ({last / first:.2f}x); "
        f"peak memory {stamps[tenth][1]:.2f} GiB after the first tenth, {stamps[-1][1]:.2f} at the end"
    )
    return {"first tenth": first, "last tenth": last, "GiB": stamps[-1][1]}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    benches = {
        "train": bench_train,
        "decode": bench_decode,
        "load": bench_load,
        "scale": bench_scale,
        "profile": bench_profile,
    }
    parser.add_argument("what", choices=benches)
    parser.add_argument("--long", action="store_true", help="8,192 video tokens instead of 2,048")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the figures there")
    args = parser.parse_args()
    args.frames = 32 if args.long else 8
    with tempfile.TemporaryDirectory() as directory:
        shape = (160, torch.bfloat16) if args.what == "load" else (LAYERS, torch.float32)
        writer = multiprocessing.get_context("spawn").Process(
            target=write_model, args=(directory, *shape)
        )
        writer.start()  # a process of its own, for a process starts with the peak memory of the one that made it
        writer.join()
        print(
            f"{shape[0]} layers x {HIDDEN}, {args.frames * TOKENS} video tokens, {QUESTIONS} questions x 2 answers of {ANSWER_WORDS + 1} tokens, "
            f"torch {torch.__version__}, {torch.get_num_threads()} threads"
        )
        figures = benches[args.what](directory, args)
        if args.json:
            common.write_json(args.json, figures)


if __name__ == "__main__":
    common.run(main)
