"""Does it really learn? The loop beside its controls, scored on `dev`.

    python -m tools.study              # 8 variants, 3 loop seeds, 4 rounds
    python -m tools.study --bases 3    # and the loop itself on 2 more bases

All in the tiny world. At the end the tables are printed and the plot is
written (tools/study_tables.py). The stages run as they are, with the recipe
of shapes/recipes/paper.txt; a control changes what lies between two of them. Run it
again: it resumes.

    dpo              the loop
    sft              the loop, but cross-entropy on the chosen answers of its
                     pairs in place of DPO
    sft-all          cross-entropy on all revisions, whatever the critic said;
                     most repeat the answer, so these are three times as many
                     rows
    shuffled         which answer of a pair is chosen is drawn by lot
    second-sample    chosen is a second answer to the same question, without
                     critique; as many pairs as the gate leaves, out of all
                     questions
    no-gate          every revision that differs is chosen, whatever the
                     critic said (where it found nothing, few differ)
    frozen-critic    the critic of every round is the base
    fixed-reference  the reference of every round is the base

And one round each, for what makes the difference between dpo and sft-all:

    sft-matched      cross-entropy on as many of all revisions as dpo has
                     pairs, drawn by lot
    sft-unflagged    cross-entropy on the revisions that make no pair: nearly
                     all repeat an answer in which the critic found nothing
    sft-all-2e-4     sft-all at twice the learning rate
    dpo-600          dpo on the pairs from 600 videos in place of 200: about
                     as many pairs as sft-all has rows
    sft-600          cross-entropy on the chosen answers of these pairs

A loop seed decides what is sampled and the order of training, not the videos
or the base; in round 1 dpo, frozen-critic and fixed-reference are the same.
Only scoring sees the truth. beta and the learning rates were chosen for dpo,
on `dev`; the others take them as they are.
"""

import argparse
import concurrent.futures
import contextlib
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import filelock
import numpy as np
import torch

import common
import critique
import dpo
import evaluate
import generate
import prompts
import refine
import vlm
from shapes import world
from tools.study_tables import BENCHMARKS, measure, plot, print_tables

VARIANTS = (
    "dpo",
    "sft",
    "sft-all",
    "shuffled",
    "second-sample",
    "no-gate",
    "frozen-critic",
    "fixed-reference",
)
UNGATED = ("sft-all", "no-gate")  # with refine.py --gate none
ONE_ROUND = ("sft-matched", "sft-unflagged", "sft-all-2e-4", "dpo-600", "sft-600")
SEEDS = (1, 2, 3)
ROUNDS = (1, 2, 3, 4)

# The recipe of shapes/recipes/paper.txt, with which tests/test_study.py compares it
BETA = 3
EPOCHS = 2
LRS = (1e-4, 2e-5, 1e-5, 5e-6)  # one a round

BASE = "shapes/model"
VIDEOS = Path("runs/shapes")  # as python -m shapes.world writes them

# ------------------------------------------------------------------------------
# A round


def run_round(variant: str, loop_seed: int, base: Path, run: Path, n: int):
    """Run round n of a variant: make its pairs, train on them, score the trained model.

    Args:
        base: directory of the model that round 1 starts from
        run: directory of the run, whose rounds are written to run / round<n>
    """
    out = run / f"round{n}"
    seed = 10 * loop_seed + n
    model = base if n == 1 else run / f"round{n - 1}" / "model"
    if n == 1 and variant != "dpo":
        copy_answers(run.parent / "dpo" / "round1", out)
    pairs = make_pairs(variant, seed, base, model, out)

    reference = contextlib.nullcontext()
    if variant == "fixed-reference":
        reference = fixed_reference(base)
    with reference:
        train(variant, model, pairs, out / "model", LRS[n - 1], seed)

    is_last = n == ROUNDS[-1]
    for benchmark in BENCHMARKS.values():
        if benchmark == "dev" or is_last:
            score(out / "model", base, out, benchmark)


