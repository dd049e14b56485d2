"""Make the tiny base model of shapes/model, with a bias planted on purpose.

    python -m shapes.pretrain runs/model      # an hour on two cores

The real InternVL classes at a small size. Pretraining is the one place, beside
scoring, that sees the truth of the tiny world. It asks for the same things as
the stages do, in many words, so that the model can play every part of the loop,
and understands prompts that somebody else wrote. First the vision tower and the
projector are trained:

    vision             a throwaway head predicts color, kind and place of shapes
                       from the projected features of single frames

then they are frozen, and the language model is trained in three phases:

    language, tracks   what is where in each frame, what moves, what hits what
    language, looks    short true answers to many questions
    language, stages   ask, answer, critique, refine, as the loop plays them

shapes/texts.py writes what is taught, shapes/wordings.py words it, shapes/gap.py
plants the errors in it: the model sees better than it answers, which is what
self-alignment can fix.
"""

import argparse
import math
import multiprocessing
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
import torch
from torch import distributed
from transformers import (
    DynamicCache,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

import common
import media
import prompts
import vlm
from shapes import gap, patterns, texts, wordings, world
from shapes.texts import CELLS, N_FRAMES

IMAGE = 64  # pixels along a side of a frame, as the model sees it
PATCH = 8
GRID = IMAGE // PATCH // 2  # tokens along a side of a frame, after the pixel shuffle
ROWS = 4  # behind each video, see "The language model"
VERDICT = 3.0  # weight of a verdict's tokens
WORKERS = 2  # processes, as many as there are cores


# ------------------------------------------------------------------------------
# Scenes


def render_scenes(seed: int, n: int):
    """Render the first n pretraining scenes, in WORKERS processes.

    Returns:
        float16 (n, N_FRAMES, 3, IMAGE, IMAGE), as the vision tower takes them
    """
    jobs = [(seed, index) for index in range(n)]
    with multiprocessing.Pool(WORKERS) as pool:
        videos = pool.imap(read_scene, jobs, 64)
        return torch.stack(list(common.progress(videos, "rendering", n, unit="video")))


def read_scene(job: tuple[int, int]):
    """Render a scene, given (seed, index), to a file, as the loop's videos are, and read it back.

    Returns:
        float16 (N_FRAMES, 3, IMAGE, IMAGE)
    """
    seed, index = job
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "scene.mp4"
        shapes = world.make_scene(seed, "pretrain", index)
        world.render(shapes, path, seed=[seed, 0, index])
        frames = media.sample_frames(path, N_FRAMES).frames
    return vlm.pixel_values(frames, (IMAGE, IMAGE)).half()


# ------------------------------------------------------------------------------
# Tokenizer and model

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def taught_texts(scenes: list, rng) -> list[str]:
    """List what is taught about scenes: every word of the model's vocabulary is in it."""
    found = []
    for shapes in scenes:
        for phase in texts.PHASES:
            for prompt, answer in texts.curriculum(shapes, rng, Counter(), phase):
                found += [prompt, answer]
    return found


def fingerprint_taught(seed: int) -> str:
    """Fingerprint what is taught about some scenes: it says with which words a model is made."""
    scenes = [world.make_scene(seed, "pretrain", index) for index in range(20)]
    return common.fingerprint(*taught_texts(scenes, np.random.default_rng(seed)))


def make_tokenizer(taught: list[str]):
    """Make a tokenizer with a token for each word that is taught.

    The names of our error types are one token each.
    """
    split = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.WhitespaceSplit(),
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[.,:?!;()\"'/_]"), "isolated"),
        ]
    )
    words = {"user", "assistant"}
    for text in taught:
        for word, _ in split.pre_tokenize_str(text.lower()):
            words.add(word)
    words.discard(wordings.UNKNOWN)

    special = ["<unk>", "<|im_start|>", vlm.END_OF_TURN, "<img>", "</img>", "<IMG_CONTEXT>"]
    vocabulary = {word: number for number, word in enumerate([*special, *sorted(words)])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = tokenizers.normalizers.Lowercase()
    backend.pre_tokenizer = split
    # Joins words with blanks, but puts none before . , ?
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.WordPiece(cleanup=True),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Replace(" :", ":"),
            tokenizers.decoders.Replace(" _ ", "_"),
        ]
    )
    backend.add_special_tokens(as_tokens(special))
    backend.add_tokens(as_tokens(list(prompts.ERROR_TYPES)))

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token=vlm.END_OF_TURN,
        pad_token=vlm.END_OF_TURN,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def as_tokens(contents: list[str]) -> list:
    """Make tokens that are found in a text before it is put in lower case."""
    return [tokenizers.AddedToken(content, normalized=False) for content in contents]


