"""The files between the stages: read with care, written a video at a time, gone on with where they stopped."""

import argparse
import json
import multiprocessing
import os
import resource

import pytest

import common
import critique
import generate
import refine


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "line, complaint",
    [
        (b'{"id": "b"', "not JSON"),
        (b'{"id": "\xff"}', "not JSON in UTF-8"),
        (b'["b"]', "an object is expected, not list"),
        (b'{"id": "b", "video": "v"}', "no key 'question', which generate.py writes"),
        (b'{"id": "b", "video": "v", "question": 7}', "'question' has the type int"),
        (b'{"id": "b", "video": "v", "question": "q?", "error_types": ["typo"]}', "unknown error type 'typo'"),
        (b'{"id": "a", "video": "v", "question": "q?"}', "the id 'a' stands twice"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path, line, complaint):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "a", "video": "v", "question": "q?"}\n' + line + b"\n")
    with pytest.raises(common.InputError, match=f"rows.jsonl, line 2: .*{complaint}"):
        common.read_jsonl(path, ("id", "video", "question"))


def test_a_dropped_row_needs_no_more_than_id_and_video(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"id": "a", "video": "v", "dropped": "bad_question"})
    assert len(common.read_jsonl(path, ("id", "video", "question", "initial"))) == 1


ARGS = argparse.Namespace(overwrite=False, max_bad=0.5)
META = {"content": {"seed": 0}, "root": "/videos", "process": 1, "finished": None}
ROWS = [{"id": f"{video}/{n}", "video": video, "text": "ü" * n} for video in ("a", "b", "c") for n in range(3)]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_an_output_cut_anywhere_goes_on_to_the_same_bytes(tmp_path, cut):
    groups = common.group_by_video(ROWS)

    def work(path, limit=None):
        out = common.Output(path, ARGS, META, groups)
        for _, rows in out.left[:limit]:
            out.write(rows)
        return out

    work(tmp_path / "whole").finish("rows")
    work(tmp_path / "torn", 2)
    data = (tmp_path / "torn").read_bytes()
    (tmp_path / "torn").write_bytes(data[:-cut])  # from a torn last line to a whole video and more
    work(tmp_path / "torn").finish("rows")
    assert (tmp_path / "torn").read_bytes() == (tmp_path / "whole").read_bytes()
    assert common.Output(tmp_path / "torn", ARGS, META, groups).finished


def test_other_arguments_than_it_was_begun_with_are_refused(tmp_path):
    groups, other = common.group_by_video(ROWS), META | {"content": {"seed": 1}}
    common.Output(tmp_path / "out", ARGS, META, groups).write(ROWS[:3])
    with pytest.raises(common.InputError, match="begun with seed = 0, now it is 1"):
        common.Output(tmp_path / "out", ARGS, other, groups)
    common.Output(tmp_path / "out", argparse.Namespace(overwrite=True, max_bad=0.5), other, groups).finish("rows")


def test_a_second_process_on_an_output_is_refused_and_the_first_one_named(tmp_path):
    fork, groups = multiprocessing.get_context("fork"), common.group_by_video(ROWS)
    (here, there), go_on = fork.Pipe(), fork.Event()

    def first():
        out = common.Output(tmp_path / "out", ARGS, META | {"process": os.getpid()}, groups)
        there.send(os.getpid())
        go_on.wait()
        out.write(ROWS[:3])

    process = fork.Process(target=first)
    process.start()
    pid = here.recv()
    with pytest.raises(common.InputError, match=f"is being written by process {pid}"):
        common.Output(tmp_path / "out", ARGS, META, groups)
    go_on.set()
    process.join()
    assert (tmp_path / "out").exists()  # the refused one did no harm, and the lock went with its holder
    assert not common.Output(tmp_path / "out", ARGS, META, groups).finished


def test_a_full_disk_leaves_what_can_be_gone_on_with(tmp_path):
    # a limit on a file's size stands in for the disk: the second video does not fit
    groups = common.group_by_video(ROWS)

    def work(path):
        out = common.Output(path, ARGS, META, groups)
        for _, rows in out.left:
            out.write(rows)
        out.finish("rows")

    def child():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
        try:
            work(tmp_path / "full")
        except OSError as error:
            os._exit(error.errno)

    work(tmp_path / "whole")
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert os.strerror(process.exitcode) == "File too large" and 0 < (tmp_path / "full").stat().st_size <= 200
    work(tmp_path / "full")
    assert (tmp_path / "full").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    "line, complaint",
    [(b"no json\n", "line 2: not JSON"), (b'{"id": "z/9", "video": "a"}\n', "line 2: not the row that stood here")],
)
def test_a_spoilt_output_is_not_gone_on_with(tmp_path, line, complaint):
    common.Output(tmp_path / "out", ARGS, META, common.group_by_video(ROWS)).write(ROWS[:3])
    lines = (tmp_path / "out").read_bytes().splitlines(keepends=True)
    (tmp_path / "out").write_bytes(lines[0] + line + lines[2])
    with pytest.raises(common.InputError, match=complaint):
        common.Output(tmp_path / "out", ARGS, META, common.group_by_video(ROWS))
    assert (tmp_path / "out").read_bytes() == lines[0] + line + lines[2]


