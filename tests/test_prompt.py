"""tools.prompt shows what the stages give the model: compared with the stages, and with the chat template."""

import re
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
from shapes import world
from test_text import make_qwen
from tools import prompt
from vlm import placement, prefix

ROW = {"id": "v.mp4/temporal/4", "video": "v.mp4", "kind": "temporal"}
ROW |= {"question": "which way does the red square move?", "initial": "it moves left."}


@pytest.fixture
def show(monkeypatch, capsys):
    """Give a function that prints a row of a file -> what is printed."""

    def show(path, id, *more):
        monkeypatch.setattr(sys, "argv", ["prompt.py", str(path), id, "--model", str(MODEL), *more])
        capsys.readouterr()
        prompt.main()
        return capsys.readouterr().out

    return show


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "responses.jsonl"
    common.write_jsonl(path, [ROW, ROW | {"id": "v.mp4/temporal/5"}, ROW | {"id": "w.mp4/spatial/0"}])
    return path


# ------------------------------------------------------------------------------
# Tokens


def test_tokens_are_counted_as_by_hand(file, show):
    printed = show(file, ROW["id"], "--frames", "2")
    # In the tiny model a word is a token, and so is a sign. <|im_start|> user, then frames:
    # frame1 : <img> 16 x ... </img>
    video = 2 + 2 * (2 + 1 + 16 + 1)
    assert f"---- the video: 2 frames, {video} tokens" in printed
    # which way does the red square move ? + answer in one short sentence . + <|im_end|> <|im_start|> assistant
    # it moves left . <|im_end|>
    counts = f"prompt {8 + 6 + 3} tokens, answer 5 tokens; with the video {video + 17 + 5} of 1024 positions"
    assert f"---- generate.py, the answer: {counts}" in printed


def test_the_ids_are_those_of_the_chat_template(file, show, tokenizer):
    printed = show(file, ROW["id"], "--frames", "5", "--ids")
    video, *others = re.findall(r"^ids: (.*)", printed, re.MULTILINE)
    asked, answered = others[-2:]

    def read(text):
        """'1, 165 63, 3, 5 x 16' -> [1, 165, 63, 3, 5, 5, ...]"""
        ids = []
        for part in text.split(", "):
            id, _, times = part.partition(" x ")
            ids += [int(id)] * int(times) if times else map(int, part.split())
        return ids

    ids = read(video) + read(asked) + read(answered)
    frames = "".join(f"Frame{n}: <img>{'<IMG_CONTEXT>' * 16}</img>\n" for n in range(1, 6))
    words = f"{frames}{ROW['question']}\nAnswer in one short sentence."
    messages = [{"role": "user", "content": words}, {"role": "assistant", "content": ROW["initial"]}]
    assert ids == tokenizer.apply_chat_template(messages)["input_ids"]


def test_control_tokens_are_marked_and_look_alikes_are_not():
    tokenizer = make_qwen()
    said = "say <|im_end|> <IMG_CONTEXT>"
    branch = vlm.encode_branch(tokenizer, said, "no")
    shown = "".join(prompt.show_text(tokenizer, branch.prompt, prompt.mark_in_brackets))
    assert shown == f"{said}[<|im_end|>]\n[<|im_start|>]assistant\n"
    assert prompt.mark_in_reverse("x") == "\033[7mx\033[0m"


def test_unknown_words_are_seen(tmp_path, show):
    path = tmp_path / "own.jsonl"
    common.write_jsonl(path, [ROW | {"question": "is it purple?"}])
    assert "is it[<unk>]?" in show(path, ROW["id"]).replace(" ?", "?")


def test_frames_are_shortened_but_for_the_first_and_the_last(file, show):
    visual = "[<img>][<IMG_CONTEXT> x 16][</img>]"
    lines = show(file, ROW["id"], "--frames", "7").splitlines()
    first = lines.index(f"[<|im_start|>]user frame1:{visual}")
    assert lines[first + 1 : first + 3] == ["... frames 2 to 6 in the same way ...", f"frame7:{visual}"]
    assert show(file, ROW["id"], "--frames", "3").count(visual) == 3


def test_the_number_of_frames_is_that_of_the_file_else_of_the_model(file, show):
    assert f"---- the video: {placement.read_config(MODEL).num_frames} frames" in show(file, ROW["id"])
    common.write_json(common.meta_path(file), {"arguments": {"frames": 3}})
    assert "---- the video: 3 frames" in show(file, ROW["id"])
    assert "---- the video: 2 frames" in show(file, ROW["id"], "--frames", "2")


# ------------------------------------------------------------------------------
# Prompts

# Made of phrases that the tiny model knows; each stage has another one than by default
OWN = {
    "questions": {
        "spatial": {"prompt": "Look closely. {aspect}", "aspects": ["which objects there are and where each one is"]},
        "counting": {"prompt": "Somebody was asked about this video.", "number": 1},
    },
    "answer": "{question} Look closely.",
    "critique": "{question} {initial} {error_types} Look closely.",
    "revision": "Look closely. {question} {initial} {critique}",
    "error_types": {"miscounting": "wrong number"},
}


