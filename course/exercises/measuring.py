"""Exercise of lesson 6: two tests written by hand, and three claims with a hole in them.

Level 3 of 3, about 60 minutes. Check it: python -m course.check 6
"""


def interval(correct: list[bool], videos: list[str], n_draws: int, seed: int) -> tuple:
    """Bootstrap the 95% interval of the share of right answers, over videos.

    Answers about one video may be right or wrong together: draw whole videos, as many as there are,
    with replacement; n_draws times. The interval leaves out 2.5% of the shares on each side.

    Args:
        correct: of each answer
        videos: the video that each answer is about

    Returns:
        (low, high)
    """
    raise NotImplementedError


def mcnemar(before: list[bool], after: list[bool]) -> float:
    """Test whether two models that answered the same questions differ: McNemar's exact test.

    Only questions count that one of them has right and the other wrong. If the models were equally
    good, each of these would be a toss of a coin.

    Args:
        before, after: whether each answer is right, in the same order

    Returns:
        p: the probability of counts at least as unequal as these (both sides); 1 if none differs
    """
    raise NotImplementedError


# Which control refutes which claim of the lesson? One of the names in its table; each fits once
CLAIMS = {"A": None, "B": None, "C": None}

# What you saw when you ran it
WRONG_IN_ROUND_4 = None  # claim A: how many answers of round 4 are wrong
P_OF_ROUND_4_AGAINST_3 = None  # claim B
ACCURACY_AFTER_SHUFFLING = None  # claim C: on dev
