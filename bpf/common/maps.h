/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What both channels' programs have: the operator's rules, counters, events. */
#ifndef TCP_SM_COMMON_MAPS_H
#define TCP_SM_COMMON_MAPS_H

#include "kernel.h"
#include "../tcp_sm.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tcp_sm_config);
} tcp_sm_config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u32);
} tcp_sm_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tcp_sm_cidr);
	__type(value, __u32);
} tcp_sm_cidrs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tcp_sm_stats);
} tcp_sm_stats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} tcp_sm_events SEC(".maps");

static __always_inline const struct tcp_sm_config *config(void)
{
	__u32 zero = 0;
	struct tcp_sm_config *cfg = bpf_map_lookup_elem(&tcp_sm_config, &zero);

	return cfg && cfg->abi == TCP_SM_ABI ? cfg : NULL;
}

static __always_inline struct tcp_sm_stats *stats(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&tcp_sm_stats, &zero);
}

#endif
