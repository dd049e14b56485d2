"""The mean of some models' weights (tools.average), on weights that can be checked by hand."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

import common
import vlm
from conftest import MODEL
from tools import average
from vlm.files import Entry

WEIGHTS = "model.safetensors"


def shifted_model(directory, by, dtype=torch.float32):
    """Write the tiny model with `by` added to every weight, as a checkpoint -> its directory."""
    directory = Path(shutil.copytree(MODEL, directory))
    tensors = safetensors.torch.load_file(directory / WEIGHTS)
    changed = {name: (tensor + by).to(dtype) for name, tensor in tensors.items()}
    safetensors.torch.save_file(changed, directory / WEIGHTS, {"format": "pt"})
    return directory


def test_the_mean_of_weights_that_were_moved_by_1_2_and_6_is_moved_by_3(tmp_path):
    models = [shifted_model(tmp_path / f"{by}", by) for by in (1, 2, 6)]
    average.average(models, tmp_path / "mean")
    means = safetensors.torch.load_file(tmp_path / "mean" / WEIGHTS)
    before = safetensors.torch.load_file(MODEL / WEIGHTS)
    assert means.keys() == before.keys()
    for name, weight in before.items():
        torch.testing.assert_close(means[name], weight + 3, msg=name)

    # It is a model like them, with all that they have beside their weights
    vlm.load_model(tmp_path / "mean", ["cpu"])
    names = {file.name for file in models[-1].iterdir()} - {"README.md"}
    assert {file.name for file in (tmp_path / "mean").iterdir()} == names


def test_the_mean_of_bfloat16_is_computed_in_float32_and_rounded_once(tmp_path):
    # In bfloat16 256 + 1 is 256, as the next number is 258. So 256 + 1 + 1 + 1 + 1 added up there is 256, and its fifth
    # 51.2; in float32 it is 260, and its fifth 52, which bfloat16 has
    path = tmp_path / WEIGHTS
    for number, value in enumerate((256, 1, 1, 1, 1)):
        tensor = torch.full((3,), value, dtype=torch.bfloat16)
        safetensors.torch.save_file({"w": tensor}, path.with_name(f"{number}.safetensors"))
    files = [{"w": path.with_name(f"{number}.safetensors")} for number in range(5)]
    mean = average.average_tensors(["w"], files)["w"]
    assert (mean.dtype, mean.tolist()) == (torch.bfloat16, [52, 52, 52])


def test_each_model_may_have_its_weights_in_other_files(tmp_path):
    whole = shifted_model(tmp_path / "whole", 0)
    sharded = shifted_model(tmp_path / "sharded", 1)
    tensors = safetensors.torch.load_file(sharded / WEIGHTS)
    names = {}  # of the files; the first one lies in a directory of its own
    for number, name in enumerate(sorted(tensors)):
        names[name] = "a/1.safetensors" if number < 20 else "2.safetensors"
    (sharded / "a").mkdir()
    for file in set(names.values()):
        shard = {name: tensor for name, tensor in tensors.items() if names[name] == file}
        safetensors.torch.save_file(shard, sharded / file)
    (sharded / WEIGHTS).unlink()
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))

    average.average([sharded, whole], tmp_path / "as-whole")
    average.average([whole, sharded], tmp_path / "as-sharded")  # the files are as the last one's
    expected = safetensors.torch.load_file(tmp_path / "as-whole" / WEIGHTS)
    found = {}
    for file in set(names.values()):
        found |= safetensors.torch.load_file(tmp_path / "as-sharded" / file)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(weight, tensors[name] - 0.5)
        torch.testing.assert_close(found[name], weight)


def check_refused(models, complaint, tmp_path):
    """Check that models are refused with this complaint, and that nothing is written."""
    with pytest.raises(common.InputError, match=complaint):
        average.average(models, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_models_of_another_type_are_refused(tmp_path):
    other = shifted_model(tmp_path / "other", 0, torch.bfloat16)
    check_refused([MODEL, other], "other: its .* is bfloat16 .*, that of .* is float32", tmp_path)


@pytest.mark.parametrize(
    "other, complaint",
    [
        ({"w": (2, 3)}, r"b: its v is missing, that of a is float32 \(4,\)"),
        ({"w": (2, 3), "v": (4,), "x": (1,)}, r"b: its x is float32 \(1,\), that of a is missing"),
        ({"w": (3, 2), "v": (4,)}, r"b: its w is float32 \(3, 2\), that of a is float32 \(2, 3\)"),
    ],
)
def test_models_that_are_not_of_one_base_are_refused(other, complaint):
    headers = []
    for shapes in ({"w": (2, 3), "v": (4,)}, other):
        entries = {name: Entry(torch.float32, torch.Size(shape)) for name, shape in shapes.items()}
        headers.append({Path("model.safetensors"): entries})
    with pytest.raises(common.InputError, match=complaint):
        average.check_alike([Path("a"), Path("b")], headers)


def test_an_adapter_and_what_is_no_model_are_refused(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    check_refused([MODEL, adapter], "adapter: an adapter; python -m tools.merge makes a whole", tmp_path)
    check_refused([MODEL, tmp_path / "nothing"], "nothing", tmp_path)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mean").mkdir()
    with pytest.raises(common.InputError, match="exists already"):
        average.average([MODEL, MODEL], tmp_path / "mean")


def test_one_model_has_no_mean(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["average", "a", "--output", "b"])
    with pytest.raises(SystemExit):
        average.parse_args()
    assert "a mean needs two models or more, and a is alone" in capsys.readouterr().err
