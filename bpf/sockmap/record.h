/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Records: what a socket's end tells user space, as status or as an event. */
#ifndef TCP_SM_RECORD_H
#define TCP_SM_RECORD_H

#include "conn.h"
#include "../common/record.h"

static __always_inline void fill_flows(struct tcp_sm_record *rec, const struct conn *conn,
				       const struct socket_state *state)
{
	const struct flow_state *tx = &conn->flow[state->side & 1];
	const struct flow_state *rx = &conn->flow[other(state->side)];
	struct reader_state peer = {};

	bpf_probe_read_kernel(&peer, sizeof(peer), (void *)conn->reader[other(state->side)]);
	rec->peer_cookie = conn->cookie[other(state->side)];
	rec->tx.bytes = tx->bytes;
	rec->tx.msgs = tx->msgs;
	rec->tx.passed_msgs = tx->passed_msgs;
	rec->tx.read_bytes = peer.read_bytes;
	rec->rx.bytes = rx->bytes;
	rec->rx.msgs = rx->msgs;
	rec->rx.passed_msgs = rx->passed_msgs;
}

/* The channel is the connection's, not the socket's: a peer may have left for both. */
static __always_inline void fill_state(struct tcp_sm_record *rec, const struct conn *conn)
{
	if (phase_of(conn, &rec->pair) >= CONN_LEAVING)
		rec->reason = conn->leave_reason;
	else if (!conn->flow[0].msgs && !conn->flow[1].msgs)
		rec->reason = TCP_SM_R_STARTING;
	else
		rec->reason = TCP_SM_R_NONE;
	rec->channel = rec->reason ? TCP_SM_CH_TCP : TCP_SM_CH_SOCKMAP;
}

static __always_inline void fill_record(struct tcp_sm_record *rec, __u8 event,
					const struct tcp_sock *tp,
					const struct socket_state *state)
{
	struct tcp_sm_pair pair = state->pair;
	struct conn *conn = bpf_map_lookup_elem(&tcp_sm_conns, &pair);

	rec->version = TCP_SM_ABI;
	rec->event = event;
	rec->cookie = state->cookie;
	rec->peer_cookie = state->peer_cookie;
	rec->cgroup = state->cgroup;
	rec->opened_ns = state->opened_ns;
	rec->pair = pair;
	rec->side = state->side;
	rec->reason = state->reason;
	rec->channel = TCP_SM_CH_TCP;
	rec->rx.read_bytes = state->reader.read_bytes;
	fill_socket(rec, tp);
	if (!state->reason && conn) {
		fill_flows(rec, conn, state);
		fill_state(rec, conn);
	}
}

static __always_inline void tell(__u8 event, const struct tcp_sock *tp,
				 const struct socket_state *state)
{
	const struct tcp_sm_config *cfg = config();
	struct tcp_sm_stats *count;
	struct tcp_sm_record *rec;

	if (!cfg || !cfg->events)
		return;
	rec = bpf_ringbuf_reserve(&tcp_sm_events, sizeof(*rec), 0);
	if (!rec) {
		count = stats();
		if (count)
			count->lost_events++;
		return;
	}
	__builtin_memset(rec, 0, sizeof(*rec));
	fill_record(rec, event, tp, state);
	bpf_ringbuf_submit(rec, 0);
}

#endif
