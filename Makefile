# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# make demo    everything from a bare clone to accelerated redis and nginx, with a report
# make test    every check; make help lists the single steps

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VERSION := $(shell sed -n 's/^version: *//p' galaxy.yml)
TARBALL := build/colocated-tcp_sm-$(VERSION).tar.gz
BIN := .venv/bin
PY := $(BIN)/python

export PATH := $(CURDIR)/.venv/bin:$(PATH):/usr/sbin:/sbin
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export ANSIBLE_FORCE_COLOR ?= 0

BPF_SRC := $(wildcard bpf/*.bpf.c)
BPF_OBJ := $(BPF_SRC:bpf/%.bpf.c=build/bpf/%.bpf.o)
# asm/types.h lies below the machine's multiarch folder, which clang does not search for BPF.
BPF_CFLAGS := -O2 -g -target bpf -mcpu=v3 -std=gnu11 -Wall -Werror \
	-fdebug-prefix-map=$(CURDIR)=. -Ibpf -Ibpf/include \
	-idirafter /usr/include/$(shell uname -m)-linux-gnu

.PHONY: help
help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: setup
setup:  ## install Debian packages, .venv and collections
	@scripts/setup.sh

# Instead of "command not found".
build unit units sanity lint-ruff lint-format lint-mypy lint-yaml lint-ansible lint-files \
clean-lab: | .venv/.requirements
.venv/.requirements:
	@echo "make: .venv is missing or incomplete; run \`make setup\` first" >&2; exit 1

.PHONY: bpf
bpf: $(BPF_OBJ)  ## compile the BPF objects to build/bpf
	@test -n "$(BPF_SRC)" || { echo "bpf: no bpf/*.bpf.c to compile" >&2; exit 1; }

build/bpf/%.bpf.o: bpf/%.bpf.c $(wildcard bpf/*.h bpf/*/*.h) Makefile
	@mkdir -p $(@D)
	@echo "bpf: $@"
	@clang $(BPF_CFLAGS) -c $< -o $@
	@llvm-strip -g $@

# What public sockmap demonstrations do, for comparison only: it loses bytes.
NAIVE := build/bpf-naive/naive.bpf.o
$(NAIVE): tests/naive/naive.bpf.c Makefile
	@mkdir -p $(@D)
	@clang $(BPF_CFLAGS) -c $< -o $@
	@llvm-strip -g $@

# Another version of the programs, with the same maps: what an upgrade is tested with.
NEXT := build/bpf-next/sockmap.bpf.o
$(NEXT): bpf/sockmap.bpf.c $(wildcard bpf/*.h bpf/*/*.h) Makefile
	@rm -rf $(@D) && mkdir -p $(@D) && cp -r bpf $(@D)
	@sed -i 's/#define BURST_MSGS 16/#define BURST_MSGS 15/' $(@D)/bpf/sockmap/switching.h
	@! cmp -s {,$(@D)/}bpf/sockmap/switching.h || { echo "$@: nothing to change" >&2; exit 1; }
	@clang -I$(@D)/bpf -I$(@D)/bpf/include $(BPF_CFLAGS) -c $(@D)/bpf/sockmap.bpf.c -o $@
	@llvm-strip -g $@

.PHONY: build
build: bpf  ## fill the roles' files and build the Galaxy tarball
	@$(PY) scripts/build.py $(TARBALL)

# Checks. Each target is one stage of `make test`; see scripts/stages.py for their order.

PYTHON_PATHS = $(wildcard agent plugins scripts tests roles molecule)

.PHONY: lint lint-ruff lint-format lint-mypy lint-yaml lint-ansible lint-bpf lint-files
lint: lint-ruff lint-format lint-mypy lint-yaml lint-ansible lint-bpf lint-files  ## run every linter
lint-ruff:
	@ruff check $(PYTHON_PATHS)
lint-format:
	@ruff format --check $(PYTHON_PATHS)
