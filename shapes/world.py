"""A tiny world of moving shapes: real .mp4 files whose truth is known exactly.

    python -m shapes.world runs/shapes        # in a few seconds

Two or three colored shapes (every color at most once in a video) appear one
after another on a grey ground, in 16 frames at 8 frames a second. Some move:
by themselves, or because another shape runs into them. Six types of question
can be asked about every video, three spatial and three temporal, each with one
right answer.

Below the output directory this command writes

    round1/ .. round4/    unlabeled videos for the four rounds of the loop:
                          only .mp4 files, no truth beside them
    dev/, test/, hard/    benchmarks: videos/*.mp4 and questions.json

No two of these share a video, and none shares one with pretraining: every
scene is drawn from its own seed (world seed, split, index). `hard` shows
combinations of color and shape that occur nowhere else.

Coordinates are in units of a 64 x 64 square, x to the right, y down.
"""

import argparse
import itertools
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

import common

COLORS = {  # RGB
    "red": (225, 55, 50),
    "green": (60, 190, 75),
    "blue": (60, 95, 235),
    "yellow": (240, 220, 60),
    "white": (245, 245, 245),
}
KINDS = ("circle", "square", "triangle")
HELD_OUT = {  # combinations that only `hard` shows
    ("red", "triangle"),
    ("green", "circle"),
    ("blue", "square"),
    ("yellow", "circle"),
    ("white", "triangle"),
}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

# Of a video
FRAMES = 16
FPS = 8
PIXELS = 128  # side of a rendered frame
LAST_MOVE = 13  # everything rests from this frame on, so "at the end" is well defined

# In units
UNITS = 64  # side of the world
MARGIN = 8  # no centre comes closer to the edge
RADIUS = 6  # of a shape
NEAR = 10  # an offset below this is not asked about: neither left nor right

# Types of question -> their kind
TYPES = {
    "relation": "spatial",
    "objects": "spatial",
    "count": "spatial",
    "order": "temporal",
    "cause": "temporal",
    "motion": "temporal",
}
COUNTS = ("are no {}s", "is one {}", "are two {}s", "are three {}s")

# Split -> the number that its scenes are drawn from. 6 and 8 were the tests of earlier bases, whose
# scores have been seen.
SPLITS = {
    "pretrain": 0,
    "round1": 1,
    "round2": 2,
    "round3": 3,
    "round4": 4,
    "dev": 5,
    "hard": 7,
    "test": 9,
}
BENCHMARKS = ("dev", "test", "hard")


@dataclass(frozen=True)
class Shape:
    """A shape in a scene, with all that happens to it."""

    color: str
    kind: str
    appears: int  # the first frame that shows it
    track: np.ndarray  # (FRAMES, 2) its centre, in units
    moves: str = ""  # a direction, or "" for a shape at rest
    hit_by: "Shape | None" = None  # the shape that set it in motion

    @property
    def name(self) -> str:
        """What the shape is called, such as "red circle"."""
        return f"{self.color} {self.kind}"


# ------------------------------------------------------------------------------
# Scenes
#
# A scene is a list of shapes. `rng` is a numpy generator: the order in which numbers are drawn from
# it decides what the videos are.


def make_scene(seed: int, split: str, index: int) -> list[Shape]:
    """Make scene number `index` of a split.

    Returns:
        2 or 3 shapes, of which at least one moves and not all appear at once
    """
    rng = np.random.default_rng([seed, SPLITS[split], index])
    # Drawn once: the scenes that are rejected below must not change the shares of these two
    n_shapes = rng.integers(2, 4)
    collide = rng.random() < 0.5

    while True:
        names = draw_names(rng, n_shapes)
        has_held_out = any(name in HELD_OUT for name in names)
        if has_held_out != (split == "hard"):
            continue

        shapes = draw_shapes(rng, names, collide)
        beginnings = {shape.appears for shape in shapes}
        if stay_apart(shapes) and len(beginnings) > 1:
            return [shapes[number] for number in rng.permutation(len(shapes))]


def draw_names(rng, n: int) -> list[tuple[str, str]]:
    """Draw n different colors, each with a kind: [(color, kind), ...]."""
    colors = rng.permutation(list(COLORS))[:n]
    return [(str(color), str(rng.choice(KINDS))) for color in colors]


