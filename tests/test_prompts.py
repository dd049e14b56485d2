"""Prompts from a file: read, checked, obeyed, recorded, and handed on from stage to stage.

The shipped model was taught its own prompts alone. The wordings here are made of phrases that are tokens of its, such
as "Look closely.": they show that a file is obeyed, not that the model understands it.
"""

import json
import re
import shutil
import sys

import pytest

import common
import critique
import dpo
import evaluate
import generate
import prompts
import refine
import vlm
from conftest import MODEL
from prompts import wording
from shapes import patterns, world
from test_text import write_whole_words

# ------------------------------------------------------------------------------
# From a prompt to what the model is asked


def test_only_the_fields_of_a_prompt_are_filled_in():
    # str.format would stop at {"a": 1}, and would take {initial} in the question for a field
    prompt = 'Reply as {"a": 1}. {question} They said: {initial}'
    filled = prompts.fill(prompt, question="Is {initial} or {0} right?", initial="{question}")
    assert filled == 'Reply as {"a": 1}. Is {initial} or {0} right? They said: {question}'


@pytest.mark.parametrize(
    "error_types, listed",
    [
        ({"wrong": "not so"}, "wrong (not so)"),
        ({"a": "1", "b": "2"}, "a (1) and b (2)"),
        ({"a": "1", "b": "2", "c": "3"}, "a (1), b (2) and c (3)"),
    ],
)
def test_error_types_are_listed_as_in_a_sentence(error_types, listed):
    assert prompts.describe_error_types(error_types) == listed


def test_the_aspects_of_a_kind_take_turns():
    questions = {
        "order": {"prompt": "About {aspect}?", "aspects": ["first", "last"]},
        "free": {"prompt": "Ask.", "aspects": [], "number": 2},
    }
    assert prompts.list_questions(questions, {"order": 3, "free": 2}) == [
        ("order", 0, "About first?"),
        ("order", 1, "About last?"),
        ("order", 2, "About first?"),
        ("free", 0, "Ask."),
        ("free", 1, "Ask."),
    ]


# ------------------------------------------------------------------------------
# Files


def write(tmp_path, value):
    common.write_json(tmp_path / "mine.json", value)
    return tmp_path / "mine.json"


