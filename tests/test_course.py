"""The course's checks: solutions pass, stubs are not written yet, and typical mistakes are told by their name.

A mistake is a line of the solution, replaced.
"""

import inspect
import math
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

import common
import critique
import generate
import prompts
import refine
from conftest import MODEL
from course import bugs, check, leaderboard, lesson0, lesson2, lesson6, ready, shuffle
from course.exercises import find_bugs, gate, guess, loss, measuring, memory_table, noise, packing
from course.solutions import find_bugs as find_bugs_solution
from course.solutions import gate as gate_solution
from course.solutions import guess as guess_solution
from course.solutions import loss as loss_solution
from course.solutions import measuring as measuring_solution
from course.solutions import memory_table as memory_solution
from course.solutions import noise as noise_solution
from course.solutions import packing as packing_solution
from shapes import world
from tools import report

ROOT = Path(__file__).parent.parent
SOLUTIONS = {
    1: noise_solution,
    2: gate_solution,
    3: loss_solution,
    4: packing_solution,
    5: find_bugs_solution,
    7: memory_solution,
}
STUBS = {1: noise, 2: gate, 3: loss, 4: packing, 5: find_bugs, 6: measuring, 7: memory_table}

# Lesson, line of the solution, what a student writes in its place, what the check says
MISTAKES = [
    (1, "scores / self.temperature", "scores", "the softmax without the temperature"),
    (1, "scores / self.temperature", "scores * self.temperature", "the softmax with the temperature as a factor"),
    (1, "gumbel = -torch.log(-torch.log(uniform))", "gumbel = torch.randn(row.shape, generator=generator)", "drawn in"),
    (1, "gumbel = -torch.log(-torch.log(uniform))", "gumbel = torch.log(-torch.log(uniform))", "drawn in"),
    (1, 'f"{seed} {row_id}"', 'f"{seed}"', "The row's id belongs"),
    (1, 'f"{seed} {row_id}"', 'f"{seed} {len(self.generators)}"', "other tokens beside other rows"),
    (1, 'f"{seed} {row_id}"', 'f"{row_id}"', "the seed belongs"),
    (1, 'hashlib.sha256(f"{seed} {row_id}".encode()).digest()', 'hash((seed, row_id)).to_bytes(8, "big", signed=True)',
        "another process"),
    (1, "return torch.stack(noisy)", "return torch.stack(noisy).argmax(-1)", "the argmax over the vocabulary"),
    (2, "critique).lower()", "critique)", "read_verdict"),
    (2, "behind = plain[headings[-1].end() :].strip()", "behind = plain.strip()",
        "is \\[\\]|is \\['|of 40|was read as|read_verdict"),
    (2, 'return [] if re.search(r"\\bno errors?[.! ]*$", plain) else None', "return []", "not None"),
    (2, "return []\n\n    found", "return None\n\n    found", "not \\[\\]|read_verdict"),
    (2, 'return "unchanged" if initial == revised else None', "return None", "unchanged"),
    (2, 'if not row["error_types"]:', 'if row["error_types"] == 0:', "no_error_found"),
    (3, "policy_chosen_logps - ref_chosen_logps", "policy_chosen_logps", "It is"),
    (3, "(chosen_logratios - rejected_logratios)", "(rejected_logratios - chosen_logratios)", "wrong sign"),
    (3, "(chosen_logratios - rejected_logratios)", "(policy_chosen_logps - policy_rejected_logps)", "left out"),
    (3, "-F.logsigmoid(beta * (", "-beta * F.logsigmoid((", "before the log"),
    (3, "-F.logsigmoid(beta * (chosen_logratios - rejected_logratios))",
        "-(beta * (chosen_logratios - rejected_logratios)).sigmoid().log()", "minus infinity"),
    (3, "rejected_logratios))\n", "rejected_logratios)).mean()\n", "taken by the caller"),
    (3, "(beta * chosen_logratios).detach()", "beta * chosen_logratios", "carry a gradient"),
    (3, "return losses,", "return losses.detach(),", "nothing would be learned"),
    (4, "positions.append(prefix_length + place)", "positions.append(len(owners))", "0 to 7"),
    (4, "in (None, owners[own])", "is not False", "sees the first"),
    (4, "range(own + 1)", "range(n_tokens)", "sees what comes after"),
    (4, "range(own + 1)", "range(own)", "does not see itself"),
    (4, "targets.append(len(owners))", "targets.append(len(owners) - 1)", "subtracts 1"),
    (4, "targets.append(len(owners))", "targets.append(len(ids))", "count from the end of the video"),
    (5, '"A": "bfloat16_weights"', '"A": "gradients_add_up"', "4 of 5 are right (B, C, D, E). A: Steps 1 and 2"),
    (5, '"B": "sorted_sides"', '"B": "swapped_sides"', "B: Its curves"),
    (5, '"C": "prompt_counted"', '"C": "the prompt"', "is not in the list"),
    (5, '"E": "moving_reference"', '"E": "no_video"', "E: What is a margin"),
    (6, "draw.choices(names, k=len(names)) for right in by_video[name]]",
        "draw.choices(names, k=len(names)) for right in draw.choices(correct, k=30)]", "are not independent"),
    (6, "shares[int(0.025 * n_draws)], shares[int(0.975 * n_draws) - 1]", "shares[0], shares[-1]", "leaves out 2.5%"),
    (6, "random.Random(seed)", "random.Random()", "sees other figures"),
    (6, "min(1.0, 2 * fewer / 2**n)", "fewer / 2**n", "That is one side"),
    (6, "2 * fewer / 2**n", "2 * math.comb(n, min(better, worse)) / 2**n", "8 to 2 alone"),
    (6, '"A": "another judge"', '"A": "second sample"', "Who counts the errors"),
    (6, '"C": "shuffled sides"', '"C": "unseen videos"', "taught nonsense"),
    (7, "WEIGHTS = 2 * 8.08e9", "WEIGHTS = 4 * 8.08e9", "is float32"),
    (7, "GRADIENTS = 2 * LANGUAGE", "GRADIENTS = 2 * 8.08e9", "are frozen"),
    (7, "(4 + 4 + 4 + 4) * LANGUAGE", "(4 + 4) * LANGUAGE", "Two moments alone"),
    (7, "8 * 128, 16", "32 * 128, 16", "8 heads, not 32"),
    (7, "2 * (HIDDEN + KEYS)", "2 * (HIDDEN + HIDDEN)", "8 heads of 128, not 32"),
    (7, "ADAMW_OF_FACTORS = 8 *", "ADAMW_OF_FACTORS = 16 *", "no masters beside them"),
    (7, '"1 x 24 GB": False, "2 x 80 GB": False', '"1 x 24 GB": False, "2 x 80 GB": True', "the fullest of 2"),
]  # fmt: skip


