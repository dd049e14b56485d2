"""Does it really learn? The loop beside its controls, scored on `dev`.

    python -m tools.study                  # all variants, 3 loop seeds, 4 rounds
    python -m tools.study --bases 0 1 2    # and some of them on 2 more bases
    python -m tools.study --seeds 1 --only replay     # a first look, at one of them
    python -m tools.study --record docs/study.jsonl --only paper    # docs/study.md's tables

All in the tiny world. At the end the tables are printed and the plot is
written (tools/study_tables.py, study_plot.py). The stages run as they are, with the recipe
of shapes/recipes/paper.txt; what a variant changes of it is in
tools/study_variants.py, and is listed below. Run it again: it resumes.

A loop seed decides what is sampled and the order of training, not the videos
or the base. In round 1 all variants of a seed begin with the same answers and
critiques. Only scoring sees the truth. beta and the learning rates were chosen
for the paper's loop, on `dev`; the others take them as they are where nothing
else is said, and those that replay take the first round's rate in all rounds.
"""

import argparse
import concurrent.futures
import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np
import torch

import common
import critique
import dpo
import evaluate
import generate
import refine
from shapes import world
from tools import agree, answer, shift
from tools.average import average
from tools.study_plot import plot
from tools.study_record import (
    Key,
    Run,
    list_figures,
    list_one_round,
    read_record,
    write_record,
)
from tools.study_tables import BENCHMARKS, measure, measure_scores, print_tables
from tools.study_variants import FIRST, ONE_ROUND, POOLS, SHIFTS, VARIANTS, OneRound, Variant

SEEDS = [1, 2, 3]  # of the loop
ROUNDS = (1, 2, 3, 4)

# The recipe of shapes/recipes/paper.txt, with which tests/test_study.py compares it
BETA = 3
EPOCHS = 2
LRS = (1e-4, 2e-5, 1e-5, 5e-6)  # one a round
TOGETHER = ("--videos-per-batch", 4)

BASE = Path("shapes/model")  # of seed 0
SISTERS = Path("shapes/sisters")  # bases of other seeds that come with the repository
VIDEOS = Path("runs/shapes")  # as python -m shapes.world writes them
MORE_VIDEOS = Path("runs/shapes600")  # the same world, with 600 videos a round

# ------------------------------------------------------------------------------
# A round


def run_round(name: str, loop_seed: int, base: Path, run: Path, n: int):
    """Run round n of a variant: make its pairs, train on them, score the trained model.

    Args:
        name: one of VARIANTS
        base: directory of the model that round 1 starts from
        run: directory of the run, whose rounds are written to run / round<n>
    """
    variant = VARIANTS[name]
    if n == 1 and begin_as_the_paper(name, run):
        return
    out = run / f"round{n}"
    seed = 10 * loop_seed + n
    before = base if n == 1 else find_model(run / f"round{n - 1}")
    make_pairs(variant, seed, base, before, out)
    if variant.replay:
        pairs = [run / f"round{number}" / "edited.jsonl" for number in range(1, n + 1)]
        start, lr = base, LRS[0]
    else:
        pairs = [out / "edited.jsonl"]
        start, lr = before, LRS[n - 1]
    train(variant, start, pairs, out / "model", seed, lr, EPOCHS)
    if variant.average and n > 1 and not (out / "average").exists():
        trained = [run / f"round{number}" / "model" for number in range(1, n + 1)]
        average(trained, out / "average")

    is_last = n == ROUNDS[-1]
    for benchmark in BENCHMARKS.values():
        if benchmark == "dev" or is_last:
            score(find_model(out), base, out, benchmark)


def find_model(out: Path) -> Path:
    """Find the model that a round ended with."""
    return out / "average" if (out / "average").exists() else out / "model"


