"""The stages as they are run, on a handful of videos, with the shipped model; and what they refuse."""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

import common
import critique
import dpo
import evaluate
import generate
import outputs
import refine
from conftest import MODEL
from shapes import world

STAGES = [generate, critique, refine, dpo, evaluate]


def command_line(stage, options, *more):
    """Write a command as sys.argv has it: the options {name: value}, then what else is given."""
    words = [f"{stage.__name__}.py"]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    return [*words, *more]


# ------------------------------------------------------------------------------
# What they write


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four videos and a broken one in round1, a benchmark about four more in dev."""
    root = tmp_path_factory.mktemp("shapes")
    world.write_split(root, "round1", 4, seed=0)
    world.write_split(root, "dev", 4, seed=0)
    (root / "round1" / "broken.mp4").write_text("not a video")
    return root


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Give a function that runs a stage -> the path of its output."""

    def run(stage, input, output, *more):
        options = {"model": MODEL, "input": input, "output": tmp_path / output, "devices": "cpu"}
        monkeypatch.setattr(sys, "argv", command_line(stage, options, *more))
        stage.main()
        return tmp_path / output

    return run


def read_answers(path):
    return [row.get("initial") for row in common.read_jsonl(path)]


def test_every_row_ends_as_a_pair_or_with_a_reason(root, run, capsys):
    responses = run(generate, root / "round1", "responses.jsonl")
    critiques = run(critique, responses, "critiques.jsonl")
    rows = common.read_jsonl(run(refine, critiques, "pairs.jsonl"))
    assert len(rows) == 5 * 6
    for row in rows:
        assert ("chosen" in row) != ("dropped" in row)
    pairs = [row for row in rows if "chosen" in row]
    for pair in pairs:
        assert pair["error_types"]
        assert pair["chosen"] == pair["revised"]
        assert pair["rejected"] == pair["initial"]
        assert pair["chosen"] != pair["rejected"]
    account = f"rows in 30 = {len(pairs)} pairs + {30 - len(pairs)} dropped ("
    assert account in capsys.readouterr().out

    broken = [row for row in rows if row["video"] == "broken.mp4"]
    assert len(broken) == 6
    for row in broken:
        assert row["dropped"] == "unreadable_video"
        assert "no frame can be decoded" in row["error"]

    # A stage adds keys and edits none
    for before, after in zip(common.read_jsonl(responses), rows, strict=True):
        assert before.items() <= after.items()


