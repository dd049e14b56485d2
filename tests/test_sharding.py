"""dpo.py by several processes: what one process does, but for the order of sums.

The oracle is dpo.py as one process, to which all other tests are addressed. Processes are forked from one that has
imported everything (forked.py), and are told their numbers as torchrun tells them. gloo stands in for NCCL.
"""

import argparse
import functools
import json
import random
import shutil
import signal
import time

import pytest
import safetensors.torch
import torch
import transformers

import common
import first_step
from conftest import MODEL
from forked import Processes
from shapes import world
from test_families import make_config, make_tokenizer
from vlm import sharding

QUESTIONS = [  # question, chosen, rejected
    ("which way does the red square move?", "it moves up.", "it moves left."),
    ("how many shapes are there?", "there are two shapes.", "there are three shapes."),
    ("why does the blue triangle move?", "because the red square hits it.", "it moves by itself."),
]
LORA = ("--tune", "lora", "--lora-rank", 4)
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
N_VIDEOS = 5  # one, two, three, one and two pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Five videos of the tiny world, and pairs.jsonl about them -> its path."""
    directory = tmp_path_factory.mktemp("pairs")
    rows = []
    for number in range(N_VIDEOS):
        video = f"{number}.mp4"
        world.render(world.make_scene(0, "dev", number), directory / video)
        for question, chosen, rejected in QUESTIONS[: 1 + number % 3]:
            row = {"id": f"{video}/{len(rows)}", "video": video, "question": question}
            rows.append(row | {"chosen": chosen, "rejected": rejected})
    path = directory / "pairs.jsonl"
    common.write_jsonl(path, rows)
    meta = {"root": str(directory), "stage": "refine.py", "finished": {"account": "written by hand"}}
    common.write_json(common.meta_path(path), meta)
    return path


def run(environment, n, words):
    """Run a command in n processes, which must succeed -> what the first one prints."""
    ended = Processes(environment, n, words).wait()
    assert [code for code, _ in ended] == [0] * n, ended
    return ended[0][1]


def options(pairs, output, *more, model=MODEL):
    """Give the options of dpo.py."""
    return ["--model", model, "--input", pairs, "--output", output, "--devices", "cpu", *more]


# ------------------------------------------------------------------------------
# Gradients


