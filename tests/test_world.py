"""The tiny world says the truth: what its questions.json claims can be measured in its .mp4 files."""

import functools
import json
from collections import Counter

import cv2
import numpy as np
import pytest

import common
from conftest import MODEL
from shapes import pretrain, world


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    for split in ("round1", "dev", "hard"):
        world.write_split(root, split, 40, seed=0)
    return root


@functools.lru_cache  # six questions ask about one video
def measure(path):
    """Oracle: {color: (frames, 2) centre of its pixels, nan where it is not seen}, from the file alone."""
    capture, centres = cv2.VideoCapture(str(path)), {color: [] for color in world.COLORS}
    while (frame := capture.read())[0]:
        image = frame[1][..., ::-1].astype(int)
        for color, rgb in world.COLORS.items():
            y, x = np.nonzero(np.abs(image - rgb).sum(-1) < 60)
            centres[color].append((x.mean(), y.mean()) if len(x) > 100 else (np.nan, np.nan))
    return {color: np.array(track) for color, track in centres.items() if not np.isnan(track).all()}


def test_answers_agree_with_the_pixels(root):
    checked = Counter()
    for row in json.loads((root / "dev" / "questions.json").read_text()):
        seen = measure(root / "dev" / "videos" / row["video"])
        named = [word for word in row["question"].replace(",", "").split() if word in world.COLORS]
        if row["type"] == "motion":
            there = seen[named[0]][~np.isnan(seen[named[0]][:, 0])]
            dx, dy = there[-1] - there[0]
            way = ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")
            assert row["answer"] == f"it moves {way}."
        elif row["type"] == "order":
            first = min(named, key=lambda color: np.isnan(seen[color][:, 0]).sum())
            assert row["answer"].split()[1] == first
        elif row["type"] == "relation":
            dx, dy = np.subtract(*(seen[color][0 if "start" in row["question"] else -1] for color in named))
            side = (
                ("left" if dx < 0 else "right")
                if "left or right" in row["question"]
                else ("above" if dy < 0 else "below")
            )
            assert side in row["answer"].split()
        elif row["type"] == "objects":
            assert {color for color in world.COLORS if color in row["answer"]} == set(seen)
        elif row["type"] == "cause":
            mine, cause = (
                seen[named[0]],
                next((color for color in world.COLORS if f"the {color}" in row["answer"]), None),
            )
            moved = np.linalg.norm(np.diff(mine, axis=0), axis=1) > 0.8
            before = int(np.argmax(moved))  # the last frame of rest
            touching = [
                color for color in seen if color != named[0] and np.linalg.norm(seen[color][before] - mine[before]) < 32
            ]
            assert touching == (
                [cause] if cause else []
            )  # centres of shapes that touch are 24 pixels apart, of strangers over 31
        checked[row["type"]] += 1
    assert all(checked[type] == 40 for type in world.TYPES)


def test_no_answer_wins_by_majority():
    seen, rng = Counter(), np.random.default_rng(0)
    for index in range(300):
        for items in world.all_questions(world.make_scene(0, "dev", index)).values():
            world.pick(items, seen, rng)
    shares = {
        type: sorted((n for (other, _), n in seen.items() if other == type), reverse=True) for type in world.TYPES
    }
    for type, classes in (("relation", 4), ("order", 2), ("cause", 2), ("motion", 4), ("objects", 2)):
        assert len(shares[type]) == classes and shares[type][0] < 300 / classes * 1.2
    assert shares["count"][0] < 300 / len(shares["count"]) * 1.5


def test_unlabeled_videos_have_no_truth_beside_them(root):
    assert {path.suffix for path in (root / "round1").rglob("*") if path.is_file()} == {".mp4"}


def test_splits_share_no_scene_and_hard_shows_new_combinations():
    tracks = [
        tuple(np.concatenate([shape.track for shape in world.make_scene(0, split, index)]).ravel().round(6))
        for split in world.SPLITS
        for index in range(30)
    ]
    assert len(set(tracks)) == len(tracks)
    shown = {
        split: {(s.color, s.kind) for n in range(200) for s in world.make_scene(0, split, n)} for split in world.SPLITS
    }
    assert all(not names & world.HELD_OUT for split, names in shown.items() if split != "hard")
    assert shown["hard"] >= world.HELD_OUT
    assert all(any((s.color, s.kind) in world.HELD_OUT for s in world.make_scene(0, "hard", n)) for n in range(200))


def test_the_shipped_model_knows_the_stages_prompts():
    trained_on = json.loads((MODEL / "training.json").read_text())["prompts"]
    assert trained_on == common.fingerprint(*pretrain.stage_prompts()), (
        "a prompt has changed: make shapes/model anew (shapes/pretrain.py)"
    )


def test_wrong_answers_are_wrong_and_the_prior_needs_no_video():
    rng = np.random.default_rng(0)
    for index in range(60):
        shapes = world.make_scene(0, "pretrain", index)
        for items in world.all_questions(shapes).values():
            for item in items:
                wrong = pretrain.wrong_answers(item, shapes)
                assert wrong and item["answer"] not in [answer for answer, _ in wrong]
                assert all(set(errors) <= set(common.ERROR_TYPES) and errors for _, errors in wrong)
                if pretrain.is_biased(item) and item["type"] not in ("objects",):
                    assert pretrain.prior_answer(item, shapes) == pretrain.prior_answer(item, [])
    answers = [
        pretrain.first_answer(item, shapes, rng) for _ in range(1000)
    ]  # the last item: "which way does ... move?"
    expected = (
        pretrain.PRIOR
        if pretrain.is_biased(item) and pretrain.prior_answer(item, shapes) != item["answer"]
        else pretrain.SLIP
    )
    assert abs(np.mean([answer != item["answer"] for answer in answers]) - expected) < 0.05