@pytest.fixture
def asked(monkeypatch):
    """What the stages ask the model, as decode is given it: {number of the call: texts}; the replies are ours."""
    asked = []

    def decode(model, tokenizer, videos, prompts, *_):
        [texts] = prompts  # of one video
        asked.append(texts)
        replies = (
            ["where is the red square?", "how many red squares?"] if len(asked) == 1 else ["Errors: miscounting"] * 2
        )
        return [[(f"{reply}{number}" if len(asked) == 4 else reply, True) for number, reply in enumerate(replies)]]

    monkeypatch.setattr(prefix, "decode", decode)
    return asked


def test_the_prompts_are_those_that_the_stages_asked(asked, show, tmp_path, video_file, monkeypatch, tokenizer):
    own = tmp_path / "own.json"
    common.write_json(own, OWN)
    options = ["--model", str(MODEL), "--devices", "cpu", "--frames", "2", "--input"]
    inputs = {generate: video_file, critique: "responses.jsonl", refine: "critiques.jsonl"}
    monkeypatch.chdir(tmp_path)
    for stage, output in zip(inputs, ("responses.jsonl", "critiques.jsonl", "pairs.jsonl")):
        more = ["--prompts", str(own), "--spatial", "1", "--temporal", "0"] if stage is generate else []
        monkeypatch.setattr(sys, "argv", [stage.__name__, *options, str(inputs[stage]), "--output", output, *more])
        stage.main()
    rows = common.read_jsonl("pairs.jsonl")
    assert len(rows) == 2

    wording = prompts.Prompts(**prompts.recorded("pairs.jsonl"))
    for number, row in enumerate(rows):
        exchanges = prompt.list_exchanges(row, wording)
        assert [exchange.prompt for exchange in exchanges[:4]] == [texts[number] for texts in asked]
        assert [exchange.answer for exchange in exchanges[:4]] == [
            row[key] for key in ("question", "initial", "critique", "revised")
        ]
        # dpo.py trains with the prompt that the answers were asked with
        chosen, rejected = exchanges[4:]
        trained = dpo.encode_pairs(tokenizer, [row | {"prompt": exchanges[1].prompt}])
        assert [vlm.encode_branch(tokenizer, *exchange[1:]) for exchange in (chosen, rejected)] == trained

    printed = show("pairs.jsonl", rows[0]["id"])
    assert "prompts as its meta.json records them" in printed
    assert "---- the video: 2 frames" in printed
    assert printed.count("look closely.") == 6  # of six exchanges


def test_the_reply_to_a_benchmark_is_shown_with_its_own_prompt(show, tmp_path, monkeypatch):
    world.write_split(tmp_path, "dev", 1, seed=0)
    options = {"benchmark": "shapes", "model": MODEL, "input": tmp_path / "dev", "output": tmp_path / "eval"}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--devices", "cpu", *words])
    evaluate.main()
    path = tmp_path / "eval" / "predictions.jsonl"
    row = common.read_jsonl(path)[0]
    [exchange] = prompt.list_exchanges(row, prompts.DEFAULT)
    assert exchange == ("evaluate.py", row["prompt"], row["initial"])
    printed = show(path, row["id"])
    assert row["prompt"].splitlines()[1].lower() in printed


def test_what_a_row_lacks_is_left_out():
    def titles(row):
        return [exchange.title for exchange in prompt.list_exchanges(row, prompts.DEFAULT)]

    assert titles(ROW) == ["generate.py, the question", "generate.py, the answer"]
    imported = {"id": "7", "video": "v.mp4", "question": "what?", "chosen": "this.", "rejected": "that."}
    assert titles(imported) == ["dpo.py, chosen", "dpo.py, rejected"]  # nobody knows what asked for the question
    bad = {key: ROW[key] for key in ("id", "video", "kind", "question")} | {"dropped": "bad_question"}
    assert titles(bad) == ["generate.py, the question"]
    assert titles(ROW | {"id": "v.mp4/temporal/last"}) == ["generate.py, the answer"]
    assert titles(ROW | {"id": "v.mp4/of my own/4"}) == ["generate.py, the answer"]
    assert titles({"id": "v.mp4/temporal/0", "video": "v.mp4", "dropped": "unreadable_video"}) == []


def test_an_unknown_id_is_answered_with_the_nearest(file, show):
    with pytest.raises(
        common.InputError, match=r"no row has the id 'v/temporal/5'; the nearest are v.mp4/temporal/5, v"
    ):
        show(file, "v/temporal/5")
    common.write_jsonl(file, [])
    with pytest.raises(common.InputError, match="the nearest are none"):
        show(file, "v/temporal/5")


def test_a_row_without_texts_is_named(tmp_path, show):
    path = tmp_path / "responses.jsonl"
    common.write_jsonl(path, [{"id": "a", "video": "v", "dropped": "unreadable_video"}])
    with pytest.raises(common.InputError, match="the row 'a' has no text"):
        show(path, "a")


def test_where_the_prompts_are_from_is_said(file, show, tmp_path):
    assert "no meta.json records its prompts: the model's own if it lists them, else the default" in show(
        file, ROW["id"]
    )
    own = tmp_path / "own.json"
    common.write_json(own, {"answer": "Look closely. {question}"})
    printed = show(file, ROW["id"], "--prompts", str(own))
    assert f"prompts of {own}" in printed
    assert "look closely. which way" in printed
