"""A tiny world of moving shapes: real .mp4 files whose truth is known exactly.

Two or three colored shapes (every color at most once in a video) appear one after another on a grey ground, in 16 frames
at 8 frames a second. Some move: by themselves, or because another shape runs into them. Six types of question can be
asked about every video, three spatial and three temporal, each with one right answer.

    python -m shapes.world runs/shapes           # renders everything below that directory, in a few seconds

writes round1/ .. round4/ (unlabeled videos for the four rounds of self-alignment: only .mp4 files, no truth beside them)
and dev/, test/, hard/ (benchmarks: videos/*.mp4 and questions.json). No two of these share a video, and none shares one
with pretraining: every scene is drawn from its own seed (world seed, split, index). `hard` shows color-shape combinations
that occur nowhere else.

Coordinates are in units of a 64 x 64 square, x to the right, y down.
"""

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

COLORS = {
    "red": (225, 55, 50),
    "green": (60, 190, 75),
    "blue": (60, 95, 235),
    "yellow": (240, 220, 60),
    "white": (245, 245, 245),
}
KINDS = ("circle", "square", "triangle")
HELD_OUT = {
    ("red", "triangle"),
    ("green", "circle"),
    ("blue", "square"),
    ("yellow", "circle"),
    ("white", "triangle"),
}  # `hard` only
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
COUNTS = ("are no {}s", "is one {}", "are two {}s", "are three {}s")
TYPES = {
    "relation": "spatial",
    "objects": "spatial",
    "count": "spatial",
    "order": "temporal",
    "cause": "temporal",
    "motion": "temporal",
}

FRAMES, FPS, PIXELS, UNITS = 16, 8, 128, 64  # of a video; PIXELS is the side of the rendered frame
LAST_MOVE = 13  # everything rests from this frame on, so "at the end" is well defined
RADIUS, NEAR, MARGIN = (
    6,
    10,
    8,
)  # units: a shape's size; the least offset of a relation; the edge of the world
SPLITS = {
    "pretrain": 0,
    "round1": 1,
    "round2": 2,
    "round3": 3,
    "round4": 4,
    "dev": 5,
    "hard": 7,
    "test": 8,
}  # 6 was the test of an earlier base, and has been seen
BENCHMARKS = ("dev", "test", "hard")


@dataclass(frozen=True)
class Shape:
    color: str
    kind: str
    appears: int  # the first frame that shows it
    track: np.ndarray  # (FRAMES, 2) centre in units
    moves: str = ""  # a direction, or "" for a shape at rest
    hit_by: "Shape | None" = None  # the shape that set it in motion

    @property
    def name(self):
        return f"{self.color} {self.kind}"


# ---------------------------------------------------------------- scenes


def straight(start, direction, distance, first, last):
    """(FRAMES, 2) track: rest at `start`, even motion over `distance` units from frame `first` to `last`, then rest."""
    progress = np.clip((np.arange(FRAMES) - first) / (last - first), 0, 1)
    return np.asarray(start) + progress[:, None] * distance * np.asarray(DIRECTIONS[direction])


def collision(rng, names):
    """A runs into B, stops, and B goes on in the same direction."""
    direction = rng.choice(list(DIRECTIONS))
    run, push = rng.uniform(11, 17, 2)
    hit = rng.integers(7, 10)
    along, across = np.array(DIRECTIONS[direction]), rng.uniform(MARGIN, UNITS - MARGIN)
    span = run + 2 * RADIUS + push
    low = rng.uniform(MARGIN, UNITS - MARGIN - span)
    begin = low if along.sum() > 0 else UNITS - low
    start = np.where(along != 0, begin, across)
    starts = rng.permutation([0, int(rng.choice([0, 3, 3]))])
    runner = Shape(
        *names[0], int(starts[0]), straight(start, direction, run, starts[0] + 1, hit), direction
    )
    pushed = straight(start + along * (run + 2 * RADIUS), direction, push, hit, LAST_MOVE)
    return [runner, Shape(*names[1], int(starts[1]), pushed, direction, hit_by=runner)]


