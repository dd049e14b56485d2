"""Stage 5: scores a model on a benchmark.

    python evaluate.py --benchmark shapes --model shapes/model --input runs/shapes/dev --output runs/mine/base/eval
    python evaluate.py --benchmark mvbench --model DIR --input MVBench --output runs/real/base/mvbench
    python evaluate.py --benchmark list          # what each benchmark expects on disk, and where to get it

This is the only stage that sees the truth. The six public benchmarks are asked, and replies are read, as lmms-eval does it
(EvolvingLMMs-Lab/lmms-eval, 75571cfe, model internvl2, 32 frames): its prompts and parsers differ from one benchmark to the next, and so
they do here. `--output` is a directory:

    predictions.jsonl   a row a question: the item (see load_items), prompt, initial (the reply), parsed (index or null), correct
    results.json        score with its 95% interval, bootstrapped over videos; in all and by part: accuracy, n of N, n_unparsed, n_empty
    submission.json     egoschema with --full: {q_uid: index of the chosen option}

A reply that is empty or cannot be parsed counts as wrong. Every figure is over n of N questions: those whose video is missing or cannot be
read are left out. predictions.jsonl has the keys of the record, so that critique.py and refine.py run on it as on responses.jsonl.
"""

import csv
import glob
import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from string import ascii_uppercase as LETTERS

import common

DRAWN = (
    "nextqa",
    "egoschema",
    "longvideobench",
)  # where lmms-eval draws an option at random for a reply that it cannot parse
MACRO = (
    "mvbench",
    "tempcompass",
)  # whose score is the mean over tasks; elsewhere it is the mean over questions
DIRECTLY = "Answer with the option's letter from the given choices directly."
RESAMPLES = 1000  # of the bootstrap


# ---------------------------------------------------------------- items
def load_items(benchmark, directory, full=False):
    """The questions of a benchmark -> list of items (dicts), whether or not their videos are there. InputError names file, row and key.

    id          unique in the benchmark
    benchmark   its name
    task        the kind of question, where a benchmark has several; else multiple_choice
    video       path below the directory: a file, or a folder of frames
    start, end  seconds of the video that are shown; None: the whole video
    question    as it stands in the benchmark
    options     list of texts; shapes has one, the true answer
    answer      index of the right option; None where it is not public, which only `full` (egoschema's whole set) lets in
    tags        {name: value}: what scores are broken down by, beside the task
    """
    items = [
        item
        for item in FORMATS[benchmark][0](Path(directory))
        if full or item["answer"] is not None
    ]
    if not items:
        hint = (
            " with an answer in subset_answers.json; --full asks all"
            if benchmark == "egoschema"
            else ""
        )
        raise common.InputError(f"{directory}: no question{hint}")
    [(id, times)] = Counter(item["id"] for item in items).most_common(1)
    if times > 1:
        raise common.InputError(f"{directory}: the id {id!r} stands {times} times")
    return items


def render_prompt(item):
    """The task text of an item, without the frames."""
    return FORMATS[item["benchmark"]][1](item)


def parse_reply(item, reply):
    """Index of the option that a reply stands for, or None. Past the options, and so wrong, where the parser reads a letter that none has."""
    return FORMATS[item["benchmark"]][2](item, reply)


def make_item(
    where, benchmark, task, id, video, question, options, answer, tags, start=None, end=None
):
    """An item, checked. where: its file and row, for errors; answer: text or index of the right option, or None."""
    faults = [
        f"{text!r} is no text"
        for text in (question, *expect(options, list, where))
        if not isinstance(text, str) or not text
    ]
    index = (
        options.index(answer) if answer in options else answer
    )  # of several options with the text, the first
    if index is not None and (type(index) is not int or index not in range(len(options))):
        faults.append(f"the answer {answer!r} is none of the {len(options)} options")
    faults += [
        f"{value!r} is no {name}"
        for name, value in tags.items()
        if not isinstance(value, (str, int))
    ]
    if faults:
        raise common.InputError(f"{where}: {faults[0]}")
    return {
        "id": id,
        "benchmark": benchmark,
        "task": task,
        "video": video,
        "start": start,
        "end": end,
        "question": question,
        "options": options,
        "answer": index,
        "tags": tags,
    }


