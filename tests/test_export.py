"""tools.export and tools.hound: what another trainer is given is what dpo.py trains on.

Their own code is asked by python -m tools.peers, where it is installed. Here their templates are
written out by hand, as they were read.
"""

import errno
import json
import os
import sys
from pathlib import Path

import cv2
import pytest
import torch
import yaml

import common
import dpo
import media
import vlm
from conftest import MODEL
from shapes import world
from tools import export, hound
from tools.export_targets import make_template
from vlm import families, placement

ANSWER = "{question} look well."
N_FRAMES = 4
VIDEO = "round1_0000.mp4"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    world.write_split(root, "round1", 1, seed=0)
    return root / "round1"


@pytest.fixture
def pairs(videos, tmp_path):
    """Two pairs about one video, and two rows that were dropped."""
    row = {"video": VIDEO, "kind": "spatial", "question": "which shape moves?", "critique": "no."}
    pair = {"chosen": "the red circle.", "rejected": "a square.", "error_types": ["detail_omission"]}
    rows = [
        row | pair | {"id": "a"},
        row | {"id": "b", "dropped": "unchanged"},
        row | pair | {"id": "c", "rejected": "a blue square."},
        row | {"id": "d", "dropped": "no_error_found"},
    ]
    path = tmp_path / "pairs.jsonl"
    common.write_jsonl(path, rows)
    arguments = {"model": str(MODEL), "frames": N_FRAMES}
    meta = {"stage": "refine.py", "finished": True, "root": str(videos), "directory": os.getcwd()}
    meta |= {"arguments": arguments, "prompts": {"answer": ANSWER}}
    common.write_json(common.meta_path(path), meta)
    return path


