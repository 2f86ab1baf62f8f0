// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The ring in C: what bpf/ring.bpf.c does, for when it is not attached. Both
 * speak the same protocol over the same memory, so each call may be either's.
 *
 * One producer, one consumer; indices run freely modulo 2^32. An end keeps its
 * own index in its own memory (half->index) and only publishes it; of the
 * peer's it reads one word, once, and checks it:
 *
 *   used = head - tail <= size, or the peer is broken: -EPROTO
 *
 * A producer publishes head after the bytes (release), a consumer tail after
 * the copy (release), so neither sees what is not there yet. Nothing is lost
 * on the way to sleep, because each side publishes first and looks second:
 *
 *   consumer: want_data = 1; mb; read head      producer: head; mb; read want_data
 *
 * Whichever comes second sees the other's store: either the consumer finds the
 * bytes or the producer finds the wish. The same with want_space and tail.
 */
#include "channel.h"

/*
 * Bytes in the ring of direction `dir`, or -EPROTO. May run without the lock:
 * then the own index may move between the loads, and the peer's beyond it, which
 * is not the peer's fault.
 */
int tcp_sm_ring_used(struct tcp_sm_conn *conn, u32 dir)
{
	struct tcp_sm_lane *lane = READ_ONCE(conn->lane[dir]);
	struct tcp_sm_half *half = &conn->half[dir];
	u32 own, used;

	do {
		own = READ_ONCE(half->index);
		if (dir == TCP_SM_TX) {
			/* The reader copied before it freed the room. */
			used = own - virt_load_acquire(&lane->tail);
		} else {
			/* The writer's bytes come before its index. */
			used = virt_load_acquire(&lane->head) - own;
		}
	} while (used > half->size && own != READ_ONCE(half->index));
	return used <= half->size ? used : -EPROTO;
}

/* Copy `len` bytes from the caller into the tx ring at index `at`. Bytes or -EFAULT. */
int tcp_sm_ring_copy_in(struct tcp_sm_conn *conn, struct tcp_sm_io *io, u32 at, u32 len)
{
	u32 size = conn->ring_size;
	u8 *data = conn->data[TCP_SM_TX];
	u32 done, first;

	if (!data)
		return -EPROTO;
	at &= size - 1;
	len = min3(len, size, io->len);
	first = min(len, size - at);
	done = copy_from_iter(data + at, first, io->iter);
	if (done == first && len > first)
		done += copy_from_iter(data, len - first, io->iter);
	io->len -= done;
	return done || !len ? done : -EFAULT;
}

/* Copy `len` bytes of the rx ring from index `at` to the caller. Bytes or -EFAULT. */
int tcp_sm_ring_copy_out(struct tcp_sm_conn *conn, struct tcp_sm_io *io, u32 at, u32 len)
{
	u32 size = conn->ring_size;
	u8 *data = conn->data[TCP_SM_RX];
	u32 done, first;

	at &= size - 1;
	len = min3(len, size, io->len);
	first = min(len, size - at);
	if (io->flags & TCP_SM_IO_DISCARD) {
		done = len;
	} else {
		done = copy_to_iter(data + at, first, io->iter);
		if (done == first && len > first)
			done += copy_to_iter(data, len - first, io->iter);
	}
	io->len -= done;
	return done || !len ? done : -EFAULT;
}

int tcp_sm_ring_sendmsg(struct tcp_sm_conn *conn, struct tcp_sm_io *io)
{
	struct tcp_sm_lane *lane = conn->lane[TCP_SM_TX];
	struct tcp_sm_half *tx = &conn->half[TCP_SM_TX];
	int used = tcp_sm_ring_used(conn, TCP_SM_TX);
	int n;

	if (used < 0)
		return used;
	if (used == tx->size) {
		WRITE_ONCE(lane->want_space, 1);
		virt_mb();	/* the wish before the look, see above */
		used = tcp_sm_ring_used(conn, TCP_SM_TX);
		if (used < 0 || used == tx->size)
			return used < 0 ? used : 0;
	}
	n = tcp_sm_ring_copy_in(conn, io, tx->index, tx->size - used);
	if (n <= 0)
		return n;
	WRITE_ONCE(tx->index, tx->index + n);
	tx->bytes += n;
	tx->msgs++;
	/* The bytes before the index. */
	virt_store_release(&lane->head, tx->index);
	virt_mb();	/* the bytes before the look, see above */
	if (READ_ONCE(lane->want_data)) {
		WRITE_ONCE(lane->want_data, 0);
		tcp_sm_conn_notify(conn);
	}
	return n;
}

