// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The sockmap channel: TCP between two sockets of one kernel, carried from
 * sendmsg to the peer's receive queue.
 *
 *   sockmap/pairing.h    who are the two ends of a connection
 *   common/scope.h       which connections the operator admits
 *   sockmap/options.h    which socket options exclude one
 *   sockmap/profile.h    what earlier connections taught
 *   sockmap/switching.h  when a message is redirected; how a connection leaves
 *   sockmap/record.h     what operators are told
 *
 * Known limits: a reader that changes from recv to splice in the middle of a
 * connection is noticed only by the bytes it takes past recv; a MSG_OOB
 * message of more than URGENT_SIZE bytes arrives in line; closing a socket
 * with redirected bytes unread sends FIN where TCP sends RST.
 */
#include "sockmap/pairing.h"

char LICENSE[] SEC("license") = "GPL";

/* Names this loaded instance; made at first use. */
static __u64 instance;

static __always_inline __u64 this_instance(void)
{
	if (!READ_ONCE(instance))
		__sync_val_compare_and_swap(&instance, 0, bpf_ktime_get_ns());
	return READ_ONCE(instance);
}

/*
 * While an upgrade attaches the new tracepoint program before the old one
 * goes, both see each recv. Counted twice, unread bytes would look read, and
 * leaving would lose them. So a socket's recv calls are counted by one
 * instance for good. Once that is gone the count stays behind: then redirecting
 * to the socket ends at max_unread_bytes, and it never leaves, which is safe.
 */
static __always_inline bool counts_for(struct socket_state *state)
{
	__u64 me = this_instance();

	if (!READ_ONCE(state->counter))
		__sync_val_compare_and_swap(&state->counter, 0, me);
	return READ_ONCE(state->counter) == me;
}

static __always_inline void count_open(__u8 reason)
{
	struct tcp_sm_stats *count = stats();

	if (!count)
		return;
	count->opened[reason ? TCP_SM_CH_TCP : TCP_SM_CH_SOCKMAP]++;
	count->reasons[reason & 63]++;
}

/* A callback costs every connection: refused ones have none they do not need. */
static __always_inline int needed_callbacks(const struct socket_state *state)
{
	const struct tcp_sm_config *cfg = config();

	if (!state->reason)
		return BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG |
		       BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG;
	if (state->reason == TCP_SM_R_LEARNING || (cfg && cfg->events))
		return BPF_SOCK_OPS_STATE_CB_FLAG;
	return 0;
}

/* Others' callbacks stay as they are. */
static __always_inline void set_callbacks(struct bpf_sock_ops *skops, int wanted)
{
	int all = skops->bpf_sock_ops_cb_flags;

	if ((all | wanted) != all)
		bpf_sock_ops_cb_flags_set(skops, all | wanted);
}

static __always_inline void established(struct bpf_sock_ops *skops, __u8 side)
{
	struct bpf_sock *sk = skops->sk;
	struct tcp_sock *tp = sk ? bpf_skc_to_tcp_sock(sk) : NULL;
	struct socket_state *state;

	if (!tp || bpf_sk_storage_get(&tcp_sm_socks, sk, 0, 0))
		return; /* attached to a parent cgroup as well: it has run */
	state = side == TCP_SM_CLIENT ? client_established(skops, tp)
				      : server_established(skops, tp);
	if (!state) {
		count_open(TCP_SM_R_SHORT);
		set_callbacks(skops, POSTPONED);
		return;
	}
	state->watched = !state->reason || state->reason == TCP_SM_R_LEARNING ||
			 (side == TCP_SM_SERVER && state->reason == TCP_SM_R_NO_LOCAL_PEER);
	count_open(state->reason);
	tell(TCP_SM_EV_OPEN, tp, state);
	set_callbacks(skops, needed_callbacks(state));
}

/* Bytes went by TCP: the moment at which a connection may leave. */
static __always_inline void acknowledged(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct socket_state *state;
	struct tcp_sm_pair pair;
	struct conn *conn;

	state = sk ? bpf_sk_storage_get(&tcp_sm_socks, sk, 0, 0) : NULL;
	if (!state)
		return;
	pair = state->pair;
	conn = state->reason ? NULL : bpf_map_lookup_elem(&tcp_sm_conns, &pair);
	if (conn && phase_of(conn, &pair) == CONN_LEAVING)
		try_to_leave(conn, &pair);
	if (!conn || phase_of(conn, &pair) == CONN_LEFT)
		bpf_sock_ops_cb_flags_set(skops, skops->bpf_sock_ops_cb_flags &
							 ~BPF_SOCK_OPS_RTT_CB_FLAG);
}

/*
 * This socket sends a packet: it acknowledges bytes that came by TCP. A reader
 * that trusts short reads or FIONREAD may have stopped before them, so it gets
 * out of the sockhash and a new edge, which setting SO_RCVLOWAT makes.
 */