def begin_as_the_paper(name: str, run: Path) -> bool:
    """Copy what a variant's first round has of the paper's loop with the same videos.

    These are the answers and critiques, so that all variants of a seed begin with the same; of a
    variant that differs in later rounds alone, all of it.

    Returns:
        whether that is the whole round
    """
    variant = VARIANTS[name]
    first = name_first(variant)
    if name == first:
        return False
    source = run.parent / first / "round1"
    out = run / "round1"
    if is_as_the_paper_at_first(variant):
        shutil.copytree(source, out, dirs_exist_ok=True)
        return True
    out.mkdir(parents=True, exist_ok=True)
    for file in source.glob("[rc]*s.jsonl*"):  # responses and critiques, and their meta.json
        shutil.copy(file, out / file.name)
    return False


def name_first(variant: Variant) -> str:
    """Name the variant, out of FIRST, that has the same videos."""
    return next(name for name in FIRST if VARIANTS[name].videos == variant.videos)


def is_as_the_paper_at_first(variant: Variant) -> bool:
    """Say whether a variant's first round is that of the paper's loop.

    Replay, averages and the base as critic differ in later rounds alone: in the first one there are
    no earlier pairs or models, and the base is the model.
    """
    return (variant.loss, variant.gate, variant.change) == ("sigmoid", "critic", None)


def make_pairs(variant: Variant, seed: int, base: Path, model: Path, out: Path):
    """Run stages 1 to 3 of a round, and write edited.jsonl: their rows as the variant changes them.

    model: the one that is asked
    """
    responses = out / "responses.jsonl"
    critiques = out / "critiques.jsonl"
    pairs = out / "pairs.jsonl"
    videos = (VIDEOS if variant.videos == 200 else MORE_VIDEOS) / out.name
    critic = base if variant.by_base else model

    run_stage(generate, model, videos, responses, "--seed", seed, *TOGETHER)
    run_stage(critique, critic, responses, critiques, *TOGETHER)
    run_stage(refine, critic, critiques, pairs, "--gate", variant.gate, *TOGETHER)
    if variant.change:
        edit(pairs, out / "edited.jsonl", lambda rows: variant.change(rows, seed, model, videos))
    else:
        edit(pairs, out / "edited.jsonl", lambda rows: rows)


def train(
    how: Variant | OneRound,
    model: Path,
    pairs: list[Path],
    output: Path,
    seed: int,
    lr: float,
    epochs: int,
):
    """Run dpo.py, with the loss of a variant."""
    options = ["--loss", how.loss, "--beta", BETA, "--epochs", epochs, "--lr", lr, "--seed", seed]
    options += ["--tune", how.tune]
    if how.nll_weight:
        options += ["--nll-weight", how.nll_weight]
    run_stage(dpo, model, pairs, output, *options)


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


def make_pool(name: str, loop_seed: int, base: Path, out: Path):
    """Run stages 1 to 3 with the base on the videos of all rounds at once.

    name: one of POOLS
    """
    pool = POOLS[name]
    root = VIDEOS if pool.videos == 200 else MORE_VIDEOS
    videos = [root / f"round{n}" for n in ROUNDS]
    how = ("--seed", 10 * loop_seed + 1, "--temperature", pool.temperature)
    run_stage(generate, base, videos, out / "responses.jsonl", *how, *TOGETHER)
    run_stage(critique, base, out / "responses.jsonl", out / "critiques.jsonl", *TOGETHER)
    run_stage(refine, base, out / "critiques.jsonl", out / "pairs.jsonl", *TOGETHER)
    if pool.views:
        ask_about_copies(base, out)


def ask_about_copies(base: Path, out: Path):
    """Ask a pool's questions about the shifted copies, too, and drop rows on which views disagree.

    Each copy is answered, criticised and revised by itself: out / its name / pairs.jsonl.
    """
    views = [out / "pairs.jsonl"]
    for name in SHIFTS:
        copy = out / name
        moved = ("--videos", name_copies(name), *TOGETHER)
        run_stage(answer, base, out / "responses.jsonl", copy / "responses.jsonl", *moved)
        run_stage(critique, base, copy / "responses.jsonl", copy / "critiques.jsonl", *TOGETHER)
        run_stage(refine, base, copy / "critiques.jsonl", copy / "pairs.jsonl", *TOGETHER)
        views.append(copy / "pairs.jsonl")
    if not all(view.with_name(agree.NAME).exists() for view in views):
        agree.write_agreed(views)