def run(number, exercise, capsys):
    code = check.check(check.LESSONS[number], exercise, "mine.py")
    return code, capsys.readouterr().out


def write_loop(directory):
    """A run of the loop as lessons 0 and 6 read it: 20 answers of each of two rounds."""
    for number in (1, 3, 4):
        scores = directory / f"round{number}" / "eval"
        scores.mkdir(parents=True)
        rows = []
        for place in range(20):
            row = {"id": f"{place}", "video": f"{place // 2}", "correct": place != number}
            rows.append(row | {"error_types": ["factual_inaccuracy"] if place == 1 else []})
        common.write_jsonl(scores / "predictions.jsonl", rows)
        common.write_jsonl(scores / "critiques.jsonl", rows)
        results = {"score": 0.95, "accuracy": 0.95, "n_wrong": 1, "interval": [0.9, 1.0]}
        results |= {"partial": False, "benchmark": "shapes", "arguments": {}, "by_task": {}, "errors": {}}
        common.write_json(scores / "results.json", results)
        common.write_jsonl(directory / f"round{number}" / "pairs.jsonl", [{"id": "0", "video": "v", "chosen": "c"}])


def test_guesses_stand_beside_the_run(tmp_path, monkeypatch, capsys):
    """Nobody fails; but nothing is shown before something was written down."""
    monkeypatch.setattr(lesson0, "RUN", tmp_path)
    with pytest.raises(common.InputError, match="run `make loop` first"):
        run(0, guess_solution, capsys)
    write_loop(tmp_path)
    assert run(0, guess, capsys) == (1, "mine.py: not written yet. Lesson: course/0_a_loop_you_can_watch.md\n")
    code, said = run(0, guess_solution, capsys)
    assert code == 0
    assert re.search(r"right after round 1 +0.906 +0.950", said)


