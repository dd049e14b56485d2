"""Does it really learn? The loop beside its controls, in the tiny world, scored on `dev`.

    python -m tools.study               # 3 loop seeds x 8 variants x 4 rounds, then the tables and runs/study/study.png
    python -m tools.study --bases 3     # and the loop itself on two more bases, pretrained from other seeds

The stages run as they are, with the recipe of shapes/loop.sh; a control edits what lies between two of them. Started again, it goes on.

    dpo              the loop
    sft              the loop, but cross-entropy on the chosen answers of its pairs in place of DPO
    sft-all          cross-entropy on all revisions, whatever the critic said; most repeat the answer, so these are three times as many rows
    shuffled         which of a pair is chosen is drawn by lot
    second-sample    chosen is a second answer to the same question, without critique; as many pairs as the gate leaves, out of all questions
    no-gate          every revision that differs is chosen, whatever the critic said (where it found nothing, few differ)
    frozen-critic    the critic of every round is the base
    fixed-reference  the reference of every round is the base

And one round each, for what makes the difference between dpo and sft-all:

    sft-matched      cross-entropy on as many of all revisions as dpo has pairs, drawn by lot
    sft-unflagged    cross-entropy on the revisions that make no pair: nearly all repeat an answer in which the critic found nothing
    sft-all-2e-4     sft-all at twice the learning rate
    dpo-600          dpo on the pairs from 600 videos in place of 200: about as many pairs as sft-all has rows
    sft-600          cross-entropy on the chosen answers of these pairs

Loop seeds vary what is sampled and the order of training, not videos or base; in round 1 dpo, frozen-critic and fixed-reference are the same. Only
scoring sees the truth. beta and the learning rates were chosen for dpo, on `dev`; the others take them as they are.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import json
import multiprocessing
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import filelock
import matplotlib
import numpy as np
import torch
from matplotlib import pyplot
from tqdm import tqdm

import common
import critique
import dpo
import evaluate
import generate
import refine
from shapes import world
from tools import report

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
ONE_ROUND = ("sft-matched", "sft-unflagged", "sft-all-2e-4", "dpo-600", "sft-600")
UNGATED = ("sft-all", "no-gate")
SEEDS, ROUNDS = (1, 2, 3), (1, 2, 3, 4)
BETA, EPOCHS, LRS = 3, 2, (1e-4, 5e-5, 3e-5, 5e-6)  # of shapes/loop.sh (tests/test_study.py)
BASE, VIDEOS = "shapes/model", Path("runs/shapes")  # videos: by python -m shapes.world
BENCHMARKS = {"loop's own videos": "seen", "new videos": "dev", "new combinations": "hard"}


# ---------------------------------------------------------------- what a control edits
def edit(source, target, change):
    """Writes the rows of a stage's output, changed, as another output that the next stage reads."""
    if not target.exists():
        rows = change(common.read_jsonl(source, ("id", "video")))
        shutil.copy(common.meta_path(source), common.meta_path(target))
        Path(f"{target}.part").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
        os.replace(f"{target}.part", target)
    return target


def find_error_everywhere(rows):
    """Critiques after which the gate lets every row pass; what the critique says stays."""
    return [
        row
        if "dropped" in row
        else row | {"error_types": row["error_types"] or ["factual_inaccuracy"]}
        for row in rows
    ]


def take_all_revisions(rows):
    """Pairs of all revised rows, those that were not changed too (for cross-entropy, which reads the chosen answer alone)."""
    return [
        {key: value for key, value in row.items() if key != "dropped"}
        | {"chosen": row["revised"], "rejected": row["initial"]}
        if row.get("dropped") == "unchanged"
        else row
        for row in rows
    ]


def shuffle_preferences(rows, seed):
    lot = random.Random(seed)
    return [
        row | {"chosen": row["rejected"], "rejected": row["chosen"]}
        if "chosen" in row and lot.random() < 0.5
        else row
        for row in rows
    ]


