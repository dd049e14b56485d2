r"""Stage 4: direct preference optimization on the pairs, written out by hand.

    python dpo.py --model shapes/model \
        --input runs/mine/round1/pairs.jsonl --output runs/mine/round1/model
    python dpo.py --model shapes/model --output runs/mine/both/model \
        --input runs/mine/round1/pairs.jsonl runs/mine/round2/pairs.jsonl

The language model is trained; the vision tower and the projector are frozen,
unless --tune all trains them, too.
Per step: for each of --videos-per-step videos (or segments, if rows have start
and end) one forward and one backward pass over

    [video | question 1, chosen | question 2, chosen | ...
           | question 1, rejected | question 2, rejected | ...]

(over several devices: all forward passes, then one backward pass), then one
update of AdamW on float32 master weights. The reference is the model that the
round starts from: its log-probs are computed before the first update, by the
same function. Started by torchrun, one process a GPU trains a share of the
videos, and holds a share of the weights (vlm/sharding.py).

reads    id, video, question, chosen, rejected; rows with `dropped` are skipped
         (--with-unchanged reads those whose answer its critique left alone).
         The prompt around the question is the one that it was asked with, which
         the input's meta.json has
writes   a checkpoint like the base's (--tune lora: an adapter), with a short
         model card and metrics.jsonl: one line a step, TRL's names; tokens/s
         counts the tokens of answers alone, not those of videos and questions.
         Until it is finished also reference.jsonl and checkpoint-*.state, from
         which a stopped training resumes

Shapes: a video has B pairs, a step has S pairs. (2, B) is a row for the chosen
answers and a row for the rejected.
"""

import functools
import json
import math
import os
import random
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tqdm import tqdm

import common
import outputs
import prompts
import vlm
from vlm import sharding

SIDES = ("chosen", "rejected")
SHOWN = ("loss", "rewards/margins", "rewards/accuracies")  # beside the progress bar
REQUIRED = ("id", "video", "question", *SIDES)

LOSSES = ("sigmoid", "hinge", "ipo", "sft")
# Preference losses of log-probs that are means over an answer's tokens; the others take sums
PER_TOKEN = ("ipo",)
# Losses that need no reference, such as SimPO: none is here yet. Theirs is 0, without a pass.
# sft is not among them: the rewards that it reports need one
REFERENCE_FREE = ()

# Learning rate by what is trained: factors want about ten times that of all weights
RATES = {"full": 5e-7, "all": 5e-7, "lora": 5e-6}
LORA_RANK = 16

TRAINED = {
    "full": "all weights of the language model",
    "all": "all weights, also of the vision tower and the projector",
    "lora": "LoRA's factors",
}


# ------------------------------------------------------------------------------
# The loss


def dpo_loss(
    policy_chosen_logps,
    policy_rejected_logps,
    ref_chosen_logps,
    ref_rejected_logps,
    beta,
    loss="sigmoid",
    label_smoothing=0.0,
):
    """Compute the preference loss of B pairs from their log-probs.

    Args:
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps: (B,) each,
            summed over an answer's tokens (for ipo pass means over tokens, as TRL does)
        beta: strength of the tie to the reference
        loss: "sigmoid" is DPO, equation 7 of arXiv 2305.18290
            "hinge" is the SLiC form, as in RSO (arXiv 2309.06657)
            "ipo" is equation 17 of arXiv 2310.12036
        label_smoothing: for sigmoid, the share of pairs assumed to be inverted (cDPO, equation 3
            of the note by DPO's authors)

    Returns:
        losses, chosen_rewards, rejected_rewards: (B,) each; rewards carry no gradient
    """
    logps = (policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)
    shapes = {tuple(part.shape) for part in logps}
    assert len(shapes) == 1, f"log-probs of different shapes: {sorted(shapes)}"

    # log pi(y|x) / pi_ref(y|x), of the chosen answers y_w and of the rejected answers y_l
    chosen_logratios = policy_chosen_logps - ref_chosen_logps
    rejected_logratios = policy_rejected_logps - ref_rejected_logps
    h = chosen_logratios - rejected_logratios
    if loss == "sigmoid":
        as_labeled = -F.logsigmoid(beta * h)
        inverted = -F.logsigmoid(-beta * h)
        losses = (1 - label_smoothing) * as_labeled + label_smoothing * inverted
    elif loss == "hinge":
        losses = torch.relu(1 - beta * h)
    elif loss == "ipo":
        losses = (h - 1 / (2 * beta)) ** 2
    else:
        raise ValueError(f"unknown loss {loss!r}")
    return losses, beta * chosen_logratios.detach(), beta * rejected_logratios.detach()


