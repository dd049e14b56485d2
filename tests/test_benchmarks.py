"""The six public benchmarks: layouts, prompts, parsers and scores, as the published numbers were made."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

import benchmarks
import common
import critique
import evaluate
import media
import outputs
import small_benchmarks
import vlm
from conftest import MODEL
from tools import questions_cost, report
from vlm import prefix

ROOT = Path(__file__).parent.parent

# ------------------------------------------------------------------------------
# Parsers

# What lmms-eval's own functions make of a reply; the right option is B.
#   mvbench           1 right, 0 wrong
#   perceptiontest    an index; -1: nothing found
#   egoschema, nextqa, longvideobench    a letter; "": nothing found, and an option is drawn
#   tempcompass       (multi-choice) 1 right, 0 wrong; "judge": it would ask one
GOLDEN = [
    ("B", 1, 1, "B", "B", "B", 1),
    ("B.", 1, 1, "B", "B", "B", 1),
    ("(B)", 1, 1, "B", "B", "B", "judge"),
    ("B) x", 1, 1, "", "", "B", 1),
    ("b", 1, -1, "", "", "", "judge"),
    ("**B**", 1, 1, "", "", "B", "judge"),
    ("Answer: B", 1, 1, "B", "B", "A", "judge"),
    ("A man holds B", 0, 0, "A", "B", "A", "judge"),
    ("The best option is a book (B)", 0, 1, "B", "B", "B", "judge"),
    ("Based on the video, the answer is C.", 0, 2, "C", "C", "B", "judge"),
    ("E", 0, -1, "E", "E", "E", "judge"),
]
OPTIONS = {
    "mvbench": ["x", "the man", "z"],
    "perceptiontest": ["one", "two", "three"],
    "longvideobench": ["v", "w", "x", "y"],
    "egoschema": ["C washes a pan", "C cooks dinner for the family", "c", "d", "e"],
    "nextqa": ["walk away", "thumbs up", "c", "d", "e"],
    "tempcompass": ["A. run", "B. sit", "C. jump"],
}


def parse(benchmark, reply, task="multi-choice", options=None):
    item = {"benchmark": benchmark, "task": task, "options": options or OPTIONS[benchmark]}
    return evaluate.parse_reply(item, reply)


@pytest.mark.parametrize("reply, mvbench, perceptiontest, egoschema, nextqa, longvideobench, tempcompass", GOLDEN)
def test_parsers_read_what_lmms_eval_reads(
    reply, mvbench, perceptiontest, egoschema, nextqa, longvideobench, tempcompass
):
    def index(letter):
        return "ABCDE".index(letter) if letter else None

    assert (parse("mvbench", reply) == 1) == mvbench
    assert parse("perceptiontest", reply) == (None if perceptiontest == -1 else perceptiontest)
    assert parse("egoschema", reply) == index(egoschema)
    assert parse("nextqa", reply) == index(nextqa)
    # With four options an E is past them: parsed, and wrong
    assert parse("longvideobench", reply) == index(longvideobench)
    assert parse("tempcompass", reply) == {1: 1, 0: None, "judge": None}[tempcompass]


def test_perceptiontest_reads_a_d_though_it_has_three_options():
    assert parse("perceptiontest", "D") == 3


@pytest.mark.parametrize(
    "reply, index",
    [
        ("B. the man", 1),  # a letter with a full stop, first
        ("b.\nthe man", 1),  # in either case; the new line is a blank of the pattern
        ("B.\nthe\nman", 1),  # the pattern fails at the second new line, but B stands alone
        ("b.the man", 1),  # without a blank, too: as a lone letter it would not be found
        ("E.the man", 4),
        ("It is a dog: C", 0),  # the article comes first
        ("Option_B", 1),  # _ becomes a blank ...
        ("Option_B or _ C", 2),  # ... but is deleted if it is beside a blank anywhere: "OptionB or  C"
        ("x.B", None),  # a full stop is deleted: "xB"
        ("2.B", None),  # likewise: "2B"
        ("B/1,000", None),  # a number with a comma makes every mark be deleted: "B1000"
        ("(B.5)", 1),  # but a full stop before a digit stays
        ("", None),
        ("the man", None),
    ],
)
def test_mvbench_reads_a_lone_letter_after_its_own_punctuation(reply, index):
    assert parse("mvbench", reply) == index


def test_mvbench_deletes_32_full_stops_and_not_one_more():
    assert parse("mvbench", "." * 31 + "x.B") is None  # 32 are deleted: "xB"
    assert parse("mvbench", "." * 32 + "x.B") == 1  # the 33rd stays, and B stands alone


@pytest.mark.parametrize(
    "reply, nextqa, egoschema",
    [
        # NExT-QA takes the last, EgoSchema the earliest
        ("(A) or (C)", 2, 0),
        ("I think A is wrong and D is right", 3, 0),
        # In NExT-QA brackets come before all else; in EgoSchema the earliest still wins
        ("E is wrong, (B) is right", 1, 4),
        # Neither reads "C,"
        ("C, not (B)", 1, 1),
        # Letters that are not between blanks have no place: of these, NExT-QA takes the first
        ("Both A.x and B.x", 0, 0),
        # NExT-QA finds the A of VITA, but looks for its place between blanks; EgoSchema finds that of VITA, late
        ("A, not plan B or VITA tape", 1, 1),
        # The text of an option, if there are six words or more; EgoSchema wants its letter before it
        ("he gave it a thumbs up", 1, None),
        ("he gave a thumbs up", None, None),
        ("i would say b. thumbs up", 1, 1),
        ("i say b. thumbs up", None, None),
        ("he gave it his Thumbs Up", 1, None),  # in either case
        # The last place of each letter counts: that of B is after that of A
        ("(B) or (A) or (B)", 1, 0),
        # Marks at both ends are removed
        ("'B'", 1, 1),
        # The last again
        ("wave, then he did a thumbs up", 1, None),
        ("", None, None),
    ],
)
def test_nextqa_takes_the_last_and_egoschema_the_earliest(reply, nextqa, egoschema):
    options = ["walk off", "thumbs up", "sit down", "wave", "sing"]
    assert parse("nextqa", reply, options=options) == nextqa
    assert parse("egoschema", reply, options=options) == egoschema


@pytest.mark.parametrize(
    "reply, index",
    [
        ("The best answer is B", 1),
        ("The answer: D", 3),
        ("Best option: C", 2),  # the phrase is removed, with its own capitals
        ("Best answer: D", 3),
        ("The right answer is C", 2),  # nothing is removed, and no other capital A to E comes before C
        ("Definitely B", 3),  # D, within a word
        ("the second", None),
        ("", None),
    ],
)
def test_longvideobench_reads_the_first_capital_after_its_phrases(reply, index):
    assert parse("longvideobench", reply) == index


@pytest.mark.parametrize(
    "task, reply, index",
    [
        ("multi-choice", "B) sit", 1),
        ("multi-choice", "B. sit", 1),
        ("multi-choice", " C ", 2),
        ("multi-choice", "D", 3),
        ("multi-choice", "sit", None),
        ("multi-choice", "B: sit", None),
        ("multi-choice", "", None),
        ("yes_no", "Yes, it is.", 0),
        ("yes_no", "NO", 1),
        ("yes_no", "not at all", 1),
        ("yes_no", "It is.", None),
        ("yes_no", "", None),
        ("caption_matching", "Caption B: A man sits.", 1),
        ("caption_matching", "A man sits.", 1),
        ("caption_matching", "Caption B.", 1),
        ("caption_matching", "B", 1),
        ("caption_matching", "A.", 0),
        ("caption_matching", "B) A man sits.", 1),
        ("caption_matching", "A man sits", None),
        ("caption_matching", "It is B", None),
        ("caption_matching", "", None),
    ],
)
def test_tempcompass_matches_by_rule_and_leaves_the_rest_unparsed(task, reply, index):
    options = {
        "multi-choice": None,
        "yes_no": ["yes", "no"],
        "caption_matching": ["Caption A: A man runs.", "Caption B: A man sits."],
    }
    assert parse("tempcompass", reply, task, options[task]) == index


def test_an_empty_reply_is_not_the_empty_sentence_of_an_option_without_a_label():
    assert parse("tempcompass", "", "caption_matching", ["no label", "nor here"]) is None


# ------------------------------------------------------------------------------
# Layouts and prompts


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """{benchmark: directory of its small copy}; mvbench_trimmed is the pre-trimmed layout.

    Tests that change one take a copy.
    """
    root = tmp_path_factory.mktemp("benchmarks")
    for benchmark, write in small_benchmarks.WRITERS.items():
        write(root / benchmark)
    small_benchmarks.write_mvbench(root / "mvbench_trimmed", trimmed=True)
    return {path.name: path for path in root.iterdir()}


def load(small, benchmark):
    """{id: item} of a benchmark's small copy."""
    return {item["id"]: item for item in evaluate.load_items(benchmark, small[benchmark])}


