/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pairing: which two sockets of this kernel are the ends of one connection.
 *
 * The key is the pair of initial sequence numbers, which both ends know and
 * no address translation changes. 4-tuples would join strangers: two network
 * namespaces may both hold 127.0.0.1:5555 -> 127.0.0.1:6666.
 *
 *   server  SYN arrives      TIMEOUT_INIT on the request: offer (pair -> handshake)
 *   client  SYN-ACK arrives  ACTIVE_ESTABLISHED: find the offer, decide for both,
 *                            enter the sockhash, before the ACK leaves
 *   server  ACK arrives      PASSIVE_ESTABLISHED: take the offer, follow the decision
 *
 * No offer found: the peer is not here, or its handshake had no request socket
 * (SYN cookies), or a proxy translated the numbers. All of that stays on TCP.
 */
#ifndef TCP_SM_PAIRING_H
#define TCP_SM_PAIRING_H

#include "record.h"
#include "switching.h"

static __always_inline __u8 refuse_request(const struct tcp_request_sock *req,
					   const struct sock *listener, __u16 port)
{
	__u8 reason;

	if (req->is_mptcp)
		return TCP_SM_R_MPTCP;
	if (req->tfo_listener)
		return TCP_SM_R_TFO;
	reason = refuse_by_scope(&req->req.req.__req_common, port);
	if (reason)
		return reason;
	return refuse_server_by_profile(cgroup_of(listener), port, listener);
}

static __always_inline void offer(struct bpf_sock_ops *skops)
{
	struct bpf_sock_ops_kern *kern = bpf_cast_to_kern_ctx(skops);
	struct tcp_request_sock *req =
		bpf_rdonly_cast(kern->sk, bpf_core_type_id_kernel(struct tcp_request_sock));
	const struct sock_common *common = &req->req.req.__req_common;
	/* A member of a union: to the verifier a number until it is cast. */
	const struct sock *listener =
		bpf_rdonly_cast(common->skc_listener, bpf_core_type_id_kernel(struct sock));
	struct handshake shake = {};
	struct tcp_sm_pair pair;

	if (common->skc_state != TCP_NEW_SYN_RECV)
		return; /* the client's own SYN timer */
	pair.client_isn = req->rcv_isn;
	pair.server_isn = req->snt_isn;
	shake.server_reason = refuse_request(req, listener, common->skc_num);
	bpf_map_update_elem(&tcp_sm_pairs, &pair, &shake, BPF_ANY);
}

static __always_inline struct socket_state *track(struct bpf_sock_ops *skops,
						  const struct tcp_sock *tp,
						  struct tcp_sm_pair pair, __u8 side)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	struct bpf_sock *bsk = skops->sk;
	struct socket_state *state;

	if (!bsk)
		return NULL;
	state = bpf_sk_storage_get(&tcp_sm_socks, bsk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state || state->opened_ns)
		return NULL; /* no memory, or attached to a parent cgroup as well */
	state->pair = pair;
	state->side = side;
	state->cookie = bpf_get_socket_cookie(skops);
	state->cgroup = cgroup_of(sk);
	state->opened_ns = bpf_ktime_get_ns();
	state->server_port = side == TCP_SM_SERVER ? sk->__sk_common.skc_num
						   : bpf_ntohs(sk->__sk_common.skc_dport);
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
}

static __always_inline __u8 refuse_client(const struct tcp_sock *tp,
					  const struct socket_state *state)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	__u8 reason = refuse_by_birth(tp);

	if (reason)
		return reason;
	if (!is_nonblocking(sk))
		return TCP_SM_R_BLOCKING;
	reason = refuse_by_options(tp);
	if (reason)
		return reason;
	reason = refuse_by_scope(&sk->__sk_common, state->server_port);
	if (reason)
		return reason;
	return refuse_client_by_profile(state->cgroup, state->server_port);
}

