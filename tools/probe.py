"""Does the vision tower see it? Probes of what its tokens tell about the shapes.

    python -m tools.probe shapes/model runs/shapes
    python -m tools.probe shapes/model runs/shapes runs/dev/round4/eval/predictions.jsonl

It takes about two minutes. dpo.py trains the language model and leaves the
vision tower and the projector as they are. So what these do not tell, no loop
can teach. A probe is a small classifier that is trained, on the true shapes, to
tell the color or the kind of a shape from the one token of a frame that the
shape's centre is in. What a probe cannot tell, the token does not say, or not in
a way that is easy to read:

    linear    one matrix: what stands there openly
    hidden    one hidden layer: what a little computing finds, too

A shape is read right if the probe's log-probs, summed over the frames of a
video, are highest for the truth. The probes are trained on the videos of the
loop's rounds, and asked about `dev` and about those shapes of `hard` that the
base never saw in that color. In the rows `hard` a probe is trained on four
fifths of the videos of `hard`, and asked about the new shapes of the rest, five
times over: whether the tokens tell new shapes apart at all. Of a file of answers
to `dev` it is said how many wrong ones are about videos in which the linear
probe misreads a kind. The loop uses nothing of this.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import common
import media
import vlm
from shapes import pretrain, texts, world
from tools.misread import is_right

ROUNDS = ("round1", "round2", "round3", "round4")
FOLDS = 5  # of `hard`
HEADER = "trained on asked about  what   probe   shapes read right    videos with all read right"
Owner = tuple[str, str]  # the video's name, and that of the shape, such as "red circle"
CLASSES = {"color": list(world.COLORS), "kind": list(world.KINDS)}


# ------------------------------------------------------------------------------
# What the tower says
#
# Shapes: N tokens, each with one shape's centre in it.


class Tokens(NamedTuple):
    """Tokens of some videos, with what is to be read from them."""

    features: torch.Tensor  # (N, hidden)
    targets: dict[str, torch.Tensor]  # "color" and "kind": (N,) classes
    owners: list[Owner]  # N times: which shape is in the token


def see(model, root: Path, split: str) -> list[Tokens]:
    """Run the vision tower over the videos of a split -> their tokens, video by video."""
    size = (pretrain.IMAGE, pretrain.IMAGE)
    seen = []
    for path in sorted((root / split).rglob("*.mp4")):
        frames = media.sample_frames(path, texts.N_FRAMES).frames
        pixels = vlm.pixel_values(frames, size)  # (N_FRAMES, 3, IMAGE, IMAGE)
        features = pretrain.compute_features(model, pixels[None])[0]  # (N_FRAMES, tokens, hidden)
        scene = world.make_scene(0, split, int(path.stem.rpartition("_")[2]))
        seen.append(take_tokens(features, scene, path.name))
    if not seen:
        raise common.InputError(
            f"{root / split}: no videos; python -m shapes.world {root} renders them"
        )
    return seen


def take_tokens(features, scene: list[world.Shape], video: str) -> Tokens:
    """Take the tokens that have one shape's centre in them; where two share a token, neither.

    Args:
        features: (N_FRAMES, tokens of a frame, hidden)
    """
    taken = []
    owners = []
    for row, frame in enumerate(texts.shown_frames()):
        places = {}  # token -> the shapes in it
        for shape in scene:
            if frame >= shape.appears:
                places.setdefault(pretrain.find_token(shape, frame), []).append(shape)
        for token, shapes in places.items():
            if len(shapes) == 1:
                taken.append(features[row, token])
                owners.append(shapes[0])
    targets = {
        what: torch.tensor([names.index(getattr(shape, what)) for shape in owners])
        for what, names in CLASSES.items()
    }
    return Tokens(torch.stack(taken), targets, [(video, shape.name) for shape in owners])


def join(parts: list[Tokens]) -> Tokens:
    """Put the tokens of several videos together."""
    return Tokens(
        torch.cat([part.features for part in parts]),
        {what: torch.cat([part.targets[what] for part in parts]) for what in CLASSES},
        [owner for part in parts for owner in part.owners],
    )


# ------------------------------------------------------------------------------
# Probes


def train_probe(tokens: Tokens, what: str, hidden: bool, steps: int = 3000) -> Callable:
    """Train a probe with AdamW on batches of 256 tokens.

    Returns:
        a function: features (N, hidden) -> log-probs (N, classes)
    """
    torch.manual_seed(0)
    size, n_classes = tokens.features.shape[1], len(CLASSES[what])
    if hidden:
        layers = [torch.nn.Linear(size, size), torch.nn.ReLU(), torch.nn.Linear(size, n_classes)]
    else:
        layers = [torch.nn.Linear(size, n_classes)]
    probe = torch.nn.Sequential(*layers)
    mean, deviation = tokens.features.mean(0), tokens.features.std(0)  # (hidden,)

    optimizer = torch.optim.AdamW(probe.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(tokens.features), (256,))
        logits = probe((tokens.features[batch] - mean) / deviation)  # (256, classes)
        loss = torch.nn.functional.cross_entropy(logits, tokens.targets[what][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    @torch.no_grad()
    def read(features):
        return probe((features - mean) / deviation).log_softmax(-1)

    return read


def read_shapes(read: Callable, tokens: Tokens, what: str) -> dict[Owner, bool]:
    """Read each shape from its tokens of all frames -> {(video, shape): right}."""
    sums = {}
    truth = {}
    for owner, log_probs, target in zip(
        tokens.owners, read(tokens.features), tokens.targets[what].tolist()
    ):
        sums[owner] = sums.get(owner, 0) + log_probs
        truth[owner] = target
    return {owner: sums[owner].argmax().item() == truth[owner] for owner in sums}


def read_in_folds(videos: list[Tokens], what: str, hidden: bool) -> dict[Owner, bool]:
    """Read each shape by a probe that was trained on the other videos of the same split."""
    right = {}
    for fold in range(FOLDS):
        others = [video for number, video in enumerate(videos) if number % FOLDS != fold]
        read = train_probe(join(others), what, hidden)
        right |= read_shapes(read, join(videos[fold::FOLDS]), what)
    return right


# ------------------------------------------------------------------------------
# The command


def list_misread(right: dict[Owner, bool]) -> set[str]:
    """List the videos in which a shape is misread."""
    return {video for (video, _), is_right in right.items() if not is_right}


def keep_new(right: dict[Owner, bool]) -> dict[Owner, bool]:
    """Keep the shapes that the base never saw in their color."""
    new = {" ".join(names) for names in world.HELD_OUT}
    return {(video, name): right[video, name] for video, name in right if name in new}


def describe(trained_on: str, asked_about: str, what: str, name: str, right: dict) -> str:
    """Write a line of the table."""
    n_right = sum(right.values())
    share = n_right / len(right)
    n_videos = len({video for video, _ in right})
    n_whole = n_videos - len(list_misread(right))
    return (
        f"{trained_on:<11}{asked_about:<13}{what:<7}{name:<8}"
        f"{n_right} of {len(right)} = {share:.3f}    {n_whole} of {n_videos}"
    )


def read_answers(file: Path, root: Path) -> list[dict]:
    """Read the answers to `dev`, without those about unreadable videos.

    Raises:
        InputError: if an answer is about a video that is not in root / dev
    """
    videos = {path.name for path in (root / "dev").rglob("*.mp4")}
    rows = common.read_jsonl(file, ("id", "video", "task", "options", "answer"))
    for row in rows:
        if Path(row["video"]).name not in videos:
            raise common.InputError(f"{file}: {row['id']} is about no video of {root / 'dev'}")
    return [row for row in rows if "initial" in row]


def describe_answers(file: Path, rows: list[dict], right: dict[Owner, bool]) -> str:
    """Say how many wrong answers are about videos in which a shape is misread.

    Args:
        rows: of the file, see read_answers
        right: of all shapes of dev
    """
    misread = list_misread(right)
    wrong = [row for row in rows if not is_right(row, row.get("revised", row["initial"]))]
    n_inside = sum(Path(row["video"]).name in misread for row in wrong)
    n_videos = len({video for video, _ in right})
    return (
        f"{file}: {len(wrong)} wrong answers, {n_inside} of them about the {len(misread)} of "
        f"{n_videos} videos in which the linear probe misreads a kind"
    )


def main():
    """Train the probes, and print what they read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument("model", help="directory of a checkpoint of the tiny world")
    parser.add_argument("videos", type=Path, help="as python -m shapes.world writes them, seed 0")
    parser.add_argument("answers", nargs="*", type=Path, help="to dev: predictions or pairs.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(1)

    answers = {file: read_answers(file, args.videos) for file in args.answers}
    model = vlm.load_model(args.model, ["cpu"])
    splits = common.progress((*ROUNDS, "dev", "hard"), desc="vision tower", unit="split")
    seen = {split: see(model, args.videos, split) for split in splits}
    of_rounds = join([video for split in ROUNDS for video in seen[split]])

    print(HEADER)
    for what in CLASSES:
        for name, hidden in (("linear", False), ("hidden", True)):
            read = train_probe(of_rounds, what, hidden)
            of_dev = read_shapes(read, join(seen["dev"]), what)
            of_hard = read_shapes(read, join(seen["hard"]), what)
            in_folds = read_in_folds(seen["hard"], what, hidden)
            print(describe("rounds", "dev", what, name, of_dev))
            print(describe("rounds", "hard, new", what, name, keep_new(of_hard)))
            print(describe("hard", "hard, new", what, name, keep_new(in_folds)))
            if (what, name) == ("kind", "linear"):
                kinds_of_dev = of_dev
    for file, rows in answers.items():
        print(describe_answers(file, rows, kinds_of_dev))


if __name__ == "__main__":
    common.run(main)
