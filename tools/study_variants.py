"""The variants that tools.study compares: what each changes of the paper's loop.

A variant has four rounds; in each the model of the one before is asked. What
has one round alone trains the base once, on other rows.
"""

import argparse
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import common
import dpo
import generate
import prompts
import vlm
from shapes import world
from tools import agree
from tools.study_tables import true_items, true_scene


class Variant(NamedTuple):
    """How the rounds are run. What a variant does not say is as in the paper's loop."""

    about: str
    videos: int = 200  # a round
    loss: str = "sigmoid"  # of dpo.py; sft is on the chosen answers
    gate: str = "critic"  # of refine.py
    by_base: bool = False  # the base criticises and revises, in place of the round's model
    replay: bool = False  # every round trains the base anew, on the pairs of all rounds so far
    average: bool = False  # a round's model is the mean of all that were trained so far
    nll_weight: float = 0.0  # of dpo.py
    tune: str = "full"  # of dpo.py
    change: Callable | None = None  # (rows of refine.py, seed, model, root of videos) -> rows
    on_all_bases: bool = False


class OneRound(NamedTuple):
    """A training of the base, in one round."""

    about: str
    source: str  # file of pairs, below the directory of the loop seed
    choose: Callable  # (its rows, seed) -> rows
    loss: str = "sigmoid"
    nll_weight: float = 0.0
    lr: float | None = None  # None: as in the loop's first round
    epochs: int | None = None  # None: as in the loop
    trainings: int = 1  # each in its own order; of several, the mean of the weights is scored
    views: bool = False  # the rows about shifted copies of the videos are learned, too
    tune: str = "full"  # of dpo.py
    on_all_bases: bool = False


class Pool(NamedTuple):
    """What the base makes of the videos of all rounds at once, for what has one round alone."""

    videos: int = 200  # a round
    temperature: float = 1.0  # of the answers
    views: bool = False  # shifted copies are asked about, too; rows are dropped where views differ


# ------------------------------------------------------------------------------
# Which rows are trained on


def take_revisions(rows: list[dict], *_) -> list[dict]:
    """Make a row of every revision, also of those that repeat the answer (--sft-on revised)."""
    return [dpo.take_revision(row) for row in rows]


def shuffle_preferences(rows: list[dict], seed: int, *_) -> list[dict]:
    """Swap chosen and rejected in about half of the pairs, drawn by lot."""
    lot = random.Random(seed)
    changed = []
    for row in rows:
        if "chosen" in row and lot.random() < 0.5:
            changed.append(row | {"chosen": row["rejected"], "rejected": row["chosen"]})
        else:
            changed.append(row)
    return changed


def prefer_second_samples(rows: list[dict], seed: int, directory, root: Path) -> list[dict]:
    """Replace the pairs by as many others: a second sampled answer is preferred to the first.

    They are drawn out of all rows with a critique in which the two answers differ.

    Args:
        directory: of the model that gives the second answers
        root: of the videos
    """
    keys = ("id", "video", "kind", "question", "initial")
    answered = [row for row in rows if "critique" in row]
    firsts = [{key: row[key] for key in keys} for row in answered]
    pairs = pair_with_second_samples(firsts, seed, directory, root)

    n_pairs = sum("chosen" in row for row in rows)
    kept = {row["id"] for row in draw_pairs(pairs, n_pairs, seed)}
    return [row for row in pairs if row["id"] in kept]  # in their order, not in that of the draw


def pair_with_second_samples(firsts: list[dict], seed: int, directory, root: Path) -> list[dict]:
    """Answer all questions once more -> a pair for each row whose answer is whole and another."""
    model = vlm.load_model(directory, ["cpu"])
    tokenizer = vlm.load_tokenizer(directory)
    args = argparse.Namespace(  # generate.py's defaults, but for the seed
        model=directory,
        seed=f"second/{seed}",
        frames=None,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=256,
    )
    wording = prompts.choose(args, [])
    pairs = []
    groups = common.group_by_video(firsts)
    for group, video in vlm.watch_each(model, tokenizer, groups, root, args):
        seconds = [dict(row) for row in group]
        shown = vlm.Shown([(seconds, video)])
        generate.write_answers(model, tokenizer, shown, wording.answer, args)
        for first, second in zip(group, seconds):
            if "dropped" not in second and second["initial"] != first["initial"]:
                pairs.append(first | {"chosen": second["initial"], "rejected": first["initial"]})
    return pairs


