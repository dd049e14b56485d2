"""The controls of tools.study, each seen on rows that can be checked by hand."""

import doctest
import itertools
import math
import re
from pathlib import Path

import pytest

import common
from conftest import MODEL
from shapes import world
from tools import labels, misread, study, study_record, study_tables, study_variants
from tools.study_record import Key, Run

# Forty answers to questions about one video, each with its critique
ROWS = []
for number in range(40):
    row = {
        "critique": "errors: none",
        "id": f"round1_0001.mp4/spatial/{number}",
        "video": "round1_0001.mp4",
        "kind": "spatial",
        "question": "q?",
        "initial": f"answer {number}.",
    }
    ROWS.append(row)


def test_the_study_trains_as_the_loop_does():
    script = (Path(__file__).parent.parent / "shapes" / "recipes" / "paper.txt").read_text()
    rates = re.search(r"--lrs ([-\de. ]+)", script)[1].split()
    assert rates == [f"{lr:.0e}".replace("e-0", "e-") for lr in study.LRS]
    flags = dict(re.findall(r"--(beta|epochs) (\d+)", script))
    assert flags == {"beta": str(study.BETA), "epochs": str(study.EPOCHS)}
    name, value = study.TOGETHER
    assert f"{name} {value}\n" in script


def test_a_sister_comes_with_the_repository(tmp_path):
    assert study.make_bases([0, 1], tmp_path) == {0: study.BASE, 1: study.SISTERS / "1"}


def test_make_study_runs_all_loop_seeds():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    assert re.search(r"--seeds \$\(or \$\(SEEDS\),([\d ]+)\)", makefile)[1] == " ".join(map(str, study.SEEDS))


# ------------------------------------------------------------------------------
# What a control changes


def test_shuffled_preferences_point_both_ways_and_lose_no_row():
    rows = [row | {"chosen": "yes.", "rejected": "no."} for row in ROWS]
    rows.append(ROWS[0] | {"id": "x", "dropped": "unchanged"})

    shuffled = study_variants.shuffle_preferences(rows, seed=1)
    swapped = sum(row.get("chosen") == "no." for row in shuffled)
    assert 10 < swapped < 30  # of 40
    assert [row["id"] for row in shuffled] == [row["id"] for row in rows]
    assert shuffled[-1] == rows[-1]
    for row in shuffled[:-1]:
        assert {row["chosen"], row["rejected"]} == {"yes.", "no."}


def test_second_samples_are_other_answers_to_the_same_questions(tmp_path):
    world.write_split(tmp_path, "round1", 3, seed=0)
    rows = []
    for n in range(3):
        video = f"round1_{n:04}.mp4"
        row = {"video": video, "kind": "temporal", "initial": "it moves.", "critique": ""}
        paired = {"id": f"{video}/temporal/0", "question": "how many shapes are there?"}
        rows.append(row | paired | {"chosen": "a", "rejected": "b"})
        unpaired = {"id": f"{video}/temporal/1", "question": "what can be seen in the video?"}
        rows.append(row | unpaired | {"dropped": "unchanged"})

    pairs = study_variants.prefer_second_samples(rows, 0, MODEL, tmp_path / "round1")
    assert len(pairs) == 3  # as many as there were, out of six questions
    asked = {row["id"]: row["question"] for row in rows}
    for pair in pairs:
        assert pair["question"] == asked[pair["id"]]
        assert pair["rejected"] == "it moves."
        assert pair["chosen"] != "it moves."


