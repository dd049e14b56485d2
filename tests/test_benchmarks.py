"""The six public benchmarks: layouts, prompts, parsers and scores, as the published numbers were made."""

import json
import re
import shutil
import sys

import cv2
import pytest

import common
import critique
import evaluate
import small_benchmarks
from conftest import MODEL
from tools import questions_cost, report

# ---------------------------------------------------------------- parsers

# What lmms-eval's own functions make of a reply; the right option is B. mvbench and tempcompass (multi-choice): 1 right, 0 wrong; "judge": it
# would ask one; perceptiontest: an index, or -1; the others: a letter, or "" where nothing is found and an option is drawn.
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
    return evaluate.parse_reply({"benchmark": benchmark, "task": task, "options": options or OPTIONS[benchmark]}, reply)


@pytest.mark.parametrize("reply, mvbench, perceptiontest, egoschema, nextqa, longvideobench, tempcompass", GOLDEN)
def test_golden_vectors(reply, mvbench, perceptiontest, egoschema, nextqa, longvideobench, tempcompass):
    index = lambda letter: "ABCDE".index(letter) if letter else None
    assert (parse("mvbench", reply) == 1) == mvbench
    assert parse("perceptiontest", reply) == (None if perceptiontest == -1 else perceptiontest)
    assert parse("egoschema", reply) == index(egoschema)
    assert parse("nextqa", reply) == index(nextqa)
    assert parse("longvideobench", reply) == index(
        longvideobench
    )  # E, of four options, is past them: parsed, and wrong
    assert parse("tempcompass", reply) == {1: 1, 0: None, "judge": None}[tempcompass]


@pytest.mark.parametrize(
    "reply, index",
    [
        ("B. the man", 1),  # a letter with a full stop in front
        ("b.\nthe man", 1),  # in either case; the new line is a blank of the pattern
        ("B.\nthe\nman", 1),  # the pattern fails at the second new line, but B stands alone
        ("It is a dog: C", 0),  # the article comes first
        ("Option_B", 1),  # _ becomes a blank ...
        ("Option_B or _ C", 2),  # ... but vanishes where it stands beside a blank anywhere: "OptionB or  C"
        ("x.B", None),  # a full stop vanishes: "xB"
        ("2.B", None),  # ... likewise: "2B"
        ("B/1,000", None),  # a number with a comma makes every mark vanish: "B1000"
        ("(B.5)", 1),  # but a full stop in front of a digit stays
        ("", None),
        ("the man", None),
    ],
)
def test_mvbench_reads_a_lone_letter_after_its_own_punctuation(reply, index):
    assert parse("mvbench", reply) == index


@pytest.mark.parametrize(
    "reply, nextqa, egoschema",
    [
        ("(A) or (C)", 2, 0),  # NExT-QA takes the last, EgoSchema the earliest
        ("I think A is wrong and D is right", 3, 0),
        ("E is wrong, (B) is right", 1, 4),  # in NExT-QA brackets go before all; in EgoSchema the earliest still wins
        ("C, not (B)", 1, 1),  # neither reads "C,"
        (
            "Both A.x and B.x",
            0,
            0,
        ),  # of letters that do not stand between blanks the last has no place, so NExT-QA's first wins
        (
            "A, not plan B or VITA tape",
            1,
            1,
        ),  # NExT-QA finds the A of VITA, but its place is sought between blanks; EgoSchema finds VITA's late
        (
            "he gave it a thumbs up",
            1,
            None,
        ),  # the text of an option, from six words on; EgoSchema wants its letter in front
        ("he gave a thumbs up", None, None),
        ("i would say b. thumbs up", 1, 1),
        ("i say b. thumbs up", None, None),
        ("wave, then he did a thumbs up", 1, None),  # the last again
        ("", None, None),
    ],
)
def test_nextqa_takes_the_last_and_egoschema_the_earliest(reply, nextqa, egoschema):
    options = ["walk off", "thumbs up", "sit down", "wave", "sing"]
    assert (parse("nextqa", reply, options=options), parse("egoschema", reply, options=options)) == (nextqa, egoschema)


