"""Odd rows, verdicts, numbers, outputs, checkpoints and texts: the cases of `python -m tools.fuzz`, a few of each."""

import pathlib
import sys

import numpy as np
import pytest

import common
import critique
import dpo
import test_house
import vlm
from tools import odd_models, odd_rows
from vlm import families, files, limits, placement

CASES = {make.__name__: make for make in [*odd_rows.CASES, *odd_models.CASES]}
QUICK = [make.__name__ for make in odd_rows.CASES]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", QUICK)
def test_of_odd_rows_and_outputs_comes_what_must(name, seed, tmp_path):
    assert CASES[name](tmp_path, np.random.default_rng(seed)) is None


@pytest.mark.parametrize("name", [name for name in CASES if name not in QUICK])
def test_of_odd_models_comes_what_must(name, tmp_path):
    for seed in range(2):
        (tmp_path / f"{seed}").mkdir()
        assert CASES[name](tmp_path / f"{seed}", np.random.default_rng(seed)) is None


def encode_as_it_is(tokenizer, text, template):
    """What the code did once: control tokens in a text are control tokens."""
    return tokenizer.encode(text + template, add_special_tokens=False)


# With what was mended taken out again, the case finds the fault
MENDS = {
    "half_a_character": (common, "find_surrogate", lambda _: None),
    "verdict": (critique, "NEGATION", r"(?!)"),
    "number_in_its_range": (common.argparse.ArgumentParser, "_get_value", lambda _, action, text: text),
    "resume_after_any_byte": (common.Output, "check_rows_belong", lambda *_: True),
    "edited_output": (common.Output, "check_rows_belong", lambda *_: True),
    "other_things_in_the_output": (dpo, "WORKING_FILES", ("*",)),
    "stray_shards": (files, "find_weights", lambda directory: sorted(directory.glob("*.safetensors"))),
    "not_finite": (placement, "check_finite", lambda *_: None),
    "attention_that_is_not_full": (limits, "check_attention", lambda *_: None),
    "dropout": (limits, "remove_dropout", lambda _: None),
    "too_many_frames": (limits, "count_positions", lambda _: sys.maxsize),
    "control_tokens_in_a_text": (families, "encode_text", encode_as_it_is),
    "control_tokens_as_words": (families, "encode_text", encode_as_it_is),
}


@pytest.mark.parametrize("name", MENDS)
def test_a_fault_that_is_put_back_is_found(name, tmp_path, monkeypatch):
    monkeypatch.setattr(*MENDS[name])
    found = []
    for seed in range(12):
        (tmp_path / f"{seed}").mkdir()
        try:
            found.append(CASES[name](tmp_path / f"{seed}", np.random.default_rng(seed)))
        except Exception as error:  # such as a traceback in the place of a refusal
            found.append(error)
        if found[-1] is not None:
            return
    raise AssertionError(f"not found in {len(found)} cases")


@pytest.mark.parametrize("stage", odd_rows.STAGES, ids=lambda stage: stage.__name__)
def test_each_numeric_option_has_a_range_and_is_tried(stage, monkeypatch):
    tried = {option for _, option, _, _ in odd_rows.NUMBERS}
    for action in test_house.list_options(stage, monkeypatch)._actions:
        assert action.type not in (int, float), action.dest
        if action.type not in (None, pathlib.Path):
            assert action.option_strings[0] in tried


# ------------------------------------------------------------------------------
# What readers who tried to break it found


def test_overwrite_knows_its_own_files_by_their_exact_names(tmp_path):
    output = tmp_path / "model"
    others = ["checkpoint-500", "checkpoint-notes.txt", "part", "checkpoints-000001.state", "reference.jsonl.bak"]
    output.mkdir()
    for name in others:
        (output / name).mkdir()
    (output / "checkpoint-000020.state").touch()
    common.write_json(common.meta_path(output), {})
    with pytest.raises(common.InputError) as refusal:
        dpo.clear(output, {})
    assert all(name in str(refusal.value) for name in others)
    assert "000020" not in str(refusal.value)
    assert dpo.list_checkpoints(output) == [output / "checkpoint-000020.state"]


