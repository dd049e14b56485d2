"""Stage 4: direct preference optimization on the pairs, written out by hand.

    python dpo.py --model shapes/model --input runs/mine/round1/pairs.jsonl --output runs/mine/round1/model

The language model is trained; the vision tower and the projector are frozen. Per step: for each of --videos-per-step videos one forward and one
backward pass over [video | question 1, chosen | question 1, rejected | question 2, chosen | ...], then one update of AdamW on float32 master weights.
The reference is the model that the round starts from: its log-probs are computed before the first update by the same function.

reads    id, video, question, chosen, rejected (rows with `dropped` are passed over)
writes   a checkpoint like the base's (--tune lora: an adapter), with metrics.jsonl (one line a step, TRL's names) and a short model card;
         until it is finished also reference.json and checkpoint-*.state, from which a training that was cut off goes on
"""

import json
import math
import os
import random
import time

import safetensors.torch
import torch
import torch.nn.functional as F

import common


def dpo_loss(
    policy_chosen_logps,
    policy_rejected_logps,
    ref_chosen_logps,
    ref_rejected_logps,
    beta,
    loss="sigmoid",
    label_smoothing=0.0,
):
    """Preference loss of B pairs from their log-probs, each (B,) -> (losses, chosen_rewards, rejected_rewards), each (B,).

    sigmoid: DPO, equation 7 of arXiv 2305.18290; with label_smoothing the conservative loss of its authors' note (cDPO, equation 3).
    hinge:   the SLiC form, relu(1 - beta * h), as in RSO (arXiv 2309.06657). ipo: equation 17 of arXiv 2310.12036.
    Log-probs are sums over an answer's tokens (for ipo pass means over tokens, as TRL does). Rewards carry no gradient.
    """
    shapes = {
        tuple(logps.shape)
        for logps in (
            policy_chosen_logps,
            policy_rejected_logps,
            ref_chosen_logps,
            ref_rejected_logps,
        )
    }
    assert len(shapes) == 1, f"log-probs of different shapes: {sorted(shapes)}"
    chosen_logratios = policy_chosen_logps - ref_chosen_logps  # log pi(y_w | x) / pi_ref(y_w | x)
    rejected_logratios = (
        policy_rejected_logps - ref_rejected_logps
    )  # log pi(y_l | x) / pi_ref(y_l | x)
    h = chosen_logratios - rejected_logratios
    if loss == "sigmoid":
        losses = -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(
            -beta * h
        )
    elif loss == "hinge":
        losses = torch.relu(1 - beta * h)
    elif loss == "ipo":
        losses = (h - 1 / (2 * beta)) ** 2
    else:
        raise ValueError(f"unknown loss {loss!r}")
    return losses, beta * chosen_logratios.detach(), beta * rejected_logratios.detach()


def pair_logps(model, tokenizer, video, rows):
    """Log-probs of all pairs about one video, in one packed forward pass -> sums (2, B) and token counts (2, B): chosen, rejected."""
    branches = [
        common.encode_branch(
            tokenizer, common.ANSWER_PROMPT.format(question=row["question"]), row[side]
        )
        for side in ("chosen", "rejected")
        for row in rows
    ]
    sums, lengths = common.branch_logps(model, video, branches)
    return sums.view(2, len(rows)), lengths.view(2, len(rows))


def step_loss(args, sums, lengths, reference, n_pairs, n_tokens):
    """A video's share of a step's loss, and its rewards (2, B). n_pairs and n_tokens (of the answers that NLL is on) are the step's."""
    side = 1 if args.loss == "sft" and args.sft_on == "rejected" else 0
    nll = -sums[side].sum() / n_tokens
    if args.loss == "sft":
        return nll, args.beta * (sums - reference).detach()
    scale = lengths if args.loss == "ipo" else torch.ones_like(lengths)
    losses, chosen_rewards, rejected_rewards = dpo_loss(
        *sums / scale, *reference / scale, args.beta, args.loss, args.label_smoothing
    )
    return losses.sum() / n_pairs + args.nll_weight * nll, torch.stack(
        [chosen_rewards, rejected_rewards]
    )


def freeze_all_but_language(model, checkpointing=False, tune="full"):
    """The trained weights: the language model's, its head among them, or of it LoRA's factors alone; the vision tower and the projector keep theirs."""
    if checkpointing:
        model.model.language_model.train().activation_checkpointing_enable()
    model.requires_grad_(False)
    language = [
        (name, weight)
        for name, weight in model.named_parameters()
        if name.startswith(("model.language_model", "lm_head"))
    ]
    return [
        weight.requires_grad_() for name, weight in language if tune == "full" or ".lora_" in name
    ]


