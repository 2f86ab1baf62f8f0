// SPDX-License-Identifier: GPL-2.0-or-later
// Copyright (c) 2026, the colocated.tcp_sm authors
/*
 * What the public sockmap demonstrations do, kept for comparison only and never
 * shipped: every socket that becomes established enters a sockhash under its
 * 4-tuple, and every sendmsg goes to whatever socket has the mirrored 4-tuple.
 *
 * Known to be wrong (see docs/measuring.md): it can reorder the first bytes, it
 * joins connections of different network namespaces, and it has no back pressure.
 *
 *   clang -target bpf -O2 -g -idirafter /usr/include/$(gcc -dumpmachine) \
 *         -c tests/naive/naive.bpf.c -o build/bpf-naive/naive.bpf.o
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct tuple {
	__u32 local_ip;
	__u32 remote_ip;
	__u32 local_port;
	__u32 remote_port;
};

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 65535);
	__type(key, struct tuple);
	__type(value, __u64);
} naive_sockhash SEC(".maps");

SEC("sockops")
int naive_sockops(struct bpf_sock_ops *ops)
{
	struct tuple key = {
		.local_ip = ops->local_ip4,
		.remote_ip = ops->remote_ip4,
		.local_port = ops->local_port,
		.remote_port = bpf_ntohl(ops->remote_port),
	};

	if (ops->family != 2 /* AF_INET */)
		return 0;
	if (ops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB ||
	    ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		bpf_sock_hash_update(ops, &naive_sockhash, &key, BPF_NOEXIST);
	return 0;
}

SEC("sk_msg")
int naive_verdict(struct sk_msg_md *msg)
{
	struct tuple peer = {
		.local_ip = msg->remote_ip4,
		.remote_ip = msg->local_ip4,
		.local_port = bpf_ntohl(msg->remote_port),
		.remote_port = msg->local_port,
	};

	bpf_msg_redirect_hash(msg, &naive_sockhash, &peer, BPF_F_INGRESS);
	return SK_PASS;
}

char _license[] SEC("license") = "GPL";
