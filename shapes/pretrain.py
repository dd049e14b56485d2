"""Makes the tiny base model in shapes/model/: the real InternVL classes at a small size, with a bias planted on purpose.

    python -m shapes.pretrain runs/model          # about half an hour on two cores

Pretraining is the one place, beside scoring, that sees the truth of the tiny world. It uses the prompts of the stages
themselves, so that the finished model can play every part of the loop:

    vision             a throwaway head reads color, kind and place off the projected features of single frames; then frozen
    language, tracks   dense tasks, a fact a token: where is what in each frame, what moves, what hits what
    language, looks    short true answers to many questions: the ability, without planted errors
    language, stages   the five parts as the loop plays them: ask, answer, critique, refine, with the planted bias in the answers

The planted gap. Critiques and revisions are taught from the truth. First answers are not: for some questions, told by
their wording alone (`is_biased`), the taught answer is with probability PRIOR what a language prior says and not what the
video shows; everywhere else it is a random wrong answer with probability SLIP. So the model sees better than it answers,
systematically, which is what self-alignment can mend. How large the gap is was chosen here, not found: what the loop
gains in this world says how the method works, and nothing about how much InternVL would gain.
"""

import argparse
import math
import multiprocessing
import string
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import tokenizers
import torch
from torch import distributed
from tqdm import tqdm
from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutputWithPooling

import common
import critique
import generate
import refine
from shapes import world

N_FRAMES, IMAGE, PATCH = 8, 64, 8
GRID = IMAGE // PATCH // 2  # tokens along a side of a frame, after the shuffle
PRIOR, SLIP = 0.68, 0.15
BIASED_COLORS = ("red", "blue", "yellow")
LOOK_PROMPT = "{question}\nLook closely."  # only taught: no stage uses it
PHASES = ("tracks", "looks", "stages")
WORKERS = 2  # processes, as many as there are cores
CELLS = 16  # along a side: how exactly places are told

# ---------------------------------------------------------------- the texts that are taught


def is_biased(item):
    """Whether the wording of a question sets off the language prior: who is named first, what is counted, how it is put."""
    question = item["question"]
    if item["type"] == "objects":
        return question.startswith("which")
    if item["type"] == "count":
        return "circles" in question or "triangles" in question
    return (
        next(word for word in question.replace(",", "").split() if word in world.COLORS)
        in BIASED_COLORS
    )


def wrong_answers(item, shapes):
    """[(answer, its error types), ...]: every way to answer wrongly that is taught to the critic."""
    question, right, error = item["question"], item["answer"], [item["error_type"]]
    words = question.rstrip("?").split()
    if item["type"] == "relation":
        side, other = (words[words.index("or") + step] for step in (-1, 1))
        return [
            (
                right.replace(side, other) if side in right.split() else right.replace(other, side),
                error,
            )
        ]
    if item["type"] == "count":
        thing = words[2].removesuffix("s")
        return [
            (text, error)
            for count in world.COUNTS
            if (text := f"there {count.format(thing)}.") != right
        ]
    if item["type"] == "order":
        names = question.removeprefix("which appears first, ").rstrip("?").split(" or ")
        return [(f"{name} appears first.", error) for name in names if name not in right]
    if item["type"] == "motion":
        return [
            (f"it moves {way}.", error)
            for way in world.DIRECTIONS
            if way not in right.rstrip(".").split()
        ]
    if item["type"] == "cause":
        others = [shape.name for shape in shapes if shape.name not in question]
        texts = [f"because the {name} hits it." for name in others] + ["it moves by itself."]
        return [(text, error) for text in texts if text != right]
    names = [shape.name for shape in shapes]
    strangers = [
        f"{color} {kind}"
        for color in world.COLORS
        for kind in world.KINDS
        if (color, kind) not in world.HELD_OUT and not any(color in name for name in names)
    ]
    more = [
        ([*names, stranger], ["object_hallucination"]) for stranger in strangers if len(names) == 2
    ]
    fewer = [([name for name in names if name != lost], ["detail_omission"]) for lost in names]
    other = [
        (
            [name for name in names if name != lost] + [stranger],
            ["object_hallucination", "detail_omission"],
        )
        for lost in names
        for stranger in strangers
    ]
    return [(world.list_objects(listed) + ".", errors) for listed, errors in more + fewer + other]