def step_loss(args, sums, lengths, reference, n_pairs: int, n_tokens: int):
    """Compute one video's share of a step's loss: the shares add up to the mean over all pairs.

    Args:
        sums, lengths, reference: (2, B) of this video
        n_pairs: number of pairs in the whole step
        n_tokens: number of tokens, in the whole step, of the answers on cross_entropy_side

    Returns:
        share: a scalar tensor; rewards: (2, B), without gradient, per token for PER_TOKEN losses
    """
    nll = -sums[cross_entropy_side(args)].sum() / n_tokens
    if args.loss == "sft":
        return nll, args.beta * (sums - reference).detach()

    scale = lengths if args.loss in PER_TOKEN else torch.ones_like(lengths)
    policy_chosen, policy_rejected = sums / scale
    ref_chosen, ref_rejected = reference / scale
    losses, *rewards = dpo_loss(
        policy_chosen,
        policy_rejected,
        ref_chosen,
        ref_rejected,
        args.beta,
        args.loss,
        args.label_smoothing,
    )
    return losses.sum() / n_pairs + args.nll_weight * nll, torch.stack(rewards)


def cross_entropy_side(args) -> int:
    """Give the row of (2, B) whose answers the cross-entropy is taken over: 0 is chosen.

    The pairs of --sft-on revised have the revision as their chosen answer.

    --sft-on is an option of --loss sft alone; an NLL term beside a preference is on chosen.
    """
    return 1 if args.loss == "sft" and args.sft_on == "rejected" else 0


# ------------------------------------------------------------------------------
# Log-probs, and a step's gradients


def pair_logps(model, tokenizer, video, pairs: list[dict]):
    """Compute the log-probs of all pairs about one video, in one packed forward pass.

    Returns:
        sums: (2, B) log-prob of each answer, summed over its tokens
        lengths: (2, B) number of its tokens
    """
    branches = encode_pairs(tokenizer, pairs)
    rows = [branch.prompt + branch.answer for branch in branches]
    vlm.check_room(model.config, tokenizer, video.behind, rows)
    sums, lengths = vlm.branch_logps(model, video, branches)  # (2 B,)
    return sums.view(2, len(pairs)), lengths.view(2, len(pairs))


def encode_pairs(tokenizer, pairs: list[dict]) -> list:
    """Encode the questions with their answers -> 2 B branches, all chosen ones first."""
    branches = []
    for side in SIDES:
        for pair in pairs:
            branches.append(vlm.encode_branch(tokenizer, pair["prompt"], pair[side]))
    return branches


class Step(NamedTuple):
    """What a step's forward and backward passes give, beside the gradients."""

    loss: float
    rewards: torch.Tensor  # (2, S) of all pairs of the step
    sums: torch.Tensor  # (2, S)
    lengths: torch.Tensor  # (2, S)


def accumulate(model, tokenizer, watched, batch: list, reference: dict, args) -> Step:
    """Run forward and backward over the videos of a step; gradients add up in the weights.

    A video is a micro-batch. On one device its backward pass follows its forward pass, so only one
    video's activations are held at a time. On several devices all forward passes come first, so
    that devices can work at the same time (GPipe's order, arXiv 1811.06965; not measured yet).

    Args:
        watched: iterable of (pairs, Video) of the step, as watch_batches gives them: under torchrun
            those of this process
        batch: [(name of a video, its pairs), ...] of the whole step
        reference: what reference_logps returns
    """
    is_split = len({weight.device for weight in model.parameters()}) > 1
    side = cross_entropy_side(args)
    n_pairs = sum(len(pairs) for _, pairs in batch)
    n_tokens = 0
    for _, pairs in batch:
        _, ref_lengths = reference[common.segment(pairs[0])]  # (2, B)
        n_tokens += ref_lengths[side].sum().item()

    shares = []
    parts = []
    for pairs, video in watched:
        if video is None:
            raise common.InputError(f"{pairs[0]['error']}; its pairs cannot be trained on")
        sums, lengths = pair_logps(model, tokenizer, video, pairs)
        ref_sums, _ = reference[common.segment(pairs[0])]
        ref_sums = ref_sums.to(sums.device)
        share, rewards = step_loss(args, sums, lengths, ref_sums, n_pairs, n_tokens)
        if is_split:
            shares.append(share)
        else:
            share.backward()
        parts.append((share.detach(), rewards, sums.detach(), lengths))
    if is_split:
        sum(shares).backward()

    losses, *parts = zip(*vlm.gather(parts))
    rewards, sums, lengths = (torch.cat(part, dim=1) for part in parts)
    return Step(sum(losses).item(), rewards, sums, lengths)


