"""What the tiny model is taught about a video, as text: tasks, each a prompt with its answer.

The language model is taught in three phases, one after another:

    tracks    dense tasks, a fact a token: what is where in each frame, what moves, what hits what
    looks     short true answers to many questions: the ability, without planted errors
    stages    the parts as the loop plays them, in many words (shapes/wordings.py): ask, answer,
              critique, refine; the planted errors are in the answers (shapes/gap.py)

A shape's place is given in cells, CELLS along a side of the world: "x3 y12". `rng` is a numpy
generator: the order in which numbers are drawn from it decides what the model is taught.
"""

from collections import Counter

import numpy as np

import media
from shapes import gap, more, wordings, world

PHASES = ("tracks", "looks", "stages")
LOOK_PROMPT = "_ {question} _"  # only taught: nobody asks so, and no error is planted behind it
N_FRAMES = 8  # that the model sees of a video
CELLS = 16

Task = tuple[str, str]  # prompt, answer


def curriculum(shapes: list[world.Shape], rng, seen: Counter, phase: str) -> list[Task]:
    """Make the tasks that a phase teaches about one video.

    Args:
        seen: how often each kind of answer was taught, see world.pick; updated
    """
    tracks = make_tracks(shapes, rng)
    if phase == "tracks":
        return tracks
    if phase == "looks":
        looks = make_looks(shapes, rng, seen)
        return [*looks, tracks[rng.integers(len(tracks))]]
    return make_branches(shapes, rng, seen)


def shown_frames() -> list[int]:
    """List the numbers of the frames that the model sees of a video."""
    return media.frame_indices(world.FRAMES, world.FPS, N_FRAMES)


# ------------------------------------------------------------------------------
# Tracks: what every frame shows


def make_tracks(shapes: list[world.Shape], rng) -> list[Task]:
    """Make tasks about every frame: what is in it, where each shape is, what it does.

    A fact a token: on this dense diet the language model learns within minutes to look a color up
    in a frame and to compare what it found, on which the sparse questions build. Without it
    relations and motions stay at chance for long.
    """
    frames = shown_frames()
    kind = rng.choice(world.KINDS)
    tasks = [
        follow("what can be seen", [what_is_seen(shapes, frame) for frame in frames]),
        follow(f"how many {kind}s are there", [how_many(shapes, kind, frame) for frame in frames]),
    ]
    for shape in shapes:
        other = choose_other(shapes, shape, rng)
        name = shape.name
        places = [where(shape, frame) for frame in frames]
        sides = [where_from(shape, other, frame) for frame in frames]
        tasks.append(follow(f"where is the {name}", places))
        tasks.append(follow(f"where is the {name} from the {other.name}", sides))
        if shape.moves:
            ways = [which_way(shape, frame) for frame in frames]
            hits = [what_hit(shape, frame) for frame in frames]
            tasks.append(follow(f"which way does the {name} move", ways))
            tasks.append(follow(f"what hit the {name}", hits))
    return [*tasks, *make_yes_no_tracks(shapes, rng)]


def make_yes_no_tracks(shapes: list[world.Shape], rng) -> list[Task]:
    """Make tasks about every frame that are answered by yes and no."""
    frames = shown_frames()
    names = [*(shape.name for shape in shapes), *rng.choice(gap.possible_strangers(shapes), 2)]
    name = rng.choice(names)
    seen = [what_is_seen(shapes, frame) for frame in frames]
    tasks = [follow(f"is the {name} there", [yes_no(name in text) for text in seen])]

    shape = rng.choice(shapes)
    other = choose_other(shapes, shape, rng)
    side = rng.choice(("left", "right", "above", "below"))
    link = " of" if side in ("left", "right") else ""
    sides = [where_from(shape, other, frame) for frame in frames]
    facts = [text if text == "absent" else yes_no(side in text) for text in sides]
    tasks.append(follow(f"is the {shape.name} {side}{link} the {other.name}", facts))

    direction = rng.choice((shape.moves or "up", *world.DIRECTIONS))
    facts = [yes_no(which_way(shape, frame) == direction) for frame in frames]
    tasks.append(follow(f"does the {shape.name} move {direction}", facts))
    return tasks


def yes_no(is_so: bool) -> str:
    """Say whether something is so."""
    return "yes" if is_so else "no"