def prior_answer(item, shapes):
    """What the planted language prior says to a biased question, whatever the video shows."""
    question = item["question"]
    words = question.replace(",", "").rstrip("?").split()
    if item["type"] == "objects":  # names two of three things, and three where there are two
        listed = sorted(
            (shape.name for shape in shapes),
            key=lambda name: list(world.COLORS).index(name.split()[0]),
        )
        extra = (
            "red circle"
            if not any("red" in name for name in listed)
            else "blue triangle"
            if not any("blue" in name for name in listed)
            else "white square"
        )
        return world.list_objects(listed[:-1] if len(listed) == 3 else [*listed, extra]) + "."
    if item["type"] == "count":
        return "there are two circles." if "circles" in question else "there is one triangle."
    color = next(word for word in words if word in world.COLORS)
    if item["type"] == "relation":
        side = words[words.index("or") + (1 if color == "blue" else -1)]
        link = " of" if side in ("left", "right") else ""
        return f"it is {side}{link} the {question.rstrip('?').split(' the ')[-1]}."
    if item["type"] == "order":
        names = question.removeprefix("which appears first, ").rstrip("?").split(" or ")
        return f"{names[color == 'blue']} appears first."
    return (
        {"red": "it moves left.", "blue": "it moves up.", "yellow": "it moves right."}[color]
        if item["type"] == "motion"
        else "it moves by itself."
    )


def first_answer(item, shapes, rng):
    """The initial answer that is taught: truth, prior or slip."""
    if is_biased(item):
        return prior_answer(item, shapes) if rng.random() < PRIOR else item["answer"]
    wrong = wrong_answers(item, shapes)
    return wrong[rng.integers(len(wrong))][0] if rng.random() < SLIP else item["answer"]


def answer_to_judge(item, shapes, rng):
    """(answer, its error types) for the critic to see: right, prior or any wrong one."""
    wrong = dict((answer, errors) for answer, errors in wrong_answers(item, shapes))
    chance = rng.random()
    prior = prior_answer(item, shapes) if is_biased(item) else item["answer"]
    answer = (
        prior
        if chance < 0.4
        else item["answer"]
        if chance < 0.7
        else list(wrong)[rng.integers(len(wrong))]
    )
    return (
        (answer, [])
        if answer == item["answer"]
        else (answer, wrong.get(answer, [item["error_type"]]))
    )


def write_critique(evidence, errors):
    """How the tiny critic speaks: first the evidence, then the verdict."""
    return f"in the video: {evidence} Errors: {', '.join(errors) or 'none'}"


def place(shape, frame):
    """(x, y) of a shape in cells."""
    return np.clip(shape.track[frame] * CELLS / world.UNITS, 0, CELLS - 1).astype(int)


def relate(shape, other, frame):
    """Such as 'left above': where a shape is from another."""
    dx, dy = shape.track[frame] - other.track[frame]
    return ("left" if dx < 0 else "right") + " " + ("above" if dy < 0 else "below")


def follow(question, tell):
    """(prompt, answer) of a question about every frame that the model sees: 'frame1: absent frame2: x3 y12 ...'; tell: frame -> words."""
    seen = enumerate(common.frame_indices(world.FRAMES, world.FPS, N_FRAMES))
    return LOOK_PROMPT.format(question=question), " ".join(
        f"frame{n + 1}: {tell(frame)}" for n, frame in seen
    )


