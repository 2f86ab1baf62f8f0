/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the data path sees of a connection: halves, lanes and the module's kfuncs. */
#ifndef TCP_SM_RING_CONN_H
#define TCP_SM_RING_CONN_H

#include "../common/kernel.h"
#include "../tcp_sm_ops.h"

#define EPROTO 71

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct tcp_sm_conn {
	int side;
};

struct tcp_sm_io {
	__u32 len;
	__u32 flags;
	__u32 skip;
};

#pragma clang attribute pop

struct tcp_sm_ops {
	int (*sendmsg)(struct tcp_sm_conn *conn, struct tcp_sm_io *io);
	int (*recvmsg)(struct tcp_sm_conn *conn, struct tcp_sm_io *io);
	__u32 (*poll)(struct tcp_sm_conn *conn, __u32 lowat);
	void (*close)(struct tcp_sm_conn *conn);
};

extern __u8 *tcp_sm_half(struct tcp_sm_conn *conn, __u32 dir, int rdwr_buf_size) __ksym;
extern __u8 *tcp_sm_lane(struct tcp_sm_conn *conn, __u32 dir, int rdwr_buf_size) __ksym;
extern int tcp_sm_copy_in(struct tcp_sm_conn *conn, struct tcp_sm_io *io, __u32 at,
			  __u32 len) __ksym;
extern int tcp_sm_copy_out(struct tcp_sm_conn *conn, struct tcp_sm_io *io, __u32 at,
			   __u32 len) __ksym;
extern void tcp_sm_barrier(void) __ksym;
extern void tcp_sm_wake_peer(struct tcp_sm_conn *conn) __ksym;
extern void tcp_sm_wake_reader(struct tcp_sm_conn *conn) __ksym;

#define half(conn, dir) ((struct tcp_sm_half *)tcp_sm_half(conn, dir, sizeof(struct tcp_sm_half)))
#define lane(conn, dir) ((struct tcp_sm_lane *)tcp_sm_lane(conn, dir, sizeof(struct tcp_sm_lane)))

/* Bytes in a ring, or -EPROTO. The peer's index is read once, and checked. */
static __always_inline int tx_used(const struct tcp_sm_half *tx, const struct tcp_sm_lane *lane)
{
	__u32 used = READ_ONCE(tx->index) - READ_ONCE(lane->tail);

	return used <= tx->size ? (int)used : -EPROTO;
}

static __always_inline int rx_used(const struct tcp_sm_half *rx, const struct tcp_sm_lane *lane)
{
	__u32 used = READ_ONCE(lane->head) - READ_ONCE(rx->index);

	tcp_sm_barrier(); /* the index before the bytes */
	return used <= rx->size ? (int)used : -EPROTO;
}

/*
 * The same for a poll, which holds no lock: the own index may move between the
 * loads, and the peer's beyond it, which is not the peer's fault. Who moves it so
 * often that no look is steady has just moved bytes.
 */
#define STEADY_LOOKS 4

static __always_inline int tx_look(const struct tcp_sm_half *tx, const struct tcp_sm_lane *lane)
{
	int used, i;
	__u32 own;

	for (i = 0; i < STEADY_LOOKS; i++) {
		own = READ_ONCE(tx->index);
		used = tx_used(tx, lane);
		if (used >= 0 || READ_ONCE(tx->index) == own)
			return used;
	}
	return 0;
}

static __always_inline int rx_look(const struct tcp_sm_half *rx, const struct tcp_sm_lane *lane)
{
	int used, i;
	__u32 own;

	for (i = 0; i < STEADY_LOOKS; i++) {
		own = READ_ONCE(rx->index);
		used = rx_used(rx, lane);
		if (used >= 0 || READ_ONCE(rx->index) == own)
			return used;
	}
	return rx->size;
}

/*
 * Ask for a bell on the next byte, after every receive: an edge-triggered
 * reader sleeps without telling us. Bytes that came before the wish rang none.
 * A reader that is alone needs no bell while it is awake, and polls before it
 * sleeps. In either case what was written before is visible before the caller
 * looks at anything else.
 */
static __always_inline void rearm(struct tcp_sm_conn *conn, const struct tcp_sm_io *io,
				  const struct tcp_sm_half *rx, struct tcp_sm_lane *lane,
				  int unread)
{
	if (io->flags & TCP_SM_IO_ALONE) {
		tcp_sm_barrier();
		return;
	}
	WRITE_ONCE(lane->want_data, 1);
	tcp_sm_barrier(); /* the wish before the look */
	if (rx_used(rx, lane) > unread)
		tcp_sm_wake_reader(conn);
}

#endif
