"""Small copies of the six benchmarks: annotations made up in the official formats, videos rendered by shapes/world.py.

WRITERS[benchmark](directory) writes one. No two questions of a benchmark have the same text and different answers.
"""

import csv
import functools
import json
import shutil
import tempfile
from pathlib import Path

import cv2

from shapes import world

# ------------------------------------------------------------------------------
# Videos and files


@functools.cache
def rendered(number):
    """Render an .mp4 of the tiny world, 16 frames at 8 per second -> its path."""
    path = Path(tempfile.mkdtemp()) / "scene.mp4"
    world.render(world.make_scene(0, "dev", number), path)
    return path


def write_video(path, number=0):
    """Write a video: .mp4, .webm or .avi; without a suffix a folder of frames, 00001.jpg to 00016.jpg."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".mp4":
        shutil.copy(rendered(number), path)
        return

    frames = read_frames(rendered(number))
    if path.suffix == "":
        path.mkdir()
        for index, frame in enumerate(frames, 1):
            cv2.imwrite(str(path / f"{index:05}.jpg"), frame)
        return

    code = {".webm": "VP80", ".avi": "MJPG"}[path.suffix]
    size = frames[0].shape[:2]  # scenes are square
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*code), 8, size)
    for frame in frames:
        writer.write(frame)
    writer.release()


def read_frames(path):
    """Read all frames of a video, BGR."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        is_read, frame = capture.read()
        if not is_read:
            return frames
        frames.append(frame)


