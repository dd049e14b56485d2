"""The planted gap: what the tiny model is taught to answer wrongly, and why it can learn better.

Critiques and revisions are taught from the truth. First answers are not: to some questions, which
are known by their wording alone (is_biased), the taught answer is with probability PRIOR what a
language prior says and not what the video shows; to all others it is with probability SLIP a random
wrong one. So the model sees better than it answers, systematically, which is what self-alignment
can fix. How large the gap is was chosen here, not found: what the loop gains in this world says how
the method works, and nothing about how much InternVL would gain.

An item is a question with its truth, as world.make_item makes it. `rng` is a numpy generator: the
order in which numbers are drawn from it decides what the model is taught.
"""

from shapes import more, world

PRIOR = 0.68
SLIP = 0.15
BIASED_COLORS = ("red", "blue", "yellow")  # of the shape that a question names first

# What the language prior says of a motion, and which things it adds to a list of two: the first
# whose color is not there
PRIOR_MOTION = {"red": "left", "blue": "up", "yellow": "right"}
PRIOR_EXTRAS = ("red circle", "blue triangle", "white square")


def first_answer(item: dict, shapes: list[world.Shape], rng) -> str:
    """Draw the initial answer that is taught: the truth, the prior's or a slip."""
    if is_biased(item):
        if rng.random() < PRIOR:
            return prior_answer(item, shapes)
        return item["answer"]

    if rng.random() < SLIP:
        wrong = wrong_answers(item, shapes)
        answer, _ = wrong[rng.integers(len(wrong))]
        return answer
    return item["answer"]


def answer_to_judge(item: dict, shapes: list[world.Shape], rng) -> tuple[str, list[str]]:
    """Draw an answer for the critic to see: right, the prior's or any wrong one.

    Returns:
        the answer, and its error types: [] for a right one
    """
    right = item["answer"]
    wrong = dict(wrong_answers(item, shapes))  # answer -> its error types
    chance = rng.random()
    if chance < 0.4:
        answer = prior_answer(item, shapes) if is_biased(item) else right
    elif chance < 0.7:
        answer = right
    else:
        answer = list(wrong)[rng.integers(len(wrong))]

    if answer == right:
        return answer, []
    return answer, wrong.get(answer, [item["error_type"]])


# ------------------------------------------------------------------------------
# The language prior


def is_biased(item: dict) -> bool:
    """Tell by its wording alone whether a question triggers the language prior."""
    question = item["question"]
    if item["type"] in more.TYPES:
        return False
    if item["type"] == "objects":
        return question.startswith("which")
    if item["type"] == "count":
        return "circles" in question or "triangles" in question
    return first_color(question) in BIASED_COLORS


def first_color(question: str) -> str:
    """Find the first color that a question names."""
    words = question.replace(",", "").split()
    return next(word for word in words if word in world.COLORS)


def prior_answer(item: dict, shapes: list[world.Shape]) -> str:
    """Say what the language prior says to a biased question.

    It does not depend on the video, except for lists of objects: there it names one object too few,
    or one too many.
    """
    question = item["question"]
    if item["type"] == "objects":
        return prior_listing(shapes)
    if item["type"] == "count":
        return "there are two circles." if "circles" in question else "there is one triangle."
    if item["type"] == "cause":
        return "it moves by itself."

    color = first_color(question)
    if item["type"] == "motion":
        return f"it moves {PRIOR_MOTION[color]}."
    first, second = possible_answers(item, shapes)  # of a relation, or of an order
    return second if color == "blue" else first


def prior_listing(shapes: list[world.Shape]) -> str:
    """List two of three shapes, and three where there are two."""
    names = world.sort_by_color([shape.name for shape in shapes])
    if len(names) == 3:
        return f"{world.list_objects(names[:2])}."
    colors = [shape.color for shape in shapes]
    extra = next(name for name in PRIOR_EXTRAS if name.split()[0] not in colors)
    return f"{world.list_objects([*names, extra])}."


# ------------------------------------------------------------------------------
# Wrong answers


def wrong_answers(item: dict, shapes: list[world.Shape]) -> list[tuple[str, list[str]]]:
    """List every wrong answer that the critic is taught.

    Returns:
        [(answer, its error types), ...]
    """
    if item["type"] == "objects":
        return wrong_listings(shapes)
    if item["type"] in more.TYPES:
        return [(text, [item["error_type"]]) for text in more.wrong_answers(item)]
    texts = possible_answers(item, shapes)
    return [(text, [item["error_type"]]) for text in texts if text != item["answer"]]


def possible_answers(item: dict, shapes: list[world.Shape]) -> list[str]:
    """List the answers that the wording of a question allows, right or wrong.

    For all types but objects; shapes matter to the type cause alone.
    """
    question = item["question"].rstrip("?")
    words = question.split()
    if item["type"] == "relation":  # "..., is the red circle left or right of the blue square?"
        middle = words.index("or")
        link = " of" if "left" in words else ""
        other = question.split(" the ")[-1]
        sides = (words[middle - 1], words[middle + 1])
        return [f"it is {side}{link} the {other}." for side in sides]
    if item["type"] == "count":  # "how many circles are there?"
        kind = words[2].removesuffix("s")
        return [f"there {count.format(kind)}." for count in world.COUNTS]
    if item["type"] == "order":  # "which appears first, the red circle or the blue square?"
        names = question.removeprefix("which appears first, ").split(" or ")
        return [f"{name} appears first." for name in names]
    if item["type"] == "motion":
        return [f"it moves {direction}." for direction in world.DIRECTIONS]

    # cause: "why does the red circle move?"
    others = [shape.name for shape in shapes if shape.name not in question]
    hits = [f"because the {name} hits it." for name in others]
    return [*hits, "it moves by itself."]


def wrong_listings(shapes: list[world.Shape]) -> list[tuple[str, list[str]]]:
    """List the answers with one object too many (of two), one too few, or one in place of another.

    Returns:
        [(answer, its error types), ...]
    """
    names = [shape.name for shape in shapes]
    strangers = possible_strangers(shapes)
    listings = []
    if len(names) == 2:
        for stranger in strangers:
            listings.append(([*names, stranger], ["object_hallucination"]))
    for lost in names:
        kept = [name for name in names if name != lost]
        listings.append((kept, ["detail_omission"]))
    for lost in names:
        kept = [name for name in names if name != lost]
        for stranger in strangers:
            listings.append(([*kept, stranger], ["object_hallucination", "detail_omission"]))
    return [(f"{world.list_objects(listed)}.", errors) for listed, errors in listings]


def possible_strangers(shapes: list[world.Shape]) -> list[str]:
    """List the names that could be in a scene, and whose colors are not."""
    colors = [shape.color for shape in shapes]
    names = []
    for color in world.COLORS:
        for kind in world.KINDS:
            if color not in colors and (color, kind) not in world.HELD_OUT:
                names.append(f"{color} {kind}")
    return names