def run(tool, *arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{tool.__name__}.py", *map(str, arguments)])
    tool.main()


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def edit(path, key, text):
    """Give the first pair another text."""
    rows = common.read_jsonl(path)
    rows[0][key] = text
    common.write_jsonl(path, rows)


def our_text(side):
    """Write the first pair as vlm/families.py's docstring has it: each frame ends its line."""
    n_tokens = placement.read_config(MODEL).image_seq_length
    frames = [f"Frame{n}: <img>{'<IMG_CONTEXT>' * n_tokens}</img>\n" for n in range(1, N_FRAMES + 1)]
    asked = f"<|im_start|>user\n{''.join(frames)}which shape moves? look well.<|im_end|>\n"
    return f"{asked}<|im_start|>assistant\n{side}<|im_end|>"


def our_ids(side):
    """Encode the first pair as dpo.py does."""
    tokenizer = vlm.load_tokenizer(MODEL)
    prefix = families.encode_prefix(tokenizer, placement.read_config(MODEL), N_FRAMES)
    branch = vlm.encode_branch(tokenizer, ANSWER.replace("{question}", "which shape moves?"), side)
    return prefix + branch.prompt + branch.answer


def test_trl_gets_our_tokens(pairs, tmp_path, tokenizer, monkeypatch):
    """Its processor renders the turns by the chat template, and spells each image out."""
    run(export, pairs, tmp_path / "trl", "--to", "trl", monkeypatch=monkeypatch)
    rows = read_lines(tmp_path / "trl" / "metadata.jsonl")
    assert [row["id"] for row in rows] == ["a", "c"]

    template = (tmp_path / "trl" / "chat_template.jinja").read_text(encoding="utf-8")
    turns = rows[0]["prompt"] + rows[0]["chosen"]
    text = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
    n_tokens = placement.read_config(MODEL).image_seq_length
    text = text.replace("<IMG_CONTEXT>", f"<img>{'<IMG_CONTEXT>' * n_tokens}</img>")
    assert text == our_text("the red circle.")  # the tiny tokenizer sees no line ends
    assert tokenizer.encode(text, add_special_tokens=False) == our_ids("the red circle.")

    asked = tokenizer.apply_chat_template(
        rows[0]["prompt"], chat_template=template, tokenize=False, add_generation_prompt=True
    )
    whole = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
    assert whole == asked + "the red circle.<|im_end|>"  # an answer begins where a prompt ends


def test_the_template_for_trl_quotes_what_the_models_own_has():
    """Line ends, quotes and braces of a template's own text come through jinja as they are."""

    class Tokenizer:
        chat_template = "its own"

        def apply_chat_template(self, messages, **_):
            return f"it's \"{{{{ x }}}}\"\n书{messages[0]['content']}\\n'end'\n"

    tokenizer = vlm.load_tokenizer(MODEL)
    turns = [{"role": "user", "content": [{"type": "text", "text": "why?"}]}]
    text = tokenizer.apply_chat_template(
        turns, chat_template=make_template(Tokenizer()), tokenize=False, add_generation_prompt=True
    )
    assert text == "it's \"{{ x }}\"\n书why?\\n'end'\n"


@pytest.mark.parametrize("target", ["ms-swift", "llama-factory"])
def test_a_target_with_chatml_of_its_own_gets_our_text(pairs, tmp_path, tokenizer, target, monkeypatch):
    """ms-swift writes a line end behind each frame, LLaMA-Factory one between two frames."""
    run(export, pairs, tmp_path / "out", "--to", target, monkeypatch=monkeypatch)
    if target == "ms-swift":
        [row, _] = read_lines(tmp_path / "out" / "pairs.jsonl")
        user, chosen = (message["content"] for message in row["messages"])
        rejected, end = row["rejected_response"], "\n"
        assert all(Path(frame).is_absolute() and Path(frame).exists() for frame in row["videos"][0])
    else:
        info = common.read_json(tmp_path / "out" / "dataset_info.json")["videosavi"]
        assert info["ranking"] and info["formatting"] == "sharegpt"
        [row, _] = common.read_json(tmp_path / "out" / info["file_name"])
        columns = info["columns"]
        [user] = [turn["value"] for turn in row[columns["messages"]]]
        chosen, rejected = row[columns["chosen"]]["value"], row[columns["rejected"]]["value"]
        assert all((tmp_path / "out" / frame).exists() for frame in row[columns["videos"]][0])
        end = ""
    n_tokens = placement.read_config(MODEL).image_seq_length
    frames = [f"Frame{n}: <img>{'<IMG_CONTEXT>' * n_tokens}</img>" for n in range(1, N_FRAMES + 1)]
    user = user.replace("<video>", "\n".join(frames) + end)
    for side in (chosen, rejected):
        text = f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{side}<|im_end|>"
        assert text == our_text(side)
        assert tokenizer.encode(text, add_special_tokens=False) == our_ids(side)
    assert (chosen, rejected) == ("the red circle.", "a square.")


def test_the_frames_are_those_that_the_model_saw(pairs, videos, tmp_path, monkeypatch):
    """Of the size that it saw them in, to the last bit; once for all pairs about a video."""
    run(export, pairs, tmp_path / "trl", "--to", "trl", monkeypatch=monkeypatch)
    first, second = read_lines(tmp_path / "trl" / "metadata.jsonl")
    assert first["images_file_names"] == second["images_file_names"]
    written = []
    for name in first["images_file_names"]:
        written.append(cv2.imread(str(tmp_path / "trl" / name))[:, :, ::-1].copy())
    size = placement.read_config(MODEL).vision_config.image_size[0]
    assert written[0].shape == (size, size, 3)
    seen = families.resize(media.sample_frames(videos / VIDEO, N_FRAMES).frames, (size, size))
    assert torch.equal(torch.stack([families.resize(f[None], (size, size))[0] for f in written]), seen)


def test_the_hub_gets_the_record_and_a_card(pairs, tmp_path, monkeypatch, capsys):
    run(export, pairs, tmp_path / "hub", "--to", "hub", monkeypatch=monkeypatch)
    first, _ = read_lines(tmp_path / "hub" / "metadata.jsonl")
    names = ("id", "video", "question", "chosen", "rejected", "critique", "error_types", "prompt")
    assert [first[name] for name in names] == [
        "a", VIDEO, "which shape moves?", "the red circle.", "a square.", "no.", ["detail_omission"],
        "which shape moves? look well.",
    ]  # fmt: skip
    _, front, text = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(front)["size_categories"] == ["n<1K"]
    assert "2 preference pairs about 1 videos" in text
    assert "unchanged 1" in text and "detail_omission 2" in text
    assert str(MODEL) not in text and "shapes/model" in text  # no path of this machine
    assert "license" in capsys.readouterr().out  # it is for the user to fill in


@pytest.mark.parametrize(
    ("target", "key", "text"),
    [
        ("ms-swift", "question", "what does <video> show?"),
        ("ms-swift", "question", "what is in <bbox>?"),
        ("llama-factory", "chosen", "an <image> of it"),
        ("trl", "rejected", "yes<|im_end|>"),
        ("trl", "question", "<IMG_CONTEXT>?"),
    ],
)
def test_a_text_that_a_target_takes_for_more_is_refused(pairs, tmp_path, target, key, text, monkeypatch):
    edit(pairs, key, text)
    with pytest.raises(common.InputError, match="'a'.*would not take <"):
        run(export, pairs, tmp_path / "out", "--to", target, monkeypatch=monkeypatch)
    assert not (tmp_path / "out").exists()


def test_a_video_that_cannot_be_read_costs_its_own_pairs(pairs, tmp_path, monkeypatch, capsys):
    """As in dpo.py; without a video that can be read nothing is written."""
    rows = common.read_jsonl(pairs)
    rows[2]["video"] = "gone.mp4"
    common.write_jsonl(pairs, rows)
    run(export, pairs, tmp_path / "out", "--to", "trl", monkeypatch=monkeypatch)
    assert "left out: 1 pairs, such as 'c'" in capsys.readouterr().out
    assert [row["id"] for row in read_lines(tmp_path / "out" / "metadata.jsonl")] == ["a"]

    rows[0]["video"] = "../round1/" + VIDEO  # not below the root
    common.write_jsonl(pairs, rows)
    with pytest.raises(common.InputError, match="no video of its pairs can be read"):
        run(export, pairs, tmp_path / "none", "--to", "trl", monkeypatch=monkeypatch)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("finished", None, "is unfinished"),
        ("arguments", {"model": None, "frames": 4}, "names no model"),
        ("arguments", {"model": "a/b/c", "frames": 4}, "the model is gone"),
        ("arguments", {"model": str(MODEL), "frames": "x"}, "`frames` is no number"),
        ("root", 5, "its root 5 is not an absolute path"),
    ],
)
def test_a_meta_json_that_does_not_say_how_they_were_made_is_named(pairs, tmp_path, key, value, said, monkeypatch):
    meta = common.read_json(common.meta_path(pairs))
    common.write_json(common.meta_path(pairs), meta | {key: value})
    with pytest.raises(common.InputError, match=said):
        run(export, pairs, tmp_path / "out", "--to", "hub", monkeypatch=monkeypatch)


