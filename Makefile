# make loop    the whole of VideoSAVi in a tiny world, from videos to a better model, on a laptop
#              SEED=7: in a world of your own; RECIPE=FILE: with other options of tools/loop.sh
# make leaderboard RECIPE=FILE SEED=7    a recipe's score on a world that nobody has seen (course/)
# make test    the tests: four or five minutes on two cores, no network, no GPU
# make test-slow    whole runs, killed processes, real clips (downloaded once), damaged files: 20 minutes
# make test-page    the page of a run in a real browser (chromium)
# make lint    is the code formatted, and clean under the rules of pyproject.toml? Two seconds
# make study   the loop beside variants and controls, three loop seeds each: hours; SEEDS=1: a first look;
#              BASES="1 2": the most important ones on two more base models

PYTHON ?= python3

loop: .venv/ready
	PATH="$(CURDIR)/.venv/bin:$$PATH" SEED="$(SEED)" RECIPE="$(RECIPE)" bash shapes/loop.sh

leaderboard: .venv/ready
	.venv/bin/python -m course.leaderboard $(RECIPE) --seed $(SEED)

test: .venv/ready-dev
	.venv/bin/python -m pytest -q -n auto --dist loadfile tests

test-slow: .venv/ready-dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -rs -m slow -n auto --dist loadfile tests
	OMP_NUM_THREADS=1 .venv/bin/python -m tools.fuzz --n 200

# chromium and its driver must be there: tests/test_page_browser.py says how to install them
test-page: .venv/ready-dev
	.venv/bin/python -m pip install --quiet --disable-pip-version-check selenium==4.51.0
	.venv/bin/python -m pytest -q -rs -m browser tests/test_page_browser.py

lint: .venv/ready-dev
	.venv/bin/ruff format --check . && .venv/bin/ruff check .

study: .venv/ready-dev
	.venv/bin/python -m tools.study --bases $(or $(BASES),0) --seeds $(or $(SEEDS),1 2 3)

# A server without libGL cannot import OpenCV's desktop build; the headless build of the same version has all that is used here.
.venv/ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.13")'
	@echo "installing PyTorch and the other packages of requirements.txt into .venv: about a minute, 1.5 GB"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@if ! .venv/bin/python -c 'import cv2' 2>/dev/null; then \
	  version=$$(sed -n 's/^opencv-python==//p' requirements.txt); \
	  echo "import cv2 fails here (no libGL?): installing opencv-python-headless $$version in place of opencv-python"; \
	  .venv/bin/python -m pip uninstall --quiet --yes opencv-python && \
	  .venv/bin/python -m pip install --quiet --disable-pip-version-check opencv-python-headless==$$version && \
	  .venv/bin/python -c 'import cv2'; fi
	touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check $$(grep -v '^-r' requirements-dev.txt)
	touch $@

clean:
	rm -rf .venv runs

.PHONY: loop leaderboard test test-slow test-page lint study clean
