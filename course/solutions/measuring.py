"""Solution of lesson 6, but for three figures, which are those of your own runs: fill them in."""

import math
import random


def interval(correct: list[bool], videos: list[str], n_draws: int, seed: int) -> tuple:
    """Draw videos with all their answers, and sort the shares."""
    by_video = {}
    for right, video in zip(correct, videos):
        by_video.setdefault(video, []).append(right)
    names = sorted(by_video)
    draw = random.Random(seed)
    shares = []
    for _ in range(n_draws):
        drawn = [right for name in draw.choices(names, k=len(names)) for right in by_video[name]]
        shares.append(sum(drawn) / len(drawn))
    shares.sort()
    return shares[int(0.025 * n_draws)], shares[int(0.975 * n_draws) - 1]


def mcnemar(before: list[bool], after: list[bool]) -> float:
    """Count both kinds of changes, and both tails of n tosses of a coin."""
    better = sum(right and not was for was, right in zip(before, after))
    worse = sum(was and not right for was, right in zip(before, after))
    n = better + worse
    fewer = sum(math.comb(n, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * fewer / 2**n)


CLAIMS = {"A": "another judge", "B": "paired test", "C": "shuffled sides"}
WRONG_IN_ROUND_4 = None
P_OF_ROUND_4_AGAINST_3 = None
ACCURACY_AFTER_SHUFFLING = None
