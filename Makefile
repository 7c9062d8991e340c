# `make` alone lists the targets. Each sets up what it needs under .venv/, from the lock files in .requirements/,
# and does that again only when something changed.

PYTHON ?= python3
# Arguments for pytest, as in: make test ARGS="-k resize"
ARGS ?=

PACKAGES := kombu_pools_ext django_app flask_ext
# Folders too: their times change when a file goes away.
SOURCES := pyproject.toml LICENSE $(wildcard README.md) $(shell find $(PACKAGES) -not -path '*/__pycache__*' 2>/dev/null)
PIP := -m pip --disable-pip-version-check install -qq
# Into the environment of the Python that follows.
INSTALL := .venv/build/bin/python -m tests.installing

# Else each run would compile all tests anew, and their children what those import of them.
export PYTHONDONTWRITEBYTECODE :=

WHEEL := .venv/wheel/.built
TEST := .venv/test/bin/python
COVERED := $(TEST) -P -m coverage run -m pytest
GREENLET_TESTS ?= $(wildcard tests/engine tests/broker tests/publisher)

# kombu's functions are hardly annotated, and Django is not there with its stubs.
# Models and their admin say nothing of kombu, and cannot be understood without Django's stubs.
WITH_KOMBUS_TYPES := --allow-untyped-calls --allow-untyped-decorators --no-warn-unused-ignores \
	--exclude 'django_app/outbox/(admin|fields|models|migrations)'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.SECONDARY:
.PHONY: help demo serve test test-greenlets test-kombus lint style types format matrix brokers pythons wrk bench bench-outbox instructions reliability soak soak-outbox docs lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/demo/.installed ## a Django and a Flask application publish through the same pools (BROKER_URL=… for a real broker)
	@.venv/demo/bin/python docs/examples/demo.py

serve: .venv/demo/.installed ## the same two applications, left running
	@.venv/demo/bin/python docs/examples/demo.py --serve

test test-greenlets: export BRIEF := $(BRIEF)
test: export EXPECT_INSTALLED := 1
test: export COVERAGE_FILE := $(CURDIR)/.venv/coverage/data
test: .venv/test/.installed ## the tests, on the installed wheel, with coverage (ARGS="-k foo" for some of them)
	@rm -rf .venv/coverage && mkdir -p .venv/coverage
ifneq ($(strip $(ARGS)),)
	$(COVERED) $(ARGS)
else
	@$(TEST) -P tests/side_by_side.py tests
ifeq ($(BRIEF),)
	@$(TEST) -m coverage combine -q
	@$(TEST) -m coverage report
endif
endif

test-greenlets: export EXPECT_INSTALLED := 1
test-greenlets: .venv/test/.installed ## the engine's and the broker's tests, on gevent and on eventlet
ifneq ($(strip $(ARGS)),)
	$(TEST) -P tests/under_greenlets.py gevent $(GREENLET_TESTS) $(ARGS)
	$(TEST) -P tests/under_greenlets.py eventlet $(GREENLET_TESTS) $(ARGS)
else
	@$(TEST) -P tests/side_by_side.py greenlets $(GREENLET_TESTS)
endif

test-kombus: .venv/test/.installed .venv/lowest/.installed .venv/foreign/.fetched ## kombu's and Celery's own tests of pools, with ours in place of kombu's
	@.venv/build/bin/python -m tests.foreign

lint: style types ## ruff, codespell, mypy and pyright

style: .venv/lint/.locked ## ruff, with the bans that hold the layering, and codespell on all but the tests, which misspell on purpose
	.venv/lint/bin/ruff check .
	.venv/lint/bin/ruff format --check .
	.venv/lint/bin/codespell $(PACKAGES) docs $(wildcard *.md) Makefile pyproject.toml

types: .venv/lint/.locked .venv/test/.locked ## mypy (strict) and pyright, on the packages and on what their users see of them
	.venv/lint/bin/mypy
	.venv/lint/bin/mypy --python-executable .venv/test/bin/python $(WITH_KOMBUS_TYPES)
	.venv/lint/bin/pyright --pythonpath .venv/lint/bin/python
	.venv/lint/bin/python -m tests.typed

format: .venv/lint/.locked ## put the code into ruff's form
	.venv/lint/bin/ruff check --fix .
	.venv/lint/bin/ruff format .

matrix: export AFTER_TESTS := $(AFTER_TESTS)
matrix: export BRIEF := $(BRIEF)
matrix: $(WHEEL) .venv/lock/.locked brokers pythons ## the tests on every Python, Django, Flask, kombu and RabbitMQ that is supported
	@.venv/build/bin/python -m tests.matrix $(ARGS)

brokers: .venv/brokers/.fetched ## RabbitMQ 4 and Redis 8 from Debian's archive, into .venv/brokers/ (make test ARGS=… RABBITMQ=4.0 runs on it)

