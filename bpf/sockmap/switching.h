/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Switching: when a message may be redirected, and how a connection leaves.
 *
 * Facts of tcp_bpf (6.6 to 7.3) this rests on:
 *  F1  A verdict runs under the sender's socket lock; a redirected message is
 *      queued before its sendmsg returns, under the receiver's socket lock.
 *  F2  tcp_bpf_recvmsg reads the psock queue first. It turns to tcp_recvmsg
 *      only if it saw the psock queue empty.
 *  F3  tcp_recvmsg on a non-blocking socket never gives the lock away between
 *      reading its first byte and returning.
 *
 * Order. Claim: bytes are read in the order they were sent.
 *  - Message by TCP after a redirected one: the redirected one was queued
 *    before the next sendmsg began (F1), so a reader that could see the TCP
 *    bytes sees the psock queue non-empty first (F2).
 *  - Redirected message after TCP bytes: allowed only while the receiver's
 *    copied_seq equals the sender's write_seq, so no TCP byte is queued, in
 *    flight or in a backlog. A reader still inside tcp_recvmsg has consumed
 *    all there is; it cannot get to later TCP bytes before it returns, since
 *    queueing the redirected message needs the lock it holds (F3), and later
 *    TCP bytes are sent only after that (F1). Blocking readers, which do give
 *    the lock away, are refused.
 * One reader and one writer per socket are assumed, as TCP itself gives two
 * concurrent ones no order.
 *
 * Leaving. Claim: no byte is in a psock queue, nor can get there, when its
 * socket is deleted from the sockhash (deletion frees the queue).
 *  - A sender first adds the message's size to flow.bytes, then reads the
 *    phase; it redirects only if the phase is OPEN, and takes the size back
 *    otherwise. The leaver first sets the phase to LEAVING, then reads
 *    flow.bytes. Both are full barriers (fetch_and_add, compare-and-swap), so
 *    of a sender and a leaver that race at least one sees the other: either
 *    the sender passes, or the leaver counts its bytes.
 *  - unread = flow.bytes - (read_bytes - (copied_seq - first)), that is,
 *    claimed minus what recv returned and did not come by TCP. read_bytes is
 *    raised after recv returned and read here before copied_seq, so the
 *    difference can only err upwards. unread == 0 in both directions after
 *    LEAVING therefore means: everything claimed was read; nothing is in
 *    flight; nothing new can be claimed.
 *  - A redirect that fails after the claim (no memory) leaves flow.bytes too
 *    large for ever. Then the connection never leaves, which is slow but right.
 * All of it is arithmetic modulo 2^32: the true unread count is bounded by
 * max_unread_bytes, and a count beyond that is never trusted again.
 */
#ifndef TCP_SM_SWITCHING_H
#define TCP_SM_SWITCHING_H

#include "conn.h"
#include "options.h"
#include "profile.h"

/* Every known use of MSG_OOB sends up to this many bytes, and a verdict cannot
 * see the flag. Such messages go by TCP, where the urgent byte stays urgent. */
#define URGENT_SIZE 3
#define UNREAD_MAX (1U << 30)	/* what the configuration can allow at most */
#define UNEXPLAINED_LIMIT 32
#define BURST_MSGS 16
#define PAUSE_NS (8 * 1000 * 1000ULL)	/* two ticks of the coarse clock at 250 Hz */
#define SENDFILE_NEAR (16 << 10)
#define SENDFILE_FAR (128 << 10)
#define TCP_PIECE 512	/* any reader's buffer takes this much in one recv */
#define PASS_LIMIT 128
#define PASS_COST 4		/* of a passed message; a redirected one pays back one */

static __always_inline __u32 first_seq(const struct tcp_sm_pair *pair, __u8 receiver)
{
	return (receiver == TCP_SM_SERVER ? pair->client_isn : pair->server_isn) + 1;
}

/* Bytes claimed for @receiver and not yet read; errs upwards at most. */
static __always_inline __u32 unread_bytes(struct conn *conn, const struct tcp_sm_pair *pair,
					  __u8 receiver, __u64 claimed,
					  const struct reader_state *reader)
{
	const struct tcp_sock *tp = tcp_at(conn->sk[receiver & 1]);
	__u32 by_tcp = READ_ONCE(tp->copied_seq) - first_seq(pair, receiver);

	return (__u32)claimed - ((__u32)reader->read_bytes - by_tcp);
}

