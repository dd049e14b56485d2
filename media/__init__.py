"""From files to frames: which paths are videos, and which pictures are taken of each.

    find.py      the videos below a directory: files, and folders of frames
    sample.py    n frames of a video, or of the seconds between start and end
    changes.py   videos whose pictures change their size on the way, which OpenCV would show wrongly
    whole.py     is a file as long as it says?
    jpeg.py      the segments of a JPEG
    decode.py    OpenCV: a video file decoded in order, a picture, and why one cannot be read

A video that cannot be read is an OSError whose text names the file and the reason: it costs its own
rows, never the run. docs/videos.md lists what was tried.
"""

from media.decode import check_opencv
from media.find import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Found, find_videos, walk
from media.sample import FOLDER_FPS, LEAST_SHARE, Sample, frame_indices, sample_frames

__all__ = [
    "FOLDER_FPS",
    "IMAGE_SUFFIXES",
    "LEAST_SHARE",
    "VIDEO_SUFFIXES",
    "Found",
    "Sample",
    "check_opencv",
    "find_videos",
    "frame_indices",
    "sample_frames",
    "walk",
]