lint-mypy:
	@mypy -p ansible_collections.colocated.tcp_sm.plugins
	@mypy scripts tests
	@mkdir -p build/mypy/tcp_sm_agent
	@ln -sf $(CURDIR)/agent/tcp_sm_agent/*.py $(CURDIR)/plugins/module_utils/_* build/mypy/tcp_sm_agent
	@cd build/mypy && MYPYPATH= mypy --config-file ../../pyproject.toml -p tcp_sm_agent
lint-yaml:
	@yamllint --strict .
lint-ansible:
	@ansible-lint --offline --profile production
lint-bpf: bpf
	@for f in $(BPF_SRC) tests/naive/*.bpf.c; do \
		clang $(BPF_CFLAGS) -Wextra -Wno-unused-parameter -Wshadow -fsyntax-only $$f; done
	@! llvm-objdump -d $(BPF_OBJ) | grep 'lock \*(' || \
		{ echo "an atomic without BPF_FETCH orders nothing on arm64: use add_fenced" >&2; exit 1; }
lint-files:
	@$(PY) scripts/lint_files.py
.PHONY: lint-kmod
lint-kmod: guest-image  ## checkpatch, sparse and every supported kernel's compiler on the guests' module
	@$(PY) scripts/lint_kmod.py

JUNIT := build/test/junit
PYTEST = $(PY) -m pytest --junit-xml=$(JUNIT)/$@.xml

.PHONY: unit units sanity integration molecule molecule-vm traffic faults package-test readme-test lab-test bench-test
.PHONY: ring matrix matrix-test
unit:  ## pytest units
	@$(PYTEST) tests/unit
units: ## ansible-test units
	@$(PY) scripts/run_ansible_test.py units
sanity:  ## ansible-test sanity
	@$(PY) scripts/run_ansible_test.py sanity
integration: build  ## ansible-test integration
	@$(PY) scripts/run_ansible_test.py integration
traffic: build $(NEXT)  ## real programs over accelerated sockets
	@$(PYTEST) tests/traffic
ring: build guest-image  ## two guests and the ring between them
	@$(PYTEST) tests/ring
# The whole of both suites inside guests of each kernel; what of it `make test` has time for.
KERNELS := 6.12 7.3
QUICK := test_known_limits.py test_close.py test_receive.py test_wait.py test_reasons.py \
	test_pairing.py
matrix: build $(NEXT) guest-image  ## ring and traffic tests inside guests, on every supported kernel
	@failed=0; for kernel in $(KERNELS); do \
		TCP_SM_RING_KERNEL=$$kernel $(PY) -m pytest tests/ring \
			--junit-xml=$(JUNIT)/$@-$$kernel-ring.xml || failed=1; \
		$(PY) tests/matrix/traffic.py $$kernel $(JUNIT)/$@-$$kernel-traffic.xml || failed=1; \
	done; exit $$failed
matrix-test: build $(NEXT) guest-image  ## a part of the traffic tests inside guests, on every supported kernel
	@failed=0; for kernel in $(KERNELS); do \
		$(PY) tests/matrix/traffic.py $$kernel $(JUNIT)/$@-$$kernel.xml \
			$(addprefix tests/traffic/,$(QUICK)) || failed=1; \
	done; exit $$failed
faults: build  ## bad input and crashes
	@$(PYTEST) tests/faults
package-test: build  ## install the tarball elsewhere and run from there
	@$(PYTEST) tests/package
readme-test: build  ## the commands of README.md
	@$(PYTEST) tests/readme
lab-test: build  ## the lab and the demo, in a lab of the test's own
	@$(PYTEST) tests/lab
bench-test: build $(NAIVE)  ## a short benchmark, to see that it works
	@ansible-playbook -i inventories/local.yml playbooks/bench.yml -e @tests/bench/short.yml \
		-e bench_naive_object=$(CURDIR)/$(NAIVE) -e bench_report_dir=$(CURDIR)/build/test/report
MOLECULE = ANSIBLE_CALLBACKS_ENABLED=ansible.builtin.junit JUNIT_OUTPUT_DIR=$(CURDIR)/$(JUNIT)/$@ \
	molecule test --shared-state
molecule: build  ## molecule scenarios of one kernel
	@$(MOLECULE) --all --exclude vm
molecule-vm: build guest-image  ## the lab with virtual machines, from nothing to nothing
	@$(MOLECULE) --scenario-name vm

.PHONY: test
test: setup  ## everything
	@$(PY) scripts/stages.py

.PHONY: soak
soak: build $(NEXT) guest-image  ## the long run; SOAK_SECONDS bounds the traffic part (default 600)
	@failed=0; for suite in traffic ring; do \
		TCP_SM_SOAK_SECONDS=$${SOAK_SECONDS:-600} $(PY) -m pytest --timeout=0 -m soak tests/$$suite \
			--junit-xml=$(JUNIT)/$@-$$suite.xml || failed=1; \
	done; exit $$failed

# The lab: this machine as the host, two containers in a network namespace and two virtual
# machines; VMS=no leaves those out.

VMS ?= yes
LAB := -i inventories/lab $(if $(filter yes,$(VMS)),,--limit '!guests')

.PHONY: lab guest-image demo bench clean-lab
lab: build  ## start the lab
	@ansible-playbook $(LAB) playbooks/lab.yml
guest-image: setup  ## build the disk of the lab's virtual machines, where there is none
	@ansible-playbook -i inventories/lab playbooks/lab.yml -e lab_state=guest_image
# A line for what changes something or takes its time; ANSIBLE_STDOUT_CALLBACK=default shows all of it.
demo: export ANSIBLE_STDOUT_CALLBACK ?= brief
demo: export ANSIBLE_CALLBACK_PLUGINS := $(CURDIR)/scripts/callback
demo: setup  ## from a bare clone to a report; VMS=no: without virtual machines
	@$(MAKE) --no-print-directory build lab
	@ansible-playbook $(LAB) playbooks/site.yml
	@ansible-playbook $(LAB) playbooks/demo.yml
	@echo "report: build/report/index.html"
bench: setup  ## compare with TCP, a naive sockmap and AF_UNIX, here and between the lab's guests
	@$(MAKE) --no-print-directory build $(NAIVE) $(if $(filter yes,$(VMS)),lab)
	@$(if $(filter yes,$(VMS)),ansible-playbook $(LAB) playbooks/site.yml)
	@ansible-playbook $(if $(filter yes,$(VMS)),$(LAB) -e tcp_sm_hosts=lab,-i inventories/local.yml) \
		playbooks/bench.yml -e bench_naive_object=$(CURDIR)/$(NAIVE)
# Virtual machines are thrown away as they are, with what was installed in them.
clean-lab:  ## remove the lab and what the demo applied
	@ansible-playbook -i inventories/lab playbooks/remove.yml --limit '!guests' \
		-e '{"hypervisor_domains": false, "hypervisor_force": true}'
	@ansible-playbook -i inventories/lab playbooks/lab.yml -e lab_state=absent

.PHONY: clean
clean:  ## remove what was built; .venv and caches stay
	@rm -rf build/bpf build/*.tar.gz build/test build/report roles/host/files \
		roles/hypervisor/files roles/guest/files
