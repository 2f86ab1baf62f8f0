/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pairing: which two sockets of this kernel are the ends of one connection.
 *
 * The key is the pair of initial sequence numbers, which both ends know and
 * no address translation changes. 4-tuples would join strangers: two network
 * namespaces may both hold 127.0.0.1:5555 -> 127.0.0.1:6666.
 *
 *   server  SYN arrives      TIMEOUT_INIT on the request: write an offer
 *   client  SYN-ACK arrives  ACTIVE_ESTABLISHED: find the offer, decide for both,
 *                            enter conns and sockhash, before the ACK leaves
 *   server  ACK arrives      PASSIVE_ESTABLISHED: find the pair in conns, enter too
 *
 * The offer is a hint that may get lost; what joins the ends is their common
 * key in conns.
 *
 * No offer found: the peer is not here, or its handshake had no request socket
 * (SYN cookies), or a proxy translated the numbers. All of that stays on TCP.
 */
#ifndef TCP_SM_PAIRING_H
#define TCP_SM_PAIRING_H

#include "record.h"
#include "switching.h"

#define LATE_SEGMENTS 16	/* with data, both ways, before a short one is tracked */
#define ANSWERED 0x80	/* the client's decision has replaced the server's offer */

static __always_inline __u8 refuse_request(const struct tcp_request_sock *req,
					   const struct sock *listener, __u16 port)
{
	struct profile *p = profile_of(cgroup_of(listener), port, TCP_SM_SERVER, false);
	const struct tcp_sm_config *cfg = config();
	__u8 reason = refuse_by_mode(cfg);

	if (reason || !cfg)
		return reason;
	if (bpf_core_field_exists(req->is_mptcp) && req->is_mptcp)
		return TCP_SM_R_MPTCP;
	if (req->tfo_listener)
		return TCP_SM_R_TFO;
	reason = refuse_by_history(p);
	if (!reason)
		reason = refuse_by_scope(cfg, &req->req.req.__req_common, port);
	return reason ? reason : refuse_by_ignorance(cfg, p, listener);
}

static __always_inline struct offer *offer_slot(struct tcp_sm_pair pair)
{
	__u32 slot = (hash_of(&pair) >> 32) % OFFERS;

	return bpf_map_lookup_elem(&tcp_sm_offers, &slot);
}

static __always_inline void put_offer(struct tcp_sm_pair pair, __u8 reason)
{
	struct offer *offer = offer_slot(pair);

	if (!offer)
		return;
	WRITE_ONCE(offer->tagged_reason, hash_of(&pair) << 8 | reason);
	WRITE_ONCE(offer->pair, word_of(&pair));
}

/* What was written for @pair; NO_LOCAL_PEER where nothing was. */
static __always_inline __u8 get_offer(struct tcp_sm_pair pair)
{
	struct offer *offer = offer_slot(pair);
	__u64 tagged;

	if (!offer || READ_ONCE(offer->pair) != word_of(&pair))
		return TCP_SM_R_NO_LOCAL_PEER;
	tagged = READ_ONCE(offer->tagged_reason);
	if (tagged >> 8 != hash_of(&pair) << 8 >> 8)
		return TCP_SM_R_NO_LOCAL_PEER;
	return (__u8)tagged;
}

static __always_inline void make_offer(struct bpf_sock_ops *skops)
{
	struct bpf_sock_ops_kern *kern = bpf_cast_to_kern_ctx(skops);
	struct tcp_request_sock *req =
		bpf_rdonly_cast(kern->sk, bpf_core_type_id_kernel(struct tcp_request_sock));
	const struct sock_common *common = &req->req.req.__req_common;
	/* A member of a union: to the verifier a number until it is cast. */
	const struct sock *listener =
		bpf_rdonly_cast(common->skc_listener, bpf_core_type_id_kernel(struct sock));
	struct tcp_sm_pair pair;

	if (common->skc_state != TCP_NEW_SYN_RECV)
		return; /* the client's own SYN timer */
	pair.client_isn = req->rcv_isn;
	pair.server_isn = req->snt_isn;
	put_offer(pair, refuse_request(req, listener, common->skc_num));
}

static __always_inline void start_state(struct socket_state *state, const struct tcp_sock *tp,
					struct tcp_sm_pair pair, __u8 side, __u64 cookie)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;

	state->pair = pair;
	state->side = side;
	state->cookie = cookie;
	state->cgroup = cgroup_of(sk);
	state->opened_ns = bpf_ktime_get_ns();
	state->server_port = side == TCP_SM_SERVER ? sk->__sk_common.skc_num
						   : bpf_ntohs(sk->__sk_common.skc_dport);
}