def test_ready_files_come_back_on_another_machine(tmp_path, monkeypatch):
    """All but the weights; the videos are below the repository of whoever unpacks them."""
    here, there = tmp_path / "here", tmp_path / "there"
    run = here / "runs" / "loop"
    write_loop(run)
    (run / "round1" / "model").mkdir()
    (run / "round1" / "model" / "model.safetensors").write_text("weights")
    meta = {"root": f"{here}/runs/shapes/round1", "directory": f"{here}", "stage": "refine.py"}
    common.write_json(common.meta_path(run / "round1" / "pairs.jsonl"), meta)

    monkeypatch.setattr(ready, "ROOT", here)
    ready.pack(run, tmp_path / "ready.tar.xz")
    monkeypatch.setattr(ready, "ROOT", there)
    unpacked = there / "runs" / "loop"
    ready.unpack(tmp_path / "ready.tar.xz", unpacked)

    came = common.read_json(common.meta_path(unpacked / "round1" / "pairs.jsonl"))
    assert came == {"root": f"{there}/runs/shapes/round1", "directory": f"{there}", "stage": "refine.py"}
    for file in ("round1/pairs.jsonl", "round4/eval/results.json", "round3/eval/predictions.jsonl"):
        assert (unpacked / file).read_bytes() == (run / file).read_bytes()
    assert not list(unpacked.rglob("*.safetensors"))

    with pytest.raises(common.InputError, match="outside of"):  # as seen from there
        ready.pack(run, tmp_path / "again.tar.xz")
    (run / "round4" / "eval" / "results.json").unlink()
    with pytest.raises(common.InputError, match="no finished run"):
        ready.pack(run, tmp_path / "ready.tar.xz")


def test_ready_files_are_a_run_of_the_base_of_today(tmp_path, monkeypatch, capsys):
    """Else they are to be packed anew, from a new `make loop`."""
    ready.unpack(ready.ARCHIVE, tmp_path / "loop")
    [content] = common.read_keys(common.meta_path(tmp_path / "loop" / "round1" / "responses.jsonl"), "content")
    assert content["model"] == common.fingerprint(*common.model_directories("shapes/model"))
    metas = list((tmp_path / "loop").rglob("*.meta.json"))
    assert len(metas) == 5 * 3 + 4 * 4  # answers, critiques, pairs of five models; what four rounds made
    for path in metas:
        assert "/" not in [str(word)[:1] for word in common.read_json(path)["arguments"].values()], path

    monkeypatch.setattr(lesson0, "RUN", tmp_path / "loop")
    lesson0.check_guesses(guess_solution)
    report.report_loop(tmp_path / "loop")
    assert re.search(r"share of the closable gap: \d+%", capsys.readouterr().out)


def test_ready_files_do_not_replace_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(ready, "RUN", tmp_path)
    monkeypatch.setattr(sys, "argv", ["ready.py"])
    with pytest.raises(common.InputError, match="is there already"):
        ready.main()


def test_claims_of_lesson_6_need_their_controls(tmp_path, monkeypatch, capsys):
    """Its solution has no figures of a run: they are those of each student's own."""
    monkeypatch.setattr(lesson6, "RUN", tmp_path / "loop")
    monkeypatch.setattr(lesson6, "OUTPUT", tmp_path / "lesson6")
    write_loop(tmp_path / "loop")
    (tmp_path / "lesson6" / "eval").mkdir(parents=True)
    common.write_json(tmp_path / "lesson6" / "eval" / "results.json", {"accuracy": 0.63})
    own = types.SimpleNamespace(**vars(measuring_solution))
    own.WRONG_IN_ROUND_4, own.P_OF_ROUND_4_AGAINST_3, own.ACCURACY_AFTER_SHUFFLING = 1, 1.0, 0.63
    assert run(6, own, capsys)[0] == 0
    own.ACCURACY_AFTER_SHUFFLING = 0.9
    code, said = run(6, own, capsys)
    assert code == 1
    assert "ACCURACY_AFTER_SHUFFLING is 0.9; in your runs it is 0.630" in said


@pytest.mark.parametrize("patch", sorted(bugs.PATCHES.glob("*.patch")), ids=lambda path: path.stem)
def test_each_bug_is_still_a_patch_of_the_code(patch, tmp_path):
    """A change of the code that a patch does not fit any more must move the patch with it."""
    good = bugs.copy_code(tmp_path / "good", None)
    before = {path.relative_to(good): path.read_text() for path in good.rglob("*.py")}
    code = bugs.copy_code(tmp_path / "bad", patch.stem)
    changed = [path for path in code.rglob("*.py") if path.read_text() != before[path.relative_to(code)]]
    assert [path.name for path in changed] in (["dpo.py"], ["prefix.py"])