def expect(value, kind, where):
    """The value; InputError where it is not of this kind, list or dict."""
    if not isinstance(value, kind):
        raise common.InputError(
            f"{where}: {'a list' if kind is list else 'an object'} is expected, not {type(value).__name__}"
        )
    return value


def need(row, where, *keys):
    """The values of a row's keys; InputError names the first that it lacks."""
    for key in keys:
        if expect(row, dict, where).get(key) in (None, ""):
            raise common.InputError(f"{where}: no key {key!r}, or nothing in it")
    return [row[key] for key in keys]


def numbered(rows, where):
    """[(file and number of a row, for errors; the row), ...]"""
    return [
        (f"{where}, item {number}", row) for number, row in enumerate(expect(rows, list, where))
    ]


def find_videos(directory):
    """A function: name of a video -> path of <name>.mp4 (or .MP4), whatever its folder; where there is none, a path where it may be put."""
    found = {}
    for path in sorted(
        glob.glob("**/*.[mM][pP]4", root_dir=directory, recursive=True)
    ):  # glob follows links to folders, Path.rglob does not
        if found.setdefault(Path(path).stem, path) != path:
            raise common.InputError(
                f"{directory}: {found[Path(path).stem]} and {path} have the same name; which one is it?"
            )
    return lambda name: found.get(f"{name}", f"videos/{name}.mp4")


