# Each target makes .venv and installs what it needs by itself, once, and again when pyproject.toml or constraints.txt
# change. `make` alone lists the targets.
#
# Variables, in the environment or on the command line:
#   PYTHON           the interpreter that makes .venv (3.11, 3.12 or 3.13)
#   LABKIT_PIP_ARGS  more arguments for pip, for instance
#                      LABKIT_PIP_ARGS="--extra-index-url <address of PyTorch's CPU wheels>" make course
#                      LABKIT_PIP_ARGS="--no-index --find-links ../wheels" make course        (without network: in
#                    course/ of an archive of `make bundle`, whose wheels/ holds the build backend too)
#                    Without any: on Linux, pip's index lists first a torch build with CUDA, of several GB. A machine
#                    without an NVIDIA driver gets the CPU build, which uv finds by itself; where pip's sources have been
#                    configured (pip config list), they are taken as they are.
#   CONSTRAINTS      the file of exact versions
#   SITE_TIER        the tier whose runs `make site` shows: cpu, or smoke for a quick look
#   JOBS             lessons that run side by side
#   PYTEST_ARGS      more arguments for pytest
#   MUTANTS_ARGS     arguments for tests/mutants.py, for instance "dpo --alive"
#   BUNDLE_ARGS      arguments for labkit camp bundle, for instance --platform all --python 3.12
#   LAB_ARGS         arguments for labkit lab and JupyterLab, for instance --lang ja --no-browser --port=8890

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help mutants studies course gpu smoke site bundle test check lab update bench train install clean

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
LABKIT_PIP_ARGS ?=
JOBS ?=
PYTEST_ARGS ?=
MUTANTS_ARGS ?=
LAB_ARGS ?=
BUNDLE_ARGS ?=
SITE_TIER ?= cpu

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
LABKIT := $(VENV)/bin/labkit
OFFLINE := HF_HUB_OFFLINE=1

EXTRAS_course := course
EXTRAS_test := course,dev
EXTRAS_bench := course,dev,bench
EXTRAS_gpu := course,gpu
EXTRAS_site := course,site
EXTRAS_camp := course,camp

help: ## list the targets / ターゲットの一覧
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

HAS_LESSONS = ls notebooks/src/[0-9]*.py >/dev/null 2>&1 || { echo "no lesson yet: nothing to execute"; exit 0; }

course: $(VENV)/.installed-course ## run all lessons on the CPU tier, report in build/ / 全レッスンをCPUで実行(結果は build/)
	@$(HAS_LESSONS); $(OFFLINE) $(LABKIT) run --tier cpu --jobs $(or $(JOBS),1)

gpu: $(VENV)/.installed-gpu ## run all lessons on the GPU tier / 全レッスンをGPUで実行
	$(LABKIT) env --tier gpu
	$(LABKIT) run --tier gpu --jobs $(or $(JOBS),1)

site: $(VENV)/.installed-site ## execute all lessons in both languages, web pages in build/site / Webページを作成
	$(OFFLINE) $(LABKIT) run --tier $(SITE_TIER) --lang both --jobs $(or $(JOBS),1)
	$(OFFLINE) $(LABKIT) site --tier $(SITE_TIER)

bundle: $(VENV)/.installed-camp ## an archive that installs without network, in build/camp / オフライン用アーカイブを作成
	$(LABKIT) camp bundle $(BUNDLE_ARGS)

smoke: $(VENV)/.installed-test ## run all lessons at their smallest, solved and unsolved / 最小構成で全レッスンを実行(解答版・学生版)
	@$(HAS_LESSONS); $(OFFLINE) $(LABKIT) run --tier smoke --lang en --jobs $(or $(JOBS),2)
	@$(HAS_LESSONS); $(OFFLINE) $(LABKIT) run --tier smoke --lang ja 00
	@$(HAS_LESSONS); $(OFFLINE) $(LABKIT) run --tier smoke --edition student --lang en --jobs $(or $(JOBS),2)

# pytest comes last, so that its summary closes the output.
test: check smoke ## lints, drift gate, smoke lanes, pytest / 全テスト
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n $(or $(JOBS),2) --dist loadfile --durations=15 $(PYTEST_ARGS)

mutants: $(VENV)/.installed-test ## change the equations one by one: does a test notice? / 式を1つずつ壊して検出できるか確認
	$(VENV_PYTHON) tests/mutants.py --jobs $(or $(JOBS),2) $(MUTANTS_ARGS)