def make_model(kind, directory):
    """Write a model to train: the tiny world's, one whose config ties the head, or a Qwen-VL of random weights."""
    if kind == "internvl":
        return MODEL
    if kind.startswith("tied"):
        shutil.copytree(MODEL, directory)
        config = json.loads((MODEL / "config.json").read_text())
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
        (directory / "config.json").write_text(json.dumps(config))
        weights = safetensors.torch.load_file(MODEL / "model.safetensors")
        [head] = [name for name in weights if name.endswith("lm_head.weight")]
        [embedding] = [name for name in weights if name.endswith("embed_tokens.weight")]
        if kind == "tied, embedding in the file":
            del weights[head]
        elif kind == "tied, head in the file":
            del weights[embedding]
        elif kind == "tied, both in the file":
            weights[head] = weights[embedding].clone()
        safetensors.torch.save_file(weights, directory / "model.safetensors", {"format": "pt"})
        return directory
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = make_config(kind, tokenizer, tie_word_embeddings=False)
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("kind", "tune", "checkpointing", "n", "dtype"),
    [
        ("internvl", "full", True, 3, "float64"),
        ("internvl", "lora", False, 2, "float32"),
        ("tied, embedding in the file", "full", False, 2, "float32"),
        slow("internvl", "full", True, 3, "float32"),
        slow("qwen3_vl", "full", False, 3, "float32"),
        slow("internvl", "full", False, 2, "float64"),
        slow("internvl", "lora", True, 3, "float32"),
        slow("tied, embedding in the file", "full", True, 3, "float64"),
        slow("tied, head in the file", "full", False, 2, "float32"),
        slow("tied, both in the file", "full", False, 2, "float32"),
        slow("tied, both in the file, which differ", "full", False, 2, "float32"),
        slow("qwen3_vl", "full", True, 2, "float64"),
        slow("qwen3_vl", "lora", True, 2, "float32"),
        slow("qwen2_5_vl", "full", False, 3, "float32"),
        slow("qwen2_5_vl", "full", True, 2, "float64"),
        slow("qwen2_5_vl", "lora", True, 2, "float32"),
    ],
)
def test_gradients_of_a_step_are_those_of_one_process(
    environment, pairs, tmp_path, kind, tune, checkpointing, n, dtype
):
    """Five videos over two or three processes: one of them has no video in the last turn.

    In float64 nothing is left of a difference, so what float32 leaves is rounding. (LoRA's factors are float32 always.)
    """
    close = {"float32": 2e-6, "float64": 1e-12}[dtype]
    words = options(pairs, tmp_path / "out", "--tune", tune, "--beta", 3, "--nll-weight", 0.5)
    words[1] = make_model(kind, tmp_path / "model")
    if checkpointing:
        words.append("--activation-checkpointing")
    run(environment, n, ["tests/first_step.py", tmp_path, dtype, *words])
    step, gradients = first_step.compute(dtype, words)

    for rank in range(n):  # every process knows all of it
        theirs, of_theirs = torch.load(tmp_path / f"{rank}.pt")
        assert theirs["loss"] == pytest.approx(step["loss"], rel=close)
        torch.testing.assert_close(theirs["rewards"], step["rewards"], rtol=close, atol=close * 10)
        assert theirs["lengths"].tolist() == step["lengths"].tolist()  # in the order of the videos
        assert of_theirs.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert gradient.abs().max() > 0
            off = (of_theirs[name] - gradient).abs().max() / gradient.abs().max()
            assert off < close, name


# ------------------------------------------------------------------------------
# A whole training


STEPS = ("--videos-per-step", 3, "--epochs", 2, "--lr", "1e-4", "--beta", 3)  # of 3, 2, 3 and 2 videos
# AdamW's step is about the learning rate, whatever the gradient. Where that is nothing but rounding, single weights
# differ by a part of a step; the root mean square of all differences is far smaller than a step
LR = 1e-4
CLOSE = 1e-3 * LR


@pytest.fixture(scope="module")
def whole(environment, pairs, tmp_path_factory):
    """Give a function: a training by n processes, once for each n and options -> its output."""
    directory = tmp_path_factory.mktemp("whole")
    made = {}

    def train(n, *more):
        if (n, more) not in made:
            output = directory / f"{len(made)}"
            run(environment, n, ["dpo.py", *options(pairs, output, *STEPS, *more)])
            made[n, more] = output
        return made[n, more]

    return train


def read_metrics(output):
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "tokens/s"} for row in rows]


def compare(one, other):
    """Compare the weights of two outputs, which must have the same files, names and types.

    Returns:
        the root mean square of all differences
    """
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(other) for path in other.rglob("*.safetensors"))
    differences = []
    for file in files:
        mine = safetensors.torch.load_file(one / file)
        theirs = safetensors.torch.load_file(other / file)
        assert mine.keys() == theirs.keys()
        for name, weight in mine.items():
            assert weight.dtype == theirs[name].dtype
            differences.append((weight - theirs[name]).flatten())
    return torch.cat(differences).double().square().mean().sqrt().item()


@pytest.mark.parametrize(("n", "more"), [(2, ()), slow(3, LORA), slow(3, ()), slow(2, LORA)])
def test_the_output_is_that_of_one_process(whole, n, more):
    alone, together = whole(1, *more), whole(n, *more)
    assert compare(alone, together) < CLOSE
    for row, other in zip(read_metrics(alone), read_metrics(together), strict=True):
        assert other == pytest.approx(row, rel=1e-4, abs=1e-6)
    names = sorted(path.name for path in alone.iterdir())
    assert names == sorted(path.name for path in together.iterdir())
    for name in names:  # config, generation config, tokenizer, prompts, adapter_config
        if name.endswith((".json", ".jinja")):
            assert (together / name).read_bytes() == (alone / name).read_bytes(), name


