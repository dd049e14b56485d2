"""What a course changes in this code is a small patch; each is applied here to a copy of the code, and run there."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import common
import media
import prompts
import test_dpo
import test_prefix
import vlm
from shapes import patterns, world

ROOT = Path(__file__).parent.parent
PATCHES = Path(__file__).parent / "patches"


def copy_repository(tmp_path):
    """Copy the stages, what they import, and the tiny model -> the copy's directory."""
    directory = tmp_path / "repository"
    for room in (".", "media", "outputs", "prompts", "vlm", "benchmarks", "shapes"):
        (directory / room).mkdir(exist_ok=True)
        for file in (ROOT / room).glob("*.py"):
            shutil.copy(file, directory / room)
    shutil.copytree(ROOT / "shapes" / "model", directory / "shapes" / "model")
    return directory


def apply(patch, directory):
    """Apply a patch of tests/patches to a copy of the repository."""
    subprocess.run(["git", "apply", PATCHES / patch], cwd=directory, check=True)


def run(directory, *words):
    """Run Python in a copy of the repository -> (its standard output, its standard error)."""
    command = [sys.executable, *(str(word) for word in words)]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


# ------------------------------------------------------------------------------
# A loss of one's own: SimPO (arXiv 2405.14734), without a reference and normalized by length


@torch.no_grad()
def mean_logps(model, tokenizer, directory):
    """Compute log pi(y) / |y| of the answers in test_dpo's pairs, each as one ordinary sequence -> (2, 4)."""
    means = []
    for name, question, *answers in test_dpo.PAIRS:
        video = vlm.Video(model, tokenizer, media.sample_frames(directory / name, model.config.num_frames).frames)
        prompt = prompts.fill(patterns.USUAL["answer"], question=question)
        for answer in answers:
            branch = vlm.encode_branch(tokenizer, prompt, answer)
            means.append(test_prefix.logp_alone(model, video, branch) / len(branch.answer))
    return torch.stack(means).view(4, 2).T


@pytest.mark.slow
def test_simpo_is_one_branch_of_dpo_loss(tmp_path, model, tokenizer):
    copy = copy_repository(tmp_path)
    apply("simpo.patch", copy)
    pairs = test_dpo.write_pairs(tmp_path)
    command = ["dpo.py", "--model", "shapes/model", "--input", pairs, "--output", tmp_path / "model"]
    command += ["--devices", "cpu", "--loss", "simpo", "--beta", 2.0]
    command += ["--lr", 1e-3, "--epochs", 4, "--videos-per-step", 2, "--warmup", 0]
    out, err = run(copy, *command)

    # No reference pass, and no sentence about the first step
    assert "last loss" in out
    assert "reference" not in out + err
    assert "first step" not in out

    # A pair's loss is -log sigmoid(beta * (mean log pi(y_w) - mean log pi(y_l)) - gamma), beta 2 and gamma 0.5 here;
    # the first step has all four pairs
    chosen, rejected = mean_logps(model, tokenizer, tmp_path)  # (4,) each
    margins = (chosen - rejected).tolist()
    losses = [math.log(1 + math.exp(-(2.0 * margin - 0.5))) for margin in margins]
    metrics = test_dpo.read_metrics(tmp_path / "model")
    assert metrics[0]["loss"] == pytest.approx(sum(losses) / 4, abs=1e-4)
    assert metrics[0]["rewards/chosen"] == pytest.approx(2.0 * chosen.mean().item(), abs=1e-4)
    assert metrics[0]["rewards/rejected"] == pytest.approx(2.0 * rejected.mean().item(), abs=1e-4)
    assert metrics[-1]["loss"] < metrics[0]["loss"] / 2


# ------------------------------------------------------------------------------
# Another kind of question and another type of error