def test_revisions_that_pass_the_gate_and_those_that_do_not():
    """Of four revisions of refine.py --gate none two are pairs for the critic's gate, too: it found an error there, and
    they differ. One differs although nothing was found, one repeats the answer."""
    flagged = {"error_types": ["detail_omission"], "chosen": "a.", "rejected": "b."}
    rows = [
        {"id": "1", **flagged},
        {"id": "2", **flagged},
        {"id": "3", "error_types": [], "chosen": "a.", "rejected": "b."},
        {"id": "4", "error_types": ["detail_omission"], "chosen": "b.", "rejected": "b."},
        {"id": "5", "dropped": "no_critique"},
    ]
    assert [study_variants.passes_gate(row) for row in rows] == [True, True, False, False, False]
    assert [row["id"] for row in study_variants.take_unflagged(rows, 0)] == ["3", "4", "5"]
    drawn = [{row["id"] for row in study_variants.draw_as_many_as_pairs(rows, seed)} for seed in range(20)]
    assert {len(ids) for ids in drawn} == {2}
    assert set.union(*drawn) == {"1", "2", "3", "4"}  # of all revisions


def test_true_answers_to_the_models_questions_leave_out_what_the_world_does_not_ask():
    known = ROWS[0] | {"question": "how many shapes are there?", "dropped": "unchanged"}
    unknown = ROWS[1] | {"question": "what is it that I see?"}
    [row] = study_variants.take_truth([known, unknown], 0)
    items = world.all_questions(world.make_scene(0, "round1", 1))["count"]
    [truth] = [item["answer"] for item in items if item["question"] == known["question"]]
    assert (row["chosen"], row["rejected"]) == (truth, known["initial"])
    assert "dropped" not in row


def test_the_labelled_bound_asks_the_worlds_questions_about_the_same_videos():
    """Two rows about one video and one about another: six types of question about each of the two."""
    rows = [ROWS[0], ROWS[1], ROWS[2] | {"video": "round2/round2_0005.mp4"}]
    labelled = study_variants.ask_the_world(rows, 0)
    assert [row["video"] for row in labelled] == ["round1_0001.mp4"] * 6 + ["round2/round2_0005.mp4"] * 6
    assert len({row["id"] for row in labelled}) == 12
    for row in labelled:
        split, index = ("round1", 1) if row["video"] == "round1_0001.mp4" else ("round2", 5)
        items = itertools.chain(*world.all_questions(world.make_scene(0, split, index)).values())
        [truth] = [item["answer"] for item in items if item["question"] == row["question"]]
        assert row["chosen"] == truth


def test_the_answers_that_the_critic_let_pass_are_learned_as_they_are():
    rows = [
        ROWS[0] | {"chosen": "two.", "rejected": "one."},
        ROWS[1] | {"dropped": "no_error_found"},
        ROWS[2] | {"dropped": "unchanged", "revised": ROWS[2]["initial"]},
        ROWS[3] | {"dropped": "bad_question"},
    ]
    pair, passed, repeated, bad = study_variants.take_passed(rows)
    assert (pair, bad) == (rows[0], rows[3])
    assert passed == ROWS[1] | {"chosen": "answer 1.", "rejected": "answer 1."}
    assert (repeated["chosen"], repeated["rejected"]) == ("answer 2.", "answer 2.")
    assert "dropped" not in repeated


def test_a_training_gets_the_loss_of_its_variant_and_its_own_rate(tmp_path, monkeypatch):
    """Cross-entropy beside DPO is one option; truth-800 has a loss, a rate and epochs of its own."""
    said = []
    monkeypatch.setattr(study, "run_stage", lambda *words: said.append(" ".join(map(str, words[1:]))))
    study.train(study.VARIANTS["nll-replay"], "base", ["pairs"], tmp_path, seed=1, lr=1e-4, epochs=2)
    study.train(study.VARIANTS["paper"], "base", ["pairs"], tmp_path, seed=1, lr=1e-4, epochs=2)
    assert "--loss sigmoid" in said[0] and "--nll-weight 1.0" in said[0]
    assert "--nll-weight" not in said[1]

    (tmp_path / "seed1" / "all").mkdir(parents=True)
    common.write_jsonl(tmp_path / "seed1" / "all" / "pairs.jsonl", ROWS[:1])
    common.write_json(common.meta_path(tmp_path / "seed1" / "all" / "pairs.jsonl"), {})
    study.run_one_round("truth-800", 1, tmp_path / "base", tmp_path / "seed1" / "truth-800")
    assert "--loss sft --beta 3 --epochs 4 --lr 0.0003 --seed 11" in said[2]


