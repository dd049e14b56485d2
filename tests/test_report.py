"""tools.report on runs that are made up here, so small that every figure can be counted by hand."""

import doctest
import json
import re
import sys

import pytest

import benchmarks
import common
import evaluate
from tools import report, report_errors, report_rounds


@pytest.fixture
def show(monkeypatch, capsys):
    """Give a function that prints the tables of paths -> (its rows {name: cells}, its other lines)."""

    def show(*words):
        monkeypatch.setattr(sys, "argv", ["report.py", *map(str, words)])
        capsys.readouterr()
        report.main()
        lines = capsys.readouterr().out.splitlines()
        width = len(lines[0]) - len(lines[0].lstrip())  # the names of rows stand left of the first column's name
        rows = {}
        for line in lines:
            # A row's name, then cells on the right: two blanks part them
            name, *cells = re.split(r"\s{2,}", line.strip())
            if cells or line[:width].strip() == "":
                rows[name] = cells
        return rows, lines

    return show


def write_meta(output, **more):
    common.write_json(common.meta_path(output), {"stage": "stage.py", "finished": None} | more)


# ------------------------------------------------------------------------------
# A run without a benchmark

# Four questions about two videos. Nothing is said about the third video, which cannot be read
ASKED = [
    {"id": "a/0", "video": "a", "question": "what is red?", "initial": "the red square."},  # 3 words
    {"id": "a/1", "video": "a", "question": "what moves?", "initial": "it moves."},  # 2
    {"id": "b/0", "video": "b", "question": "where is it?", "initial": "it is on the left."},  # 5
    {"id": "b/1", "video": "b", "question": "no", "dropped": "bad_question"},
    {"id": "c/0", "video": "c", "dropped": "unreadable_video", "error": "no frame"},
]
VERDICTS = [["temporal_ordering", "causal_reasoning"], [], None]
CRITICISED = [row | {"critique": "hm.", "error_types": found} for row, found in zip(ASKED, VERDICTS)] + ASKED[3:]
PAIR = {"revised": "the blue square.", "chosen": "the blue square.", "rejected": "the red square."}
REFINED = [
    CRITICISED[0] | PAIR,
    CRITICISED[1] | {"dropped": "no_error_found"},
    CRITICISED[2] | {"dropped": "unreadable_critique"},
    *ASKED[3:],
]
LAST = {"loss": 0.25, "rewards/margins": 1.5, "rewards/accuracies": 0.75, "logps/chosen": -2, "logps/rejected": -9}


@pytest.fixture
def run(tmp_path):
    """A run of one's own clips: round1 is whole, round2 has got to its critiques, round10 to its answers."""
    for name in ("round1", "round2", "round10"):
        (tmp_path / name).mkdir()
        common.write_jsonl(tmp_path / name / "responses.jsonl", ASKED)
    common.write_jsonl(tmp_path / "round1" / "critiques.jsonl", CRITICISED)
    common.write_jsonl(tmp_path / "round2" / "critiques.jsonl", CRITICISED[:2])
    with (tmp_path / "round2" / "critiques.jsonl").open("a") as file:
        file.write('{"id": "b/0", "vid')  # the third is being written
    write_meta(tmp_path / "round2" / "critiques.jsonl")
    pairs = tmp_path / "round1" / "pairs.jsonl"
    common.write_jsonl(pairs, REFINED)
    write_meta(pairs, finished={"account": "rows in 5 = 1 pairs + 4 dropped (...)", "seconds": 7.5})
    (tmp_path / "round1" / "model").mkdir()
    common.write_jsonl(tmp_path / "round1" / "model" / "metrics.jsonl", [{"step": 1}, {"step": 2} | LAST])
    write_meta(tmp_path / "round1" / "model", finished={"steps": 2, "seconds": 60.0})
    return tmp_path