def test_too_many_unreadable_videos_stop_a_run_also_when_it_is_begun_again(tmp_path):
    groups = [
        (video, [{"id": video, "video": video, "dropped": "unreadable_video", "error": "no such video"}])
        for video in "abcd"
    ]
    out = common.Output(tmp_path / "out", ARGS, META, groups)
    out.write(groups[0][1])
    out.write(groups[1][1])  # two of four are not more than half
    with pytest.raises(common.InputError, match="3 videos are unreadable, more than --max-bad"):
        out.write(groups[2][1])
    out = common.Output(tmp_path / "out", argparse.Namespace(overwrite=False, max_bad=1.0), META, groups)
    for _, rows in out.left:
        out.write(rows)
    assert len(common.read_jsonl(tmp_path / "out")) == 4


def test_an_unfinished_input_is_not_built_upon(tmp_path):
    write(tmp_path / "rows.jsonl", *ROWS)
    common.write_json(common.meta_path(tmp_path / "rows.jsonl"), META | {"stage": "generate.py"})
    with pytest.raises(common.InputError, match="rows.jsonl is unfinished; .* generate.py"):
        common.read_input(
            argparse.Namespace(input=tmp_path / "rows.jsonl", videos=None, shard="0/1", limit=None), ("id",)
        )


@pytest.mark.parametrize("text", [b"", b"\xff", b"[]", b"7", b"{}", b'{"root": 1'])
def test_a_spoilt_meta_json_is_named(tmp_path, text):
    (tmp_path / "rows.jsonl.meta.json").write_bytes(text)
    with pytest.raises(common.InputError, match="rows.jsonl.meta.json: "):
        common.read_json(tmp_path / "rows.jsonl.meta.json", "root")


def test_overwrite_spares_what_no_stage_wrote(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(common.InputError, match="no stage wrote it"):
        common.Output(tmp_path / "mine", argparse.Namespace(overwrite=True, max_bad=0.5), META, [])
    assert (tmp_path / "mine" / "notes.txt").exists()
    for key in ("model", "input"):
        args = argparse.Namespace(
            **{"model": "a", "input": "b", "output": tmp_path / "mine"} | {key: str(tmp_path / "mine")}
        )
        with pytest.raises(common.InputError, match="is what is read, too"):
            common.make_meta(args, [], tmp_path, [])


def test_numbers_that_are_too_low_are_refused_by_name(tmp_path):
    args = {
        "model": "a",
        "input": "b",
        "output": tmp_path / "out",
        "videos_per_step": 1,
        "limit": None,
        "seed": 0,
        "spatial": 0,
        "overwrite": False,
    }
    common.make_meta(argparse.Namespace(**args), [], tmp_path, [])
    for key, value, said in (
        ("videos_per_step", 0, "--videos-per-step 0"),
        ("limit", -1, "--limit -1"),
        ("seed", -1, "--seed -1"),
        ("spatial", -1, "--spatial -1"),
    ):
        with pytest.raises(common.InputError, match=f"{said} is too low"):
            common.make_meta(argparse.Namespace(**args | {key: value}), [], tmp_path, [])


def test_the_fingerprint_of_a_model_follows_its_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = common.fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert common.fingerprint(tmp_path) != before


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The square moves left.\nErrors: factual_inaccuracy", ["factual_inaccuracy"]),
        ("Errors: none", []),
        ("errors: None.", []),
        ("**Errors:** Temporal ordering, Object-Hallucination", ["temporal_ordering", "object_hallucination"]),
        ("I see no errors: the answer is fine.\nErrors: detail_omission", ["detail_omission"]),  # the last one counts
        ("The answer is wrong.", None),
        ("Errors: many", None),
        ("Errors:", None),
    ],
)
def test_the_verdict_is_read_from_the_critique(text, expected):
    assert critique.parse_error_types(text) == expected


def test_which_questions_are_dropped():
    earlier = {"which way does it move?"}
    assert generate.judge_question("Why does it move?", True, earlier) is None
    assert generate.judge_question("Which way does it move?", True, earlier) == "duplicate_question"
    for text, whole in (
        ("Why does it", False),
        ("It moves.", True),
        ("1. Why?\n2. How does it move?", True),
        ("Why?", True),
    ):
        assert generate.judge_question(text, whole, earlier) == "bad_question"


def test_what_makes_a_pair():
    assert refine.judge_critique({"error_types": None}) == "unreadable_critique"
    assert refine.judge_critique({"error_types": []}) == "no_error_found"
    assert refine.judge_critique({"error_types": ["temporal_ordering"]}) is None
    row = {"initial": "It moves left.", "revised": "it moves left"}
    assert refine.judge_revision(row, True) == "unchanged"
    assert refine.judge_revision(row | {"revised": "It moves right."}, True) is None
    assert refine.judge_revision(row | {"revised": "It moves right."}, False) == "truncated"


def test_shards_cover_all_videos_once():
    videos = list("abcdefg")
    shards = [common.take_shard(videos, f"{n}/3") for n in range(3)]
    assert sorted(sum(shards, [])) == videos and shards[1] == ["b", "e"]
    with pytest.raises(common.InputError, match="expected i"):
        common.take_shard(videos, "3/3")
