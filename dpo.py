"""Stage 4: direct preference optimization on the pairs, written out by hand.

    python dpo.py --model shapes/model --input runs/mine/round1/pairs.jsonl --output runs/mine/round1/model

The language model is trained; the vision tower and the projector are frozen. Per step: for each of --videos-per-step videos
one forward and one backward pass over [video | question 1, chosen | question 1, rejected | question 2, chosen | ...], then one
update of AdamW on float32 master weights. The reference is the model that the round starts from: its log-probs are computed
before the first update by the same function, so no second model is held in memory.

reads    id, video, question, chosen, rejected (rows with `dropped` are passed over)
writes   a checkpoint like the base's, with metrics.jsonl (one line a step, TRL's names) and a short model card
"""
import itertools
import json
import math
import random
import time

import torch
import torch.nn.functional as F

import common

LOSSES = ("sigmoid", "hinge", "ipo", "sft")


def dpo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta, loss="sigmoid", label_smoothing=0.0):
    """Preference loss of B pairs from their log-probs, each (B,) -> (losses, chosen_rewards, rejected_rewards), each (B,).

    sigmoid: DPO, equation 7 of arXiv 2305.18290; with label_smoothing the conservative loss of its authors' note (cDPO, equation 3).
    hinge:   the SLiC form, relu(1 - beta * h), as in RSO (arXiv 2309.06657). ipo: equation 17 of arXiv 2310.12036.
    Log-probs are sums over an answer's tokens (for ipo pass means over tokens, as TRL does). Rewards carry no gradient.
    """
    shapes = {tuple(logps.shape) for logps in (policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)}
    assert len(shapes) == 1, f"log-probs of different shapes: {sorted(shapes)}"
    chosen_logratios = policy_chosen_logps - ref_chosen_logps        # log pi(y_w | x) / pi_ref(y_w | x)
    rejected_logratios = policy_rejected_logps - ref_rejected_logps  # log pi(y_l | x) / pi_ref(y_l | x)
    h = chosen_logratios - rejected_logratios
    if loss == "sigmoid":
        losses = -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)
    elif loss == "hinge":
        losses = torch.relu(1 - beta * h)
    elif loss == "ipo":
        losses = (h - 1 / (2 * beta)) ** 2
    else:
        raise ValueError(f"unknown loss {loss!r}")
    return losses, beta * chosen_logratios.detach(), beta * rejected_logratios.detach()


def pair_logps(model, tokenizer, video, rows):
    """Log-probs of all pairs about one video, in one packed forward pass -> sums (2, B) and token counts (2, B): chosen, rejected."""
    branches = [common.encode_branch(tokenizer, common.ANSWER_PROMPT.format(question=row["question"]), row[side])
                for side in ("chosen", "rejected") for row in rows]
    sums, lengths = common.branch_logps(model, video, branches)
    return sums.view(2, len(rows)), lengths.view(2, len(rows))


def step_loss(args, sums, lengths, reference, n_pairs, n_tokens):
    """A video's share of a step's loss, and its rewards (2, B). n_pairs and n_tokens (of the answers that NLL is on) are the step's."""
    side = 1 if args.loss == "sft" and args.sft_on == "rejected" else 0
    nll = -sums[side].sum() / n_tokens
    if args.loss == "sft":
        return nll, args.beta * (sums - reference).detach()
    scale = lengths if args.loss == "ipo" else torch.ones_like(lengths)
    losses, chosen_rewards, rejected_rewards = dpo_loss(*sums / scale, *reference / scale, args.beta, args.loss, args.label_smoothing)
    return losses.sum() / n_pairs + args.nll_weight * nll, torch.stack([chosen_rewards, rejected_rewards])


def freeze_all_but_language(model):
    """The trained weights: the language model's, its head among them; the vision tower and the projector keep theirs."""
    model.requires_grad_(False)
    language = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    return [weight.requires_grad_() for weight in dict.fromkeys(language)]  # a tied head stands once


@torch.no_grad()
def reference_logps(model, tokenizer, groups, root, args):
    """{video: (log-probs (2, B), token counts (2, B))} under the model that this round starts from, by the function that trains.

    The videos that cannot be read are named, and left out.
    """
    reference = {}
    for rows, video in common.watch_each(model, tokenizer, groups, root, args, "reference"):
        if video:
            reference[rows[0]["video"]] = pair_logps(model, tokenizer, video, rows)
        else:
            print(f"left out: {rows[0]['error']}")
    if not reference:
        raise common.InputError(f"{args.input}: none of its videos can be read (--videos says where they are)")
    return reference


def make_batches(groups, args):
    """The order in which videos are trained on, shuffled anew every epoch, and its cut into steps."""
    shuffle = random.Random(args.seed)
    order = [group for _ in range(args.epochs) for group in shuffle.sample(groups, len(groups))]
    return order, [order[first:first + args.videos_per_step] for first in range(0, len(order), args.videos_per_step)]


def learning_rate(args, step, n_steps):
    """Linear warm-up over the first --warmup of the steps, then a cosine down to 0."""
    warmup = math.ceil(args.warmup * n_steps)
    if step < warmup:
        return args.lr * (step + 1) / warmup
    return args.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, n_steps - warmup)))


def summarize(rewards, sums, lengths):
    """A step's metrics under TRL's names, means over its pairs. All three tensors are (2, B): chosen, rejected."""
    margins = rewards[0] - rewards[1]
    return {"rewards/accuracies": (margins > 0).float().mean().item(), "rewards/margins": margins.mean().item()} | {
        f"{name}/{side}": values[row].float().mean().item()
        for name, values in (("rewards", rewards), ("logps", sums), ("lengths", lengths)) for row, side in enumerate(("chosen", "rejected"))}