@pytest.mark.slow
def test_in_bfloat16_the_number_of_processes_does_not_matter(whole):
    """Gradients are added up in float32, after each video. One process adds them up in bfloat16, and so differs more.

    The base is float32: its masters begin as one process's do, rounded to what the model computes with. What rounding
    takes would move the margins of the second step, which are 0 but for the update.
    """
    more = ("--dtype", "bfloat16")
    alone, two, three = (read_metrics(whole(n, *more)) for n in (1, 2, 3))
    for row, other in zip(two, three, strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=1e-3)
        assert other["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-2)
    assert two[1]["rewards/margins"] == pytest.approx(alone[1]["rewards/margins"], rel=0.1)
    [file] = whole(2, *more).glob("*.safetensors")
    assert {weight.dtype for weight in safetensors.torch.load_file(file).values()} == {torch.bfloat16}


@pytest.mark.slow
def test_files_of_the_base_come_back_as_files(environment, pairs, tmp_path):
    """A base in several files with older names of its tensors, which transformers renames: all as it was."""
    transformers.AutoModelForImageTextToText.from_pretrained(MODEL).save_pretrained(
        tmp_path / "base", max_shard_size="1MB"
    )
    for file in MODEL.glob("token*"):
        shutil.copy(file, tmp_path / "base")
    shutil.copy(MODEL / "chat_template.jinja", tmp_path / "base")
    base = tmp_path / "base"
    config = json.loads((base / "config.json").read_text())
    del config["architectures"]  # not all files say it, but transformers writes it
    (base / "config.json").write_text(json.dumps(config))
    words = ["dpo.py", *options(pairs, tmp_path / "out", *STEPS, "--lr", "1e-12", model=base)]
    run(environment, 2, words)
    assert len(list(base.glob("*.safetensors"))) > 2
    assert compare(base, tmp_path / "out") < 1e-10  # nothing was learned
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [
        "InternVLForConditionalGeneration"
    ]
    transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out")


@pytest.mark.slow
def test_a_video_that_cannot_be_read_is_left_out_whoever_has_it(environment, pairs, tmp_path, whole):
    """Of five videos the fourth is broken: it is the second process's."""
    shutil.copytree(pairs.parent, tmp_path / "pairs")
    (tmp_path / "pairs" / "3.mp4").write_text("not a video")
    meta = common.read_json(common.meta_path(pairs)) | {"root": str(tmp_path / "pairs")}
    common.write_json(common.meta_path(tmp_path / "pairs" / "pairs.jsonl"), meta)
    outputs = []
    for n in (1, 2):
        outputs.append(tmp_path / f"{n}")
        words = options(tmp_path / "pairs" / "pairs.jsonl", outputs[-1], *STEPS, "--max-bad", 0.5)
        printed = run(environment, n, ["dpo.py", *words])
        assert printed.count("left out: ") == 1 and "3.mp4" in printed
    assert compare(*outputs) < CLOSE

    # None may be missing
    words = options(tmp_path / "pairs" / "pairs.jsonl", tmp_path / "3", *STEPS, "--max-bad", 0)
    ended = Processes(environment, 2, ["dpo.py", *words]).wait()
    assert all(code == 1 for code, _ in ended)
    assert "1 of 5 videos cannot be read" in ended[0][1]


# ------------------------------------------------------------------------------
# Stopped, and resumed


def stop_after(environment, n, words, n_steps, output):
    """Start a training by n processes; kill one when so many steps are done, and the rest as torchrun does."""
    processes = Processes(environment, n, words)
    metrics = output / "metrics.jsonl"
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= n_steps:
            break
        time.sleep(0.002)
    processes.send(signal.SIGKILL, processes.processes[-1:])
    processes.send(signal.SIGKILL)
    processes.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_then", "n_now", "more"),
    [(2, 2, ()), (3, 2, LORA), *((*numbers, more) for numbers in [(2, 3), (3, 1), (1, 2)] for more in [(), LORA])],
)
def test_a_killed_training_resumes(environment, pairs, tmp_path, whole, n_then, n_now, more):
    """With the number that it was begun with to the same bytes; with another one, to the same but for rounding."""
    output = tmp_path / "out"
    words = ["dpo.py", *options(pairs, output, *STEPS, *more, "--save-every", 0)]
    stop_after(environment, n_then, words, 2, output)
    assert list(output.glob("checkpoint-*.state"))
    assert not list(output.glob("*.safetensors"))
    printed = run(environment, n_now, words)
    assert "resuming after step" in printed
    is_said = f"is of {n_then} processes, now there are {n_now}" in printed
    assert is_said == (n_then != n_now)

    expected = whole(n_now, *more)
    assert compare(expected, output) < CLOSE
    if n_then == n_now:
        assert compare(expected, output) == 0
        assert read_metrics(output) == read_metrics(expected)
    assert not list(output.glob("checkpoint*")) and not list(output.glob(".part"))


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), LORA], ids=["full", "lora"])
def test_a_training_killed_at_random_moments_ends_with_the_same_bytes(environment, pairs, tmp_path, whole, more):
    moment = random.Random(0)
    words = ["dpo.py", *options(pairs, tmp_path / "out", *STEPS, *more, "--save-every", 0)]
    begun = time.monotonic()
    whole(2, *more)
    seconds = time.monotonic() - begun
    kills = 0
    for _ in range(100):
        processes = Processes(environment, 2, words)
        time.sleep(moment.uniform(0, seconds))
        is_running = [process.poll() is None for process in processes.processes]
        processes.send(signal.SIGKILL, [moment.choice(processes.processes)])
        processes.send(signal.SIGKILL)
        processes.wait()
        kills += all(is_running)
        if kills == 6:
            break
    run(environment, 2, words)
    assert compare(whole(2, *more), tmp_path / "out") == 0
    assert read_metrics(tmp_path / "out") == read_metrics(whole(2, *more))