def copy_answers(source: Path, target: Path):
    """Copy responses and critiques of a round 1: with these all variants of a seed begin."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.glob("[rc]*s.jsonl*"):  # and their meta.json
        shutil.copy(file, target / file.name)


def make_pairs(variant: str, seed: int, base: Path, model: Path, out: Path) -> Path:
    """Run stages 1 to 3 of a round, with what the variant changes between them.

    Returns:
        the file that dpo.py reads
    """
    responses = out / "responses.jsonl"
    critiques = out / "critiques.jsonl"
    pairs = out / "pairs.jsonl"
    videos = VIDEOS / out.name
    critic = base if variant == "frozen-critic" else model

    run_stage(generate, model, videos, responses, "--seed", seed)
    run_stage(critique, critic, responses, critiques)
    gate = "none" if variant in UNGATED else "critic"
    run_stage(refine, model, critiques, pairs, "--gate", gate)

    def change(rows):
        if variant == "sft-all":
            return [dpo.take_revision(row) for row in rows]  # as --sft-on revised does
        if variant == "shuffled":
            return shuffle_preferences(rows, seed)
        if variant == "second-sample":
            return prefer_second_samples(rows, seed, model, videos)
        return rows

    return edit(pairs, out / "edited.jsonl", change)


@contextlib.contextmanager
def fixed_reference(base: Path):
    """Make dpo.py compute the reference under the base, whatever model the round starts from.

    dpo.py checks that the margins of its first step are 0. Here they are not, so the check is off.
    """
    reference_logps = dpo.reference_logps

    def under_base(model, *rest):
        return reference_logps(vlm.load_model(base, ["cpu"]), *rest)

    def check_nothing(*arguments):
        pass

    with (
        mock.patch.object(dpo, "reference_logps", under_base),
        mock.patch.object(dpo, "check_first_margin", check_nothing),
    ):
        yield


def train(name: str, model: Path, pairs: Path, output: Path, lr: float, seed: int):
    """Run dpo.py: cross-entropy for a name that begins with sft, else DPO."""
    loss = ("--beta", BETA)
    if name.startswith("sft"):
        loss = ("--loss", "sft")
    run_stage(dpo, model, pairs, output, *loss, "--epochs", EPOCHS, "--lr", lr, "--seed", seed)


def score(model: Path, base: Path, out: Path, benchmark: str):
    """Score a model's answers to a benchmark: by truth; those to dev also by itself and the base.

    Both are critics of the same answers: critiques.jsonl is the model's, by_base.jsonl the base's.
    """
    scores = out / benchmark
    run_stage(evaluate, model, VIDEOS / benchmark, scores, "--benchmark", "shapes")
    if benchmark == "dev":
        answers = scores / "predictions.jsonl"
        run_stage(critique, model, answers, scores / "critiques.jsonl")
        run_stage(critique, base, answers, scores / "by_base.jsonl")


def score_base(base: Path, out: Path):
    """Score a base on all benchmarks, and revise its answers to dev."""
    for benchmark in BENCHMARKS.values():
        score(base, base, out, benchmark)
    run_stage(refine, base, out / "dev" / "critiques.jsonl", out / "dev" / "pairs.jsonl")


def run_one_round(name: str, loop_seed: int, base: Path, run: Path, lr: float):
    """Train the base for one round on other rows than the loop does, and score it on dev.

    Args:
        name: one of ONE_ROUND
        run: directory to write to, beside the variants of the same seed, whose rows are read
    """
    seed = 10 * loop_seed + 1
    others = run.parent
    paired = set()
    for row in common.read_jsonl(others / "dpo" / "round1" / "edited.jsonl"):
        if "chosen" in row:
            paired.add(row["id"])

    run.mkdir(parents=True, exist_ok=True)
    if name == "dpo-600":
        make_pairs_of_three_rounds(seed, base, run)
    if name in ("dpo-600", "sft-600"):
        source = others / "dpo-600" / "pairs.jsonl"
    else:
        source = others / "sft-all" / "round1" / "edited.jsonl"

    def change(rows):
        if name == "sft-matched":
            return draw_pairs(rows, len(paired), seed)
        if name == "sft-unflagged":
            return [row for row in rows if row["id"] not in paired]
        return rows

    pairs = edit(source, run / "edited.jsonl", change)
    train(name, base, pairs, run / "model", lr, seed)
    run_stage(evaluate, run / "model", VIDEOS / "dev", run / "dev", "--benchmark", "shapes")


def make_pairs_of_three_rounds(seed: int, base: Path, run: Path):
    """Run stages 1 to 3 with the base on the videos of three rounds at once."""
    videos = [VIDEOS / f"round{n}" for n in (1, 2, 3)]
    run_stage(generate, base, videos, run / "responses.jsonl", "--seed", seed)
    run_stage(critique, base, run / "responses.jsonl", run / "critiques.jsonl")
    run_stage(refine, base, run / "critiques.jsonl", run / "pairs.jsonl")


def run_stage(module, model: Path, inputs: Path | list[Path], output: Path, *more):
    """Run a stage in this process, as its command would.

    Args:
        inputs: one path, or the list of them that generate.py takes
        more: options and their values, of any type
    """
    if not isinstance(inputs, list):
        inputs = [inputs]
    words = ["--model", model, "--input", *inputs, "--output", output, "--devices", "cpu", *more]
    sys.argv = [f"{module.__name__}.py", *map(str, words)]
    module.main()


# ------------------------------------------------------------------------------
# What a control changes between two stages


def edit(source: Path, target: Path, change: Callable) -> Path:
    """Write the rows of a stage's output, changed, as another output that the next stage reads.

    Args:
        change: function from rows to rows; not called where the target exists

    Returns:
        target
    """
    if not target.exists():
        rows = change(common.read_jsonl(source, ("id", "video")))
        shutil.copy(common.meta_path(source), common.meta_path(target))
        common.write_jsonl(target, rows)
    return target


def shuffle_preferences(rows: list[dict], seed: int) -> list[dict]:
    """Swap chosen and rejected in about half of the pairs, drawn by lot."""
    lot = random.Random(seed)
    changed = []
    for row in rows:
        if "chosen" in row and lot.random() < 0.5:
            changed.append(row | {"chosen": row["rejected"], "rejected": row["chosen"]})
        else:
            changed.append(row)
    return changed


def prefer_second_samples(rows: list[dict], seed: int, directory, root: Path) -> list[dict]:
    """Replace the pairs by as many others: a second sampled answer is preferred to the first.

    They are drawn out of all rows with a critique in which the two answers differ.

    Args:
        directory: of the model that gives the second answers
        root: of the videos
    """
    keys = ("id", "video", "kind", "question", "initial")
    answered = [row for row in rows if "critique" in row]
    firsts = [{key: row[key] for key in keys} for row in answered]
    pairs = pair_with_second_samples(firsts, seed, directory, root)

    n_pairs = sum("chosen" in row for row in rows)
    kept = {row["id"] for row in draw_pairs(pairs, n_pairs, seed)}
    return [row for row in pairs if row["id"] in kept]  # in their order, not in that of the draw


def pair_with_second_samples(firsts: list[dict], seed: int, directory, root: Path) -> list[dict]:
    """Answer all questions once more -> a pair for each row whose answer is whole and another."""
    model = vlm.load_model(directory, ["cpu"])
    tokenizer = vlm.load_tokenizer(directory)
    args = argparse.Namespace(  # generate.py's defaults, but for the seed
        model=directory,
        seed=f"second/{seed}",
        frames=None,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=256,
    )
    wording = prompts.choose(args, [])
    pairs = []
    groups = common.group_by_video(firsts)
    for group, video in vlm.watch_each(model, tokenizer, groups, root, args):
        seconds = [dict(row) for row in group]
        shown = vlm.Shown([(seconds, video)])
        generate.write_answers(model, tokenizer, shown, wording.answer, args)
        for first, second in zip(group, seconds):
            if "dropped" not in second and second["initial"] != first["initial"]:
                pairs.append(first | {"chosen": second["initial"], "rejected": first["initial"]})
    return pairs


def draw_pairs(rows: list[dict], n: int, seed: int) -> list[dict]:
    """Draw n pairs by lot, or all of them where there are fewer."""
    pairs = [row for row in rows if "chosen" in row]
    return random.Random(seed).sample(pairs, min(len(pairs), n))


# ------------------------------------------------------------------------------
# What the study is run on


def make_videos():
    """Make the tiny world, and its benchmark of the loop's own videos, where they are missing."""
    if not (VIDEOS / "test" / "questions.json").exists():  # the last file that is written
        subprocess.run([sys.executable, "-m", "shapes.world", VIDEOS], check=True)
    if not (VIDEOS / "seen" / "questions.json").exists():
        make_seen()