def save(model, tokenizer, args, n_pairs, last):
    """The checkpoint, complete as the base's, and its model card."""
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    (args.output / "README.md").write_text(
        f"# A model trained by dpo.py\n\nFrom `{args.model}`, on the {n_pairs} pairs of `{args.input}`: loss {args.loss}, beta {args.beta}, "
        f"learning rate {args.lr}, {args.epochs} epochs, seed {args.seed}.\nAt the last step: loss {last['loss']:.4f}, rewards/accuracies "
        f"{last['rewards/accuracies']:.2f}, rewards/margins {last['rewards/margins']:.3f}. Every step is in metrics.jsonl.\n")


def parse_args():
    parser = common.make_parser(__doc__, "directory of the trained model; a training that was cut off starts anew", "pairs.jsonl")
    parser.add_argument("--loss", choices=LOSSES, default="sigmoid", help="sft: plain cross-entropy on one side of the pairs")
    parser.add_argument("--beta", type=float, default=0.1, help="strength of the tie to the reference")
    parser.add_argument("--label-smoothing", type=float, default=0.0, help="share of pairs taken to be inverted (sigmoid only)")
    parser.add_argument("--nll-weight", type=float, default=0.0, help="weight of an added cross-entropy on chosen, a mean over tokens")
    parser.add_argument("--sft-on", choices=("chosen", "rejected"), default="chosen", help="what --loss sft learns")
    parser.add_argument("--lr", type=float, default=5e-7, help="peak learning rate")
    parser.add_argument("--warmup", type=float, default=0.1, help="share of the steps")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--videos-per-step", type=int, default=8, help="gradients are accumulated over the pairs of so many videos")
    return parser.parse_args()


def main():
    args = parse_args()
    root, groups = common.read_input(args, require=("id", "video", "question", "chosen", "rejected"))
    groups = [(name, pairs) for name, rows in groups if (pairs := [row for row in rows if "dropped" not in row])]
    if not groups:
        raise common.InputError(f"{args.input}: no row is a pair, so there is nothing to learn")
    meta = common.make_meta(args, [common.ANSWER_PROMPT], root, groups)
    if common.begin(args.output, meta, args.overwrite):
        return
    started = time.time()
    model, tokenizer = common.load(args)
    weights = freeze_all_but_language(model)
    masters = [weight if weight.dtype == torch.float32 else weight.detach().float() for weight in weights]  # bfloat16 would round small updates away
    optimizer = torch.optim.AdamW(masters, args.lr, weight_decay=args.weight_decay)
    reference = reference_logps(model, tokenizer, groups, root, args)
    groups = [group for group in groups if group[0] in reference]
    order, batches = make_batches(groups, args)
    args.output.mkdir(exist_ok=True)
    metrics = (args.output / "metrics.jsonl").open("w", buffering=1)

    videos = common.watch_each(model, tokenizer, order, root, args, "training")
    for step, batch in enumerate(batches):
        clock, loss, parts = time.time(), 0.0, []
        n_pairs = sum(len(rows) for _, rows in batch)
        n_tokens = sum(reference[name][1][int(args.sft_on == "rejected")].sum() for name, _ in batch)
        for rows, video in itertools.islice(videos, len(batch)):
            if video is None:
                raise common.InputError(f"{rows[0]['error']} (it could be read before)")
            sums, lengths = pair_logps(model, tokenizer, video, rows)
            share, rewards = step_loss(args, sums, lengths, reference[rows[0]["video"]][0], n_pairs, n_tokens)
            share.backward()  # gradients add up over the videos of the step
            loss += share.item()
            parts.append((rewards, sums.detach(), lengths))

        for master, weight in zip(masters, weights):
            master.grad = weight.grad.float()
        grad_norm = torch.nn.utils.clip_grad_norm_(masters, args.max_grad_norm).item()
        if not math.isfinite(loss + grad_norm):
            raise common.InputError(f"step {step + 1}: loss {loss}, gradient norm {grad_norm}; nothing was saved. The step's pairs: "
                                    + ", ".join(row["id"] for _, rows in batch for row in rows))
        optimizer.param_groups[0]["lr"] = learning_rate(args, step, len(batches))
        optimizer.step()
        with torch.no_grad():
            for master, weight in zip(masters, weights):
                weight.copy_(master)
                weight.grad = None

        if step == 0:
            margins = torch.cat([rewards[0] - rewards[1] for rewards, _, _ in parts])
            print(f"first step: largest |margin| {margins.abs().max().item():.1e}, which is rounding alone: policy and reference are one model")
        last = {"step": step + 1, "epoch": (step + 1) * args.epochs / len(batches), "loss": loss, **summarize(*(torch.cat(part, 1) for part in zip(*parts))),
                "grad_norm": grad_norm, "learning_rate": optimizer.param_groups[0]["lr"]}
        last["tokens/s"] = sum(lengths.sum().item() for _, _, lengths in parts) / (time.time() - clock)
        metrics.write(json.dumps(last) + "\n")
    save(model, tokenizer, args, sum(len(rows) for _, rows in groups), last)
    common.write_json(common.meta_path(args.output), meta | {"finished": {"steps": len(batches), "seconds": round(time.time() - started, 1)}})
    print(f"{args.output}: {len(batches)} steps, last loss {last['loss']:.4f}, rewards/accuracies {last['rewards/accuracies']:.2f}")


if __name__ == "__main__":
    common.run(main)