def run_one_round(name: str, loop_seed: int, base: Path, run: Path):
    """Train the base for one round on other rows than the loop does, and score it on dev.

    Args:
        name: one of ONE_ROUND
        run: directory to write to, beside the variants of the same seed, whose rows are read
    """
    one = ONE_ROUND[name]
    seed = 10 * loop_seed + 1
    run.mkdir(parents=True, exist_ok=True)
    source = run.parent / one.source
    pairs = [edit(source, run / "edited.jsonl", lambda rows: one.choose(rows, seed))]
    if one.views:
        for copy in SHIFTS:
            about_copy = source.parent / copy / source.name
            target = run / f"edited-{copy}.jsonl"
            pairs.append(edit(about_copy, target, lambda rows: one.choose(rows, seed)))
    trained = []
    for number in range(one.trainings):
        trained.append(run / f"model{number}")
        order = seed + 100 * number
        train(one, base, pairs, trained[-1], order, one.lr or LRS[0], one.epochs or EPOCHS)
    model = trained[0]
    if one.trainings > 1:
        model = run / "average"
        if not model.exists():
            average(trained, model)
    for benchmark in ("dev", "hard"):
        words = ["--benchmark", "shapes", *TOGETHER]
        run_stage(evaluate, model, VIDEOS / benchmark, run / benchmark, *words)


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


# ------------------------------------------------------------------------------
# What the study is run on


def make_videos(runs: list[Run]):
    """Make the videos of some runs, and the benchmark of the loop's own, where they are missing."""
    make_world(VIDEOS)
    if any(needs_more_videos(run.variant) for run in runs):
        make_world(MORE_VIDEOS, "--videos", "600", "--benchmark-videos", "1")
    if any(needs_copies(run.variant) for run in runs):
        make_copies()
    if not (VIDEOS / "seen" / "questions.json").exists():
        make_seen()


def needs_more_videos(name: str) -> bool:
    """Say whether a variant, or what has one round alone, takes 600 videos a round."""
    if name in VARIANTS:
        return VARIANTS[name].videos > 200
    source = name_source(name)
    return source in POOLS and POOLS[source].videos > 200


def needs_copies(name: str) -> bool:
    """Say whether what has one round alone takes rows of a pool that is asked about copies, too."""
    if name in VARIANTS:
        return False
    source = name_source(name)
    return source in POOLS and POOLS[source].views


def make_copies():
    """Write the shifted copies of the 600 videos of all rounds, where they are missing."""
    names = []
    for n in ROUNDS:
        names += [f"round{n}/{file.name}" for file in sorted((MORE_VIDEOS / f"round{n}").iterdir())]
    for name, (right, down) in SHIFTS.items():
        faults = shift.shift_videos(MORE_VIDEOS, names, name_copies(name), right, down)
        if faults:
            raise common.InputError(f"{name_copies(name)}: {faults[0]}")


def name_copies(name: str) -> Path:
    """Name the directory of the copies that are shifted as SHIFTS says."""
    return MORE_VIDEOS.with_name(f"{MORE_VIDEOS.name}-{name}")


def make_world(directory: Path, *options: str):
    """Render a tiny world where it is missing."""
    if not (directory / "test" / "questions.json").exists():  # the last file that is written
        subprocess.run([sys.executable, "-m", "shapes.world", directory, *options], check=True)


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


def make_bases(seeds: list[int], directory: Path) -> dict[int, Path]:
    """Make those base models of these seeds that do not come with the repository.

    Returns:
        {seed: directory of the model}
    """
    bases = find_bases(seeds, directory)
    for seed, path in bases.items():
        if not (path / "training.json").exists():  # the last file that is written
            command = [sys.executable, "-m", "shapes.pretrain", path, "--seed", f"{seed}"]
            subprocess.run(command, check=True)
    return bases