static __always_inline bool read_reader(struct conn *conn, __u8 side,
					struct reader_state *reader)
{
	return !bpf_probe_read_kernel(reader, sizeof(*reader),
				      (void *)conn->reader[side & 1]);
}

/*
 * The first reason stays. From here on every message of both ends passes. A
 * server that is joining sees the reason once it has joined.
 */
static __always_inline void ask_to_leave(struct conn *conn, const struct tcp_sm_pair *pair,
					 __u8 reason)
{
	__sync_val_compare_and_swap(&conn->leave_reason, TCP_SM_R_NONE, reason);
	if (!advance(conn, pair, CONN_OPEN, CONN_LEAVING, 0))
		advance(conn, pair, CONN_STARTING, CONN_LEAVING, 0);
}

/*
 * More unread than can have been redirected: recv calls were counted twice or
 * not at all, as when programs are attached in ways the loader never uses.
 * From then on the count proves nothing, not even when it wraps to 0.
 */
static __always_inline bool is_poisoned(struct flow_state *flow, __u32 unread)
{
	if (unread > UNREAD_MAX)
		WRITE_ONCE(flow->poisoned, 1);
	return READ_ONCE(flow->poisoned);
}

static __always_inline bool is_drained(struct conn *conn, const struct tcp_sm_pair *pair,
				       __u8 receiver)
{
	struct flow_state *flow = &conn->flow[other(receiver)];
	__u64 claimed = add_fenced(&flow->bytes, 0);
	struct reader_state reader;
	__u32 unread;

	if (!claimed)
		return true;
	if (!read_reader(conn, receiver, &reader))
		return false;
	add_fenced(&flow->bytes, 0); /* read_bytes before copied_seq */
	unread = unread_bytes(conn, pair, receiver, claimed, &reader);
	return !is_poisoned(flow, unread) && !unread;
}

/*
 * Runs where the verifier lets a program delete from a sockhash: in sockops,
 * when an ACK arrives, and in the iterator that an operator starts. The latter
 * holds no socket lock; should @conn be another pair's by now, the tag says so.
 */
static __always_inline void try_to_leave(struct conn *conn, const struct tcp_sm_pair *pair)
{
	struct tcp_sm_end end = {.pair = *pair};
	struct tcp_sm_stats *count = stats();

	if (!is_drained(conn, pair, TCP_SM_CLIENT) || !is_drained(conn, pair, TCP_SM_SERVER))
		return;
	if (!advance(conn, pair, CONN_LEAVING, CONN_LEFT, 0))
		return;
	end.side = TCP_SM_CLIENT;
	bpf_map_delete_elem(&tcp_sm_sockhash, &end);
	end.side = TCP_SM_SERVER;
	bpf_map_delete_elem(&tcp_sm_sockhash, &end);
	if (count)
		count->left++;
}

/*
 * What gains is conversation: a message that finds its reader waiting. In a
 * one-way stream TCP coalesces small writes, overlaps the copies of large ones
 * on two CPUs and pushes back, while a redirect waits for the reader's socket
 * lock. So an end may redirect a burst until the other end sends something or
 * a pause ends it; what is beyond goes by TCP. (Over veth an unbounded queue of
 * redirected messages beats TCP in streams, too; a bounded one does not, since
 * what exceeds the bound goes by TCP, and that then never drains.)
 */
static __always_inline bool is_stream(struct conn *conn, __u8 from, __u32 size, __u32 limit)
{
	struct flow_state *flow = &conn->flow[from & 1], *back = &conn->flow[other(from)];
	__u32 answers = back->msgs + back->passed_msgs;
	__u64 now = bpf_ktime_get_coarse_ns();

	if (answers != flow->answers || now - flow->latest_ns > PAUSE_NS) {
		flow->answers = answers;
		flow->burst_msgs = 0;
		flow->burst_bytes = 0;
	}
	flow->latest_ns = now;
	flow->burst_msgs++;
	flow->burst_bytes += size;
	return flow->burst_msgs > BURST_MSGS || flow->burst_bytes > limit;
}

