"""tools.page: what it says of a run stands in the page once, as data that nothing in it can break out of.

What a browser makes of it is tests/test_page_browser.py.
"""

import base64
import gzip
import html.parser
import json
import os
import random
import sys

import cv2
import numpy as np
import pytest

import common
import dpo
import media
import prompts
import vlm
from conftest import MODEL
from shapes import world
from tools import page, page_frames, page_tokens, report_judged

HOSTILE = "</script><script>alert(1)</script><!-- \u2028 &amp; 'which?'"


class Scripts(html.parser.HTMLParser):
    """The scripts of a page as a browser finds them: {id: text}, and how many there are."""

    def __init__(self, text):
        super().__init__()
        self.texts = {}
        self.now = None
        self.n = 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "script":
            self.n += 1
            self.now = dict(attributes).get("id")

    def handle_endtag(self, tag):
        if tag == "script":
            self.now = None

    def handle_data(self, data):
        if self.now:
            self.texts[self.now] = self.texts.get(self.now, "") + data


def make_page(run, *options, monkeypatch):
    """Run the tool -> (what is seen first, the compressed rest), as the browser reads them."""
    monkeypatch.setattr(sys, "argv", ["page.py", str(run), *map(str, options)])
    page.main()
    scripts = Scripts((run / "page.html").read_text(encoding="utf-8"))
    assert scripts.n == 3  # two with data, one with code: no text has made another
    details = gzip.decompress(base64.b64decode(scripts.texts["details"]))
    return json.loads(scripts.texts["page"]), json.loads(details)


def write(output, rows, root, **more):
    """Write an output as a stage does, with its meta.json."""
    output.parent.mkdir(parents=True, exist_ok=True)
    common.write_jsonl(output, rows)
    meta = {"stage": "stage.py", "root": str(root), "directory": os.getcwd(), "commit": "c0ffee11", "finished": None}
    meta["arguments"] = {"model": str(MODEL), "frames": 4, "input": "/secret/place"}
    common.write_json(common.meta_path(output), meta | more)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    world.write_split(root, "round1", 2, seed=0)
    return root / "round1"


@pytest.fixture
def run(videos, tmp_path):
    """A round of two videos with a pair each, a dropped row, and a row that refine.py has not seen."""
    first, second = (f"round1_000{number}.mp4" for number in range(2))
    asked = [
        {
            "id": f"{first}/spatial/0",
            "video": first,
            "kind": "spatial",
            "question": HOSTILE,
            "initial": "it moves left.",
        },
        {"id": f"{first}/spatial/1", "video": first, "kind": "spatial", "question": "no", "dropped": "bad_question"},
        {"id": f"{second}/temporal/0", "video": second, "kind": "temporal", "question": "q", "initial": "it moves up."},
        {"id": f"{second}/temporal/1", "video": second, "kind": "temporal", "question": "q", "initial": "yes"},
    ]
    said = {"critique": "no. errors: factual_inaccuracy", "error_types": ["factual_inaccuracy"]}
    criticised = [asked[0] | said, asked[1], asked[2] | said, asked[3] | said]
    pairs = [asked[1]]
    for row, revised in ((criticised[0], "it moves right."), (criticised[2], "it moves down.")):
        pairs.append(row | {"revised": revised, "chosen": revised, "rejected": row["initial"]})
    directory = tmp_path / "run" / "round1"
    write(directory / "responses.jsonl", asked, videos)
    write(directory / "critiques.jsonl", criticised, videos)
    write(directory / "pairs.jsonl", pairs, videos)
    return tmp_path / "run"


def test_every_row_is_there_once_and_as_its_last_stage_left_it(run, monkeypatch):
    _, details = make_page(run, monkeypatch=monkeypatch)
    rows = [dict(zip((*details["keys"], "became"), row)) for row in details["rows"]["round1"]]
    assert [row["became"] for row in rows] == ["pair", "bad_question", "pair", "not finished"]
    assert rows[0]["question"] == HOSTILE
    assert (rows[2]["initial"], rows[2]["revised"]) == ("it moves up.", "it moves down.")
    assert rows[3]["critique"] == "no. errors: factual_inaccuracy"
    assert rows[3]["revised"] is None


