"""The files between the stages: checked when they are read, written a video at a time, resumed where they stopped."""

import argparse
import errno
import itertools
import json
import multiprocessing
import os
import resource
import shutil
from collections import deque

import filelock
import pytest

import common
import generate
import outputs
import prompts
import refine
from conftest import MODEL


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ------------------------------------------------------------------------------
# What is read


@pytest.mark.parametrize(
    "line, complaint",
    [
        (b'{"id": "b"', "not JSON"),
        (b'{"id": "\xff"}', "not JSON in UTF-8"),
        # Half of a surrogate pair, at any depth: legal JSON, but no text
        (rb'{"id": "b", "video": "\ud83d.mp4"}', r"'video' has \\ud83d, half of a character"),
        (rb'{"id": "b", "options": [{"a": "\udc00"}]}', r"'options' has \\udc00, half"),
        (rb'{"id": "b", "\ud83d": 1}', r"has \\ud83d, half"),
        (b'["b"]', "an object is expected, not list"),
        (b'{"id": "b", "video": "v"}', "no key 'question', which generate.py writes"),
        (b'{"id": "b", "video": "v", "question": 7}', "'question' has the type int"),
        (b'{"id": "b", "video": "v", "question": "q?", "error_types": ["typo"]}', "unknown error type 'typo'"),
        (b'{"id": "b", "video": "v", "question": "q?", "error_types": [["typo"]]}', "unknown error type "),
        (b'{"id": "a", "video": "v", "question": "q?"}', "duplicate id 'a'"),
    ],
)
def test_a_bad_row_is_named_with_its_file_and_line(tmp_path, line, complaint):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "a", "video": "v", "question": "q?"}\n' + line + b"\n")
    with pytest.raises(common.InputError, match=f"rows.jsonl, line 2(, column .*)?: .*{complaint}") as refusal:
        needed = () if "half" in complaint else ("id", "video", "question")
        common.read_jsonl(path, needed, error_types=prompts.ERROR_TYPES)
    assert str(refusal.value).count("line") == 1