def draw_pairs(rows: list[dict], n: int, seed: int) -> list[dict]:
    """Draw n pairs by lot, or all of them where there are fewer."""
    pairs = [row for row in rows if "chosen" in row]
    return random.Random(seed).sample(pairs, min(len(pairs), n))


def passes_gate(row: dict) -> bool:
    """Say whether a row of refine.py --gate none would be a pair under --gate critic, too."""
    return bool(row.get("error_types")) and row.get("chosen") != row.get("rejected")


def draw_as_many_as_pairs(rows: list[dict], seed: int) -> list[dict]:
    """Draw, of all revisions, as many as pass the gate."""
    return draw_pairs(rows, sum(map(passes_gate, rows)), seed)


def take_unflagged(rows: list[dict], seed: int) -> list[dict]:
    """Take the revisions that make no pair."""
    return [row for row in rows if not passes_gate(row)]


def take_passed(rows: list[dict], *_) -> list[dict]:
    """Make a pair of every answer that the critic let pass, or that was revised to itself.

    dpo.py --with-unchanged does the same.
    """
    return [dpo.take_unchanged(row) for row in rows]


def take_truth(rows: list[dict], seed: int) -> list[dict]:
    """Choose what the world knows to be true, for all questions that it would ask itself."""
    labelled = []
    for row in rows:
        item = true_items(row["video"]).get(row.get("question"))
        if item is not None and "initial" in row:
            kept = {key: value for key, value in row.items() if key != "dropped"}
            labelled.append(kept | {"chosen": item["answer"], "rejected": row["initial"]})
    return labelled


def ask_the_world(rows: list[dict], seed: int) -> list[dict]:
    """Replace the rows by the world's own questions about the same videos, with the true answers.

    There are as many about each video as there are types of questions; over all videos the answers
    are balanced, as in a benchmark (world.pick).
    """
    rng = np.random.default_rng(seed)
    seen = Counter()
    labelled = []
    for video in dict.fromkeys(row["video"] for row in rows):
        for item in world.draw_questions(true_scene(video), video, seen, rng):
            row = {
                "id": f"{video}/{item['type']}",
                "video": video,
                "kind": item["kind"],
                "question": item["question"],
                "initial": item["answer"],
            }
            labelled.append(row | {"chosen": item["answer"], "rejected": item["answer"]})
    return labelled


def take_rounds(n: int) -> Callable:
    """Give a function that takes the rows about the videos of the first n rounds."""
    names = tuple(f"round{number}_" for number in range(1, n + 1))

    def choose(rows: list[dict], seed: int) -> list[dict]:
        return [row for row in rows if Path(row["video"]).name.startswith(names)]

    return choose


# ------------------------------------------------------------------------------
# The variants

VARIANTS = {
    "paper": Variant("the paper's loop, as make loop runs it", on_all_bases=True),
    "replay": Variant(
        "every round trains the base anew, on the pairs of all rounds so far",
        replay=True,
        on_all_bases=True,
    ),
    "average": Variant(
        "the same, and a round's model is the mean of all that were trained so far",
        replay=True,
        average=True,
    ),
    "by-base": Variant("the base criticises and revises in all rounds", by_base=True),
    "by-base-replay": Variant(
        "both: the base criticises and revises, and is trained anew",
        by_base=True,
        replay=True,
        on_all_bases=True,
    ),
    "paper-600": Variant("the paper's loop with 600 videos a round, in place of 200", videos=600),
    "replay-600": Variant(
        "replay with 600 videos a round", videos=600, replay=True, on_all_bases=True
    ),
    "sft": Variant("cross-entropy on the chosen answers of its pairs, in place of DPO", loss="sft"),
    "sft-all": Variant(
        "cross-entropy on all revisions, whatever the critic said; most repeat the answer, so "
        "these are three times as many rows",
        loss="sft",
        gate="none",
        change=take_revisions,
    ),
    "sft-all-replay": Variant(
        "the same, with replay",
        loss="sft",
        gate="none",
        replay=True,
        change=take_revisions,
    ),
    "nll-replay": Variant(
        "DPO, and cross-entropy on the chosen answers and on those that the critic let pass, with "
        "replay",
        replay=True,
        nll_weight=1.0,
        change=take_passed,
        on_all_bases=True,
    ),
    "no-gate": Variant(
        "every revision that differs is chosen, whatever the critic said (where it found nothing, "
        "few differ)",
        gate="none",
    ),
    "shuffled": Variant(
        "which answer of a pair is chosen is drawn by lot", change=shuffle_preferences
    ),
    "second-sample": Variant(
        "chosen is a second answer to the same question, without critique; as many pairs as the "
        "gate leaves, out of all questions",
        change=prefer_second_samples,
    ),
}

