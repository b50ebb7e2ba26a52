# make run                       the demo, a small application with the backup mounted, on loopback
# make run DATA=/path PORT=9000  a directory of yours instead
# make test                      lint, types, tests
# make test-all                  the same, the cases that take minutes, and the tests without the extra `fast`
# make torture MINUTES=30         the soak: load, faults, and every archive proved; a table at its end
# make bench SIZE=1000 JSON=FILE  how fast, against the reference algorithm, of so many MB; a table, and JSON if wanted
# make bench-scale                the curves: SCALE_SIZE= (MB), DATABASES=, FILES=, AT_ONCE=, and JSON=
# Another interpreter: make PYTHON=python3.12 run

PYTHON ?= python3
PORT ?= 8080
DATA ?=
MINUTES ?= 30
SIZE ?= 1000
JSON ?=
SCALE_SIZE ?= 8000
DATABASES ?= 5000
FILES ?= 70000
AT_ONCE ?= 8

# Errors only: warnings may name the package index.
PIP := -m pip --disable-pip-version-check --no-input -qq
SQLEAN := sqlean.py>=3.50.4; python_version < "3.15"
ISAL := isal>=1.7
bench-json = $(if $(JSON),--json '$(abspath $(JSON))')

.PHONY: run test test-all torture bench bench-scale clean
.DELETE_ON_ERROR:

run: .venv/.ready
ifeq ($(DATA),)
	@exec .venv/bin/mothership-backup demo --port '$(PORT)'
else
	@exec .venv/bin/mothership-backup serve --data-dir '$(DATA)' --port '$(PORT)'
endif

test: .venv/.ready-test
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/python -m pytest -n 2 -m 'not long'

# A suite without long cases is none: pytest says so with 5.
test-all: test .venv-plain/.ready
	.venv/bin/python -m pytest -n 2 -m long || test $$? -eq 5
	@echo 'Once more, without sqlean and isal:'
	.venv-plain/bin/python -m pytest -n 2 -m 'not long and not live_engine'

torture: .venv/.ready-test
	@cd tests && ../.venv/bin/python -m torture.soak --minutes '$(MINUTES)'

# The database of each size stays in the system's temporary directory for the next run.
bench: .venv/.ready-test
	@cd tests && ../.venv/bin/python -m benchmarks --size '$(SIZE)' $(bench-json)

bench-scale: .venv/.ready-test
	@cd tests && ../.venv/bin/python -m benchmarks --scale --scale-size '$(SCALE_SIZE)' \
		--databases '$(DATABASES)' --files '$(FILES)' --at-once '$(AT_ONCE)' $(bench-json)

clean:
	rm -rf .venv .venv-plain .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamp comes last. Whatever stands here without it was left half-made, and goes first.
.venv/.ready: pyproject.toml
	@$(call new-venv,.venv,-e .)
	@$(call try-wheel,sqlean,$(SQLEAN),databases in WAL mode may be read more slowly)
	@$(call try-wheel,isal,$(ISAL),archives are packed more slowly)
	@touch $@

.venv/.ready-test: .venv/.ready
	@echo 'Installing what the tests need ...'
	@.venv/bin/python $(PIP) install -e '.[test]'
	@touch $@

.venv-plain/.ready: pyproject.toml
	@$(call new-venv,.venv-plain,-e '.[test]')
	@touch $@

# $(call new-venv,FOLDER,WHAT TO INSTALL)
define new-venv
rm -rf $(1); \
$(check-python); \
echo 'Making $(1) ...'; \
$(PYTHON) -m venv $(1) && $(1)/bin/python $(PIP) install $(2) || { rm -rf $(1); exit 1; }
endef

# $(call try-wheel,MODULE,REQUIREMENT,WITHOUT IT): never built from source, which would compile SQLite.
define try-wheel
.venv/bin/python $(PIP) install --only-binary :all: '$(2)' 2>/dev/null; \
.venv/bin/python -c 'import $(1)' 2>/dev/null || echo 'No wheel of $(1) here: $(3).'
endef

# Runs on any Python, down to 2.7.
define check-python
command -v '$(PYTHON)' >/dev/null || \
	{ echo 'There is no $(PYTHON): install Python 3.11 or newer (Debian, Ubuntu: python3 and python3-venv).' >&2; exit 1; }; \
'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Python 3.11 or newer is needed, $(PYTHON) is $$('$(PYTHON)' -c 'import platform; print(platform.python_version())'): install python3.11 and python3.11-venv, then: make PYTHON=python3.11" >&2; exit 1; }; \
'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo "$(PYTHON) has no ensurepip: install python3-venv (Debian, Ubuntu: apt-get install $$('$(PYTHON)' -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'))" >&2; exit 1; }
endef
