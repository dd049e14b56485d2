"""What readers who tried to break it found: files of others, verdicts, odd values, templates."""

import sys

import pytest

import benchmarks
import common
import outputs
import prompts
import vlm
from conftest import MODEL
from vlm import chat, families, files


def test_overwrite_knows_its_own_files_by_their_exact_names(tmp_path):
    output = tmp_path / "model"
    others = ["checkpoint-500", "checkpoint-notes.txt", "part", "checkpoints-000001.state", "reference.jsonl.bak"]
    output.mkdir()
    for name in others:
        (output / name).mkdir()
    (output / "checkpoint-000020.state").touch()
    common.write_json(common.meta_path(output), {})
    with pytest.raises(common.InputError) as refusal:
        outputs.clear_directory(output, {})
    assert all(name in str(refusal.value) for name in others)
    assert "000020" not in str(refusal.value)
    assert outputs.list_checkpoints(output) == [output / "checkpoint-000020.state"]


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
    assert prompts.parse_error_types(f"It moves. Errors: {verdict}") == expected


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
    tokenizer = vlm.load_tokenizer(MODEL)
    template = tokenizer.chat_template
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    try:
        with pytest.raises(common.InputError, match="add_generation_prompt has to open its turn"):
            chat.check_chat_template(tokenizer)
    finally:
        tokenizer.chat_template = template


def test_the_command_for_new_videos_has_no_shard(monkeypatch):
    words = ["python", "generate.py", "--shard", "1/2", "--model", "m", "--overwrite", "--shard=0/2"]
    monkeypatch.setattr(sys, "orig_argv", words)
    assert common.command("--shard") == "python generate.py --model m"
    assert common.command() == "python generate.py --shard 1/2 --model m --shard=0/2"


def test_a_row_that_is_nested_too_deeply_is_refused_by_line(tmp_path):
    for depth in range(900, 1000, 7):
        (tmp_path / "rows.jsonl").write_text(f'{{"id": "a", "x": {"[" * depth}{"]" * depth}}}\n')
        try:
            common.read_jsonl(tmp_path / "rows.jsonl")
        except common.InputError as error:
            assert "rows.jsonl, line 1: " in str(error)


def test_true_is_no_number_of_seconds(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "start": true}\n')
    with pytest.raises(common.InputError, match="'start' has the type bool"):
        common.read_jsonl(tmp_path / "rows.jsonl")


def test_links_of_a_benchmark_that_lead_back_up_are_followed_once(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.MP4").touch()
    (tmp_path / "videos" / "up").symlink_to(tmp_path)
    (tmp_path / "videos" / "._a.mp4").touch()
    locate = benchmarks.find_videos(tmp_path)
    assert locate("a") == "videos/a.MP4"
    assert locate("b") == "videos/b.mp4"