def prefer_second_samples(rows, seed, directory, root):
    """As many pairs as there are now, of any answered rows: (a second sampled answer, the first one), where the two differ."""
    model, tokenizer = common.load_model(directory, ["cpu"]), common.load_tokenizer(directory)
    args = argparse.Namespace(
        seed=f"second/{seed}", frames=None, temperature=1.0, top_p=1.0, max_new_tokens=256
    )  # generate.py's defaults
    firsts = [
        {key: row[key] for key in ("id", "video", "kind", "question", "initial")}
        for row in rows
        if "critique" in row
    ]
    pairs = []
    for group, video in common.watch_each(
        model, tokenizer, common.group_by_video(firsts), root, args
    ):
        seconds = [dict(row) for row in group]
        generate.write_answers(model, tokenizer, video, seconds, args)
        pairs += [
            first | {"chosen": second["initial"], "rejected": first["initial"]}
            for first, second in zip(group, seconds)
            if "dropped" not in second and second["initial"] != first["initial"]
        ]
    kept = {
        row["id"]
        for row in random.Random(seed).sample(
            pairs, min(len(pairs), sum("chosen" in row for row in rows))
        )
    }
    return [row for row in pairs if row["id"] in kept]


def under_base(base):
    """dpo.reference_logps, but under the base in place of the model that the round starts from."""
    theirs = dpo.reference_logps
    return lambda model, *rest: theirs(common.load_model(base, ["cpu"]), *rest)


# ---------------------------------------------------------------- a round
def stage(module, model, input, output, *more):
    """A stage, as its command would run it, in this process."""
    inputs = input if isinstance(input, tuple) else (input,)
    sys.argv = [
        f"{module.__name__}.py",
        *map(
            str,
            ("--model", model, "--input", *inputs, "--output", output, "--devices", "cpu", *more),
        ),
    ]
    module.main()


def score(model, base, out, benchmark="dev"):
    """What truth, the model itself and the base as a critic say of a model's answers to a benchmark."""
    stage(evaluate, model, VIDEOS / benchmark, out / benchmark, "--benchmark", "shapes")
    if benchmark == "dev":
        stage(critique, model, out / "dev" / "predictions.jsonl", out / "dev" / "critiques.jsonl")
        stage(critique, base, out / "dev" / "predictions.jsonl", out / "dev" / "by_base.jsonl")


def score_base(job):
    base, out = job
    for benchmark in BENCHMARKS.values():
        score(base, base, out, benchmark)
    stage(refine, base, out / "dev" / "critiques.jsonl", out / "dev" / "pairs.jsonl")


def make_pairs(variant, seed, base, model, out):
    """Stages 1 to 3 of a round, with what the variant edits between them -> the file that dpo.py reads."""
    stage(generate, model, VIDEOS / out.name, out / "responses.jsonl", "--seed", seed)
    stage(
        critique,
        base if variant == "frozen-critic" else model,
        out / "responses.jsonl",
        out / "critiques.jsonl",
    )
    critiques = out / "critiques.jsonl"
    if variant in UNGATED:
        critiques = edit(critiques, out / "ungated.jsonl", find_error_everywhere)
    stage(refine, model, critiques, out / "pairs.jsonl")
    changes = {
        "sft-all": take_all_revisions,
        "shuffled": functools.partial(shuffle_preferences, seed=seed),
        "second-sample": functools.partial(
            prefer_second_samples, seed=seed, directory=model, root=VIDEOS / out.name
        ),
    }
    return edit(out / "pairs.jsonl", out / "edited.jsonl", changes.get(variant, lambda rows: rows))