def test_shuffled_pairs_are_the_same_pairs(tmp_path, monkeypatch):
    pairs = [{"id": str(n), "video": "v", "chosen": f"c{n}", "rejected": f"r{n}"} for n in range(50)]
    common.write_jsonl(tmp_path / "pairs.jsonl", pairs)
    common.write_json(common.meta_path(tmp_path / "pairs.jsonl"), {})
    monkeypatch.setattr(sys, "argv", ["shuffle.py", str(tmp_path / "pairs.jsonl"), str(tmp_path / "new" / "s.jsonl")])
    shuffle.main()
    shuffled = common.read_jsonl(tmp_path / "new" / "s.jsonl")
    swapped = [row["chosen"].startswith("r") for row in shuffled]
    assert 15 < sum(swapped) < 35
    assert [{row["chosen"], row["rejected"]} for row in shuffled] == [{row["chosen"], row["rejected"]} for row in pairs]


@pytest.mark.slow
def test_the_course_needs_no_package_that_make_loop_does_not_install():
    """Whoever has run `make loop` has no matplotlib: importing each module of the course in a new process must not."""
    names = [f"course.{path.stem}" for path in sorted((ROOT / "course").glob("*.py"))]
    code = "import importlib, sys; sys.modules['matplotlib'] = None\n"
    code += f"for name in {names}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_recipe_may_not_change_what_is_the_same_for_all(tmp_path):
    recipe = tmp_path / "mine.txt"
    recipe.write_text("# three rounds\n--rounds 3 --lrs 1e-4 2e-5 1e-5  # smaller every round\n-- --beta 1 --run x\n")
    words = leaderboard.read_recipe(recipe)
    assert words[:6] == ["--rounds", "3", "--lrs", "1e-4", "2e-5", "1e-5"]
    assert words[6:] == ["--", "--beta", "1", "--run", "x"]
    recipe.write_text("--rounds 1 --model elsewhere")
    with pytest.raises(common.InputError, match="--model is the same for all"):
        leaderboard.read_recipe(recipe)


def test_who_keeps_the_budget_stands_before_who_does_not(tmp_path):
    entries = [
        {"recipe": "large", "accuracy": 0.95, "budget": "exceeded"},
        {"recipe": "a", "accuracy": 0.90, "budget": "kept"},
        {"recipe": "b", "accuracy": 0.91, "budget": "kept"},
    ]
    common.write_jsonl(tmp_path / "board.jsonl", entries)
    board = leaderboard.add(tmp_path / "board.jsonl", {"recipe": "a", "accuracy": 0.92, "budget": "kept"})
    assert [(entry["recipe"], entry["accuracy"]) for entry in board] == [("a", 0.92), ("b", 0.91), ("large", 0.95)]


@pytest.mark.slow
def test_the_leaderboard_runs_and_scores_a_recipe(tmp_path, monkeypatch, capsys):
    """On a world of three videos a round, and five of the benchmark."""
    monkeypatch.setattr(leaderboard, "RUNS", tmp_path)
    size = ["--videos", "3", "--benchmark-videos", "5", "--seed", "5"]
    monkeypatch.setattr(sys, "argv", ["world.py", str(tmp_path / "shapes-5"), *size])
    world.main()
    recipe = tmp_path / "two.txt"
    recipe.write_text("--rounds 2 --limit 2 --lrs 1e-4 1e-5\n-- --beta 3\n")
    monkeypatch.setattr(sys, "argv", ["leaderboard.py", str(recipe), "--seed", "5"])
    leaderboard.main()
    [entry] = common.read_jsonl(tmp_path / "leaderboard" / "5" / "board.jsonl")
    assert re.fullmatch(r"two-\w{6}", entry["recipe"])
    assert (entry["rounds"], entry["videos"], entry["budget"]) == (2, 4, "kept")
    assert 0 < entry["accuracy"] <= 1
    assert "two" in capsys.readouterr().out


def list_page_commands(name):
    """The commands of a lesson, from its blocks of code and from its lines, as lists of words."""
    text = (ROOT / "course" / name).read_text()
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [line.replace("\n", " ") for line in re.findall(r"`(python [^`]+)`", text)]
    return [shlex.split(line) for line in lines if line.startswith("python ")]