def test_interrupted_and_sharded_runs_write_what_an_undisturbed_one_writes(root, run, monkeypatch):
    whole = run(generate, root / "round1", "whole.jsonl").read_bytes()
    write = outputs.Output.write
    calls = []

    def interrupt_the_third(self, rows):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(self, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(outputs.Output, "write", interrupt_the_third)
        run(generate, root / "round1", "interrupted.jsonl")
    assert run(generate, root / "round1", "interrupted.jsonl").read_bytes() == whole

    first = run(generate, root / "round1", "first.jsonl", "--shard", "0/2").read_bytes()
    second = run(generate, root / "round1", "second.jsonl", "--shard", "1/2").read_bytes()
    assert sorted((first + second).splitlines()) == sorted(whole.splitlines())


def test_temperature_and_seed_change_the_answers(root, run):
    greedy = read_answers(run(generate, root / "round1", "greedy", "--temperature", "0"))
    sampled = read_answers(run(generate, root / "round1", "sampled", "--seed", "1"))
    again = read_answers(run(generate, root / "round1", "again", "--temperature", "0"))
    assert greedy != sampled
    assert greedy == again


def test_predictions_are_records_that_the_critic_can_read(root, run):
    directory = run(evaluate, root / "dev", "eval", "--benchmark", "shapes")
    results = json.loads((directory / "results.json").read_text())
    rows = common.read_jsonl(directory / "predictions.jsonl")
    assert results["n"] == len(rows) == 24
    n_correct = sum(row["correct"] for row in rows)
    assert results["accuracy"] == pytest.approx(n_correct / 24, abs=1e-4)

    critiques = common.read_jsonl(run(critique, directory / "predictions.jsonl", "critiques.jsonl"))
    assert all(isinstance(row["critique"], str) for row in critiques)


def test_a_run_that_was_stopped_before_its_score_is_scored_when_it_is_resumed(root, run, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluate, "score", stop)
        run(evaluate, root / "dev", "eval", "--benchmark", "shapes")
    directory = run(evaluate, root / "dev", "eval", "--benchmark", "shapes")
    assert (directory / "results.json").exists()


def test_one_question_is_answered_and_unknown_words_are_named(root, run, capsys):
    video = root / "dev" / "videos" / "dev_0002.mp4"
    output = run(generate, video, "responses.jsonl", "--ask", "which way does the purple square move?")
    unknown, answer = capsys.readouterr().out.splitlines()
    assert "does not know these words, and reads each as the same unknown one: purple (--ask)" in unknown
    assert answer.endswith(".")
    assert not output.exists()


def test_rows_without_meta_json_need_to_be_told_where_the_videos_are(root, run, tmp_path):
    responses = run(generate, root / "round1", "responses.jsonl", "--limit", "1")
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(responses.read_bytes())
    with pytest.raises(common.InputError, match="--videos DIR"):
        run(critique, moved, "critiques.jsonl")
    assert run(critique, moved, "critiques.jsonl", "--videos", str(root / "round1")).exists()


@pytest.mark.slow
def test_a_limit_is_of_all_videos_and_a_shard_takes_its_part_of_these(root, run):
    # Of four videos --limit 2 leaves two: one for each of two shards
    responses = run(generate, root / "round1", "responses.jsonl", "--limit", "4")

    def read(stage, input, output, *more):
        if stage is evaluate:
            more = ("--benchmark", "shapes", *more)
        path = run(stage, input, output, "--limit", "2", *more)
        return common.read_jsonl(path / PRODUCTS[stage] if stage in PRODUCTS else path)

    for stage, input in [(generate, root / "round1"), (critique, responses), (evaluate, root / "dev")]:
        name = stage.__name__
        whole = read(stage, input, f"{name}.whole")
        assert len({row["video"] for row in whole}) == 2
        shards = [read(stage, input, f"{name}.{n}", "--shard", f"{n}/2") for n in range(2)]
        assert shards[0] + shards[1] == whole


# ------------------------------------------------------------------------------
# Directories


def stop_after(n, monkeypatch):
    """Have the next stage stopped, as by Ctrl-C, when it has written n videos."""
    write = outputs.Output.write
    calls = []

    def stop(self, rows):
        calls.append(rows)
        if len(calls) > n:
            raise KeyboardInterrupt
        write(self, rows)

    monkeypatch.setattr(outputs.Output, "write", stop)


def test_an_output_in_the_model_s_own_directory_resumes(root, run, tmp_path, monkeypatch):
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    more = ["--model", str(model), "--limit", "2"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(1, patch)
        run(generate, root / "round1", "model/responses.jsonl", *more)
    output = run(generate, root / "round1", "model/responses.jsonl", *more)
    assert output.parent == model
    assert len(common.read_jsonl(output)) == 2 * 6


def test_relative_paths_are_understood_from_another_directory_later(root, run, tmp_path, monkeypatch):
    responses = run(generate, root / "round1", "responses.jsonl", "--limit", "2")
    monkeypatch.chdir(root)
    critiques = run(critique, responses, "critiques.jsonl", "--videos", "round1")
    monkeypatch.chdir(tmp_path)  # where there is no round1
    rows = common.read_jsonl(run(refine, critiques, "pairs.jsonl"))
    assert [row for row in rows if "error" in row and row["video"] != "broken.mp4"] == []


# ------------------------------------------------------------------------------
# Videos that arrive later, or can be read later


@pytest.fixture
def growing(root, tmp_path):
    """A directory of two videos -> it, and a function that adds two more."""
    directory = tmp_path / "growing"
    directory.mkdir()
    videos = sorted(root.glob("round1/round1_*.mp4"))

    def grow():
        for video in videos[2:]:
            shutil.copy(video, directory)

    for video in videos[:2]:
        shutil.copy(video, directory)
    return directory, grow


@pytest.mark.slow
def test_new_videos_are_asked_about_in_a_second_file(growing, run, tmp_path, monkeypatch):
    directory, grow = growing
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(1, patch)
        run(generate, directory, "first.jsonl")
    grow()
    with pytest.raises(common.InputError) as refusal:
        run(generate, directory, "first.jsonl")
    said = str(refusal.value)
    first, second = tmp_path / "first.jsonl", tmp_path / "first.new.jsonl"
    assert f"{first} was made before 2 videos arrived, such as {directory}/round1_" in said
    assert f" --without {first} --output {second} " in said
    assert f"with --without {second} added, this command resumes" in said

    run(generate, directory, second.name, "--without", str(first))
    run(generate, directory, first.name, "--without", str(second))
    rows = common.read_jsonl(run(generate, directory, "whole.jsonl"))
    assert common.read_jsonl(first) + common.read_jsonl(second) == rows
    with pytest.raises(common.InputError, match="--without has all videos of --input"):
        run(generate, directory, "third.jsonl", "--without", str(first), "--without", str(second))


def videos_of(path):
    """The names of the videos that an output has rows about."""
    return {row["video"] for row in common.read_jsonl(path)}


def test_stretches_of_one_pool_are_disjoint_whatever_the_seed_of_the_round(growing, run):
    # Four videos in one order: one, two, and the one that is left
    directory, grow = growing
    grow()
    one = videos_of(run(generate, directory, "one.jsonl", "--limit", "1", "--seed", "1"))
    two = videos_of(run(generate, directory, "two.jsonl", "--limit", "2", "--skip", "1", "--seed", "2"))
    three = videos_of(run(generate, directory, "three.jsonl", "--limit", "2", "--skip", "3", "--seed", "3"))
    assert [len(one), len(two), len(three)] == [1, 2, 1]
    assert len(one | two | three) == 4
    with pytest.raises(common.InputError, match="--skip 4: there are only 4 videos in the pool"):
        run(generate, directory, "four.jsonl", "--limit", "2", "--skip", "4")

    # --pool-seed decides, and nothing else
    firsts = {generate.order_pool([directory], seed)[0].name for seed in range(20)}
    assert one <= firsts
    assert len(firsts) == 4


def test_an_output_keeps_its_videos_when_the_pool_grows(growing, run, monkeypatch, capsys):
    directory, grow = growing
    output = run(generate, directory, "output.jsonl", "--limit", "1")
    before = output.read_bytes()
    pool = common.read_json(common.meta_path(output))["pool"]
    assert pool["n"] == 2
    grow()
    capsys.readouterr()
    assert run(generate, directory, "output.jsonl", "--limit", "1").read_bytes() == before
    said = capsys.readouterr().out
    assert "the pool had 2 videos when it was begun, and has 4 now; it keeps those that were drawn then" in said
    assert "is finished; nothing to do" in said
    # However the path is typed
    run(generate, f"{directory}/../{directory.name}/", "output.jsonl", "--limit", "1")
    assert "is finished; nothing to do" in capsys.readouterr().out
    # Another command is another draw
    with pytest.raises(common.InputError, match="begun with --limit 1, now it is with --limit 2"):
        run(generate, directory, "output.jsonl", "--limit", "2")


def test_without_a_gate_every_answer_is_revised_and_every_one_that_changes_is_a_pair(root, run, tmp_path):
    responses = run(generate, root / "round1", "responses.jsonl", "--limit", "3")
    critiques = run(critique, responses, "critiques.jsonl")
    rows = common.read_jsonl(critiques)
    readable = [row for row in rows if "dropped" not in row]
    readable[0]["error_types"] = None  # a verdict that could not be read is no obstacle
    common.write_jsonl(critiques, rows)
    without = [{key: value for key, value in row.items() if key != "error_types"} for row in rows]
    common.write_jsonl(tmp_path / "no_verdicts.jsonl", without)
    run(refine, tmp_path / "no_verdicts.jsonl", "none.jsonl", "--gate", "none", "--videos", str(root / "round1"))

    gated = common.read_jsonl(run(refine, critiques, "gated.jsonl"))
    free = common.read_jsonl(run(refine, critiques, "free.jsonl", "--gate", "none"))
    assert {row.get("dropped") for row in free} <= {None, "unchanged", "unreadable_video"}
    assert all("revised" in row for row in free if row.get("dropped") != "unreadable_video")
    for before, after in zip(gated, free):
        if "chosen" in before:
            assert after == before
    for row in free:
        differs = refine.words(row.get("revised", "")) != refine.words(row.get("initial", ""))
        assert ("chosen" in row) == (differs and "error" not in row)
    with pytest.raises(common.InputError, match="begun with --gate critic, now it is with --gate none"):
        run(refine, critiques, "gated.jsonl", "--gate", "none")


@pytest.mark.slow
def test_a_video_that_was_unreadable_is_read_again_where_that_is_asked_for(growing, run, tmp_path, capsys):
    directory, grow = growing
    grow()
    video = min(directory.iterdir())
    data = video.read_bytes()
    whole = run(generate, directory, "whole.jsonl").read_bytes()

    video.write_text("git-lfs was not pulled")
    run(generate, directory, "output.jsonl")
    video.write_bytes(data)
    assert "1 videos are unreadable; --retry-unreadable reads them again" in capsys.readouterr().out
    run(generate, directory, "output.jsonl")
    assert capsys.readouterr().out.endswith("is finished; nothing to do\n")
    assert run(generate, directory, "output.jsonl", "--retry-unreadable").read_bytes() == whole


# ------------------------------------------------------------------------------
# Nothing is said aloud: exit code 1


def test_no_question_and_no_pair_end_with_an_error(root, run, monkeypatch):
    with pytest.raises(common.InputError, match="--spatial 0 and --temporal 0: then there is nothing to ask"):
        run(generate, root / "round1", "none.jsonl", "--spatial", "0", "--temporal", "0")

    responses = run(generate, root / "round1", "responses.jsonl", "--limit", "1")
    critiques = run(critique, responses, "critiques.jsonl")
    rows = common.read_jsonl(critiques)
    for row in rows:
        if "dropped" not in row:
            row["error_types"] = []
    common.write_jsonl(critiques, rows)
    with pytest.raises(common.InputError, match=r"= 0 pairs \+ 6 dropped .*It is finished, but has nothing"):
        run(refine, critiques, "pairs.jsonl")


# ------------------------------------------------------------------------------
# What their command lines refuse


def parse(stage, monkeypatch, *more):
    """Parse a command of a stage that is complete, with these words added."""
    options = {"model": "shapes/model", "input": "in", "output": "out"}
    if stage is evaluate:
        options["benchmark"] = "shapes"
    monkeypatch.setattr(sys, "argv", command_line(stage, options, *more))
    return stage.parse_args()


@pytest.mark.parametrize(
    "option, least, stages",
    [
        ("limit", 1, STAGES),
        ("frames", 1, STAGES),
        ("spatial", 0, [generate]),
        ("temporal", 0, [generate]),
        ("max-new-tokens", 1, [generate, critique, refine]),
        ("seed", 0, [generate, dpo, evaluate]),
        ("lora-rank", 1, [dpo]),
        ("epochs", 1, [dpo]),
        ("videos-per-step", 1, [dpo]),
    ],
)
def test_numbers_that_are_too_low_are_refused_by_name(option, least, stages, monkeypatch, capsys):
    for stage in stages:
        more = ("--tune", "lora") if option.startswith("lora") else ()
        args = parse(stage, monkeypatch, *more, f"--{option}", str(least))
        assert vars(args)[option.replace("-", "_")] == least

        with pytest.raises(SystemExit) as refusal:
            parse(stage, monkeypatch, f"--{option}", str(least - 1))
        assert refusal.value.code == 2
        said = capsys.readouterr().err
        assert f"argument --{option}: {least - 1} is too low, it must be {least} or more" in said


@pytest.mark.parametrize(
    "option, good, bad, stages",
    [
        # float32 ends at 3.4e38, and begins with 1.4e-45: what is beyond is infinite there, or 0
        ("temperature", ["0", "0.7", "1e38"], ["-0.1", "0.0009", "1e39", "1e-46"], [generate]),
        ("top-p", ["1e-6", "1"], ["0", "1.001", "1e-46"], [generate]),
        ("max-bad", ["0", "1"], ["-0.1", "1.1"], STAGES),
        ("save-every", ["0", "0.5", "1e6"], ["-1", "1e39"], [dpo]),
    ],
)
def test_a_number_out_of_its_range_is_refused_in_one_line(option, good, bad, stages, monkeypatch, capsys):
    for stage in stages:
        for value in good:
            args = parse(stage, monkeypatch, f"--{option}={value}")
            assert vars(args)[option.replace("-", "_")] == float(value)
        for value in [*bad, "nan", "inf", "-inf", "1e400", "half"]:
            with pytest.raises(SystemExit) as refusal:
                parse(stage, monkeypatch, f"--{option}={value}")
            assert refusal.value.code == 2
            said = capsys.readouterr().err.splitlines()[-1]
            assert f"argument --{option}: " in said
            assert value in said


@pytest.mark.parametrize(
    "text, message",
    [
        ("0.0", "0.0 is out of range, it must be above 0 and below 0.5"),
        ("0.5", "0.5 is out of range, it must be above 0 and below 0.5"),
        ("nan", "nan is no number in float32, it must be above 0 and below 0.5"),
    ],
)
def test_the_ends_of_a_range_may_be_left_out(text, message):
    number = common.number_between(0, 0.5, above=True, below=True)
    assert number("0.25") == 0.25
    with pytest.raises(argparse.ArgumentTypeError) as refusal:
        number(text)
    assert str(refusal.value) == message


def test_a_whole_number_that_nothing_can_count_to_is_refused(monkeypatch, capsys):
    assert parse(generate, monkeypatch, "--seed", str(2**63 - 1)).seed == 2**63 - 1
    for option, most in [("seed", 2**63 - 1), ("frames", 2**31 - 1), ("max-new-tokens", 2**31 - 1)]:
        with pytest.raises(SystemExit):
            parse(generate, monkeypatch, f"--{option}", str(most + 1))
        assert f"argument --{option}: {most + 1} is too high" in capsys.readouterr().err


@pytest.mark.parametrize(
    "stage, option, value",
    [
        (critique, "--seed", "1"),  # it decodes greedily
        (refine, "--seed", "1"),
        (dpo, "--shard", "0/2"),  # parts of a training cannot be joined
    ],
    ids=["critique", "refine", "dpo"],
)
def test_an_option_that_would_do_nothing_is_not_offered(stage, option, value, monkeypatch, capsys):
    parse(stage, monkeypatch)
    with pytest.raises(SystemExit) as refusal:
        parse(stage, monkeypatch, option, value)
    assert refusal.value.code == 2
    assert f"unrecognized arguments: {option} {value}" in capsys.readouterr().err


# ------------------------------------------------------------------------------
# What a mistyped or a changed command does: nothing

# One command a stage, each on the output of the one before
COMMANDS = {
    generate: {"input": "runs/mine/videos", "output": "runs/mine/responses.jsonl"},
    critique: {"input": "runs/mine/responses.jsonl", "output": "runs/mine/critiques.jsonl"},
    refine: {"input": "runs/mine/critiques.jsonl", "output": "runs/mine/pairs.jsonl"},
    dpo: {"input": "runs/mine/pairs.jsonl", "output": "runs/mine/trained"},
    evaluate: {"input": "runs/mine/dev", "output": "runs/mine/eval", "benchmark": "shapes"},
}
# In a stage's output, the file whose bytes are compared
PRODUCTS = {dpo: "model.safetensors", evaluate: "predictions.jsonl"}
each_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)


def start(stage, options, *more):
    """Run a stage as the command line does, with the model runs/mine/model unless options say another."""
    options = {"model": "runs/mine/model", "devices": "cpu"} | options
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command_line(stage, options, *more))
        common.run(stage.main)