def draw_shapes(rng, names: list[tuple[str, str]], collide: bool) -> list[Shape]:
    """Draw what shapes of these names do; collide: the first runs into the second."""
    if collide:
        shapes = collision(rng, names[0], names[1])
        for name in names[2:]:
            shapes.append(alone(rng, name, moves=rng.random() < 0.3))
        return shapes

    shapes = [alone(rng, names[0], moves=True)]
    for name in names[1:]:
        shapes.append(alone(rng, name, moves=rng.random() < 0.6))
    return shapes


def collision(rng, runner_name: tuple[str, str], pushed_name: tuple[str, str]) -> list[Shape]:
    """Let one shape run into another and stop, while the other moves on in the same direction."""
    direction = rng.choice(list(DIRECTIONS))
    along = np.array(DIRECTIONS[direction])
    run, push = rng.uniform(11, 17, 2)  # units that each of them moves
    hit = rng.integers(7, 10)  # frame

    # Across the direction they share a coordinate; along it, both paths must fit into the world
    across = rng.uniform(MARGIN, UNITS - MARGIN)
    span = run + 2 * RADIUS + push
    low = rng.uniform(MARGIN, UNITS - MARGIN - span)
    begin = low if along.sum() > 0 else UNITS - low
    start = np.where(along != 0, begin, across)  # (2,)

    # One of the two is there from the first frame on, the other often comes later
    later = int(rng.choice([0, 3, 3]))
    runner_appears, pushed_appears = rng.permutation([0, later])

    run_track = straight(start, direction, run, runner_appears + 1, hit)
    runner = Shape(*runner_name, int(runner_appears), run_track, direction)
    touching = start + along * (run + 2 * RADIUS)
    push_track = straight(touching, direction, push, hit, LAST_MOVE)
    pushed = Shape(*pushed_name, int(pushed_appears), push_track, direction, hit_by=runner)
    return [runner, pushed]


def alone(rng, name: tuple[str, str], moves: bool) -> Shape:
    """Let a shape move by itself, or rest."""
    appears = int(rng.choice([0, 3, 7]))
    if not moves:
        place = rng.uniform(MARGIN, UNITS - MARGIN, 2)
        return Shape(*name, appears, np.tile(place, (FRAMES, 1)))

    direction = rng.choice(list(DIRECTIONS))
    along = np.array(DIRECTIONS[direction])
    distance = rng.uniform(12, 26)
    across = rng.uniform(MARGIN, UNITS - MARGIN, 2)  # one of the two numbers is used
    low = rng.uniform(MARGIN, UNITS - MARGIN - distance)
    begin = low if along.sum() > 0 else UNITS - low
    start = np.where(along != 0, begin, across)  # (2,)

    first = rng.integers(appears + 1, 9)
    last = rng.integers(first + 4, LAST_MOVE + 1)
    track = straight(start, direction, distance, first, last)
    return Shape(*name, appears, track, direction)


def straight(start: np.ndarray, direction: str, distance: float, first: int, last: int):
    """Make the track of a shape that rests, moves evenly from frame first to last, and rests.

    Args:
        start: (2,) where it rests at first, in units
        distance: how far it moves, in units

    Returns:
        (FRAMES, 2) its centre in every frame, in units
    """
    progress = np.clip((np.arange(FRAMES) - first) / (last - first), 0, 1)  # (FRAMES,)
    moved = progress[:, None] * distance  # (FRAMES, 1)
    return start + moved * np.array(DIRECTIONS[direction])  # (FRAMES, 2)


def stay_apart(shapes: list[Shape]) -> bool:
    """Tell whether no shape comes near another, except one that runs into another."""
    for one, other in itertools.combinations(shapes, 2):
        if other.hit_by is one:
            continue
        both = max(one.appears, other.appears)  # the first frame that shows both
        distances = np.linalg.norm(one.track[both:] - other.track[both:], axis=1)
        if distances.min() <= 2.6 * RADIUS:
            return False
    return True


# ------------------------------------------------------------------------------
# Videos

# OpenCV draws at whole numbers, which count parts of a pixel: 1 / 2**SHIFT each
SHIFT = 4
CORNERS = {  # of a shape of radius 1 at (0, 0)
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0, -1.1), (1.1, 0.9), (-1.1, 0.9)],
}