/*
 * sendfile moves a file's pages through a pipe of the task's own, 64 KiB at a
 * time, which is filled exactly while it sends. TCP takes such pages as they
 * are, tcp_bpf copies them. Where TCP crosses a bridge or a router, the copy
 * still gains for a piece or two; over loopback it does not.
 */
static __always_inline bool is_large_sendfile(const struct flow_state *flow, bool far)
{
	struct task_struct *task;
	struct pipe_inode_info *pipe;

	if (flow->burst_bytes <= (far ? SENDFILE_FAR : SENDFILE_NEAR))
		return false;
	task = bpf_get_current_task_btf();
	pipe = task->splice_pipe;
	return pipe && pipe->head != pipe->tail;
}

/* Passing through a sockhash is dearer than plain TCP: who mostly does, leaves. */
static __always_inline void weigh(struct conn *conn, const struct tcp_sm_pair *pair,
				  struct flow_state *flow, bool redirect, __u8 reason)
{
	if (redirect)
		flow->passing -= flow->passing ? 1 : 0;
	else if ((flow->passing += PASS_COST) > PASS_LIMIT)
		ask_to_leave(conn, pair, reason);
}

static __always_inline bool is_open(const struct sock *sk)
{
	/* tcp_bpf_sendmsg does not look at these; TCP answers EPIPE. */
	return !(sk->sk_shutdown & SEND_SHUTDOWN) &&
	       (sk->__sk_common.skc_state == TCP_ESTABLISHED ||
		sk->__sk_common.skc_state == TCP_CLOSE_WAIT);
}

/* What the two programs did since the handshake that excludes the channel. */
static __always_inline __u8 refuse_by_conduct(const struct tcp_sock *me,
					      const struct tcp_sock *peer,
					      const struct reader_state *reader)
{
	__u8 reason;

	if (is_blocking(&me->inet_conn.icsk_inet.sk) || reader->mode == READER_BLOCKING)
		return TCP_SM_R_BLOCKING;
	if (reader->mode == READER_NONBLOCKING &&
	    is_blocking(&peer->inet_conn.icsk_inet.sk))
		return TCP_SM_R_BLOCKING;
	if (reader->veto)
		return reader->veto;
	reason = refuse_by_either(me);
	if (!reason)
		reason = refuse_by_either(peer);
	if (!reason)
		reason = refuse_by_receiver(peer);
	return reason ? reason : refuse_by_sender(me);
}

/* Why this message should go by TCP, and with it the connection. */
static __always_inline __u8 refuse_message(struct conn *conn, __u8 from, __u32 size,
					   const struct tcp_sm_config *cfg,
					   const struct tcp_sock *me, const struct tcp_sock *peer)
{
	const struct sock *mine = &me->inet_conn.icsk_inet.sk;
	const struct sock *theirs = &peer->inet_conn.icsk_inet.sk;
	bool far = mine->__sk_common.skc_net.net != theirs->__sk_common.skc_net.net;
	bool stream = is_stream(conn, from, size, cfg->max_burst);

	if (cfg->mode != TCP_SM_ON)
		return TCP_SM_R_MODE_PASS;
	if (is_large_sendfile(&conn->flow[from & 1], far))
		return TCP_SM_R_SENDFILE;
	return stream ? TCP_SM_R_STREAM : TCP_SM_R_NONE;
}

/* Has this end read all that was redirected to it? */
static __always_inline bool have_read(struct conn *conn, const struct socket_state *state)
{
	struct tcp_sm_pair pair = state->pair;
	__u8 me = state->side & 1;

	return !unread_bytes(conn, &pair, me, conn->flow[other(me)].bytes, &state->reader);
}