def run_round(job):
    variant, loop_seed, base, run, n = job
    out, seed = run / f"round{n}", 10 * loop_seed + n
    model = base if n == 1 else run / f"round{n - 1}" / "model"
    if (
        n == 1 and variant != "dpo"
    ):  # all variants of a seed begin with the same answers and critiques
        out.mkdir(parents=True, exist_ok=True)
        for file in (run.parent / "dpo" / "round1").glob("[rc]*s.jsonl*"):
            shutil.copy(file, out / file.name)
    pairs = make_pairs(variant, seed, base, model, out)
    loss = ("--loss", "sft") if variant.startswith("sft") else ("--beta", BETA)
    with (
        mock.patch.object(dpo, "reference_logps", under_base(base))
        if variant == "fixed-reference"
        else contextlib.nullcontext()
    ):
        stage(
            dpo,
            model,
            pairs,
            out / "model",
            *loss,
            "--epochs",
            EPOCHS,
            "--lr",
            LRS[n - 1],
            "--seed",
            seed,
        )
    for benchmark in BENCHMARKS.values() if n == ROUNDS[-1] else ["dev"]:
        score(out / "model", base, out, benchmark)


def run_one_round(job):
    name, loop_seed, base, run, lr = job
    seed, others = 10 * loop_seed + 1, run.parent
    everything, pairs = (
        others / "sft-all" / "round1" / "edited.jsonl",
        others / "dpo" / "round1" / "edited.jsonl",
    )
    paired = {row["id"] for row in common.read_jsonl(pairs) if "chosen" in row}
    run.mkdir(parents=True, exist_ok=True)
    if name == "dpo-600":
        stage(
            generate,
            base,
            tuple(VIDEOS / f"round{n}" for n in (1, 2, 3)),
            run / "responses.jsonl",
            "--seed",
            seed,
        )
        stage(critique, base, run / "responses.jsonl", run / "critiques.jsonl")
        stage(refine, base, run / "critiques.jsonl", run / "pairs.jsonl")

    def draw(rows):
        chosen = [row for row in rows if "chosen" in row]
        return random.Random(seed).sample(chosen, min(len(chosen), len(paired)))

    source, change = {
        "sft-matched": (everything, draw),
        "sft-unflagged": (
            everything,
            lambda rows: [row for row in rows if row["id"] not in paired],
        ),
        "sft-all-2e-4": (everything, list),
    }.get(name, (others / "dpo-600" / "pairs.jsonl", list))
    loss = ("--beta", BETA) if name == "dpo-600" else ("--loss", "sft")
    stage(
        dpo,
        base,
        edit(source, run / "edited.jsonl", change),
        run / "model",
        *loss,
        "--epochs",
        EPOCHS,
        "--lr",
        lr,
        "--seed",
        seed,
    )
    stage(evaluate, run / "model", VIDEOS / "dev", run / "dev", "--benchmark", "shapes")


def quietly(task, log, job):
    """A task in a worker process; what it prints goes to a log."""
    torch.set_num_threads(1)
    with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        task(job)


# ---------------------------------------------------------------- truth
@functools.cache
def true_items(name):
    """{question: item} of a video of the rounds, such as round1_0007.mp4."""
    split, index = re.search(r"(\w+)_(\d+)\.mp4$", name).groups()
    return {
        item["question"]: item
        for items in world.all_questions(world.make_scene(0, split, int(index))).values()
        for item in items
    }


def is_inverted(row):
    """Whether a pair prefers a wrong answer to a right one, by truth; None where the world has no answer to its question."""
    if (item := true_items(row["video"]).get(row["question"])) is None:
        return None
    right = lambda text: (
        evaluate.parse_shapes({"task": item["type"], "options": [item["answer"]]}, text) == 0
    )
    return right(row["rejected"]) and not right(row["chosen"])


def make_seen(n=38):
    """A benchmark of videos that the loop learns from, n of each round, with questions that the world asks."""
    directory, seen, rng, rows = VIDEOS / "seen", Counter(), np.random.default_rng(0), []
    (directory / "videos").mkdir(parents=True, exist_ok=True)
    for split, index in [(f"round{number}", index) for number in ROUNDS for index in range(n)]:
        name = f"{split}_{index:04}.mp4"
        shutil.copy(VIDEOS / split / name, directory / "videos")
        rows += world.draw_questions(world.make_scene(0, split, index), name, seen, rng)
    common.write_json(directory / "questions.json", rows)