def letter_options(item):
    """The options, a line each: A. first, B. second, ..."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, item["options"]))


# ---------------------------------------------------------------- shapes
def load_shapes(directory):
    """questions.json, videos/*.mp4; from python -m shapes.world."""
    for where, row in numbered(
        common.read_json(directory / "questions.json"), directory / "questions.json"
    ):
        video, task, kind, question, answer, error = need(
            row, where, "video", "type", "kind", "question", "answer", "error_type"
        )
        yield make_item(
            where,
            "shapes",
            task,
            f"{video}/{task}",
            f"videos/{video}",
            question,
            [answer],
            0,
            {"kind": kind, "error_type": error},
        )


def render_shapes(item):
    return common.ANSWER_PROMPT.format(question=item["question"])


def plain(text):
    """What is compared: words in lower case, in order, without punctuation."""
    return "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()


def listed(text):
    """The things that 'a red circle, a blue square and a white triangle.' names, as a set."""
    return {" ".join(plain(part)) for part in text.replace(" and ", ", ").split(",") if plain(part)}


def parse_shapes(item, reply):
    """Shapes is free-form: its only option is the true answer. Lists may come in any order; all else must agree word by word."""
    same = listed if item["task"] == "objects" else plain
    return 0 if same(item["options"][0]) == same(reply) else None


def name_errors(item, reply):
    """The error types of a reply: [] where it is right. A wrong list is told apart by what it adds and what it leaves out."""
    if parse_shapes(item, reply) == item["answer"]:
        return []
    if item["task"] != "objects":
        return [item["tags"]["error_type"]]
    said, true = listed(reply), listed(item["options"][item["answer"]])
    return [
        error
        for error, wrong in (
            ("object_hallucination", said - true),
            ("detail_omission", true - said),
        )
        if wrong
    ]


# ---------------------------------------------------------------- MVBench
MVBENCH = {
    task: folders
    for tasks, *folders in (  # task -> folder of raw videos, folder of pre-trimmed ones, whether raw ones are to be cut
        (
            "action_sequence action_prediction object_interaction",
            "star/Charades_v1_480",
            "star/Charades_segment",
            True,
        ),
        ("action_localization", "sta/sta_video", "sta/sta_video_segment", True),
        (
            "episodic_reasoning",
            "tvqa/frames_fps3_hq",
            "tvqa/video_fps3_hq_segment",
            True,
        ),  # raw: folders of frames, 3 a second, from 00001.jpg
        ("action_antonym", "ssv2_video", "ssv2_video_mp4", False),
        ("fine_grained_pose", "nturgbd", "nturgbd_convert", False),
        ("fine_grained_action", "Moments_in_Time_Raw/videos", "Moments_in_Time_Raw/videos", False),
        ("unexpected_action", "FunQA_test/test", "FunQA_test/test", False),
        ("scene_transition", "scene_qa/video", "scene_qa/video", False),
        ("egocentric_navigation", "vlnqa", "vlnqa", False),
        (
            "object_existence moving_direction moving_count moving_attribute counterfactual_inference",
            *["clevrer/video_validation"] * 2,
            False,
        ),
        (
            "object_shuffle action_count state_change character_order",
            *["perception/videos"] * 2,
            False,
        ),
    )
    for task in tasks.split()
}


def load_mvbench(directory):
    """json/<task>.json of the 20 tasks; video/star/..., video/sta/... as the zip files unpack: raw videos, which are shown from start to end
    (branch main), or pre-trimmed ones, shown whole (branch video). From https://huggingface.co/datasets/OpenGVLab/MVBench, which lacks the 320
    NTU videos of fine_grained_pose (video/nturgbd).
    """
    for task, (raw, trimmed, bounded) in MVBENCH.items():
        path = directory / "json" / f"{task}.json"
        for number, (where, row) in enumerate(numbered(common.read_json(path), path)):
            name, question, options, answer = need(
                row, where, "video", "question", "candidates", "answer"
            )
            bounds = row.get("start"), row.get("end")
            if not all(
                bound is None or (isinstance(bound, (int, float)) and math.isfinite(bound))
                for bound in bounds
            ):
                raise common.InputError(
                    f"{where}: start and end are {bounds[0]!r} and {bounds[1]!r}, not seconds"
                )
            video = find_mvbench(directory, f"{name}", raw, trimmed, bounds)
            start, end = (
                need(row, where, "start", "end") if bounded and f"{raw}/" in video else (None, None)
            )
            yield make_item(
                where,
                "mvbench",
                task,
                f"{task}/{number}",
                video,
                question,
                options,
                f"{answer}",
                {},
                start,
                end,
            )


def find_mvbench(directory, name, raw, trimmed, bounds):
    """Path of a video: the pre-trimmed file, called <stem>_<start>_<end>.mp4 with Python's text of the two floats (or so by its own name in the
    branch video, where .webm and .avi have become .mp4), else the raw one, else either below data0613/; none there: the raw one's path.
    """
    stem = re.sub(r"\.(mp4|webm|avi)$", "", name)  # a folder of frames has no suffix
    cut = [
        f"{stem}_{start}_{end}.mp4"
        for start, end in (bounds, [bound if bound is None else float(bound) for bound in bounds])
    ]
    paths = [*(f"{trimmed}/{file}" for file in (*cut, f"{stem}.mp4", name)), f"{raw}/{name}"]
    places = [
        prefix + path for prefix in ("video/", "video/data0613/", "", "data0613/") for path in paths
    ]
    return next((place for place in places if (directory / place).exists()), f"video/{raw}/{name}")


def render_mvbench(item):
    """No space behind "Question:", one "Option:" for all, and a newline at the end."""
    options = "".join(f"({letter}) {option}\n" for letter, option in zip(LETTERS, item["options"]))
    return f"Question:{item['question']}\nOption:\n{options}Only give the best option.\n"


def parse_mvbench(item, reply):
    """A letter with a full stop and more text behind it; else, without punctuation, the first lone letter A to E in either case: the article
    "a" reads as A. Of the punctuation, a mark that stands beside a blank somewhere vanishes, another one becomes a blank; in a reply with a
    number like 1,000 all vanish. So do full stops that no digit follows, but no more than 32 (lmms-eval hands re.sub a flag as its count).
    """
    if match := re.match(r"([A-E])\.\s*.+$", reply.strip(), re.IGNORECASE):
        return LETTERS.index(match[1].upper())
    text = bare = reply.replace("\n", " ").replace("\t", " ").strip()
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        vanishes = f"{mark} " in text or f" {mark}" in text or re.search(r"\d,\d", text)
        bare = bare.replace(mark, "" if vanishes else " ")
    match = re.search(r"\b[A-E]\b", re.sub(r"\.(?!\d)", "", bare, count=32), re.IGNORECASE)
    return LETTERS.index(match[0].upper()) if match else None


# ---------------------------------------------------------------- Perception Test
def load_perceptiontest(directory):
    """mc_question_valid.json: {video id: {"mc_question": [...]}}; <video id>.mp4 in any folder. From
    https://github.com/google-deepmind/perception_test.
    """
    path, locate = directory / "mc_question_valid.json", find_videos(directory)
    for name, entry in expect(common.read_json(path), dict, path).items():
        [rows] = need(entry, f"{path}, {name}", "mc_question")
        for where, row in numbered(rows, f"{path}, {name}"):
            id, question, options, answer, area, reasoning = need(
                row, where, "id", "question", "options", "answer_id", "area", "reasoning"
            )
            yield make_item(
                where,
                "perceptiontest",
                "multiple_choice",
                f"{name}/{id}",
                locate(name),
                question,
                options,
                answer,
                {"area": area, "reasoning": reasoning},
            )


def render_perceptiontest(item):
    return f"{item['question']}\n{letter_options(item)}\n{DIRECTLY}"


def parse_perceptiontest(item, reply):
    """The first lone capital A to D: "A" at the start of a sentence counts, "b" does not."""
    match = re.search(r"\b[A-D]\b", reply)
    return LETTERS.index(match[0]) if match else None


# ---------------------------------------------------------------- TempCompass
def load_tempcompass(directory):
    """questions/{multi-choice,yes_no,caption_matching}.json: {video id: {dimension: [...]}}; <video id>.mp4 in any folder. From
    https://github.com/llyx97/TempCompass. But for yes_no, the options are the question's lines behind the first, and stay in it as they stand,
    three of them malformed. The fourth task, captioning, is left out: it cannot be scored without a judge.
    """
    locate = find_videos(directory)
    for task in ("multi-choice", "yes_no", "caption_matching"):
        path = directory / "questions" / f"{task}.json"
        for name, dimensions in expect(common.read_json(path), dict, path).items():
            for dimension, rows in expect(dimensions, dict, f"{path}, {name}").items():
                for number, (where, row) in enumerate(
                    numbered(rows, f"{path}, {name}, {dimension}")
                ):
                    question, answer = need(row, where, "question", "answer")
                    options = ["yes", "no"] if task == "yes_no" else f"{question}".split("\n")[1:]
                    yield make_item(
                        where,
                        "tempcompass",
                        task,
                        f"{name}/{task}/{dimension}/{number}",
                        locate(name),
                        question,
                        options,
                        f"{answer}",
                        {"dimension": dimension},
                    )


def render_tempcompass(item):
    return item["question"] + (
        "\nPlease answer yes or no:"
        if item["task"] == "yes_no"
        else "\nPlease directly give the best option:"
    )


def parse_tempcompass(item, reply):
    """The rules of the official scripts with --disable_llm; None is what they would else ask a judge. multi-choice: a bare capital A to D, or one
    with . or ) behind it. yes_no: how the reply begins, so that "not" is a no. caption_matching: an option's whole line, its sentence (also
    behind a ")"), its label ("Caption A") or what tells it from the other ("A", "1"); full stops are passed over in the last two alone.
    """
    reply = reply.strip()
    if item["task"] == "multi-choice":
        return LETTERS.index(reply[0]) if re.match(r"[A-D]([.)]|$)", reply) else None
    if item["task"] == "yes_no":
        return next(
            (index for index, word in enumerate(item["options"]) if reply.lower().startswith(word)),
            None,
        )
    for index, option in enumerate(item["options"] if reply else []):
        label, sentence = (option.split(": ") + [""])[:2]
        if (
            sentence in (reply, *reply.split(") ")[1:2])
            or option == reply
            or reply.replace(".", "") in (label, label.split(" ")[-1])
        ):
            return index
    return None


# ---------------------------------------------------------------- NExT-QA
def load_nextqa(directory):
    """test.csv; <video id>.mp4 in any folder, such as NExTVideo/ or VidOR's 0101/. From https://github.com/doc-doc/NExT-QA.
    The group of a type is its first letter: C causal (CW CH), T temporal (TN TC TP), D descriptive (DO DL DC).
    """
    path, locate = directory / "test.csv", find_videos(directory)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file, strict=True)
            rows = [(f"{path}, line {table.line_num}", row) for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise common.InputError(f"{path}: not to be read as CSV in UTF-8 ({error})") from error
    for where, row in rows:
        name, qid, kind, question, answer, *options = need(
            row, where, "video", "qid", "type", "question", "answer", *(f"a{n}" for n in range(5))
        )
        if None in row:
            raise common.InputError(f"{where}: more fields than the header names")
        yield make_item(
            where,
            "nextqa",
            "multiple_choice",
            f"{name}/{qid}",
            locate(name),
            question,
            options,
            int(answer) if answer.isdecimal() else answer,
            {"type": kind, "group": kind[:1]},
        )


def render_nextqa(item):
    """Blanks around question and options go; there is no instruction at all."""
    return "\n".join(
        [
            item["question"].strip(),
            *(f"{letter}. {option.strip()}" for letter, option in zip(LETTERS, item["options"])),
        ]
    )


def trim_marks(reply):
    """How MMMU's parser begins, from which NExT-QA's and EgoSchema's come: marks go from both ends, kind after kind; then a blank at each end."""
    for mark in ",.!?;:'":
        reply = reply.strip(mark)
    return f" {reply} "


def parse_nextqa(item, reply):
    """MMMU's parser: letters found as (X); if there are none, as "X "; if none, as "X."; if none, and there are more than five words, options
    whose text occurs. Of several the last wins, by the last place of each (a letter without brackets is then sought between blanks).
    """
    text, options = trim_marks(reply), [option.strip().lower() for option in item["options"]]
    for form, sought in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        if hits := [letter for letter in LETTERS[: len(options)] if form.format(letter) in text]:
            return LETTERS.index(max(hits, key=lambda letter: text.rfind(sought.format(letter))))
    hits = (
        [index for index, option in enumerate(options) if option in text.lower()]
        if len(text.split()) > 5
        else []
    )
    return max(hits, key=lambda index: text.lower().rfind(options[index]), default=None)


# ---------------------------------------------------------------- EgoSchema
def load_egoschema(directory):
    """questions.json (5,031), subset_answers.json (the 500 answers that are public: {q_uid: index}); <q_uid>.mp4 in any folder. From
    https://github.com/egoschema/EgoSchema. Only the 500 are asked; with --full all are, and submission.json is written.
    """
    path, answers_path, locate = (
        directory / "questions.json",
        directory / "subset_answers.json",
        find_videos(directory),
    )
    answers = (
        dict(expect(common.read_json(answers_path), dict, answers_path))
        if answers_path.exists()
        else {}
    )
    for where, row in numbered(common.read_json(path), path):
        name, question, *options = need(
            row, where, "q_uid", "question", *(f"option {n}" for n in range(5))
        )
        yield make_item(
            where,
            "egoschema",
            "multiple_choice",
            f"{name}",
            locate(name),
            question,
            options,
            answers.pop(f"{name}", None),
            {},
        )
    if answers:
        raise common.InputError(
            f"{answers_path}: {next(iter(answers))!r} is no q_uid of {path.name}"
        )


def render_egoschema(item):
    return f"{item['question']}\n{letter_options(item)}\n{DIRECTLY}"


def parse_egoschema(item, reply):
    """MMMU's parser as lmms-eval changed it: (X), "X " and "X." are collected all together, and the earliest wins, by the last place of each;
    if there is none, and there are more than five words, options that occur with their letter, such as "A. C washes a pan".
    """
    text, lines = (
        trim_marks(reply),
        [line.strip().lower() for line in letter_options(item).split("\n")],
    )
    places = [
        (text.rfind(form.format(letter)), LETTERS.index(letter))
        for form in ("({})", "{} ", "{}.")
        for letter in LETTERS[: len(lines)]
    ]
    if not any(place >= 0 for place, _ in places) and len(text.split()) > 5:
        places = [(text.lower().rfind(line), index) for index, line in enumerate(lines)]
    return min(((place, index) for place, index in places if place >= 0), default=(None, None))[1]


# ---------------------------------------------------------------- LongVideoBench
def load_longvideobench(directory):
    """lvb_val.json; videos/<video_path>. From https://huggingface.co/datasets/longvideobench/LongVideoBench. Subtitles are not shown."""
    path = directory / "lvb_val.json"
    for where, row in numbered(common.read_json(path), path):
        id, video, question, options, answer, group, category = need(
            row,
            where,
            "id",
            "video_path",
            "question",
            "candidates",
            "correct_choice",
            "duration_group",
            "question_category",
        )
        yield make_item(
            where,
            "longvideobench",
            "multiple_choice",
            f"{id}",
            f"videos/{video}",
            question,
            options,
            answer,
            {"duration_group": group, "category": category},
        )


def render_longvideobench(item):
    """With a newline at the end, which Perception Test and EgoSchema do not have."""
    return f"{item['question']}\n{letter_options(item)}\n{DIRECTLY}\n"


def parse_longvideobench(item, reply):
    """Some phrases are cut out; then the first capital A to E anywhere, also within a word ("Based" is B)."""
    for phrase in (
        "The best answer is",
        "The correct answer is",
        "The answer is",
        "The answer",
        "The best option is",
        "The correct option is",
        "Best answer:",
        "Best option:",
    ):
        reply = reply.replace(phrase, "")
    match = re.search("[A-E]", reply)
    return LETTERS.index(match[0]) if match else None


FORMATS = {  # benchmark -> how its items are loaded, rendered and parsed, and the most tokens of a reply
    "shapes": (load_shapes, render_shapes, parse_shapes, 32),
    "mvbench": (load_mvbench, render_mvbench, parse_mvbench, 16),
    "perceptiontest": (load_perceptiontest, render_perceptiontest, parse_perceptiontest, 1024),
    "tempcompass": (load_tempcompass, render_tempcompass, parse_tempcompass, 1024),
    "nextqa": (load_nextqa, render_nextqa, parse_nextqa, 1024),
    "egoschema": (load_egoschema, render_egoschema, parse_egoschema, 1024),
    "longvideobench": (load_longvideobench, render_longvideobench, parse_longvideobench, 32),
}


# ---------------------------------------------------------------- scores
def split(rows, name):
    """{value of the task or of a tag: the rows that have it}, in the order of the values."""
    parts = {}
    for row in rows:
        parts.setdefault(row["task"] if name == "task" else row["tags"][name], []).append(row)
    return dict(sorted(parts.items()))


def accuracy(rows, macro=False):
    """Share of right replies; macro: the mean over tasks of the share in each."""
    parts = split(rows, "task").values() if macro else [rows]
    return sum(sum(row["correct"] for row in part) / len(part) for part in parts) / len(parts)


def interval(rows, macro=False):
    """95% interval of the accuracy, bootstrapped over videos, since the questions about one share it -> [low, high]."""
    videos, draw = [part for _, part in common.group_by_video(rows)], random.Random(0)
    means = sorted(
        accuracy([row for part in draw.choices(videos, k=len(videos)) for row in part], macro)
        for _ in range(RESAMPLES)
    )
    return [round(means[int(RESAMPLES * share)], 4) for share in (0.025, 0.975)]


def measure(rows, macro=False):
    """A figure of results.json: over those n of N rows that are not dropped; without any, accuracy and interval are null. A free-form reply (one
    option) is never unparsed, only right or wrong.
    """
    scored = [row for row in rows if "dropped" not in row]
    return {
        "accuracy": round(accuracy(scored, macro), 4) if scored else None,
        "interval": interval(scored, macro) if scored else None,
        "n": len(scored),
        "N": len(rows),
        "n_unparsed": sum(row["parsed"] is None and len(row["options"]) > 1 for row in scored),
        "n_empty": sum(not row["initial"] for row in scored),
    }


def score(rows):
    """Predictions -> the figures of results.json: the score (see MACRO), and the accuracy of all rows and of each part."""
    scored = [row for row in rows if "dropped" not in row]
    if not scored:
        raise common.InputError("no video could be read, so there is nothing to score")
    macro, drops = rows[0]["benchmark"] in MACRO, Counter(row.get("dropped") for row in rows)
    figure = measure(rows, macro)
    results = {
        "score": figure["accuracy"],
        "score_is": f"mean over {len(split(scored, 'task'))} tasks"
        if macro
        else "mean over questions",
        **figure,
        "accuracy": round(accuracy(scored), 4),
        "n_videos": len(common.group_by_video(scored)),
        "n_missing": drops["missing_video"],
        "n_unreadable": drops["unreadable_video"],
    }
    for name in ("task", *rows[0]["tags"]):
        results[f"by_{name}"] = {
            f"{value}": measure(part) for value, part in split(rows, name).items()
        }
    if rows[0]["benchmark"] == "shapes":
        results |= {
            "n_wrong": sum(not row["correct"] for row in scored),
            "errors": {
                error: sum(error in row["true_errors"] for row in scored)
                for error in common.ERROR_TYPES
            },
        }
    return results


# ---------------------------------------------------------------- the stage
def drop_missing(items, root, partial):
    """Drops the items whose video is not there, and prints how many items and videos each task has. InputError for a gap, unless partial."""
    for item in items:
        if not (root / item["video"]).exists():
            item["dropped"] = "missing_video"
    for task, part in split(items, "task").items():
        videos, missing = (
            {item["video"] for item in some}
            for some in (part, [item for item in part if "dropped" in item])
        )
        print(
            f"{task:26} {len(part):5} items, {len(videos):5} videos, {len(missing):4} missing"
            + (f", such as {min(missing)}" if missing else "")
        )
    if not partial and any("dropped" in item for item in items):
        raise common.InputError(
            f"videos are missing below {root}; --partial goes on without them, and says n/N with every figure"
        )


def segment(item):
    """What is shown of an item's video, as a key for sorting."""
    return item["start"] or 0.0, math.inf if item["end"] is None else item["end"]


def choose(row, args):
    """Index of the option that a reply counts as: the parsed one; of an unparsed reply None, or one drawn (--unparsed random)."""
    drawn = (
        random.Random(f"{args.seed}/{row['id']}").randrange(len(row["options"]))
        if args.unparsed == "random"
        else None
    )
    return drawn if row["parsed"] is None else row["parsed"]


def judge(row, args):
    """Adds parsed and correct (null where the answer is not public) to a row with a reply; for shapes also true_errors."""
    row["parsed"] = parse_reply(row, row["initial"])
    row["correct"] = None if row["answer"] is None else choose(row, args) == row["answer"]
    if row["benchmark"] == "shapes":
        row["true_errors"] = name_errors(row, row["initial"])


def write_replies(model, tokenizer, video, rows, args):
    """Adds prompt and initial (the reply, greedy) to the rows about one segment of a video, decoded as one batch, and judges them."""
    prompts = [render_prompt(row) for row in rows]
    for row, prompt, (reply, _) in zip(
        rows, prompts, common.decode(model, tokenizer, video, prompts, FORMATS[args.benchmark][3])
    ):
        row |= {"prompt": prompt, "initial": reply}
        judge(row, args)


def write_results(rows, meta, args):
    """Writes results.json, and where answers are not public submission.json; prints the score. meta: what meta.json says of the run, or {}."""
    begun, public = meta.get("arguments", {}), [row for row in rows if row["answer"] is not None]
    results = score(public) if public else {"score": None, "n": 0, "N": 0}
    partial = (
        results["n"] < results["N"]
        or bool(begun.get("limit"))
        or begun.get("shard", "0/1") != "0/1"
    )
    results |= {
        "partial": partial,
        "benchmark": args.benchmark,
        "model": begun.get("model"),
        "seed": args.seed,
        "unparsed": args.unparsed,
        "arguments": begun,
        "versions": meta.get("versions"),
        "commit": meta.get("commit"),
    }
    common.write_json(args.output / "results.json", results)
    if public:
        print(
            f"{args.benchmark}: score {results['score']:.3f} {results['interval']} ({results['score_is']}), {results['n']}/{results['N']} questions"
            f", {results['n_videos']} videos{' (PARTIAL)' * partial}; {results['n_unparsed']} replies unparsed, {results['n_empty']} empty"
        )
    if len(public) < len(rows):
        choices = {row["id"]: choose(row, args) for row in rows if "dropped" not in row}
        common.write_json(
            args.output / "submission.json",
            {id: index for id, index in choices.items() if index is not None},
        )
        print(
            f"{args.output / 'submission.json'}: left out are {len(rows) - len(choices)} questions without a video and "
            f"{list(choices.values()).count(None)} unparsed replies (--rescore --unparsed random draws for those)"
        )


def rescore(args):
    """Judges predictions.jsonl anew, in place, and writes results.json, without a model or a video."""
    path = args.output / "predictions.jsonl"
    meta = common.read_json(common.meta_path(path)) if common.meta_path(path).exists() else {}
    if meta and not meta["finished"]:
        raise common.InputError(
            f"{path} is unfinished; the same command without --rescore goes on with it"
        )
    rows = common.read_jsonl(path, ("id", "video", "initial"))
    for row in rows:
        if row.get("benchmark") != args.benchmark:
            raise common.InputError(f"{path}: {row['id']} is no question of {args.benchmark}")
        if "dropped" not in row:
            judge(row, args)
    Path(f"{path}.part").write_bytes(
        b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    )
    Path(f"{path}.part").replace(path)
    write_results(rows, meta, args)


def main():
    parser = common.make_parser(
        __doc__,
        "directory of the results; run again, it goes on where it stopped",
        needs_output=False,
        needs_model=False,
    )
    add = parser.add_argument
    add(
        "--benchmark",
        required=True,
        choices=(*FORMATS, "list"),
        help="list: what each expects on disk, and where to get it",
    )
    add("--input", help="directory of the benchmark")
    add(
        "--partial",
        action="store_true",
        help="go on although videos are missing; every figure says n/N",
    )
    add(
        "--full",
        action="store_true",
        help="egoschema: also the questions without a public answer; writes submission.json",
    )
    add(
        "--unparsed",
        choices=("wrong", "random"),
        default="wrong",
        help=f"how an unparsed reply counts; random, as in lmms-eval: {', '.join(DRAWN)}",
    )
    add(
        "--rescore",
        action="store_true",
        help="only score the output's predictions.jsonl anew; needs neither --model nor --input",
    )
    args = parser.parse_args()
    if args.benchmark == "list":
        return print(
            "\n\n".join(f"{name}\n    {load.__doc__}" for name, (load, *_) in FORMATS.items())
        )
    if not args.output or not (args.rescore or (args.model and args.input)):
        parser.error("--model, --input and --output are needed; with --rescore only --output")
    if (args.full and args.benchmark != "egoschema") or (
        args.unparsed == "random" and args.benchmark not in DRAWN
    ):
        parser.error(f"--full is for egoschema, --unparsed random for {', '.join(DRAWN)}")
    if args.rescore:
        return rescore(args)

    root = Path(args.input).resolve()
    items = load_items(args.benchmark, root, args.full)
    drop_missing(items, root, args.partial)
    groups = common.take_shard(
        [(video, sorted(rows, key=segment)) for video, rows in common.group_by_video(items)],
        args.shard,
    )[: args.limit]
    meta = common.make_meta(args, [render_prompt(item) for item in items], root, groups)
    out = common.Output(args.output / "predictions.jsonl", args, meta, groups)
    if out.finished:
        return None
    model, tokenizer = common.load(args)
    for rows, video in common.watch_each(
        model, tokenizer, out.left, root, args
    ):  # once for each segment, since rows are sorted so
        if video:
            write_replies(model, tokenizer, video, rows, args)
        out.write(rows)
    write_results(out.rows, meta, args)
    out.finish("replies")  # last, so that what is called finished has its scores


if __name__ == "__main__":
    common.run(main)
