# What developers do. Every target installs what it needs: Python packages in .venv, programs with apt-get; `make demo`
# only Python packages, in .venv-demo.

PYTHON ?= python3
# The suite runs on those of them that are present, on the first with the oldest Gunicorn and uvicorn that are supported;
# without what depends on neither, and on the others without what does not depend on the version of Python.
PYTHONS ?= 3.10 3.11 3.12 3.13
OLDEST := gunicorn==25.1.0
OLDEST_UVICORN := uvicorn==0.23.0 uvicorn-worker==0.2.0
# The tests mostly wait: more of them than there are processors can run at once. Those that share a server are one group
# (xdist_group), so that it is started once.
JOBS ?= 6
# But a server under load needs half a processor.
LOADS ?= 3

# The first pip that knows dependency groups; venv may bring an older one.
GROUPS_PIP := 'pip>=25.1'
EXTRAS := .[prometheus,status,uvicorn]
BIN := .venv/bin
READY := .venv/ready
FUZZ_READY := .venv/fuzz-ready
OLDEST_GUNICORN := .venv/oldest-gunicorn
# Where coverage is measured: that needs sys.monitoring (PEP 669), as its tracer for older Pythons gets lost in greenlets.
COVERAGE_PYTHON ?= 3.13
COVERAGE_VENV := .ci/venv-coverage
# The data of each process; some of them run as another user.
COVERAGE := build/coverage
DEMO := .venv-demo
# Where the frameworks are that servers of the tests run, and in a folder of it the older SDK of MCP.
FRAMEWORKS := .venv-frameworks
OLDER := 'mcp<2' 'fastmcp; python_version < "3.11"'
BENCH_READY := .venv/bench-ready
# Seconds for each target.
FUZZ_SECONDS ?= 4
# How long a server is run while its processes die, stand still and are replaced at random, and SEED=N to do so again.
SOAK_SECONDS ?= 1800
# Where Debian has nginx and haproxy.
export PATH := $(PATH):/usr/sbin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Shell commands that install Debian packages.
apt_get_install = sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	$$sudo apt-get update -qq; \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $(1)

# Shell commands that find a version of Python, and call it "none" if it is not present.
find_python = for python in python$(1) $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$(1).*/bin/python$(1) none; do \
	! $$python -c 'import ensurepip' 2>/dev/null || break; \
done

.PHONY: test frameworks coverage lint check demo docs bench bench-quick bench-broadcast bench-scaling soak handovers \
	fuzz fuzz-quick faults build matrix clean programs venv

test: programs $(READY)
	$(BIN)/pytest -n $(JOBS) --dist loadgroup -m "not load and not frameworks"
	$(BIN)/pytest -n $(LOADS) --dist loadgroup -m load

# The examples and how-to pages about frameworks, which are large.
frameworks: programs $(READY) $(FRAMEWORKS)/ready
	$(BIN)/pytest -n $(LOADS) --dist loadgroup -m frameworks

# All tests, some of which fail as they take longer; what matters is the table, and build/coverage/html.
coverage: programs $(COVERAGE_VENV)/ready
	@rm -rf $(COVERAGE)
	@mkdir -p -m 777 $(COVERAGE)
	-$(covered) -n $(JOBS) --dist loadgroup -m "not load"
	-$(covered) -n $(LOADS) --dist loadgroup -m load
	@# Some files are of processes that were killed while they wrote them, which it would say of each.
	@$(COVERAGE_VENV)/bin/coverage combine --quiet --data-file $(COVERAGE)/data $(COVERAGE) 2>/dev/null
	@$(COVERAGE_VENV)/bin/coverage html --quiet --data-file $(COVERAGE)/data --directory $(COVERAGE)/html
	$(COVERAGE_VENV)/bin/coverage report --data-file $(COVERAGE)/data

coverage: covered = COVERAGE_PROCESS_START=$(CURDIR)/setup.cfg COVERAGE_FILE=$(CURDIR)/$(COVERAGE)/data \
	$(COVERAGE_VENV)/bin/pytest -q

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict
	$(BIN)/codespell
	$(BIN)/zizmor --offline --quiet .github

check: lint
	@$(MAKE) --no-print-directory test

demo: $(DEMO)/ready
	$(DEMO)/bin/python examples/chat/demo.py

# The site, in build/docs; a warning is an error.
docs: $(READY)
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs build/docs

# Writes docs/benchmarks.md.
bench: $(BENCH_READY)
	$(BIN)/python benchmarks/startup_hook.py
	$(BIN)/python benchmarks/counting.py
	$(BIN)/python benchmarks/compare.py $(if $(ROUNDS),--rounds $(ROUNDS))

# The same with fewer contenders and shorter runs; writes build/benchmarks.md. Fails if something is broken, whatever the
# figures.
bench-quick: $(BENCH_READY)
	$(BIN)/python benchmarks/counting.py --rounds 1
	$(BIN)/python benchmarks/compare.py --quick $(if $(ROUNDS),--rounds $(ROUNDS))

# Whether broadcasts between workers are as fast as promised, and faster than through Redis.
bench-broadcast: $(BENCH_READY)
	$(BIN)/python benchmarks/broadcast.py $(if $(ROUNDS),--rounds $(ROUNDS))

# What grows with workers and open WebSockets: about two minutes for each kind of worker.
bench-scaling: $(BENCH_READY)
	$(BIN)/python benchmarks/scaling.py $(if $(KIND),--kind $(KIND))

# Ends with a line such as "soak: 1800 s, 383 000 requests, 319 faults injected, lost beyond promise: 0".
soak: programs $(READY)
	$(BIN)/python tests/soak.py $(SOAK_SECONDS) $(if $(SEED),--seed $(SEED))