BY_LETTER = "Answer with the option's letter from the given choices directly."
PROMPTS = [
    (
        "mvbench",
        "action_sequence/0",
        "Question:What is seen in part 0?\nOption:\n(A) x\n(B) the man\n(C) z\nOnly give the best option.\n",
    ),
    (
        "perceptiontest",
        "video_1/0",
        f"How many cups are there?\nA. one\nB. two\nC. three\n{BY_LETTER}",
    ),
    (
        "tempcompass",
        "101/multi-choice/direction/0",
        "Which way does it turn?\nA. left\nB. right\nC. clockwise\n D. away\nPlease directly give the best option:",
    ),
    (
        "tempcompass",
        "101/yes_no/speed/1",
        "Is it slow?\nPlease answer yes or no:",
    ),
    (
        "tempcompass",
        "102/caption_matching/attribute_change/0",
        "Which caption matches the video better?\nCaption A: A man runs.\nCaption B: A man sits.\n"
        "Please directly give the best option:",
    ),
    (
        "nextqa",
        "2574374895/8",
        'why did he say "no, thanks"\nA. walk away\nB. thumbs up\nC. c\nD. d\nE. e',
    ),
    (
        "egoschema",
        "0074f737-0",
        "What is C doing in clip 0?\nA. C washes a pan\nB. C cooks dinner for the family\nC. c\nD. d\nE. e\n"
        + BY_LETTER,
    ),
    (
        "longvideobench",
        "86CxyhFV9MI_0",
        f"What follows E2O, 0?\nA. v\nB. w\nC. x\nD. y\n{BY_LETTER}\n",
    ),
]


@pytest.mark.parametrize("benchmark, id, prompt", PROMPTS)
def test_prompts_are_those_of_lmms_eval_to_the_letter(small, benchmark, id, prompt):
    assert evaluate.render_prompt(load(small, benchmark)[id]) == prompt


@pytest.mark.parametrize("layout", ["mvbench", "mvbench_trimmed"])
def test_mvbench_is_read_in_both_of_its_layouts(small, layout):
    items = evaluate.load_items("mvbench", small[layout])
    assert len(items) == 80
    assert len({item["task"] for item in items}) == 20
    assert [item["answer"] for item in items[:4]] == [1, 2, 1, 2]
    assert items[3]["options"] == ["x", "the man", "z", "w"]
    for item in items:
        _, raw, trimmed = small_benchmarks.MVBENCH[item["task"]]
        _, number = item["id"].split("/")
        start, end = small_benchmarks.BOUNDS[int(number)]
        if layout == "mvbench":
            assert item["video"] == raw
        else:
            assert item["video"] == trimmed.format(f"_{float(start)}_{float(end)}")
        # A pre-trimmed file is shown whole
        is_cut = item["task"] in small_benchmarks.BOUNDED and layout == "mvbench"
        assert (item["start"], item["end"]) == ((start, end) if is_cut else (None, None))