@pytest.mark.parametrize(
    "reply, index",
    [
        ("The best answer is B", 1),
        ("The answer: D", 3),
        ("Best option: C", 2),  # the phrase goes, with its own capitals
        ("The right answer is C", 2),  # nothing goes, and no other capital stands before C
        ("Definitely B", 3),  # D, within a word
        ("the second", None),
        ("", None),
    ],
)
def test_longvideobench_reads_the_first_capital_behind_its_phrases(reply, index):
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
    options = {"yes_no": ["yes", "no"], "caption_matching": ["Caption A: A man runs.", "Caption B: A man sits."]}.get(
        task
    )
    assert parse("tempcompass", reply, task, options) == index


def test_an_empty_reply_is_not_the_empty_sentence_of_an_option_without_a_label():
    assert parse("tempcompass", "", "caption_matching", ["no label", "nor here"]) is None


# ---------------------------------------------------------------- layouts and prompts


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """{benchmark: directory of its small copy}; mvbench_trimmed is the pre-trimmed layout. Tests that change one take a copy."""
    root = tmp_path_factory.mktemp("benchmarks")
    for benchmark, write in small_benchmarks.WRITERS.items():
        write(root / benchmark)
    small_benchmarks.write_mvbench(root / "mvbench_trimmed", trimmed=True)
    return {path.name: path for path in root.iterdir()}


def load(small, benchmark):
    return {item["id"]: item for item in evaluate.load_items(benchmark, small[benchmark])}


PROMPTS = {
    (
        "mvbench",
        "action_sequence/0",
    ): "Question:What is seen in part 0?\nOption:\n(A) x\n(B) the man\n(C) z\nOnly give the best option.\n",
    (
        "perceptiontest",
        "video_1/0",
    ): "How many cups are there?\nA. one\nB. two\nC. three\nAnswer with the option's letter from the given choices directly.",
    (
        "tempcompass",
        "101/multi-choice/direction/0",
    ): "Which way does it turn?\nA. left\nB. right\nC. clockwise\n D. away\nPlease directly give the best option:",
    ("tempcompass", "101/yes_no/speed/1"): "Is it slow?\nPlease answer yes or no:",
    (
        "tempcompass",
        "102/caption_matching/attribute_change/0",
    ): "Which caption matches the video better?\nCaption A: A man runs.\nCaption B: A man sits.\nPlease directly give the best option:",
    ("nextqa", "2574374895/8"): 'why did he say "no, thanks"\nA. walk away\nB. thumbs up\nC. c\nD. d\nE. e',
    (
        "egoschema",
        "0074f737-0",
    ): "What is C doing in clip 0?\nA. C washes a pan\nB. C cooks dinner for the family\nC. c\nD. d\nE. e\n"
    "Answer with the option's letter from the given choices directly.",
    (
        "longvideobench",
        "86CxyhFV9MI_0",
    ): "What follows E2O, 0?\nA. v\nB. w\nC. x\nD. y\nAnswer with the option's letter from the given choices directly.\n",
}


@pytest.mark.parametrize("benchmark, id", PROMPTS)
def test_prompts_to_the_letter(small, benchmark, id):
    assert evaluate.render_prompt(load(small, benchmark)[id]) == PROMPTS[benchmark, id]


@pytest.mark.parametrize("layout", ["mvbench", "mvbench_trimmed"])
def test_mvbench_s_two_layouts(small, layout):
    items = evaluate.load_items("mvbench", small[layout])
    assert len(items) == 80 and len({item["task"] for item in items}) == 20
    assert [item["answer"] for item in items[:4]] == [1, 2, 1, 2] and items[3]["options"] == ["x", "the man", "z", "w"]
    for item in items:
        _, raw, trimmed = small_benchmarks.MVBENCH[item["task"]]
        start, end = small_benchmarks.BOUNDS[int(item["id"].split("/")[1])]
        cut = item["task"] in small_benchmarks.BOUNDED and layout == "mvbench"  # a pre-trimmed file is shown whole
        assert item["video"] == (raw if layout == "mvbench" else trimmed.format(f"_{float(start)}_{float(end)}"))
        assert (item["start"], item["end"]) == ((start, end) if cut else (None, None))