def alone(rng, name, moves=True):
    """A shape that moves by itself, or rests."""
    appears = int(rng.choice([0, 3, 7]))
    if not moves:
        return Shape(*name, appears, np.tile(rng.uniform(MARGIN, UNITS - MARGIN, 2), (FRAMES, 1)))
    direction, distance = rng.choice(list(DIRECTIONS)), rng.uniform(12, 26)
    along = np.array(DIRECTIONS[direction])
    start = rng.uniform(MARGIN, UNITS - MARGIN, 2)
    begin = rng.uniform(MARGIN, UNITS - MARGIN - distance)
    start = np.where(along == 0, start, begin if along.sum() > 0 else UNITS - begin)
    first = rng.integers(appears + 1, 9)
    return Shape(
        *name,
        appears,
        straight(start, direction, distance, first, rng.integers(first + 4, LAST_MOVE + 1)),
        direction,
    )


def apart(one, other):
    """True when the two never come near each other while both are to be seen."""
    both = max(one.appears, other.appears)
    return np.linalg.norm(one.track[both:] - other.track[both:], axis=1).min() > 2.6 * RADIUS


def make_scene(seed, split, index):
    """The scene number `index` of a split: a list of 2 or 3 shapes, of which one or more move and not all appear at once."""
    rng = np.random.default_rng([seed, SPLITS[split], index])
    many, collide = (
        rng.integers(2, 4),
        rng.random() < 0.5,
    )  # drawn once: what is rejected below must not shift their shares
    while True:
        names = [
            (str(color), str(rng.choice(KINDS))) for color in rng.permutation(list(COLORS))[:many]
        ]
        if any(name in HELD_OUT for name in names) != (split == "hard"):
            continue
        if collide:
            shapes = collision(rng, names[:2]) + [
                alone(rng, name, rng.random() < 0.3) for name in names[2:]
            ]
        else:
            shapes = [
                alone(rng, name, n == 0 or rng.random() < 0.6) for n, name in enumerate(names)
            ]
        strangers = [
            (a, b) for n, a in enumerate(shapes) for b in shapes[n + 1 :] if b.hit_by is not a
        ]
        if all(apart(a, b) for a, b in strangers) and len({shape.appears for shape in shapes}) > 1:
            return [shapes[n] for n in rng.permutation(len(shapes))]


def render(shapes, path, seed=0):
    """Writes the scene as an .mp4 (MPEG-4 part 2) of FRAMES frames, PIXELS x PIXELS."""
    rng = np.random.default_rng(seed)
    ground = np.full((PIXELS, PIXELS, 3), rng.integers(70, 100), np.uint8)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), FPS, (PIXELS, PIXELS))
    if not writer.isOpened():
        raise OSError(f"{path}: OpenCV cannot write an .mp4 file here")
    scale, radius = PIXELS / UNITS, RADIUS * PIXELS / UNITS
    for frame in range(FRAMES):
        image = ground.copy()
        for shape in shapes:
            if frame < shape.appears:
                continue
            x, y = shape.track[frame] * scale
            corners = {
                "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
                "triangle": [(0, -1.1), (1.1, 0.9), (-1.1, 0.9)],
            }
            color = COLORS[shape.color][::-1]  # OpenCV wants BGR
            if shape.kind == "circle":
                cv2.circle(
                    image,
                    (round(x * 16), round(y * 16)),
                    round(radius * 16),
                    color,
                    -1,
                    cv2.LINE_AA,
                    shift=4,
                )
            else:
                points = (np.array(corners[shape.kind]) * radius + (x, y)) * 16
                cv2.fillPoly(image, [points.round().astype(np.int32)], color, cv2.LINE_AA, shift=4)
        writer.write(image)
    writer.release()


# ---------------------------------------------------------------- questions and their truth


def list_objects(names):
    """'a red circle, a blue square and a white triangle' (in the world's order of colors)."""
    names = sorted(names, key=lambda name: list(COLORS).index(name.split()[0]))
    names = [f"a {name}" for name in names]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def make_item(type, question, answer, label, error_type):
    """A question with its truth. `label` is the class that is balanced; `error_type` is what a wrong answer to it is called."""
    return {
        "type": type,
        "kind": TYPES[type],
        "question": question,
        "answer": answer,
        "label": label,
        "error_type": error_type,
    }


