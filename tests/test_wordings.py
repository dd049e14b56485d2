"""The tiny model is taught requests, not strings: the words that they are drawn from, and what it makes of others."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import common
import prompts
import vlm
from conftest import MODEL
from prompts.check import check
from shapes import gap, more, patterns, pretrain, texts, wordings, world
from tools.wordings import score_together
from vlm import chat

# ------------------------------------------------------------------------------
# Patterns


def test_a_pattern_stands_for_all_its_texts():
    """By hand: [a|b [c|]] d is "a d", "b c d" or "b d", the latter two half as often."""
    rng = np.random.default_rng(0)
    drawn = Counter(wordings.vary("[a|b [c|]] d", rng) for _ in range(4000))
    assert set(drawn) == {"a d", "b c d", "b d"}
    assert drawn["a d"] == pytest.approx(2000, abs=150)
    assert drawn["b c d"] == pytest.approx(1000, abs=130)


def test_every_pattern_closes_its_choices():
    """A bracket that is left over would be taught as a word."""
    rng = np.random.default_rng(0)
    scenes = [world.make_scene(0, "pretrain", index) for index in range(100)]
    taught = " ".join(pretrain.taught_texts(scenes, rng))
    assert not re.search(r"[\[\]{}|]", taught)


def test_what_is_asked_about_is_in_every_request_to_the_letter():
    """Words of a request may be left out or replaced; question, answer, critique and types may not."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        question, initial, review = "is {a} ~ it?", "it is.", "in the video: no. Errors: wrong"
        assert question in wordings.ask_answer(question, rng)
        request = wordings.ask_critique(question, initial, "this (a) and that (b)", rng)
        assert question in request and initial in request and "this (a) and that (b)" in request
        request = wordings.ask_revision(question, initial, review, rng)
        assert question in request and initial in request and review in request


# ------------------------------------------------------------------------------
# Error types


def test_a_critic_names_what_is_listed_and_nothing_else():
    listed = [
        wordings.ErrorType("time", "wrong order or wrong cause", frozenset({"order", "cause"})),
        wordings.ErrorType("miscounting", "a wrong number", frozenset({"number"})),
    ]
    # A wrong count is factual_inaccuracy among our types, and so is a wrong direction, which has no name here
    assert wordings.name_errors(["factual_inaccuracy"], "count", listed) == ["miscounting"]
    assert wordings.name_errors(["factual_inaccuracy"], "motion", listed) == []
    assert wordings.name_errors(["causal_reasoning"], "cause", listed) == ["time"]
    assert wordings.name_errors([], "cause", listed) == []
    # A type for all that has no name of its own
    listed.append(wordings.ErrorType("other", "anything else", frozenset()))
    assert wordings.name_errors(["factual_inaccuracy"], "motion", listed) == ["other"]
    assert wordings.name_errors(["causal_reasoning"], "cause", listed) == ["time"]


def test_names_of_error_types_can_be_read_back_from_a_verdict():
    rng = np.random.default_rng(0)
    for _ in range(300):
        names = [each.name for each in wordings.draw_error_types(rng)]
        critique = texts.write_critique("it moves left.", names)
        assert prompts.parse_error_types(critique, names) == names


# ------------------------------------------------------------------------------
# Questions with short answers


@pytest.fixture
def shapes():
    """A red circle that moves left from the first frame on; a blue square that rests, above it, from frame 3 on."""
    start = np.array([50.0, 50.0])
    moving = world.straight(start, "left", 20, 1, 9)
    resting = np.tile([20.0, 20.0], (world.FRAMES, 1))
    return [world.Shape("red", "circle", 0, moving, "left"), world.Shape("blue", "square", 3, resting)]


def ask(shapes, n=200):
    """Ask in n drawings of the words -> {question: item}."""
    asked = {}
    for seed in range(n):
        for items in more.all_questions(shapes, np.random.default_rng(seed)).values():
            asked |= {item["question"]: item for item in items}
    return asked


@pytest.mark.parametrize(
    "question, answer",
    [
        ("is there a red circle?", "yes."),
        ("does a red square appear?", "no."),
        ("can a white circle be seen?", "no."),
        ("are there two shapes?", "yes."),
        ("are there three shapes?", "no."),
        ("are there two circles?", "no."),
        ("is the square blue?", "yes."),
        ("is the color of the circle blue?", "no."),
        ("does the red circle move left?", "yes."),
        ("is the red circle moving up?", "no."),
        ("is the blue square moving?", "no."),
        ("does the red circle appear before the blue square?", "yes."),
        ("does the red circle appear after the blue square?", "no."),
        ("at the end, is the blue square above the red circle?", "yes."),
        ("is the blue square below the red circle at the end?", "no."),
        ("does the blue square hit the red circle?", "no."),
        ("which color is the circle?", "red."),
        ("how many shapes move?", "one."),
        ("how many objects do not move?", "one."),
    ],
)
def test_short_answers_say_what_is_so(shapes, question, answer):
    item = ask(shapes)[question]
    assert item["answer"] == answer
    wrong = [text for text, _ in gap.wrong_answers(item, shapes)]
    assert answer not in wrong
    assert len(wrong) == {"yes_no": 1, "color": 4, "number": 3}[item["kind"]]