@pytest.mark.slow
def test_the_loop_of_lesson_0_and_the_commands_of_lesson_6(tmp_path, environment, monkeypatch, capsys):
    """Four rounds as `make loop` runs them, of a dozen videos each, then what the pages ask for."""
    runs = tmp_path / "runs"
    for split in ("round1", "round2", "round3", "round4", "dev", "test"):
        world.write_split(runs / "shapes", split, 12, seed=0)

    def run(*words):
        moved = [str(word).replace("runs/", f"{runs}/", 1) for word in words]
        done = subprocess.run(moved, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    options = ["--model", "shapes/model", "--videos", "runs/shapes/round{round}", "--run", "runs/loop"]
    options += ["--benchmark", "shapes", "runs/shapes/test", "--beside"]
    run("bash", "tools/loop.sh", *options, *leaderboard.read_recipe(ROOT / "shapes" / "recipes" / "paper.txt"))
    monkeypatch.setattr(lesson0, "RUN", runs / "loop")
    lesson0.check_guesses(guess_solution)
    assert "right after round 1" in capsys.readouterr().out

    commands = list_page_commands("6_measuring_honestly.md")
    assert len(commands) == 5
    for words in commands:
        if words[1:] != ["-m", "course.check", "6"]:  # that is for what the student writes
            run(*words)
    for made in ("eval/results.json", "by_base.jsonl"):
        assert (runs / "lesson6" / made).exists()


@pytest.mark.slow
def test_the_bugs_are_seen_in_the_metrics(tmp_path, monkeypatch, capsys):
    """On the pairs of a dozen videos: what lesson 5 says of each, but for the scores, which need more of them."""
    world.write_split(tmp_path / "videos", "round1", 12, seed=0)
    model = str(MODEL)
    stages = [
        (generate, tmp_path / "videos" / "round1", tmp_path / "responses.jsonl"),
        (critique, tmp_path / "responses.jsonl", tmp_path / "critiques.jsonl"),
        (refine, tmp_path / "critiques.jsonl", tmp_path / "pairs.jsonl"),
    ]
    for stage, source, target in stages:
        words = ["--model", model, "--input", source, "--output", target]
        monkeypatch.setattr(sys, "argv", [f"{stage.__name__}.py", *map(str, words)])
        stage.main()
    first, last = {}, {}
    for letter, bug in bugs.LETTERS.items():
        bugs.train(tmp_path / "pairs.jsonl", tmp_path / "videos" / "round1", bug, tmp_path / letter)
        first[letter], *_, last[letter] = common.read_jsonl(tmp_path / letter / "model" / "metrics.jsonl")
    good = first["good"]
    assert good["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["A"] == good | {"tokens/s": first["A"]["tokens/s"]}  # nothing to be seen before an update
    assert last["A"]["loss"] > 1.2 * last["good"]["loss"]
    assert first["B"]["loss"] == pytest.approx(good["loss"], abs=1e-4)
    assert abs(first["B"]["logps/chosen"] - good["logps/chosen"]) > 0.05
    assert first["C"]["lengths/chosen"] > 2 * good["lengths/chosen"]
    assert first["D"]["lengths/chosen"] == good["lengths/chosen"]
    assert first["D"]["logps/chosen"] < 3 * good["logps/chosen"]
    assert last["E"]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert last["E"]["logps/chosen"] != good["logps/chosen"]


@pytest.mark.parametrize("number", SOLUTIONS)
def test_a_solution_passes(number, capsys):
    code, said = run(number, SOLUTIONS[number], capsys)
    assert code == 0
    assert said.splitlines()[-1] == "mine.py: passed"


@pytest.mark.parametrize("number", STUBS)
def test_a_stub_is_not_written_yet(number, capsys):
    code, said = run(number, STUBS[number], capsys)
    assert code == 1
    assert said.startswith(f"mine.py: not written yet. Lesson: course/{number}_")


@pytest.mark.parametrize(("number", "line", "mistake", "told"), MISTAKES)
def test_a_mistake_is_told(number, line, mistake, told, capsys):
    source = inspect.getsource(SOLUTIONS.get(number, measuring_solution))
    assert source.count(line) == 1
    wrong = types.ModuleType("wrong")
    exec(source.replace(line, mistake), vars(wrong))
    code, said = run(number, wrong, capsys)
    assert code == 1
    failed = said.partition("not yet: ")[2]
    assert any(part in failed for part in told.replace("\\", "").split("|")), said


def test_the_replies_are_read_so_by_the_project(capsys):
    """The verdicts were written down by hand; prompts/verdict.py agrees with all 40."""
    replies = lesson2.read_replies()
    assert len(replies) == 40
    for reply in replies:
        verdict = prompts.parse_error_types(reply["critique"])
        assert (None if verdict is None else sorted(verdict)) == reply["verdict"], reply


def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check.py", "3", "--solutions"])
    with pytest.raises(SystemExit) as end:
        check.main()
    assert end.value.code == 0
    assert "course/solutions/loss.py: passed" in capsys.readouterr().out