def test_the_rows_of_the_first_rounds():
    rows = [{"video": f"round{number}/round{number}_0007.mp4"} for number in (1, 2, 3, 10)]
    assert study_variants.take_rounds(2)(rows, 0) == rows[:2]


# ------------------------------------------------------------------------------
# Rounds and their figures


def test_a_variant_begins_with_the_answers_to_the_same_videos():
    assert study.name_first(study.VARIANTS["average"]) == "paper"
    assert study.name_first(study.VARIANTS["replay-600"]) == "paper-600"
    same = [name for name, variant in study.VARIANTS.items() if study.is_as_the_paper_at_first(variant)]
    own = {"sft", "sft-all", "sft-all-replay", "nll-replay", "no-gate", "shuffled", "second-sample"}
    assert set(same) == set(study.VARIANTS) - own


@pytest.mark.slow
def test_two_rounds_of_a_control_end_in_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "VIDEOS", tmp_path / "shapes")
    monkeypatch.setattr(study, "ROUNDS", (1, 2))
    for split in ("round1", "round2", "dev", "hard"):
        world.write_split(tmp_path / "shapes", split, 6, seed=0)
    study.make_seen(n=2)
    base = study.BASE
    run = tmp_path / "seed1" / "average"
    study.score_base(base, tmp_path / "base")
    study.run_round("paper", 1, base, tmp_path / "seed1" / "paper", 1)
    for n in study.ROUNDS:
        study.run_round("average", 1, base, run, n)

    papers = tmp_path / "seed1" / "paper" / "round1"
    for name in ("edited.jsonl", "model/model.safetensors", "dev/results.json"):
        assert (run / "round1" / name).read_bytes() == (papers / name).read_bytes()
    [arguments] = common.read_keys(run / "round2" / "model.meta.json", "arguments")
    assert arguments["model"] == str(base)  # trained anew, on the pairs of both rounds
    assert arguments["input"] == [str(run / f"round{n}" / "edited.jsonl") for n in study.ROUNDS]
    [scored] = common.read_keys(run / "round2" / "dev" / "results.json", "model")
    assert scored == str(run / "round2" / "average")

    before = study.measure(tmp_path / "base")
    after = study.measure(run / "round2")
    assert before["errors the model names"] == before["errors the base names"]  # there it is the base
    assert after["pairs"] > 0
    assert 0 <= after["pairs inverted"] <= 1
    assert set(after) - set(before) >= {"pairs", "logps/chosen, last steps"}
    for name in study.BENCHMARKS:
        assert f"on {name}" in after

    # This variant changes no rows
    edited = (run / "round1" / "edited.jsonl").read_bytes()
    assert edited == (run / "round1" / "pairs.jsonl").read_bytes()


def test_an_inverted_pair_by_the_truth_of_the_world():
    items = world.all_questions(world.make_scene(0, "round1", 1))["count"]
    [item] = [item for item in items if item["question"] == "how many shapes are there?"]
    right = item["answer"]
    wrong = "there are three shapes." if "two" in right else "there are two shapes."
    row = ROWS[0] | {"question": item["question"]}

    assert study_tables.is_inverted(row | {"chosen": right, "rejected": wrong}) is False
    assert study_tables.is_inverted(row | {"chosen": wrong, "rejected": right}) is True
    assert study_tables.is_inverted(row | {"chosen": wrong, "rejected": wrong}) is False
    unknown = row | {"question": "what is it that I see?", "chosen": right, "rejected": wrong}
    assert study_tables.is_inverted(unknown) is None


