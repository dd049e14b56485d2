"""Checks of lesson 1: draws that follow the softmax, and belong to their row."""

import torch

from course.wrong import demand

EXERCISE = "noise"
PAGE = "1_questions_and_answers.md"
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0])
TEMPERATURE = 0.7
N = 20_000


def draw(exercise, seed, rows: list[str], n_steps: int, logits=LOGITS, temperature=TEMPERATURE):
    """Draw a token for each row and step -> (rows, steps)."""
    noise = exercise.Noise(seed, rows, temperature)
    scores = logits.expand(len(rows), -1)
    steps = [noise(None, scores.clone()).argmax(-1) for _ in range(n_steps)]
    return torch.stack(steps, 1)


def check_shape(exercise):
    """Check that scores (rows, vocabulary) stay of that shape."""
    noise = exercise.Noise(0, ["a", "b"], 1.0)
    out = noise(None, LOGITS.expand(2, -1).clone())
    demand(isinstance(out, torch.Tensor), f"Noise returns {type(out).__name__}, not a tensor.")
    demand(
        out.shape == (2, len(LOGITS)),
        f"Scores of shape {(2, len(LOGITS))} came back as {tuple(out.shape)}: the argmax over "
        "the vocabulary is taken afterwards, by the decoder.",
    )


def check_softmax(exercise):
    """Check that the argmax is a token with its softmax probability."""
    expected = (LOGITS / TEMPERATURE).softmax(-1)
    for seed in (0, 1):  # one of the two may miss by chance, in one of seventy
        tokens = draw(exercise, seed, ["row"], N)[0]
        seen = torch.bincount(tokens, minlength=len(LOGITS)) / N
        errors = (seen - expected) / (expected * (1 - expected) / N).sqrt()
        if errors.abs().max() < 3:
            return
    worst = errors.abs().argmax().item()
    hints = {
        "without the temperature": LOGITS.softmax(-1),
        "with the temperature as a factor": (LOGITS * TEMPERATURE).softmax(-1),
    }
    near = [name for name, other in hints.items() if (seen - other).abs().max() < 0.01]
    hint = f" That is the softmax {near[0]}." if near else ""
    demand(
        False,
        f"Token {worst} was drawn in {seen[worst]:.3f} of {N:,} draws, but its softmax probability "
        f"at temperature {TEMPERATURE} is {expected[worst]:.3f}, which is "
        f"{errors[worst].abs():.0f} standard errors away.{hint}",
    )


def check_fresh(exercise):
    """Check that every step and every row draws anew."""
    tokens = draw(exercise, 0, ["a", "b"], 200)
    demand(
        (tokens[0] != tokens[1]).any(),
        "Two rows with the same logits drew the same 200 tokens: questions asked for by one prompt "
        "would all be the same one. The row's id belongs into what its noise is drawn from.",
    )
    demand(
        len(set(tokens[0].tolist())) > 1,
        "A row drew the same token 200 times: its noise is not drawn anew at each step.",
    )


def check_own(exercise):
    """Check that a row draws the same alone, beside others, and in another order."""
    alone = draw(exercise, 0, ["b"], 50)[0]
    beside = draw(exercise, 0, ["a", "b", "c"], 50)[1]
    after = draw(exercise, 0, ["c", "b", "a"], 50)[1]
    demand(
        torch.equal(alone, beside) and torch.equal(alone, after),
        "The row 'b' draws other tokens beside other rows than alone. A run that is resumed, or "
        "spread over processes, has other rows beside it, and would write another file: noise must "
        "depend on the seed, the row's id and the step alone.",
    )


def check_seed(exercise):
    """Check that the same seed draws the same, another seed another."""
    first = draw(exercise, 0, ["a"], 200)
    demand(
        torch.equal(first, draw(exercise, 0, ["a"], 200)),
        "The same seed and row drew different tokens: is a generator of its own used?",
    )
    if not hasattr(exercise, "hash"):
        exercise.hash = lambda value: hash(("another process", value))  # hides Python's from it
        elsewhere = draw(exercise, 0, ["a"], 200)
        del exercise.hash
        demand(
            torch.equal(first, elsewhere),
            "The same seed and row would draw different tokens in another process: Python's `hash` "
            "of a text differs from process to process.",
        )
    demand(
        not torch.equal(first, draw(exercise, 1, ["a"], 200)),
        "Seeds 0 and 1 draw the same: the seed belongs into what noise is drawn from.",
    )


CHECKS = [check_shape, check_softmax, check_fresh, check_own, check_seed]
