// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The ring channel's handshake: a TCP option in SYN and SYN-ACK finds out that
 * both machines share a region. These programs decide who may offer and who
 * may accept (common/scope.h), and keep the reason when a connection stays on
 * TCP. The steps themselves, and why both ends agree, are in kmod/handshake.c.
 *
 *   ring/option.h    the option in SYN and SYN-ACK
 *   ring/socket.h    what is remembered of a socket, and what operators are told
 */
#include "ring/option.h"
#include "ring/socket.h"

char LICENSE[] SEC("license") = "GPL";

static __always_inline void set_callbacks(struct bpf_sock_ops *skops, int on, int off)
{
	int flags = skops->bpf_sock_ops_cb_flags;

	if (((flags | on) & ~off) != flags)
		bpf_sock_ops_cb_flags_set(skops, (flags | on) & ~off);
}

/* May this connection use the ring, as far as the operator is concerned? */
static __always_inline __u8 refuse(struct bpf_sock_ops *skops, __u16 server_port)
{
	const struct tcp_sm_config *cfg = config();
	struct tcp_sock *tp = skops->sk ? bpf_skc_to_tcp_sock(skops->sk) : NULL;
	__u8 reason = refuse_by_mode(cfg);

	if (reason || !cfg || !tp)
		return reason ? reason : TCP_SM_R_BUSY;
	return refuse_by_scope(cfg, &tp->inet_conn.icsk_inet.sk.__sk_common, server_port);
}

static __always_inline void connecting(struct bpf_sock_ops *skops)
{
	__u8 reason = refuse(skops, bpf_ntohl(skops->remote_port));
	struct ring_socket *state = remember(skops, TCP_SM_CLIENT, reason);

	if (reason || !state)
		return; /* what nobody could account for is not offered */
	state->reason = tcp_sm_offer(skops);
	if (!state->reason)
		set_callbacks(skops, HEADER_OPTIONS, 0);
}

/*
 * Listeners keep the SYN's options, so that a repeated SYN-ACK can be answered. An
 * application that wants more of the SYN gets it. Of a program's context or socket.
 */
static __always_inline void keep_syn(void *listener)
{
	int one = 1, saves = 0;

	bpf_getsockopt(listener, SOL_TCP, TCP_SAVE_SYN, &saves, sizeof(saves));
	if (!saves)
		bpf_setsockopt(listener, SOL_TCP, TCP_SAVE_SYN, &one, sizeof(one));
}

static __always_inline void listening(struct bpf_sock_ops *skops)
{
	if (refuse(skops, skops->local_port))
		return;
	keep_syn(skops);
	set_callbacks(skops, HEADER_OPTIONS, 0);
}

static __always_inline void client_established(struct bpf_sock_ops *skops)
{
	struct tcp_sm_option option = {};
	struct ring_socket *state = recall(skops);
	__u8 reason;

	set_callbacks(skops, 0, HEADER_OPTIONS);
	reason = state ? state->reason : TCP_SM_R_NO_MEMORY;
	if (!reason) {
		load_option(skops, &option, 0);
		reason = tcp_sm_settle(skops, &option, sizeof(option));
	}
	opened(skops, state, reason);
}

static __always_inline void server_established(struct bpf_sock_ops *skops)
{
	struct tcp_sm_option option = {};
	__u8 reason = refuse(skops, skops->local_port);
	__u8 refusal;

	set_callbacks(skops, 0, HEADER_OPTIONS);
	/* Whoever offered is in the ring if it says so: mode and rules were asked before. */
	if (load_option(skops, &option, BPF_LOAD_HDR_OPT_TCP_SYN)) {
		reason = tcp_sm_join(skops, &option, sizeof(option));
		refusal = reason ? recall_refusal(&option) : TCP_SM_R_NONE;
		reason = refusal ? refusal : reason;
	} else if (!reason) {
		reason = TCP_SM_R_NO_OFFER;
	}
	opened(skops, remember(skops, TCP_SM_SERVER, reason), reason);
}

SEC("sockops")
int tcp_sm_handshake(struct bpf_sock_ops *skops)
{
	switch (skops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		connecting(skops);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		listening(skops);
		break;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		reserve_option(skops);
		break;
	case BPF_SOCK_OPS_WRITE_HDR_OPT_CB:
		write_option(skops);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		client_established(skops);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		server_established(skops);
		break;
	}
	return 1;
}

/* Status: one record per socket that was asked about, of every network namespace. */
SEC("iter/bpf_sk_storage_map")
int tcp_sm_dump(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct ring_socket *state = ctx->value;
	struct tcp_sm_record rec = {};
	struct sock *sk = ctx->sk;
	struct tcp_sock *tp;

	if (!state || !sk || !state->open)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	fill_record(&rec, tp, state);
	bpf_seq_write(ctx->meta->seq, &rec, sizeof(rec));
	return 0;
}

/* Reading this prepares listeners that are older than the programs; writes nothing. */
SEC("iter/tcp")
int tcp_sm_listeners(struct bpf_iter__tcp *ctx)
{
	struct sock_common *common = ctx->sk_common;
	int flags = 0;

	if (!common || common->skc_state != TCP_LISTEN)
		return 0;
	if (bpf_getsockopt(common, SOL_TCP, TCP_BPF_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags)))
		return 0;
	flags |= HEADER_OPTIONS;
	keep_syn(common);
	bpf_setsockopt(common, SOL_TCP, TCP_BPF_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags));
	return 0;
}