def follow(question: str, facts: list[str]) -> Task:
    """Make a task out of a fact for each frame: "frame1: absent frame2: x3 y12 ..."."""
    prompt = LOOK_PROMPT.format(question=f"in each frame, {question}?")
    numbered = [f"frame{number}: {fact}" for number, fact in enumerate(facts, start=1)]
    return prompt, " ".join(numbered)


def choose_other(shapes: list[world.Shape], shape: world.Shape, rng):
    """Choose another shape of the scene."""
    return rng.choice([other for other in shapes if other is not shape])


def what_is_seen(shapes: list[world.Shape], frame: int) -> str:
    """Name the shapes that a frame shows, in the world's order of colors."""
    names = [shape.name for shape in shapes if frame >= shape.appears]
    return " ".join(world.sort_by_color(names)) or "nothing"


def how_many(shapes: list[world.Shape], kind: str, frame: int) -> str:
    """Count the shapes of a kind that a frame shows."""
    count = sum(shape.kind == kind for shape in shapes if frame >= shape.appears)
    return ("no", "one", "two", "three")[count]


def where(shape: world.Shape, frame: int) -> str:
    """Give the place of a shape in a frame: "x3 y12"."""
    if frame < shape.appears:
        return "absent"
    x, y = place(shape, frame)
    return f"x{x} y{y}"


def where_from(shape: world.Shape, other: world.Shape, frame: int) -> str:
    """Give the direction of a shape as another shape sees it: "left above"."""
    if frame < max(shape.appears, other.appears):
        return "absent"
    dx, dy = shape.track[frame] - other.track[frame]
    across = "left" if dx < 0 else "right"
    along = "above" if dy < 0 else "below"
    return f"{across} {along}"


def which_way(shape: world.Shape, frame: int) -> str:
    """Give the direction that a shape moves in when it comes to a frame."""
    return shape.moves if is_moving(shape, frame) else "rests"


def what_hit(shape: world.Shape, frame: int) -> str:
    """Name what set a shape in motion, while it moves."""
    if shape.hit_by and is_moving(shape, frame):
        return shape.hit_by.name
    return "nothing"


def is_moving(shape: world.Shape, frame: int) -> bool:
    """Tell whether a shape has moved since the frame before."""
    return frame > 0 and (shape.track[frame] != shape.track[frame - 1]).any()


def place(shape: world.Shape, frame: int) -> np.ndarray:
    """Find the cell of a shape's centre: (2,) integers, x and y."""
    return np.clip(shape.track[frame] * CELLS / world.UNITS, 0, CELLS - 1).astype(int)


# ------------------------------------------------------------------------------
# Looks: true answers to many questions

# Drawn for every video: one question of each type, and more of those that are learned slowly
SLOW_TYPES = ("relation", "relation", "motion", "cause", "cause", "count", "count")
LOOK_TYPES = (*world.TYPES, *SLOW_TYPES)


def make_looks(shapes: list[world.Shape], rng, seen: Counter) -> list[Task]:
    """Make tasks with short true answers, without planted errors: many facts fit in a step.

    Beside the world's own questions: where a shape is at the start and at the end, by itself and
    from another, and when it starts to move.
    """
    items = world.all_questions(shapes)
    tasks = []
    for type in LOOK_TYPES:
        item = world.pick(items[type], seen, rng)
        tasks.append(look(item["question"], item["answer"]))
    for item in draw_more(shapes, 7, rng, seen):
        tasks.append(look(item["question"], item["answer"]))
    for item in draw_items(items, shapes, 4, rng, seen):
        tasks.append(compare(item, shapes, rng))

    for shape in shapes:
        other = choose_other(shapes, shape, rng)
        for when, frame in (("end", world.FRAMES - 1), ("start", 0)):
            if frame >= shape.appears:
                question = f"at the {when}, where is the {shape.name}?"
                tasks.append(look(question, where(shape, frame)))
            if frame >= max(shape.appears, other.appears):
                question = f"at the {when}, where is the {shape.name} from the {other.name}?"
                tasks.append(look(question, where_from(shape, other, frame)))
        tasks.append(look(f"when does the {shape.name} set off?", when_it_sets_off(shape)))
    return tasks


def look(question: str, answer: str) -> Task:
    """Make a task out of a question and its true answer."""
    return LOOK_PROMPT.format(question=question), answer


def compare(item: dict, shapes: list[world.Shape], rng) -> Task:
    """Make a task of comparing two answers to a question, on which every verdict rests."""
    wrong, _ = gap.answer_to_judge(item, shapes, rng)
    pair = [item["answer"], wrong]
    verdict = "same." if pair[0] == pair[1] else "different."
    first, second = rng.permutation(pair)
    return look(f"{first} {second} same or different?", verdict)