# Runs the two stages on a directory of videos, and shows what the patched modules make of a new verdict
ASK_AND_CRITICISE = """
import argparse, json, sys
import common, critique, generate, prompts
from prompts.wording import spell_out

def run(stage, *words):
    sys.argv = [f"{stage.__name__}.py", "--model", "shapes/model", "--devices", "cpu", *words]
    stage.main()

videos = sys.argv[1]
counts = ["--causal", "2", "--spatial", "1", "--temporal", "0"]
run(generate, "--input", videos, "--output", "responses.jsonl", *counts)
run(critique, "--input", "responses.jsonl", "--output", "critiques.jsonl")

rows = common.read_jsonl("critiques.jsonl")
errors = prompts.parse_error_types("There are two shapes. Errors: miscounting, causal_reasoning")
common.write_jsonl("edited.jsonl", [row | {"error_types": errors} for row in rows])
edited = common.read_jsonl("edited.jsonl", ("error_types",), error_types=prompts.ERROR_TYPES)
wording = prompts.choose(argparse.Namespace(model="none", prompts=None), [])
counts = {"causal": 2, "spatial": 0, "temporal": 0}
asked = [prompt for _, _, prompt in prompts.list_questions(wording.questions, counts)]
prompt = spell_out(wording, "critique")["critique"]
seen = {"asked": asked, "rows": rows, "prompt": prompt, "errors": errors, "edited": edited}
common.write_json("seen.json", seen)
"""


@pytest.mark.slow
def test_kinds_of_questions_and_types_of_errors_have_one_home_each(tmp_path):
    copy = copy_repository(tmp_path)
    apply("questions.patch", copy)
    videos = tmp_path / "videos"
    videos.mkdir()
    for number, name in enumerate(("a.mp4", "b.mp4")):
        world.render(world.make_scene(0, "dev", number), videos / name)
    run(copy, "-c", ASK_AND_CRITICISE, videos)
    seen = common.read_json(copy / "seen.json")

    ids = [f"{name}/{row}" for name in ("a.mp4", "b.mp4") for row in ("spatial/0", "causal/0", "causal/1")]
    assert [row["id"] for row in seen["rows"]] == ids
    assert [row["kind"] for row in seen["rows"]] == ["spatial", "causal", "causal"] * 2
    assert all(row["question"] for row in seen["rows"])
    assert "what would not have happened without something else" in seen["asked"][1]

    assert " and miscounting (wrong number of objects or events). If the answer is right" in seen["prompt"]
    assert seen["errors"] == ["causal_reasoning", "miscounting"]
    assert [row["error_types"] for row in seen["edited"]] == [seen["errors"]] * 6
    # Without the patch such a row is refused
    with pytest.raises(common.InputError, match="line 1: unknown error type 'miscounting'"):
        common.read_jsonl(copy / "edited.jsonl", error_types=prompts.ERROR_TYPES)


# ------------------------------------------------------------------------------
# A benchmark of one's own, with another form of answer


@pytest.mark.slow
def test_a_yes_no_benchmark_is_understood_by_the_shipped_model(tmp_path):
    """At least 95% of the replies are yes or no, and they are right more often than one word always would be."""
    copy = copy_repository(tmp_path)
    apply("yes_no.patch", copy)
    world.write_split(tmp_path, "dev", 80, seed=0)
    run(copy, "-m", "shapes.more", tmp_path / "dev")
    output = tmp_path / "eval"
    words = ["--model", "shapes/model", "--devices", "cpu", "--input", tmp_path / "dev", "--output", output]
    run(copy, "evaluate.py", "--benchmark", "yes_no", *words)

    rows = common.read_jsonl(output / "predictions.jsonl")
    parsed = [row for row in rows if row["parsed"] is not None]
    assert len(rows) > 500
    assert len(parsed) >= 0.95 * len(rows)
    share_of_yes = sum(row["answer"] == 0 for row in rows) / len(rows)
    low, _ = common.read_json(output / "results.json")["interval"]
    assert low > max(share_of_yes, 1 - share_of_yes)