@torch.no_grad()
def reference_logps(model, tokenizer, groups: list, root, args) -> dict:
    """Compute log-probs under the model that this round starts from, as the training does.

    They are kept in reference.jsonl, one line a segment, until the training is finished: a stopped
    pass resumes. Videos that cannot be read are reported and left out.

    Args:
        groups: [(video, its pairs), ...], one for each segment

    Returns:
        {segment: (sums (2, B), lengths (2, B))}, on the CPU; common.segment says what a segment is
    """
    if args.loss in REFERENCE_FREE:
        return {common.segment(pairs[0]): zero_reference(tokenizer, pairs) for _, pairs in groups}

    path = args.output / "reference.jsonl"
    rows = outputs.resume_lines(path)
    left = left_to_do(groups, rows)
    with outputs.open_lines(path) as file:
        # A round has a video for each process: a single one, unless torchrun started several
        rounds = common.cut_in_batches(left, common.process().n)
        for watched in vlm.watch_batches(model, tokenizer, rounds, root, args, "reference"):
            made = vlm.gather([reference_row(model, tokenizer, *each) for each in watched])
            for row in made:
                if "error" in row:
                    print(f"left out: {row['error']}")
                    continue
                file.write(json.dumps(row) + "\n")
                rows.append(row)
    reference = {}
    for row in rows:
        reference[common.segment(row)] = torch.tensor(row["sums"]), torch.tensor(row["lengths"])

    n_bad = len(groups) - len(reference)
    if not reference or n_bad > args.max_bad * len(groups):
        raise common.InputError(
            f"{n_bad} of {len(groups)} videos cannot be read (--videos says where they are)"
        )
    return reference


def left_to_do(groups: list, rows: list[dict]) -> list:
    """Give the groups whose reference is not among the rows of reference.jsonl."""
    done = {common.segment(row) for row in rows}
    return [group for group in groups if common.segment(group[1][0]) not in done]


def reference_row(model, tokenizer, pairs: list[dict], video) -> dict:
    """Compute the log-probs of a segment's pairs -> its row of reference.jsonl, or its error."""
    name, start, end = common.segment(pairs[0])
    row = {"video": name, "start": start, "end": end}
    if video is None:
        return row | {"error": pairs[0]["error"]}
    sums, lengths = pair_logps(model, tokenizer, video, pairs)  # (2, B) each
    return row | {"sums": sums.tolist(), "lengths": lengths.tolist()}


def zero_reference(tokenizer, pairs: list[dict]):
    """Give what a loss without a reference takes in its place: zeros (2, B), lengths (2, B)."""
    lengths = [len(branch.answer) for branch in encode_pairs(tokenizer, pairs)]
    lengths = torch.tensor(lengths).view(2, len(pairs))
    return torch.zeros(2, len(pairs)), lengths


# ------------------------------------------------------------------------------
# What is trained, on what, and how fast


def read_work(args):
    """Read what is to be done, and check it.

    Returns:
        root: of the videos
        groups: [(video, its pairs), ...], one for each segment of a video
        meta: for meta.json
    """
    sharding.check_processes(args)
    wording = prompts.choose(args, args.input, settled=("answer",))
    root, groups = read_pairs(args, wording.answer)
    vlm.check_model(args.model, list_texts(args.input, groups), args.frame_tokens)
    read = [name_as_in_file(pairs) for _, pairs in groups]
    meta = common.make_meta(args, [wording.answer], wording._asdict(), root, read)
    return root, groups, meta


def read_pairs(args, answer: str):
    """Read the pairs to train on, of one input or of several.

    The pairs get `prompt`, the words that their question was asked with.

    Args:
        answer: prompt that questions are asked with; those of a benchmark have their own

    Returns:
        (root of their videos, [(video, its pairs), ...], one for each segment of a video)
    """
    check_adapter(args)
    root, groups = common.read_inputs(args.input, args.videos, REQUIRED)
    rows = [row for _, group in groups[: args.limit] for row in group]
    if args.loss == "sft" and args.sft_on == "revised":
        rows = [take_revision(row) for row in rows]
    if args.with_unchanged:
        rows = [take_unchanged(row) for row in rows]
    pairs = []
    for row in rows:
        if "dropped" not in row:
            pairs.append(row | {"prompt": render_prompt(row, answer)})
    if not pairs:
        raise common.InputError(
            f"{' '.join(args.input)}: no row is a pair, so there is nothing to learn"
        )
    return root, common.group_by_segment(pairs)