static __always_inline struct socket_state *track(struct bpf_sock_ops *skops,
						  const struct tcp_sock *tp,
						  struct tcp_sm_pair pair, __u8 side)
{
	struct bpf_sock *sk = skops->sk;
	struct socket_state *state;

	if (!sk)
		return NULL;
	state = bpf_sk_storage_get(&tcp_sm_socks, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state || state->opened_ns)
		return NULL; /* no memory, or attached to a parent cgroup as well */
	start_state(state, tp, pair, side, bpf_get_socket_cookie(skops));
	return state;
}

static __always_inline __u8 enter(struct bpf_sock_ops *skops, const struct socket_state *state)
{
	struct tcp_sm_end end = {.pair = state->pair, .side = state->side};
	long err = bpf_sock_hash_update(skops, &tcp_sm_sockhash, &end, BPF_NOEXIST);

	if (!err)
		return TCP_SM_R_NONE;
	return err == -12 /* ENOMEM */ || err == -7 /* E2BIG */ ? TCP_SM_R_NO_MEMORY
								: TCP_SM_R_BUSY;
}

static __always_inline void set_end(struct conn *conn, const struct socket_state *state,
				    const struct tcp_sock *tp)
{
	__u8 side = state->side & 1;

	conn->sk[side] = (__u64)tp;
	conn->reader[side] = (__u64)&state->reader;
	conn->cookie[side] = state->cookie;
	if (is_trusted(state))
		__sync_fetch_and_or(&conn->trusted, 1 << side);
}

static __always_inline __u8 refuse_client(const struct tcp_sock *tp,
					  const struct socket_state *state)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	const struct tcp_sm_config *cfg = config();
	__u8 reason;

	if (!is_nonblocking(sk))
		return TCP_SM_R_BLOCKING;
	reason = refuse_by_options(tp);
	if (!reason)
		reason = refuse_by_mode(cfg);
	if (reason || !cfg)
		return reason;
	reason = refuse_by_scope(cfg, &sk->__sk_common, state->server_port);
	if (reason)
		return reason;
	return refuse_by_history(profile_of(state->cgroup, state->server_port, TCP_SM_CLIENT,
					    false));
}

static __always_inline __u8 join_client(struct bpf_sock_ops *skops, struct socket_state *state,
					const struct tcp_sock *tp)
{
	struct tcp_sm_pair pair = state->pair;
	struct conn fresh = {};
	__u8 reason = refuse_client(tp, state);

	if (reason)
		return reason;
	fresh.word = first_word(&pair);
	set_end(&fresh, state, tp);
	if (bpf_map_update_elem(&tcp_sm_conns, &pair, &fresh, BPF_NOEXIST))
		return TCP_SM_R_NO_MEMORY;
	reason = enter(skops, state);
	if (reason)
		bpf_map_delete_elem(&tcp_sm_conns, &pair);
	return reason;
}

/* Returns what is known of the client's socket; NULL where that can wait. */
static __always_inline struct socket_state *client_established(struct bpf_sock_ops *skops,
								const struct tcp_sock *tp)
{
	struct tcp_sm_pair pair = {.client_isn = tp->snd_nxt - 1,
				   .server_isn = tp->rcv_nxt - 1};
	__u8 reason = refuse_by_birth(tp);
	struct socket_state *state;

	if (!reason)
		reason = get_offer(pair);
	if (reason == TCP_SM_R_SHORT) {
		put_offer(pair, reason | ANSWERED);
		return NULL;
	}
	state = track(skops, tp, pair, TCP_SM_CLIENT);
	if (!state)
		return NULL;
	state->reason = reason ? reason : join_client(skops, state, tp);
	/* The server reads this once our ACK, not sent yet, arrives. */
	if (reason != TCP_SM_R_NO_LOCAL_PEER)
		put_offer(pair, state->reason | ANSWERED);
	return state;
}

static __always_inline __u8 join_server(struct bpf_sock_ops *skops, struct socket_state *state,
					const struct tcp_sock *tp, struct conn *conn)
{
	struct tcp_sm_pair pair = state->pair;
	__u8 reason = refuse_by_options(tp);

	if (reason) {
		ask_to_leave(conn, &pair, TCP_SM_R_PEER_LEFT);
		return reason;
	}
	if (!advance(conn, &pair, CONN_STARTING, CONN_JOINING, SERVER_IN))
		return TCP_SM_R_PEER_LEFT;
	set_end(conn, state, tp);
	reason = enter(skops, state);
	if (reason) {
		unjoin(conn, &pair);
		return reason;
	}
	/* A sender that sees OPEN sees both ends: the swap is a full barrier. */
	advance(conn, &pair, CONN_JOINING, CONN_OPEN, 0);
	reason = READ_ONCE(conn->leave_reason);
	if (reason)
		ask_to_leave(conn, &pair, reason);
	return TCP_SM_R_NONE;
}