def test_mvbench_s_trimmed_names_may_stand_in_the_json_itself(small, tmp_path):
    shutil.copytree(small["mvbench_trimmed"], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "json" / "action_localization.json"
    rows = json.loads(path.read_text())
    small_benchmarks.write_json(path, [row | {"video": "GHI03_0.0_1.0.mp4"} for row in rows])
    video, *others = {
        (item["video"], item["start"])
        for item in evaluate.load_items("mvbench", tmp_path)
        if item["task"] == "action_localization"
    }
    assert video == ("video/sta/sta_video_segment/GHI03_0.0_1.0.mp4", None) and not others


def test_the_items_of_the_other_benchmarks(small):
    names = ("perceptiontest", "tempcompass", "nextqa", "longvideobench")
    perceptiontest, tempcompass, nextqa, longvideobench = (load(small, name) for name in names)
    assert perceptiontest["video_2/0"] == {
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
    # the question stays as it is; its lines are the options, malformed ones too; captioning is not among the tasks
    assert {item["task"] for item in tempcompass.values()} == {"multi-choice", "yes_no", "caption_matching"} and len(
        tempcompass
    ) == 7
    both = tempcompass["101/multi-choice/order/0"]
    assert (
        both["question"] == "What is first?\nA. a jump\nB. a kiss\nC.Both at once"
        and both["options"][both["answer"]] == "C.Both at once"
    )
    assert tempcompass["102/multi-choice/action/0"]["video"] == "videos/more/102.mp4"
    assert [tempcompass[f"101/yes_no/speed/{n}"]["answer"] for n in (0, 1)] == [1, 0]
    assert nextqa["3238737531/0"]["video"] == "NExTVideo/1164/3238737531.mp4" and nextqa["3238737531/0"]["tags"] == {
        "type": "TN",
        "group": "T",
    }
    assert (
        longvideobench["_Hc6z1wJcw_0"]["tags"] == {"duration_group": 3600, "category": "T2A"}
        and longvideobench["_Hc6z1wJcw_0"]["answer"] == 4
    )


def test_egoschema_asks_for_what_has_a_public_answer_unless_all_is_wanted(small):
    assert [item["answer"] for item in evaluate.load_items("egoschema", small["egoschema"])] == [1, 4]
    assert [item["answer"] for item in evaluate.load_items("egoschema", small["egoschema"], full=True)] == [1, None, 4]


def test_egoschema_without_its_answers_says_what_can_be_done(small, tmp_path):
    shutil.copytree(small["egoschema"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "subset_answers.json").unlink()
    with pytest.raises(common.InputError, match="--full asks all"):
        evaluate.load_items("egoschema", tmp_path)


def spoil(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    "benchmark, file, old, new, message",
    [
        (
            "mvbench",
            "json/state_change.json",
            '"answer": "z"',
            '"answer": "y"',
            r"state_change.json, item 1: the answer 'y' is none of the 3 options",
        ),
        (
            "mvbench",
            "json/state_change.json",
            '"candidates"',
            '"options"',
            r"state_change.json, item 0: no key 'candidates'",
        ),
        ("mvbench", "json/action_sequence.json", '"end"', '"stop"', r"action_sequence.json, item 0: no key 'end'"),
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
            r"video_1, item 2: the answer 3 is none of the 3 options",
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
            r"yes_no.json, 101, speed, item 0: the answer 'maybe' is none of the 2 options",
        ),
        ("tempcompass", "questions/yes_no.json", "[{", '{"0": [{', r"yes_no.json: JSONDecodeError"),
        ("nextqa", "test.csv", "CW,walk away", "CW,,walk away", r"test.csv, line 2: no key 'a0'"),
        ("nextqa", "test.csv", ",d,e", ",d", r"test.csv, line 2: no key 'a4'"),
        ("nextqa", "test.csv", ",d,e", ",d,e,f", r"test.csv, line 2: more fields"),
        ("nextqa", "test.csv", ",4,0,TN", ",x,0,TN", r"test.csv, line 3: the answer 'x' is none of the 5 options"),
        ("nextqa", "test.csv", ",9,DC", ",8,DC", r"nextqa: the id '2574374895/8' stands 2 times"),
        ("egoschema", "subset_answers.json", "0074f737-2", "nobody", r"subset_answers.json: 'nobody' is no q_uid"),
        ("egoschema", "questions.json", '"option 3"', '"option three"', r"questions.json, item 0: no key 'option 3'"),
        (
            "longvideobench",
            "lvb_val.json",
            '"correct_choice": 1',
            '"correct_choice": true',
            r"lvb_val.json, item 0: the answer True is none",
        ),
        (
            "longvideobench",
            "lvb_val.json",
            '"correct_choice": 1',
            '"correct_choice": 4',
            r"lvb_val.json, item 0: the answer 4 is none of the 4 options",
        ),
        (
            "longvideobench",
            "lvb_val.json",
            '["v", "w", "x", "y"]',
            '["v", "w", "x", null]',
            r"lvb_val.json, item 0: None is no text",
        ),
    ],
)
def test_a_broken_row_is_named(small, tmp_path, benchmark, file, old, new, message):
    shutil.copytree(small[benchmark], tmp_path / benchmark)
    spoil(tmp_path / benchmark / file, old, new)
    with pytest.raises(common.InputError, match=message):
        evaluate.load_items(benchmark, tmp_path / benchmark)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for benchmark, file in (
        ("mvbench", "action_sequence.json"),
        ("perceptiontest", "mc_question_valid.json"),
        ("tempcompass", "multi-choice.json"),
        ("nextqa", "test.csv"),
        ("egoschema", "questions.json"),
        ("longvideobench", "lvb_val.json"),
    ):
        with pytest.raises(common.InputError, match=file):
            evaluate.load_items(benchmark, tmp_path)


def test_two_videos_of_one_name_are_not_guessed_between(small, tmp_path):
    shutil.copytree(small["nextqa"], tmp_path, dirs_exist_ok=True)
    shutil.copy(tmp_path / "NExTVideo" / "2574374895.mp4", tmp_path / "2574374895.mp4")
    with pytest.raises(common.InputError, match="2574374895.mp4 have the same name"):
        evaluate.load_items("nextqa", tmp_path)


# ---------------------------------------------------------------- scores


def row(id, video, task, correct, reply="B", **more):
    """A row of predictions.jsonl."""
    return {
        "id": str(id),
        "benchmark": "mvbench",
        "video": video,
        "task": task,
        "tags": {},
        "options": ["x", "y"],
        "answer": 1,
        "initial": reply,
        "parsed": (1 if correct else 0) if reply else None,
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
    assert (result["score"], result["accuracy"]) == ((3 / 4 + 0 / 1) / 2, 3 / 5)
    assert (
        result["n"],
        result["N"],
        result["n_videos"],
        result["n_missing"],
        result["n_unparsed"],
        result["n_empty"],
    ) == (5, 6, 4, 1, 1, 1)
    assert (
        result["by_task"]["order"]["n"] == result["by_task"]["order"]["N"] == 4
        and result["by_task"]["order"]["accuracy"] == 0.75
    )
    assert (result["by_task"]["count"]["n"], result["by_task"]["count"]["N"]) == (1, 2)


def test_a_task_without_any_video_has_no_accuracy_and_stays_out_of_the_mean():
    result = evaluate.score([row(0, "a", "order", True), row(1, "b", "count", None, dropped="missing_video")])
    assert result["score"] == 1.0 and result["score_is"] == "mean over 1 tasks"
    assert result["by_task"]["count"] == {
        "accuracy": None,
        "interval": None,
        "n": 0,
        "N": 1,
        "n_unparsed": 0,
        "n_empty": 0,
    }


def test_the_interval_of_a_mean_over_tasks():
    # ten videos with one question of task one, right in half of them, and nine of task two, all right. Over questions the score were 0.95;
    # over tasks it is (0.5 + 1) / 2, with half the standard error of the first, sqrt(.25 / 10) / 2 = 0.08
    rows = [row(f"{n}/{m}", f"v{n}", "two" if m else "one", bool(m or n % 2)) for n in range(10) for m in range(10)]
    low, high = evaluate.interval(rows, macro=True)
    assert evaluate.accuracy(rows, macro=True) == 0.75 and high - low == pytest.approx(2 * 1.96 * 0.08, abs=0.06)
    assert evaluate.score(rows)["interval"] == [low, high]


# ---------------------------------------------------------------- from end to end, by the shipped model


@pytest.fixture
def run(small, tmp_path, monkeypatch):
    def run(layout, output, *more):
        monkeypatch.setattr(
            sys,
            "argv",
            [
                "evaluate.py",
                "--benchmark",
                layout.split("_")[0],
                "--model",
                str(MODEL),
                "--input",
                str(small.get(layout, layout)),
                "--devices",
                "cpu",
                "--output",
                str(tmp_path / output),
                *more,
            ],
        )
        evaluate.main()
        return tmp_path / output

    return run


def results(directory):
    return json.loads((directory / "results.json").read_text())


PARTS = {
    "mvbench": {"by_task": 20},
    "mvbench_trimmed": {"by_task": 20},
    "perceptiontest": {"by_area": 3, "by_reasoning": 4},
    "tempcompass": {"by_task": 3, "by_dimension": 5},
    "nextqa": {"by_type": 4, "by_group": 3},
    "egoschema": {"by_task": 1},
    "longvideobench": {"by_duration_group": 2, "by_category": 2},
}
COUNTS = {
    "mvbench": 80,
    "mvbench_trimmed": 80,
    "perceptiontest": 4,
    "tempcompass": 7,
    "nextqa": 4,
    "egoschema": 2,
    "longvideobench": 3,
}


@pytest.mark.parametrize("layout", COUNTS)
def test_each_benchmark_from_end_to_end(run, layout):
    directory = run(layout, "eval")
    rows, result = common.read_jsonl(directory / "predictions.jsonl"), results(directory)
    assert result["n"] == result["N"] == len(rows) == COUNTS[layout] and not result["partial"]
    assert all(len(result[name]) == n for name, n in PARTS[layout].items())
    assert result["accuracy"] == round(sum(row["correct"] for row in rows) / len(rows), 4)
    assert (
        result["arguments"]["benchmark"] == layout.split("_")[0]
        and result["versions"]["torch"]
        and len(result["interval"]) == 2
    )
    for row in rows:  # what stands in a row is what the model was asked, said, and was taken to mean
        assert row["prompt"] == evaluate.render_prompt(row) and isinstance(row["initial"], str)
        assert row["parsed"] == evaluate.parse_reply(row, row["initial"]) and row["correct"] == (
            row["parsed"] == row["answer"]
        )


# what a model that knows everything says
RIGHT = {
    "mvbench": "({letter}) {option}",
    "mvbench_trimmed": "{letter}",
    "perceptiontest": "{letter}",
    "tempcompass": "{option}",
    "nextqa": "{letter}. {option}",
    "egoschema": "{letter}. {option}",
    "longvideobench": "The answer is {letter}.",
}


def tell(monkeypatch, items, form):
    """Makes the model answer all items rightly, in this form."""
    replies = {
        evaluate.render_prompt(item): form.format(
            letter="ABCDE"[item["answer"]], option=item["options"][item["answer"]]
        )
        for item in items
    }
    monkeypatch.setattr(
        common, "decode", lambda model, tokenizer, video, prompts, n: [(replies[prompt], True) for prompt in prompts]
    )


@pytest.mark.parametrize("layout", RIGHT)
def test_a_model_that_knows_everything_scores_one(run, small, monkeypatch, layout):
    tell(monkeypatch, evaluate.load_items(layout.split("_")[0], small[layout]), RIGHT[layout])
    result = results(run(layout, "eval"))
    assert (
        result["score"] == result["accuracy"] == 1.0 and result["interval"] == [1.0, 1.0] and result["n_unparsed"] == 0
    )


def test_each_segment_is_decoded_and_seen_once_for_all_its_questions(run, monkeypatch, small):
    calls, asked, sample, decode = [], [], common.sample_frames, common.decode

    def sample_frames(path, n, *bounds):
        calls.append((path.relative_to(small["mvbench"]).as_posix(), *bounds))
        return sample(path, n, *bounds)

    monkeypatch.setattr(common, "sample_frames", sample_frames)
    monkeypatch.setattr(common, "decode", lambda *arguments: asked.append(len(arguments[3])) or decode(*arguments))
    run("mvbench", "eval")
    assert len(calls) == len(set(calls)) == len(asked) and sum(asked) == 80
    # STAR's video is the first two tasks': of four rows each the first and the third are about the same second
    star = [(call, n) for call, n in zip(calls, asked) if "ABC01" in call[0]]
    assert star == [
        ((small_benchmarks.STAR[1], *bounds), n)
        for bounds, n in (((0, 1.0), 4), ((0.5, 1.2999999999999998), 2), ((1.5, 99), 2))
    ]
    # CLEVRER's video is shown whole to four tasks, which makes sixteen questions
    assert [(call, n) for call, n in zip(calls, asked) if "video_10" in call[0]] == [
        ((small_benchmarks.CLEVRER[1], None, None), 16)
    ]


def test_a_folder_of_frames_is_cut_at_three_frames_a_second(small):
    # frames 1 to 16; seconds 0.5 to 1.3 are s = round(1.5) = 2 to e = round(3.9) = 4; seg = 1; int(2 + 0.5 + 0), int(2 + 0.5 + 1)
    item = load(small, "mvbench")["episodic_reasoning/1"]
    shown = common.sample_frames(small["mvbench"] / item["video"], 2, item["start"], item["end"])
    for frame, number in zip(shown, (2, 3), strict=True):
        assert (frame == cv2.imread(str(small["mvbench"] / item["video"] / f"{number:05}.jpg"))[:, :, ::-1]).all()


def test_missing_videos_are_said_before_a_model_is_loaded(run, small, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "mvbench"
    shutil.copytree(small["mvbench"], broken)
    (broken / "video/nturgbd/S001A010_rgb.avi").unlink()
    shutil.rmtree(broken / "video/data0613/clevrer")
    with monkeypatch.context() as patch:
        patch.setattr(common, "load", lambda args: pytest.fail("a model is loaded"))
        monkeypatch.setitem(small, "mvbench_broken", broken)
        with pytest.raises(common.InputError, match="--partial"):
            run("mvbench_broken", "eval")
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [
        "fine_grained_pose",
        "4",
        "items,",
        "1",
        "videos,",
        "1",
        "missing,",
        "such",
        "as",
        "video/nturgbd/S001A010_rgb.avi",
    ] in said
    assert ["action_sequence", "4", "items,", "1", "videos,", "0", "missing"] in said
    # on request it goes on, and no figure hides what it is of
    directory = run("mvbench_broken", "eval", "--partial")
    result, rows = results(directory), common.read_jsonl(directory / "predictions.jsonl")
    assert (result["n"], result["N"], result["n_missing"], result["partial"]) == (72, 80, 8, True) and len(rows) == 80
    pose = result["by_task"]["fine_grained_pose"]
    assert result["score_is"] == "mean over 18 tasks" and (pose["accuracy"], pose["n"], pose["N"]) == (None, 0, 4)
    assert {row["video"] for row in rows if row.get("dropped") == "missing_video"} == {
        "video/nturgbd/S001A010_rgb.avi",
        "video/clevrer/video_validation/video_11.mp4",
    }
    assert "72/80 questions" in capsys.readouterr().out


def test_a_few_videos_only_make_a_partial_score(run):
    result = results(run("nextqa", "eval", "--limit", "1"))
    assert (result["n"], result["N"], result["partial"]) == (2, 2, True)


def test_an_interrupted_run_goes_on_to_the_same_bytes(run, tmp_path, monkeypatch):
    whole = run("mvbench", "whole")
    write, calls = common.Output.write, []

    def interrupted(self, rows):
        calls.append(rows)
        if len(calls) == 3:  # two of the three segments of the first video are written
            raise KeyboardInterrupt
        write(self, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(common.Output, "write", interrupted)
        run("mvbench", "torn")
    torn = tmp_path / "torn" / "predictions.jsonl"
    assert len(common.read_jsonl(torn)) == 6 and not (tmp_path / "torn" / "results.json").exists()
    with pytest.raises(common.InputError, match="unfinished"):  # half a run has no score
        run("mvbench", "torn", "--rescore")
    run("mvbench", "torn")
    assert (
        torn.read_bytes() == (whole / "predictions.jsonl").read_bytes()
        and results(tmp_path / "torn")["score"] == results(whole)["score"]
    )


def test_rescoring_needs_neither_model_nor_videos(run, monkeypatch, capsys):
    directory = run("nextqa", "eval")
    path, before = directory / "predictions.jsonl", results(directory)
    rows = common.read_jsonl(path)
    replies = [
        "B",
        "the letter is E ",
        "",
        "nothing to be found",
    ]  # the right options are B, A, E and C: rows stand by video
    changed = [row | {"initial": reply, "parsed": 3, "correct": True} for row, reply in zip(rows, replies, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in changed))
    monkeypatch.setattr(common, "load", lambda args: pytest.fail("a model is loaded"))
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--benchmark", "nextqa", "--output", str(directory), "--rescore"])
    evaluate.main()
    assert [row["answer"] for row in rows] == [1, 0, 4, 2]
    assert [(row["parsed"], row["correct"]) for row in common.read_jsonl(path)] == [
        (1, True),
        (4, False),
        (None, False),
        (None, False),
    ]
    after = results(directory)
    assert (after["score"], after["n_unparsed"], after["n_empty"]) == (0.25, 2, 1)
    assert after["versions"] == before["versions"] and after["arguments"] == before["arguments"]
    monkeypatch.setattr(
        sys, "argv", ["evaluate.py", "--benchmark", "egoschema", "--output", str(directory), "--rescore"]
    )
    with pytest.raises(common.InputError, match="is no question of egoschema"):
        evaluate.main()


def test_shards_are_joined_and_scored(run, tmp_path, monkeypatch):
    whole, parts = results(run("nextqa", "whole")), [run("nextqa", f"part{n}", "--shard", f"{n}/2") for n in range(2)]
    assert results(parts[0])["partial"] and results(parts[0])["n"] == 2
    (tmp_path / "joined").mkdir()
    (tmp_path / "joined" / "predictions.jsonl").write_bytes(
        b"".join((part / "predictions.jsonl").read_bytes() for part in parts)
    )
    monkeypatch.setattr(
        sys, "argv", ["evaluate.py", "--benchmark", "nextqa", "--output", str(tmp_path / "joined"), "--rescore"]
    )
    evaluate.main()
    result = results(tmp_path / "joined")
    assert all(result[key] == whole[key] for key in ("score", "n", "N", "partial", "by_type", "by_group"))


def test_an_unparsed_reply_drawn_at_random_is_right_once_in_five():
    class Args:
        unparsed, seed = "random", 0

    def drawn(args):
        rows = [
            row(n, "v", "mc", None, "", benchmark="nextqa", options=list("vwxyz"), parsed=None) for n in range(1000)
        ]
        for one in rows:
            evaluate.judge(one, args)
        return [one["correct"] for one in rows]

    assert sum(drawn(Args)) == pytest.approx(200, abs=40) and drawn(Args) == drawn(
        Args
    )  # 3 standard deviations; the same at every call
    for n in range(20):  # a reply that is parsed stays what it is
        kept = row(n, "v", "mc", None, "B", benchmark="nextqa", options=list("vwxyz"))
        evaluate.judge(kept, Args)
        assert (kept["parsed"], kept["correct"]) == (1, True)


def test_drawing_is_refused_where_lmms_eval_does_not_draw(run, capsys):
    with pytest.raises(SystemExit):
        run("mvbench", "eval", "--unparsed", "random")
    assert "--unparsed random for nextqa, egoschema, longvideobench" in capsys.readouterr().err


def test_egoschema_s_full_set_writes_what_is_submitted(run, small, monkeypatch, capsys):
    replies = {
        "What is C doing in clip 0?": "B",
        "What is C doing in clip 1?": "D",
        "What is C doing in clip 2?": "I do not know",
    }
    decode = lambda model, tokenizer, video, prompts, n: [(replies[prompt.split("\n")[0]], True) for prompt in prompts]
    monkeypatch.setattr(common, "decode", decode)
    directory = run("egoschema", "eval", "--full")
    assert (
        json.loads((directory / "submission.json").read_text()) == {"0074f737-0": 1, "0074f737-1": 3}
        and "1 unparsed" in capsys.readouterr().out
    )
    assert (results(directory)["score"], results(directory)["n"]) == (0.5, 2)  # of the two with a public answer
    monkeypatch.setattr(
        sys,
        "argv",
        ["evaluate.py", "--benchmark", "egoschema", "--output", str(directory), "--rescore", "--unparsed", "random"],
    )
    evaluate.main()
    submission = json.loads((directory / "submission.json").read_text())
    assert len(submission) == 3 and submission["0074f737-2"] in range(5)


def test_the_list_says_what_is_expected_on_disk(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--benchmark", "list"])
    evaluate.main()
    said = capsys.readouterr().out
    for words in (
        "shapes\n",
        "mvbench\n",
        "json/<task>.json",
        "mc_question_valid.json",
        "test.csv",
        "subset_answers.json",
        "lvb_val.json",
        "https",
    ):
        assert words in said


def test_the_critic_reads_predictions_and_sees_the_segment_that_was_asked_about(run, tmp_path, monkeypatch):
    directory, calls, sample = (
        run("mvbench", "eval", "--limit", "1"),
        [],
        common.sample_frames,
    )  # STAR's video: two tasks, three segments
    monkeypatch.setattr(
        common, "sample_frames", lambda path, n, *bounds: calls.append(bounds) or sample(path, n, *bounds)
    )
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "critique.py",
            "--model",
            str(MODEL),
            "--input",
            str(directory / "predictions.jsonl"),
            "--output",
            str(tmp_path / "critiques.jsonl"),
            "--devices",
            "cpu",
        ],
    )
    critique.main()
    rows = common.read_jsonl(tmp_path / "critiques.jsonl")
    assert len(rows) == 8 and all("critique" in row for row in rows)
    assert calls == [(0, 1.0), (0.5, 1.2999999999999998), (1.5, 99)]


# ---------------------------------------------------------------- reports


def test_mcnemar_by_hand():
    # six questions that one run alone has right, one against five: p = 2 (C(6, 0) + C(6, 1)) / 2^6 = 14 / 64
    assert report.mcnemar(1, 5) == report.mcnemar(5, 1) == 14 / 64
    assert report.mcnemar(3, 3) == report.mcnemar(0, 0) == 1.0 and report.mcnemar(0, 1000) < 1e-100


def test_two_runs_are_compared_over_what_both_have_answered():
    rows = lambda *corrects: [
        row(n, "v", "order", correct, question="?", **({"dropped": "missing_video"} if correct is None else {}))
        for n, correct in enumerate(corrects)
    ]
    line = report.compare(rows(True, True, True, False, None, True), rows(True, False, False, True, True))
    assert line == (
        "4 questions in both; right in both 1, in the first alone 2, in the second alone 1, in none 0; McNemar's p = 1.0000"
    )
    with pytest.raises(common.InputError, match="question 0 is not the same"):
        report.compare(rows(True), [rows(True)[0] | {"question": "?!"}])


def test_runs_stand_beside_the_published_scores(run, small, monkeypatch, capsys):
    tell(monkeypatch, evaluate.load_items("nextqa", small["nextqa"]), "{letter}")
    knowing = run("nextqa", "knowing")
    monkeypatch.setattr(common, "decode", lambda model, tokenizer, video, prompts, n: [("A", True)] * len(prompts))
    runs = [
        knowing,
        run("nextqa", "stubborn", "--limit", "1"),
        run("egoschema", "ego"),
    ]  # of the first video's two, A is right for one
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["report", *map(str, runs)])
    report.main()
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert (
        said[0] == "tempcompass perceptiontest nextqa mvbench egoschema longvideobench"
        and "VideoSAVi 69.1 66.1 80.6 74.0 58.8 59.8" in said
    )
    assert (
        f"{runs[0]} 100.0" in said
        and f"{runs[1]} 50.0*" in said
        and "questions 4/4 2/2 partial" in said
        and "group C 100.0 2/2 0.0 1/1" in said
    )
    assert (
        f"{runs[0]} and {runs[1]}: 2 questions in both; right in both 1, in the first alone 1, in the second alone 0, in none 0; "
        "McNemar's p = 1.0000"
    ) in said
    monkeypatch.setattr(sys, "argv", ["report", str(runs[0]), str(runs[0].parent)])
    with pytest.raises(common.InputError, match="results.json"):
        report.main()


def test_the_cost_of_questions_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(questions_cost, "FRAMES", 1)  # to be quick
    monkeypatch.setattr(sys, "argv", ["questions_cost", "--devices", "cpu", "--questions", "2", "--repeats", "1"])
    questions_cost.main()
    assert re.fullmatch(
        r"a video with 1 question: [\d.]+ s; with 2 questions: [\d.]+ s, which is [\d.]+ times as much\n",
        capsys.readouterr().out,
    )
