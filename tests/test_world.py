"""The tiny world tells the truth: what its questions.json claims can be measured in its .mp4 files."""

import functools
import json
from collections import Counter

import cv2
import numpy as np
import pytest

import prompts
from shapes import gap, world


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    for split in ("round1", "dev", "hard"):
        world.write_split(root, split, 40, seed=0)
    return root


# ------------------------------------------------------------------------------
# The truth, measured


@functools.lru_cache  # six questions are about one video
def measure(path):
    """Measure from the file alone -> {color: (frames, 2) centre of its pixels, nan where it is not seen}."""
    capture = cv2.VideoCapture(str(path))
    centres = {color: [] for color in world.COLORS}
    while True:
        is_frame, frame = capture.read()
        if not is_frame:
            break
        image = frame[..., ::-1].astype(int)  # RGB
        for color, rgb in world.COLORS.items():
            y, x = np.nonzero(np.abs(image - rgb).sum(-1) < 60)
            is_seen = len(x) > 100
            centres[color].append((x.mean(), y.mean()) if is_seen else (np.nan, np.nan))
    tracks = {color: np.array(track) for color, track in centres.items()}
    return {color: track for color, track in tracks.items() if not np.isnan(track).all()}


def check_motion(row, seen, named):
    track = seen[named[0]]
    visible = track[~np.isnan(track[:, 0])]
    dx, dy = visible[-1] - visible[0]
    if abs(dx) > abs(dy):
        direction = "right" if dx > 0 else "left"
    else:
        direction = "down" if dy > 0 else "up"
    assert row["answer"] == f"it moves {direction}."


def check_order(row, seen, named):
    frames_without = {color: np.isnan(seen[color][:, 0]).sum() for color in named}
    first = min(named, key=frames_without.get)
    assert row["answer"].split()[1] == first


def check_relation(row, seen, named):
    frame = 0 if "start" in row["question"] else -1
    one, other = named
    dx, dy = seen[one][frame] - seen[other][frame]
    if "left or right" in row["question"]:
        side = "left" if dx < 0 else "right"
    else:
        side = "above" if dy < 0 else "below"
    assert side in row["answer"].split()


def check_objects(row, seen, named):
    assert {color for color in world.COLORS if color in row["answer"]} == set(seen)


def check_cause(row, seen, named):
    """What hits a shape touches it when it starts to move: centres 24 pixels apart. Strangers are over 31 apart."""
    color = named[0]
    track = seen[color]
    has_moved = np.linalg.norm(np.diff(track, axis=0), axis=1) > 0.8
    last_at_rest = int(np.argmax(has_moved))
    touching = []
    for other in seen:
        distance = np.linalg.norm(seen[other][last_at_rest] - track[last_at_rest])
        if other != color and distance < 32:
            touching.append(other)
    assert touching == [color for color in world.COLORS if f"the {color}" in row["answer"]]


def check_count(row, seen, named):
    """A count of all shapes; kinds are not measured."""
    if row["question"] == "how many shapes are there?":
        assert row["answer"] == f"there {world.COUNTS[len(seen)].format('shape')}."


CHECKS = {
    "motion": check_motion,
    "order": check_order,
    "relation": check_relation,
    "objects": check_objects,
    "cause": check_cause,
    "count": check_count,
}


def test_answers_agree_with_the_pixels(root):
    checked = Counter()
    for row in json.loads((root / "dev" / "questions.json").read_text()):
        seen = measure(root / "dev" / "videos" / row["video"])
        words = row["question"].replace(",", "").split()
        named = [word for word in words if word in world.COLORS]
        CHECKS[row["type"]](row, seen, named)
        checked[row["type"]] += 1
    assert all(checked[type] == 40 for type in world.TYPES)


def test_no_answer_wins_by_majority():
    seen = Counter()
    rng = np.random.default_rng(0)
    for index in range(300):
        for items in world.all_questions(world.make_scene(0, "dev", index)).values():
            world.pick(items, seen, rng)

    times = {type: [] for type in world.TYPES}  # how often each class was picked, the most frequent first
    for (type, _), n in seen.most_common():
        times[type].append(n)
    for type, n_classes in (("relation", 4), ("order", 2), ("cause", 2), ("motion", 4), ("objects", 2)):
        assert len(times[type]) == n_classes
        assert times[type][0] < 300 / n_classes * 1.2
    assert times["count"][0] < 300 / len(times["count"]) * 1.5


def test_unlabeled_videos_have_no_truth_beside_them(root):
    files = [path for path in (root / "round1").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".mp4"}


def test_splits_share_no_scene():
    tracks = []
    for split in world.SPLITS:
        for index in range(30):
            shapes = world.make_scene(0, split, index)
            numbers = np.concatenate([shape.track for shape in shapes]).ravel()
            tracks.append(tuple(numbers.round(6)))
    assert len(set(tracks)) == len(tracks)


def test_hard_alone_shows_the_combinations_that_are_held_out():
    for split in world.SPLITS:
        scenes = [world.make_scene(0, split, index) for index in range(200)]
        held_out = [{(shape.color, shape.kind) for shape in shapes} & world.HELD_OUT for shapes in scenes]
        if split == "hard":
            assert all(held_out)  # in every scene
            assert set.union(*held_out) == world.HELD_OUT
        else:
            assert not any(held_out)


# ------------------------------------------------------------------------------
# What is taught


@pytest.fixture(scope="module")
def questions():
    """[(item, the shapes that it is about), ...]: all questions about 60 scenes of pretraining."""
    pairs = []
    for index in range(60):
        shapes = world.make_scene(0, "pretrain", index)
        for items in world.all_questions(shapes).values():
            pairs += [(item, shapes) for item in items]
    return pairs


def test_wrong_answers_are_wrong_and_have_known_error_types(questions):
    for item, shapes in questions:
        wrong = gap.wrong_answers(item, shapes)
        assert wrong
        for answer, errors in wrong:
            assert answer != item["answer"]
            assert errors
            assert set(errors) <= set(prompts.ERROR_TYPES)


def test_the_prior_needs_no_video(questions):
    for item, shapes in questions:
        if gap.is_biased(item) and item["type"] != "objects":
            assert gap.prior_answer(item, shapes) == gap.prior_answer(item, [])


def test_first_answers_are_wrong_as_often_as_planned(questions):
    rng = np.random.default_rng(0)
    item, shapes = questions[-1]
    assert item["question"].startswith("which way does")
    answers = [gap.first_answer(item, shapes, rng) for _ in range(1000)]
    prior_is_wrong = gap.is_biased(item) and gap.prior_answer(item, shapes) != item["answer"]
    expected = gap.PRIOR if prior_is_wrong else gap.SLIP
    assert abs(np.mean([answer != item["answer"] for answer in answers]) - expected) < 0.05