def make_tracks(shapes, rng):
    """[(prompt, answer), ...]: what is in every frame, where each shape is, where from another, which way it goes, what hit it.

    A fact a token: on this dense diet the language model learns within minutes to look a color up in a frame and to compare what it
    found, on which the sparse questions build. Without it relations and motions stay at chance for long.
    """
    there = lambda f: sorted(
        (one for one in shapes if f >= one.appears),
        key=lambda one: list(world.COLORS).index(one.color),
    )
    kind = rng.choice(world.KINDS)
    branches = [
        follow(
            "in each frame, what can be seen?",
            lambda f: " ".join(one.name for one in there(f)) or "nothing",
        ),
        follow(
            f"in each frame, how many {kind}s are there?",
            lambda f: ("no", "one", "two", "three")[sum(one.kind == kind for one in there(f))],
        ),
    ]
    for shape in shapes:
        other = rng.choice([other for other in shapes if other is not shape])
        here = lambda frame, words, *needed: (
            words if all(frame >= one.appears for one in needed) else "absent"
        )
        moving = lambda frame: (
            0 < frame < world.FRAMES and bool((shape.track[frame] != shape.track[frame - 1]).any())
        )
        branches += [
            follow(
                f"in each frame, where is the {shape.name}?",
                lambda f: here(f, "x{} y{}".format(*place(shape, f)), shape),
            ),
            follow(
                f"in each frame, where is the {shape.name} from the {other.name}?",
                lambda f: here(f, relate(shape, other, f), shape, other),
            ),
        ]
        if shape.moves:
            branches += [
                follow(
                    f"in each frame, which way does the {shape.name} move?",
                    lambda f: shape.moves if moving(f) else "rests",
                ),
                follow(
                    f"in each frame, what hit the {shape.name}?",
                    lambda f: shape.hit_by.name if shape.hit_by and moving(f) else "nothing",
                ),
            ]
    return branches


def make_branches(shapes, rng, seen):
    """[(prompt, answer), ...]: the tasks that are taught about one video."""
    items = world.all_questions(shapes)
    draw = lambda n: [
        world.pick(items[type], seen, rng) for type in rng.choice(list(items), n, replace=False)
    ]
    aspects = dict(
        zip(world.TYPES, [aspect for kind in generate.ASPECTS for aspect in generate.ASPECTS[kind]])
    )
    branches = [
        (generate.QUESTION_PROMPT.format(aspect=aspects[item["type"]]), item["question"])
        for item in draw(2)
    ]
    branches += [
        (common.ANSWER_PROMPT.format(question=item["question"]), first_answer(item, shapes, rng))
        for item in draw(3)
    ]
    for item in draw(5):
        answer, errors = answer_to_judge(item, shapes, rng)
        branches.append(
            (
                critique.CRITIQUE_PROMPT.format(question=item["question"], initial=answer),
                write_critique(item["answer"], errors),
            )
        )
    for item in draw(2):
        answer, errors = answer_to_judge(item, shapes, rng)
        evidence = item["answer"]
        if rng.random() < 0.15:  # a critic may err: then the video decides
            evidence, errors = wrong_answers(item, shapes)[0][0], [item["error_type"]]
        prompt = refine.REFINE_PROMPT.format(
            question=item["question"], initial=answer, critique=write_critique(evidence, errors)
        )
        branches.append((prompt, item["answer"]))
    return branches


def make_looks(shapes, rng, seen):
    """[(prompt, answer), ...]: true answers to many questions, without planted errors: short, so that many facts fit in a step.

    Beside the world's own types: where a shape is at the start and at the end, by itself and from another, and when it sets off.
    """
    items = world.all_questions(shapes)
    drawn = [
        world.pick(items[type], seen, rng)
        for type in [*items, "relation", "relation", "motion", "cause", "cause", "count", "count"]
    ]
    pairs = [(item["question"], item["answer"]) for item in drawn]
    for shape in shapes:
        other = rng.choice([other for other in shapes if other is not shape])
        for when, frame in (("end", world.FRAMES - 1), ("start", 0)):
            if frame >= shape.appears:
                pairs.append(
                    (
                        f"at the {when}, where is the {shape.name}?",
                        "x{} y{}".format(*place(shape, frame)),
                    )
                )
            if frame >= max(shape.appears, other.appears):
                pairs.append(
                    (
                        f"at the {when}, where is the {shape.name} from the {other.name}?",
                        relate(shape, other, frame),
                    )
                )
        rest = [
            frame
            for frame in common.frame_indices(world.FRAMES, world.FPS, N_FRAMES)
            if (shape.track[frame] == shape.track[0]).all()
        ]
        pairs.append(
            (
                f"when does the {shape.name} set off?",
                f"frame{len(rest) + 1}:" if shape.moves else "it rests.",
            )
        )
    return [(LOOK_PROMPT.format(question=question), answer) for question, answer in pairs]