def refusal_of(stage, options, *more):
    """Run a command that must be refused -> what is said, which is one line."""
    with pytest.raises(SystemExit) as refusal:
        start(stage, options, *more)
    said = refusal.value.code  # the message, which Python prints; the exit code is then 1
    assert said.startswith(f"{stage.__name__}.py: ")
    assert "\n" not in said
    return said


def contents():
    """Read all that is below the working directory -> {path: bytes, or None for a directory}."""
    found = {}
    for path in sorted(Path().rglob("*")):
        found[str(path)] = None if path.is_dir() else path.read_bytes()
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run all stages once, on three videos -> the directory that contains runs/."""
    directory = tmp_path_factory.mktemp("finished")
    mine = directory / "runs" / "mine"
    mine.mkdir(parents=True)
    shutil.copytree(MODEL, mine / "model")
    world.write_split(mine, "round1", 3, seed=0)
    world.write_split(mine, "dev", 3, seed=0)
    (mine / "round1").rename(mine / "videos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        for stage, options in COMMANDS.items():
            start(stage, options)
    return directory


@pytest.fixture
def work(finished, tmp_path, monkeypatch):
    """Work in a copy of what is finished, which a test may change."""
    copy = tmp_path / "work"
    shutil.copytree(finished, copy)
    monkeypatch.chdir(copy)
    for path in copy.glob("**/*.meta.json"):  # as if it had been made here
        common.write_json(path, common.read_json(path) | {"directory": str(copy)})


def mistyped(options):
    """List commands with one word mistyped -> [(options, the path that does not exist), ...]."""
    no_model = options | {"model": "runs/mine/modle"}
    not_a_model = options | {"model": "runs/mine"}  # a directory, but /model is forgotten
    no_input = options | {"input": options["input"] + "x"}
    return [
        (no_model, "runs/mine/modle"),
        (not_a_model, "runs/mine/config.json"),
        (no_input, no_input["input"]),
    ]


@each_stage
def test_a_mistyped_command_leaves_nothing_behind_and_the_corrected_one_works(work, stage):
    options = COMMANDS[stage] | {"output": "runs/new/output"}
    before = contents()
    for typo, missing in mistyped(options):
        said = refusal_of(stage, typo)
        assert re.search(f"{re.escape(missing)}.*: no such (file or )?directory", said, re.IGNORECASE)
        assert "python" not in said  # the mistyped command is not offered as the cure
        assert "resume" not in said
        assert contents() == before

    start(stage, options)
    product = PRODUCTS.get(stage, "")
    made = Path("runs/new/output", product).read_bytes()
    assert made == Path(COMMANDS[stage]["output"], product).read_bytes()


@each_stage
def test_a_mistyped_command_with_overwrite_leaves_the_finished_output(work, stage, capsys):
    before = contents()
    for typo, _ in mistyped(COMMANDS[stage]):
        refusal_of(stage, typo, "--overwrite")
        assert contents() == before

    capsys.readouterr()
    start(stage, COMMANDS[stage])
    assert capsys.readouterr().out.endswith("is finished; nothing to do\n")
    assert contents() == before


def change_model(directory):
    """Change the files of a model, by an empty line at the end of its config."""
    with Path(directory, "config.json").open("a") as file:
        file.write("\n")


def change_input(path):
    """Take something from an input: the last row in use, a video, or the last question of a benchmark."""
    path = Path(path)
    questions = path / "questions.json"
    if path.is_file():
        lines = path.read_bytes().splitlines(keepends=True)
        in_use = [number for number, line in enumerate(lines) if "dropped" not in json.loads(line)]
        del lines[in_use[-1]]
        path.write_bytes(b"".join(lines))
    elif questions.exists():
        common.write_json(questions, common.read_json(questions)[:-1])
    else:
        min(path.glob("*.mp4")).unlink()


def check_refusal(stage, options, difference):
    """Check that an output is refused in a user's words, without fingerprints, and left as it was."""
    before = contents()
    said = refusal_of(stage, options)
    assert said.endswith(f" was {difference}; --overwrite starts anew")
    assert not re.search("[0-9a-f]{16}", said)
    assert contents() == before