/*
 * Ask for a bell on the next byte, after every receive: an edge-triggered
 * reader sleeps without telling us. Bytes that came before the wish rang none,
 * so look again and wake the reader ourselves. A reader that is alone (proto.c)
 * needs no bell while it is awake, and polls before it sleeps.
 */
static void rearm(struct tcp_sm_conn *conn, const struct tcp_sm_io *io, int unread)
{
	if (io->flags & TCP_SM_IO_ALONE) {
		virt_mb();	/* as below: tail before want_space */
		return;
	}
	WRITE_ONCE(conn->lane[TCP_SM_RX]->want_data, 1);
	virt_mb();	/* the wish before the look, see above */
	if (tcp_sm_ring_used(conn, TCP_SM_RX) > unread)
		conn->sk->sk_data_ready(conn->sk);
}

int tcp_sm_ring_recvmsg(struct tcp_sm_conn *conn, struct tcp_sm_io *io)
{
	struct tcp_sm_lane *lane = conn->lane[TCP_SM_RX];
	struct tcp_sm_half *rx = &conn->half[TCP_SM_RX];
	int used = tcp_sm_ring_used(conn, TCP_SM_RX);
	int n;

	if (used < 0)
		return used;
	if ((u32)used <= io->skip) {
		rearm(conn, io, used);
		return 0;
	}
	n = tcp_sm_ring_copy_out(conn, io, rx->index + io->skip, used - io->skip);
	if (n < 0 || (io->flags & TCP_SM_IO_PEEK)) {
		rearm(conn, io, used);
		return n;
	}
	WRITE_ONCE(rx->index, rx->index + n);
	rx->bytes += n;
	rx->msgs++;
	/* The copy before the index. */
	virt_store_release(&lane->tail, rx->index);
	rearm(conn, io, used - n);	/* its barrier also stands between tail and want_space */
	if (READ_ONCE(lane->want_space) && rx->size - (used - n) >= rx->size / 4) {
		WRITE_ONCE(lane->want_space, 0);
		tcp_sm_conn_notify(conn);
	}
	return n;
}

/*
 * Without the socket's lock. Arms both wishes: who polled may sleep now, and an
 * edge-triggered reader that left bytes unread is told of the next ones as well.
 * Writable from a quarter of the ring on, as TCP from a third.
 */
u32 tcp_sm_ring_poll(struct tcp_sm_conn *conn, u32 lowat)
{
	struct tcp_sm_lane *lane = READ_ONCE(conn->lane[TCP_SM_TX]);
	u32 tx_size = conn->half[TCP_SM_TX].size;
	u32 rx_size = conn->half[TCP_SM_RX].size;
	int used = tcp_sm_ring_used(conn, TCP_SM_TX);
	u32 mask = 0;
	int unread;

	WRITE_ONCE(READ_ONCE(conn->lane[TCP_SM_RX])->want_data, 1);
	if (used >= 0 && tx_size - used < tx_size / 4)
		WRITE_ONCE(lane->want_space, 1);
	virt_mb();	/* the wishes before the looks, see above */
	unread = tcp_sm_ring_used(conn, TCP_SM_RX);
	used = tcp_sm_ring_used(conn, TCP_SM_TX);
	if (unread < 0 || used < 0)
		return TCP_SM_BROKEN;
	if (unread && unread >= min(lowat, rx_size / 2))
		mask |= TCP_SM_READABLE;
	if (tx_size - used >= tx_size / 4)
		mask |= TCP_SM_WRITABLE;
	return mask;
}
