"""More questions about a scene, with short answers: yes or no, a color, a number.

    python -m shapes.more runs/shapes/dev    # writes runs/shapes/dev/yes_no.json

The benchmarks of the tiny world do not ask them. The tiny model is taught them, in many words
(wordings.vary), so that it can be asked in another form than theirs: by a benchmark of one's own,
or by prompts of one's own. The command writes what such a benchmark needs beside the videos
(docs/benchmarks.md has one): a yes/no question of each type about every video.

An item is a question with its truth, as world.make_item makes it. `rng` is a numpy generator.
"""

import argparse
import itertools
from collections import Counter
from pathlib import Path

import numpy as np

import common
from shapes import world
from shapes.wordings import vary

# Type -> its kind
TYPES = {
    "presence": "yes_no",
    "amount": "yes_no",
    "hue": "yes_no",
    "direction": "yes_no",
    "before": "yes_no",
    "side": "yes_no",
    "hit": "yes_no",
    "color": "color",
    "number": "number",
}
NUMBERS = ("none", "one", "two", "three")


def all_questions(shapes: list[world.Shape], rng) -> dict[str, list[dict]]:
    """List such questions about a scene, each in words that are drawn: {type: [item, ...]}.

    Types of which there is none are left out.
    """
    items = [
        *ask_presence(shapes, rng),
        *ask_amount(shapes, rng),
        *ask_color(shapes, rng),
        *ask_direction(shapes, rng),
        *ask_before(shapes, rng),
        *ask_side(shapes, rng),
        *ask_hit(shapes, rng),
        *ask_number(shapes, rng),
    ]
    listed = {}
    for item in items:
        listed.setdefault(item["type"], []).append(item)
    return listed


def make_item(type: str, question: str, answer: str, error_type="factual_inaccuracy") -> dict:
    """Make a question with its truth; answers are balanced (see world.pick)."""
    return {
        "type": type,
        "kind": TYPES[type],
        "question": question,
        "answer": f"{answer}.",
        "label": answer,
        "error_type": error_type,
    }


def yes_no(type: str, question: str, is_so: bool, error_type="factual_inaccuracy") -> dict:
    """Make a question that is answered by yes or no."""
    return make_item(type, question, "yes" if is_so else "no", error_type)


def wrong_answers(item: dict) -> list[str]:
    """List the wrong answers to a question."""
    possible = {"color": world.COLORS, "number": NUMBERS}.get(item["kind"], ("yes", "no"))
    return [f"{word}." for word in possible if f"{word}." != item["answer"]]


# ------------------------------------------------------------------------------
# What there is


def ask_presence(shapes: list[world.Shape], rng) -> list[dict]:
    """Ask whether a shape is there: each that is, and each that could be."""
    names = [shape.name for shape in shapes]
    items = []
    for color, kind in itertools.product(world.COLORS, world.KINDS):
        if (color, kind) in world.HELD_OUT:
            continue
        name = f"{color} {kind}"
        question = vary(
            f"[is there [a|any] {name} [in the video|]|can a {name} be seen|do you see a {name}"
            f"|does a {name} appear|does the video [show|have] a {name}"
            f"|is a {name} [there|shown|visible|in the video]]?",
            rng,
        )
        is_there = name in names
        error_type = "detail_omission" if is_there else "object_hallucination"
        items.append(yes_no("presence", question, is_there, error_type))
    return items


def ask_amount(shapes: list[world.Shape], rng) -> list[dict]:
    """Ask whether there are two or three shapes, in all or of a kind."""
    items = []
    for kind in ("shape", *world.KINDS):
        count = sum(kind in ("shape", shape.kind) for shape in shapes)
        for number in (2, 3):
            things = f"{NUMBERS[number]} {kind}s"
            question = vary(
                f"[are there {things} [in the video|]|can {things} be seen|do {things} appear"
                f"|does the video show {things}]?",
                rng,
            )
            items.append(yes_no("amount", question, count == number))
    return items


def ask_color(shapes: list[world.Shape], rng) -> list[dict]:
    """Ask which color a shape has, or whether it has one, where no other is of its kind."""
    kinds = [shape.kind for shape in shapes]
    items = []
    for shape in shapes:
        if kinds.count(shape.kind) > 1:
            continue
        the = f"the {shape.kind}"
        question = vary(
            f"[[which|what] color [is {the}|does {the} have]|what is the color of {the}]?", rng
        )
        items.append(make_item("color", question, shape.color))
        for color in world.COLORS:
            question = vary(
                f"[is {the} {color}|is the color of {the} {color}"
                f"|does {the} have the color {color}]?",
                rng,
            )
            items.append(yes_no("hue", question, color == shape.color))
    return items


