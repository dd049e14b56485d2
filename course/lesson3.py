"""Checks of lesson 3: the DPO loss, against numbers worked by hand."""

import math

import torch

from course.wrong import demand

EXERCISE = "loss"
PAGE = "3_dpo.md"
# One pair: policy chosen and rejected, reference chosen and rejected. The policy likes the chosen
# answer better than the reference does, by 1 nat, and the rejected one less, by 2: h = 3
PAIR = tuple(torch.tensor([logp]) for logp in (-10.0, -14.0, -11.0, -12.0))
BETA = 0.1


def call(exercise, logps, beta=BETA):
    """Call the exercise's loss; what it returns must be three."""
    returned = exercise.dpo_loss(*logps, beta)
    demand(
        isinstance(returned, tuple) and len(returned) == 3,
        "dpo_loss returns (losses, chosen_rewards, rejected_rewards).",
    )
    return returned


def check_by_hand(exercise):
    """Check that one pair, by hand: -log sigmoid(0.1 * 3) = log(1 + e^-0.3) = 0.554355."""
    loss = call(exercise, PAIR)[0].sum().item()
    known = {
        math.log(1 + math.exp(0.3)): "h has the wrong sign: chosen minus rejected.",
        math.log(1 + math.exp(-0.4)): "the reference is left out: -10 + 14 is 4, not 3.",
        0.1 * math.log(1 + math.exp(-3)): "beta belongs inside of the sigmoid, not before the log.",
        math.log(1 + math.exp(-3)): "beta is left out.",
        math.log(1 + math.exp(-0.1)): "the rejected answer's log-ratio is left out.",
        math.log(1 + math.exp(0.1)): "log-ratios are added: h is chosen minus rejected.",
        -math.log(1 + math.exp(-0.3)): "a loss is minimized: it is minus the log.",
    }
    hint = next((text for value, text in known.items() if abs(loss - value) < 1e-4), "")
    demand(abs(loss - 0.554355) < 1e-5, f"It is {loss:.6f}. {hint}".strip())


def check_rewards(exercise):
    """Check that rewards are beta times each log-ratio: 0.1 and -0.2."""
    _, chosen, rejected = call(exercise, PAIR)
    demand(
        abs(chosen.sum().item() - 0.1) < 1e-6 and abs(rejected.sum().item() + 0.2) < 1e-6,
        f"They are {chosen.sum().item():.3f} and {rejected.sum().item():.3f}. A reward is "
        "beta * (log pi(y|x) - log pi_ref(y|x)).",
    )


def check_reference(exercise):
    """Check that where policy and reference are one, the loss is ln 2 and rewards are 0."""
    chosen = torch.tensor([-7.0, -90.0])
    rejected = torch.tensor([-8.0, -3.0])
    losses, *rewards = call(exercise, (chosen, rejected, chosen, rejected))
    demand(
        torch.allclose(losses, torch.full((2,), math.log(2))),
        f"It is {losses.tolist()}. At the first step nothing has been learned: whichever answer is "
        "more likely, sigmoid(0) is a half.",
    )
    demand(all(reward.abs().max() == 0 for reward in rewards), "Rewards are not 0 there.")


def check_batch(exercise):
    """Check that of B pairs there are B losses, one by one."""
    logps = [torch.cat([part, 2 * part, part - 1]) for part in PAIR]
    losses, *_ = call(exercise, logps)
    demand(
        losses.shape == (3,),
        f"Losses of 3 pairs have the shape {tuple(losses.shape)}: the mean is taken by the caller, "
        "over all pairs of a step.",
    )


def check_gradient(exercise):
    """Check that its gradient is the paper's: -beta * sigmoid(-beta * h) for the chosen answer."""
    pair = [logp.clone().requires_grad_() for logp in PAIR]
    losses, *rewards = call(exercise, pair)
    demand(
        losses.requires_grad,
        "The losses carry no gradient, so nothing would be learned: only rewards are detached.",
    )
    losses.sum().backward()
    expected = -BETA / (1 + math.exp(0.3))  # -0.0426
    chosen, rejected, *_ = pair
    demand(
        chosen.grad is not None and abs(chosen.grad.item() - expected) < 1e-6,
        f"For the chosen answer's log-prob it is {chosen.grad}, not {expected:.4f}.",
    )
    demand(
        rejected.grad is not None and abs(rejected.grad.item() + expected) < 1e-6,
        f"For the rejected answer's log-prob it is {rejected.grad}, not {-expected:.4f}.",
    )
    demand(
        not any(reward.requires_grad for reward in rewards),
        "Rewards carry a gradient. They are for the log: detach them, or the graph is kept.",
    )


def check_extremes(exercise):
    """Check that a pair that is far off has a large loss and a gradient, not infinity."""
    pair = [torch.tensor([logp], requires_grad=True) for logp in (-3000.0, -1.0, -1.0, -3000.0)]
    losses, *_ = call(exercise, pair, beta=1.0)
    losses.sum().backward()
    gradient = pair[0].grad
    demand(
        math.isfinite(losses.item()) and abs(losses.item() - 5998) < 1,
        f"h is -5998, so the loss is 5998; it is {losses.item()}. sigmoid(-5998) is 0 in floats, "
        "and its log is minus infinity: torch.nn.functional.logsigmoid is not computed so.",
    )
    demand(abs(gradient.item() + 1) < 1e-5, f"Its gradient is {gradient.item()}, not -1.")


CHECKS = [
    check_by_hand,
    check_rewards,
    check_reference,
    check_batch,
    check_gradient,
    check_extremes,
]