def render_prompt(row: dict, answer: str) -> str:
    """Give the words that a row's question was asked with; evaluate.py's rows have them.

    answer: prompt of all other rows
    """
    if "benchmark" in row and isinstance(row.get("prompt"), str):
        return row["prompt"]
    return prompts.fill(answer, question=row["question"])


def list_texts(inputs: list[str], groups: list) -> list[tuple[str, str]]:
    """List the texts of all pairs, with where they are from, for vlm.check_model."""
    texts = []
    for path in inputs:
        for video, pairs in groups:
            own = [pair for pair in pairs if pair.get("input", path) == path]
            texts += vlm.list_texts(path, [(video, own)], ("question", "prompt", *SIDES))
    return texts


def name_as_in_file(pairs: list[dict]) -> list[dict]:
    """Give pairs as they are wherever their files and videos are, for the fingerprint."""
    named = []
    for pair in pairs:
        row = {key: value for key, value in pair.items() if key not in ("input", "named")}
        named.append(row | {"video": pair.get("named", pair["video"])})
    return named


def check_adapter(args):
    """Raise InputError if the options do not go with a model that is an adapter."""
    adapter = vlm.read_adapter(args.model)
    if adapter.rank and args.tune != "lora":
        raise common.InputError(
            f"{args.model} is an adapter: train it further with --tune lora, "
            "or merge it first (python -m tools.merge)"
        )
    if adapter.rank and args.lora_alpha not in (None, adapter.alpha):
        raise common.InputError(
            f"--lora-alpha {args.lora_alpha}: {args.model} is an adapter with lora_alpha "
            f"{adapter.alpha}, which it keeps"
        )


def take_revision(row: dict) -> dict:
    """Make a pair of a row whose revision repeats the answer; other rows stay as they are."""
    is_whole = all(key in row for key in ("question", "initial", "revised"))
    if row.get("dropped") != "unchanged" or not is_whole:
        return row
    kept = {key: value for key, value in row.items() if key != "dropped"}
    return kept | {"chosen": row["revised"], "rejected": row["initial"]}


def take_unchanged(row: dict) -> dict:
    """Make a row of an answer that its critique left as it was; other rows stay as they are.

    Both sides are the answer: a preference loss is constant there, cross-entropy learns it.
    """
    is_whole = all(key in row for key in ("question", "initial"))
    if row.get("dropped") not in ("no_error_found", "unchanged") or not is_whole:
        return row
    kept = {key: value for key, value in row.items() if key != "dropped"}
    return kept | {"chosen": row["initial"], "rejected": row["initial"]}


def tell_where_from(args, groups: list, meta: dict):
    """Print whose pairs the inputs have, and behind which words, where that is not known."""
    pairs = [pair for _, group in groups for pair in group]
    for path in args.input:
        own = [pair for pair in pairs if pair.get("input", path) == path]
        if len(args.input) > 1:
            print(f"{path}: {len(own)} pairs")
        file = common.meta_path(path)
        made = common.read_json(file) if file.exists() else {}
        made_by = made.get("content", {}).get("model")
        if made_by and made_by != meta["content"]["model"]:
            print(
                f"off-policy: {path} was made by another model, {made['arguments']['model']}, "
                f"than the one that is trained on it, {args.model}"
            )
        have_own_prompts = all("benchmark" in pair for pair in own)
        if "answer" not in prompts.recorded(path) and not have_own_prompts:
            print(
                f"{path}: no meta.json says with which prompt its questions were asked; they are "
                f"trained behind {meta['prompts']['answer']!r}"
            )
    tell_if_there_twice(pairs)


def tell_if_there_twice(pairs: list[dict]):
    """Print how many pairs are copies of others, such as those of a file that was copied."""
    keys = ("video", "start", "end", "question", *SIDES)
    distinct = {tuple(pair.get(key) for key in keys) for pair in pairs}
    if len(distinct) < len(pairs):
        print(f"{len(pairs) - len(distinct)} pairs are there more than once, and count each time")


def load_policy(args):
    """Load the model to be trained, with LoRA's factors if they are what is trained.

    Returns:
        model, tokenizer, adapter: vlm.Adapter, whose rank is 0 if all weights are trained
    """
    adapter = vlm.read_adapter(args.model)
    is_new = args.tune == "lora" and not adapter.rank
    if is_new:
        alpha = args.lora_alpha or 2 * args.lora_rank
        adapter = vlm.Adapter(args.model, rank=args.lora_rank, alpha=alpha)

    if common.process().n > 1:  # FSDP2: each process holds its rows of every weight
        freeze = functools.partial(freeze_weights, tune=args.tune)
        model, tokenizer = sharding.load(args, adapter, freeze)
        return model, tokenizer, adapter
    model, tokenizer = vlm.load(args)
    if is_new:
        torch.manual_seed(args.seed)
        vlm.add_lora(model.model.language_model.layers, adapter.rank, adapter.alpha)
    return model, tokenizer, adapter