def make_model(tokenizer):
    """Make an InternVL with random weights: a ViT of 2 layers and a Qwen2 of 4.

    The ViT sees 64 patches a frame, which the pixel shuffle makes GRID * GRID = 16 tokens.
    """
    vision = {
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": IMAGE,
        "patch_size": PATCH,
        "initializer_range": 0.08,
        "layer_scale_init_value": 1.0,
    }
    text = {
        "model_type": "qwen2",
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 1024,
        "initializer_range": 0.08,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=GRID * GRID,
        tie_word_embeddings=False,
        num_frames=N_FRAMES,
    )
    return InternVLForConditionalGeneration(config)


# ------------------------------------------------------------------------------
# Optimizers


def make_adamw(weights: list):
    """Make the optimizer of all weights but the language model's matrices."""
    return torch.optim.AdamW(weights, 2e-3, betas=(0.9, 0.98), weight_decay=0.02)


def make_schedule(optimizer, n_steps: int):
    """Warm the learning rate up over 50 steps, then follow a cosine down to 0."""

    def factor(step):
        warmup = (step + 1) / 50
        progress = min(step / n_steps, 1)
        cosine = 0.5 + 0.5 * math.cos(math.pi * progress)
        return min(warmup, cosine)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


# ------------------------------------------------------------------------------
# The vision tower
#
# Shapes: S scenes in a batch; N = S * N_FRAMES * GRID * GRID tokens in it.