def test_mvbench_s_json_may_contain_the_trimmed_names_themselves(small, tmp_path):
    shutil.copytree(small["mvbench_trimmed"], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "json" / "action_localization.json"
    rows = json.loads(path.read_text())
    small_benchmarks.write_json(path, [row | {"video": "GHI03_0.0_1.0.mp4"} for row in rows])
    items = evaluate.load_items("mvbench", tmp_path)
    videos = {(item["video"], item["start"]) for item in items if item["task"] == "action_localization"}
    assert videos == {("video/sta/sta_video_segment/GHI03_0.0_1.0.mp4", None)}


def test_mvbench_s_trimmed_file_may_have_kept_its_suffix(small, tmp_path):
    shutil.copytree(small["mvbench_trimmed"], tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "video" / "ssv2_video_mp4"
    (folder / "1234.mp4").rename(folder / "1234.webm")
    items = evaluate.load_items("mvbench", tmp_path)
    videos = {item["video"] for item in items if item["task"] == "action_antonym"}
    assert videos == {"video/ssv2_video_mp4/1234.webm"}


def test_perceptiontest_s_items(small):
    assert load(small, "perceptiontest")["video_2/0"] == {
        "id": "video_2/0",
        "benchmark": "perceptiontest",
        "task": "multiple_choice",
        "video": "videos/video_2.MP4",
        "start": None,
        "end": None,
        "question": "How many letters are there?",
        "options": ["one", "two", "three"],
        "answer": 1,
        "tags": {"area": "semantics", "reasoning": "predictive"},
    }


def test_tempcompass_s_questions_stay_as_they_are_and_captioning_is_left_out(small):
    items = load(small, "tempcompass")
    assert {item["task"] for item in items.values()} == {"multi-choice", "yes_no", "caption_matching"}
    assert len(items) == 7
    # Its lines are the options, malformed ones too
    malformed = items["101/multi-choice/order/0"]
    assert malformed["question"] == "What is first?\nA. a jump\nB. a kiss\nC.Both at once"
    assert malformed["options"][malformed["answer"]] == "C.Both at once"
    assert items["102/multi-choice/action/0"]["video"] == "videos/more/102.mp4"
    assert [items[f"101/yes_no/speed/{n}"]["answer"] for n in (0, 1)] == [1, 0]


def test_nextqa_s_and_longvideobench_s_tags(small):
    item = load(small, "nextqa")["3238737531/0"]
    assert item["video"] == "NExTVideo/1164/3238737531.mp4"
    assert item["tags"] == {"type": "TN", "group": "T"}
    item = load(small, "longvideobench")["_Hc6z1wJcw_0"]
    assert item["tags"] == {"duration_group": 3600, "category": "T2A"}
    assert item["answer"] == 4


def test_egoschema_asks_what_has_a_public_answer_or_with_full_all(small):
    assert [item["answer"] for item in evaluate.load_items("egoschema", small["egoschema"])] == [1, 4]
    assert [item["answer"] for item in evaluate.load_items("egoschema", small["egoschema"], full=True)] == [1, None, 4]


def test_egoschema_without_its_answers_says_what_can_be_done(small, tmp_path):
    shutil.copytree(small["egoschema"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "subset_answers.json").unlink()
    with pytest.raises(common.InputError, match="--full asks all"):
        evaluate.load_items("egoschema", tmp_path)


# Benchmark, file, a text in it, what it is replaced by, the error
CORRUPT = [
    (
        "mvbench",
        "json/state_change.json",
        '"answer": "z"',
        '"answer": "y"',
        r"state_change.json, item 1: the answer 'y' is not one of the 3 options",
    ),
    (
        "mvbench",
        "json/state_change.json",
        '"candidates"',
        '"options"',
        r"state_change.json, item 0: no key 'candidates'",
    ),
    (
        "mvbench",
        "json/action_sequence.json",
        '"end"',
        '"stop"',
        r"action_sequence.json, item 0: no key 'end'",
    ),
    (
        "mvbench",
        "json/action_sequence.json",
        '"start": 0.5',
        '"start": "0.5"',
        r"action_sequence.json, item 1: start and end are '0.5' and 1.29",
    ),
    (
        "perceptiontest",
        "mc_question_valid.json",
        '"answer_id": 2',
        '"answer_id": 3',
        r"video_1, item 2: the answer 3 is not one of the 3 options",
    ),
    (
        "perceptiontest",
        "mc_question_valid.json",
        '["one", "two", "three"]',
        '"one"',
        r"video_1, item 0: a list is expected, not str",
    ),
    (
        "tempcompass",
        "questions/yes_no.json",
        '"no"',
        '"maybe"',
        r"yes_no.json, 101, speed, item 0: the answer 'maybe' is not one of the 2 options",
    ),
    ("tempcompass", "questions/yes_no.json", "[{", '{"0": [{', r"yes_no.json: not JSON in UTF-8"),
    ("nextqa", "test.csv", "CW,walk away", "CW,,walk away", r"test.csv, line 2: no key 'a0'"),
    ("nextqa", "test.csv", ",d,e", ",d", r"test.csv, line 2: no key 'a4'"),
    ("nextqa", "test.csv", ",d,e", ",d,e,f", r"test.csv, line 2: more fields"),
    ("nextqa", "test.csv", ",4,0,TN", ",x,0,TN", r"test.csv, line 3: the answer 'x' is not one of the 5 options"),
    ("nextqa", "test.csv", ",9,DC", ",8,DC", r"nextqa: duplicate id '2574374895/8', of 2 questions"),
    ("egoschema", "subset_answers.json", "0074f737-2", "nobody", r"subset_answers.json: 'nobody' is not a q_uid"),
    ("egoschema", "questions.json", '"option 3"', '"option three"', r"questions.json, item 0: no key 'option 3'"),
    (
        "longvideobench",
        "lvb_val.json",
        '"correct_choice": 1',
        '"correct_choice": true',
        r"lvb_val.json, item 0: the answer True is not one",
    ),
    (
        "longvideobench",
        "lvb_val.json",
        '"correct_choice": 1',
        '"correct_choice": 4',
        r"lvb_val.json, item 0: the answer 4 is not one of the 4 options",
    ),
    (
        "longvideobench",
        "lvb_val.json",
        '["v", "w", "x", "y"]',
        '["v", "w", "x", null]',
        r"lvb_val.json, item 0: None is not a string",
    ),
    (
        "longvideobench",
        "lvb_val.json",
        '["v", "w", "x", "y"]',
        '["v", "w", "x", ""]',
        r"lvb_val.json, item 0: the question or an option is empty",
    ),
    (
        "longvideobench",
        "lvb_val.json",
        '"duration_group": 15',
        '"duration_group": 15.5',
        r"lvb_val.json, item 0: duration_group is 15.5, not a string or an integer",
    ),
]


@pytest.mark.parametrize("benchmark, file, old, new, message", CORRUPT)
def test_an_error_names_file_row_and_key(small, tmp_path, benchmark, file, old, new, message):
    shutil.copytree(small[benchmark], tmp_path / benchmark)
    path = tmp_path / benchmark / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(common.InputError, match=message):
        evaluate.load_items(benchmark, tmp_path / benchmark)


@pytest.mark.parametrize(
    "benchmark, file",
    [
        ("mvbench", "action_sequence.json"),
        ("perceptiontest", "mc_question_valid.json"),
        ("tempcompass", "multi-choice.json"),
        ("nextqa", "test.csv"),
        ("egoschema", "questions.json"),
        ("longvideobench", "lvb_val.json"),
    ],
)
def test_a_missing_file_is_named(tmp_path, benchmark, file):
    with pytest.raises(common.InputError, match=file):
        evaluate.load_items(benchmark, tmp_path)


def test_of_two_videos_with_the_same_name_none_is_guessed(small, tmp_path):
    shutil.copytree(small["nextqa"], tmp_path, dirs_exist_ok=True)
    shutil.copy(tmp_path / "NExTVideo" / "2574374895.mp4", tmp_path / "2574374895.mp4")
    with pytest.raises(common.InputError, match="2574374895.mp4 have the same name"):
        evaluate.load_items("nextqa", tmp_path)


# ------------------------------------------------------------------------------
# Scores


def row(id, video, task, correct, reply="B", **more):
    """A row of predictions.jsonl."""
    parsed = None
    if reply:
        parsed = 1 if correct else 0
    return {
        "id": str(id),
        "benchmark": "mvbench",
        "video": video,
        "task": task,
        "tags": {},
        "options": ["x", "y"],
        "answer": 1,
        "initial": reply,
        "parsed": parsed,
        "correct": correct,
        **more,
    }


def test_mvbench_s_score_is_the_mean_over_tasks_and_an_empty_reply_is_wrong():
    rows = [
        row(0, "a", "order", True),
        row(1, "a", "order", True),
        row(2, "b", "order", False, reply=""),
        row(3, "c", "order", True),
        row(4, "d", "count", False),
        row(5, "e", "count", None, dropped="missing_video"),
    ]
    result = evaluate.score(rows)
    assert result["score"] == (3 / 4 + 0 / 1) / 2
    assert result["accuracy"] == 3 / 5
    assert (result["n"], result["N"]) == (5, 6)
    assert (result["n_videos"], result["n_missing"]) == (4, 1)
    assert (result["n_unparsed"], result["n_empty"]) == (1, 1)
    order, count = result["by_task"]["order"], result["by_task"]["count"]
    assert (order["accuracy"], order["n"], order["N"]) == (3 / 4, 4, 4)
    assert (count["n"], count["N"]) == (1, 2)


def test_a_task_without_any_video_has_no_accuracy_and_is_left_out_of_the_mean():
    result = evaluate.score([row(0, "a", "order", True), row(1, "b", "count", None, dropped="missing_video")])
    assert result["score"] == 1.0
    assert result["score_is"] == "mean over 1 tasks"
    assert result["by_task"]["count"] == {
        "accuracy": None,
        "interval": None,
        "n": 0,
        "N": 1,
        "n_unparsed": 0,
        "n_empty": 0,
    }


def test_the_interval_of_a_mean_over_tasks_is_wider_than_that_of_the_accuracy():
    # Ten videos with one question of task one, of which half are right, and nine of task two, which are all right.
    # Over questions the score would be 0.95; over tasks it is (0.5 + 1) / 2, and its standard error is half the first
    # task's: sqrt(.25 / 10) / 2 = 0.08
    rows = [row(f"{n}/{m}", f"v{n}", "two" if m else "one", bool(m or n % 2)) for n in range(10) for m in range(10)]
    assert benchmarks.mean_over_tasks(rows) == 0.75
    low, high = evaluate.interval(rows, benchmarks.mean_over_tasks)
    assert high - low == pytest.approx(2 * 1.96 * 0.08, abs=0.06)
    assert evaluate.score(rows)["interval"] == [low, high]


# ------------------------------------------------------------------------------
# From end to end, with the shipped model


def call(monkeypatch, stage, *arguments):
    """Run a stage's main with these arguments."""
    monkeypatch.setattr(sys, "argv", [f"{stage.__name__}.py", *map(str, arguments)])
    stage.main()


@pytest.fixture
def run(small, tmp_path, monkeypatch):
    """A function that runs evaluate.py on a small benchmark -> the output directory."""

    def run(layout, output, *more):
        benchmark = layout.split("_")[0]
        files = ["--input", small.get(layout, layout), "--output", tmp_path / output]
        machine = ["--model", MODEL, "--devices", "cpu"]
        call(monkeypatch, evaluate, "--benchmark", benchmark, *files, *machine, *more)
        return tmp_path / output

    return run


def rescore(monkeypatch, benchmark, directory, *more):
    """Run evaluate.py --rescore, which gets neither --model nor --input."""
    call(monkeypatch, evaluate, "--benchmark", benchmark, "--output", directory, "--rescore", *more)


def results(directory):
    return json.loads((directory / "results.json").read_text())


# How many questions each small benchmark has, and how many parts each of its breakdowns
COUNTS = {
    "mvbench": (80, {"by_task": 20}),
    "mvbench_trimmed": (80, {"by_task": 20}),
    "perceptiontest": (4, {"by_area": 3, "by_reasoning": 4}),
    "tempcompass": (7, {"by_task": 3, "by_dimension": 5}),
    "nextqa": (4, {"by_type": 4, "by_group": 3}),
    "egoschema": (2, {"by_task": 1}),
    "longvideobench": (3, {"by_duration_group": 2, "by_category": 2}),
}


@pytest.mark.parametrize("layout", COUNTS)
def test_each_benchmark_from_end_to_end(run, layout):
    directory = run(layout, "eval")
    rows, result = common.read_jsonl(directory / "predictions.jsonl"), results(directory)
    n_questions, n_parts = COUNTS[layout]
    assert result["n"] == result["N"] == len(rows) == n_questions
    assert not result["partial"]
    for name, n in n_parts.items():
        assert len(result[name]) == n
    assert result["accuracy"] == round(sum(row["correct"] for row in rows) / len(rows), 4)
    assert len(result["interval"]) == 2
    assert result["arguments"]["benchmark"] == layout.split("_")[0]
    assert result["versions"]["torch"]
    for row in rows:  # a row says what the model was asked, what it replied, and what that was taken to mean
        assert row["prompt"] == evaluate.render_prompt(row)
        assert isinstance(row["initial"], str)
        assert row["parsed"] == evaluate.parse_reply(row, row["initial"])
        assert row["correct"] == (row["parsed"] == row["answer"])


# What a model that knows everything says
RIGHT = {
    "mvbench": "({letter}) {option}",
    "mvbench_trimmed": "{letter}",
    "perceptiontest": "{letter}",
    "tempcompass": "{option}",
    "nextqa": "{letter}. {option}",
    "egoschema": "{letter}. {option}",
    "longvideobench": "The answer is {letter}.",
}


def make_decode_reply(monkeypatch, reply):
    """Replace decode: the model's reply to a prompt is reply(prompt)."""

    def decode(model, tokenizer, videos, prompts, max_new_tokens, noise):
        return [[(reply(prompt), True) for prompt in own] for own in prompts]

    monkeypatch.setattr(prefix, "decode", decode)


def make_model_know(monkeypatch, items, form):
    """Make the model reply to all items with the right answer, in this form."""
    replies = {}
    for item in items:
        right = item["answer"]
        reply = form.format(letter="ABCDE"[right], option=item["options"][right])
        replies[evaluate.render_prompt(item)] = reply
    make_decode_reply(monkeypatch, replies.get)


@pytest.mark.parametrize("layout", RIGHT)
def test_a_model_that_knows_everything_scores_one(run, small, monkeypatch, layout):
    make_model_know(monkeypatch, evaluate.load_items(layout.split("_")[0], small[layout]), RIGHT[layout])
    result = results(run(layout, "eval"))
    assert result["score"] == result["accuracy"] == 1.0
    assert result["interval"] == [1.0, 1.0]
    assert result["n_unparsed"] == 0


def test_each_segment_is_read_and_decoded_once_for_all_its_questions(run, monkeypatch, small):
    read, asked = [], []  # (video, start, end) of each segment; how many questions were decoded about it
    sample_frames, decode = media.sample_frames, prefix.decode

    def noted_sample_frames(path, n, *bounds, by_rate, shrink):
        assert by_rate  # as lmms-eval does
        read.append((path.relative_to(small["mvbench"]).as_posix(), *bounds))
        return sample_frames(path, n, *bounds, by_rate=by_rate, shrink=shrink)

    def noted_decode(model, tokenizer, videos, prompts, max_new_tokens, noise):
        [own] = prompts
        asked.append(len(own))
        return decode(model, tokenizer, videos, prompts, max_new_tokens)

    monkeypatch.setattr(media, "sample_frames", noted_sample_frames)
    monkeypatch.setattr(prefix, "decode", noted_decode)
    run("mvbench", "eval")
    assert len(read) == len(set(read)) == len(asked)
    assert sum(asked) == 80

    segments = list(zip(read, asked))
    # STAR's video is that of the first two tasks. Of each task's four rows, the first and the third are about the
    # same second
    _, star, _ = small_benchmarks.STAR
    assert [segment for segment in segments if "ABC01" in segment[0][0]] == [
        ((star, 0, 1.0), 4),
        ((star, 0.5, 1.2999999999999998), 2),
        ((star, 1.5, 99), 2),
    ]
    # CLEVRER's video is shown whole to four tasks, which makes sixteen questions
    _, clevrer, _ = small_benchmarks.CLEVRER
    assert [segment for segment in segments if "video_10" in segment[0][0]] == [((clevrer, None, None), 16)]


def test_a_folder_of_frames_is_cut_at_three_frames_per_second(small):
    # Frames 1 to 16. Seconds 0.5 to 1.3 are frames s = round(1.5) = 2 to e = round(3.9) = 4. Of two parts each has the
    # length 1, and the frames are int(2 + 0.5 + 0) and int(2 + 0.5 + 1)
    item = load(small, "mvbench")["episodic_reasoning/1"]
    folder = small["mvbench"] / item["video"]
    shown = media.sample_frames(folder, 2, item["start"], item["end"]).frames
    for frame, number in zip(shown, (2, 3), strict=True):
        image = cv2.imread(str(folder / f"{number:05}.jpg"))
        assert (frame == image[:, :, ::-1]).all()


def refuse_to_load(args):
    pytest.fail("a model is loaded")


@pytest.fixture
def gaps(small, tmp_path, monkeypatch):
    """A copy of MVBench without two of its videos, under the name mvbench_gaps."""
    directory = tmp_path / "mvbench"
    shutil.copytree(small["mvbench"], directory)
    (directory / "video/nturgbd/S001A010_rgb.avi").unlink()
    shutil.rmtree(directory / "video/data0613/clevrer")
    monkeypatch.setitem(small, "mvbench_gaps", directory)


def test_missing_videos_are_reported_before_a_model_is_loaded(run, gaps, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vlm, "load", refuse_to_load)
    with pytest.raises(common.InputError, match="--partial"):
        run("mvbench_gaps", "eval")
    assert not (tmp_path / "eval").exists()  # so that the same command with --partial starts anew
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    pose = "fine_grained_pose 4 items, 1 videos, 1 missing, such as video/nturgbd/S001A010_rgb.avi"
    assert pose in lines
    assert "action_sequence 4 items, 1 videos, 0 missing" in lines


def test_with_partial_the_rest_is_scored_and_every_figure_says_what_it_is_of(run, gaps, capsys):
    directory = run("mvbench_gaps", "eval", "--partial")
    assert "72/80 questions" in capsys.readouterr().out
    result = results(directory)
    assert (result["n"], result["N"], result["n_missing"], result["partial"]) == (72, 80, 8, True)
    assert result["score_is"] == "mean over 18 tasks"
    pose = result["by_task"]["fine_grained_pose"]
    assert (pose["accuracy"], pose["n"], pose["N"]) == (None, 0, 4)

    rows = common.read_jsonl(directory / "predictions.jsonl")
    assert len(rows) == 80
    assert {row["video"] for row in rows if row.get("dropped") == "missing_video"} == {
        "video/nturgbd/S001A010_rgb.avi",
        "video/clevrer/video_validation/video_11.mp4",
    }


def test_a_score_of_a_few_videos_is_partial(run):
    result = results(run("nextqa", "eval", "--limit", "1"))
    assert (result["n"], result["N"], result["partial"]) == (2, 2, True)


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_bytes(run, monkeypatch):
    whole = run("mvbench", "whole")
    write, calls = outputs.Output.write, []

    def interrupted(self, rows):
        calls.append(rows)
        if len(calls) == 5:  # the first video, of three segments, is written, and the second one is begun
            raise KeyboardInterrupt
        write(self, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(outputs.Output, "write", interrupted)
        run("mvbench", "interrupted")
    interrupted = whole.parent / "interrupted"
    assert len(common.read_jsonl(interrupted / "predictions.jsonl")) == 8  # of the first video
    assert not (interrupted / "results.json").exists()
    with pytest.raises(common.InputError, match="unfinished"):  # half a run has no score
        run("mvbench", "interrupted", "--rescore")

    run("mvbench", "interrupted")
    name = "predictions.jsonl"
    assert (interrupted / name).read_bytes() == (whole / name).read_bytes()
    assert results(interrupted)["score"] == results(whole)["score"]


def test_rescoring_needs_neither_model_nor_videos(run, monkeypatch):
    directory = run("nextqa", "eval")
    path, before = directory / "predictions.jsonl", results(directory)
    rows = common.read_jsonl(path)
    assert [row["answer"] for row in rows] == [1, 0, 4, 2]  # B, A, E and C: rows are sorted by video
    replies = ["B", "the letter is E ", "", "nothing to be found"]
    for row, reply in zip(rows, replies, strict=True):
        row |= {"initial": reply, "parsed": 3, "correct": True}
    common.write_jsonl(path, rows)

    monkeypatch.setattr(vlm, "load", refuse_to_load)
    rescore(monkeypatch, "nextqa", directory)
    judged = [(row["parsed"], row["correct"]) for row in common.read_jsonl(path)]
    assert judged == [(1, True), (4, False), (None, False), (None, False)]
    after = results(directory)
    assert (after["score"], after["n_unparsed"], after["n_empty"]) == (0.25, 2, 1)
    assert after["versions"] == before["versions"]
    assert after["arguments"] == before["arguments"]
    with pytest.raises(common.InputError, match="is not a question of egoschema"):
        rescore(monkeypatch, "egoschema", directory)


def test_shards_are_joined_and_scored(run, tmp_path, monkeypatch):
    whole = results(run("nextqa", "whole"))
    shards = [run("nextqa", f"shard{n}", "--shard", f"{n}/2") for n in range(2)]
    assert results(shards[0])["partial"]
    assert results(shards[0])["n"] == 2

    joined = tmp_path / "joined"
    joined.mkdir()
    rows = b"".join((shard / "predictions.jsonl").read_bytes() for shard in shards)
    (joined / "predictions.jsonl").write_bytes(rows)
    rescore(monkeypatch, "nextqa", joined)
    for key in ("score", "n", "N", "partial", "by_type", "by_group"):
        assert results(joined)[key] == whole[key]


def join(directory, *shards):
    """Join the predictions of shards, as cat does -> the directory."""
    directory.mkdir()
    rows = b"".join((shard / "predictions.jsonl").read_bytes() for shard in shards)
    (directory / "predictions.jsonl").write_bytes(rows)
    return directory


def test_a_shard_that_was_forgotten_makes_the_score_partial_and_is_said(run, tmp_path, monkeypatch, capsys):
    shard = run("nextqa", "shard1", "--shard", "1/2")
    capsys.readouterr()
    joined = join(tmp_path / "joined", shard)
    rescore(monkeypatch, "nextqa", joined)
    assert results(joined)["partial"]
    assert (results(joined)["n"], results(joined)["n_questions"]) == (2, 4)
    assert "PARTIAL: 2 of 4 questions are here" in capsys.readouterr().out


def test_a_shard_that_is_there_twice_is_refused(run, tmp_path, monkeypatch):
    shard = run("nextqa", "shard0", "--shard", "0/2")
    with pytest.raises(common.InputError, match="duplicate id"):
        rescore(monkeypatch, "nextqa", join(tmp_path / "joined", shard, shard))


def test_shards_of_two_runs_are_refused(run, tmp_path, monkeypatch):
    first = run("nextqa", "first", "--shard", "0/2")
    other = run("nextqa", "other", "--shard", "1/2", "--frames", "2")
    with pytest.raises(common.InputError, match="rows of different runs, .*: `run` is "):
        rescore(monkeypatch, "nextqa", join(tmp_path / "joined", first, other))


def test_rows_that_do_not_say_how_many_there_are_make_a_partial_score(run, monkeypatch, capsys):
    directory = run("nextqa", "eval")
    path = directory / "predictions.jsonl"
    rows = common.read_jsonl(path)
    for row in rows:
        del row["n_questions"]
    common.write_jsonl(path, rows)
    rescore(monkeypatch, "nextqa", directory)
    assert results(directory)["partial"]
    assert "PARTIAL: 4 of an unknown number of questions are here" in capsys.readouterr().out


@pytest.fixture
def late(small, tmp_path, monkeypatch):
    """A copy of NExT-QA without its first video, under the name nextqa_late -> where it belongs, where it is now."""
    directory = tmp_path / "late"
    shutil.copytree(small["nextqa"], directory)
    first = min(directory.glob("**/*.mp4"))
    kept = tmp_path / first.name
    first.rename(kept)
    monkeypatch.setitem(small, "nextqa_late", directory)
    return first, kept


def count_asked(monkeypatch):
    """Note how many prompts each call of decode gets -> the list of these."""
    asked, decode = [], prefix.decode

    def noted(model, tokenizer, videos, prompts, max_new_tokens, noise):
        asked.append(sum(len(own) for own in prompts))
        return decode(model, tokenizer, videos, prompts, max_new_tokens)

    monkeypatch.setattr(prefix, "decode", noted)
    return asked


@pytest.mark.parametrize("more", [[], ["--partial"]], ids=["", "partial"])
def test_when_missing_videos_have_arrived_only_these_are_asked_about(run, late, more, monkeypatch, capsys):
    first, kept = late
    directory = run("nextqa_late", "eval", "--partial")
    n_before = results(directory)["n"]
    assert 0 < n_before < 4
    run("nextqa_late", "eval", "--partial")
    assert capsys.readouterr().out.endswith("is finished; nothing to do\n")

    kept.rename(first)
    asked = count_asked(monkeypatch)
    run("nextqa_late", "eval", *more)
    assert sum(asked) == 4 - n_before
    fresh = run("nextqa_late", "fresh", *more)
    assert (directory / "predictions.jsonl").read_bytes() == (fresh / "predictions.jsonl").read_bytes()
    differ = {key for key, value in results(directory).items() if results(fresh)[key] != value}
    assert differ == {"arguments"}  # by --output


def test_a_batch_that_lacked_a_video_is_decoded_again_as_a_whole(run, late, monkeypatch):
    """What is decoded together decides the last bits: so the rows are those of a run that had all videos."""
    first, kept = late
    together = ["--videos-per-batch", "4"]
    directory = run("nextqa_late", "eval", "--partial", *together)
    kept.rename(first)
    asked = count_asked(monkeypatch)
    run("nextqa_late", "eval", *together)
    assert asked == [4]
    fresh = run("nextqa_late", "fresh", *together)
    assert (directory / "predictions.jsonl").read_bytes() == (fresh / "predictions.jsonl").read_bytes()


def test_a_benchmark_without_any_of_its_videos_is_refused(run, small, tmp_path, monkeypatch):
    shutil.copy(small["nextqa"] / "test.csv", tmp_path)
    monkeypatch.setitem(small, "nextqa_empty", tmp_path)
    monkeypatch.setattr(vlm, "load", refuse_to_load)
    with pytest.raises(common.InputError, match="none of the videos is there"):
        run("nextqa_empty", "eval", "--partial")


class DrawAtRandom:
    """The arguments --unparsed random --seed 0."""

    unparsed = "random"
    seed = 0


def judge_nextqa(id, reply):
    """Judge a reply to a question with five options, of which the second is right, with --unparsed random."""
    judged = row(id, "v", "mc", None, reply, benchmark="nextqa", options=list("vwxyz"), parsed=None)
    evaluate.judge(judged, DrawAtRandom)
    return judged


def test_an_unparsed_reply_drawn_at_random_is_right_once_in_five():
    drawn = [judge_nextqa(n, "")["correct"] for n in range(1000)]
    assert sum(drawn) == pytest.approx(200, abs=40)  # 3 standard deviations
    assert drawn == [judge_nextqa(n, "")["correct"] for n in range(1000)]  # the same at every call


def test_a_parsed_reply_stays_what_it_is_when_others_are_drawn():
    for n in range(20):
        judged = judge_nextqa(n, "B")
        assert (judged["parsed"], judged["correct"]) == (1, True)


def test_drawing_is_refused_where_lmms_eval_does_not_draw(run, capsys):
    with pytest.raises(SystemExit):
        run("mvbench", "eval", "--unparsed", "random")
    assert "--unparsed random is for egoschema, longvideobench, nextqa" in capsys.readouterr().err


def test_full_is_refused_where_all_answers_are_public(run):
    with pytest.raises(common.InputError, match="all answers of nextqa are public"):
        run("nextqa", "eval", "--full")


def test_egoschema_s_full_set_writes_a_submission(run, monkeypatch, capsys):
    replies = {
        "What is C doing in clip 0?": "B",
        "What is C doing in clip 1?": "D",
        "What is C doing in clip 2?": "I do not know",
    }
    make_decode_reply(monkeypatch, lambda prompt: replies[prompt.split("\n")[0]])
    directory = run("egoschema", "eval", "--full")
    assert "1 unparsed" in capsys.readouterr().out
    submission = json.loads((directory / "submission.json").read_text())
    assert submission == {"0074f737-0": 1, "0074f737-1": 3}
    assert (results(directory)["score"], results(directory)["n"]) == (0.5, 2)  # of the two with a public answer

    rescore(monkeypatch, "egoschema", directory, "--unparsed", "random")
    submission = json.loads((directory / "submission.json").read_text())
    assert len(submission) == 3
    assert submission["0074f737-2"] in range(5)


def test_the_list_says_what_must_be_on_disk(monkeypatch, capsys):
    call(monkeypatch, evaluate, "--benchmark", "list")
    said = capsys.readouterr().out
    for name in ("shapes", *small_benchmarks.WRITERS):
        assert f"{name}\n" in said
    for words in (
        "json/<task>.json",
        "mc_question_valid.json",
        "test.csv",
        "subset_answers.json",
        "lvb_val.json",
        "https",
    ):
        assert words in said


def test_the_critic_reads_predictions_and_sees_the_segment_that_was_asked_about(run, tmp_path, monkeypatch):
    directory = run("mvbench", "eval", "--limit", "1")  # STAR's video: two tasks, three segments
    read, sample_frames = [], media.sample_frames

    def noted_sample_frames(path, n, *bounds, by_rate, shrink):
        assert by_rate
        read.append(bounds)
        return sample_frames(path, n, *bounds, by_rate=by_rate, shrink=shrink)

    monkeypatch.setattr(media, "sample_frames", noted_sample_frames)
    files = ["--input", directory / "predictions.jsonl", "--output", tmp_path / "critiques.jsonl"]
    call(monkeypatch, critique, *files, "--model", MODEL, "--devices", "cpu")
    rows = common.read_jsonl(tmp_path / "critiques.jsonl")
    assert len(rows) == 8
    assert all("critique" in row for row in rows)
    assert read == [(0, 1.0), (0.5, 1.2999999999999998), (1.5, 99)]


# ------------------------------------------------------------------------------
# A benchmark of one's own


@pytest.mark.slow
def test_a_benchmark_of_ones_own_is_one_file_score_and_interval_included(tmp_path):
    # The repository, with benchmarks/mine.py: answers in free text, scored by token F1
    for file in ROOT.glob("*.py"):
        shutil.copy(file, tmp_path)
    for folder in ("media", "outputs", "prompts", "vlm", "benchmarks", "shapes"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    patch = ROOT / "tests" / "patches" / "benchmark.patch"
    subprocess.run(["git", "apply", str(patch)], cwd=tmp_path, check=True)
    assert (tmp_path / "benchmarks" / "mine.py").exists()

    small_benchmarks.write_video(tmp_path / "mine" / "videos" / "a.mp4", 0)
    small_benchmarks.write_video(tmp_path / "mine" / "videos" / "b.mp4", 2)
    questions = [
        {
            "video": "a.mp4",
            "question": "which way does the red circle move?",
            "answer": "the red circle moves left.",
        },
        {
            "video": "b.mp4",
            "question": "which way does the red square move?",
            "answer": "it moves left and stops.",
        },
    ]
    small_benchmarks.write_json(tmp_path / "mine" / "questions.json", questions)
    command = "evaluate.py --benchmark mine --model shapes/model --input mine --output eval --devices cpu"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command.split()], cwd=tmp_path, env=environment, check=True)

    # F1 is 2 * words in common / (words of the reply + words of the answer): two of 3 and 5 words are the same in the
    # first reply, three of 3 and 5 in the second
    rows, result = common.read_jsonl(tmp_path / "eval" / "predictions.jsonl"), results(tmp_path / "eval")
    assert [row["initial"] for row in rows] == ["it moves left.", "it moves left."]
    assert result["score"] == (2 * 2 / (3 + 5) + 2 * 3 / (3 + 5)) / 2
    assert result["score_is"] == "token F1, mean over questions"
    # A bootstrap sample of two videos is both of them, or one of them twice
    assert result["interval"] == [4 / 8, 6 / 8]
    assert result["accuracy"] == 0.0  # word for word, neither is right: the accuracy's interval would be 0 to 0


def test_a_file_that_was_copied_must_say_its_own_name(monkeypatch, small):
    copied = evaluate.find_benchmark("nextqa")
    monkeypatch.setattr(evaluate, "SHAPES", copied)
    with pytest.raises(common.InputError, match="benchmarks/shapes.py: make_item is told benchmark='nextqa'"):
        evaluate.load_items("shapes", small["nextqa"])


# ------------------------------------------------------------------------------
# Reports


def test_mcnemar_by_hand():
    # Six questions that one run alone has right, one against five: p = 2 (C(6, 0) + C(6, 1)) / 2^6 = 14 / 64
    assert report.mcnemar(1, 5) == report.mcnemar(5, 1) == 14 / 64
    assert report.mcnemar(3, 3) == report.mcnemar(0, 0) == 1.0
    assert report.mcnemar(0, 1000) < 1e-100


def test_two_runs_are_compared_over_what_both_have_answered():
    def rows(*corrects):
        made = []
        for n, correct in enumerate(corrects):
            more = {"dropped": "missing_video"} if correct is None else {}
            made.append(row(n, "v", "order", correct, question="?", **more))
        return made

    line = report.compare(rows(True, True, True, False, None, True), rows(True, False, False, True, True))
    assert line == (
        "4 questions in both; right in both 1, in the first alone 2, in the second alone 1, in none 0; "
        "McNemar's p = 1.0000"
    )
    with pytest.raises(common.InputError, match="question 0 is not the same"):
        report.compare(rows(True), [rows(True)[0] | {"question": "?!"}])


def test_runs_are_shown_beside_the_published_scores(run, small, monkeypatch, capsys):
    make_model_know(monkeypatch, evaluate.load_items("nextqa", small["nextqa"]), "{letter}")
    knowing = run("nextqa", "knowing")
    make_decode_reply(monkeypatch, lambda prompt: "A")
    stubborn = run("nextqa", "stubborn", "--limit", "1")  # of the first video's two questions, A is right for one
    other_benchmark = run("egoschema", "ego")
    capsys.readouterr()
    call(monkeypatch, report, knowing, stubborn, other_benchmark)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "tempcompass perceptiontest nextqa mvbench egoschema longvideobench"
    assert "VideoSAVi 69.1 66.1 80.6 74.0 58.8 59.8" in lines
    assert f"{knowing} 100.0" in lines
    assert f"{stubborn} 50.0*" in lines
    assert "questions 4/4 2/2 partial" in lines
    assert "group C 100.0 2/2 0.0 1/1" in lines
    comparison = "2 questions in both; right in both 1, in the first alone 1, in the second alone 0, in none 0"
    assert f"{knowing} and {stubborn}: {comparison}; McNemar's p = 1.0000" in lines


def test_a_directory_without_results_is_named(run, monkeypatch):
    directory = run("nextqa", "eval", "--limit", "1")
    with pytest.raises(common.InputError, match="results.json"):
        call(monkeypatch, report, directory, directory.parent)


def test_the_cost_of_questions_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(questions_cost, "FRAMES", 1)  # to be quick
    call(monkeypatch, questions_cost, "--devices", "cpu", "--questions", "2", "--repeats", "1")
    assert re.fullmatch(
        r"a video with 1 question: [\d.]+ s; with 2 questions: [\d.]+ s, which is [\d.]+ times as much\n",
        capsys.readouterr().out,
    )