# ---------------------------------------------------------------- figures
def measure(out):
    """The figures of base/ or of a round, {name: number}."""
    results = common.read_json(out / "dev" / "results.json")
    own, by_base = (
        common.read_jsonl(out / "dev" / name) for name in ("critiques.jsonl", "by_base.jsonl")
    )
    figures = {
        "accuracy": results["accuracy"],
        "errors by truth": results["n_wrong"],
        "errors the model names": sum(bool(row["error_types"]) for row in own),
        "errors the base names": sum(bool(row["error_types"]) for row in by_base),
        **dict(zip(("critic's precision", "critic's recall"), report.score_critic(own))),
        **dict(zip(("the base's precision", "the base's recall"), report.score_critic(by_base))),
        "words an answer": statistics.mean(len(row["initial"].split()) for row in own),
    }
    figures |= {
        f"on {name}": common.read_json(path, "accuracy")[0]
        for name, benchmark in BENCHMARKS.items()
        if (path := out / benchmark / "results.json").exists()
    }
    if (out / "dev" / "pairs.jsonl").exists():
        figures["accuracy of revisions"] = report.score_revisions(
            common.read_jsonl(out / "dev" / "pairs.jsonl")
        )
    if (out / "edited.jsonl").exists():
        pairs = [row for row in common.read_jsonl(out / "edited.jsonl") if "dropped" not in row]
        different = [
            row for row in pairs if row["chosen"] != row["rejected"]
        ]  # cross-entropy on all revisions has others
        judged = [verdict for verdict in map(is_inverted, different) if verdict is not None]
        steps = common.read_jsonl(out / "model" / "metrics.jsonl")
        tenth = max(1, len(steps) // 10)
        ends = {"first": steps[:tenth], "last": steps[-tenth:]}
        figures |= {
            "pairs": len(pairs),
            "pairs inverted": report.ratio(sum(judged), len(judged)),
            "pairs judged": report.ratio(len(judged), len(different)),
        }
        figures |= {
            f"{key}, {end} steps": statistics.mean(step[key] for step in part)
            for key in ("logps/chosen", "logps/rejected")
            for end, part in ends.items()
        }
        figures |= {
            key: statistics.mean(step[key] for step in steps)
            for key in ("lengths/chosen", "lengths/rejected")
        }
    return figures


def spread(values, digits=3):
    """'0.884 +- 0.006': mean and standard deviation, passing over what is not a number (no pair, nothing found)."""
    values = [value for value in values if value == value] or [float("nan")]
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.{digits}f}"