def test_what_a_round_learns_by_truth(tmp_path, monkeypatch, capsys):
    """Six answers to one question: three are right in the end, of five that are learned, of which the critic let two
    pass, and one of the three pairs is inverted. A question that the world does not ask is learned, but cannot be
    judged."""
    items = world.all_questions(world.make_scene(7, "round1", 1))["count"]
    [item] = [item for item in items if item["question"] == "how many shapes are there?"]
    right = item["answer"]
    wrong = "there are three shapes." if "two" in right else "there are two shapes."
    row = ROWS[0] | {"question": item["question"]}
    rows = [
        row | {"initial": wrong, "chosen": right, "rejected": wrong},
        row | {"initial": wrong, "chosen": "there are no shapes.", "rejected": wrong},
        row | {"initial": right, "chosen": wrong, "rejected": right},
        row | {"initial": right, "dropped": "no_error_found"},
        row | {"initial": right, "dropped": "unchanged", "revised": right},
        row | {"initial": right, "dropped": "truncated", "chosen": right, "rejected": right},
        ROWS[1] | {"question": "what is it that I see?", "dropped": "no_error_found"},
    ]
    rows = [row | {"id": f"{number}"} for number, row in enumerate(rows)]
    common.write_jsonl(tmp_path / "pairs.jsonl", rows)
    monkeypatch.setattr("sys.argv", ["labels", str(tmp_path / "pairs.jsonl"), "--seed", "7"])
    labels.main()
    printed = re.sub(" +", " ", capsys.readouterr().out)
    assert "\nanswers 6\npairs among them 3\ncan be judged 5\n" in printed
    assert "right at first 0.600\nright in the end 0.600\n cause nan\n count 0.600\n" in printed
    assert "pairs inverted 1 of 3\n inverted, cause 0 of 0\n inverted, count 1 of 3\n" in printed


@pytest.mark.parametrize(
    "row, complaint",
    [({"benchmark": "shapes"}, "has answers to a benchmark"),
     ({"video": "holiday.mp4", "question": "why?", "chosen": "a.", "rejected": "b."}, "not a video of the tiny world"),
     ({"video": "me_1.mp4", "question": "why?", "chosen": "a.", "rejected": "b."}, "not a video of the tiny world"),
     ({"chosen": "a."}, "line 1: no key 'rejected'")],
)  # fmt: skip
def test_what_has_no_known_truth_is_refused(row, complaint, tmp_path, monkeypatch):
    dropped = {} if "chosen" in row else {"dropped": "no_error_found"}
    common.write_jsonl(tmp_path / "pairs.jsonl", [ROWS[0] | row | dropped])
    monkeypatch.setattr("sys.argv", ["labels", str(tmp_path / "pairs.jsonl")])
    with pytest.raises(common.InputError, match=complaint):
        labels.main()


@pytest.mark.parametrize("values, text", [([0.5], "0.500"), ([0.8, 0.9], "0.850 +- 0.071")])
def test_spread_by_hand(values, text):
    assert study_tables.spread(values) == text  # (0.9 - 0.8) / sqrt(2)


def make_figures():
    """Make figures of a study that are all alike: 0.5 for the base, 0.6, 0.7, 0.8 for the seeds."""
    of_answers = [
        "accuracy",
        "errors by truth",
        "errors the model names",
        "errors the base names",
        "critic's precision",
        "critic's recall",
        "the base's precision",
        "the base's recall",
        "words an answer",
    ]
    of_answers += [f"on {name}" for name in study.BENCHMARKS]
    of_answers += [f"accuracy, {type}" for type in study_tables.TYPES]
    of_training = [
        "pairs",
        "pairs inverted",
        "pairs judged",
        "lengths/chosen",
        "lengths/rejected",
        "logps/chosen, first steps",
        "logps/chosen, last steps",
        "logps/rejected, first steps",
        "logps/rejected, last steps",
    ]
    base = dict.fromkeys(of_answers, 0.5) | {"accuracy of revisions": 0.9}
    base |= {f"accuracy of revisions, {type}": 0.3 for type in study_tables.TYPES}
    figures = {}
    for variant in study.VARIANTS:
        for seed in (1, 2, 3):
            rounds = [base]
            for _ in study.ROUNDS:
                rounds.append(dict.fromkeys([*of_answers, *of_training], 0.5 + 0.1 * seed))
            figures[0, variant, seed] = rounds
    return figures