def freeze_weights(model, checkpointing: bool = False, tune: str = "full") -> list:
    """Freeze all weights but those that are trained.

    tune: "full" trains the language model with its head, "lora" LoRA's factors, "all" everything

    Returns:
        the weights that are trained
    """
    if checkpointing:  # transformers checkpoints in train mode alone
        part = model.model if tune == "all" else model.model.language_model
        part.train().activation_checkpointing_enable()
    model.requires_grad_(False)
    trained = []
    for name, weight in model.named_parameters():
        in_language = name.startswith(("model.language_model", "lm_head"))
        if tune == "lora":
            is_trained = in_language and ".lora_" in name
        else:
            is_trained = in_language or tune == "all"
        if is_trained:
            trained.append(weight.requires_grad_())
    return trained


def print_memory(weights: list, masters: list, base, args):
    """Print what training needs beside the weights: gradients, and AdamW's masters and moments."""
    needed = {}
    for weight, master in zip(weights, masters):
        # Two moments in float32; unless the weight is its own master, also master and its gradient
        n_bytes = 8 if master is weight else 16
        needed.setdefault(weight.device, 0)
        own = vlm.local(weight)  # all of it, unless several processes share it
        needed[weight.device] += own.nbytes + n_bytes * own.numel()
    each = "each process, " if common.process().n > 1 else ""
    for device, n_bytes in needed.items():
        gib = n_bytes / 2**30
        print(
            f"{each}{device}: {gib:.2f} GiB for gradients and AdamW beside the weights; "
            f"with activations: python -m tools.memory {base} --tune {args.tune}"
        )


def give_gradients(weights: list, masters: list):
    """Give the masters the gradients of their weights, in float32.

    Raises:
        InputError: if a weight has none, such as those of a tower whose last layers are not used
    """
    for master, weight in zip(masters, weights):
        if weight.grad is None:
            raise common.InputError(
                f"a trained weight, {tuple(weight.shape)}, has no gradient: no answer needs it. "
                "A part of the vision tower may be unused; leave --tune all out"
            )
        master.grad = weight.grad.float()


def make_batches(groups: list, args) -> list[list]:
    """Shuffle the videos anew for every epoch, and cut their order into steps.

    An epoch ends with a step, which may have fewer videos than the others.

    Args:
        groups: [(video, its pairs), ...]

    Returns:
        for each step a list like groups, of up to --videos-per-step videos
    """
    shuffle = random.Random(args.seed)
    size = args.videos_per_step
    batches = []
    for _ in range(args.epochs):
        order = shuffle.sample(groups, len(groups))
        batches += [order[first : first + size] for first in range(0, len(order), size)]
    return batches


def learning_rate(args, step: int, n_steps: int) -> float:
    """Warm up linearly over the first --warmup of the steps, then follow a cosine down to 0.

    step: number of steps done before this one
    """
    warmup = math.ceil(args.warmup * n_steps)
    if step < warmup:
        return args.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, n_steps - warmup)
    return args.lr * 0.5 * (1 + math.cos(math.pi * progress))


# ------------------------------------------------------------------------------
# Checks, and checkpoints


RAN_AWAY = (
    "Mostly a training that ran away: start anew (--overwrite) with a smaller --lr, or with "
    "another --dtype than float16"
)


def check_finite(step: int, batch: list, loss: float, grad_norm: float):
    """Raise InputError, which names the step's pairs, if loss or gradient is infinite or NaN."""
    if not math.isfinite(loss + grad_norm):
        raise common.InputError(
            f"step {step}: loss {loss}, gradient norm {grad_norm}; no update was made. {RAN_AWAY}. "
            f"The step's pairs: {list_ids(batch)}"
        )


def check_first_margin(passes: Step, batch: list, args):
    """Check that policy and reference agree before the first update, when they are one model.

    Rewards are beta * (log pi - log pi_ref), so that all are 0 but for rounding.
    """
    largest = passes.rewards.abs().max().item()
    logps = passes.sums / passes.lengths if args.loss in PER_TOKEN else passes.sums
    rounding = 0.01 * abs(args.beta) * logps.abs().max().item()  # generous, for bfloat16
    if largest > rounding:
        # Else the same command would resume with it, and train on a wrong reference
        outputs.remove(args.output / "reference.jsonl")
        raise common.InputError(
            f"step 1: a reward of {largest:.1e} where policy and reference are one model; no "
            "update was made. Did a video change after the reference was computed? The same "
            f"command computes it again. The step's pairs: {list_ids(batch)}"
        )
    tqdm.write(f"first step: largest |reward| {largest:.1e}: policy and reference are one model")