def when_it_sets_off(shape: world.Shape) -> str:
    """Name the first frame, of those shown, in which a shape is not where it was at first."""
    if not shape.moves:
        return "it rests."
    at_rest = [frame for frame in shown_frames() if (shape.track[frame] == shape.track[0]).all()]
    return f"frame{len(at_rest) + 1}:"


# ------------------------------------------------------------------------------
# Stages: the loop's own tasks

MORE = 0.2  # share of the tasks that are about questions with short answers (shapes/more.py)


def make_branches(shapes: list[world.Shape], rng, seen: Counter) -> list[Task]:
    """Make the stages' tasks about one video: 2 to ask, 3 to answer, 5 to judge, 3 to refine.

    And 3 looks at what is learned slowly, which is not learned to its end before.
    """
    tasks = []
    items = world.all_questions(shapes)
    for type in rng.choice(SLOW_TYPES, 3, replace=False):
        item = world.pick(items[type], seen, rng)
        tasks.append(look(item["question"], item["answer"]))
    for item in draw_items(items, shapes, 2, rng, seen):
        tasks.append((wordings.ask_question(item["type"], rng), item["question"]))
    for item in draw_items(items, shapes, 3, rng, seen):
        tasks.append(task_of_answering(item, shapes, rng))
    for item in draw_items(items, shapes, 5, rng, seen):
        tasks.append(task_of_judging(item, shapes, rng))
    for item in draw_items(items, shapes, 3, rng, seen):
        tasks.append(task_of_refining(item, shapes, rng))
    return tasks


def draw_items(
    items: dict[str, list], shapes: list[world.Shape], n: int, rng, seen: Counter
) -> list[dict]:
    """Draw n types of question, most of them the world's own, and an item of each.

    items: the world's own, by type
    """
    n_more = rng.binomial(n, MORE)
    types = rng.choice(list(items), n - n_more, replace=False)
    drawn = [world.pick(items[type], seen, rng) for type in types]
    return [*drawn, *draw_more(shapes, n_more, rng, seen)]


def draw_more(shapes: list[world.Shape], n: int, rng, seen: Counter) -> list[dict]:
    """Draw n types of question with short answers (shapes/more.py), and an item of each."""
    items = more.all_questions(shapes, rng)
    types = rng.choice(list(items), n, replace=False)
    return [world.pick(items[type], seen, rng) for type in types]


def task_of_answering(item: dict, shapes: list[world.Shape], rng) -> Task:
    """Make a task of generate.py: to answer, with the planted errors."""
    return wordings.ask_answer(item["question"], rng), gap.first_answer(item, shapes, rng)


def task_of_judging(item: dict, shapes: list[world.Shape], rng) -> Task:
    """Make a task of critique.py: to judge an answer by the truth."""
    answer, errors = gap.answer_to_judge(item, shapes, rng)
    listing = ""
    if rng.random() < 0.9:
        listed = wordings.draw_error_types(rng)
        named = wordings.name_errors(errors, item["type"], listed)
        if errors and not named:  # once more, or too many verdicts would be none
            listed = wordings.draw_error_types(rng)
            named = wordings.name_errors(errors, item["type"], listed)
        listing = wordings.describe(listed, rng)
        errors = named
    prompt = wordings.ask_critique(item["question"], answer, listing, rng)
    return prompt, write_critique(item["answer"], errors)


def task_of_refining(item: dict, shapes: list[world.Shape], rng) -> Task:
    """Make a task of refine.py: to answer again, with the truth."""
    answer, errors = gap.answer_to_judge(item, shapes, rng)
    evidence = item["answer"]
    if rng.random() < 0.15:  # a critic may err: then the video decides
        evidence, _ = gap.wrong_answers(item, shapes)[0]
        errors = [item["error_type"]]
    if rng.random() < 0.5:
        errors = wordings.name_errors(errors, item["type"], wordings.draw_error_types(rng))
    critique = write_critique(evidence, errors)
    return wordings.ask_revision(item["question"], answer, critique, rng), item["answer"]


def write_critique(evidence: str, errors: list[str]) -> str:
    """Write as the tiny critic does: first the evidence, then the verdict."""
    verdict = ", ".join(errors) or "none"
    return f"in the video: {evidence} Errors: {verdict}"
