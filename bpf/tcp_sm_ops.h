/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The ABI between the guest module (kmod/) and the BPF programs of the ring
 * channel: what a program sees of a connection, and what it may answer.
 *
 * The module is mechanism: memory, copying, waiting, errors. The programs are
 * policy: when a ring is written, read, full, and when the peer is woken.
 */
#ifndef TCP_SM_OPS_H
#define TCP_SM_OPS_H

#include "tcp_sm_region.h"

/* The directions of a connection as one end sees them. */
enum tcp_sm_direction {
	TCP_SM_TX = 0,
	TCP_SM_RX = 1,
};

/* This end's private half of a lane. The peer cannot reach it. */
struct tcp_sm_half {
	__u32 index;		/* TX: head, RX: tail; what is published follows it */
	__u32 size;		/* of the ring, a power of two */
	__u32 left;		/* TX: this end goes on by TCP. RX: the peer did */
	__u32 pad;
	__u64 bytes;		/* through the ring */
	__u64 msgs;		/* calls that moved any */
};

/* One call of sendmsg or recvmsg. */
enum tcp_sm_io_flags {
	TCP_SM_IO_PEEK = 1,
	TCP_SM_IO_DISCARD = 2,	/* MSG_TRUNC: consume without copying */
	TCP_SM_IO_ALONE = 4,	/* nobody waits for bytes, and the caller polls before it does */
};

/* What `poll` answers. */
enum tcp_sm_events {
	TCP_SM_READABLE = 1,	/* as many bytes as were asked for */
	TCP_SM_WRITABLE = 2,	/* a quarter of the ring is free */
	TCP_SM_BROKEN = 4,	/* the peer's indices are impossible */
};

TCP_SM_ASSERT(struct tcp_sm_half, 32);

#endif