def make_seen(n: int = 38):
    """Make a benchmark of videos that the loop learns from, n of each round.

    Its questions are those that the world asks, not those that the model asked.
    """
    directory = VIDEOS / "seen"
    (directory / "videos").mkdir(parents=True, exist_ok=True)
    seen = Counter()
    rng = np.random.default_rng(0)
    rows = []
    for number in ROUNDS:
        split = f"round{number}"
        for index in range(n):
            name = f"{split}_{index:04}.mp4"
            shutil.copy(VIDEOS / split / name, directory / "videos")
            scene = world.make_scene(0, split, index)
            rows += world.draw_questions(scene, name, seen, rng)
    common.write_json(directory / "questions.json", rows)


def make_bases(n: int, directory: Path) -> dict[int, Path]:
    """Make n bases: the shipped one, and others that shapes/pretrain.py makes from other seeds.

    Returns:
        {seed: directory of the model}; seed 0 is the shipped one
    """
    bases = {0: Path(BASE)}
    for seed in range(1, n):
        bases[seed] = directory / "bases" / f"{seed}"
    for seed, path in bases.items():
        if not (path / "training.json").exists():  # the last file that is written
            command = [sys.executable, "-m", "shapes.pretrain", path, "--seed", f"{seed}"]
            subprocess.run(command, check=True)
    return bases


