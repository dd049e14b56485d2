"""tools.probe: does the vision tower see it? Probes on features that are made by hand."""

import numpy as np
import pytest
import torch

import common
from shapes import pretrain, texts, world
from tools import probe


def resting(color, kind, x, y, appears=0):
    """A shape that stays at (x, y), in units of the world."""
    return world.Shape(color, kind, appears, np.tile(np.array([x, y], float), (world.FRAMES, 1)))


def test_tokens_are_those_that_the_vision_tower_was_trained_with():
    """The oracle is what pretraining tells its throwaway head of each token: there 0 is none, and kinds begin at 1."""
    scene = [resting("red", "circle", 8, 8), resting("blue", "square", 56, 40, appears=9)]
    n_tokens = pretrain.GRID**2
    # The feature of a token says which frame and which token it is
    features = torch.cartesian_prod(torch.arange(texts.N_FRAMES), torch.arange(n_tokens)).float()
    tokens = probe.take_tokens(features.view(texts.N_FRAMES, n_tokens, 2), scene, "v.mp4")

    targets = pretrain.token_targets(scene)  # (N_FRAMES, tokens, 4): color, kind, x, y
    assert len(tokens.owners) == (targets[..., 0] > 0).sum() > texts.N_FRAMES
    for (row, token), color, kind in zip(tokens.features.int(), *tokens.targets.values(), strict=True):
        assert (targets[row, token, :2] - 1).tolist() == [color, kind]
    assert set(tokens.owners) == {("v.mp4", "red circle"), ("v.mp4", "blue square")}


def test_a_token_of_two_shapes_is_left_out():
    scene = [resting("red", "circle", 8, 8), resting("blue", "square", 9, 9, appears=9)]
    features = torch.zeros(texts.N_FRAMES, pretrain.GRID**2, 2)
    alone = sum(frame < 9 for frame in texts.shown_frames())
    assert probe.take_tokens(features, scene, "v.mp4").owners == [("v.mp4", "red circle")] * alone


def make_tokens(features, kinds):
    """Tokens of as many shapes, with the given kinds, all red."""
    owners = [(f"{number}.mp4", f"red {world.KINDS[kind]}") for number, kind in enumerate(kinds)]
    return probe.Tokens(features, {"color": torch.zeros(len(kinds), dtype=torch.long), "kind": kinds}, owners)


def test_a_linear_probe_reads_what_stands_openly_and_no_exclusive_or():
    """The sign of a number is read by one matrix. Whether two numbers have the same sign is not: that holds in two
    opposite quarters of the plane, and a line cuts off one of them at best. A hidden layer reads it."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2000, 8, generator=generator)
    open_kinds = (features[:, 0] > 0).long()
    same_sign = (features[:, 0] * features[:, 1] > 0).long()

    def accuracy(kinds, hidden):
        read = probe.train_probe(make_tokens(features[:1000], kinds[:1000]), "kind", hidden, steps=1000)
        right = probe.read_shapes(read, make_tokens(features[1000:], kinds[1000:]), "kind")
        return sum(right.values()) / len(right)

    assert accuracy(open_kinds, hidden=False) > 0.9
    assert accuracy(same_sign, hidden=False) < 0.7
    assert accuracy(same_sign, hidden=True) > 0.9


def test_the_frames_of_a_shape_are_read_together():
    """Two frames lean a little to circle, one is sure of square: 0.6 * 0.6 * 0.01 < 0.4 * 0.4 * 0.99."""
    frames = torch.tensor([[0.6, 0.4, 0.0], [0.6, 0.4, 0.0], [0.01, 0.99, 0.0]]).clamp(1e-9).log()
    square = world.KINDS.index("square")
    tokens = probe.Tokens(frames, {"kind": torch.full((3,), square)}, [("v.mp4", "red square")] * 3)

    def read(features):
        return features

    assert probe.read_shapes(read, tokens, "kind") == {("v.mp4", "red square"): True}
    alone = tokens._replace(features=frames[:1], targets={"kind": torch.tensor([square])}, owners=tokens.owners[:1])
    assert probe.read_shapes(read, alone, "kind") == {("v.mp4", "red square"): False}


def test_wrong_answers_about_videos_in_which_a_shape_is_misread(tmp_path):
    """Two of four answers are wrong, one of them about a video in which a shape is misread. A revision counts."""
    true, wrong = "it moves left.", "it moves up."
    question = {"benchmark": "shapes", "task": "motion", "options": [true], "answer": 0}
    rows = [
        question | {"id": "1", "video": "videos/a.mp4", "initial": wrong},
        question | {"id": "2", "video": "videos/a.mp4", "initial": true},
        question | {"id": "3", "video": "videos/b.mp4", "initial": wrong},
        question | {"id": "4", "video": "videos/b.mp4", "initial": wrong, "revised": true},
    ]
    common.write_jsonl(tmp_path / "pairs.jsonl", rows)
    file = tmp_path / "pairs.jsonl"
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "a.mp4").touch()
    with pytest.raises(common.InputError, match=r"pairs.jsonl: 3 is about no video of .*dev"):
        probe.read_answers(file, tmp_path)

    (tmp_path / "dev" / "b.mp4").touch()
    right = {("a.mp4", "red circle"): False, ("b.mp4", "red square"): True}
    said = probe.describe_answers(file, probe.read_answers(file, tmp_path), right)
    assert "2 wrong answers, 1 of them about the 1 of 2 videos" in said


def test_new_shapes_are_those_that_the_base_never_saw():
    right = {("a.mp4", "red triangle"): False, ("a.mp4", "red circle"): True}
    assert probe.keep_new(right) == {("a.mp4", "red triangle"): False}