def list_ids(batch: list) -> str:
    """Name the pairs of a batch, [(video, its pairs), ...]; of several inputs, with their file."""
    names = []
    for _, pairs in batch:
        for pair in pairs:
            before = f"{pair['input']}: " if "input" in pair else ""
            names.append(before + pair["id"])
    return ", ".join(names)


# ------------------------------------------------------------------------------
# What is written


def summarize(passes: Step) -> dict:
    """Average a step's rewards, log-probs and lengths, under TRL's metric names."""
    margins = passes.rewards[0] - passes.rewards[1]  # (S,)
    metrics = {
        "rewards/accuracies": (margins > 0).float().mean().item(),
        "rewards/margins": margins.mean().item(),
    }
    values = {"rewards": passes.rewards, "logps": passes.sums, "lengths": passes.lengths}
    for name, rows in values.items():
        for side, row in zip(SIDES, rows):
            metrics[f"{name}/{side}"] = row.float().mean().item()
    return metrics


def begin(args, groups: list, meta: dict):
    """Begin the output as outputs.begin does -> its lock; None if it is finished.

    Raises:
        InputError: also if --overwrite would remove what dpo.py did not write
    """
    if common.process().rank:
        return outputs.begin_together(None, args.output, meta)
    path = common.meta_path(args.output)
    if path.exists() and not args.overwrite:
        # Files that a killed run has already moved into place stay known as dpo.py's
        meta["files"] = common.read_json(path).get("files", [])
    lock = outputs.begin(args.output, meta, args.overwrite)
    if lock and args.overwrite and args.output.exists():
        own = [file.resolve() for file in outputs.list_own(args.output)]
        for input in args.input:
            if Path(input).resolve() in own:
                raise common.InputError(
                    f"--overwrite would remove --input {input}, which is in the output"
                )
    if lock:
        print(f"training {TRAINED[args.tune]}, learning rate {args.lr:g}, loss {args.loss}")
        tell_where_from(args, groups, meta)
    return outputs.begin_together(lock, args.output, meta)


def save(model, tokenizer, args, adapter, n_pairs: int, meta: dict, finished: dict):
    """Write the model, complete like its base, or the adapter as PEFT does; and a model card.

    All files are written to part/, then moved into place one by one. After that meta.json says
    that the training is finished, and what was needed to resume it is deleted.
    """
    check_weights_finite(model)
    part = outputs.make_part(args.output)
    if args.tune == "lora":
        vlm.save_adapter(model, part, adapter)
    else:
        save_full(model, tokenizer, part, vlm.find_base(args.model))
    if common.process().rank:
        return  # of several processes the first one does the rest
    if args.tune == "lora":
        tokenizer.save_pretrained(part)
    else:
        vlm.carry_over(vlm.find_base(args.model), part)
    prompts.save_with_model(part, args.model, meta["prompts"]["answer"])
    vlm.share(part)
    last = json.loads((args.output / "metrics.jsonl").read_text().splitlines()[-1])
    write_card(part / "README.md", args, n_pairs, last)
    move_into_place(part, args.output, meta, finished)
    for path in (args.output / "reference.jsonl", *outputs.list_checkpoints(args.output)):
        outputs.remove(path)
    print(
        f"{args.output}: {last['step']} steps, last loss {last['loss']:.4f}, "
        f"rewards/accuracies {last['rewards/accuracies']:.2f}"
    )


def write_card(path: Path, args, n_pairs: int, last: dict):
    """Write a short model card; last: the metrics of the last step."""
    inputs = " ".join(args.input)
    card = f"""# A model trained by dpo.py

From `{args.model}`, on the {n_pairs} pairs of `{inputs}`: loss {args.loss}, beta {args.beta}, \
learning rate {args.lr}, {args.epochs} epochs, seed {args.seed}. Trained: {TRAINED[args.tune]}.
Last step: `{json.dumps(last)}`
"""
    path.write_text(card)