def test_without_a_benchmark_it_shows_what_the_rounds_made(run, show):
    rows, lines = show(run)
    assert lines[0].split() == ["round1", "round2", "round10"]  # by number, not by letter
    # Of 5 questions about 3 videos generate.py dropped 2, one in a video that cannot be read
    assert rows["videos"] == ["3", "3", "3"]
    assert rows["questions"] == ["5", "5", "5"]
    assert rows["kept"] == ["3", "3", "3"]
    # Of 3 critiques one names two errors, one says that there is none, one cannot be read. round2 has the first two
    assert rows["critiques"] == ["3", "2"]
    assert rows["unreadable"] == ["1 (33%)", "0 (0%)"]
    assert rows["an error is found"] == ["1 (33%)", "1 (50%)"]
    assert rows["pairs"] == ["1"]
    assert rows["dropped"] == ["4", "0", "2"]  # so far
    assert rows["no_error_found"] == rows["unreadable_critique"] == ["1"]
    assert rows["bad_question"] == ["1", "1"]
    # (3 + 2 + 5) / 3 words, and of the two that round2 has criticised (3 + 2) / 2
    assert rows["words, answers"] == ["3.3", "2.5", "3.3"]
    assert rows["words, revisions"] == rows["words, chosen"] == rows["words, rejected"] == ["3.0"]
    assert rows["seconds, pairs"] == ["7.5"]
    assert rows["seconds, model"] == ["60.0"]
    assert "round1/pairs.jsonl: rows in 5 = 1 pairs + 4 dropped (...)" in lines
    assert "round2/critiques.jsonl: unfinished; the command that began it resumes it" in lines