def render(shapes: list[Shape], path, seed=0):
    """Write a scene as an .mp4 file (MPEG-4 part 2) of FRAMES frames, PIXELS x PIXELS.

    Args:
        seed: of the shade of the ground; a number or a list of numbers

    Raises:
        OSError: if OpenCV cannot write such a file
    """
    shade = np.random.default_rng(seed).integers(70, 100)
    codec = cv2.VideoWriter_fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), codec, FPS, (PIXELS, PIXELS))
    if not writer.isOpened():
        raise OSError(f"{path}: OpenCV cannot write an .mp4 file here")

    for frame in range(FRAMES):
        image = np.full((PIXELS, PIXELS, 3), shade, np.uint8)
        for shape in shapes:
            if frame >= shape.appears:
                draw(shape, frame, image)
        writer.write(image)
    writer.release()


def draw(shape: Shape, frame: int, image: np.ndarray):
    """Draw a shape, as it is in a frame, into an image, uint8 (PIXELS, PIXELS, 3), BGR."""
    pixels_a_unit = PIXELS / UNITS
    x, y = shape.track[frame] * pixels_a_unit
    radius = RADIUS * pixels_a_unit
    color = COLORS[shape.color][::-1]  # OpenCV wants BGR

    parts = 2**SHIFT
    if shape.kind == "circle":
        centre = (round(x * parts), round(y * parts))
        cv2.circle(image, centre, round(radius * parts), color, -1, cv2.LINE_AA, SHIFT)
    else:
        corners = np.array(CORNERS[shape.kind]) * radius + (x, y)  # (corners, 2) in pixels
        corners = (corners * parts).round().astype(np.int32)
        cv2.fillPoly(image, [corners], color, cv2.LINE_AA, SHIFT)


# ------------------------------------------------------------------------------
# Questions and their truth


def all_questions(shapes: list[Shape]) -> dict[str, list[dict]]:
    """List every question that a scene allows.

    Returns:
        {type: [item, ...]} in the order of TYPES; every type has at least one item (see make_item)
    """
    return {
        "relation": ask_relation(shapes),
        "objects": ask_objects(shapes),
        "count": ask_count(shapes),
        "order": ask_order(shapes),
        "cause": ask_cause(shapes),
        "motion": ask_motion(shapes),
    }


def make_item(type: str, question: str, answer: str, label, error_type: str) -> dict:
    """Make a question with its truth.

    Args:
        label: the class that is balanced (see pick), such as the side that is the right answer
        error_type: what a wrong answer to this question is called
    """
    return {
        "type": type,
        "kind": TYPES[type],
        "question": question,
        "answer": answer,
        "label": label,
        "error_type": error_type,
    }


def ask_relation(shapes: list[Shape]) -> list[dict]:
    """Ask on which side of another each shape is, at the start and at the end."""
    items = []
    for a, b in itertools.permutations(shapes, 2):
        for when, frame in (("start", 0), ("end", FRAMES - 1)):
            if frame < max(a.appears, b.appears):
                continue
            dx, dy = a.track[frame] - b.track[frame]
            if abs(dx) >= NEAR:
                side = "left" if dx < 0 else "right"
                question = f"at the {when}, is the {a.name} left or right of the {b.name}?"
                answer = f"it is {side} of the {b.name}."
                items.append(make_item("relation", question, answer, side, "spatial_relationship"))
            if abs(dy) >= NEAR:
                side = "above" if dy < 0 else "below"
                question = f"at the {when}, is the {a.name} above or below the {b.name}?"
                answer = f"it is {side} the {b.name}."
                items.append(make_item("relation", question, answer, side, "spatial_relationship"))
    return items


def ask_objects(shapes: list[Shape]) -> list[dict]:
    """Ask in two wordings which shapes there are."""
    answer = f"{list_objects([shape.name for shape in shapes])}."
    items = []
    for question in ("which objects are in the video?", "what can be seen in the video?"):
        items.append(make_item("objects", question, answer, len(shapes), "object_hallucination"))
    return items


def list_objects(names: list[str]) -> str:
    """List names in the world's order of colors: "a red circle, a blue square and ..."."""
    *others, last = [f"a {name}" for name in sort_by_color(names)]
    if not others:
        return last
    return f"{', '.join(others)} and {last}"


def sort_by_color(names: list[str]) -> list[str]:
    """Sort names, such as "red circle", in the world's order of colors."""
    colors = list(COLORS)
    return sorted(names, key=lambda name: colors.index(name.split()[0]))