def test_tables_and_plot_of_made_up_figures(tmp_path, capsys):
    figures = make_figures()
    figures[0, "sft", 1][1]["pairs inverted"] = float("nan")  # no pair could be judged
    one = dict.fromkeys(["accuracy", *(f"accuracy, {type}" for type in study_tables.TYPES)], 0.8)
    one |= {"pairs": 400, "on new combinations": 0.5}
    study.print_tables(figures, {(0, "sft-matched"): [one, one | {"pairs": 410, "accuracy": 0.9}]})
    printed = capsys.readouterr().out
    rounds = " | ".join(["0.700 +- 0.100"] * 4)  # of 0.6, 0.7, 0.8
    assert f"| paper | 0.500 | {rounds} |" in printed
    assert "| sft |  | 0.75 +- 0.07 | 0.70 +- 0.10 |" in printed  # of 0.7, 0.8; the base has no pairs
    # One round: seeds, rows, accuracy, and the mean and error of how much less it is than 0.9
    assert "| 0 | sft-matched | 2 | 405 +- 7 | 0.850 +- 0.071 | -0.050 +- 0.050 |" in printed
    assert "| 0 | paper | 3 | 1 +- 0 | 0.700 +- 0.100 | -0.200 +- 0.058 |" in printed
    assert "| the base's revisions | 0.900 | 0.300 |" in printed  # in all, cause
    assert "| 0.800 +- 0.000 | 0.500 +- 0.000 |\n" in printed  # relation, hard

    assert doctest.testmod(study_tables) == (0, 2)  # none of two fails

    study.plot(figures, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10_000


def test_a_variant_is_compared_with_the_paper_run_by_run_and_with_its_teacher():
    """Two bases and two loop seeds. The variant ends 0.01, 0.03, 0.024 and 0.02 above the paper's loop: 0.021 in the
    mean, with a deviation of 0.0084 and so an error of 0.004. The teachers are at 0.9 and 0.801."""
    figures = {}
    ends = {(0, 1): (0.90, 0.91), (0, 2): (0.88, 0.91), (1, 1): (0.80, 0.824), (1, 2): (0.81, 0.83)}
    for (base, seed), (paper, other) in ends.items():
        start = {"accuracy": 0.6, "accuracy of revisions": (0.9, 0.801)[base]}
        figures[base, "paper", seed] = [start, {"accuracy": paper}]
        figures[base, "other", seed] = [start, {"accuracy": 0.9212}, {"accuracy": other}]

    on_all = study_tables.compare(figures, "other", None)
    assert on_all == ["all", "other", "4", "+0.021 +- 0.004", "+0.018 +- 0.005", "0.053"]
    on_one = study_tables.compare(figures, "other", 0)
    assert on_one == ["0", "other", "2", "+0.020 +- 0.010", "+0.010 +- 0.000", "0.011"]
    with_itself = study_tables.compare(figures, "paper", 0)
    assert with_itself == ["0", "paper", "2", "+0.000 +- 0.000", "-0.010 +- 0.010", "0.000"]


def test_misread_shapes_by_hand():
    """Of three lists one is right, one takes a square for a circle, one leaves a shape out. Where an answer was
    revised, the revision counts; a question of another type does not."""
    assert doctest.testmod(misread) == (0, 1)
    truth = {"task": "objects", "options": ["a red square and a blue circle."], "answer": 0}
    rows = [
        truth | {"initial": "a blue circle and a red square."},
        truth | {"initial": "a blue circle.", "revised": "a red circle and a blue circle."},
        truth | {"initial": "a red square."},
        truth | {"initial": "two.", "task": "count"},
    ]
    counted = misread.count_mistakes(rows)
    assert counted == {"lists of objects": 3, "wrong lists": 2, "left out": 1, "square read as circle": 1}


def test_wrong_answers_by_what_the_base_said(tmp_path, monkeypatch, capsys):
    """Four of five answers are wrong. To these questions the base was right at first, right after its revision, wrong
    in both, and right until its revision spoiled it."""
    question = {"benchmark": "shapes", "video": "v", "task": "motion", "options": ["it moves left."], "answer": 0}
    right, wrong = "it moves left.", "it moves up."
    base = [
        question | {"id": "1", "initial": right},
        question | {"id": "2", "initial": wrong, "revised": right},
        question | {"id": "3", "initial": wrong, "revised": wrong},
        question | {"id": "4", "initial": right, "revised": wrong},
        question | {"id": "5", "initial": wrong},
    ]
    later = [question | {"id": f"{number}", "initial": wrong} for number in (1, 2, 3, 4)]
    later.append(question | {"id": "5", "initial": right})
    assert misread.count_lost(later, base) == {
        "wrong answers": 4,
        "the base has it right": 1,
        "its revision spoils it": 1,
        "right after its revision alone": 1,
        "wrong both times": 1,
    }

    common.write_jsonl(tmp_path / "pairs.jsonl", base)
    unreadable = {key: value for key, value in question.items() if key != "initial"} | {
        "id": "6",
        "dropped": "no_video",
    }
    common.write_jsonl(tmp_path / "predictions.jsonl", [*later, unreadable])
    monkeypatch.setattr("sys.argv", ["misread", str(tmp_path / "pairs.jsonl"), str(tmp_path / "predictions.jsonl")])
    misread.main()
    assert re.search(r"wrong answers +4\n", capsys.readouterr().out)


# ------------------------------------------------------------------------------
# The record


def make_record(bases, seeds):
    """Make a record of all runs on bases and with loop seeds, whose accuracies are all different."""
    record = {}
    for base in bases:
        record[Key(base, "base", 0, 0)] = {"accuracy": 0.5}
    for run in study.list_runs(bases, seeds):
        for n in study.ROUNDS if run.variant in study.VARIANTS else (1,):
            record[Key(*run, n)] = {"accuracy": round(0.6 + 0.0001 * len(record), 4)}
    return record


def test_a_record_is_read_as_it_was_written_and_put_in_order(tmp_path):
    record = make_record([0, 1], [1, 2])
    backwards = dict(reversed(record.items()))
    study_record.write_record(tmp_path / "study.jsonl", backwards)
    again = study_record.read_record(tmp_path / "study.jsonl")
    assert again == record
    assert list(again)[:3] == [Key(0, "base", 0, 0), Key(0, "paper", 1, 1), Key(0, "paper", 1, 2)]

    figures = study_record.list_figures(again)
    rounds = figures[Run(1, "replay-600", 2)]
    assert rounds[0] == {"accuracy": 0.5}
    assert rounds[1:] == [record[Key(1, "replay-600", 2, n)] for n in study.ROUNDS]
    one_round = study_record.list_one_round(again)
    assert [name for base, name in one_round if base == 0] == list(study.ONE_ROUND)
    assert [name for base, name in one_round if base == 1] == [
        "dpo-2400",
        "nll-800",
        "nll-2400",
        "nll-2400-greedy",
        "views-2400",
        "frozen-tower",
        "no-copies",
        "no-agreement",
    ]
    assert one_round[1, "nll-800"] == [record[Key(1, "nll-800", seed, 1)] for seed in (1, 2)]


def test_a_number_that_is_none_survives_the_record(tmp_path):
    record = {Key(0, "base", 0, 0): {}, Key(0, "paper", 1, 1): {"pairs inverted": math.nan}}
    study_record.write_record(tmp_path / "study.jsonl", record)
    again = study_record.read_record(tmp_path / "study.jsonl")
    assert math.isnan(again[Key(0, "paper", 1, 1)]["pairs inverted"])


@pytest.mark.parametrize(
    "keys, complaint",
    [
        ([Key(0, "base", 0, 0), Key(0, "dpo", 1, 1)], "'dpo' is none of base, paper"),
        ([Key(0, "base", 0, 0), Key(1, "paper", 1, 1)], "the row of base 1 itself is missing"),
    ],
)
def test_a_record_that_cannot_be_shown_is_refused_before_anything_is_run(keys, complaint, tmp_path):
    common.write_jsonl(tmp_path / "study.jsonl", [key._asdict() | {"accuracy": 0.5} for key in keys])
    with pytest.raises(common.InputError, match=complaint):
        study_record.read_record(tmp_path / "study.jsonl")


def test_only_what_the_record_lacks_is_run_and_what_that_begins_with():
    record = make_record([0], [1, 2])
    wanted = study.list_runs([0, 1], [1, 2, 3])
    missing = study.list_missing(wanted, record, None)
    assert {(run.base, run.seed) for run in missing} == {(0, 3), (1, 1), (1, 2), (1, 3)}
    assert study.list_missing(study.list_runs([0], [1, 2]), record, None) == []
    on_first = study.list_runs([0], [1, 2, 3])
    assert study.list_missing(on_first, record, ["replay"]) == [Run(0, "paper", 3), Run(0, "replay", 3)]

    # The tables compare everything with the paper's loop, so that is run beside what begins without it
    missing = study.list_missing(on_first, {}, ["dpo-400"])
    assert missing == [Run(0, name, seed) for seed in (1, 2, 3) for name in ("paper", "dpo-400")]


@pytest.mark.parametrize(
    "name, n, before",
    [("replay", 4, ["paper"]), ("sft-matched", 1, ["paper", "sft-all"]), ("dpo-400", 1, []),
     ("replay-600", 4, ["paper-600"])],
)  # fmt: skip
def test_of_what_a_variant_begins_with_the_first_round_is_enough(name, n, before):
    """It begins with the answers of `paper`, with the revisions of `sft-all`, or with the base."""
    record = make_record([0], [1, 2])
    del record[Key(0, name, 2, n)]
    missing = study.list_missing(study.list_runs([0], [1, 2]), record, None)
    assert missing == [Run(0, name, 2)]
    assert study.list_beginnings(missing) == [Run(0, each, 2) for each in before]

    phases = study.plan_phases(missing, [], {0: study.BASE}, Path("study"))
    rounds = {}
    for job in itertools.chain(*phases):
        if job.task == study.run_rounds:
            variant, *_, numbers = job.arguments
            rounds[variant] = rounds.get(variant, ()) + numbers
    own = {name: study.ROUNDS} if name in study.VARIANTS else {}
    assert rounds == dict.fromkeys(before, (1,)) | own


def test_one_round_of_many_videos_asks_its_own_base_about_all_of_them():
    names = ("nll-2400", "nll-800", "nll-2400-greedy")
    runs = [*(Run(1, name, 3) for name in names), Run(0, "nll-800", 3), Run(0, "dpo-800", 3)]
    phases = study.plan_phases(runs, [], {0: "base 0", 1: "base 1"}, Path("study"))
    _, begin, _, later = phases
    assert [job.arguments for job in begin] == [
        ("all", 3, "base 0", Path("study/base0/seed3/all")),
        ("all", 3, "base 1", Path("study/base1/seed3/all")),
        ("all-2400", 3, "base 1", Path("study/base1/seed3/all-2400")),
        ("greedy-2400", 3, "base 1", Path("study/base1/seed3/greedy-2400")),
    ]
    assert [job.arguments[2] for job in later] == ["base 1"] * 3 + ["base 0"] * 2


def test_a_pool_is_asked_as_it_says(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(study, "run_stage", lambda *words: said.append(" ".join(map(str, words[2:]))))
    for name in ("all", "greedy-2400"):
        study.make_pool(name, 2, "base", tmp_path)
    assert "runs/shapes/round1" in said[0] and "--seed 21 --temperature 1.0" in said[0]
    assert "runs/shapes600/round4" in said[3] and "--seed 21 --temperature 0.0" in said[3]


def test_views_are_asked_each_alone_and_learned_together(tmp_path, monkeypatch):
    """Of three rows about each of three views two agree: six are learned, by the tower, too.

    The controls leave out one thing each: the tower, the copies, the agreement.
    """
    said = []

    def pretend(module, model, inputs, output, *more):
        """Write what a stage would: in the first copy the third answer is another one."""
        said.append(" ".join(map(str, (module.__name__, inputs, *more))))
        if module is not study.refine:
            return
        rows = [row | {"dropped": "no_error_found"} for row in ROWS[:3]]
        if output.parent.name == "right3":
            rows[2] = rows[2] | {"initial": "another."}
        output.parent.mkdir(parents=True, exist_ok=True)
        common.write_jsonl(output, rows)
        finished = {"stage": "refine.py", "root": str(output.parent), "finished": {"account": ""}}
        common.write_json(common.meta_path(output), finished)

    monkeypatch.setattr(study, "run_stage", pretend)
    pool = tmp_path / "seed1" / "greedy-2400-views"
    study.make_pool("greedy-2400-views", 1, "base", pool)
    asked = [words for words in said if words.startswith("tools.answer")]
    assert [f"--videos runs/shapes600-{name} " in words for name, words in zip(study.SHIFTS, asked)] == [True, True]

    for name in ("views-2400", "frozen-tower", "no-copies", "no-agreement"):
        study.run_one_round(name, 1, tmp_path / "base", tmp_path / "seed1" / name)
    agreed = [row["id"] for row in ROWS[:2]]
    every = [row["id"] for row in ROWS[:3]]
    expected = {
        "views-2400": ("--tune all", [agreed, agreed, agreed]),
        "frozen-tower": ("--tune full", [agreed, agreed, agreed]),
        "no-copies": ("--tune all", [agreed]),
        "no-agreement": ("--tune all", [every, every, every]),
    }
    trainings = [words for words in said if words.startswith("dpo")]
    assert len(trainings) == len(expected)
    for words, (name, (tune, learned)) in zip(trainings, expected.items()):
        assert f"{tune} --nll-weight 1.0" in words
        files = [tmp_path / "seed1" / name / f"edited{view}.jsonl" for view in ("", "-right3", "-up3")]
        for file, ids in zip(files, learned):
            assert str(file) in words
            assert [row["id"] for row in common.read_jsonl(file) if "dropped" not in row] == ids
        assert not any(str(file) in words for file in files[len(learned) :])


def test_copies_are_made_of_the_videos_of_all_rounds(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "MORE_VIDEOS", tmp_path / "shapes600")
    for n in study.ROUNDS:
        world.write_split(tmp_path / "shapes600", f"round{n}", 1, seed=0)
    assert study.needs_copies("views-2400") and study.needs_copies("no-copies")
    assert not study.needs_copies("nll-2400-greedy") and not study.needs_copies("paper-600")
    study.make_copies()
    names = {f"round{n}/round{n}_0000.mp4" for n in study.ROUNDS}
    for copies in ("shapes600-right3", "shapes600-up3"):
        found = {str(path.relative_to(tmp_path / copies)) for path in (tmp_path / copies).rglob("*.mp4")}
        assert found == names


def test_more_videos_are_made_where_they_are_needed():
    assert study.needs_more_videos("nll-2400")
    assert study.needs_more_videos("paper-600")
    assert study.needs_more_videos("views-2400")
    assert not study.needs_more_videos("nll-800")
    assert not study.needs_more_videos("sft-matched")


def test_a_record_that_is_not_there_begins_no_study(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["study", "--output", f"{tmp_path}", "--record", f"{tmp_path}/stduy.jsonl"])
    with pytest.raises(common.InputError, match="stduy.jsonl: no such file"):
        study.main()