def write_json(path, value):
    """Write a JSON file, and the folders that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False))


# ------------------------------------------------------------------------------
# MVBench: a task -> the name of its video, where the raw file is, and where the pre-trimmed one is.
# {} stands for the text of the bounds.


def same_place(name, path):
    """A video that is in the same place in both layouts."""
    return (name, path, path)


STAR = ("ABC01.mp4", "video/star/Charades_v1_480/ABC01.mp4", "video/star/Charades_segment/ABC01{}.mp4")
CLEVRER = same_place("video_10.mp4", "video/clevrer/video_validation/video_10.mp4")
PERCEPTION = same_place("video_7.mp4", "video/perception/videos/video_7.mp4")
MVBENCH = {
    "action_sequence": STAR,
    "action_prediction": STAR,
    # This one is only below data0613
    "object_interaction": (
        "DEF02.mp4",
        "video/data0613/star/Charades_v1_480/DEF02.mp4",
        "video/data0613/star/Charades_segment/DEF02{}.mp4",
    ),
    "action_localization": ("GHI03.mp4", "video/sta/sta_video/GHI03.mp4", "video/sta/sta_video_segment/GHI03{}.mp4"),
    # A folder of frames
    "episodic_reasoning": (
        "s01e02_clip_3",
        "video/tvqa/frames_fps3_hq/s01e02_clip_3",
        "video/tvqa/video_fps3_hq_segment/s01e02_clip_3{}.mp4",
    ),
    "action_antonym": ("1234.webm", "video/ssv2_video/1234.webm", "video/ssv2_video_mp4/1234.mp4"),
    "fine_grained_pose": (
        "S001A010_rgb.avi",
        "video/nturgbd/S001A010_rgb.avi",
        "video/nturgbd_convert/S001A010_rgb.mp4",
    ),
    "fine_grained_action": same_place("cooking/a b-1.mp4", "video/Moments_in_Time_Raw/videos/cooking/a b-1.mp4"),
    "unexpected_action": same_place("H_T_1.mp4", "video/FunQA_test/test/H_T_1.mp4"),
    "scene_transition": same_place("Top.mp4", "video/scene_qa/video/Top.mp4"),
    "egocentric_navigation": same_place("0_0.mp4", "video/vlnqa/0_0.mp4"),
    "object_existence": CLEVRER,
    "moving_direction": CLEVRER,
    "moving_count": CLEVRER,
    "moving_attribute": CLEVRER,
    # This one, too, is only below data0613
    "counterfactual_inference": same_place("video_11.mp4", "video/data0613/clevrer/video_validation/video_11.mp4"),
    "object_shuffle": PERCEPTION,
    "action_count": PERCEPTION,
    "state_change": PERCEPTION,
    "character_order": PERCEPTION,
}
BOUNDED = ("action_sequence", "action_prediction", "object_interaction", "action_localization", "episodic_reasoning")
# Start and end of the four rows, in seconds. The third row has those of the first; the last ends after the video.
BOUNDS = [(0, 1.0), (0.5, 1.2999999999999998), (0, 1.0), (1.5, 99)]


def write_mvbench(root, trimmed=False):
    """Write four rows for each task; the right answer is option B, C, B, C."""
    for task, (name, raw_path, trimmed_path) in MVBENCH.items():
        rows = []
        for number, (start, end) in enumerate(BOUNDS):
            candidates = ["x", "the man", "z"]
            if number == 3:
                candidates.append("w")
            row = {
                "video": name,
                "question": f"What is seen in part {number}?",
                "candidates": candidates,
                "answer": candidates[1 + number % 2],
            }
            if task in BOUNDED:
                row |= {"start": start, "end": end}
            rows.append(row)

            path = root / raw_path
            if trimmed:
                path = root / trimmed_path.format(f"_{float(start)}_{float(end)}")
            if not path.exists():
                write_video(path, number)
        write_json(root / "json" / f"{task}.json", rows)


# ------------------------------------------------------------------------------
# The other five


def write_perceptiontest(root):
    """Write three questions about video_1, and one about video_2, whose suffix is .MP4."""

    def question(id, what, area, reasoning, answer):
        return {
            "id": id,
            "question": f"How many {what} are there?",
            "options": ["one", "two", "three"],
            "answer_id": answer,
            "area": area,
            "reasoning": reasoning,
            "tag": ["object counting"],
        }

    about_video_1 = [
        question(0, "cups", "memory", "descriptive", 0),
        question(1, "balls", "physics", "counterfactual", 1),
        question(2, "hands", "memory", "explanatory", 2),
    ]
    about_video_2 = [question(0, "letters", "semantics", "predictive", 1)]
    split = {"split": "valid"}
    videos = {
        "video_1": {"metadata": split, "mc_question": about_video_1},
        "video_2": {"metadata": split, "mc_question": about_video_2},
    }
    write_json(root / "mc_question_valid.json", videos)
    write_video(root / "videos" / "video_1.mp4")
    write_video(root / "videos" / "video_2.MP4", 1)


def write_tempcompass(root):
    """Write questions about two videos, one in a folder of its own; some options are malformed as in the original."""

    def question(question, answer):
        return {"question": question, "answer": answer}

    turn = question("Which way does it turn?\nA. left\nB. right\nC. clockwise\n D. away", "B. right")
    first = question("What is first?\nA. a jump\nB. a kiss\nC.Both at once", "C.Both at once")
    deed = question("What does he do?\nA. run\nB. sit", "A. run")
    multi_choice = {"101": {"direction": [turn], "order": [first]}, "102": {"action": [deed]}}
    write_json(root / "questions" / "multi-choice.json", multi_choice)

    yes_no = {"101": {"speed": [question("Is it fast?", "no"), question("Is it slow?", "yes")]}}
    write_json(root / "questions" / "yes_no.json", yes_no)

    caption = question(
        "Which caption matches the video better?\nCaption A: A man runs.\nCaption B: A man sits.",
        "Caption B: A man sits.",
    )
    description = question(
        "Which description is a more suitable match for the video?\nOption 1: It grows.\nOption 2: It shrinks.",
        "Option 1: It grows.",
    )
    captions = {"102": {"attribute_change": [caption, description]}}
    write_json(root / "questions" / "caption_matching.json", captions)

    captioning = {"101": {"action": [question("Generated Caption:", "B. run")]}}  # a task that is not asked
    write_json(root / "questions" / "captioning.json", captioning)
    write_video(root / "videos" / "101.mp4")
    write_video(root / "videos" / "more" / "102.mp4", 1)


def write_nextqa(root):
    """Write four questions about two videos, in turns; one video is in no folder of its own, the other in VidOR's."""
    rows = [
        ("2574374895", 8, ' why did he say "no, thanks" ', "CW", 1),
        ("3238737531", 0, "what comes next", "TN", 4),
        ("2574374895", 9, "how many", "DC", 0),
        ("3238737531", 1, "how did he go", "CH", 2),
    ]
    write_video(root / "NExTVideo" / "2574374895.mp4")
    write_video(root / "NExTVideo" / "1164" / "3238737531.mp4", 1)
    header = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"
    with (root / "test.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(header.split(","))
        for video, qid, question, kind, answer in rows:
            table.writerow([video, 16, 128, 128, question, answer, qid, kind, "walk away", " thumbs up", "c", "d", "e"])


def write_egoschema(root):
    """Write three questions, two of them with a public answer."""
    options = ["C washes a pan", "C cooks dinner for the family", "c", "d", "e"]
    rows = []
    for number in range(3):
        row = {
            "q_uid": f"0074f737-{number}",
            "google_drive_id": "1",
            "question": f"What is C doing in clip {number}?",
        }
        row |= {f"option {index}": option for index, option in enumerate(options)}
        rows.append(row)
        write_video(root / "videos" / f"0074f737-{number}.mp4", number)
    write_json(root / "questions.json", rows)
    write_json(root / "subset_answers.json", {"0074f737-0": 1, "0074f737-2": 4})


def write_longvideobench(root):
    """Write three questions about two videos, with four and five candidates."""

    def row(id, video, group, category, n_candidates, answer):
        return {
            "video_id": video,
            "id": f"{video}_{id}",
            "video_path": f"{video}.mp4",
            "question": f"What follows {category}, {id}?",
            "candidates": list("vwxyz"[:n_candidates]),
            "correct_choice": answer,
            "question_category": category,
            "level": "L1-Perception",
            "duration_group": group,
            "duration": group + 0.5,
            "subtitle_path": f"{video}_en.json",
        }

    rows = [
        row(0, "86CxyhFV9MI", 15, "E2O", 4, 1),
        row(0, "_Hc6z1wJcw", 3600, "T2A", 5, 4),
        row(1, "86CxyhFV9MI", 15, "T2A", 5, 0),
    ]
    write_json(root / "lvb_val.json", rows)
    write_video(root / "videos" / "86CxyhFV9MI.mp4")
    write_video(root / "videos" / "_Hc6z1wJcw.mp4", 1)


WRITERS = {
    "mvbench": write_mvbench,
    "perceptiontest": write_perceptiontest,
    "tempcompass": write_tempcompass,
    "nextqa": write_nextqa,
    "egoschema": write_egoschema,
    "longvideobench": write_longvideobench,
}