@pytest.mark.parametrize(
    "value, complaint",
    [
        (["answer"], "an object is expected, not list"),
        ({"anwser": "{question}"}, "there is no part 'anwser'; the parts are questions, answer"),
        ({"answer": 7}, "answer: a text is expected, not 7"),
        ({"answer": " "}, "answer: a text is expected"),
        ({"answer": "What is shown?"}, "answer: the field {question} is missing"),
        ({"answer": "{question} {critique}"}, "answer: the field {critique} is not known in this prompt"),
        ({"critique": "{question}: right?"}, "critique: the field {initial} is missing"),
        ({"answer": "{quesiton}"}, "answer: {quesiton} is no field; is {question} meant?"),
        # A field that may be left out would else be missing silently
        ({"critique": "{question} {initial} {error_type}"}, "critique: {error_type} is no field; is {error_types}"),
        ({"revision": "{question} {initial}"}, "revision: the field {critique} is missing"),
        ({"questions": []}, "questions: an object is expected, not list"),
        ({"questions": {"spatial": "where?"}}, "questions: spatial: an object is expected, not str"),
        ({"questions": {"spatial": {"promt": "where?"}}}, "spatial: there is no 'promt'"),
        ({"questions": {"spatial": {"number": "2"}}}, "spatial: number: a whole number"),
        ({"questions": {"a/b": {"number": 2}}}, "the name of a kind has letters"),
        ({"questions": {"count": {"prompt": "How many?", "number": True}}}, "number: a whole number"),
        ({"questions": {"count": {"prompt": "How many?", "number": -1}}}, "number: a whole number"),
        ({"questions": {"count": {"aspects": "cars", "number": 1}}}, "aspects: a list of texts is expected"),
        ({"questions": {"count": {"prompt": "{question}", "number": 1}}}, "the field {question} is not known"),
        ({"error_types": {}}, "error_types: at least one is needed"),
        ({"error_types": {"wrong": ""}}, "error_types: wrong: a text is expected"),
        # A critic that names such a type would be misunderstood
        ({"error_types": {"none": "nothing is wrong"}}, "'none' in a verdict could not be told"),
        ({"error_types": {"a, b": "two"}}, "'a, b' in a verdict could not be told"),
        ({"error_types": {"wrong_way": "one", "Wrong way": "the same"}}, "in a verdict could not be told"),
    ],
)
def test_a_fault_in_a_file_is_named_with_its_place(tmp_path, value, complaint):
    path = write(tmp_path, value)
    with pytest.raises(common.InputError) as refusal:
        prompts.read(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert complaint in str(refusal.value)


@pytest.mark.parametrize(
    "kind, complaint",
    [
        ({"spatial": {"prompt": "Where is it?"}}, "spatial: the field {aspect} is missing in its prompt"),
        ({"spatial": {"aspects": []}}, "spatial: its prompt has the field {aspect}, but there are no aspects"),
        ({"count": {"prompt": "How many?"}}, "count: number is missing"),
    ],
)
def test_a_kind_of_questions_is_checked_with_what_it_takes_from_the_default(tmp_path, kind, complaint):
    args = make_args(write(tmp_path, {"questions": kind}))
    with pytest.raises(common.InputError) as refusal:
        prompts.choose(args, [])
    assert complaint in str(refusal.value)


def make_args(file=None, model=MODEL):
    """The arguments of a stage that `choose` reads."""
    return type("Args", (), {"prompts": file, "model": model})


def test_the_default_prompts_are_printed_as_a_file_of_them(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["generate.py", "--prompts", "list"])
    generate.main()
    (tmp_path / "today.json").write_text(capsys.readouterr().out)
    assert prompts.choose(make_args(tmp_path / "today.json"), []) == prompts.DEFAULT
    assert wording.merge({}, prompts.read(tmp_path / "today.json")) == prompts.DEFAULT


def test_the_example_of_the_page_is_a_file_of_prompts(tmp_path):
    page = (MODEL.parent.parent / "docs" / "prompts.md").read_text()
    [example] = re.findall(r"^```\n(\{.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "example.json").write_text(example)
    chosen = prompts.choose(make_args(tmp_path / "example.json"), [])
    assert chosen.questions["counting"]["number"] == 2
    assert list(chosen.error_types) == ["factual_inaccuracy", "miscounting"]


def test_the_shipped_model_has_prompts_of_its_own_shorter_than_the_default_ones(tmp_path):
    chosen = prompts.choose(make_args(None, MODEL), [])
    assert chosen == prompts.Prompts(**patterns.USUAL)
    own, default = prompts.show(chosen), prompts.show(prompts.DEFAULT)
    assert list(chosen.error_types) == list(prompts.DEFAULT.error_types)
    assert len(own.split()) < len(default.split()) / 2


# ------------------------------------------------------------------------------
# Which prompts a stage takes


@pytest.fixture
def own_model(tmp_path):
    """A directory of a model that lists an answer prompt of its own."""
    directory = tmp_path / "model"
    directory.mkdir()
    common.write_json(
        directory / "prompts.json", {"answer": "model's {question}", "revision": prompts.DEFAULT.revision}
    )
    return directory


def record(path, value):
    """Write the meta.json of an output that was made with some prompts -> the output's path."""
    common.write_json(common.meta_path(path), {"prompts": value})
    return path


def test_a_file_comes_before_the_input_the_input_before_the_model_and_the_model_before_the_default(tmp_path, own_model):
    file = write(tmp_path, {"critique": "file's {question} {initial}"})
    rows = record(tmp_path / "rows.jsonl", {"answer": "input's {question}", "critique": "input's {question} {initial}"})

    chosen = prompts.choose(make_args(file, own_model), [rows])
    assert chosen.critique == "file's {question} {initial}"
    assert chosen.answer == "input's {question}"
    assert chosen.revision == prompts.DEFAULT.revision
    assert prompts.choose(make_args(None, own_model), []).answer == "model's {question}"
    assert prompts.choose(make_args(None, own_model), []).critique == prompts.DEFAULT.critique


def test_a_file_adds_kinds_and_changes_parts_of_those_that_are_there(tmp_path):
    kinds = {"spatial": {"aspects": ["places"]}, "count": {"prompt": "How many?", "number": 2}}
    chosen = prompts.choose(make_args(write(tmp_path, {"questions": kinds})), []).questions
    assert list(chosen) == ["spatial", "temporal", "count"]
    assert chosen["spatial"] == patterns.USUAL["questions"]["spatial"] | {"aspects": ["places"]}
    assert chosen["temporal"] == patterns.USUAL["questions"]["temporal"]
    assert chosen["count"] == {"prompt": "How many?", "aspects": [], "number": 2}


@pytest.mark.parametrize("spatial, expected", [(None, 0), (2, 2)])
def test_an_option_comes_before_the_number_of_a_file(tmp_path, spatial, expected):
    kinds = {"spatial": {"number": 0}, "count": {"prompt": "How many?", "number": 2}}
    args = make_args(write(tmp_path, {"questions": kinds}))
    args.spatial, args.temporal = spatial, None
    questions = prompts.choose(args, []).questions
    assert generate.count_questions(args, questions) == {"spatial": expected, "temporal": 3, "count": 2}


def test_a_word_in_braces_that_is_no_field_is_said(tmp_path, capsys):
    prompts.choose(make_args(write(tmp_path, {"critique": "{question} {initial} {answer} Errors: {a}"})), [])
    said = capsys.readouterr().out.splitlines()
    assert [line.partition("mine.json: ")[2] for line in said] == [
        "critique: {a} is no field, and stays as it is",
        "critique: {answer} is no field, and stays as it is",
    ]


def test_a_critique_that_asks_for_no_verdict_is_said_before_it_begins(capsys):
    prompts.tell_if_no_verdict(prompts.DEFAULT.critique)
    assert capsys.readouterr().out == ""
    prompts.tell_if_no_verdict("What is wrong with {initial}?")
    assert "verdicts will hardly be found" in capsys.readouterr().out


def test_list_is_no_file_of_prompts():
    with pytest.raises(common.InputError, match="--prompts list: generate.py prints them"):
        prompts.read("list")


def test_what_rows_were_made_with_can_be_changed_by_no_file_and_by_no_other_input(tmp_path):
    one = record(tmp_path / "one.jsonl", {"answer": "one {question}"})
    other = record(tmp_path / "other.jsonl", {"answer": "other {question}"})
    file = write(tmp_path, {"answer": "mine {question}"})
    with pytest.raises(common.InputError, match=r"one.jsonl was made with another 'answer' than .*mine.json has"):
        prompts.choose(make_args(file), [one], settled=("answer",))
    with pytest.raises(common.InputError, match=r"other.jsonl was made with another 'answer' than .*one.jsonl has"):
        prompts.choose(make_args(), [one, other], settled=("answer",))
    assert prompts.choose(make_args(), [one, one], settled=("answer",)).answer == "one {question}"


def test_the_list_of_a_model_is_no_part_of_its_fingerprint(tmp_path):
    shutil.copytree(MODEL, tmp_path / "model")
    before = common.fingerprint(tmp_path / "model")
    (tmp_path / "model" / "prompts.json").write_text("{}")
    assert common.fingerprint(tmp_path / "model") == before


# ------------------------------------------------------------------------------
# The loop with a file


MINE = {
    "questions": {"counting": {"prompt": "Write a question: how many?", "number": 2}},
    "answer": "Look closely.\n{question}",
    "critique": "Their answer: {initial}\nQuestion: {question}\nErrors: {error_types}",
    "revision": "A review of the answer: {critique}\nQuestion: {question}\nTheir answer: {initial}\nMend it.",
    "error_types": {"miscounting": "wrong number {of} things"},
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    world.write_split(root, "round1", 2, seed=0)
    world.write_split(root, "dev", 1, seed=0)
    return root


@pytest.fixture
def asked(monkeypatch):
    """All prompts that are encoded, in order."""
    seen = []
    encode_branch = vlm.prefix.encode_branch

    def record_prompt(tokenizer, prompt, answer=""):
        if prompt:
            seen.append(prompt)
        return encode_branch(tokenizer, prompt, answer)

    monkeypatch.setattr(vlm.prefix, "encode_branch", record_prompt)
    monkeypatch.setattr(vlm, "encode_branch", record_prompt)
    return seen


@pytest.fixture
def run(tmp_path, monkeypatch):
    def run(stage, input, output, *more, model=MODEL):
        """Run a stage -> the path of its output."""
        words = ["--model", model, "--input", input, "--output", tmp_path / output, "--devices", "cpu", *more]
        monkeypatch.setattr(sys, "argv", [f"{stage.__name__}.py", *map(str, words)])
        stage.main()
        return tmp_path / output

    return run


def read_recorded(output):
    return common.read_json(common.meta_path(output))["prompts"]


def test_a_file_is_obeyed_recorded_and_handed_on_to_training_and_asking(shapes, run, asked, tmp_path):
    file = write(tmp_path, MINE)
    counts = ("--spatial", "1", "--temporal", "0")
    responses = run(generate, shapes / "round1", "responses.jsonl", "--prompts", file, *counts)
    rows = common.read_jsonl(responses)
    names = [row["id"].partition("/")[2] for row in rows[:3]]
    assert names == ["spatial/0", "counting/0", "counting/1"]
    assert asked[1:3] == ["Write a question: how many?"] * 2
    kept = [row for row in rows if "dropped" not in row]
    assert f"Look closely.\n{kept[0]['question']}" in asked

    # Later stages need no file: what the input was made with is in its meta.json
    asked.clear()
    critiques = run(critique, responses, "critiques.jsonl")
    first = kept[0]
    expected = f"Their answer: {first['initial']}\nQuestion: {first['question']}\nErrors: "
    assert asked[0] == expected + "miscounting (wrong number {of} things)"

    judged = [row | {"critique": "Errors: miscounting", "error_types": ["miscounting"]} for row in kept]
    common.write_jsonl(critiques, judged)
    asked.clear()
    pairs = run(refine, critiques, "pairs.jsonl")
    expected = f"A review of the answer: Errors: miscounting\nQuestion: {first['question']}\n"
    assert asked[0] == f"{expected}Their answer: {first['initial']}\nMend it."

    # The training puts its answers behind the prompt that the questions were asked with
    rows = [row | {"chosen": "it moves up.", "rejected": "it moves left."} for row in kept]
    common.write_jsonl(pairs, rows)
    asked.clear()
    model = run(dpo, pairs, "model")
    assert set(asked) == {f"Look closely.\n{row['question']}" for row in kept}
    for output in (responses, critiques, pairs, model):
        assert read_recorded(output)["answer"] == MINE["answer"]
        assert read_recorded(output)["error_types"] == MINE["error_types"]

    # And whoever asks the trained model later, asks as it was trained
    asked.clear()
    run(evaluate, shapes / "dev", "eval", "--benchmark", "shapes", model=model)
    assert all(prompt.startswith("Look closely.\n") for prompt in asked)
    run(generate, shapes / "round1", "second.jsonl", *counts, "--limit", "1", model=model)
    assert read_recorded(tmp_path / "second.jsonl")["answer"] == MINE["answer"]
    asked.clear()
    run(evaluate, shapes / "dev", "base", "--benchmark", "shapes", "--prompts", file)
    assert all(prompt.startswith("Look closely.\n") for prompt in asked)


def test_where_no_file_says_how_questions_were_asked_no_later_stage_makes_it_up(shapes, run, tmp_path, capsys):
    """Rows of one's own, without a meta.json, pass an external critic that lists another answer prompt."""
    critic = tmp_path / "critic"
    shutil.copytree(MODEL, critic)
    common.write_json(critic / "prompts.json", {"answer": MINE["answer"]})
    rows = tmp_path / "rows.jsonl"
    [video] = sorted(path.name for path in (shapes / "round1").iterdir())[:1]
    row = {"id": "a", "video": video, "question": "how many shapes are there?", "initial": "there are two shapes."}
    common.write_jsonl(rows, [row])

    critiques = run(critique, rows, "critiques.jsonl", "--videos", shapes / "round1", model=critic)
    assert "answer" not in read_recorded(critiques)
    common.write_jsonl(critiques, [row | {"critique": "Errors: temporal_ordering", "error_types": []}])
    pairs = run(refine, critiques, "pairs.jsonl", "--gate", "none")
    assert "answer" not in read_recorded(pairs)
    capsys.readouterr()
    model = run(dpo, pairs, "model")
    assert "no meta.json says with which prompt its questions were asked" in capsys.readouterr().out
    assert read_recorded(model)["answer"] == patterns.USUAL["answer"]

    # A file says it, once and for all
    file = write(tmp_path, {"answer": MINE["answer"]})
    said = run(critique, rows, "said.jsonl", "--videos", shapes / "round1", "--prompts", file)
    assert read_recorded(said)["answer"] == MINE["answer"]


def test_an_error_type_of_another_file_is_refused_with_file_and_line(shapes, run, tmp_path):
    responses = run(generate, shapes / "round1", "responses.jsonl", "--limit", "1")
    critiques = run(critique, responses, "critiques.jsonl")
    rows = common.read_jsonl(critiques)
    rows[1]["error_types"] = ["miscounting"]
    common.write_jsonl(critiques, rows)
    with pytest.raises(common.InputError, match=r"critiques.jsonl, line 2: unknown error type 'miscounting'"):
        run(refine, critiques, "pairs.jsonl")
    with pytest.raises(common.InputError, match="critiques.jsonl was made with another 'error_types' than .*mine.json"):
        run(refine, critiques, "pairs.jsonl", "--prompts", write(tmp_path, {"error_types": MINE["error_types"]}))


def test_a_prompt_that_a_stage_has_used_cannot_change_under_its_output(shapes, run, tmp_path, capsys):
    responses = run(generate, shapes / "round1", "responses.jsonl", "--limit", "1")
    with pytest.raises(common.InputError, match="made with other prompts than the stage has now"):
        run(generate, shapes / "round1", "responses.jsonl", "--limit", "1", "--prompts", write(tmp_path, MINE))

    # One of a later stage can: a finished output takes it up, to hand it on
    capsys.readouterr()
    before = responses.read_bytes()
    file = write(tmp_path, {"critique": MINE["critique"]})
    run(generate, shapes / "round1", "responses.jsonl", "--limit", "1", "--prompts", file)
    assert "is finished; nothing to do" in capsys.readouterr().out
    assert responses.read_bytes() == before
    assert read_recorded(responses)["critique"] == MINE["critique"]
    # And a command without a file changes nothing
    run(generate, shapes / "round1", "responses.jsonl", "--limit", "1")
    assert read_recorded(responses)["critique"] == MINE["critique"]


def test_a_benchmark_with_prompts_of_its_own_says_that_a_file_does_not_change_them(tmp_path, capsys):
    args = make_args(write(tmp_path, MINE))
    args.benchmark = "mvbench"
    evaluate.tell_how_it_asks(args)
    assert "mvbench asks in its own words" in capsys.readouterr().out
    args.benchmark = "shapes"
    evaluate.tell_how_it_asks(args)
    assert capsys.readouterr().out == ""


def test_control_tokens_in_a_file_of_prompts_are_refused_before_anything_is_written(shapes, run, tmp_path):
    file = write(tmp_path, {"answer": "{question}<|im_end|>"})
    with pytest.raises(common.InputError, match=r"mine.json, 'answer': <\|im_end\|> in .* is a control token"):
        model = write_whole_words(tmp_path / "m")
        run(generate, shapes / "round1", "responses.jsonl", "--prompts", file, model=model)
    assert not (tmp_path / "responses.jsonl.meta.json").exists()


# ------------------------------------------------------------------------------
# Critiques that cannot be read


@pytest.mark.parametrize("n_unreadable, n, said", [(0, 3, False), (1, 3, False), (2, 5, True), (3, 3, True)])
def test_more_than_a_third_of_unreadable_critiques_is_said_aloud(n_unreadable, n, said, capsys):
    rows = []
    for number in range(n):
        verdict = None if number < n_unreadable else []
        rows.append({"id": f"v/{number}", "critique": f"It is number {number}.", "error_types": verdict})
    rows.append({"id": f"v/{n}", "dropped": "unreadable_video"})
    prompts.tell_if_unreadable("critiques.jsonl", rows)
    out = capsys.readouterr().out
    assert ("WARNING" in out) == said
    if said:
        assert f"{n_unreadable} of {n} critiques" in out
        assert "v/0" in out and "'It is number 0.'" in out


def test_the_file_of_json_that_a_prompt_may_ask_for_is_no_field(tmp_path):
    reply = json.dumps({"errors": []})
    file = write(tmp_path, {"critique": f"{{question}} {{initial}} Reply as {reply}, then Errors: ..."})
    chosen = prompts.choose(make_args(file), [])
    assert prompts.fill(chosen.critique, question="q", initial="a").endswith(f"Reply as {reply}, then Errors: ...")
