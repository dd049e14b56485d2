"""What a video costs with 1 question and with 12.

    OMP_NUM_THREADS=1 python -m tools.questions_cost            # on a CPU, about a minute
    python -m tools.questions_cost --model DIR                  # a model of your own, on the GPUs that are visible

evaluate.py decodes a video's frames, runs the vision tower over them and reads the prefix once, and answers all questions about it as one batch.
The whole is timed, from file to replies, as in MVBench: 32 frames, replies of 16 tokens (--tokens). Without --model it is the shipped tiny
architecture at the real size, 448 x 448 pixels and 256 tokens a frame, with random weights, whose replies never end before: so the proportion is
what counts, not the seconds.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers

import common
import evaluate
from shapes import world

FRAMES = 32
MODEL = "shapes/model"


def write_model(directory):
    """A checkpoint of the tiny architecture at the real size, with random weights."""
    config = transformers.AutoConfig.from_pretrained(MODEL)
    config.vision_config.image_size, config.vision_config.patch_size, config.image_seq_length = (
        [448, 448],
        [14, 14],
        256,
    )
    torch.manual_seed(0)
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(directory)
    common.load_tokenizer(MODEL).save_pretrained(directory)


def ask(model, tokenizer, path, prompts, tokens):
    """From the video file to the replies -> seconds."""
    begun = time.perf_counter()
    video = common.Video(model, tokenizer, common.sample_frames(path, FRAMES))
    common.decode(model, tokenizer, video, prompts, tokens)
    return time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="model directory or hub name")
    parser.add_argument("--devices", help="comma-separated (default: all visible GPUs, else cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=16, help="of a reply")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    shapes = world.make_scene(0, "dev", 2)
    items = [item for items in world.all_questions(shapes).values() for item in items]
    options = ["it moves left.", "it moves right.", "it moves up."]
    prompts = [
        evaluate.render_mvbench({"question": items[n % len(items)]["question"], "options": options})
        for n in range(args.questions)
    ]
    with tempfile.TemporaryDirectory() as temporary:
        if not args.model:
            write_model(temporary)
            args.model = temporary
        model, tokenizer = common.load(args)
        path = Path(temporary) / "scene.mp4"
        world.render(shapes, path)
        time_of = lambda prompts: ask(model, tokenizer, path, prompts, args.tokens)
        time_of(prompts[:1])  # warms up
        times = [(time_of(prompts[:1]), time_of(prompts)) for _ in range(args.repeats)]
    one, many = map(statistics.median, zip(*times))
    print(
        f"a video with 1 question: {one:.2f} s; with {args.questions} questions: {many:.2f} s, which is {many / one:.2f} times as much"
    )


if __name__ == "__main__":
    common.run(main)