wrk: .venv/wrk/.fetched ## wrk from Debian's archive, which loads a web server, where the machine has none

pythons: .venv/python/.fetched ## Python 3.14 from Debian's archive, where the machine has none

bench: .venv/bench/.locked .venv/wrk/.fetched ## what it costs beside what else there is (ONLY=acquire, PYTHONS="3.12 3.13", SHORT=1; COMMIT=1 keeps the run)
	@.venv/bench/bin/python -m tests.benchmarks --only "$(ONLY)" --pythons "$(PYTHONS)" \
		$(if $(SHORT),--short) $(if $(COMMIT),--commit)

bench-outbox: .venv/bench/.locked ## what the outbox costs beside other outboxes for Django (ONLY=drain, ROWS=1000000, SHORT=1; COMMIT=1 keeps the run)
	@.venv/bench/bin/python -m tests.benchmarks.outbox --only "$(ONLY)" $(if $(ROWS),--rows "$(ROWS)") \
		$(if $(SHORT),--short) $(if $(COMMIT),--commit)

instructions: .venv/test/.locked ## how many instructions a lease takes, and whether that changed (KEEP=1 keeps the counts)
	@$(TEST) -m tests.benchmarks.instructions --pythons "$(PYTHONS)" $(if $(KEEP),--keep)

reliability: .venv/test/.installed ## what broker failures do to messages and callers, beside kombu's: docs/explanation/reliability.md (5 min)
	@$(TEST) -m tests.scenarios $(ARGS)

soak: export SOAK := $(SOAK)
soak: export SEED := $(SEED)
soak: .venv/test/.installed ## mixed load while faults strike at random, SOAK=60m long (90s, 2h), from a SEED that is printed
	@$(TEST) -m tests.scenarios.soak

soak-outbox: export SOAK := $(SOAK)
soak-outbox: export SEED := $(SEED)
soak-outbox: .venv/test/.installed ## the outbox while relays, brokers and databases are killed and frozen, SOAK=60m long, from a SEED
	@$(TEST) -m tests.outbox.soak

docs: .venv/docs/.installed ## the documentation, into docs/_build/html
	.venv/docs/bin/python -P -m sphinx -W --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html
	@echo docs/_build/html/index.html

lock: .venv/lock/.locked ## resolve the dependency groups anew, with hashes, into .requirements/
	@mkdir -p .requirements
	@$(PYTHON) -m tests.matrix --floors >.venv/lock/floors.txt
	@for name in build test lowest lint docs bench demo lock; do \
		group=$$name; extras='pyproject.toml --all-extras'; \
		case $$name in build|lock) extras= ;; lowest) group=test; extras="$$extras -c .venv/lock/floors.txt" ;; esac; \
		.venv/lock/bin/uv pip compile -q --upgrade --generate-hashes --universal --python-version 3.11 --no-header \
			--no-annotate --no-emit-index-url --no-emit-find-links $$extras --group $$group \
			-o .requirements/$$name.txt || exit 1; \
	done

clean: ## remove all that was made
	rm -rf .venv build dist docs/_build .hypothesis .mypy_cache .pytest_cache .ruff_cache .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- environments ----------------------------------------------------------------------------------------------------

define venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=…")'
@echo "setting up $(1)"
@rm -rf $(1)
@$(PYTHON) -m venv $(2) $(1)
endef

# What installs into the others.
.venv/build/.locked .venv/lock/.locked: .venv/%/.locked: .requirements/%.txt
	$(call venv,$(@D))
	@$(@D)/bin/python $(PIP) --require-hashes -r $<
	@touch $@

.venv/%/.locked: .requirements/%.txt | .venv/build/.locked .venv/lock/.locked
	$(call venv,$(@D),--without-pip)
	@$(INSTALL) $(@D)/bin/python --require-hashes -r $<
	@touch $@

$(WHEEL): $(SOURCES) .venv/build/.locked
	@rm -rf $(@D)
	@.venv/build/bin/python -m hatchling build -t wheel -d $(@D)
	@touch $@

# The script writes the stamp itself: where nothing can be had it says so, and is asked again the next time.
.venv/brokers/.fetched: tests/from_debian.py .venv/build/.locked
	@.venv/build/bin/python -m tests.from_debian brokers

.venv/python/.fetched: tests/from_debian.py .venv/build/.locked
	@.venv/build/bin/python -m tests.from_debian pythons

.venv/wrk/.fetched: tests/from_debian.py .venv/build/.locked
	@.venv/build/bin/python -m tests.from_debian wrk

.venv/foreign/.fetched: tests/foreign/sources.py .requirements/test.txt .requirements/lowest.txt .venv/build/.locked
	@.venv/build/bin/python -m tests.foreign.sources

.venv/%/.installed: .venv/%/.locked $(WHEEL)
	@$(INSTALL) $(@D)/bin/python --no-deps --no-index --force-reinstall .venv/wheel/*.whl
	@touch $@