static __always_inline __u8 join_client(struct bpf_sock_ops *skops, struct socket_state *state,
					const struct tcp_sock *tp)
{
	struct tcp_sm_pair pair = state->pair;
	struct conn fresh = {};
	__u8 reason = refuse_client(tp, state);

	if (reason)
		return reason;
	set_end(&fresh, state, tp);
	if (bpf_map_update_elem(&tcp_sm_conns, &pair, &fresh, BPF_NOEXIST))
		return TCP_SM_R_NO_MEMORY;
	reason = enter(skops, state);
	if (reason)
		bpf_map_delete_elem(&tcp_sm_conns, &pair);
	return reason;
}

static __always_inline void client_established(struct bpf_sock_ops *skops,
					       const struct tcp_sock *tp)
{
	struct tcp_sm_pair pair = {.client_isn = tp->snd_nxt - 1,
				   .server_isn = tp->rcv_nxt - 1};
	struct socket_state *state = track(skops, tp, pair, TCP_SM_CLIENT);
	struct handshake *shake;

	if (!state)
		return;
	shake = bpf_map_lookup_elem(&tcp_sm_pairs, &pair);
	if (!shake) {
		state->reason = TCP_SM_R_NO_LOCAL_PEER;
		return;
	}
	state->paired = 1;
	state->reason = shake->server_reason;
	if (!state->reason)
		state->reason = join_client(skops, state, tp);
	/* The server reads this once our ACK, not sent yet, arrives. */
	shake->client_reason = state->reason;
	shake->client_cookie = state->cookie;
}

static __always_inline __u8 join_server(struct bpf_sock_ops *skops, struct socket_state *state,
					const struct tcp_sock *tp, struct conn *conn)
{
	struct tcp_sm_end end = {.pair = state->pair};
	__u8 reason = refuse_by_birth(tp);

	if (!reason)
		reason = refuse_by_options(tp);
	if (!reason)
		reason = enter(skops, state);
	if (reason) {
		ask_to_leave(conn, TCP_SM_R_PEER_LEFT);
		return reason;
	}
	set_end(conn, state, tp);
	/* A sender that sees OPEN sees both ends: the swap is a full barrier. */
	if (__sync_val_compare_and_swap(&conn->phase, CONN_STARTING, CONN_OPEN) == CONN_STARTING)
		return TCP_SM_R_NONE;
	/* The client asked to leave meanwhile. Nothing was ever queued here. */
	conn->sk[TCP_SM_SERVER] = 0;
	end.side = TCP_SM_SERVER;
	bpf_map_delete_elem(&tcp_sm_sockhash, &end);
	return conn->leave_reason;
}

static __always_inline void server_established(struct bpf_sock_ops *skops,
					       const struct tcp_sock *tp)
{
	struct tcp_sm_pair pair = {.client_isn = tp->rcv_nxt - 1,
				   .server_isn = tp->snd_nxt - 1};
	struct socket_state *state = track(skops, tp, pair, TCP_SM_SERVER);
	struct handshake *shake;
	struct conn *conn;

	if (!state)
		return;
	shake = bpf_map_lookup_elem(&tcp_sm_pairs, &pair);
	if (!shake || !shake->client_cookie) {
		state->reason = TCP_SM_R_NO_LOCAL_PEER;
		return;
	}
	state->paired = 1;
	state->peer_cookie = shake->client_cookie;
	state->reason = shake->client_reason;
	bpf_map_delete_elem(&tcp_sm_pairs, &pair);
	if (state->reason)
		return;
	conn = bpf_map_lookup_elem(&tcp_sm_conns, &pair);
	state->reason = conn ? join_server(skops, state, tp, conn) : TCP_SM_R_PEER_LEFT;
}

/* At TCP_CLOSE of @state's socket; the second end takes the connection away. */
static __always_inline void close_end(const struct socket_state *state)
{
	struct tcp_sm_pair pair = state->pair;
	struct conn *conn = bpf_map_lookup_elem(&tcp_sm_conns, &pair);
	__u32 before;

	if (!conn || state->reason)
		return;
	judge_gain(state, conn->flow[0].msgs + conn->flow[1].msgs, conn->leave_reason);
	before = __sync_fetch_and_or(&conn->closed, 1 << (state->side & 1));
	/* The server's end never joined: nobody else will close it. */
	if (before || !conn->sk[TCP_SM_SERVER])
		bpf_map_delete_elem(&tcp_sm_conns, &pair);
}

#endif