def test_the_last_step_of_the_training_is_shown(run, show):
    rows, _ = show(run)
    assert rows["last step of training"] == ["2"]
    shown = {key: rows[key] for key in LAST}
    assert shown == {
        "loss": ["0.2500"],
        "rewards/margins": ["1.500"],
        "rewards/accuracies": ["0.75"],
        "logps/chosen": ["-2.00"],
        "logps/rejected": ["-9.00"],
    }
    write_meta(run / "round1" / "model")  # still training: it writes a line, of which half is there
    with (run / "round1" / "model" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    rows, _ = show(run)
    assert rows["last step of training"] == ["2 so far"]


def test_one_round_alone_can_be_shown(run, show):
    rows, lines = show(run / "round1")
    assert lines[0].split() == ["round1"]
    assert rows["pairs"] == ["1"]


def test_pairs_of_ones_own_are_shown_without_what_they_lack(run, show):
    imported = [{"id": "x", "video": "v", "question": "what?", "chosen": "one two.", "rejected": "three."}]
    (run / "round11").mkdir()
    common.write_jsonl(run / "round11" / "pairs.jsonl", imported)
    rows, _ = show(run / "round11")
    assert (rows["videos"], rows["questions"], rows["pairs"], rows["dropped"]) == (["1"], ["1"], ["1"], ["0"])
    assert (rows["words, chosen"], rows["words, rejected"]) == (["2.0"], ["1.0"])
    assert not {"kept", "critiques", "words, answers"} & set(rows)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'step': 1}", "metrics.jsonl, line 3, column 2: not JSON"),
        ("[1]", "metrics.jsonl, line 3: an object is expected"),
        ('{"step": 3, "loss": "low"}', "metrics.jsonl, line 3: 'loss' is 'low', not a number"),
    ],
)
def test_damaged_metrics_are_named(run, show, line, message):
    with (run / "round1" / "model" / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(common.InputError, match=message):
        show(run)


def test_what_is_no_run_is_refused(tmp_path, show):
    with pytest.raises(common.InputError, match="neither results.json .* nor base/eval/results.json or round"):
        show(tmp_path)
    with pytest.raises(common.InputError, match="nowhere: no such file or directory"):
        show(tmp_path / "nowhere")


# ------------------------------------------------------------------------------
# A run with a benchmark

ARGUMENTS = {"arguments": {}, "model": "m", "partial": False, "unparsed": "wrong", "n_unparsed": 3, "n_empty": 0}


def shapes_results(accuracy, n_wrong):
    """What evaluate.py writes of the tiny world, as far as the report reads it."""
    known = {"benchmark": "shapes", "score": accuracy, "accuracy": accuracy, "interval": [0.1, 0.9]}
    by_task = {"count": {"accuracy": accuracy}}
    return ARGUMENTS | known | {"by_task": by_task, "n_wrong": n_wrong, "errors": {"detail_omission": n_wrong}}


def public_results(benchmark, score, low, high, **more):
    scored = {"benchmark": benchmark, "score": score, "interval": [low, high], "score_is": "mean over 20 tasks"}
    return ARGUMENTS | scored | {"accuracy": 0.5, "n": 90, "N": 100, "by_task": {}} | more


def write_results(directory, results, **revisions):
    """Write results.json into a directory; and eval/pairs.jsonl with one right and one wrong revision, if asked."""
    directory.mkdir(parents=True, exist_ok=True)
    common.write_json(directory / "results.json", results)
    known = {"video": "v", "benchmark": "shapes", "task": "count", "options": ["two."], "answer": 0}
    rows = [known | {"id": id, "initial": "one.", "revised": text} for id, text in revisions.items()]
    if rows:
        common.write_jsonl(directory / "pairs.jsonl", rows)


def test_the_table_of_the_tiny_world_has_no_more_rows_unless_asked(run, show):
    write_results(run / "base" / "eval", shapes_results(0.5, 4), a="two.", b="two.", c="two.", d="one.")
    write_results(run / "round1" / "eval", shapes_results(0.6, 3))
    rows, lines = show(run)
    names = ["", "accuracy", "95% interval", "count", "wrong answers", "detail_omission", "accuracy of revisions"]
    assert list(rows)[1 : len(names)] == names[1:]
    assert rows["accuracy"] == ["0.500", "0.600"]
    assert not {"videos", "critiques", "words, answers", "loss"} & set(rows)
    # Of the way from 0.5 to the revisions' 3/4, 0.6 is two fifths; one wrong answer of four is gone
    assert lines[-1] == "share of the closable gap: 40%; wrong answers: 25% fewer than the base"

    rows, _ = show("--all", run)
    assert rows["accuracy"] == ["0.500", "0.600"]
    assert rows["loss"] == ["0.2500"]


def test_where_revisions_are_not_better_there_is_no_gap_to_close(run, show):
    write_results(run / "base" / "eval", shapes_results(0.5, 4), a="two.", b="one.")  # revised: 1 of 2, as before
    write_results(run / "round1" / "eval", shapes_results(0.6, 3))
    _, lines = show(run)
    gap = "no closable gap: the base's revisions are not better than its answers"
    assert lines[-1] == f"{gap}; wrong answers: 25% fewer than the base"
    write_results(run / "base" / "eval", shapes_results(1.0, 0), a="two.")  # a base without a wrong answer
    _, lines = show(run)
    assert lines[-1] == gap


def test_a_scored_base_stands_beside_a_round_that_has_only_begun(tmp_path, show):
    write_results(tmp_path / "base" / "eval", public_results("mvbench", 0.698, 0.68, 0.71))
    (tmp_path / "round1").mkdir()
    common.write_jsonl(tmp_path / "round1" / "responses.jsonl", ASKED)
    rows, lines = show(tmp_path)
    assert lines[0].split() == ["base", "round1"]
    assert list(rows)[:5] == [
        "base",
        "mvbench",
        "mvbench 95% interval",
        "mvbench questions",
        "mvbench unparsed replies",
    ]
    assert rows["mvbench"] == ["69.8"]
    assert rows["mvbench 95% interval"] == ["68.0-71.0"]
    assert rows["mvbench questions"] == ["90/100"]
    assert rows["questions"] == ["5"]
    assert "mvbench: mean over 20 tasks, percent" in lines


def test_a_benchmark_in_a_directory_of_its_own_name_is_pointed_to(run, show):
    for name in ("base", "round1"):
        write_results(run / name / "mvbench", public_results("mvbench", 0.7, 0.6, 0.8))
    _, lines = show(run)
    assert lines[-1] == f"other scores: python -m tools.report {run}/base/mvbench {run}/round1/mvbench"


def test_the_critic_and_revisions_are_scored_where_the_truth_is_known():
    # A video that cannot be read has neither a reply nor a verdict; EgoSchema keeps most of its answers to itself
    right = {"benchmark": "egoschema", "options": ["x", "y"], "answer": 1, "initial": "B", "correct": True}
    wrong = right | {"initial": "A", "correct": False, "error_types": ["factual_inaccuracy"], "revised": "B"}
    unreadable = {"answer": 1, "dropped": "unreadable_video"}
    secret = wrong | {"answer": None, "correct": None}
    rows = [right, wrong, unreadable, secret]
    assert report.score_critic(rows) == (1.0, 1.0)
    assert report.score_revisions(rows) == 1.0


# ------------------------------------------------------------------------------
# Runs of evaluate.py


def test_the_published_baselines_are_said_to_lie_below_the_makers_own(tmp_path, show):
    write_results(tmp_path / "mvbench", public_results("mvbench", 0.72, 0.7, 0.74))
    _, lines = show(tmp_path / "mvbench")
    said = " ".join(lines)
    assert "paper's baselines lie below OpenGVLab's own figures" in said
    assert "measure a gain against your own base run" in said
    # The figures that it names beside OpenGVLab's are those of the table
    published = dict(zip(report.BENCHMARKS, report.PUBLISHED["InternVL2.5"]))
    assert f"MVBench {published['mvbench']} against 72.0" in said
    assert f"LongVideoBench {published['longvideobench']} against 60.0" in said


def test_a_score_that_is_no_share_is_not_said_to_be_in_percent(tmp_path, show, monkeypatch):
    seconds_off = benchmarks.Benchmark(None, None, None, 1, score=lambda rows: -2.5, score_is="mean error, seconds")
    find = evaluate.find_benchmark
    monkeypatch.setattr(evaluate, "find_benchmark", lambda name: seconds_off if name == "mine" else find(name))
    mine = public_results("mine", -2.5, -3.0, 2.0, score_is="mean error, seconds")
    write_results(tmp_path / "mine", mine)
    write_results(tmp_path / "gone", mine | {"benchmark": "gone"})  # whose file in benchmarks/ is not here
    write_results(tmp_path / "mvbench", public_results("mvbench", 0.7, 0.65, 0.75))
    rows, lines = show(tmp_path / "mine", tmp_path / "gone", tmp_path / "mvbench")
    assert rows[f"{tmp_path}/mine"] == rows[f"{tmp_path}/gone"] == ["-2.500"]
    assert rows[f"{tmp_path}/mvbench"] == ["70.0"]
    assert "mine, its parts in percent" in lines
    assert "mvbench, percent" in lines
    assert [line.split("  ")[-1].strip() for line in lines if line.startswith("95% interval")] == [
        "65.0-75.0",
        "-3.000 to 2.000",
        "-3.000 to 2.000",
    ]


def test_every_benchmark_of_the_paper_has_a_score_that_is_a_share():
    for name in (*report.BENCHMARKS, "shapes"):
        assert report.is_share({"benchmark": name})


def test_the_rows_of_columns_are_merged():
    result = doctest.testmod(report)
    assert result.attempted > 0
    assert result.failed == 0


# ------------------------------------------------------------------------------
# Errors named by one critic: Table 2


@pytest.fixture
def named(tmp_path):
    """One critic's verdicts on three answers, before and after a round; a fourth video cannot be read."""
    verdicts = {
        "before": [["temporal_ordering", "detail_omission"], ["temporal_ordering"], []],
        "after": [["detail_omission"], [], None],
    }
    paths = []
    for name, found in verdicts.items():
        path = tmp_path / name / "by_base.jsonl"
        path.parent.mkdir()
        rows = [{"id": f"{n}", "video": "v", "critique": ".", "error_types": types} for n, types in enumerate(found)]
        common.write_jsonl(path, [*rows, {"id": "3", "video": "w", "dropped": "unreadable_video"}])
        write_meta(path, finished={"seconds": 1}, content={"model": "the base", "prompts": "ours"})
        paths.append(path)
    return paths


def test_errors_are_counted_by_type_beside_the_papers(named, show):
    rows, lines = show(*named)
    assert re.split(r"\s{2,}", lines[0].strip()) == ["before", "after", *(f"paper, Iter{n}" for n in (1, 2, 3, 4))]
    assert rows["temporal_ordering"] == ["2", "0", "38", "22", "15", "8"]
    assert rows["detail_omission"] == ["1", "1", "21", "16", "4", "2"]
    assert rows["causal_reasoning"] == ["0", "0", "25", "14", "6", "4"]  # a type that nobody named has its row
    assert rows["errors"] == ["3", "1", "200", "130", "74", "41"]
    assert rows["answers"] == ["3", "3", *["not known"] * 4]
    assert rows["with an error"] == ["2", "1"]
    assert rows["verdict unreadable"] == ["0", "1"]
    assert "Who counted them, and in how many answers, is not" in " ".join(lines)
    assert not any(line.startswith("not ") for line in lines)  # one critic, the same questions


def test_the_published_errors_add_up():
    types = [name for name in report_errors.PUBLISHED if name != "errors"]
    assert types == report_errors.read_error_types("no file of critiques")  # the six are the default's
    for number, total in enumerate(report_errors.PUBLISHED["errors"]):
        assert sum(report_errors.PUBLISHED[name][number] for name in types) == total


def test_error_types_of_ones_own_are_the_rows(named, show):
    for path in named:
        meta = json.loads(common.meta_path(path).read_text())
        own = {"error_types": {"detail_omission": "left out", "temporal_ordering": "order"}}
        common.write_json(common.meta_path(path), meta | {"prompts": own})
    rows, lines = show(*named)
    assert [line.split()[0] for line in lines[1:3]] == ["detail_omission", "temporal_ordering"]
    assert rows["detail_omission"] == ["1", "1", "21", "16", "4", "2"]
    assert "causal_reasoning" not in rows  # the critic was not asked for it


def test_counts_that_cannot_be_compared_are_doubted(named, show):
    first, second = named
    common.write_jsonl(second, common.read_jsonl(second)[1:])
    write_meta(second, finished={"seconds": 1}, content={"model": "round 1", "prompts": "ours"})
    _, lines = show(first, second)
    assert "not the same questions: 2 are in all of the files; compare counts only over the same ones" in lines
    assert "not one critic: the files were made by different models" in lines

    # The same ids, but another question about the video
    common.write_jsonl(second, [row | {"question": "what?"} for row in common.read_jsonl(first)])
    write_meta(second, finished={"seconds": 1}, content={"model": "the base", "prompts": "others"})
    _, lines = show(first, second)
    assert "not the same questions: 0 are in all of the files; compare counts only over the same ones" in lines
    assert lines[-1] == "not one critic: the files were made with different prompts"

    common.meta_path(second).unlink()
    _, lines = show(first, second)
    assert lines[-1] == f"{second}: no meta.json says which critic made it"


def test_files_that_are_no_finished_critiques_are_refused(named, run, show):
    with pytest.raises(common.InputError, match="responses.jsonl, line 1: no key 'critique', which critique.py writes"):
        show(run / "round1" / "responses.jsonl")
    with pytest.raises(common.InputError, match="critiques.jsonl is unfinished"):
        show(run / "round2" / "critiques.jsonl")
    with pytest.raises(common.InputError, match="by_base.jsonl: it is named twice"):
        show(named[0], named[0])
    with pytest.raises(common.InputError, match="not both"):
        show(named[0], run)


def test_paths_are_shortened_to_where_they_differ(tmp_path):
    paths = [tmp_path / "run" / name / "fixed.jsonl" for name in ("base", "round1")]
    assert report_errors.shorten(paths) == ["base", "round1"]
    assert report_errors.shorten([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]) == ["a", "b"]
    assert report_errors.shorten([tmp_path / "a.jsonl", tmp_path / "a.json"]) == ["a.jsonl", "a.json"]
    assert report_errors.shorten(paths[:1]) == ["fixed"]
    assert report_errors.shorten([tmp_path / "x" / "f", tmp_path / "f"]) == ["x/f", "f"]


def test_a_round_has_begun_when_a_stage_has_written_into_it(tmp_path):
    (tmp_path / "round1").mkdir()
    (tmp_path / "round2" / "model").mkdir(parents=True)
    assert report_rounds.find_rounds(tmp_path) == [tmp_path / "round2"]
