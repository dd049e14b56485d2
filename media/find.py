"""Find videos below a directory: video files, and folders of frames."""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

# fmt: off
VIDEO_SUFFIXES = (
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".m1v", ".m2t",
    ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf",
    ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
)
# fmt: on
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
JUNK = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")  # of systems, beside all that begins with a point


class Found(NamedTuple):
    """What there is below a directory."""

    videos: list[Path]  # files and folders of frames, sorted
    passed_over: Counter  # what was found besides: how many of what


def find_videos(directory: Path) -> Found:
    """Find video files and folders of frames below a directory, to any depth.

    A folder of frames has images directly in it, and no video in it or below it: pictures beside
    videos, such as covers, are not frames. A folder that may not be read counts as a video, so that
    it gets a row with its reason.

    Hidden files are not looked at. Links are followed; a file with several names counts once.
    """
    files = []
    folders = []  # those with images
    passed_over = Counter()
    for folder, names in walk(directory):
        if names is None:  # it may not be read
            files.append(folder)
            continue
        n_images = 0
        for name in names:
            suffix = Path(name).suffix.lower()
            if suffix in VIDEO_SUFFIXES:
                files.append(folder / name)
            elif suffix in IMAGE_SUFFIXES:
                n_images += 1
            else:
                passed_over[suffix or "without a suffix"] += 1
        if n_images:
            folders.append((folder, n_images))

    videos = keep_one_name(files, passed_over)
    parents = set()  # of all videos so far
    for video in videos:
        parents.update(video.parents)
    deepest_first = sorted(folders, key=lambda pair: len(pair[0].parts), reverse=True)
    for folder, n_images in deepest_first:
        if folder in parents:
            passed_over["pictures beside videos"] += n_images
        else:
            videos.append(folder)
            parents.update(folder.parents)
    return Found(sorted(videos), passed_over)


def keep_one_name(files: list[Path], passed_over: Counter) -> list[Path]:
    """Keep one name of each file, rather its own than a link's; count the others."""
    kept = []
    seen = set()
    for file in sorted(files, key=lambda file: (file.is_symlink(), file)):
        target = os.path.realpath(file)
        if target in seen and file.exists():  # links that lead nowhere are rows with that reason
            passed_over["links to videos that are there"] += 1
            continue
        seen.add(target)
        kept.append(file)
    return kept


def walk(directory: Path):
    """Yield (folder, names of its files) for a directory and all folders below it.

    The names are None if a folder may not be read; if it is the directory itself, OSError. Hidden
    files and folders are left out. Links to folders are followed, each folder once.
    """
    unreadable = []

    def note(error):
        if Path(error.filename) == Path(directory):
            raise error
        unreadable.append(Path(error.filename))

    seen = set()
    for folder, below, names in os.walk(directory, onerror=note, followlinks=True):
        target = os.path.realpath(folder)
        if target in seen:
            below.clear()  # reached by another link already
            continue
        seen.add(target)
        # Links last, so that a folder is reached by its own name
        below[:] = sorted(
            filter(is_shown, below), key=lambda name: (os.path.islink(f"{folder}/{name}"), name)
        )
        yield Path(folder), sorted(filter(is_shown, names))
    for folder in unreadable:
        yield folder, None


def is_shown(name: str) -> bool:
    """Say whether a file or folder is neither hidden nor a system's own."""
    return not name.startswith(".") and name not in JUNK