def print_rows(title, heads, rows):
    print(f"\n{title}\n\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def print_tables(figures, one_round, bases):
    """figures: {(base, variant, seed): [base's, round 1's, ...]}, each {name: number}; one_round: {name: [(rows trained on, accuracy) of a seed, ...]}."""

    def of(variant, n, name, base=0):
        values = [
            rounds[n][name] for (b, v, _), rounds in figures.items() if (b, v) == (base, variant)
        ]
        return values[:1] if n == 0 else values  # the base has no seed

    heads = ["", "base", *(f"round {n}" for n in ROUNDS)]
    print_rows(
        f"accuracy on dev (n = 900, 150 videos), mean and standard deviation over {len(SEEDS)} loop seeds",
        heads,
        [
            [variant, *(spread(of(variant, n, "accuracy")) for n in (0, *ROUNDS))]
            for variant in VARIANTS
        ],
    )
    trained = {
        variant: list(zip(of(variant, 1, "pairs"), of(variant, 1, "accuracy")))
        for variant in ("dpo", "sft", "sft-all")
    } | one_round
    print_rows(
        "one round: rows that are trained on, accuracy on dev",
        ["", "rows", "accuracy"],
        [
            [name, *(spread(values, digits) for values, digits in zip(zip(*pairs), (0, 3)))]
            for name, pairs in trained.items()
        ],
    )
    for name, digits in (
        ("critic's precision", 2),
        ("critic's recall", 2),
        ("the base's precision", 2),
        ("the base's recall", 2),
        ("pairs", 0),
        ("pairs inverted", 2),
        ("pairs judged", 2),
        ("errors by truth", 0),
        ("errors the base names", 0),
        ("errors the model names", 0),
        ("words an answer", 1),
    ):  # critic: the model, of its own answers to dev, whichever critic the loop had
        rows = [
            [
                variant,
                *(
                    spread(of(variant, n, name), digits)
                    if name in figures[0, variant, SEEDS[0]][n]
                    else ""
                    for n in (0, *ROUNDS)
                ),
            ]
            for variant in VARIANTS
        ]
        print_rows(name, heads, rows)
    names = [
        f"{key}, {end} steps"
        for key in ("logps/chosen", "logps/rejected")
        for end in ("first", "last")
    ]
    for n in (ROUNDS[0], ROUNDS[-1]):
        print_rows(
            f"log-probs and tokens of the pairs, round {n}",
            ["", *names, "lengths/chosen", "lengths/rejected"],
            [
                [
                    variant,
                    *(
                        spread(of(variant, n, name), 1)
                        for name in (*names, "lengths/chosen", "lengths/rejected")
                    ),
                ]
                for variant in VARIANTS
            ],
        )
    places = [f"on {name}" for name in BENCHMARKS]
    print_rows(
        "accuracy after the last round, by what is new to the loop",
        ["", *BENCHMARKS],
        [["base", *(spread(of("dpo", 0, place)) for place in places)]]
        + [
            [variant, *(spread(of(variant, ROUNDS[-1], place)) for place in places)]
            for variant in VARIANTS
        ],
    )
    print_rows(
        "the loop by base, accuracy on dev",
        ["base of seed", *heads[1:], "the base's revisions"],
        [
            [
                f"{base}",
                *(spread(of("dpo", n, "accuracy", base)) for n in (0, *ROUNDS)),
                spread(of("dpo", 0, "accuracy of revisions", base)),
            ]
            for base in bases
        ],
    )


def plot(figures, path):
    """Accuracy by round and variant; the critic's precision and recall; errors counted three ways."""
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(15, 5), layout="constrained")

    def draw(axes, variant, name, label, **style):
        values = np.array(
            [
                [rounds[n][name] for n in (0, *ROUNDS)]
                for (base, v, _), rounds in figures.items()
                if (base, v) == (0, variant)
            ]
        )
        axes.errorbar(
            (0, *ROUNDS), values.mean(0), values.std(0, ddof=1), label=label, capsize=3, **style
        )

    for variant in VARIANTS:
        draw(left, variant, "accuracy", variant, linewidth=3 if variant == "dpo" else 1.2)
    left.axhline(
        figures[0, "dpo", SEEDS[0]][0]["accuracy of revisions"],
        color="grey",
        linestyle=":",
        label="the base's revisions",
    )
    for name, style in (("critic's precision", "-"), ("critic's recall", "--")):
        for variant, color in (("dpo", "C0"), ("sft", "C1"), ("sft-all", "C2")):
            draw(
                middle, variant, name, f"{variant}: {name.split()[1]}", color=color, linestyle=style
            )
    for name, color in (
        ("errors by truth", "black"),
        ("errors the base names", "C0"),
        ("errors the model names", "C3"),
    ):
        draw(right, "dpo", name, name, color=color)
    for axes, title in (
        (left, "accuracy on dev"),
        (middle, "the model as critic of its own answers to dev"),
        (right, "dpo: errors on dev, of 900, counted three ways"),
    ):
        axes.set(title=title, xlabel="round", xticks=(0, *ROUNDS))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=90)
    print(f"\nplot: {path}")