def test_the_page_names_no_path_beyond_the_videos_own(run, videos, monkeypatch):
    seen_first, details = make_page(run, monkeypatch=monkeypatch)
    text = json.dumps([seen_first, details])
    for path in (videos, run, MODEL, os.getcwd(), "/secret/place"):
        assert str(path) not in text
    assert "shapes/model" in text  # a model is named by its last two parts


def test_the_strip_has_the_frames_that_the_model_saw(run, videos, monkeypatch):
    _, details = make_page(run, monkeypatch=monkeypatch)
    strip = details["strips"]["round1/round1_0000.mp4"]
    data = base64.b64decode(strip.removeprefix("data:image/jpeg;base64,"))
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    frames = media.sample_frames(videos / "round1_0000.mp4", 4).frames
    edge = page_frames.HEIGHT
    for number, frame in enumerate(frames):
        part = shown[:, number * edge : (number + 1) * edge]
        expected = cv2.resize(frame, (edge, edge), interpolation=cv2.INTER_AREA)
        assert np.abs(part.astype(int) - expected).mean() < 6  # of 255: JPEG, and another way to shrink


def test_a_video_outside_of_the_root_is_not_read(run, videos, tmp_path, monkeypatch):
    """A row that names a file elsewhere gets no picture of it, and the page says why."""
    outside = tmp_path / "private.mp4"
    outside.write_bytes((videos / "round1_0000.mp4").read_bytes())
    name = os.path.relpath(outside, videos)
    rows = [{"id": "a", "video": name}, {"id": "b", "video": str(outside)}]
    write(run / "round1" / "responses.jsonl", rows, videos)
    for name in ("critiques.jsonl", "pairs.jsonl"):
        (run / "round1" / name).unlink()
    seen_first, details = make_page(run, monkeypatch=monkeypatch)
    assert details["strips"] == {}
    assert all("is not below the videos' root" in line for line in seen_first["why_no_frames"])


def test_half_a_run_makes_half_a_page(run, videos, monkeypatch):
    (run / "round1" / "pairs.jsonl").unlink()
    with (run / "round1" / "critiques.jsonl").open("a") as file:
        file.write('{"id": "half')
    _, details = make_page(run, monkeypatch=monkeypatch)
    assert [row[-1] for row in details["rows"]["round1"]] == ["not finished", "bad_question", *["not finished"] * 2]

    # A round alone is a run of one round
    seen_first, _ = make_page(run / "round1", monkeypatch=monkeypatch)
    assert seen_first["run"]["columns"] == ["round1"]


def test_nothing_is_refused_with_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["page.py", str(tmp_path)])
    with pytest.raises(common.InputError, match="neither base/ nor round"):
        page.main()


def test_answers_before_and_after_stand_side_by_side(run, monkeypatch, videos):
    item = {
        "video": "round1_0000.mp4",
        "benchmark": "b",
        "question": "what moves?",
        "options": ["it", "he"],
        "answer": 0,
    }
    before = [
        item | {"id": "1", "initial": "he", "correct": False},
        item | {"id": "2", "initial": "it", "correct": True},
    ]
    after = [item | {"id": "1", "initial": "it", "correct": True}]  # it is still being scored
    write(run / "base" / "eval" / "predictions.jsonl", before, videos)
    write(run / "round1" / "eval" / "predictions.jsonl", after, videos)
    _, details = make_page(run, monkeypatch=monkeypatch)
    assert details["answers"] == {
        "columns": ["base", "round1"],
        "questions": [
            ["1", "round1_0000.mp4", "what moves?", "it", [["he", False], ["it", True]]],
            ["2", "round1_0000.mp4", "what moves?", "it", [["it", True], None]],
        ],
    }


def test_each_plot_has_a_sentence_of_the_glossary(run, monkeypatch):
    steps = [{"step": number, "loss": 1 / number, "grad_norm": 1.0} for number in (1, 2)]
    (run / "round1" / "model").mkdir()
    common.write_jsonl(run / "round1" / "model" / "metrics.jsonl", steps)
    seen_first, _ = make_page(run, monkeypatch=monkeypatch)
    assert [plot["column"] for plot in seen_first["training"]] == ["loss", "grad_norm"]
    [loss, norm] = seen_first["training"]
    assert loss["lines"] == [{"name": "round1", "points": [[1, 1.0], [2, 0.5]]}]
    assert norm["meaning"] == "norm of the gradient, before it is clipped to --max-grad-norm"
    assert set(page.PLOTTED) <= set(page.read_glossary())