def move_into_place(part: Path, output: Path, meta: dict, finished: dict):
    """Move the written files into the output; then its meta.json says that it is finished."""
    files = sorted(part.iterdir())
    for name in set(meta.get("files", ())) - {file.name for file in files}:
        # Of a run that was killed here, whose weights lay in other files
        outputs.remove(output / name)
    # Named first: what --overwrite may remove is known also if this process is killed here
    meta = meta | {"files": [file.name for file in files]}
    common.write_json(common.meta_path(output), meta)
    for file in files:
        target = output / file.name
        if target.is_dir():  # of named chat templates, which an earlier try moved
            shutil.rmtree(target)
        os.replace(file, target)
    part.rmdir()
    common.write_json(common.meta_path(output), meta | {"finished": finished})


def save_full(model, tokenizer, directory: Path, base: Path):
    """Write all weights, config.json and generation_config.json, as the base has them."""
    # For a base without generation_config.json: config.json may name another end than the chat's
    [end] = tokenizer.encode(vlm.END_OF_TURN, add_special_tokens=False)
    model.generation_config.eos_token_id = end
    model.generation_config._from_model_config = False  # else transformers may make it anew
    vlm.restore_frame_tokens(model.config, base)
    if common.process().n > 1:
        sharding.save_pretrained(model, base, directory)
    else:
        model.save_pretrained(directory)


def check_weights_finite(model):
    """Raise InputError if a trained weight is infinite or NaN: such a model is not saved."""
    trained = [(name, w) for name, w in model.named_parameters() if w.requires_grad]
    bad = []
    for name, weight in trained:
        saved_in = weight.dtype if ".lora_" in name else model.config.dtype
        if not weight.to(saved_in).isfinite().all():
            bad.append(name)
    if bad:
        raise common.InputError(
            f"{len(bad)} of {len(trained)} trained tensors have numbers that are infinite or NaN "
            f"after the last step, the first is {bad[0]}; no model was saved. {RAN_AWAY}"
        )


# ------------------------------------------------------------------------------
# The stage


def parse_args():
    """Parse the command line: the common options, and those of the training."""
    output = "directory of the trained model"
    parser = common.make_parser(
        __doc__, output, "pairs.jsonl, of one round or of several", several_inputs=True
    )

    add = parser.add_argument_group("the loss").add_argument
    add("--loss", choices=LOSSES, default="sigmoid", help="sft: cross-entropy on one side")
    add(
        "--beta",
        type=common.number_between(0, above=True),
        default=0.1,
        help="strength of the tie to the reference",
    )
    add(
        "--label-smoothing",
        type=common.number_between(0, 0.5, below=True),
        default=0.0,
        metavar="SHARE",
        help="of pairs that are assumed to be inverted (sigmoid only)",
    )
    add(
        "--nll-weight",
        type=common.number_between(0),
        default=0.0,
        metavar="W",
        help="of an added cross-entropy on chosen, a mean over its tokens",
    )
    add(
        "--sft-on",
        choices=(*SIDES, "revised"),
        default="chosen",
        help="what --loss sft learns; revised: all whole revisions, also those that repeat the "
        "answer",
    )
    add(
        "--with-unchanged",
        action="store_true",
        help="learn also the answers that their critique left as they were (rows dropped as "
        "no_error_found or unchanged), by the cross-entropy of --nll-weight or --loss sft",
    )

    add = parser.add_argument_group("the updates").add_argument
    add(
        "--tune",
        choices=tuple(TRAINED),
        default="full",
        help="full: the language model; all: also the vision tower and the projector; lora: "
        "factors, written as an adapter",
    )
    add(
        "--lora-rank",
        type=common.at_least(1, 4096),
        metavar="R",
        help=f"of a new adapter (default: {LORA_RANK}); one that is trained further keeps its own",
    )
    add(
        "--lora-alpha",
        type=common.at_least(1),
        metavar="A",
        help="of a new adapter, whose factors count A / R times (default: 2 R)",
    )
    add(
        "--lr",
        type=common.number_between(0, 1e9, above=True),
        help="peak learning rate (default: "
        + ", ".join(f"{rate:g} for --tune {tune}" for tune, rate in RATES.items())
        + ")",
    )
    share = common.number_between(0, 1)
    add("--warmup", type=share, default=0.1, metavar="SHARE", help="of the steps")
    positive = common.number_between(0)
    add("--weight-decay", type=positive, default=0.0, metavar="W", help="of AdamW")
    add(
        "--max-grad-norm",
        type=positive,
        default=1.0,
        metavar="NORM",
        help="clips the gradient; 0: no clipping",
    )
    add("--epochs", type=common.at_least(1, 10_000), default=1, metavar="N", help="over all pairs")
    add(
        "--videos-per-step",
        type=common.at_least(1),
        default=8,
        metavar="N",
        help="gradients add up over the pairs of N videos, or segments of videos",
    )
    add("--seed", type=common.seed_number, default=0, help="of the order, and of new factors")

    add = parser.add_argument_group("memory and disk").add_argument
    add(
        "--activation-checkpointing",
        action="store_true",
        help="compute activations again in the backward pass: less memory, more time",
    )
    add(
        "--save-every",
        type=common.number_between(0),
        default=20.0,
        metavar="MINUTES",
        help="between checkpoints, from which a stopped training resumes; 0: after every step. "
        f"One takes {outputs.CHECKPOINT_BYTES} bytes for every trained weight; two are there while "
        "the newer is written",
    )
    args = parser.parse_args()
    if args.label_smoothing and args.loss != "sigmoid":
        parser.error("--label-smoothing belongs to --loss sigmoid alone")
    if args.sft_on != "chosen" and args.loss != "sft":
        parser.error("--sft-on belongs to --loss sft alone")
    if args.nll_weight and args.loss == "sft":
        parser.error("--nll-weight is added to a preference loss; --loss sft has no other part")
    if args.with_unchanged and not args.nll_weight and args.loss != "sft":
        parser.error(
            "--with-unchanged needs --nll-weight or --loss sft: equal sides prefer nothing"
        )
    if (args.lora_rank or args.lora_alpha) and args.tune != "lora":
        parser.error("--lora-rank and --lora-alpha belong to --tune lora alone")
    if args.tune == "lora":
        args.lora_rank = args.lora_rank or LORA_RANK
    args.lr = args.lr or RATES[args.tune]
    return args


