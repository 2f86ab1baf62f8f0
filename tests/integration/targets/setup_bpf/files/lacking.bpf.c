// SPDX-License-Identifier: GPL-2.0-or-later
/* Needs what no kernel has: a map type of the far future, or an unknown tracepoint. */
#include "fixture.h"

#ifdef FUTURE_MAP
struct {
	__uint(type, 200);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} future SEC(".maps");

SEC("sockops")
int use_future(struct bpf_sock_ops *ctx)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&future, &key) ? 1 : 0;
}
#else
SEC("tp_btf/no_such_tracepoint")
int never(void *ctx)
{
	return 0;
}
#endif

char LICENSE[] SEC("license") = "GPL";
