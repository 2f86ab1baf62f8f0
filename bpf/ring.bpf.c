// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The ring channel's data path: when a ring is written and read, when it is
 * full, and whom to wake. The module copies, waits and turns answers into
 * error codes; kmod/ring.c says the same in C and has the argument why no
 * wake-up is lost.
 *
 * Called under the socket's lock, `poll` without it.
 */
#include "ring/conn.h"

char LICENSE[] SEC("license") = "GPL";

/* From this part of the ring on it is writable, as TCP from a third on. */
#define ENOUGH(size) ((size) / 4)

SEC("struct_ops.s/sendmsg")
int BPF_PROG(tcp_sm_sendmsg, struct tcp_sm_conn *conn, struct tcp_sm_io *io)
{
	struct tcp_sm_half *tx = half(conn, TCP_SM_TX);
	struct tcp_sm_lane *lane = lane(conn, TCP_SM_TX);
	int used, n;

	if (!tx || !lane)
		return -EPROTO;
	used = tx_used(tx, lane);
	if ((__u32)used == tx->size) {
		WRITE_ONCE(lane->want_space, 1);
		tcp_sm_barrier();
		used = tx_used(tx, lane);
	}
	if (used < 0 || (__u32)used == tx->size)
		return used < 0 ? used : 0;
	n = tcp_sm_copy_in(conn, io, tx->index, tx->size - used);
	if (n <= 0)
		return n;
	WRITE_ONCE(tx->index, tx->index + n);
	tx->bytes += n;
	tx->msgs++;
	tcp_sm_barrier(); /* the bytes before the index */
	WRITE_ONCE(lane->head, tx->index);
	tcp_sm_barrier(); /* the index before the look */
	if (READ_ONCE(lane->want_data)) {
		WRITE_ONCE(lane->want_data, 0);
		tcp_sm_wake_peer(conn);
	}
	return n;
}

SEC("struct_ops.s/recvmsg")
int BPF_PROG(tcp_sm_recvmsg, struct tcp_sm_conn *conn, struct tcp_sm_io *io)
{
	struct tcp_sm_half *rx = half(conn, TCP_SM_RX);
	struct tcp_sm_lane *lane = lane(conn, TCP_SM_RX);
	__u32 skip = io->skip;
	int used, n;

	if (!rx || !lane)
		return -EPROTO;
	used = rx_used(rx, lane);
	if (used < 0)
		return used;
	if ((__u32)used <= skip) {
		rearm(conn, io, rx, lane, used);
		return 0;
	}
	n = tcp_sm_copy_out(conn, io, rx->index + skip, used - skip);
	if (n < 0 || (io->flags & TCP_SM_IO_PEEK)) {
		rearm(conn, io, rx, lane, used);
		return n;
	}
	WRITE_ONCE(rx->index, rx->index + n);
	rx->bytes += n;
	rx->msgs++;
	tcp_sm_barrier(); /* the copy before the index */
	WRITE_ONCE(lane->tail, rx->index);
	rearm(conn, io, rx, lane, used - n); /* its barrier: the index before the look */
	if (READ_ONCE(lane->want_space) && rx->size - (used - n) >= ENOUGH(rx->size)) {
		WRITE_ONCE(lane->want_space, 0);
		tcp_sm_wake_peer(conn);
	}
	return n;
}

/* Arms both wishes: whoever polled may sleep now. */
SEC("struct_ops/poll")
__u32 BPF_PROG(tcp_sm_poll, struct tcp_sm_conn *conn, __u32 lowat)
{
	struct tcp_sm_half *tx = half(conn, TCP_SM_TX), *rx = half(conn, TCP_SM_RX);
	struct tcp_sm_lane *to = lane(conn, TCP_SM_TX), *from = lane(conn, TCP_SM_RX);
	int used, unread;
	__u32 mask = 0;

	if (!tx || !rx || !to || !from)
		return TCP_SM_BROKEN;
	WRITE_ONCE(from->want_data, 1);
	used = tx_look(tx, to);
	if (used >= 0 && tx->size - used < ENOUGH(tx->size))
		WRITE_ONCE(to->want_space, 1);
	tcp_sm_barrier();
	used = tx_look(tx, to);
	unread = rx_look(rx, from);
	if (used < 0 || unread < 0)
		return TCP_SM_BROKEN;
	if (lowat > rx->size / 2)
		lowat = rx->size / 2;
	if (unread && (__u32)unread >= lowat)
		mask |= TCP_SM_READABLE;
	if (tx->size - used >= ENOUGH(tx->size))
		mask |= TCP_SM_WRITABLE;
	return mask;
}

/* The peer that waits for room or bytes learns of the end by TCP. */
SEC("struct_ops/close")
void BPF_PROG(tcp_sm_close, struct tcp_sm_conn *conn)
{
}

SEC(".struct_ops.link")
struct tcp_sm_ops tcp_sm_ring = {
	.sendmsg = (void *)tcp_sm_sendmsg,
	.recvmsg = (void *)tcp_sm_recvmsg,
	.poll = (void *)tcp_sm_poll,
	.close = (void *)tcp_sm_close,
};