@torch.no_grad()
def reference_logps(model, tokenizer, groups, root, args):
    """{video: (log-probs (2, B), token counts (2, B))} under the model that this round starts from, by the function that trains. Kept in
    reference.json as long as the training goes on. Videos that cannot be read are named, and left out.
    """
    path, reference = args.output / "reference.json", {}
    if path.exists():
        return {
            name: tuple(map(torch.tensor, pair)) for name, pair in common.read_json(path).items()
        }
    for rows, video in common.watch_each(model, tokenizer, groups, root, args, "reference"):
        if video:
            reference[rows[0]["video"]] = tuple(
                part.cpu() for part in pair_logps(model, tokenizer, video, rows)
            )
        else:
            print(f"left out: {rows[0]['error']}")
    if not reference or len(groups) - len(reference) > args.max_bad * len(groups):
        raise common.InputError(
            f"{len(groups) - len(reference)} of {len(groups)} videos cannot be read (--videos says where they are)"
        )
    common.write_json(
        path, {name: [part.tolist() for part in pair] for name, pair in reference.items()}
    )
    return reference


def make_batches(groups, args):
    """The order in which videos are trained on, shuffled anew every epoch, and its cut into steps."""
    shuffle = random.Random(args.seed)
    order = [group for _ in range(args.epochs) for group in shuffle.sample(groups, len(groups))]
    return order, [
        order[first : first + args.videos_per_step]
        for first in range(0, len(order), args.videos_per_step)
    ]


def learning_rate(
    args, step, n_steps
):  # linear warm-up over the first --warmup of the steps, then a cosine down to 0
    warmup = math.ceil(args.warmup * n_steps)
    return (
        args.lr * (step + 1) / warmup
        if step < warmup
        else args.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, n_steps - warmup)))
    )


def summarize(rewards, sums, lengths):
    """A step's metrics under TRL's names, means over its pairs. All three tensors are (2, B): chosen, rejected."""
    margins = rewards[0] - rewards[1]
    return {
        "rewards/accuracies": (margins > 0).float().mean().item(),
        "rewards/margins": margins.mean().item(),
    } | {
        f"{name}/{side}": values[row].float().mean().item()
        for name, values in (("rewards", rewards), ("logps", sums), ("lengths", lengths))
        for row, side in enumerate(("chosen", "rejected"))
    }


def save_checkpoint(output, step, masters, optimizer):
    """What it takes to go on behind a step: weights and AdamW's state, in one file that is there whole or not at all. Two are kept."""
    state = {
        f"{number}.{key}": value
        for number, master in enumerate(masters)
        for key, value in optimizer.state[master].items()
    }
    safetensors.torch.save_file(
        state | {f"{number}": master.detach() for number, master in enumerate(masters)},
        output / "checkpoint.part",
    )
    os.replace(
        output / "checkpoint.part", output / f"checkpoint-{step:06}.state"
    )  # not *.safetensors: no weights to load
    for old in sorted(output.glob("checkpoint-*"))[:-2]:
        old.unlink()