FIRST = ("paper", "paper-600")  # with whose answers and critiques the others begin
POOLS = {
    "all": Pool(),
    "all-2400": Pool(600),
    "greedy-2400": Pool(600, temperature=0.0),
    "greedy-2400-views": Pool(600, temperature=0.0, views=True),
}
SHIFTS = {"right3": (3, 0), "up3": (0, -3)}  # of the copies: pixels to the right, and down
ALL = "all/pairs.jsonl"  # of the pools
ALL_2400 = "all-2400/pairs.jsonl"
GREEDY_2400 = "greedy-2400/pairs.jsonl"
GREEDY_2400_VIEWS = "greedy-2400-views/pairs.jsonl"
VIEWS_2400 = f"greedy-2400-views/{agree.NAME}"
SFT = {"loss": "sft", "lr": 3e-4, "epochs": 4}  # better on dev than the loop's rate and epochs
ONE_ROUND = {
    "dpo-400": OneRound("DPO on the pairs from 400 videos, in place of 200", ALL, take_rounds(2)),
    "dpo-600": OneRound("of 600 videos", ALL, take_rounds(3)),
    "dpo-800": OneRound("of 800 videos, as many as four rounds have", ALL, take_rounds(4)),
    "dpo-2400": OneRound("of 2,400 videos", ALL_2400, take_rounds(4), on_all_bases=True),
    "dpo-800-average": OneRound(
        "the mean of four trainings as dpo-800, each in its own order",
        ALL,
        take_rounds(4),
        trainings=4,
    ),
    "sft-800": OneRound(
        "cross-entropy on the chosen answers of dpo-800's pairs", ALL, take_rounds(4), loss="sft"
    ),
    "nll-800": OneRound(
        "DPO on dpo-800's pairs, and cross-entropy on the chosen answers and on those that the "
        "critic let pass",
        ALL,
        take_passed,
        nll_weight=1.0,
        on_all_bases=True,
    ),
    "nll-2400": OneRound(
        "nll-800 with 2,400 videos", ALL_2400, take_passed, nll_weight=1.0, on_all_bases=True
    ),
    "nll-2400-greedy": OneRound(
        "nll-2400, but answers are greedy, not sampled",
        GREEDY_2400,
        take_passed,
        nll_weight=1.0,
        on_all_bases=True,
    ),
    "views-2400": OneRound(
        "nll-2400-greedy, but also with two shifted copies of each video, asked about each alone: "
        "on the rows about all three on which they agree, and the vision tower is trained, too",
        VIEWS_2400,
        take_passed,
        nll_weight=1.0,
        views=True,
        tune="all",
        on_all_bases=True,
    ),
    "frozen-tower": OneRound(
        "views-2400, but the vision tower and the projector stay as they are",
        VIEWS_2400,
        take_passed,
        nll_weight=1.0,
        views=True,
        on_all_bases=True,
    ),
    "no-copies": OneRound(
        "views-2400 on its rows about the videos themselves alone, a third of them",
        VIEWS_2400,
        take_passed,
        nll_weight=1.0,
        tune="all",
        on_all_bases=True,
    ),
    "no-agreement": OneRound(
        "views-2400 on all rows about all three, each with the answer that its own view ends with, "
        "whether they agree or not",
        GREEDY_2400_VIEWS,
        take_passed,
        nll_weight=1.0,
        views=True,
        tune="all",
        on_all_bases=True,
    ),
    "sft-all-800": OneRound(
        "cross-entropy on the answers of nll-800, at a rate and for epochs of its own",
        ALL,
        take_passed,
        **SFT,
    ),
    "truth-own-800": OneRound(
        "likewise on the true answers to the same questions, those that the world would ask: "
        "labelled, so no rival, but what there is to be learned",
        ALL,
        take_truth,
        **SFT,
    ),
    "truth-800": OneRound(
        "likewise on the world's own questions about these videos, and their true answers",
        ALL,
        ask_the_world,
        **SFT,
    ),
    "sft-matched": OneRound(
        "cross-entropy on as many of all revisions as there are pairs, drawn by lot",
        "sft-all/round1/edited.jsonl",
        draw_as_many_as_pairs,
        loss="sft",
    ),
    "sft-unflagged": OneRound(
        "cross-entropy on the revisions that make no pair: nearly all repeat an answer in which "
        "the critic found nothing",
        "sft-all/round1/edited.jsonl",
        take_unflagged,
        loss="sft",
    ),
}
