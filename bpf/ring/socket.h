/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is remembered of a socket of the ring channel, and what operators are told. */
#ifndef TCP_SM_RING_SOCKET_H
#define TCP_SM_RING_SOCKET_H

#include "../common/record.h"
#include "../tcp_sm_ops.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* The module's; read by address, for a program has no other way to it. */
struct tcp_sm_conn {
	struct tcp_sm_half half[2];
};

#pragma clang attribute pop

struct ring_socket {
	struct tcp_sm_pair pair;
	__u64 cookie;
	__u64 cgroup;
	__u64 opened_ns;
	__u8 side;
	__u8 reason;		/* why it is on TCP; NONE: offered, or in the ring */
	__u8 open;		/* established */
	__u8 unused[5];
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct ring_socket);
} tcp_sm_ring_socks SEC(".maps");

static __always_inline struct ring_socket *recall(struct bpf_sock_ops *skops)
{
	return skops->sk ? bpf_sk_storage_get(&tcp_sm_ring_socks, skops->sk, 0, 0) : NULL;
}

static __always_inline struct ring_socket *remember(struct bpf_sock_ops *skops, __u8 side,
						    __u8 reason)
{
	struct ring_socket *state = NULL;

	if (skops->sk)
		state = bpf_sk_storage_get(&tcp_sm_ring_socks, skops->sk, 0,
					   BPF_SK_STORAGE_GET_F_CREATE);
	if (!state)
		return NULL;
	state->side = side;
	state->reason = reason;
	state->open = 0;
	return state;
}

static __always_inline void count_open(__u8 reason)
{
	struct tcp_sm_stats *count = stats();

	if (!count)
		return;
	count->opened[reason ? TCP_SM_CH_TCP : TCP_SM_CH_RING]++;
	count->reasons[reason & 63]++;
}

/* Established: by the ring, or by TCP because of `reason`. */
static __always_inline void opened(struct bpf_sock_ops *skops, struct ring_socket *state,
				   __u8 reason)
{
	struct tcp_sock *tp = skops->sk ? bpf_skc_to_tcp_sock(skops->sk) : NULL;
	__u32 ours, theirs;

	count_open(reason);
	if (!tp || !state)
		return;
	ours = tp->snd_nxt - 1;
	theirs = tp->rcv_nxt - 1;
	state->pair.client_isn = state->side == TCP_SM_CLIENT ? ours : theirs;
	state->pair.server_isn = state->side == TCP_SM_CLIENT ? theirs : ours;
	state->cookie = bpf_get_socket_cookie(skops);
	state->cgroup = cgroup_of(&tp->inet_conn.icsk_inet.sk);
	state->opened_ns = bpf_ktime_get_ns();
	state->reason = reason;
	state->open = 1;
}

static __always_inline void fill_flow(struct tcp_sm_flow *flow, const struct tcp_sm_half *half)
{
	flow->bytes = half->bytes;
	flow->msgs = half->msgs;
}

/* The module's connection of a socket; NULL: the ring was left, *why. */
static __always_inline struct tcp_sm_conn *ring_of(const struct tcp_sock *tp, __u8 *why)
{
	const struct tcp_ulp_ops *ulp = tp->inet_conn.icsk_ulp_ops;
	char name[8] = {};

	*why = ulp ? TCP_SM_R_ULP : TCP_SM_R_PEER_LEFT;
	if (!ulp || bpf_core_read(name, sizeof(name), &ulp->name) ||
	    bpf_strncmp(name, sizeof(name), "tcp_sm"))
		return NULL;
	return tp->inet_conn.icsk_ulp_data;
}

static __always_inline void fill_record(struct tcp_sm_record *rec, const struct tcp_sock *tp,
					const struct ring_socket *state)
{
	struct tcp_sm_half half[2] = {};
	struct tcp_sm_conn *conn;
	__u8 why;

	rec->version = TCP_SM_ABI;
	rec->event = TCP_SM_EV_STATUS;
	rec->cookie = state->cookie;
	rec->cgroup = state->cgroup;
	rec->opened_ns = state->opened_ns;
	rec->pair = state->pair;
	rec->side = state->side;
	rec->reason = state->reason;
	fill_socket(rec, tp);
	if (rec->reason)
		return;
	conn = ring_of(tp, &why);
	if (!conn || bpf_core_read(half, sizeof(half), &conn->half)) {
		rec->reason = why;
		return;
	}
	rec->channel = TCP_SM_CH_RING;
	fill_flow(&rec->tx, &half[TCP_SM_TX]);
	fill_flow(&rec->rx, &half[TCP_SM_RX]);
	rec->rx.read_bytes = rec->rx.bytes;
}

#endif