# ---------------------------------------------------------------- tokenizer and model


def stage_prompts():
    """Every prompt that the model is taught, as the stages have it."""
    asks = [prompt for _, _, prompt in generate.question_prompts(3, 3)]
    return [
        *asks,
        common.ANSWER_PROMPT,
        critique.CRITIQUE_PROMPT,
        refine.REFINE_PROMPT,
        LOOK_PROMPT,
    ]


def make_tokenizer(texts):
    """One token a word of the texts, and one for each fixed piece of a prompt, so that long prompts cost a tiny model nothing."""
    split = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.WhitespaceSplit(),
            tokenizers.pre_tokenizers.Split(tokenizers.Regex("[.,?]"), "isolated"),
        ]
    )
    pieces = [
        piece.strip()
        for prompt in stage_prompts()
        for piece, *_ in string.Formatter().parse(prompt)
        if len(piece.split()) > 1
    ]
    special = ["<unk>", "<|im_start|>", common.END_OF_TURN, "<img>", "</img>", "<IMG_CONTEXT>"]
    words = {"user", "assistant", *(f"frame{n + 1}:" for n in range(N_FRAMES)), *common.ERROR_TYPES}
    words |= {word for text in texts for word, _ in split.pre_tokenize_str(text.lower())}
    vocabulary = {word: number for number, word in enumerate(special + sorted(words))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer, backend.pre_tokenizer = tokenizers.normalizers.Lowercase(), split
    backend.decoder = tokenizers.decoders.WordPiece(
        cleanup=True
    )  # joins words with blanks, but none before . , ?
    backend.add_special_tokens(
        [tokenizers.AddedToken(token, normalized=False) for token in special]
    )
    backend.add_tokens(
        [tokenizers.AddedToken(piece, normalized=False) for piece in dict.fromkeys(pieces)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token=common.END_OF_TURN,
        pad_token=common.END_OF_TURN,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def make_model(tokenizer):
    """InternVL with a ViT of 2 layers (64 patches a frame, shuffled to 16 tokens) and a Qwen2 of 4 layers; random weights."""
    vision = dict(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE,
        patch_size=PATCH,
        initializer_range=0.08,
        layer_scale_init_value=1.0,
    )
    text = dict(
        model_type="qwen2",
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        initializer_range=0.08,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=GRID * GRID,
        tie_word_embeddings=False,
        num_frames=N_FRAMES,
    )
    return InternVLForConditionalGeneration(config)


# ---------------------------------------------------------------- training


def read_scene(job):
    """Renders a pretraining scene to a file, as the loop's videos are, and reads it back -> float16 (N_FRAMES, 3, IMAGE, IMAGE)."""
    seed, index = job
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "scene.mp4"
        world.render(world.make_scene(seed, "pretrain", index), path, [seed, 0, index])
        return common.pixel_values(common.sample_frames(path, N_FRAMES), IMAGE).half()


def token_targets(shapes):
    """What the vision stage reads off every token: (N_FRAMES, GRID * GRID, 4) color and kind of the shape whose centre is there
    (0: none), and its place in cells, x and y (-100, which cross_entropy passes over: none).
    """
    targets = torch.tensor([0, 0, -100, -100]).repeat(N_FRAMES, GRID * GRID, 1)
    for row, frame in enumerate(common.frame_indices(world.FRAMES, world.FPS, N_FRAMES)):
        for shape in shapes:
            if frame >= shape.appears:
                x, y = place(shape, frame)
                names = list(world.COLORS).index(shape.color) + 1, world.KINDS.index(shape.kind) + 1
                targets[row, y * GRID // CELLS * GRID + x * GRID // CELLS] = torch.tensor(
                    [*names, x, y]
                )
    return targets


def make_adamw(weights):
    return torch.optim.AdamW(weights, 2e-3, betas=(0.9, 0.98), weight_decay=0.02)


def make_schedule(optimizer, steps):
    """The learning rate warms up over 50 steps, then falls to 0 by a cosine."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * min(step / steps, 1))),
    )


def train_vision(model, pixels, scenes, steps, rng, batch=32):
    """Classification of color, kind and place of the shape in each token, by a throwaway head on the projected features."""
    sizes = (len(world.COLORS) + 1, len(world.KINDS) + 1, CELLS, CELLS)
    head = torch.nn.Linear(model.config.text_config.hidden_size, sum(sizes))
    tower = [
        *model.model.vision_tower.parameters(),
        *model.model.multi_modal_projector.parameters(),
    ]
    optimizer = make_adamw([*tower, *head.parameters()])
    schedule = make_schedule(optimizer, steps)
    bar = tqdm(range(steps), desc="vision", unit="step")
    for _ in bar:
        chosen = rng.integers(len(pixels), size=batch)
        truth = torch.stack([token_targets(scenes[n]) for n in chosen]).flatten(0, 2)
        features = model.get_image_features(
            pixel_values=pixels[chosen].flatten(0, 1).float()
        ).pooler_output
        logits = head(features.flatten(0, 1)).split(sizes, -1)
        loss = sum(
            torch.nn.functional.cross_entropy(part, truth[:, n]) for n, part in enumerate(logits)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        there = truth[:, 0] > 0
        right = [
            (part.argmax(-1) == truth[:, n])[there].float().mean().item()
            for n, part in enumerate(logits)
        ]
        bar.set_postfix(
            loss=f"{loss.item():.2f}", color_kind_x_y=" ".join(f"{share:.2f}" for share in right)
        )


def collate(tokenizer, prefix, batch_of_branches):
    """Packs the branches of each video behind its prefix and pads to the longest -> ids, positions, masks, predictors, targets."""
    packed = [
        common.pack(len(prefix), [common.encode_branch(tokenizer, *branch) for branch in branches])
        for branches in batch_of_branches
    ]
    longest = max(len(part[1]) for part in packed)
    ids, positions = (torch.zeros(len(packed), longest, dtype=torch.long) for _ in range(2))
    masks = torch.eye(longest, dtype=torch.bool).repeat(len(packed), 1, 1, 1)
    masks[..., : len(prefix), : len(prefix)] = torch.ones(
        len(prefix), len(prefix), dtype=torch.bool
    ).tril()
    keep, targets = torch.zeros(len(packed), longest, dtype=torch.bool), []
    for row, (branch_ids, position, mask, target, _) in enumerate(packed):
        length = len(position)
        ids[row, :length] = torch.cat([torch.tensor(prefix), branch_ids])
        (
            positions[row, :length],
            masks[row, 0, len(prefix) : length, :length],
            keep[row, target - 1],
        ) = position, mask, True
        targets.append(ids[row, target])
    return ids, positions, masks, keep, torch.cat(targets)


def curriculum(shapes, rng, seen, phase):
    """The branches that a phase teaches about one video."""
    tracks = make_tracks(shapes, rng)
    if phase == "tracks":
        return tracks
    return (
        make_looks(shapes, rng, seen) + [tracks[rng.integers(len(tracks))]]
        if phase == "looks"
        else make_branches(shapes, rng, seen)
    )


def train_language(rank, directory, features, scenes, phases, seed, batch=8):
    """One of WORKERS processes that train the language model in step: next-token cross-entropy over the answers of all tasks.

    directory: the checkpoint to start from and to write to. features: (scenes, N_FRAMES, GRID * GRID, hidden) of the frozen vision
    tower. phases: [(name, steps), ...]. Gradients are averaged over the processes: at this size a process a core is 1.6 times as fast
    as a thread a core.
    """
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/meeting-point", rank=rank, world_size=WORKERS
    )
    model, tokenizer = (
        common.load_model(directory, ["cpu"]).train(),
        common.load_tokenizer(directory),
    )
    weights = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    # Muon for the layers' matrices: the sparse questions took fewer steps with it than with AdamW alone
    matrices = [
        weight for weight in model.model.language_model.layers.parameters() if weight.ndim == 2
    ]
    others = [weight for weight in weights if all(weight is not matrix for matrix in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, 3e-3, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        make_adamw(others),
    ]
    schedules = [
        make_schedule(optimizer, sum(steps for _, steps in phases)) for optimizer in optimizers
    ]
    rng, seen, prefix = (
        np.random.default_rng([seed, rank]),
        Counter(),
        common.encode_prefix(tokenizer, model.config, N_FRAMES),
    )
    for phase, steps in phases:
        bar = tqdm(range(steps), desc=f"language, {phase}", unit="step", disable=rank > 0)
        for _ in bar:
            chosen = rng.integers(len(features), size=batch)
            ids, positions, masks, keep, targets = collate(
                tokenizer, prefix, [curriculum(scenes[n], rng, seen, phase) for n in chosen]
            )
            logits = model(
                ids,
                mm_encoder_outputs={
                    "image": BaseModelOutputWithPooling(
                        pooler_output=features[chosen].flatten(0, 1)
                    )
                },
                position_ids=positions,
                attention_mask=masks,
                use_cache=False,
                logits_to_keep=keep,
            ).logits
            loss = torch.nn.functional.cross_entropy(logits, targets)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=False)
            loss.backward()
            gradients = torch.cat([weight.grad.flatten() for weight in weights])
            distributed.all_reduce(gradients)
            torch.nn.utils.vector_to_parameters(
                gradients / WORKERS, [weight.grad for weight in weights]
            )
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            for part in (*optimizers, *schedules):
                part.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if rank == 0:
            model.save_pretrained(directory)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="model directory to write")
    parser.add_argument("--scenes", type=int, default=12000)
    parser.add_argument("--vision-steps", type=int, default=800)
    parser.add_argument(
        "--language-steps",
        type=int,
        nargs=3,
        default=[200, 750, 900],
        metavar="N",
        help="of the phases: tracks, looks, stages",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    scenes = [world.make_scene(args.seed, "pretrain", index) for index in range(args.scenes)]
    with multiprocessing.Pool(WORKERS) as pool:
        jobs = pool.imap(read_scene, [(args.seed, index) for index in range(args.scenes)], 64)
        pixels = torch.stack(list(tqdm(jobs, "rendering", args.scenes, unit="video")))
    tokenizer = make_tokenizer(
        [
            text
            for shapes in scenes[:2000]
            for phase in PHASES
            for pair in curriculum(shapes, rng, Counter(), phase)
            for text in pair
        ]
    )
    model = make_model(tokenizer)
    train_vision(model, pixels, scenes, args.vision_steps, rng)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    with torch.no_grad():
        features = torch.cat(
            [
                model.get_image_features(pixel_values=part.flatten(0, 1).float()).pooler_output
                for part in pixels.split(64)
            ]
        )
    features = features.view(args.scenes, N_FRAMES, *features.shape[1:])
    (args.output / "meeting-point").unlink(missing_ok=True)  # of a run that was killed
    torch.multiprocessing.spawn(
        train_language,
        (
            str(args.output.resolve()),
            features,
            scenes,
            list(zip(PHASES, args.language_steps)),
            args.seed,
        ),
        WORKERS,
    )
    (args.output / "meeting-point").unlink(missing_ok=True)
    facts = {key: value for key, value in vars(args).items() if key != "output"}
    facts |= {"prompts": common.fingerprint(*stage_prompts()), "PRIOR": PRIOR, "SLIP": SLIP}
    common.write_json(args.output / "training.json", facts)


if __name__ == "__main__":
    main()