# ------------------------------------------------------------------------------
# Tokens


def test_the_packed_sequence_is_drawn_as_pack_masks_it(run, tokenizer):
    """The last branch sees the video and itself, and none of the branches between."""
    packed = page_tokens.draw_packed([run / "round1"])
    owners = [owner for _, owner in packed["tokens"]]
    texts = [text for text, _ in packed["tokens"]]
    assert sorted(set(owners)) == [-1, 0, 1]  # a video with one pair has two branches
    assert "16 visual tokens" in texts
    n_video = owners.count(-1)
    first_of_last = owners.index(1)
    last = len(owners) - 1
    assert packed["sees"][last] == [[0, n_video - 1], [first_of_last, last]]
    assert packed["sees"][n_video - 1] == [[0, n_video - 1]]
    assert packed["sees"][0] == [[0, 0]]


def test_tokens_moved_as_far_as_the_answers_log_probs(run, videos, model, tokenizer, tmp_path):
    """Their log-probs add up to those of the whole answers, which dpo.py's own function computes."""
    pairs = [row for row in common.read_jsonl(run / "round1" / "pairs.jsonl") if "chosen" in row]
    scored = page_tokens.score(MODEL, run / "round1" / "pairs.jsonl", pairs)
    for pair in pairs:
        frames = media.sample_frames(videos / pair["video"], 4).frames
        asked = pair | {"prompt": prompts.fill(prompts.DEFAULT.answer, question=pair["question"])}
        sums, _ = dpo.pair_logps(model, tokenizer, vlm.Video(model, tokenizer, frames), [asked])
        for tokens, whole in zip(scored[pair["id"]], sums[:, 0].tolist()):
            assert sum(logp for _, logp in tokens) == pytest.approx(whole, abs=1e-3)


# ------------------------------------------------------------------------------
# Judging by hand


def test_the_place_of_chosen_is_drawn(run):
    pairs = [{"id": str(n), "video": "v", "question": "q", "chosen": "c", "rejected": "r"} for n in range(100)]
    listed = page.list_to_judge(pairs, random.Random(0))
    assert all(answers[place] == "c" and answers[1 - place] == "r" for _, _, _, answers, place, _ in listed)
    assert 30 < sum(place for *_, place, _ in listed) < 70  # a fair coin falls outside once in 10,000 draws


def test_a_judgement_is_of_two_answers_and_not_of_an_id():
    """A run that is made anew has the same ids, and other answers."""
    pair = {"id": "a", "video": "v", "question": "q", "chosen": "c", "rejected": "r"}
    prints = [page.list_to_judge([pair | new], random.Random(0))[0][-1] for new in ({}, {}, {"chosen": "d"})]
    assert prints[0] == prints[1] != prints[2]


def test_judgements_are_counted_by_hand(run):
    pairs = [row for row in common.read_jsonl(run / "round1" / "pairs.jsonl") if "chosen" in row]
    judged = run / "round1" / "judged.jsonl"
    common.write_jsonl(judged, [{"id": pairs[0]["id"], "better": "chosen"}, {"id": pairs[1]["id"], "better": None}])
    lines = report_judged.list_judged([run / "round1"])
    assert lines[0].startswith("round1, judged by hand: 2 pairs, chosen is better in 1, rejected in 0, cannot tell 1")
    assert "share 1.00" in lines[0]
    assert lines[1].startswith("  factual_inaccuracy: 2 pairs")


@pytest.mark.parametrize(
    "row, complaint",
    [({"id": "x", "better": "chosen"}, "'x' is no pair"), ({"id": "x", "better": "left"}, "line 1: `better` is")],
)
def test_what_is_no_judgement_is_refused_by_line(run, row, complaint):
    common.write_jsonl(run / "round1" / "judged.jsonl", [row])
    with pytest.raises(common.InputError, match=complaint):
        report_judged.list_judged([run / "round1"])
