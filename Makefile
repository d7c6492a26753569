# make search    make the environment if it is missing, then run the quickstart search
# make test      the tests that take seconds each
# make test-slow     the others: whole searches, faults, compilers
# make test-alone    whole clusters: they want the machine for themselves, and root, sshd, ssh and rsync for their hosts
# make lint      ruff and mypy, as CI runs them
# make peers     the packages that benchmarks compare with, in .venv-peers
# make gpu       check and time the kernels on a GPU, with the interpreter at hand that has torch; it installs nothing
# make gpu-packages    for `make gpu`: numba and the packages that it compares with, in .gpu-packages; with FOR=3.12 for
#                      another Python, such as that of a machine without a network, to which the folder is then copied
# make test-gpu        the tests that compute on a GPU
# make report NAME=...    a page about a search below $(STORAGE), with every figure; also while it runs
# make ui        the MLflow pages of every search below $(STORAGE), on 127.0.0.1

STORAGE ?= searches
FILE    ?= quickstart
PORT    ?= 5000
# Names may hold spaces, and ~ is the home folder, as a shell has it.
KEPT     = "$(patsubst ~/%,$(HOME)/%,$(STORAGE))"
ARGS    ?=

# The first interpreter that the project supports; override with make PYTHON=...
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && { echo $$p; break; }; done)

RUN = .venv/bin/python
# A file's tests stay in one process, which makes the searches that they share once.
PYTEST = $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: search test test-slow test-alone test-gpu lint peers gpu gpu-packages report ui clean

search: .venv/ready
	$(RUN) -m xlstm_tune.search "$(patsubst ~/%,$(HOME)/%,$(FILE))" --storage $(KEPT) \
		--name "$(subst $() ,-,$(notdir $(basename $(FILE))))-$$(date +%Y%m%d-%H%M%S)" $(ARGS)

test: .venv/ready
	$(PYTEST) -m "not slow and not alone" $(ARGS)

test-slow: .venv/ready
	$(PYTEST) -m "slow and not alone" $(ARGS)

test-alone: .venv/ready
	$(RUN) -m pytest -n 0 -m alone $(ARGS)

lint: .venv/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

report: .venv/ready
	@test -n "$(NAME)" || { echo "Name the search: make report NAME=quickstart"; exit 2; }
	$(RUN) -m xlstm_tune.report $(NAME) --storage $(KEPT) $(ARGS)

ui: .venv/ready
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(RUN) -m mlflow ui --workers 1 --host 127.0.0.1 --port $(PORT) \
		--backend-store-uri "$$($(RUN) -m xlstm_tune.tracking uri $(KEPT))"

.venv/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed and was not found; name one with make PYTHON=/path/to/python"; exit 2; }
	@echo "Making the environment in .venv with $(PYTHON) (a few minutes, once) ..."
	@test -x $(RUN) || $(PYTHON) -m venv .venv
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# The official package, which tests compare with. Its dependencies stay out: mlstm_kernels has a licence of its own.
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps xlstm
	@$(RUN) -m xlstm_tune.models.warm_up
	@touch .venv/ready

# torch first and by itself, so that nothing else chooses another build of it. xlstm without its dependencies: it names
# mlstm_kernels, whose licence is restrictive and which its block stack does not need.
peers: .venv-peers/ready

.venv-peers/ready: benchmarks/peers.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed and was not found; name one with make PYTHON=/path/to/python"; exit 2; }
	@echo "Making the environment of the benchmarks' other side in .venv-peers (a few minutes, once) ..."
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' benchmarks/peers.txt)
	@.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	@.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps xlstm==2.0.6
	@touch .venv-peers/ready

# A machine with a GPU brings a torch that fits its driver: it is used as it is. The first of .venv and the interpreters
# on the path that has torch, unless one is named with make gpu PYTHON=...
GPU_PYTHON = $(if $(filter command environment,$(origin PYTHON)),$(PYTHON),$(shell \
	for p in $(RUN) python3 python python3.12 python3.11; do \
	$$p -c 'import sys, importlib.util as i; sys.exit(sys.version_info < (3, 11) or not i.find_spec("torch"))' 2>/dev/null \
	&& { echo $$p; break; }; done))

gpu:
	@test -n "$(GPU_PYTHON)" || { echo "No Python from 3.11 on that has torch was found; name one with make gpu PYTHON=/path/to/python"; exit 2; }
	@$(GPU_PYTHON) benchmarks/gpu.py $(ARGS)

# In a folder for each version of Python, since compiled packages fit one alone.
gpu-packages:
	@test -n "$(GPU_PYTHON)" || { echo "No Python from 3.11 on that has torch was found; name one with make gpu-packages PYTHON=/path/to/python"; exit 2; }
	@$(GPU_PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade --no-deps -c constraints.txt \
		-r benchmarks/gpu.txt $(if $(FOR),--python-version $(FOR) --only-binary=:all:) \
		--target .gpu-packages/$(or $(FOR),$$($(GPU_PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))

test-gpu:
	@test -n "$(GPU_PYTHON)" || { echo "No Python from 3.11 on that has torch was found; name one with make test-gpu PYTHON=/path/to/python"; exit 2; }
	@packages=.gpu-packages/$$($(GPU_PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	XLSTM_TUNE_TEST_GPU=1 PYTHONPATH=$(CURDIR):$(CURDIR)/$$packages \
		$(GPU_PYTHON) -m pytest -m gpu $(ARGS) $$(grep -rl --include='*.py' 'pytest.mark.gpu' tests)

clean:
	rm -rf .venv .venv-peers .gpu-packages