@pytest.mark.slow
def test_a_resumed_training_does_not_begin_with_the_embedding_of_the_reference_pass(
    environment, pairs, tmp_path, whole
):
    """The reference pass has something left to do: it gathers the base's weights before the checkpoint is read."""
    output = tmp_path / "out"
    words = ["dpo.py", *options(pairs, output, *STEPS, "--save-every", 0)]
    stop_after(environment, 2, words, 2, output)
    reference = output / "reference.jsonl"
    reference.write_bytes(reference.read_bytes()[:-30])
    run(environment, 2, words)
    assert compare(whole(2), output) == 0


@pytest.mark.slow
def test_all_save_a_checkpoint_when_the_first_one_does(environment, pairs, tmp_path):
    """The first process's clock stands still: the second one alone would wait for it, which is a step ahead."""
    script = tmp_path / "skewed.py"
    script.write_text(
        "import time, common, dpo\n"
        "clock = time.monotonic\n"
        "dpo.time.monotonic = lambda: clock() * common.process().rank\n"
        "common.run(dpo.main)\n"
    )
    run(environment, 2, [script, *options(pairs, tmp_path / "out", *STEPS, "--save-every", 0.0001)])
    assert len(read_metrics(tmp_path / "out")) == 4


@pytest.mark.slow
def test_a_weight_that_is_infinite_in_the_type_of_the_files_is_not_saved(environment, pairs, tmp_path):
    """Masters are float32, where 1e6 is a number; in float16 it is none."""
    words = options(pairs, tmp_path / "out", "--videos-per-step", 5, "--dtype", "float16", "--lr", "1e6")
    ended = Processes(environment, 2, ["dpo.py", *words]).wait()
    assert all(code == 1 for code, _ in ended)
    assert "infinite or NaN after the last step" in ended[0][1]
    assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.slow