/*
 * May @size bytes from @me be queued at the other end right now?
 *
 * Readers with edge-triggered epoll trust a short read, and some ask FIONREAD,
 * to know that nothing is left; but recv ends where the redirected bytes end,
 * and FIONREAD (before 7.1) does not count bytes of TCP behind them. So while
 * the reader is in the sockhash its two queues must not both hold bytes, and
 * the one of TCP no more than one recv takes:
 *  - the first message of a direction is redirected where the reader is
 *    trusted; otherwise it goes by TCP, and if it is long, so does the rest;
 *  - while redirected bytes are unread, what follows is redirected as well, up
 *    to the memory limits; whatever reason there is for TCP waits (a socket
 *    option that excludes the channel does not: it has to work at once);
 *  - a longer message that goes by TCP makes the connection leave; when its
 *    ACK goes out, the reader gets out of the sockhash and a new edge
 *    (acknowledges()).
 */
static __always_inline bool may_redirect(struct conn *conn, const struct socket_state *state,
					 const struct tcp_sock *me, __u32 size)
{
	__u8 from = state->side & 1, to = other(state->side);
	const struct tcp_sm_config *cfg = config();
	struct flow_state *flow = &conn->flow[from];
	struct tcp_sm_pair pair = state->pair;
	enum conn_phase phase = phase_of(conn, &pair);
	struct reader_state reader;
	const struct tcp_sock *peer;
	bool known, fits, redirect;
	__u32 unread, by_tcp;
	__u8 reason;

	if (!cfg || phase >= CONN_LEAVING)
		return false;
	if (phase != CONN_OPEN || !read_reader(conn, to, &reader)) {
		if (size > TCP_PIECE)
			ask_to_leave(conn, &pair, TCP_SM_R_STARTING);
		return false;
	}
	peer = tcp_at(conn->sk[to]);
	reason = refuse_by_conduct(me, peer, &reader);
	if (reason) {
		ask_to_leave(conn, &pair, reason);
		return false;
	}
	reason = refuse_message(conn, from, size, cfg, me, peer);
	barrier();
	by_tcp = me->write_seq - READ_ONCE(peer->copied_seq);
	unread = unread_bytes(conn, &pair, to, flow->bytes, &reader);
	known = reader.mode == READER_NONBLOCKING
			? !has_no_file(&peer->inet_conn.icsk_inet.sk)
			: reader.mode == READER_UNSEEN && conn->trusted & (1U << to);
	if (!by_tcp && unread && !flow->bytes) {
		/* TCP bytes consumed, yet not returned by recv: the recv that
		 * read them is about to be counted, or it was no recv. */
		if (++flow->unexplained > UNEXPLAINED_LIMIT)
			ask_to_leave(conn, &pair, TCP_SM_R_SPLICE);
		known = false;
	} else {
		flow->unexplained = 0;
	}
	if (!unread)
		flow->unread_msgs = 0;
	fits = !by_tcp && !is_poisoned(flow, unread) && unread <= cfg->max_unread_bytes &&
	       size <= cfg->max_unread_bytes - unread &&
	       flow->unread_msgs < cfg->max_unread_msgs &&
	       !(peer->inet_conn.icsk_inet.sk.sk_shutdown & RCV_SHUTDOWN);
	redirect = known && fits && (unread || (!reason && size > URGENT_SIZE) ||
				     !have_read(conn, state));
	weigh(conn, &pair, flow, redirect, reason ? reason : TCP_SM_R_STREAM);
	if (!redirect && (reason || by_tcp + size > TCP_PIECE))
		ask_to_leave(conn, &pair, reason ? reason : known ? TCP_SM_R_STREAM
								   : TCP_SM_R_LEARNING);
	return redirect;
}

/*
 * Claims @size bytes, then looks again at what may have changed since
 * copied_seq was read: whether the connection is leaving, and whether its
 * reader turned to blocking recv, which gives its lock away (F3).
 */
static __always_inline bool claim(struct conn *conn, const struct socket_state *state,
				  __u32 size)
{
	struct flow_state *flow = &conn->flow[state->side & 1];
	const struct tcp_sock *peer = tcp_at(conn->sk[other(state->side)]);
	struct tcp_sm_pair pair = state->pair;

	add_fenced(&flow->bytes, size);
	if (phase_of(conn, &pair) == CONN_OPEN &&
	    !is_blocking(&peer->inet_conn.icsk_inet.sk))
		return true;
	add_fenced(&flow->bytes, -(__u64)size);
	return false;
}

#endif