# The long forms of what the tests do in short.
handovers: $(READY)
	STICKY_HANDOVERS=100000 STICKY_REQUESTS=5000 $(BIN)/pytest -q tests/test_handover.py
	STICKY_FAULTS=10 $(BIN)/pytest -q tests/test_kinds.py -k changes

fuzz: $(FUZZ_READY)
	HYPOTHESIS_PROFILE=long $(BIN)/pytest -q tests/test_fuzz.py
	@$(MAKE) --no-print-directory fuzz-quick FUZZ_SECONDS=600

# By coverage, with seeds that are new each time; what Hypothesis does in short is in the tests. What is compared with
# Gunicorn's parser is so with that of the oldest version as well.
fuzz-quick: $(FUZZ_READY)
	@set -e; \
	fuzz() { \
		echo "$$1 for $(FUZZ_SECONDS) s, $$2"; \
		output=$$($(BIN)/python tests/fuzz/fuzz.py $$1 -max_total_time=$(FUZZ_SECONDS) 2>&1) || \
			{ echo "$$output" | tail -n 50; exit 1; }; \
	}; \
	for target in $$($(BIN)/python tests/fuzz/fuzz.py --list 2>/dev/null); do fuzz $$target "newest Gunicorn"; done; \
	export PYTHONPATH=$(OLDEST_GUNICORN); \
	for target in head proxy; do fuzz $$target $(OLDEST); done

# Each kind of fault 50 times, and 1 000 clients or more of each kind that means no good.
faults: programs $(READY)
	STICKY_FAULTS=50 $(BIN)/pytest -q -n $(LOADS) --dist loadgroup -m load

build: $(READY)
	@rm -rf dist
	$(BIN)/python -m build --quiet

matrix: programs
	@set -e; servers="$(OLDEST) $(OLDEST_UVICORN)"; tests="not load and not programs"; \
	for version in $(PYTHONS); do \
		$(call find_python,$$version); \
		if [ $$python = none ]; then echo "Python $$version: not present"; continue; fi; \
		venv=.ci/venv-$$version; \
		$$python -m venv $$venv; \
		$$venv/bin/pip install --quiet --upgrade $(GROUPS_PIP); \
		$$venv/bin/pip install --quiet --upgrade -e '$(EXTRAS)' --group test $$servers; \
		echo "Python $$version, $$servers"; \
		STICKY_REQUESTS=100 $$venv/bin/pytest -q -n $(JOBS) --dist loadgroup -m "$$tests"; \
		servers="gunicorn uvicorn uvicorn-worker"; tests="not load and not programs and not features"; \
	done

clean:
	rm -rf .venv $(DEMO) $(FRAMEWORKS) .ci/venv* build dist .mypy_cache .pytest_cache .ruff_cache
	find . \( -name node_modules -o -name __pycache__ \) -prune -exec rm -rf {} +

$(READY): pyproject.toml | venv
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --upgrade $(GROUPS_PIP)
	@$(BIN)/pip install --quiet -e '$(EXTRAS)' --group dev --group docs --group test
	@touch $@

$(DEMO)/ready: pyproject.toml examples/chat/requirements.txt
	@echo "Installing what the demo needs in $(DEMO)"
	@$(PYTHON) -m venv $(DEMO)
	@$(DEMO)/bin/pip install --quiet -e . -r examples/chat/requirements.txt
	@touch $@

$(FRAMEWORKS)/ready: pyproject.toml
	@echo "Installing frameworks in $(FRAMEWORKS)"
	@$(PYTHON) -m venv $(FRAMEWORKS)
	@$(FRAMEWORKS)/bin/pip install --quiet --upgrade $(GROUPS_PIP)
	@$(FRAMEWORKS)/bin/pip install --quiet -e '.[uvicorn]' --group frameworks
	@$(FRAMEWORKS)/bin/pip install --quiet --upgrade --target $(FRAMEWORKS)/older $(OLDER)
	@touch $@

# A wheel that not every Python has.
$(FUZZ_READY): $(READY)
	@$(BIN)/pip install --quiet --group fuzz
	@$(BIN)/pip install --quiet --no-deps --target $(OLDEST_GUNICORN) $(OLDEST)
	@touch $@

$(COVERAGE_VENV)/ready: pyproject.toml | venv
	@$(call find_python,$(COVERAGE_PYTHON)); \
	$$python -m venv $(COVERAGE_VENV)
	@$(COVERAGE_VENV)/bin/pip install --quiet --upgrade $(GROUPS_PIP)
	@$(COVERAGE_VENV)/bin/pip install --quiet -e '$(EXTRAS)' --group coverage --group test
	@touch $@

$(BENCH_READY): $(READY) | programs
	@$(BIN)/pip install --quiet --group bench
	@touch $@

# Debian's Python makes virtual environments only with another package.
venv:
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(call apt_get_install,python3-venv); }

# Programs that tests and benchmark start, and the Debian packages that have them; nothing happens if all of them are
# present.
programs:
	@missing=; \
	for program in chromium-headless-shell curl npm openssl nginx haproxy prometheus redis-server slowhttptest strace wrk; do \
		command -v $$program >/dev/null || missing="$$missing $$program"; \
	done; \
	command -v ip >/dev/null || missing="$$missing iproute2"; \
	command -v gcc >/dev/null || missing="$$missing gcc libc6-dev"; \
	find -L /usr/share/fonts -name '*.[ot]tf' 2>/dev/null | grep -q . || missing="$$missing fonts-dejavu-core"; \
	if [ -n "$$missing" ]; then $(call apt_get_install,$$missing); fi