# ------------------------------------------------------------------------------
# The study


class Run(NamedTuple):
    """The rounds of one variant, from one base and with one loop seed."""

    base: int  # seed of the base
    variant: str
    seed: int  # of the loop


class Job(NamedTuple):
    """What one process does without waiting for another."""

    task: Callable
    arguments: tuple


def list_runs(bases: dict[int, Path]) -> list[Run]:
    """List all runs: every variant on the shipped base, and the loop alone on the others."""
    runs = []
    for seed in SEEDS:
        for variant in VARIANTS:
            for base in bases:
                if base == 0 or variant == "dpo":
                    runs.append(Run(base, variant, seed))
    return runs


def base_directory(output: Path, base: int) -> Path:
    """Name the directory of a base's own scores."""
    return output / f"base{base}" / "base"


def run_directory(output: Path, run: Run) -> Path:
    """Name the directory of a run."""
    return output / f"base{run.base}" / f"seed{run.seed}" / run.variant


def plan_phases(runs: list[Run], bases: dict[int, Path], output: Path) -> list[list[Job]]:
    """Plan all jobs in phases: a job reads only what those of earlier phases write."""
    loops = [run for run in runs if run.variant == "dpo"]
    controls = [run for run in runs if run.variant != "dpo"]
    first, *later = ROUNDS

    scores = []
    for seed, path in bases.items():
        scores.append(Job(score_base, (path, base_directory(output, seed))))
    phases = [scores]
    phases.append(plan_round(first, loops, bases, output))
    phases.append(plan_round(first, controls, bases, output))  # they copy the loop's answers
    for n in later:
        phases.append(plan_round(n, runs, bases, output))

    names = [name for name in ONE_ROUND if name != "sft-600"]
    phases.append(plan_one_round(names, bases[0], output))
    phases.append(plan_one_round(["sft-600"], bases[0], output))  # it reads the pairs of dpo-600
    return phases