def test_weights_that_the_index_names_below_the_directory_count_as_the_model(tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "a.safetensors").write_bytes(b"before")
    (tmp_path / "stray.safetensors").write_bytes(b"not read")
    common.write_json(tmp_path / "model.safetensors.index.json", {"weight_map": {"x": "w/a.safetensors"}})
    before = common.fingerprint(tmp_path)
    (tmp_path / "stray.safetensors").unlink()
    assert common.fingerprint(tmp_path) == before
    (tmp_path / "w" / "a.safetensors").write_bytes(b"after")
    assert common.fingerprint(tmp_path) != before


def test_named_chat_templates_are_carried_over_and_meta_files_are_not(tmp_path):
    base = tmp_path / "base"
    (base / "additional_chat_templates").mkdir(parents=True)
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    for name in ("answers.jsonl.meta.json", "pytorch_model.bin.index.json", "LICENSE"):
        (base / name).touch()
    (tmp_path / "new").mkdir()
    files.carry_over(base, tmp_path / "new")
    names = {path.relative_to(tmp_path / "new").as_posix() for path in (tmp_path / "new").rglob("*.*")}
    assert names == {"additional_chat_templates/tool_use.jinja"}
    assert (tmp_path / "new" / "LICENSE").exists()


@pytest.mark.parametrize(
    "verdict, expected",
    [
        ("nothing but factual_inaccuracy", ["factual_inaccuracy"]),
        ("none other than factual_inaccuracy", ["factual_inaccuracy"]),
        ("temporal_ordering rather than causal_reasoning", ["temporal_ordering"]),
        ("not only temporal_ordering but also detail_omission", ["temporal_ordering", "detail_omission"]),
        ("\n- temporal_ordering - none\n- detail_omission - yes", ["detail_omission"]),
        ("\n- [ ] temporal_ordering\n- [x] detail_omission", ["detail_omission"]),
        ("temporal_ordering (none), detail_omission (yes)", ["detail_omission"]),
        ("no factual_inaccuracy, temporal_ordering, or causal_reasoning", None),
        ("factual inaccuracies, temporal orderings", ["factual_inaccuracy", "temporal_ordering"]),
        ("~~temporal_ordering~~ none", []),
        ("there are no errors", []),
        ("not applicable", []),
        ("no, the answer is right", []),
    ],
)
def test_more_verdicts(verdict, expected):
    assert critique.parse_error_types(f"It moves. Errors: {verdict}") == expected


@pytest.mark.parametrize("line", ['"video": "a\\u0000.mp4"', f'"video": "a", "start": 1{"0" * 400}'])
def test_values_that_no_path_and_no_clock_has_are_refused_by_line(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text(f'{{"id": "a", {line}}}\n')
    with pytest.raises(common.InputError, match="rows.jsonl, line 1: '(video|start)'"):
        common.read_jsonl(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("value", ["8", -3, 0, 2.5, True])
def test_a_number_of_frames_in_a_config_is_a_whole_number(value):
    config = type("Config", (), {"num_frames": value})
    with pytest.raises(common.InputError, match="num_frames is"):
        families.choose_n_frames(None, config)
    assert families.choose_n_frames(4, config) == 4


def test_a_template_that_does_not_open_the_assistants_turn_is_refused():
    tokenizer = vlm.load_tokenizer(odd_models.BASE)
    template = tokenizer.chat_template
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    try:
        with pytest.raises(common.InputError, match="add_generation_prompt has to open its turn"):
            families.check_chat_template(tokenizer)
    finally:
        tokenizer.chat_template = template


def test_the_command_for_new_videos_has_no_shard(monkeypatch):
    words = ["python", "generate.py", "--shard", "1/2", "--model", "m", "--overwrite", "--shard=0/2"]
    monkeypatch.setattr(sys, "orig_argv", words)
    assert common.command("--shard") == "python generate.py --model m"
    assert common.command() == "python generate.py --shard 1/2 --model m --shard=0/2"
