# SPDX-License-Identifier: Apache-2.0
# The programs that tests and demo run inside containers, compiled on the host into .cache/containers. Needs gcc and libc6-dev.
CONTAINER_SOURCES := tests/vm/containers/src
CONTAINER_BUILD := .cache/containers
CONTAINER_STATIC := attacks everyday network prober secrets_service lsm_bench
CONTAINER_DYNAMIC := denied dynamic_source
CONTAINER_PROGRAMS := $(addprefix $(CONTAINER_BUILD)/,$(CONTAINER_STATIC) $(CONTAINER_DYNAMIC) preload.so truth_prober)
CONTAINER_CFLAGS := -std=gnu11 -O2 -Wall -Wextra -Werror -Wno-missing-field-initializers

.PHONY: container-programs
container-programs: $(CONTAINER_PROGRAMS)

$(CONTAINER_BUILD):
	mkdir -p $@

$(addprefix $(CONTAINER_BUILD)/,$(CONTAINER_STATIC)): $(CONTAINER_BUILD)/%: $(CONTAINER_SOURCES)/%.c | $(CONTAINER_BUILD)
	$(CC) $(CONTAINER_CFLAGS) -static -pthread -o $@ $<

$(addprefix $(CONTAINER_BUILD)/,$(CONTAINER_DYNAMIC)): $(CONTAINER_BUILD)/%: $(CONTAINER_SOURCES)/%.c | $(CONTAINER_BUILD)
	$(CC) $(CONTAINER_CFLAGS) -pie -fPIE -o $@ $<

$(CONTAINER_BUILD)/preload.so: $(CONTAINER_SOURCES)/preload.c | $(CONTAINER_BUILD)
	$(CC) $(CONTAINER_CFLAGS) -shared -fPIC -o $@ $<

# The far and the near end of the truth table's packets: guests have no compiler.
$(CONTAINER_BUILD)/truth_prober: tests/host/network/prober.c | $(CONTAINER_BUILD)
	$(CC) $(CONTAINER_CFLAGS) -static -o $@ $<