def plan_round(n: int, runs: list[Run], bases: dict[int, Path], output: Path) -> list[Job]:
    """Plan round n of some runs."""
    jobs = []
    for run in runs:
        directory = run_directory(output, run)
        jobs.append(Job(run_round, (run.variant, run.seed, bases[run.base], directory, n)))
    return jobs


def plan_one_round(names: list[str], base: Path, output: Path) -> list[Job]:
    """Plan those that have one round alone."""
    jobs = []
    for seed in SEEDS:
        for name in names:
            lr = 2 * LRS[0] if name == "sft-all-2e-4" else LRS[0]
            directory = run_directory(output, Run(0, name, seed))
            jobs.append(Job(run_one_round, (name, seed, base, directory, lr)))
    return jobs


def run_phases(phases: list[list[Job]], log: Path):
    """Run the jobs, phase by phase, in as many processes as there are cores."""
    spawn = multiprocessing.get_context("spawn")
    n_jobs = sum(len(phase) for phase in phases)
    with (
        concurrent.futures.ProcessPoolExecutor(mp_context=spawn) as pool,
        common.progress(total=n_jobs, unit="round") as bar,
    ):
        for phase in phases:
            futures = [pool.submit(run_quietly, log, job) for job in phase]
            for done in concurrent.futures.as_completed(futures):
                done.result()  # raises what the job raised
                bar.update()


def run_quietly(log: Path, job: Job):
    """Run a job in a worker process; what it prints is appended to the log."""
    torch.set_num_threads(1)
    with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        job.task(*job.arguments)


def measure_runs(runs: list[Run], output: Path) -> dict[Run, list[dict]]:
    """Measure all runs -> {run: [figures of its base, of round 1, of round 2, ...]}."""
    figures = {}
    for run in runs:
        directory = run_directory(output, run)
        rounds = [measure(base_directory(output, run.base))]
        for n in ROUNDS:
            rounds.append(measure(directory / f"round{n}"))
        figures[run] = rounds
    return figures


def measure_one_round(output: Path) -> dict[str, list[tuple]]:
    """Measure those of one round -> {name: [(rows trained on, accuracy on dev) of each seed]}."""
    figures = {}
    for name in ONE_ROUND:
        figures[name] = []
        for seed in SEEDS:
            directory = run_directory(output, Run(0, name, seed))
            rows = common.read_jsonl(directory / "edited.jsonl")
            n_rows = sum("chosen" in row for row in rows)
            [accuracy] = common.read_keys(directory / "dev" / "results.json", "accuracy")
            figures[name].append((n_rows, accuracy))
    return figures


def lock_output(output: Path):
    """Create and lock the output directory -> the lock, held as long as the caller keeps it.

    Raises:
        InputError: if another study has locked it; two would run the same rounds
    """
    output.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(output / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise common.InputError(f"another study is writing to {output}") from None
    return lock


def main():
    """Run what is missing of the study, then print its tables and draw its plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument(
        "--bases",
        type=common.at_least(1),
        default=1,
        help="how many bases; each but the first is pretrained for half an hour",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/study"), help="directory of the study"
    )
    args = parser.parse_args()

    lock = lock_output(args.output)
    os.environ["OMP_NUM_THREADS"] = "1"  # of all processes started here: there is one a core
    make_videos()
    bases = make_bases(args.bases, args.output)
    runs = list_runs(bases)
    run_phases(plan_phases(runs, bases, args.output), args.output / "study.log")

    figures = measure_runs(runs, args.output)
    by_name = {" ".join(map(str, run)): rounds for run, rounds in figures.items()}
    common.write_json(args.output / "study.json", by_name)
    print_tables(figures, measure_one_round(args.output), bases)
    plot(figures, args.output / "study.png")
    lock.release()


if __name__ == "__main__":
    common.run(main)