def find_bases(seeds: list[int], directory: Path) -> dict[int, Path]:
    """Name the directories of the base models of these seeds, whether they are there or not."""
    bases = {}
    for seed in seeds:
        path = SISTERS / f"{seed}" if seed else BASE
        bases[seed] = path if path.exists() else directory / "bases" / f"{seed}"
    return bases


# ------------------------------------------------------------------------------
# The study


class Job(NamedTuple):
    """What one process does without waiting for another."""

    task: Callable
    arguments: tuple


def list_runs(bases: list[int], seeds: list[int]) -> list[Run]:
    """List all runs: everything on the shipped base, and some variants on the others."""
    runs = []
    for seed in seeds:
        for base in bases:
            for name, variant in VARIANTS.items():
                if base == 0 or variant.on_all_bases:
                    runs.append(Run(base, name, seed))
            for name, one in ONE_ROUND.items():
                if base == 0 or one.on_all_bases:
                    runs.append(Run(base, name, seed))
    return runs


def list_missing(runs: list[Run], record: dict[Key, dict], only: list[str] | None) -> list[Run]:
    """List the runs that are wanted and not in the record.

    only: names of those that are wanted, beside the paper's loop, with which the tables compare
        all; None: all
    """
    missing = []
    for run in runs:
        last = ROUNDS[-1] if run.variant in VARIANTS else 1
        is_wanted = only is None or run.variant in ("paper", *only)
        if is_wanted and Key(*run, last) not in record:
            missing.append(run)
    return missing


def list_beginnings(runs: list[Run]) -> list[Run]:
    """List the runs, beside these, whose first round one of these begins with."""
    found = set()
    for run in runs:
        found.update(run._replace(variant=name) for name in list_before(run.variant))
    return sorted(found - set(runs))


def list_before(name: str) -> list[str]:
    """List the variants whose rows a variant, or what has one round alone, begins with."""
    if name in VARIANTS:
        first = name_first(VARIANTS[name])
        return [] if name == first else [first]
    source = name_source(name)
    return [source, *list_before(source)] if source in VARIANTS else []


def name_source(name: str) -> str:
    """Name the variant or the pool whose rows are chosen from for what has one round alone."""
    return Path(ONE_ROUND[name].source).parts[0]


def base_directory(output: Path, base: int) -> Path:
    """Name the directory of a base's own scores."""
    return output / f"base{base}" / "base"


def run_directory(output: Path, run: Run) -> Path:
    """Name the directory of a run."""
    return output / f"base{run.base}" / f"seed{run.seed}" / run.variant


def plan_phases(
    runs: list[Run], unscored: list[int], bases: dict[int, Path], output: Path
) -> list[list[Job]]:
    """Plan all jobs in phases: a job reads only what those of earlier phases write.

    Args:
        unscored: seeds of the bases that are to be scored themselves
    """
    scores = []
    for seed in unscored:
        scores.append(Job(score_base, (bases[seed], base_directory(output, seed))))
    begin = []
    follow = []  # they copy what a job of `begin` has written
    later = []
    loops = [run for run in [*runs, *list_beginnings(runs)] if run.variant in VARIANTS]
    for run in sorted(loops, key=lambda run: -VARIANTS[run.variant].videos):  # the longest first
        arguments = (run.variant, run.seed, bases[run.base], run_directory(output, run))
        phase = begin if run.variant in FIRST else follow
        phase.append(Job(run_rounds, (*arguments, ROUNDS[:1])))
        if run in runs:
            later.append(Job(run_rounds, (*arguments, ROUNDS[1:])))

    trainings = [run for run in runs if run.variant in ONE_ROUND]
    sources = {run._replace(variant=name_source(run.variant)) for run in trainings}
    for source in sorted(sources):
        if source.variant in POOLS:
            arguments = (source.variant, source.seed, bases[source.base])
            begin.append(Job(make_pool, (*arguments, run_directory(output, source))))
    for run in trainings:
        arguments = (run.variant, run.seed, bases[run.base], run_directory(output, run))
        later.append(Job(run_one_round, arguments))
    return [scores, begin, follow, later]