def load_checkpoint(output, masters, weights, optimizer):
    """Sets weights and AdamW's state as the newest checkpoint has them -> the number of steps done; 0 without a checkpoint."""
    if not (files := sorted(output.glob("checkpoint-*"))):
        return 0
    try:
        saved = safetensors.torch.load_file(files[-1])
    except safetensors.SafetensorError as error:
        raise common.InputError(
            f"{files[-1]}: {error}; without this file the training goes on from the one before"
        ) from error
    state = {
        number: {key: saved[f"{number}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        for number in range(len(masters))
    }
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    with torch.no_grad():
        for number, (master, weight) in enumerate(zip(masters, weights)):
            weight.copy_(master.copy_(saved[f"{number}"]))
    print(f"going on behind step {(step := int(state[0]['step']))}, from {files[-1]}")
    return step


def save(model, tokenizer, args, adapter, n_pairs, meta):
    """The checkpoint, complete as the base's, or the adapter as PEFT writes it, with a model card; each file whole or not at all. Then it is finished."""
    part, last = (
        args.output / "part",
        json.loads((args.output / "metrics.jsonl").read_text().splitlines()[-1]),
    )
    if args.tune == "lora":
        part.mkdir(exist_ok=True)
        factors = {
            f"base_model.model.{name}": weight
            for name, weight in model.state_dict().items()
            if ".lora_" in name
        }
        safetensors.torch.save_file(factors, part / "adapter_model.safetensors", {"format": "pt"})
        common.write_json(
            part / "adapter_config.json",
            {"peft_type": "LORA", "target_modules": r".*language_model\.layers.*_proj"}
            | dict(zip(("base_model_name_or_path", "r", "lora_alpha"), adapter)),
        )
    else:
        model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    (part / "README.md").write_text(
        f"# A model trained by dpo.py\n\nFrom `{args.model}`, on the {n_pairs} pairs of `{args.input}`: loss {args.loss}, beta "
        f"{args.beta}, learning rate {args.lr}, {args.epochs} epochs, seed {args.seed}.\nLast step: `{json.dumps(last)}`\n"
    )
    for file in part.iterdir():
        os.replace(file, args.output / file.name)
    part.rmdir()
    common.write_json(common.meta_path(args.output), meta)
    for file in (args.output / "reference.json", *args.output.glob("checkpoint*")):
        file.unlink(missing_ok=True)
    print(
        f"{args.output}: {last['step']} steps, last loss {last['loss']:.4f}, rewards/accuracies {last['rewards/accuracies']:.2f}"
    )


def accumulate(model, tokenizer, videos, batch, reference, args):
    """Forward and backward over the videos of one step; gradients add up in the weights -> the loss, and of B pairs rewards, log-probs and token
    counts, each (2, B): chosen, rejected. A video is a micro-batch: on one device its backward follows its forward; over several all forwards
    come first (the order of GPipe, arXiv 1811.06965; its gain is not measured yet).
    """
    loss, parts, split = 0.0, [], len({weight.device for weight in model.parameters()}) > 1
    n_pairs = sum(len(rows) for _, rows in batch)
    n_tokens = sum(
        reference[name][1][int(args.sft_on == "rejected")].sum().item() for name, _ in batch
    )
    for _, (rows, video) in zip(batch, videos):
        if video is None:
            raise common.InputError(f"{rows[0]['error']} (it could be read before)")
        sums, lengths = pair_logps(model, tokenizer, video, rows)
        share, rewards = step_loss(
            args, sums, lengths, reference[rows[0]["video"]][0].to(sums.device), n_pairs, n_tokens
        )
        if not split:
            share.backward()
        loss = loss + (share if split else share.detach())
        parts.append((rewards, sums.detach(), lengths))
    if split:
        loss.backward()
    return loss.item(), *(torch.cat(part, 1) for part in zip(*parts))


def parse_args():
    parser = common.make_parser(
        __doc__,
        "directory of the trained model; run again, it goes on where it stopped",
        "pairs.jsonl",
    )
    parser.add_argument(
        "--loss",
        choices=("sigmoid", "hinge", "ipo", "sft"),
        default="sigmoid",
        help="sft: plain cross-entropy on one side of the pairs",
    )
    parser.add_argument(
        "--beta", type=float, default=0.1, help="strength of the tie to the reference"
    )
    parser.add_argument(
        "--label-smoothing",
        type=float,
        default=0.0,
        help="share of pairs taken to be inverted (sigmoid only)",
    )
    parser.add_argument(
        "--nll-weight",
        type=float,
        default=0.0,
        help="weight of an added cross-entropy on chosen, a mean over tokens",
    )
    parser.add_argument(
        "--sft-on", choices=("chosen", "rejected"), default="chosen", help="what --loss sft learns"
    )
    parser.add_argument(
        "--tune",
        choices=("full", "lora"),
        default="full",
        help="lora: low-rank factors beside the weights; an adapter comes out",
    )
    parser.add_argument(
        "--lora-rank",
        type=int,
        default=16,
        help="of a new adapter, with lora_alpha twice as large; an adapter that is gone on with keeps its own",
    )
    parser.add_argument("--lr", type=float, default=5e-7, help="peak learning rate")
    parser.add_argument("--warmup", type=float, default=0.1, help="share of the steps")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument(
        "--videos-per-step",
        type=int,
        default=8,
        help="gradients are accumulated over the pairs of so many videos",
    )
    parser.add_argument(
        "--activation-checkpointing",
        action="store_true",
        help="compute activations again in the backward pass: less memory, more time",
    )
    parser.add_argument(
        "--save-every",
        type=int,
        default=20,
        metavar="STEPS",
        help="how often it is noted how to go on (12 bytes a trained weight)",
    )
    return parser.parse_args()


def main():
    args = parse_args()
    root, groups = common.read_input(
        args, require=("id", "video", "question", "chosen", "rejected")
    )
    base, rank, alpha = common.read_adapter(args.model)
    if rank and args.tune == "full":
        raise common.InputError(
            f"{args.model} is an adapter: go on with --tune lora, or merge it first (python -m tools.merge)"
        )
    groups = [
        (name, pairs)
        for name, rows in groups
        if (pairs := [row for row in rows if "dropped" not in row])
    ]
    if not groups:
        raise common.InputError(f"{args.input}: no row is a pair, so there is nothing to learn")
    meta = common.make_meta(args, [common.ANSWER_PROMPT], root, groups)
    if not (lock := common.begin(args.output, meta, args.overwrite)):  # held until main returns
        return
    started = time.time()
    args.output.mkdir(exist_ok=True)
    model, tokenizer = common.load(args)
    if args.tune == "lora" and not rank:
        rank, alpha = args.lora_rank, 2 * args.lora_rank
        torch.manual_seed(args.seed)
        common.add_lora(model.model.language_model.layers, rank, alpha)
    weights = freeze_all_but_language(model, args.activation_checkpointing, args.tune)
    masters = [
        weight if weight.dtype == torch.float32 else weight.detach().float() for weight in weights
    ]  # bfloat16 would round small updates away
    optimizer = torch.optim.AdamW(masters, args.lr, weight_decay=args.weight_decay)
    for device in dict.fromkeys(weight.device for weight in weights):
        state = sum(
            weight.nbytes + (8 if master is weight else 16) * weight.numel()
            for weight, master in zip(weights, masters)
            if weight.device == device
        )
        print(
            f"{device}: {state / 2**30:.2f} GiB for gradients and AdamW beside the weights; with activations: python -m tools.memory {base} --tune {args.tune}"
        )
    reference = reference_logps(model, tokenizer, groups, root, args)
    order, batches = make_batches([group for group in groups if group[0] in reference], args)
    done = load_checkpoint(args.output, masters, weights, optimizer)
    metrics = (args.output / "metrics.jsonl").open("a+", buffering=1)
    metrics.seek(0)
    metrics.truncate(sum(map(len, metrics.readlines()[:done])))

    videos = common.watch_each(
        model, tokenizer, order[done * args.videos_per_step :], root, args, "training"
    )
    for step, batch in enumerate(batches[done:], done + 1):
        clock = time.time()
        loss, rewards, sums, lengths = accumulate(model, tokenizer, videos, batch, reference, args)
        for master, weight in zip(masters, weights):
            master.grad = weight.grad.float()
        grad_norm = torch.nn.utils.clip_grad_norm_(masters, args.max_grad_norm).item()
        if not math.isfinite(loss + grad_norm):
            raise common.InputError(
                f"step {step}: loss {loss}, gradient norm {grad_norm}; no update was made. The step's pairs: "
                + ", ".join(row["id"] for _, rows in batch for row in rows)
            )
        optimizer.param_groups[0]["lr"] = learning_rate(args, step - 1, len(batches))
        optimizer.step()
        with torch.no_grad():
            for master, weight in zip(masters, weights):
                weight.copy_(master)
                weight.grad = None
        if step == 1:
            print(
                f"first step: largest |margin| {(rewards[0] - rewards[1]).abs().max():.1e}, which is rounding alone: policy and reference are one model"
            )
        row = {
            "step": step,
            "epoch": step * args.epochs / len(batches),
            "loss": loss,
            **summarize(rewards, sums, lengths),
            "grad_norm": grad_norm,
            "learning_rate": optimizer.param_groups[0]["lr"],
            "tokens/s": lengths.sum().item() / (time.time() - clock),
        }
        metrics.write(json.dumps(row) + "\n")
        if step % args.save_every == 0 and step < len(batches):
            save_checkpoint(args.output, step, masters, optimizer)

    finished = {"steps": len(batches), "seconds": round(time.time() - started, 1)}
    save(
        model,
        tokenizer,
        args,
        (base, rank, alpha),
        sum(len(rows) for name, rows in groups if name in reference),
        meta | {"finished": finished},
    )


if __name__ == "__main__":
    common.run(main)