def ask_count(shapes: list[Shape]) -> list[dict]:
    """Ask how many shapes there are, of each kind and in all."""
    items = []
    for kind in ("shape", *KINDS):
        count = sum(kind in ("shape", shape.kind) for shape in shapes)
        question = f"how many {kind}s are there?"
        answer = f"there {COUNTS[count].format(kind)}."
        label = (kind == "shape", count)
        items.append(make_item("count", question, answer, label, "factual_inaccuracy"))
    return items


def ask_order(shapes: list[Shape]) -> list[dict]:
    """Ask which of two shapes appears first, where one does."""
    items = []
    for a, b in itertools.permutations(shapes, 2):
        if a.appears == b.appears:
            continue
        first = a if a.appears < b.appears else b
        question = f"which appears first, the {a.name} or the {b.name}?"
        answer = f"the {first.name} appears first."
        items.append(make_item("order", question, answer, first is a, "temporal_ordering"))
    return items


def ask_cause(shapes: list[Shape]) -> list[dict]:
    """Ask why a shape moves."""
    items = []
    for shape in shapes:
        if not shape.moves:
            continue
        question = f"why does the {shape.name} move?"
        answer = "it moves by itself."
        if shape.hit_by:
            answer = f"because the {shape.hit_by.name} hits it."
        label = bool(shape.hit_by)
        items.append(make_item("cause", question, answer, label, "causal_reasoning"))
    return items


def ask_motion(shapes: list[Shape]) -> list[dict]:
    """Ask which way a shape moves."""
    items = []
    for shape in shapes:
        if not shape.moves:
            continue
        question = f"which way does the {shape.name} move?"
        answer = f"it moves {shape.moves}."
        items.append(make_item("motion", question, answer, shape.moves, "factual_inaccuracy"))
    return items


def draw_questions(shapes: list[Shape], video: str, seen: Counter, rng) -> list[dict]:
    """Draw one question of each type about a scene, as rows of questions.json.

    Args:
        video: file name of the scene's video
        seen: see pick

    Returns:
        [{video, type, kind, question, answer, error_type}, ...]
    """
    rows = []
    for items in all_questions(shapes).values():
        item = pick(items, seen, rng)
        truth = {key: value for key, value in item.items() if key != "label"}
        rows.append({"video": video, **truth})
    return rows


def pick(items: list[dict], seen: Counter, rng) -> dict:
    """Pick one of the items whose label was picked least often, so that no answer wins by majority.

    Args:
        items: of one type
        seen: how often each (type, label) was picked; updated
    """
    times = [seen[item["type"], item["label"]] for item in items]
    least = min(times)
    item = rng.choice([item for item, n in zip(items, times) if n == least])
    seen[item["type"], item["label"]] += 1
    return item


# ------------------------------------------------------------------------------
# The directory that the loop runs on


def write_split(root: Path, split: str, n: int, seed: int):
    """Render n videos below root; for a benchmark also write questions.json."""
    is_benchmark = split in BENCHMARKS
    directory = root / split
    videos = directory / "videos" if is_benchmark else directory
    videos.mkdir(parents=True, exist_ok=True)

    rng = np.random.default_rng([seed, SPLITS[split]])  # of the questions
    seen = Counter()
    rows = []
    for index in range(n):
        name = f"{split}_{index:04}.mp4"
        shapes = make_scene(seed, split, index)
        render(shapes, videos / name, seed=[seed, SPLITS[split], index])
        if is_benchmark:
            rows += draw_questions(shapes, name, seen, rng)
    if is_benchmark:
        (directory / "questions.json").write_text(json.dumps(rows, indent=1))


def main():
    """Write the splits that the loop runs on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    add = parser.add_argument
    add("output", type=Path, help="directory to write to, such as runs/shapes")
    add("--videos", type=int, default=200, metavar="N", help="unlabeled videos for each round")
    add(
        "--benchmark-videos",
        type=int,
        default=150,
        metavar="N",
        help="videos for each benchmark, with six questions each",
    )
    add("--seed", type=int, default=0, help="of the world")
    args = parser.parse_args()

    for split in SPLITS:
        if split in BENCHMARKS:
            write_split(args.output, split, args.benchmark_videos, args.seed)
        elif split != "pretrain":
            write_split(args.output, split, args.videos, args.seed)


if __name__ == "__main__":
    main()