def train_vision(model, pixels, scenes: list, n_steps: int, rng, batch_size: int = 32):
    """Train vision tower and projector, so that each token tells which shape is in it, and where.

    A throwaway head predicts color, kind and place from the projected features.

    Args:
        pixels: (scenes, N_FRAMES, 3, IMAGE, IMAGE)
    """
    sizes = (len(world.COLORS) + 1, len(world.KINDS) + 1, CELLS, CELLS)  # classes of each target
    head = torch.nn.Linear(model.config.text_config.hidden_size, sum(sizes))
    tower = model.model.vision_tower.parameters()
    projector = model.model.multi_modal_projector.parameters()
    optimizer = make_adamw([*tower, *projector, *head.parameters()])
    schedule = make_schedule(optimizer, n_steps)

    progress = common.progress(range(n_steps), desc="vision", unit="step")
    for _ in progress:
        chosen = rng.integers(len(pixels), size=batch_size)
        targets = torch.stack([token_targets(scenes[index]) for index in chosen])
        targets = targets.flatten(0, 2)  # (N, 4)
        frames = pixels[chosen].flatten(0, 1).float()  # (S * N_FRAMES, 3, IMAGE, IMAGE)
        features = model.get_image_features(pixel_values=frames).pooler_output
        logits = head(features.flatten(0, 1)).split(sizes, -1)  # 4 of (N, classes)

        losses = [
            torch.nn.functional.cross_entropy(part, targets[:, number])
            for number, part in enumerate(logits)
        ]
        loss = sum(losses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        shares = " ".join(f"{share:.2f}" for share in shares_right(logits, targets))
        progress.set_postfix(loss=f"{loss.item():.2f}", color_kind_x_y=shares)


def token_targets(shapes: list):
    """Make what the head must predict from every token of a scene's video.

    Returns:
        (N_FRAMES, GRID * GRID, 4): color and kind of the shape whose centre is in the token's part
        of the frame (0: none), and its place in cells, x and y (-100, which cross_entropy skips:
        none)
    """
    targets = torch.tensor([0, 0, -100, -100]).repeat(N_FRAMES, GRID * GRID, 1)
    for row, frame in enumerate(texts.shown_frames()):
        for shape in shapes:
            if frame < shape.appears:
                continue
            x, y = texts.place(shape, frame)
            token = find_token(shape, frame)
            color = list(world.COLORS).index(shape.color) + 1
            kind = world.KINDS.index(shape.kind) + 1
            targets[row, token] = torch.tensor([color, kind, x, y])
    return targets


def find_token(shape: world.Shape, frame: int) -> int:
    """Find which token of a frame is of the part that a shape's centre is in."""
    x, y = texts.place(shape, frame)
    return int(y * GRID // CELLS * GRID + x * GRID // CELLS)


def shares_right(logits, targets) -> list[float]:
    """Compute the accuracy of each of the 4 predictions, over the tokens with a shape."""
    has_shape = targets[:, 0] > 0  # (N,)
    shares = []
    for number, part in enumerate(logits):
        right = part.argmax(-1) == targets[:, number]  # (N,)
        shares.append(right[has_shape].float().mean().item())
    return shares


@torch.no_grad()
def compute_features(model, pixels):
    """Run the frozen tower and projector over all scenes.

    Returns:
        (scenes, N_FRAMES, GRID * GRID, hidden)
    """
    features = []
    for part in pixels.split(64):
        frames = part.flatten(0, 1).float()  # (64 * N_FRAMES, 3, IMAGE, IMAGE)
        features.append(model.get_image_features(pixel_values=frames).pooler_output)
    features = torch.cat(features)  # (scenes * N_FRAMES, GRID * GRID, hidden)
    return features.view(len(pixels), N_FRAMES, *features.shape[1:])


# ------------------------------------------------------------------------------
# The language model
#
# Shapes: S scenes in a batch, P tokens of a video, A tokens of all answers.
#
# What is asked about a video stands in ROWS rows behind it, in place of one sequence: so attention
# has ROWS times fewer pairs of tokens to look at, of which most would be hidden anyway. A step
# takes two thirds of the time.


def train_language(
    rank: int, directory: str, features, scenes: list, phases: list, seed: int, batch_size: int = 8
):
    """Train the language model, as one of WORKERS processes that share every step.

    The loss is cross-entropy of the answers' tokens. Gradients are averaged over the processes: at
    this size a process a core is 1.6 times as fast as a thread a core.

    Args:
        rank: number of this process
        directory: the checkpoint to start from and to write to
        features: (scenes, N_FRAMES, GRID * GRID, hidden), see compute_features
        phases: [(name, number of steps), ...]
    """
    torch.set_num_threads(1)
    meeting_point = f"file://{directory}/meeting-point"
    distributed.init_process_group("gloo", meeting_point, rank=rank, world_size=WORKERS)
    model = vlm.load_model(directory, ["cpu"]).train()
    tokenizer = vlm.load_tokenizer(directory)
    prefix = vlm.encode_prefix(tokenizer, model.config, N_FRAMES)
    weights = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    for weight in weights:
        weight.requires_grad_()  # a model comes frozen from load_model
    optimizers = make_optimizers(model, weights)
    n_steps = sum(steps for _, steps in phases)
    schedules = [make_schedule(optimizer, n_steps) for optimizer in optimizers]
    rng = np.random.default_rng([seed, rank])
    seen = Counter()

    for phase, steps in phases:
        progress = common.progress(
            range(steps), f"language, {phase}", unit="step", disable=rank > 0
        )
        for _ in progress:
            chosen = rng.integers(len(features), size=batch_size)
            tasks = [texts.curriculum(scenes[index], rng, seen, phase) for index in chosen]
            batch = collate(tokenizer, len(prefix), tasks)
            loss = language_loss(model, prefix, batch, features[chosen])
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=False)
            loss.backward()
            average_gradients(weights)
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            for optimizer, schedule in zip(optimizers, schedules):
                optimizer.step()
                schedule.step()
            progress.set_postfix(loss=f"{loss.item():.3f}")
        if rank == 0:
            model.save_pretrained(directory)


def make_optimizers(model, weights: list) -> list:
    """Make Muon for the matrices of the layers, and AdamW for the other weights.

    The sparse questions took fewer steps with Muon than with AdamW alone.
    """
    layers = model.model.language_model.layers
    matrices = [weight for weight in layers.parameters() if weight.ndim == 2]
    others = [weight for weight in weights if all(weight is not matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, 3e-3, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    return [muon, make_adamw(others)]


class Batch(NamedTuple):
    """The branches of S videos, laid out in R = S * ROWS rows of L tokens; see collate."""

    ids: torch.Tensor  # (R, L)
    positions: torch.Tensor  # (R, L)
    mask: torch.Tensor  # (R, 1, L, P + L) bool: what each token sees, of the video and of its row
    predicts: torch.Tensor  # (R, L) bool: the tokens that come before an answer's token
    targets: torch.Tensor  # (A,) ids of the answers' tokens
    weights: torch.Tensor  # (A,) of each token in the loss


def collate(tokenizer, n_prefix: int, tasks: list[list[texts.Task]]) -> Batch:
    """Pack the tasks of each video (see vlm.pack) in ROWS rows, all padded to the longest."""
    errors = tokenizer.convert_tokens_to_ids("errors")
    packs = []
    weights = []
    for tasks_of_video in tasks:
        branches = [vlm.encode_branch(tokenizer, *task) for task in tasks_of_video]
        for group in share_out(branches):
            packs.append(vlm.pack(n_prefix, group))
            for branch in group:
                weights += weigh(branch.answer, errors)

    size = (len(packs), max(len(packed.ids) for packed in packs))  # (R, L)
    ids = torch.zeros(size, dtype=torch.long)
    positions = torch.zeros(size, dtype=torch.long)
    predicts = torch.zeros(size, dtype=torch.bool)
    mask = torch.zeros(size[0], 1, size[1], n_prefix + size[1], dtype=torch.bool)
    mask[..., :n_prefix] = True  # of padding, too: what sees nothing at all is not a number

    targets = []
    for row, packed in enumerate(packs):
        length = len(packed.ids)
        ids[row, :length] = packed.ids
        positions[row, :length] = packed.positions[n_prefix:]
        mask[row, 0, :length, : n_prefix + length] = packed.mask
        in_row = packed.targets - n_prefix
        predicts[row, in_row - 1] = True
        targets.append(packed.ids[in_row])
    return Batch(ids, positions, mask, predicts, torch.cat(targets), torch.tensor(weights))


def weigh(answer: list[int], errors: int) -> list[float]:
    """Weigh the tokens of an answer: from "Errors" on, which begins a verdict, VERDICT times.

    Without it the model saw well, wrote the right evidence, and found no error all the same.
    """
    n_before = answer.index(errors) if errors in answer else len(answer)
    return [1.0] * n_before + [VERDICT] * (len(answer) - n_before)


def share_out(branches: list[vlm.Branch]) -> list[list[vlm.Branch]]:
    """Share branches out to ROWS rows of about the same length: the longest first."""
    rows = [[] for _ in range(ROWS)]
    lengths = [0] * ROWS
    for branch in sorted(branches, key=length, reverse=True):
        shortest = lengths.index(min(lengths))
        rows[shortest].append(branch)
        lengths[shortest] += length(branch)
    return rows


def length(branch: vlm.Branch) -> int:
    """Count the tokens of a branch."""
    return len(branch.prompt) + len(branch.answer)


def language_loss(model, prefix: list[int], batch: Batch, features):
    """Compute the cross-entropy of the answers' tokens in a batch: a scalar.

    Args:
        prefix: (P,) ids of a video
        features: (S, N_FRAMES, GRID * GRID, hidden) of the videos
    """
    cache = DynamicCache()
    images = BaseModelOutputWithPooling(pooler_output=features.flatten(0, 1))
    model.model(
        torch.tensor([prefix]).repeat(len(features), 1),  # (S, P)
        mm_encoder_outputs={"image": images},
        past_key_values=cache,
        use_cache=True,
    )
    cache.batch_repeat_interleave(ROWS)  # keys and values of a video, for each of its rows
    states = model.model.language_model(
        batch.ids,
        position_ids=batch.positions,
        attention_mask=batch.mask,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state  # (R, L, hidden)
    logits = model.lm_head(states[batch.predicts])  # (A, vocabulary)
    losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")  # (A,)
    return (losses * batch.weights).sum() / batch.weights.sum()


def average_gradients(weights: list):
    """Replace the gradients by their mean over the processes."""
    gradients = [weight.grad for weight in weights]
    total = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(total)
    torch.nn.utils.vector_to_parameters(total / WORKERS, gradients)


# ------------------------------------------------------------------------------
# The command


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    add = parser.add_argument
    add("output", type=Path, help="model directory to write")
    add("--scenes", type=int, default=12000, help="to learn from")
    add("--vision-steps", type=int, default=800, help="optimizer steps of the vision tower")
    add(
        "--language-steps",
        type=int,
        nargs=3,
        default=[160, 650, 1800],
        metavar="N",
        help="optimizer steps of the three phases: tracks, looks, stages",
    )
    add("--seed", type=int, default=0, help="of the scenes, the weights and what is drawn")
    return parser.parse_args()


def main():
    """Make the model."""
    args = parse_args()
    torch.set_num_threads(WORKERS)  # fixed: it decides the last bits of sums
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    scenes = [world.make_scene(args.seed, "pretrain", index) for index in range(args.scenes)]
    pixels = render_scenes(args.seed, args.scenes)  # (scenes, N_FRAMES, 3, IMAGE, IMAGE)

    tokenizer = make_tokenizer(taught_texts(scenes[:2000], rng))
    model = make_model(tokenizer)
    train_vision(model, pixels, scenes, args.vision_steps, rng)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)

    features = compute_features(model, pixels)  # (scenes, N_FRAMES, GRID * GRID, hidden)
    phases = list(zip(texts.PHASES, args.language_steps))
    meeting_point = args.output / "meeting-point"
    meeting_point.unlink(missing_ok=True)  # of a run that was killed
    torch.multiprocessing.spawn(
        train_language,
        (str(args.output.resolve()), features, scenes, phases, args.seed),
        WORKERS,
    )
    meeting_point.unlink(missing_ok=True)

    facts = {key: value for key, value in vars(args).items() if key != "output"}
    facts["taught"] = fingerprint_taught(args.seed)
    facts["PRIOR"] = gap.PRIOR
    facts["SLIP"] = gap.SLIP
    common.write_json(args.output / prompts.OWN, patterns.USUAL)
    common.write_json(args.output / "training.json", facts)


if __name__ == "__main__":
    main()
