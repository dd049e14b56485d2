"""Simulate how evenly several processes share videos: by a queue, or by shards dealt beforehand.

    python -m tools.balance

Nothing is run. A video takes seconds that are drawn at random (lognormal, with
a standard deviation of --variation of the mean). Printed is by how much the
last process ends after the moment at which all would end if work could be
divided at will; the mean and the largest of --times draws.
"""

import argparse
import heapq
import math
import random
import statistics

import common

SLOW = 0.7  # of the others' speed: what one process has in the last column


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    add = parser.add_argument
    add("--processes", type=common.at_least(2), default=8, metavar="N", help="that answer")
    add("--variation", type=float, default=0.27, help="of the seconds of a video")
    add("--times", type=common.at_least(1), default=20, metavar="N", help="how often it is drawn")
    args = parser.parse_args()

    print(
        f"{args.processes} processes, seed 0, n = {args.times}: time over the ideal, mean (worst)"
    )
    print(
        f"{'videos':>8}{'queue':>14}{'shards':>14}{'queue, one slow':>18}{'shards, one slow':>18}"
    )
    for n_videos in (40, 400, 4000):
        cells = []
        for slow in (1.0, SLOW):
            speeds = [slow, *[1.0] * (args.processes - 1)]
            for share in (by_queue, by_shards):
                draw = random.Random(0)
                over = [
                    time_over(share, draw_seconds(n_videos, args.variation, draw), speeds)
                    for _ in range(args.times)
                ]
                cells.append(f"{statistics.mean(over):.1%} ({max(over):.0%})")
        print(f"{n_videos:>8}{cells[0]:>14}{cells[1]:>14}{cells[2]:>18}{cells[3]:>18}")


def draw_seconds(n: int, variation: float, draw: random.Random) -> list[float]:
    """Draw the seconds of n videos, 1 in the mean."""
    sigma = math.sqrt(math.log(1 + variation**2))
    return [draw.lognormvariate(-(sigma**2) / 2, sigma) for _ in range(n)]


def time_over(share, seconds: list[float], speeds: list[float]) -> float:
    """Compute by which part of the ideal time the last process ends late."""
    return share(seconds, speeds) / (sum(seconds) / sum(speeds)) - 1


def by_queue(seconds: list[float], speeds: list[float]) -> float:
    """Let the process that is free first take the next video -> when the last one ends.

    >>> by_queue([3, 1, 1, 1], [1.0, 1.0])
    3.0
    """
    free = [(0.0, number) for number in range(len(speeds))]  # (when, process)
    for needed in seconds:
        when, number = heapq.heappop(free)
        heapq.heappush(free, (when + needed / speeds[number], number))
    return max(when for when, _ in free)


def by_shards(seconds: list[float], speeds: list[float]) -> float:
    """Deal the videos out in turn beforehand, as --shard does -> when the last process ends.

    >>> by_shards([3, 1, 1, 1], [1.0, 1.0])
    4.0
    """
    n = len(speeds)
    return max(sum(seconds[number::n]) / speed for number, speed in enumerate(speeds))


if __name__ == "__main__":
    common.run(main)