check: $(VENV)/.installed-test ## ruff, the course's own lints, generated files up to date / 静的検査
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(LABKIT) lint
	$(LABKIT) build --check
	$(OFFLINE) $(LABKIT) study check

lab: $(VENV)/.installed-course ## open your own copies of the lessons, work/, in JupyterLab / 自分用のコピー(work/)をJupyterLabで開く
	@$(LABKIT) lab $(LAB_ARGS)

update: $(VENV)/.installed-course ## bring new and changed lessons into work/ / 新しいレッスンを work/ に取り込む
	@$(LABKIT) update

bench: $(VENV)/.installed-bench ## measure speed and memory against peers / 速度・メモリの比較測定
	$(VENV_PYTHON) -m pytest tests/benchmarks -s $(PYTEST_ARGS)

studies: $(VENV)/.installed-course ## record the studies behind the claims (hours; resumes) / 主張を裏付ける実験を記録(数時間・再開可)
	$(OFFLINE) $(VENV_PYTHON) -m labkit.studies.l06_shipped world
	@test -f data/shipped/pools-03.safetensors || $(OFFLINE) $(VENV_PYTHON) -m labkit.studies.l03_shipped
	@test -f data/shipped/pools-05.safetensors || $(OFFLINE) $(VENV_PYTHON) -m labkit.studies.l05_shipped
	@test -f data/shipped/easy-06.safetensors || $(OFFLINE) $(VENV_PYTHON) -m labkit.studies.l06_shipped
	@test -f data/catalogue/tuned.safetensors || $(OFFLINE) $(VENV_PYTHON) -m labkit.studies.l09_catalogue
	@test -f data/studies/l08-tuning.json || $(OFFLINE) $(VENV_PYTHON) -m labkit.studies.l08
	$(OFFLINE) $(LABKIT) study run --jobs $(or $(JOBS),2)

train: $(VENV)/.installed-course ## retrain everything shipped in data/ (hours; resumes) / data/ の全モデルを再学習(数時間・再開可)
	$(VENV_PYTHON) -m labkit.training all

install: $(VENV)/.installed-test ## only make .venv and install / .venv の作成とインストールのみ

clean: ## delete build/ (reports, executed notebooks, checkpoints) and caches / 生成物とキャッシュを削除
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find labkit tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

# Prints "uv" where pip would fetch a torch with CUDA that the machine cannot use: Linux without an NVIDIA driver (on the
# path, or where WSL keeps it), and nobody has said where pip shall look.
INSTALLER = if [ -z '$(LABKIT_PIP_ARGS)' ] && [ "$$(uname -s)" = Linux ] \
  && ! command -v nvidia-smi >/dev/null && [ ! -e /usr/lib/wsl/lib/nvidia-smi ] && [ ! -e /proc/driver/nvidia ] \
  && ! $(VENV_PYTHON) -m pip config list | grep -qE "index-url|find-links|no-index"; then echo uv; else echo pip; fi

$(VENV)/.installed-%: pyproject.toml $(CONSTRAINTS) | $(VENV_PYTHON)
	@if [ "$$($(INSTALLER))" = uv ]; then \
	  set -x; $(VENV_PYTHON) -m pip install --disable-pip-version-check uv \
	  && $(VENV_PYTHON) -m uv pip install --python $(VENV_PYTHON) --torch-backend cpu -c $(CONSTRAINTS) -e ".[$(EXTRAS_$*)]"; \
	else \
	  set -x; $(VENV_PYTHON) -m pip install --disable-pip-version-check $(LABKIT_PIP_ARGS) -c $(CONSTRAINTS) -e ".[$(EXTRAS_$*)]"; \
	fi
	@touch $@

$(VENV_PYTHON):
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "$(PYTHON) not found. Install Python 3.11, 3.12 or 3.13, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; \
	  echo "$(PYTHON) が見つかりません。Python 3.11〜3.13 をインストールするか、PYTHON=... で指定してください。" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "labkit needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is $$("$(PYTHON)" -V). Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	  echo "Python 3.11〜3.13 が必要です。PYTHON=python3.12 のように指定してください。" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv" >&2; \
	  echo "仮想環境を作成できません。Debian / Ubuntu では apt-get install python3-venv を実行してください。" >&2; exit 1; }