def run_rounds(name: str, loop_seed: int, base: Path, run: Path, rounds: tuple):
    """Run some rounds of a variant, one after the other; the arguments are those of run_round."""
    for n in rounds:
        run_round(name, loop_seed, base, run, n)


def run_phases(phases: list[list[Job]], log: Path):
    """Run the jobs, phase by phase, in as many processes as there are cores."""
    spawn = multiprocessing.get_context("spawn")
    n_jobs = sum(len(phase) for phase in phases)
    with (
        concurrent.futures.ProcessPoolExecutor(mp_context=spawn) as pool,
        common.progress(total=n_jobs, unit="job") as bar,
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


def measure_runs(runs: list[Run], unscored: list[int], output: Path) -> dict[Key, dict]:
    """Measure runs, and bases that were scored with them -> a record."""
    record = {}
    for seed in unscored:
        record[Key(seed, "base", 0, 0)] = measure(base_directory(output, seed))
    for run in runs:
        directory = run_directory(output, run)
        if run.variant in VARIANTS:
            for n in ROUNDS:
                record[Key(*run, n)] = measure(directory / f"round{n}")
        else:
            n_rows = 0
            for edited in sorted(directory.glob("edited*.jsonl")):
                n_rows += sum("dropped" not in row for row in common.read_jsonl(edited))
            record[Key(*run, 1)] = measure_scores(directory) | {"pairs": n_rows}
    return record


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


# ------------------------------------------------------------------------------
# The command line


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n{list_abouts()}", formatter_class=common.HelpFormatter
    )
    add = parser.add_argument
    add(
        "--bases",
        type=common.seed_number,
        nargs="+",
        default=[0],
        metavar="SEED",
        help="of the base models; 0 is shapes/model, shapes/sisters has others, and those that it "
        "lacks are pretrained for an hour or two each",
    )
    add(
        "--seeds",
        type=common.seed_number,
        nargs="+",
        default=SEEDS,
        metavar="SEED",
        help="of the loop",
    )
    add(
        "--only",
        nargs="+",
        choices=[*VARIANTS, *ONE_ROUND],
        metavar="NAME",
        help="of those above, and what they begin with (default: all)",
    )
    add("--output", type=Path, default=Path("runs/study"), help="directory of the study")
    add(
        "--record",
        type=Path,
        metavar="FILE",
        help="figures of all runs so far, which are not run again, and of those that are added "
        "(default: study.jsonl in the output; docs/study.jsonl has those of docs/study.md)",
    )
    return parser.parse_args()


def list_abouts() -> str:
    """List what each variant is, as --help shows it."""
    paragraphs = []
    for name, each in (VARIANTS | ONE_ROUND).items():
        paragraphs.append(
            textwrap.fill(each.about, 80, initial_indent=f"{name:<17}", subsequent_indent=" " * 17)
        )
    return "\n".join(paragraphs)


def main():
    """Run what is missing of the study, then print its tables and draw its plot."""
    args = parse_args()
    if args.record and not args.record.exists():
        raise common.InputError(f"{args.record}: no such file; leave --record out to begin one")
    path = args.record or args.output / "study.jsonl"
    lock = lock_output(args.output)
    os.environ["OMP_NUM_THREADS"] = "1"  # of all processes started here: there is one a core
    record = read_record(path)
    missing = list_missing(list_runs(args.bases, args.seeds), record, args.only)
    if missing:
        make_videos(missing)
        bases = make_bases(sorted({run.base for run in missing}), args.output)
        unscored = [seed for seed in bases if Key(seed, "base", 0, 0) not in record]
        phases = plan_phases(missing, unscored, bases, args.output)
        run_phases(phases, args.output / "study.log")
        record |= measure_runs(missing, unscored, args.output)
        write_record(path, record)

    record = read_record(path)  # in its order, and rounded as it is there
    figures = list_figures(record)
    print_tables(figures, list_one_round(record))
    if any(run.base == 0 for run in figures):
        plot(figures, args.output / "study.png")
    lock.release()


if __name__ == "__main__":
    common.run(main)