def test_broken_json_is_named_with_line_and_column(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a"}\n{"id" "b"}\n')
    with pytest.raises(common.InputError) as refusal:
        common.read_jsonl(path)
    assert str(refusal.value) == f"{path}, line 2, column 7: not JSON in UTF-8 (Expecting ':' delimiter)"


def test_a_whole_surrogate_pair_is_a_character(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(rb'{"id": "\ud83d\ude00"}')
    assert common.read_jsonl(path) == [{"id": "\U0001f600"}]


def test_half_a_character_in_a_json_file_is_refused(tmp_path):
    path = tmp_path / "questions.json"
    path.write_bytes(rb'[{"question": "why \ud83d?"}]')
    with pytest.raises(common.InputError, match=r"questions.json: it has \\ud83d, half of a character"):
        common.read_json(path)


def test_an_incomplete_last_line_is_skipped_only_where_that_is_asked_for(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a"}\n{"id": "b"')
    assert common.read_jsonl(path, incomplete=True) == [{"id": "a"}]
    with pytest.raises(common.InputError, match="rows.jsonl, line 2, column 1.: not JSON"):
        common.read_jsonl(path)


def test_a_dropped_row_needs_only_id_and_video(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", {"id": "a", "video": "v", "dropped": "bad_question"})
    assert len(common.read_jsonl(path, ("id", "video", "question", "initial"))) == 1


def test_an_unfinished_input_is_refused(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", *ROWS)
    common.write_json(common.meta_path(path), META | {"stage": "generate.py"})
    args = argparse.Namespace(input=path, videos=None)
    with pytest.raises(common.InputError, match="rows.jsonl is unfinished; .* generate.py"):
        common.read_input(args.input, args.videos, ("id",))


@pytest.mark.parametrize("text", [b"", b"\xff", b"[]", b"7", b"{}", b'{"root": 1'])
def test_a_damaged_meta_json_is_named(tmp_path, text):
    path = tmp_path / "rows.jsonl.meta.json"
    path.write_bytes(text)
    with pytest.raises(common.InputError, match="rows.jsonl.meta.json: "):
        common.read_keys(path, "root")


def test_a_missing_json_file_is_named_in_words(tmp_path):
    with pytest.raises(common.InputError) as refusal:
        common.read_json(tmp_path / "config.json")
    assert str(refusal.value) == f"{tmp_path}/config.json: No such file or directory"


def take_shard(videos, shard, videos_per_batch=1):
    return common.take_shard(videos, argparse.Namespace(shard=shard, videos_per_batch=videos_per_batch))


def test_shards_cover_all_videos_once():
    videos = list("abcdefg")
    shards = [take_shard(videos, f"{number}/3") for number in range(3)]
    assert shards == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
    with pytest.raises(common.InputError, match="expected I/N with I < N"):
        take_shard(videos, "3/3")
    with pytest.raises(common.InputError, match="only 7 batches of 1 videos, so this shard has none; make it 7 "):
        take_shard(videos, "7/8")


# ------------------------------------------------------------------------------
# An output resumes

ARGS = argparse.Namespace(overwrite=False, max_bad=0.5, videos_per_batch=1)
OVERWRITE = argparse.Namespace(overwrite=True, max_bad=0.5, videos_per_batch=1)
META = {"stage": "stage.py", "content": {"seed": 0}, "root": "/videos", "process": 1, "finished": None}


def make_rows():
    """Make three rows about each of three videos; their texts take two bytes a letter."""
    rows = []
    for video in ("a", "b", "c"):
        for number in range(3):
            rows.append({"id": f"{video}/{number}", "video": video, "text": "ü" * number})
    return rows


ROWS = make_rows()
GROUPS = common.group_by_video(ROWS)


def write_output(path, n_videos=None):
    """Write the rows of the next n_videos (default: all that are left), as a stage does."""
    out = outputs.Output(path, ARGS, META, GROUPS)
    for [(_, rows)] in itertools.islice(out.left, n_videos):
        out.write(rows)
    return out


def run_in_child(work):
    """Run a function in a process of its own -> the process."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_an_output_cut_off_anywhere_resumes_to_the_same_bytes(tmp_path, cut):
    write_output(tmp_path / "whole").finish("rows")
    path = tmp_path / "incomplete"
    write_output(path, 2)
    data = path.read_bytes()
    path.write_bytes(data[:-cut])  # from a last line without its end to a whole video and more

    write_output(path).finish("rows")
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()
    assert outputs.Output(path, ARGS, META, GROUPS).finished


def test_a_second_process_is_refused_and_the_first_one_named(tmp_path):
    path = tmp_path / "out"
    here, there = multiprocessing.Pipe()
    may_write = multiprocessing.get_context("fork").Event()

    def first():
        out = outputs.Output(path, ARGS, META | {"process": os.getpid()}, GROUPS)
        there.send(os.getpid())
        may_write.wait()
        out.write(ROWS[:3])

    process = run_in_child(first)
    pid = here.recv()
    with pytest.raises(common.InputError, match=f"is being written by process {pid}"):
        outputs.Output(path, ARGS, META, GROUPS)
    may_write.set()
    process.join()

    # The refused one did no harm, and the lock ended with its holder
    assert path.exists()
    assert not outputs.Output(path, ARGS, META, GROUPS).finished


def test_after_a_full_disk_an_output_resumes(tmp_path):
    # A limit on the size of a file stands in for the disk: the second video does not fit
    path = tmp_path / "full"

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
        try:
            write_output(path).finish("rows")
        except OSError as error:
            os._exit(error.errno)

    process = run_in_child(fill)
    process.join()
    assert os.strerror(process.exitcode) == "File too large"
    assert 0 < path.stat().st_size <= 200

    write_output(path).finish("rows")
    write_output(tmp_path / "whole").finish("rows")
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    "line, complaint",
    [
        (b"not json\n", "line 2, column 1: not JSON"),
        (b'{"id": "z/9", "video": "a"}\n', "line 2: not the row that belongs here"),
        (b'{"id": "a/1", "video": "b"}\n', "line 2: not the row that belongs here"),  # the id of a row, another video
    ],
)
def test_a_damaged_output_is_refused_and_left_as_it_is(tmp_path, line, complaint):
    path = tmp_path / "out"
    write_output(path, 1)
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = lines[0] + line + lines[2]
    path.write_bytes(damaged)
    with pytest.raises(common.InputError, match=complaint):
        outputs.Output(path, ARGS, META, GROUPS)
    assert path.read_bytes() == damaged


def unreadable(video):
    """The group of a video with one row, which cannot be read."""
    return video, [{"id": video, "video": video, "dropped": "unreadable_video", "error": f"{video}: no such video"}]


def test_too_many_unreadable_videos_stop_a_run(tmp_path):
    groups = [("a", [{"id": "a", "video": "a"}]), *(unreadable(video) for video in "bcdef")]
    out = outputs.Output(tmp_path / "out", ARGS, META, groups)
    for _, rows in groups[:4]:
        out.write(rows)  # three of six are not more than half
    with pytest.raises(common.InputError, match="4 videos are unreadable, more than --max-bad allows"):
        out.write(groups[4][1])

    # With a higher share the same output is resumed
    tolerant = argparse.Namespace(overwrite=False, max_bad=1.0, videos_per_batch=1)
    out = outputs.Output(tmp_path / "out", tolerant, META, groups)
    for [(_, rows)] in out.left:
        out.write(rows)
    assert len(common.read_jsonl(tmp_path / "out")) == 6


def test_where_no_video_can_be_read_nothing_is_kept_that_blocks_the_corrected_command(tmp_path):
    groups = [unreadable(video) for video in "abcd"]
    out = outputs.Output(tmp_path / "out", ARGS, META, groups)
    out.write(groups[0][1])
    out.write(groups[1][1])
    with pytest.raises(common.InputError, match="none of the first 3 videos .*: a: no such video. Nothing is kept"):
        out.write(groups[2][1])
    assert {path.name for path in tmp_path.iterdir()} <= {".out.lock", ".out.process"}
    write_output(tmp_path / "out").finish("rows")


def test_what_is_overwritten_stays_until_something_takes_its_place(tmp_path):
    write_output(tmp_path / "out").finish("rows")
    files = (tmp_path / "out", common.meta_path(tmp_path / "out"))
    before = [path.read_bytes() for path in files]
    overwriting = argparse.Namespace(overwrite=True, max_bad=0.5, videos_per_batch=1)
    other = META | {"content": {"seed": 1}}

    outputs.Output(tmp_path / "out", overwriting, other, GROUPS)  # and then the model cannot be loaded
    assert [path.read_bytes() for path in files] == before
    out = outputs.Output(tmp_path / "out", overwriting, other, [unreadable("a")])
    with pytest.raises(common.InputError, match="none of the first 1 videos can be read"):
        for [(_, rows)] in out.left:
            out.write(rows)
    assert [path.read_bytes() for path in files] == before

    out = outputs.Output(tmp_path / "out", overwriting, other, GROUPS)
    out.write(GROUPS[0][1])
    assert common.read_jsonl(tmp_path / "out") == GROUPS[0][1]
    assert common.read_keys(files[1], "content", "finished") == [{"seed": 1}, None]


def test_an_output_that_cannot_be_written_is_no_command_to_resume(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(common.InputError, match="--output .*file/out cannot be written: .*file: File exists"):
        outputs.Output(tmp_path / "file" / "out", ARGS, META, GROUPS)


def test_rows_and_the_videos_of_an_input_are_looked_for_before_work_begins(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("")
    args = argparse.Namespace(input=path, videos=str(tmp_path / "rond1"))
    with pytest.raises(common.InputError, match="rows.jsonl has no rows"):
        common.read_input(args.input, args.videos, ("id", "video"))
    common.write_jsonl(path, [{"id": "a", "video": "a.mp4"}])
    with pytest.raises(common.InputError, match="rond1: no such directory; --videos DIR"):
        common.read_input(args.input, args.videos, ("id", "video"))


def test_where_the_videos_are_is_an_absolute_path(tmp_path, monkeypatch):
    # The next stage may be started from another directory, so "videos" alone would be lost on it
    path = write_rows(tmp_path / "rows.jsonl", *ROWS)
    (tmp_path / "videos").mkdir()
    monkeypatch.chdir(tmp_path)
    root, _ = common.read_input(path, "videos", ("id",))
    assert root == tmp_path / "videos"

    common.write_json(common.meta_path(path), {"root": "videos", "stage": "mine.py", "finished": True})
    with pytest.raises(common.InputError, match="its root videos is not an absolute path; say it with --videos DIR"):
        common.read_input(path, None, ("id",))


def test_an_input_whose_rows_were_all_dropped_is_refused(tmp_path):
    drops = [{"id": name, "video": name, "dropped": "bad_question"} for name in "ab"]
    with pytest.raises(common.InputError, match=r"in.jsonl: all 2 rows are dropped already \(bad_question 2\)"):
        common.check_rows_are_left("in.jsonl", common.group_by_video(drops))
    common.check_rows_are_left("in.jsonl", common.group_by_video([*drops, {"id": "c", "video": "a"}]))


def test_an_output_without_a_pair_is_finished_and_ends_with_an_error_each_time(tmp_path):
    groups = [("a", [{"id": "a/0", "video": "a"}])]
    for attempt in ("first", "again"):
        with pytest.raises(common.InputError, match=r"out: rows in 1 = 0 pairs \+ 1 dropped \(unchanged 1\)"):
            out = outputs.Output(tmp_path / "out", ARGS, META, groups)
            assert attempt == "first"
            out.write([groups[0][1][0] | {"dropped": "unchanged"}])
            out.finish("pairs")
        [finished] = common.read_keys(common.meta_path(tmp_path / "out"), "finished")
        assert finished["kept"] == 0


def test_a_finished_output_on_a_read_only_disk_is_known_as_finished(tmp_path, monkeypatch):
    write_output(tmp_path / "whole").finish("rows")
    write_output(tmp_path / "half", 1)

    def read_only(_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), ".whole.lock")

    monkeypatch.setattr(filelock.FileLock, "acquire", read_only)
    assert outputs.Output(tmp_path / "whole", ARGS, META, GROUPS).finished
    with pytest.raises(OSError, match="Read-only"):
        outputs.Output(tmp_path / "half", ARGS, META, GROUPS)
    with pytest.raises(OSError, match="Read-only"):
        outputs.Output(tmp_path / "whole", OVERWRITE, META, GROUPS)


def test_a_process_that_overwrites_is_named_before_it_has_written(tmp_path):
    # Until then meta.json is that of the old output, whose process, 1, ended long ago
    path = tmp_path / "out"
    write_output(path).finish("rows")
    here, there = multiprocessing.Pipe()
    may_end = multiprocessing.get_context("fork").Event()

    def overwrite():
        out = outputs.Output(path, OVERWRITE, META, GROUPS)
        there.send(os.getpid())
        may_end.wait()
        assert out.replaces

    process = run_in_child(overwrite)
    pid = here.recv()
    try:
        with pytest.raises(common.InputError, match=f"is being written by process {pid}$"):
            outputs.Output(path, OVERWRITE, META, GROUPS)
    finally:
        may_end.set()
        process.join()


# ------------------------------------------------------------------------------
# Videos that can be read later


def drop(rows):
    """The rows of a video as they are where it cannot be read."""
    return [row | {"dropped": "unreadable_video", "error": "moved"} for row in rows]


@pytest.mark.parametrize("stopped_after", [0, 1, 2])
def test_unreadable_videos_are_done_again_and_the_bytes_are_those_of_a_fresh_run(tmp_path, stopped_after, capsys):
    # Of the videos a, b and c, the first two could not be read
    path = tmp_path / "out"
    tolerant = argparse.Namespace(overwrite=False, max_bad=1.0, videos_per_batch=1)
    out = outputs.Output(path, tolerant, META, GROUPS)
    out.write(drop(ROWS[:3]))
    out.write(drop(ROWS[3:6]))
    out.write(ROWS[6:])
    out.finish("rows")
    assert "2 videos are unreadable; --retry-unreadable reads them again" in capsys.readouterr().out
    assert outputs.Output(path, tolerant, META, GROUPS).finished  # nobody asked for it

    again = ("unreadable_video",)
    out = outputs.Output(path, tolerant, META, GROUPS, again)
    assert out.awaited == deque([0, 1])
    for [(_, rows)] in itertools.islice(out.left, stopped_after):
        out.write(rows)  # behind c, and then the process is killed

    out = outputs.Output(path, tolerant, META, GROUPS, again)
    for [(_, rows)] in out.left:
        out.write(rows)
    out.finish("rows")
    write_output(tmp_path / "fresh").finish("rows")
    assert path.read_bytes() == (tmp_path / "fresh").read_bytes()
    assert outputs.Output(path, tolerant, META, GROUPS, again).finished


def test_what_an_earlier_stage_could_not_read_is_not_read_again(tmp_path):
    groups = [unreadable("a"), ("b", [{"id": "b", "video": "b"}])]
    out = outputs.Output(tmp_path / "out", ARGS, META, groups)
    for _, rows in groups:
        out.write(rows)
    out.finish("rows")
    assert outputs.Output(tmp_path / "out", ARGS, META, groups, ("unreadable_video",)).finished


# ------------------------------------------------------------------------------
# What does not belong to an output is refused, in words that a user knows

BEGUN = META | {
    "arguments": {"model": "a/model", "input": "a.jsonl"},
    "content": {"seed": 0, "limit": None, "model": "01", "prompts": "02", "inputs": "03"},
}


@pytest.mark.parametrize(
    "arguments, content, difference",
    [
        ({}, {"seed": 1}, "begun with --seed 0, now it is with --seed 1"),
        ({}, {"limit": 5}, "begun without --limit, now it is with --limit 5"),
        ({"model": "b/model"}, {"model": "11"}, "made from another model: a/model then, b/model now"),
        ({}, {"model": "11"}, "made before the files of its model changed (a/model)"),
        ({"input": "b.jsonl"}, {"inputs": "13"}, "made from another input: a.jsonl then, b.jsonl now"),
        ({}, {"inputs": "13"}, "made before the files of its input changed (a.jsonl)"),
        ({"input": ["a", "b"]}, {"inputs": "13"}, "made from another input: a.jsonl then, a b now"),
        ({}, {"prompts": "12"}, "made with other prompts than the stage has now"),
        # Other questions to evaluate.py make other prompts: it is the input that a user knows
        (
            {"input": "b.jsonl"},
            {"prompts": "12", "inputs": "13"},
            "made from another input: a.jsonl then, b.jsonl now",
        ),
    ],
)
def test_what_would_change_an_output_is_refused_by_name(tmp_path, arguments, content, difference):
    path = tmp_path / "out"
    out = outputs.Output(path, ARGS, BEGUN, GROUPS)
    out.write(ROWS[:3])
    out.write(ROWS[3:6])
    before = path.read_bytes()
    changed = BEGUN | {"arguments": BEGUN["arguments"] | arguments, "content": BEGUN["content"] | content}
    with pytest.raises(common.InputError) as refusal:
        outputs.Output(path, ARGS, changed, GROUPS)
    assert str(refusal.value) == f"{path} was {difference}; --overwrite starts anew"
    assert path.read_bytes() == before

    out = outputs.Output(path, OVERWRITE, changed, GROUPS)
    out.write(ROWS[:3])
    assert common.read_jsonl(path) == ROWS[:3]


def test_overwrite_spares_what_no_stage_wrote(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(common.InputError, match="no stage wrote it"):
        outputs.Output(mine, OVERWRITE, META, [])
    assert (mine / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("option", ["model", "input"])
def test_an_output_that_is_also_an_input_is_refused(tmp_path, option):
    options = {"model": "a", "input": "b", "output": tmp_path / "mine"}
    options[option] = str(tmp_path / "mine")
    with pytest.raises(common.InputError, match="is also an input; choose another"):
        common.make_meta(argparse.Namespace(**options), [], {}, tmp_path, [])


def test_a_model_is_what_is_loaded_not_what_lies_beside_it(tmp_path):
    shutil.copytree(MODEL, tmp_path, dirs_exist_ok=True)
    before = common.fingerprint(tmp_path)
    for name in ("responses.jsonl.meta.json", "results.json", "notes.jinja", "training.json"):
        (tmp_path / name).write_text("{}")
    assert common.fingerprint(tmp_path) == before

    seen = {before}
    named = tmp_path / "additional_chat_templates" / "rag.jinja"
    named.parent.mkdir()
    for path in (tmp_path / "config.json", tmp_path / "tokenizer.json", tmp_path / "chat_template.jinja", named):
        with path.open("a") as file:
            file.write("\n")
        seen.add(common.fingerprint(tmp_path))
    assert len(seen) == 5


def test_without_git_the_commit_is_null(monkeypatch):
    assert len(common.read_commit()) == 40
    monkeypatch.setenv("PATH", "")
    assert common.read_commit() is None


def test_a_relative_path_from_another_directory_is_another_path(tmp_path):
    begun = BEGUN | {"directory": "/here"}
    write_output_of(tmp_path / "out", begun)
    now = begun | {"directory": "/there", "content": begun["content"] | {"model": "11"}}
    with pytest.raises(common.InputError, match="another model: /here/a/model then, /there/a/model now"):
        outputs.Output(tmp_path / "out", ARGS, now, GROUPS)


def write_output_of(path, meta):
    """Begin an output, as the run that meta describes."""
    out = outputs.Output(path, ARGS, meta, GROUPS)
    out.write(ROWS[:3])


def test_the_fingerprint_of_a_model_follows_its_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = common.fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert common.fingerprint(tmp_path) != before


# ------------------------------------------------------------------------------
# What a stage decides: verdicts, drops and pairs


FACT, ORDER, PLACE = "factual_inaccuracy", "temporal_ordering", "spatial_relationship"
OBJECT, CAUSE, DETAIL = "object_hallucination", "causal_reasoning", "detail_omission"


@pytest.mark.parametrize(
    "text, expected",
    [
        # As it was asked for
        ("The square moves left.\nErrors: factual_inaccuracy", [FACT]),
        ("the square moves left. errors: factual_inaccuracy", [FACT]),
        ("Errors: detail_omission, factual_inaccuracy and causal_reasoning", [FACT, CAUSE, DETAIL]),
        ("Errors: none", []),
        # Case, and other ways to write the name of a type
        ("ERRORS: Temporal ordering, Object-Hallucination", [ORDER, OBJECT]),
        (r"Errors: factual\_inaccuracy", [FACT]),
        ("Errors: object hallucinations, detail omissions", [OBJECT, DETAIL]),
        ("Error: causal_reasoning", [CAUSE]),
        ("Errors : causal_reasoning", [CAUSE]),
        ("Errors\uff1acausal_reasoning", [CAUSE]),
        # Markdown and brackets
        ("**Errors:** factual_inaccuracy", [FACT]),
        ("**Errors**: factual_inaccuracy", [FACT]),
        ("__Errors__: _factual_inaccuracy_", [FACT]),
        ("*Errors: none*", []),
        ("`Errors: factual_inaccuracy`", [FACT]),
        ("### Errors: `factual_inaccuracy`", [FACT]),
        ("- Errors: none", []),
        ("2. Errors: causal_reasoning", [CAUSE]),
        ("[Errors: [factual_inaccuracy]]", [FACT]),
        ('{"errors": ["factual_inaccuracy"]}', [FACT]),
        # A list below the heading
        ("Errors:\n- factual_inaccuracy\n- detail_omission", [FACT, DETAIL]),
        ("**Errors:**\n\n1. factual_inaccuracy (it is red)\n2. detail_omission", [FACT, DETAIL]),
        ("Errors:\nfactual_inaccuracy\ncausal_reasoning", [FACT, CAUSE]),
        ("Errors:\n- none", []),
        ("Errors: causal_reasoning\nThe spatial_relationship is right.", [CAUSE]),
        # None, in other words
        ("errors: None.", []),
        ("Errors: no errors.", []),
        ("Errors: No error found", []),
        ("Errors: N/A", []),
        ("Errors: nothing", []),
        ("Errors: no.", []),
        ("Errors: none (no factual_inaccuracy)", []),
        ("Errors: none. The causal_reasoning is fine.", []),
        ("The answer is right. No errors.", []),
        # Types that are denied
        ("Errors: temporal_ordering, not causal_reasoning", [ORDER]),
        ("Errors: temporal_ordering (no causal_reasoning problem)", [ORDER]),
        ("Errors: not causal_reasoning but temporal_ordering", [ORDER]),
        ("Errors: it isn't causal_reasoning; temporal_ordering", [ORDER]),
        ("Errors:\n- factual_inaccuracy: none\n- temporal_ordering: the hit comes first", [ORDER]),
        ("Errors: the answer does not name the circle: detail_omission", [DETAIL]),
        ("Errors: there is no circle - object_hallucination", [OBJECT]),
        # What is a verdict, and what is not; the last one counts
        ("Errors: none\nOn a second look:\nErrors: detail_omission", [DETAIL]),
        ("Errors: detail_omission\nErrors: none", []),
        ("I see no errors: the answer is fine.\nErrors: detail_omission", [DETAIL]),
        ("Errors: spatial_relationship\nWhat to do about the errors: see above.", [PLACE]),
        ("<think>Errors: none</think>Errors: causal_reasoning", [CAUSE]),
        ("Errors: causal_reasoning\n<think>Errors: none\nno errors.</think>", [CAUSE]),
        ("perhaps\nErrors: none</think>\nErrors: causal_reasoning", [CAUSE]),
        # Unreadable
        ("The answer is wrong.", None),
        ("Errors: many", None),
        ("Errors:", None),
        ("Errors: wrong_color", None),
        ("Errors: nonexistent", None),
        ("Errors: not causal_reasoning", None),  # it says nothing of the other types
        ("Errors: no temporal_ordering problem", None),
        ("There are no errors in the first half.", None),
        ("<think>Errors: none", None),  # cut off while it thought
        ("", None),
    ],
)
def test_the_verdict_is_read_from_the_critique(text, expected):
    assert prompts.parse_error_types(text) == expected


def test_a_type_whose_name_is_part_of_another_is_told_from_it():
    types = [*prompts.ERROR_TYPES, "omission", "object"]
    assert prompts.parse_error_types("Errors: detail_omission", types) == ["detail_omission"]
    assert prompts.parse_error_types("Errors: omission", types) == ["omission"]
    assert prompts.parse_error_types("Errors: omission, detail_omission", types) == ["detail_omission", "omission"]
    assert prompts.parse_error_types("Errors: object_hallucination", types) == ["object_hallucination"]
    assert prompts.parse_error_types("Errors: emission", types) is None


@pytest.mark.parametrize(
    "text, whole, reason",
    [
        ("Why does it move?", True, None),
        ("Which way does it move?", True, "duplicate_question"),
        ("Why does it", False, "bad_question"),
        ("It moves.", True, "bad_question"),
        ("1. Why?\n2. How does it move?", True, "bad_question"),
        ("Why?", True, "bad_question"),
    ],
)
def test_which_questions_are_dropped(text, whole, reason):
    earlier = {"which way does it move?"}
    assert generate.judge_question(text, whole, earlier) == reason


def test_only_an_answer_with_an_error_is_revised():
    assert refine.judge_critique({"error_types": None}) == "unreadable_critique"
    assert refine.judge_critique({"error_types": []}) == "no_error_found"
    assert refine.judge_critique({"error_types": ["temporal_ordering"]}) is None


def test_an_empty_revision_makes_no_pair():
    # Or the model would learn to prefer silence
    assert refine.judge_revision({"initial": "It moves left.", "revised": " ."}, whole=True) == "empty_revision"


def test_only_a_whole_revision_that_differs_makes_a_pair():
    row = {"initial": "It moves left.", "revised": "it moves left"}
    assert refine.judge_revision(row, True) == "unchanged"
    row["revised"] = "It moves right."
    assert refine.judge_revision(row, True) is None
    assert refine.judge_revision(row, False) == "truncated"