def test_what_is_hit_is_said_to_be_hit():
    runner, pushed = world.collision(np.random.default_rng(0), ("red", "circle"), ("blue", "square"))
    asked = ask([runner, pushed])
    assert asked["does the red circle hit the blue square?"]["answer"] == "yes."
    assert asked["is the red circle pushed by the blue square?"]["answer"] == "no."


def test_no_bias_is_planted_in_short_answers(shapes):
    assert not any(gap.is_biased(item) for item in ask(shapes).values())


def test_yes_is_taught_as_often_as_no():
    rng = np.random.default_rng(0)
    seen = Counter()
    for index in range(300):
        scene = world.make_scene(0, "pretrain", index)
        for item in texts.draw_more(scene, 3, rng, seen):
            assert item["answer"]
    for type, kind in more.TYPES.items():
        if kind == "yes_no":
            assert seen[type, "yes"] == pytest.approx(seen[type, "no"], abs=10)


# ------------------------------------------------------------------------------
# Words


@pytest.fixture(scope="module")
def tokenizer():
    return vlm.load_tokenizer(MODEL)


def list_words(value) -> list[str]:
    """List all texts in a JSON value."""
    if isinstance(value, dict):
        return [text for part in value.values() for text in list_words(part)]
    if isinstance(value, list | tuple):
        return [text for part in value for text in list_words(part)]
    return [value] if isinstance(value, str) else []


def test_the_default_prompts_and_the_models_own_are_in_words_that_it_knows(tokenizer):
    for value in (prompts.DEFAULT._asdict(), common.read_json(MODEL / "prompts.json")):
        for text in [*list_words(value), *value.get("error_types", {})]:
            words = re.sub(r"{\w+}", " ", text)  # without fields
            assert chat.find_unknown(tokenizer, words) == []


def test_the_wordings_that_it_is_measured_by_are_prompts_in_words_that_it_knows(tokenizer):
    """Ten of them, written by somebody who had not seen those of pretraining; tools.wordings asks with them."""
    path = Path(__file__).with_name("wordings.json")
    all_ten = common.read_json(path)
    assert len(all_ten) == 10
    for wording in all_ten:
        check(wording, str(path))
        for text in list_words(wording):
            assert chat.find_unknown(tokenizer, re.sub(r"{\w+}", " ", text)) == []


def test_words_that_the_model_does_not_know_are_said_in_one_line(capsys):
    texts = [("a.json, row 1", "why does the zebra dance?"), ("a.json, row 2", "is there a ZEBRA or a lynx?")]
    vlm.check_model(MODEL, texts)
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "zebra, dance, ZEBRA, lynx (a.json, row 1)" in said
    assert "teaching model" in said


def test_of_words_that_it_knows_nothing_is_said(capsys):
    vlm.check_model(MODEL, [("here", "Why does the RED circle move?\nErrors: wrong_order, none")])
    assert capsys.readouterr().out == ""


def test_a_reply_is_written_as_it_was_taught(tokenizer):
    """Words are joined with blanks, but for signs: 'wrong _ order : a , b' would not be what was taught."""
    text = "in the video: a red circle, a blue square and no. errors: wrong_order, temporal_ordering"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_shipped_model_was_taught_what_is_written_here():
    """A fingerprint of what pretraining draws for its first scenes: a change asks for a new shapes/model."""
    [taught] = common.read_keys(MODEL / "training.json", "taught")
    assert taught == pretrain.fingerprint_taught(seed=0)
    assert json.loads((MODEL / "prompts.json").read_text()) == patterns.USUAL


def test_what_three_wordings_see_together():
    """Four questions, whose truth is "yes.". In the first all three end right. In the second two do, so the vote is
    right. In the third one does, and the others agree on a wrong answer. In the fourth all differ: the first counts."""
    finals = [("yes.", "yes.", "yes."), ("no.", "yes.", "yes."), ("yes.", "no.", "no."), ("never.", "yes.", "no.")]
    revisions = [[], [], []]
    for answers in finals:
        for rows, final in zip(revisions, answers):
            row = {"benchmark": "shapes", "task": "order", "options": ["yes."], "answer": 0, "initial": "no."}
            rows.append(row if final == "no." else row | {"revised": final})
    assert score_together(revisions) == (1 / 4, 4 / 4, 2 / 4)