def main():
    """Train a model on the pairs."""
    args = parse_args()
    root, groups, meta = read_work(args)
    lock = begin(args, groups, meta)  # held until main returns
    if not lock:
        return  # finished already
    started = time.time()

    # What is trained. AdamW updates float32 masters: bfloat16 would round small updates away.
    model, tokenizer, adapter = load_policy(args)
    weights = freeze_weights(model, args.activation_checkpointing, args.tune)
    outputs.check_disk(model, weights, args)
    outputs.make_directory(args, meta)
    masters = [w if w.dtype == torch.float32 else w.detach().float() for w in weights]
    optimizer = torch.optim.AdamW(masters, args.lr, weight_decay=args.weight_decay)
    max_grad_norm = args.max_grad_norm or math.inf
    print_memory(weights, masters, adapter.base, args)

    # On what, and from which step on
    # A reference of an earlier run is taken as it is: it may be from other devices
    reference_is_new = not (args.output / "reference.jsonl").exists()
    reference = reference_logps(model, tokenizer, groups, root, args)
    groups = [group for group in groups if common.segment(group[1][0]) in reference]
    batches = make_batches(groups, args)
    n_done = outputs.load_checkpoint(args.output, masters, weights, optimizer)
    metrics = outputs.open_lines(args.output / "metrics.jsonl", n_done)
    all_watched = vlm.watch_batches(model, tokenizer, batches[n_done:], root, args)
    steps = common.progress(batches[n_done:], "training", len(batches), initial=n_done, unit="step")
    saved = time.monotonic()

    for step, batch in enumerate(steps, n_done + 1):
        clock = time.time()
        passes = accumulate(model, tokenizer, next(all_watched), batch, reference, args)
        give_gradients(weights, masters)
        grad_norm = torch.nn.utils.clip_grad_norm_(masters, max_grad_norm).item()
        check_finite(step, batch, passes.loss, grad_norm)
        if step == 1 and reference_is_new and args.loss not in REFERENCE_FREE:
            check_first_margin(passes, batch, args)
        lr = learning_rate(args, step - 1, len(batches))
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        with torch.no_grad():
            for master, weight in zip(masters, weights):
                weight.copy_(master)
                weight.grad = None

        row = {"step": step, "epoch": step * args.epochs / len(batches), "loss": passes.loss}
        row |= summarize(passes)
        speed = passes.lengths.sum().item() / (time.time() - clock)
        row |= {"grad_norm": grad_norm, "learning_rate": lr, "tokens/s": speed}
        metrics.write(json.dumps(row) + "\n")
        steps.set_postfix({name: f"{row[name]:.3f}" for name in SHOWN}, refresh=False)
        if step == len(batches) or outputs.is_due(saved, args.save_every):
            check_weights_finite(model)
            saved = outputs.save_checkpoint(args.output, step, masters, optimizer)

    n_pairs = sum(len(pairs) for _, pairs in groups)
    finished = {"steps": len(batches), "seconds": round(time.time() - started, 1)}
    save(model, tokenizer, args, adapter, n_pairs, meta, finished)


if __name__ == "__main__":
    common.run(main)