static __always_inline void acknowledges(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct tcp_sock *tp = sk ? bpf_skc_to_tcp_sock(sk) : NULL;
	struct tcp_sm_end end = {};
	struct socket_state *state;
	enum conn_phase phase;
	struct conn *conn;
	int lowat;

	state = tp ? bpf_sk_storage_get(&tcp_sm_socks, sk, 0, 0) : NULL;
	if (!state || state->reason)
		return;
	end.pair = state->pair;
	end.side = state->side;
	conn = bpf_map_lookup_elem(&tcp_sm_conns, &end.pair);
	phase = conn ? phase_of(conn, &end.pair) : CONN_DEAD;
	if (!conn || phase < CONN_LEAVING)
		return;
	if (phase == CONN_LEAVING) {
		if (!is_drained(conn, &end.pair, state->side))
			return;
		bpf_map_delete_elem(&tcp_sm_sockhash, &end);
		try_to_leave(conn, &end.pair);
	}
	lowat = tp->inet_conn.icsk_inet.sk.sk_rcvlowat;
	bpf_setsockopt(skops, SOL_SOCKET, SO_RCVLOWAT, &lowat, sizeof(lowat));
	bpf_sock_ops_cb_flags_set(skops, skops->bpf_sock_ops_cb_flags &
						 ~BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
}

/* Bytes that left the TCP queue without recv; one may be a FIN or urgent. */
static __always_inline bool was_spliced(const struct socket_state *state,
					const struct tcp_sock *tp)
{
	__u32 by_tcp = tp->copied_seq - first_seq(&state->pair, state->side);

	return by_tcp - (__u32)state->reader.read_bytes - 2 < 1U << 31;
}

static __always_inline void closed(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct tcp_sock *tp = sk ? bpf_skc_to_tcp_sock(sk) : NULL;
	struct tcp_sm_stats *count = stats();
	struct socket_state *state;

	if (!tp)
		return;
	state = bpf_sk_storage_get(&tcp_sm_socks, sk, 0, 0);
	if (!state)
		return;
	if (state->reason == TCP_SM_R_LEARNING && counts_for(state) && was_spliced(state, tp))
		teach(state, TCP_SM_R_SPLICE);
	tell(TCP_SM_EV_CLOSE, tp, state);
	close_end(state);
	if (count)
		count->closed++;
}

SEC("sockops")
int tcp_sm_sockops(struct bpf_sock_ops *skops)
{
	switch (skops->op) {
	case BPF_SOCK_OPS_TIMEOUT_INIT:
		make_offer(skops);
		break;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		forget(skops);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		established(skops, TCP_SM_CLIENT);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		established(skops, TCP_SM_SERVER);
		break;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		acknowledges(skops);
		break;
	case BPF_SOCK_OPS_RTT_CB:
		acknowledged(skops);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (skops->args[1] == TCP_CLOSE)
			closed(skops);
		break;
	}
	return 1;
}

/*
 * Is this the first message, and a TLS handshake record? It may lead to kTLS,
 * which cannot share a socket with a sockhash on every kernel.
 */
static __always_inline bool starts_tls(const struct sk_msg_md *msg, const struct flow_state *flow)
{
	__u8 *data = msg->data;

	if (flow->msgs || flow->passed_msgs || (void *)(data + 3) > (void *)msg->data_end)
		return false;
	return data[0] == 0x16 && data[1] == 0x03 && data[2] <= 0x04;
}

/* The verdict is always SK_PASS: a message that is not redirected goes by TCP. */
SEC("sk_msg")
int tcp_sm_verdict(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct tcp_sm_stats *count = stats();
	struct socket_state *state;
	struct flow_state *flow;
	struct tcp_sm_end peer;
	struct tcp_sock *me;
	struct conn *conn;
	__u32 size = msg->size;

	state = sk ? bpf_sk_storage_get(&tcp_sm_socks, sk, 0, 0) : NULL;
	me = sk ? bpf_skc_to_tcp_sock(sk) : NULL;
	/* A socket that is closed holds no entry any more; TCP answers EPIPE. */
	if (!state || !me || !count || !is_open(&me->inet_conn.icsk_inet.sk))
		return SK_PASS;
	peer.pair = state->pair;
	peer.side = !state->side;
	conn = bpf_map_lookup_elem(&tcp_sm_conns, &peer.pair);
	if (!conn)
		return SK_PASS;
	flow = &conn->flow[state->side & 1];
	if (starts_tls(msg, flow))
		ask_to_leave(conn, &peer.pair, TCP_SM_R_ULP);
	if (!may_redirect(conn, state, me, size) || !claim(conn, state, size))
		goto pass;
	if (bpf_msg_redirect_hash(msg, &tcp_sm_sockhash, &peer, BPF_F_INGRESS) != SK_PASS) {
		add_fenced(&flow->bytes, -(__u64)size);
		goto pass;
	}
	flow->msgs++;
	flow->unread_msgs++;
	count->redirected_bytes += size;
	count->redirected_msgs++;
	return SK_PASS;
pass:
	flow->passed_msgs++;
	count->passed_msgs++;
	return SK_PASS;
}

static __always_inline __u8 judge_recv(const struct sock *sk, const struct tcp_sock *tp,
				       const struct socket_state *state, int flags)
{
	__u8 reason;

	if (flags & (MSG_OOB | MSG_TRUNC))
		return flags & MSG_OOB ? TCP_SM_R_OOB : TCP_SM_R_RECV_FLAGS;
	/* A peek never sees past the redirected bytes to those sent by TCP. */
	if (flags & MSG_PEEK && !state->reason)
		return TCP_SM_R_RECV_FLAGS;
	/* Of a client this is known at connect: its other sockets may differ. */
	if (state->reader.mode == READER_BLOCKING &&
	    (state->side == TCP_SM_SERVER || !state->reason))
		return TCP_SM_R_BLOCKING;
	reason = refuse_by_options(tp);
	if (reason)
		return reason;
	/* After a FIN one sequence number more was consumed than bytes. */
	if (state->reason == TCP_SM_R_LEARNING && !(sk->sk_shutdown & RCV_SHUTDOWN) &&
	    was_spliced(state, tp))
		return TCP_SM_R_SPLICE;
	return TCP_SM_R_NONE;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(tcp_sm_recv, struct sock *sk, int ret, int flags)
{
	struct socket_state *state;
	struct tcp_sock *tp;
	__u8 reason;

	if (ret < 0 || flags & MSG_ERRQUEUE || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	if (!sk->sk_bpf_storage) {
		if (is_late(sk, tp))
			track_late(sk, tp);
		return 0;
	}
	state = bpf_sk_storage_get(&tcp_sm_socks, sk, 0, 0);
	if (!state || !state->watched || !counts_for(state))
		return 0;
	state->reader.mode = is_nonblocking(sk) ? READER_NONBLOCKING : READER_BLOCKING;
	if (ret > 0 && !(flags & (MSG_OOB | MSG_PEEK)))
		add_fenced(&state->reader.read_bytes, ret);
	reason = judge_recv(sk, tp, state, flags);
	if (reason && !state->reason)
		state->reader.veto = reason;
	/* Each socket tells a thing once, however often it reads. */
	if (state->taught != TAUGHT(reason) && (!reason || is_sticky(reason)))
		teach(state, reason);
	state->taught = TAUGHT(reason);
	if (state->reason == TCP_SM_R_NO_LOCAL_PEER)
		state->watched = 0;
	return 0;
}

/* Status: one record per tracked socket, of every network namespace. */
SEC("iter/bpf_sk_storage_map")
int tcp_sm_dump(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct socket_state *state = ctx->value;
	struct tcp_sm_record rec = {};
	struct sock *sk = ctx->sk;
	struct tcp_sock *tp;

	if (!state || !sk)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp || !state->opened_ns)
		return 0;
	fill_record(&rec, TCP_SM_EV_STATUS, tp, state);
	bpf_seq_write(ctx->meta->seq, &rec, sizeof(rec));
	return 0;
}

/*
 * Reading this takes out every connection that was asked to leave and is
 * drained, idle ones included; in mode `drain` it asks all. Writes one record
 * per end that is still in.
 */
SEC("iter/bpf_sk_storage_map")
int tcp_sm_evict(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct socket_state *state = ctx->value;
	const struct tcp_sm_config *cfg = config();
	struct tcp_sm_record rec = {};
	struct sock *sk = ctx->sk;
	struct tcp_sm_pair pair;
	struct tcp_sock *tp;
	struct conn *conn;

	if (!state || !sk || state->reason || !state->opened_ns)
		return 0;
	pair = state->pair;
	tp = bpf_skc_to_tcp_sock(sk);
	conn = bpf_map_lookup_elem(&tcp_sm_conns, &pair);
	if (!tp || !conn)
		return 0;
	if ((!cfg || cfg->mode == TCP_SM_DRAIN) && is_drained(conn, &pair, TCP_SM_CLIENT) &&
	    is_drained(conn, &pair, TCP_SM_SERVER))
		ask_to_leave(conn, &pair, TCP_SM_R_MODE_PASS);
	if (phase_of(conn, &pair) == CONN_LEAVING)
		try_to_leave(conn, &pair);
	if (phase_of(conn, &pair) >= CONN_LEFT)
		return 0;
	fill_record(&rec, TCP_SM_EV_STATUS, tp, state);
	bpf_seq_write(ctx->meta->seq, &rec, sizeof(rec));
	return 0;
}