# ---------------------------------------------------------------- the study
def make_bases(n, directory):
    """{seed: model directory} of n bases: the shipped one, and others by shapes/pretrain.py."""
    bases = {seed: directory / "bases" / f"{seed}" if seed else Path(BASE) for seed in range(n)}
    for seed, path in bases.items():
        if not (path / "training.json").exists():  # the last file that is written
            subprocess.run(
                [sys.executable, "-m", "shapes.pretrain", path, "--seed", f"{seed}"], check=True
            )
    return bases


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bases",
        type=int,
        default=1,
        help="how many bases; each but the first is pretrained for half an hour",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/study"))
    args = parser.parse_args()
    matplotlib.use("Agg")
    args.output.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(
        args.output / ".lock", timeout=0
    )  # two at once would do each other's rounds
    try:
        lock.acquire()
    except filelock.Timeout:
        raise common.InputError(f"another study is writing to {args.output}") from None
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started from here; one a core
    if not (VIDEOS / "test" / "questions.json").exists():  # the last file that is written
        subprocess.run([sys.executable, "-m", "shapes.world", VIDEOS], check=True)
    if not (VIDEOS / "seen" / "questions.json").exists():
        make_seen()
    bases = make_bases(args.bases, args.output)
    runs = [
        (base, variant, seed)
        for seed in SEEDS
        for variant in VARIANTS
        for base in bases
        if base == 0 or variant == "dpo"
    ]
    where = lambda base, variant, seed: args.output / f"base{base}" / f"seed{seed}" / variant
    with concurrent.futures.ProcessPoolExecutor(
        mp_context=multiprocessing.get_context("spawn")
    ) as pool:  # a process a core
        phases = [
            [
                (score_base, (path, args.output / f"base{base}" / "base"))
                for base, path in bases.items()
            ]
        ]
        jobs = [
            [
                (run_round, (variant, seed, bases[base], where(base, variant, seed), n))
                for base, variant, seed in runs
            ]
            for n in ROUNDS
        ]
        phases += [
            [job for job in jobs[0] if job[1][0] == "dpo"],
            [job for job in jobs[0] if job[1][0] != "dpo"],
            *jobs[1:],
        ]
        extras = [
            (
                run_one_round,
                (
                    name,
                    seed,
                    bases[0],
                    where(0, name, seed),
                    2 * LRS[0] if name.endswith("2e-4") else LRS[0],
                ),
            )
            for seed in SEEDS
            for name in ONE_ROUND
        ]
        phases += [
            [job for job in extras if job[1][0] != "sft-600"],
            [job for job in extras if job[1][0] == "sft-600"],
        ]
        with tqdm(total=sum(map(len, phases)), unit="round") as bar:
            for phase in phases:  # a round of all runs before the next
                for done in concurrent.futures.as_completed(
                    [
                        pool.submit(quietly, task, args.output / "study.log", job)
                        for task, job in phase
                    ]
                ):
                    done.result()
                    bar.update()
    figures = {
        run: [
            measure(args.output / f"base{run[0]}" / "base"),
            *(measure(where(*run) / f"round{n}") for n in ROUNDS),
        ]
        for run in runs
    }
    common.write_json(
        args.output / "study.json",
        {" ".join(map(str, run)): rounds for run, rounds in figures.items()},
    )
    one_round = {
        name: [
            (
                sum(
                    "chosen" in row
                    for row in common.read_jsonl(where(0, name, seed) / "edited.jsonl")
                ),
                common.read_json(where(0, name, seed) / "dev" / "results.json", "accuracy")[0],
            )
            for seed in SEEDS
        ]
        for name in ONE_ROUND
    }
    print_tables(figures, one_round, bases)
    plot(figures, args.output / "study.png")


if __name__ == "__main__":
    common.run(main)