def test_what_other_processes_left_of_a_checkpoint_is_not_taken_for_a_new_one(environment, pairs, tmp_path, whole):
    """Killed while three processes saved: a third file must not become part of the next one's two."""
    output = tmp_path / "out"
    words = ["dpo.py", *options(pairs, output, *STEPS, "--save-every", 0)]
    stop_after(environment, 2, words, 2, output)
    (output / "checkpoint.part").mkdir(exist_ok=True)
    (output / "checkpoint.part" / "0002").write_text("of a process that is not there any more")
    stop_after(environment, 2, words, 3, output)
    for checkpoint in output.glob("checkpoint-*.state"):
        assert len(list(checkpoint.iterdir())) == 2
    run(environment, 2, words)
    assert compare(whole(2), output) == 0


@pytest.mark.slow
def test_a_damaged_file_of_a_checkpoint_is_named(environment, pairs, tmp_path):
    output = tmp_path / "out"
    words = ["dpo.py", *options(pairs, output, *STEPS, "--save-every", 0)]
    stop_after(environment, 2, words, 2, output)
    [checkpoint] = output.glob("checkpoint-*.state")
    file = checkpoint / "0001"
    for damage in (lambda: file.write_bytes(file.read_bytes()[:1000]), file.unlink):
        damage()
        ended = Processes(environment, 2, words).wait()
        assert f"{checkpoint}: " in ended[0][1] and "Remove this directory" in ended[0][1]
        assert "Traceback" not in ended[0][1]
    shutil.rmtree(checkpoint)
    run(environment, 2, words)


# ------------------------------------------------------------------------------
# Refused


def test_a_process_that_reads_other_files_is_named(environment, pairs, tmp_path):
    """Another model, or an output that it does not see: the processes of a second machine, say."""
    shutil.copytree(MODEL, tmp_path / "model")
    weights = safetensors.torch.load_file(MODEL / "model.safetensors")
    next(iter(weights.values())).mul_(2)
    safetensors.torch.save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    words = ["dpo.py", *options(pairs, tmp_path / "out", *STEPS)]
    for others, complaint in [
        (options(pairs, tmp_path / "out", *STEPS, model=tmp_path / "model"), "its model differs"),
        (options(pairs, tmp_path / "elsewhere" / "out", *STEPS), "must lie where all processes see it"),
    ]:
        processes = Processes(environment, 2, words, ["dpo.py", *others])
        code, printed = processes.processes[1].wait(60), processes.processes[1].communicate()[0]
        processes.send(signal.SIGKILL)
        processes.wait()
        assert code == 1 and complaint in printed and "Traceback" not in printed


@pytest.mark.parametrize(
    ("n_gpus", "n", "devices", "complaint"),
    [
        (8, 4, None, "4 processes for 8 GPUs: each process trains on one GPU"),
        (2, 4, None, "4 processes for 2 GPUs: at most --nproc-per-node 2"),
        (4, 4, "cuda:0", "--devices cuda:0: under torchrun"),
        (4, 4, None, ""),
        (0, 4, None, ""),
        (4, 4, "cpu", ""),
        (4, 1, "cuda:0,cuda:1", ""),  # one process, which is what it always was
    ],
)
def test_a_process_trains_on_one_gpu(monkeypatch, n_gpus, n, devices, complaint):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setenv("WORLD_SIZE", f"{n}")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", f"{n}")
    args = argparse.Namespace(devices=devices, tune="full")
    if not complaint:
        sharding.check_processes(args)
        return
    with pytest.raises(common.InputError, match=complaint):
        sharding.check_processes(args)


def test_several_processes_refuse_to_train_the_vision_tower(monkeypatch):
    args = argparse.Namespace(devices="cpu", tune="all")
    sharding.check_processes(args)  # one process
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(common.InputError, match="--tune all trains in one process"):
        sharding.check_processes(args)