# ------------------------------------------------------------------------------
# What happens


def ask_direction(shapes: list[world.Shape], rng) -> list[dict]:
    """Ask whether a shape moves, and whether it moves in a direction."""
    items = []
    for shape in shapes:
        the = f"the {shape.name}"
        question = vary(f"[does {the} [move|go anywhere|change its place]|is {the} moving]?", rng)
        items.append(yes_no("direction", question, bool(shape.moves)))
        if not shape.moves:
            continue
        for direction in world.DIRECTIONS:
            to_the = f"[{direction}|to the {direction}]" if direction[0] in "lr" else direction
            question = vary(f"[does {the} [move|go]|is {the} [moving|going]] {to_the}?", rng)
            items.append(yes_no("direction", question, direction == shape.moves))
    return items


def ask_before(shapes: list[world.Shape], rng) -> list[dict]:
    """Ask whether a shape appears before or after another."""
    items = []
    for a, b in itertools.permutations(shapes, 2):
        if a.appears == b.appears:
            continue
        is_before = a.appears < b.appears
        for words, is_so in (
            ("[before|earlier than]", is_before),
            ("[after|later than]", not is_before),
        ):
            question = vary(
                f"[does the {a.name} [appear|come]|is the {a.name} seen] {words} the {b.name}?", rng
            )
            items.append(yes_no("before", question, is_so, "temporal_ordering"))
    return items


def ask_side(shapes: list[world.Shape], rng) -> list[dict]:
    """Ask whether a shape is on a side of another, at the start and at the end."""
    items = []
    for relation in world.ask_relation(shapes):
        # "at the end, is the red circle left or right of the blue square?"
        when, question = relation["question"].removesuffix("?").split(", ")
        for sides in (("left", "right"), ("above", "below")):
            both = " or ".join(sides)
            if both not in question:
                continue
            for side in sides:
                to_the = f"[{side}|to the {side}]" if side in ("left", "right") else side
                asked = question.replace(both, to_the)
                asked = vary(f"[{when}, {asked}|{asked} {when}]?", rng)
                is_so = side == relation["label"]
                items.append(yes_no("side", asked, is_so, "spatial_relationship"))
    return items


def ask_hit(shapes: list[world.Shape], rng) -> list[dict]:
    """Ask whether a shape runs into another, which moves."""
    items = []
    for a, b in itertools.permutations(shapes, 2):
        if b.moves:
            question = vary(
                f"[does the {a.name} [hit|push|move] the {b.name}"
                f"|is the {b.name} [hit|pushed|moved] by the {a.name}]?",
                rng,
            )
            items.append(yes_no("hit", question, b.hit_by is a, "causal_reasoning"))
    return items


def ask_number(shapes: list[world.Shape], rng) -> list[dict]:
    """Ask how many shapes move, and how many do not."""
    n_moving = sum(bool(shape.moves) for shape in shapes)
    n_resting = len(shapes) - n_moving
    items = []
    for what, number in (
        ("[move|are moving]", n_moving),
        ("[rest|are at rest|do not move|stay]", n_resting),
    ):
        question = vary(f"how many [of the|] [shapes|objects|things] {what}?", rng)
        items.append(make_item("number", question, NUMBERS[number]))
    return items


# ------------------------------------------------------------------------------
# A benchmark


def draw_yes_no(shapes: list[world.Shape], video: str, seen: Counter, rng) -> list[dict]:
    """Draw a yes/no question of each type about a scene: [{video, type, question, answer}, ...].

    Args:
        video: file name of the scene's video
        seen: see world.pick
    """
    rows = []
    for type, items in all_questions(shapes, rng).items():
        if TYPES[type] == "yes_no":
            item = world.pick(items, seen, rng)
            answer = item["answer"].removesuffix(".")
            rows.append(
                {"video": video, "type": type, "question": item["question"], "answer": answer}
            )
    return rows


def main():
    """Write yes_no.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    add = parser.add_argument
    add("directory", type=Path, help="dev, test or hard, as python -m shapes.world wrote it")
    add("--seed", type=int, default=0, help="of the world")
    args = parser.parse_args()

    split = args.directory.resolve().name
    videos = sorted((args.directory / "videos").glob("*.mp4"))
    if split not in world.BENCHMARKS or not videos:
        raise SystemExit(f"{args.directory}: it is no benchmark that python -m shapes.world wrote")
    rng = np.random.default_rng([args.seed, world.SPLITS[split]])
    seen = Counter()
    rows = []
    for index, video in enumerate(videos):
        shapes = world.make_scene(args.seed, split, index)
        rows += draw_yes_no(shapes, video.name, seen, rng)
    common.write_json(args.directory / "yes_no.json", rows)


if __name__ == "__main__":
    main()
