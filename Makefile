# Each target fetches what it needs by itself: uv (scripts/uv), then by uv all that pyproject.toml pins, into .venv/.
# Works offline once that is done. ARGS=… is passed on: make test ARGS="-k journal -x"

UV := scripts/uv
# Once `env` has run, --no-sync keeps commands that run side by side from rebuilding the package under each other.
RUN := $(UV) run --no-sync

.DEFAULT_GOAL := help
.PHONY: help demo test simulate brokers certificates bench bench-ownership bench-compaction bench-guarantees bench-takeover chaos soak check check-format check-lint check-types check-imports format pins hooks env clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

demo: env ## Run the example: a year of flights, counted and joined, on memory://
	$(RUN) python examples/flights.py $(ARGS)

test: env brokers ## Run every test; REQUIRE_BROKERS=all (or kafka,redis,…) fails where a broker is missing instead of skipping
	$(RUN) pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

simulate: env ## Simulate workers under faults, from SEEDS=1000 seeds (docs/simulation.md); ARGS="--seed 7" replays one
	cd tests && PYTHONHASHSEED=0 $(abspath $(UV)) run --no-sync python -m simulation --seeds $(or $(SEEDS),1000) $(ARGS)

# Those that drivers and mirrors exist for.
BROKERS := redis nats rabbitmq kafka postgres

brokers: env ## Start those brokers of the tests that do not run yet (scripts/brokers); says loudly what cannot be had
	@scripts/brokers up $(BROKERS) || echo "!!! Tests of missing brokers are skipped, or fail where required." >&2
	@scripts/brokers install $(BROKERS) >/dev/null || echo "!!! Tests that stop a broker need one of their own." >&2

CERTIFIED := $(addprefix tests/conformance/test_,memory.py::memory sqlite.py kafka.py rabbitmq.py redis.py nats.py stores.py)

certificates: env brokers ## Run the conformance suite on all transports and stores; writes docs/certificates.md
	REQUIRE_BROKERS=all $(RUN) pytest -n auto --maxprocesses 8 --dist worksteal $(CERTIFIED) --thalweg-profile=all \
		--thalweg-certificate=build/certificates.json $(ARGS)
	{ sed '/^<!-- certificates -->$$/q' docs/certificates.md; echo; \
		$(RUN) python -m thalweg.contrib.conformance build/certificates.json; } > build/certificates.md
	mv build/certificates.md docs/certificates.md

bench: env ## Run the benchmarks
	$(RUN) python benchmarks/run.py $(ARGS)

bench-ownership: env ## Measure takeovers, pauses and moves of tasks on every broker (ARGS="kafka kill" for some)
	@scripts/brokers install redis nats rabbitmq kafka >/dev/null || echo "!!! Some brokers are missing." >&2
	PYTHONPATH=tests $(RUN) python benchmarks/ownership.py $(ARGS)

bench-compaction: env ## Measure how journals stay small, and what that costs (ARGS="kafka --updates 1000000" for some)
	@scripts/brokers install redis nats rabbitmq kafka >/dev/null || echo "!!! Some brokers are missing." >&2
	PYTHONPATH=tests $(RUN) python benchmarks/compaction.py $(ARGS)

bench-guarantees: env ## Measure what exactly-once costs on every broker (ARGS="redis --rounds 9" for some)
	@scripts/brokers install redis nats rabbitmq kafka >/dev/null || echo "!!! Some brokers are missing." >&2
	PYTHONPATH=tests $(RUN) python benchmarks/guarantees.py $(ARGS)

bench-recovery: env ## Measure how fast a worker gets its state back on every broker (ARGS="kafka --keys 100000" for some)
	@scripts/brokers install redis nats rabbitmq kafka >/dev/null || echo "!!! Some brokers are missing." >&2
	PYTHONPATH=tests $(RUN) python benchmarks/recovery.py $(ARGS)

bench-takeover: env ## Measure what a takeover adds, with a warm standby and without (ARGS="kafka rocksdb" for some)
	@scripts/brokers install redis nats rabbitmq kafka >/dev/null || echo "!!! Some brokers are missing." >&2
	PYTHONPATH=tests $(RUN) python benchmarks/takeover.py $(ARGS)

bench-large: env ## Run workers whose state is far larger than the memory they are given (ARGS="--gb 5"); takes a quarter of an hour
	$(RUN) python benchmarks/large_state.py $(ARGS)

chaos: env ## Faults by a seeded plan on brokers of its own: SEEDS=5 SEED=1 BROKER=kafka,redis ROUNDS=1, or PROGRAM=bank COUNT=100000
	@scripts/brokers install redis nats rabbitmq kafka >/dev/null || echo "!!! Some brokers are missing." >&2
	PYTHONPATH=tests $(RUN) python -m chaos $(if $(BROKER),--broker $(BROKER)) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(SEED),--seed $(SEED)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(PROGRAM),--program $(PROGRAM)) $(if $(COUNT),--count $(COUNT))

soak: env ## Programs as in production under all faults: DURATION=10m BROKER=redis,kafka RATE=300 PACE=5 SEED=1
	@scripts/brokers install redis nats rabbitmq kafka >/dev/null || echo "!!! Some brokers are missing." >&2
	PYTHONPATH=tests $(RUN) python -m chaos.soak $(if $(DURATION),--duration $(DURATION)) $(if $(BROKER),--broker $(BROKER)) \
		$(if $(RATE),--rate $(RATE)) $(if $(PACE),--pace $(PACE)) $(if $(SEED),--seed $(SEED))

check: check-format check-lint check-types check-imports ## Check format, lint, types and the direction of imports

check-format: env
	$(RUN) ruff format --check .

check-lint: env
	$(RUN) ruff check .

check-types: env
	$(RUN) mypy
	$(RUN) mypy examples
	$(RUN) mypy tests/typing/good.py
	$(RUN) basedpyright

check-imports: env
	$(RUN) lint-imports

format: env ## Format the code and repair what ruff can
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

pins: ## Pin the dependencies that have no pin yet; ARGS=--upgrade moves all to their newest versions
	python3 scripts/pin.py $(ARGS)

hooks: env ## Let git run the checks before each commit
	$(RUN) pre-commit install

# The editable installation consists of links in build/, so it must be made again when someone has removed that folder.
env:
	@$(UV) sync $(SYNC) || $(UV) sync --offline $(SYNC) || { \
		echo "The environment could not be made, see above. A new machine needs Python 3.11 or newer (uv fetches one" \
			"if it may) and a package index that uv can reach (UV_DEFAULT_INDEX names a mirror)." >&2; exit 1; }

SYNC = --quiet $(if $(wildcard build/__editable__*),,--reinstall-package thalweg)

clean: ## Remove all that make has made, except uv and the results of benchmarks; stop the brokers it started
	-scripts/brokers down
	rm -rf .venv .brokers build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