@each_stage
def test_an_output_of_another_model_is_refused_and_both_models_are_named(work, stage, capsys):
    shutil.copytree("runs/mine/model", "runs/mine/other")
    options = COMMANDS[stage] | {"model": "runs/mine/other"}
    start(stage, options)
    assert capsys.readouterr().out.endswith("is finished; nothing to do\n")  # the same files are the same model

    change_model("runs/mine/other")
    check_refusal(stage, options, "made from another model: runs/mine/model then, runs/mine/other now")


@each_stage
def test_an_output_of_a_model_whose_files_changed_is_refused(work, stage):
    change_model("runs/mine/model")
    difference = "made before the files of its model changed (runs/mine/model)"
    check_refusal(stage, COMMANDS[stage], difference)


@each_stage
def test_an_output_of_another_input_is_refused_and_both_inputs_are_named(work, stage):
    input = Path(COMMANDS[stage]["input"])
    other = Path("runs/mine/other")
    if input.is_dir():
        shutil.copytree(input, other)
    else:
        shutil.copy(input, other)
        shutil.copy(common.meta_path(input), common.meta_path(other))
    change_input(other)
    difference = f"made from another input: {input} then, {other} now"
    check_refusal(stage, COMMANDS[stage] | {"input": other}, difference)


@each_stage
def test_an_output_of_an_input_that_changed_is_refused(work, stage):
    input = COMMANDS[stage]["input"]
    change_input(input)
    check_refusal(stage, COMMANDS[stage], f"made before the files of its input changed ({input})")