/* Likewise for the server's socket. */
static __always_inline struct socket_state *server_established(struct bpf_sock_ops *skops,
								const struct tcp_sock *tp)
{
	struct tcp_sm_pair pair = {.client_isn = tp->rcv_nxt - 1,
				   .server_isn = tp->snd_nxt - 1};
	struct conn *conn = bpf_map_lookup_elem(&tcp_sm_conns, &pair);
	__u8 answer = refuse_by_birth(tp);
	struct socket_state *state;

	if (!answer && !conn)
		answer = get_offer(pair);
	else if (answer)
		answer |= ANSWERED;
	if (answer == (TCP_SM_R_SHORT | ANSWERED))
		return NULL;
	state = track(skops, tp, pair, TCP_SM_SERVER);
	if (!state)
		return NULL;
	if (conn)
		state->peer_cookie = conn->cookie[TCP_SM_CLIENT];
	if (conn && answer)
		ask_to_leave(conn, &pair, TCP_SM_R_PEER_LEFT);
	if (conn && !answer) {
		state->reason = join_server(skops, state, tp, conn);
	} else if (answer & ANSWERED) {
		state->reason = answer & ~ANSWERED ?: TCP_SM_R_PEER_LEFT;
	} else {
		state->reason = TCP_SM_R_NO_LOCAL_PEER;
	}
	return state;
}

/*
 * Connections of ports that see many short ones are tracked late, by their
 * reader, since making a socket's state costs about a fiftieth of a short
 * connection. Until then the counters tell all there is to be known. A
 * retransmission callback, which is rare and ignored, marks such a socket.
 */
#define POSTPONED BPF_SOCK_OPS_RTO_CB_FLAG

static __always_inline bool is_late(struct sock *sk, const struct tcp_sock *tp)
{
	return tp->bpf_sock_ops_cb_flags & POSTPONED &&
	       sk->__sk_common.skc_state == TCP_ESTABLISHED &&
	       tp->data_segs_in + tp->data_segs_out >= LATE_SEGMENTS;
}

static __always_inline void track_late(struct sock *sk, const struct tcp_sock *tp)
{
	struct profile *as_server = profile_of(cgroup_of(sk), sk->__sk_common.skc_num,
					       TCP_SM_SERVER, false);
	__u8 side = as_server ? TCP_SM_SERVER : TCP_SM_CLIENT;
	struct socket_state *state;
	struct tcp_sm_pair pair;
	/* Only a client's bytes_acked counts the SYN. */
	__u32 mine = tp->snd_una - (__u32)tp->bytes_acked - side;
	__u32 theirs = tp->rcv_nxt - (__u32)tp->bytes_received - 1;

	pair.client_isn = as_server ? theirs : mine;
	pair.server_isn = as_server ? mine : theirs;
	state = bpf_sk_storage_get(&tcp_sm_socks, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state || state->opened_ns)
		return;
	start_state(state, tp, pair, side, bpf_get_socket_cookie(sk));
	state->reason = TCP_SM_R_SHORT;
}

/* At TCP_CLOSE of @state's socket, which may come twice. */
static __always_inline void close_end(const struct socket_state *state)
{
	struct tcp_sm_pair pair = state->pair;
	struct conn *conn = bpf_map_lookup_elem(&tcp_sm_conns, &pair);
	__u64 redirected;
	__u8 reason;

	if (!conn || state->reason)
		return;
	redirected = conn->flow[0].msgs + conn->flow[1].msgs;
	reason = conn->leave_reason;
	if (close_side(conn, &pair, state->side))
		judge_gain(state, redirected, reason);
}

/*
 * TCP_CLOSE leaves a socket in the sockhash, with its queue, so that what it
 * received can still be read. A socket that then begins another connection
 * must bring neither along.
 */
static __always_inline void forget(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&tcp_sm_socks, sk, 0, 0) : NULL;
	struct tcp_sm_end end;

	if (!state)
		return;
	end.pair = state->pair;
	end.side = state->side;
	if (!state->reason) {
		bpf_map_delete_elem(&tcp_sm_sockhash, &end);
		close_end(state);
	}
	bpf_sk_storage_delete(&tcp_sm_socks, sk);
}

#endif