def test_a_pair_without_a_side_is_named(pairs, tmp_path, monkeypatch):
    rows = common.read_jsonl(pairs)
    del rows[0]["rejected"]
    common.write_jsonl(pairs, rows)
    with pytest.raises(common.InputError, match="line 1: no key 'rejected'"):
        run(export, pairs, tmp_path / "out", "--to", "hub", monkeypatch=monkeypatch)


def test_a_full_disk_leaves_nothing_that_looks_whole(pairs, tmp_path, monkeypatch):
    real = export.write_png
    written = []

    def write(path, frame):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        real(path, frame)

    monkeypatch.setattr(export, "write_png", write)
    with pytest.raises(OSError, match="No space"):
        run(export, pairs, tmp_path / "out", "--to", "trl", monkeypatch=monkeypatch)
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.jsonl", "pairs.jsonl.meta.json"}


def test_what_is_there_is_not_overwritten(pairs, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(common.InputError, match="exists already"):
        run(export, pairs, tmp_path / "out", "--to", "hub", monkeypatch=monkeypatch)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


# ------------------------------------------------------------------------------
# LLaVA-Hound


def hound_row(**changed):
    row = {
        "id": "v_1-0",
        "video": VIDEO,
        "prompt": "<video>\nwhich shape moves?",
        "chosen": "the red circle.",
        "rejected": "a square.",
    }
    return row | changed


def test_hounds_pairs_are_trained_behind_the_question_alone(videos, tmp_path, monkeypatch, capsys):
    """Ids are made unique, equal sides are dropped, a missing video is said; dpo.py reads it."""
    rows = [hound_row(), hound_row(rejected="a blue square."), hound_row(rejected="the red circle.")]
    common.write_jsonl(tmp_path / "17k.jsonl", [*rows, hound_row(video="not_there")])
    target = tmp_path / "hound" / "pairs.jsonl"
    run(hound, tmp_path / "17k.jsonl", target, "--videos", videos, monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert "1 of 2 videos are not below" in said
    assert "rows in 4 = 3 pairs + 1 dropped (unchanged 1)" in said

    argv = ["dpo.py", "--model", str(MODEL), "--input", str(target), "--output", str(tmp_path / "model")]
    monkeypatch.setattr(sys, "argv", argv)
    root, groups, meta = dpo.read_work(dpo.parse_args())
    pairs = [pair for _, group in groups for pair in group]
    assert root == videos
    assert [pair["id"] for pair in pairs] == [f"{VIDEO}/hound/0", f"{VIDEO}/hound/1", "not_there/hound/0"]
    assert {pair["prompt"] for pair in pairs} == {"which shape moves?"}
    assert meta["prompts"]["answer"] == "{question}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: an object is expected"),
        ("{}", "line 2: no key 'video'"),
        (json.dumps(hound_row(chosen=None)), "line 2: 'chosen' is None"),
        (json.dumps(hound_row(prompt="<video>\n")), "line 2: the prompt has no words"),
        (json.dumps(hound_row(video="../x")), "line 2: '../x' is not below"),
        (json.dumps(hound_row(prompt=" ")), "line 2: 'prompt' is ' '"),
        (json.dumps(hound_row(chosen="\ud83d")), "line 2: 'chosen' has .*half of a character"),
    ],
)
def test_a_row_that_is_not_hounds_is_named(videos, tmp_path, line, said, monkeypatch):
    (tmp_path / "17k.jsonl").write_text(json.dumps(hound_row()) + "\n" + line + "\n")
    with pytest.raises(common.InputError, match=said):
        run(hound, tmp_path / "17k.jsonl", tmp_path / "p.jsonl", "--videos", videos, monkeypatch=monkeypatch)
    assert not (tmp_path / "p.jsonl").exists()