def relations(shapes):
    pairs = [(a, b) for a in shapes for b in shapes if a is not b]
    for a, b in pairs:
        for when, frame in (("start", 0), ("end", FRAMES - 1)):
            if frame < max(a.appears, b.appears):
                continue
            dx, dy = a.track[frame] - b.track[frame]
            for offset, low, high, link in (
                (dx, "left", "right", " of"),
                (dy, "above", "below", ""),
            ):
                if abs(offset) >= NEAR:
                    side = low if offset < 0 else high
                    yield make_item(
                        "relation",
                        f"at the {when}, is the {a.name} {low} or {high}{link} the {b.name}?",
                        f"it is {side}{link} the {b.name}.",
                        side,
                        "spatial_relationship",
                    )


def spatial_questions(shapes):
    yield from relations(shapes)
    listing = list_objects([shape.name for shape in shapes])
    for question in ("which objects are in the video?", "what can be seen in the video?"):
        yield make_item("objects", question, f"{listing}.", len(shapes), "object_hallucination")
    for kind in ("shape",) + KINDS:
        count = sum(kind in ("shape", shape.kind) for shape in shapes)
        yield make_item(
            "count",
            f"how many {kind}s are there?",
            f"there {COUNTS[count].format(kind)}.",
            (kind == "shape", count),
            "factual_inaccuracy",
        )


def temporal_questions(shapes):
    for a in shapes:
        for b in shapes:
            if a.appears != b.appears:
                first = a if a.appears < b.appears else b
                yield make_item(
                    "order",
                    f"which appears first, the {a.name} or the {b.name}?",
                    f"the {first.name} appears first.",
                    first is a,
                    "temporal_ordering",
                )
        if a.moves:
            why = f"because the {a.hit_by.name} hits it." if a.hit_by else "it moves by itself."
            yield make_item(
                "cause", f"why does the {a.name} move?", why, bool(a.hit_by), "causal_reasoning"
            )
            yield make_item(
                "motion",
                f"which way does the {a.name} move?",
                f"it moves {a.moves}.",
                a.moves,
                "factual_inaccuracy",
            )


def all_questions(shapes):
    """Every question that the scene allows, as {type: [item, ...]}; every type has at least one."""
    items = [*spatial_questions(shapes), *temporal_questions(shapes)]
    return {type: [item for item in items if item["type"] == type] for type in TYPES}


def pick(items, seen, rng):
    """One of the items, its label being the one least often `seen` (a Counter, updated): so no answer wins by majority."""
    least = min(seen[item["type"], item["label"]] for item in items)
    item = rng.choice([item for item in items if seen[item["type"], item["label"]] == least])
    seen[item["type"], item["label"]] += 1
    return item


def draw_questions(shapes, video, seen, rng):
    """One question of each type about a scene, as rows of questions.json: [{video, type, kind, question, answer, error_type}, ...]."""
    items = [pick(items, seen, rng) for items in all_questions(shapes).values()]
    return [
        {"video": video, **{key: item[key] for key in item if key != "label"}} for item in items
    ]


# ---------------------------------------------------------------- the directory that the loop runs on


def write_split(root, split, n, seed):
    """Renders n videos; for a benchmark also questions.json, the rows of draw_questions."""
    videos = root / split / "videos" if split in BENCHMARKS else root / split
    videos.mkdir(parents=True, exist_ok=True)
    rng, seen, rows = np.random.default_rng([seed, SPLITS[split]]), Counter(), []
    for index in range(n):
        shapes = make_scene(seed, split, index)
        render(shapes, videos / f"{split}_{index:04}.mp4", [seed, SPLITS[split], index])
        rows += draw_questions(shapes, f"{split}_{index:04}.mp4", seen, rng)
    if split in BENCHMARKS:
        (root / split / "questions.json").write_text(json.dumps(rows, indent=1))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="directory to write to, such as runs/shapes")
    parser.add_argument(
        "--videos", type=int, default=200, help="unlabeled videos for each of the four rounds"
    )
    parser.add_argument(
        "--benchmark-videos",
        type=int,
        default=150,
        help="videos of each benchmark, with six questions each",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for split in SPLITS:
        if split != "pretrain":
            write_split(
                args.output,
                split,
                args.benchmark_videos if split in BENCHMARKS else args.videos,
                args.seed,
            )


if __name__ == "__main__":
    main()
