# SPDX-License-Identifier: GPL-2.0
# Everything is built and run in a build root (see scripts/root), so nothing must be installed by
# hand. KDIR=TREE builds with the host's tools instead, for a tree prepared for Rust modules.

MAKEFLAGS += --no-print-directory --no-builtin-rules
.DEFAULT_GOAL := modules
.PHONY: modules test test-host test-guest test-debug test-packages test-vm test-kernels quick \
	faults power soak bench debug-kernel check fmt demo shell lvm-test campaign deb \
	test-install clean clean-modules distclean help

kbuild = $(foreach name,V W DM_RUST_EXAMPLE,$(if $($(name)),$(name)=$($(name))))

ifdef KDIR
modules:
	tree=$$(scripts/check-kdir '$(KDIR)') && $(MAKE) -C "$$tree" M=$(CURDIR) $(kbuild) modules
clean-modules:
	tree=$$(scripts/check-kdir '$(KDIR)') && $(MAKE) -C "$$tree" M=$(CURDIR) clean
else
modules:
	@scripts/build modules $(kbuild)
clean-modules:
	@scripts/build clean
endif

test:
	@scripts/test all

test-host test-guest test-debug test-packages test-vm test-kernels:
	@scripts/test $(@:test-%=%)

quick faults power:
	@scripts/test $@

# The shell has a variable SECONDS too, hence the other name.
soak:
	@SECONDS_TO_RUN='$(or $(SECONDS),60)' KERNEL='$(or $(KERNEL),uml)' \
		scripts/test soak $(if $(SEED),--seed=$(SEED))

campaign:
	@HOURS='$(or $(HOURS),1)' scripts/test campaign

bench: $(if $(KERNEL),,modules)
	@$(if $(KERNEL),scripts/build --kernel $(KERNEL) modules)
	@scripts/vm --kernel $(or $(KERNEL),stock) --module none --memory 6G --timeout 14400 -- \
		scripts/bench $(BENCH)

lvm-test:
	@scripts/lvm-test $(T)

deb:
	@scripts/package/build-packages

test-install:
	@STEP='$(STEP)' scripts/package/test-install

debug-kernel:
	@scripts/debug-kernel debug
	@scripts/debug-kernel uml

check:
	@scripts/check

fmt:
	@scripts/check --fix-format

demo: modules
	@scripts/vm --timeout 1200 --disk 512M --disk 512M --disk 64M -- scripts/demo

shell: modules
	@scripts/vm --interactive --timeout 86400 --disk 1G --disk 1G --disk 64M -- bash

clean: clean-modules
	rm -rf .vm .build tests/host/target

distclean: clean
	@scripts/clean-cache

help:
	@echo 'make             build rust/dm_rust.ko for the stock Debian kernel'
	@echo 'make KDIR=TREE   the same for the headers of Debian, or a kernel tree prepared with Rust,'
	@echo '                 with the tools of this machine'
	@echo 'make demo        show all targets at work in a guest, on the stock kernel'
	@echo 'make test        all tests; parts: test-host, test-guest, test-debug, test-vm,'
	@echo '                 test-packages, test-kernels, faults, power, soak'
	@echo 'make quick       host tests, and the suite on dm-rust in User Mode Linux: the inner loop'
	@echo 'make faults      the n-th allocation or I/O fails, for rising n, in User Mode Linux'
	@echo 'make power       power cuts at each flush and in between, in User Mode Linux'
	@echo 'make soak SECONDS=600 [SEED=N] [KERNEL=uml|debug]   random events against a model'
	@echo 'make campaign HOURS=8   soak, crowds, power cuts and faults (every n) alternately, with'
	@echo '                 new seeds'
	@echo 'make bench       dm-rust, C and linear side by side, as ratios; options: BENCH="--help",'
	@echo '                 KERNEL=native'
	@echo 'make lvm-test    tests of LVM2 itself that use thick snapshots; T="NAME...", MERGE=1,'
	@echo '                 IMPL=c, KERNEL=uml'
	@echo 'make deb         the Debian packages, into .build/; make test-install: install them in a'
	@echo '                 guest, boot from them and remove them'
	@echo 'make debug-kernel   build the kernels of "scripts/vm --kernel debug" and "--kernel uml";'
	@echo '                 takes twenty-five minutes'
	@echo 'make check       rustfmt, black, style, clippy, audits, host tests'
	@echo 'make fmt         format the sources'
	@echo 'make shell       a shell in a guest with the module loaded and scratch disks'
	@echo 'make clean       remove what was built; make distclean: also the build root and the kernel'
	@echo '                 trees in the cache'
	@echo
	@echo 'Any of these commands for another kernel of Debian: KERNEL_SERIES=7.2 or 7.3,'
	@echo 'KERNEL_VERSION=7.2.N, KERNEL_SUITE=sid, KERNEL_FLAVOUR=cloud or rt. The module is then'
	@echo '.build/NAME/rust/dm_rust.ko.'
	@echo 'scripts/vm --help: how to run anything else in a guest.'
