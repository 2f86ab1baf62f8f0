/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the module's files share. One responsibility per file:
 *
 *   ivshmem.c    a region from a PCI device 1af4:1110      (a provider)
 *   region.c     geometry of a region, checked; its doorbells; its life
 *   poller.c     threads that look at the inbox, with and without interrupts
 *   slot.c       slots of the own chunk and the state word
 *   conn.c       connections: life, lookup, wake-up, leaving
 *   handshake.c  offer, check, settle, join: kfuncs of the sockops programs
 *   proto.c      struct proto and struct proto_ops of a connection
 *   ring.c       data path in C, for when no program is attached
 *   ops.c        struct_ops type and kfuncs of the data path's programs
 *   main.c       module init and exit
 *
 * Nothing above the provider knows where a region's memory comes from.
 *
 * Other kernels work in a region at the same time, even where this one has only
 * one CPU. So what changes or orders words of it is sync_ or virt_: Linux takes
 * the lock prefix out of all other atomic operations, modules' too, when it
 * boots with one CPU.
 */
#ifndef TCP_SM_CHANNEL_H
#define TCP_SM_CHANNEL_H

#include <linux/hashtable.h>
#include <linux/refcount.h>
#include <linux/siphash.h>
#include <linux/workqueue.h>
#include <asm/sync_bitops.h>
#include <net/sock.h>
#include <net/tcp.h>

#include "compat.h"
#include "tcp_sm_ops.h"

struct tcp_sm_region;

/* Where a region's memory comes from and how peers are woken. */
struct tcp_sm_provider {
	const char *name;
	bool interrupts;	/* false: nobody calls tcp_sm_region_event() for us */
	void (*doorbell)(struct tcp_sm_region *region, u32 peer);
	void (*quiesce)(struct tcp_sm_region *region);	/* no tcp_sm_region_event() after it */
};

/* The geometry of one chunk, copied from the table and checked. */
struct tcp_sm_chunk {
	u32 index;
	u32 epoch;
	u32 ring_size;
	u32 slots;
	void *base;
};

/* Whom a slot waits for that this end left. */
struct tcp_sm_linger {
	u32 peer;
	u32 epoch;
	u32 nonce;
	unsigned long since;		/* jiffies */
};

/* The thread that looks at the inbox. */
struct tcp_sm_poller {
	struct task_struct *task;
	wait_queue_head_t wait;
	bool wanted;			/* by a bell, until the thread sleeps again */
	int rest;			/* bells that it sleeps through, until one wakes it */
	int step;			/* how many they were last time */
};

struct tcp_sm_region {
	const struct tcp_sm_provider *provider;
	void *provider_data;
	struct device *dev;
	void *base;
	u64 size;
	siphash_key_t key;		/* the region's identity */
	struct tcp_sm_chunk own;
	struct tcp_sm_chunk_header *header;
	refcount_t refs;
	struct completion unused;	/* completes when refs falls to zero */
	bool closing;			/* no new connections; under slot_lock */
	bool ready;			/* every peer has seen the epoch of this life */
	u32 seen[TCP_SM_CHUNKS_MAX];	/* what header->seen says, if nobody scribbles */
	u32 beat;			/* likewise header->beat */
	u32 beats[TCP_SM_CHUNKS_MAX];	/* of the peers, when last looked at */
	unsigned long beaten[TCP_SM_CHUNKS_MAX];	/* jiffies: when that changed */
	unsigned long watched;		/* jiffies: when this was last done */

	spinlock_t slot_lock;		/* all of the following */
	unsigned long *slots_used;
	unsigned long *slots_lingering;	/* this end left, the peer did not */
	struct tcp_sm_linger *linger;	/* of lingering ones */
	u32 slots_busy;
	u32 lingering;

	spinlock_t conn_lock;		/* writers of conns */
	DECLARE_HASHTABLE(conns, 12);
	unsigned long *live;		/* by chunk and slot: there may be one in conns */
	atomic_t nconns;
	u64 opened;
	u64 aborted;

	struct work_struct event;	/* softirq: look at the inbox */
	struct work_struct attention;	/* process: look at the chunk table */
	struct delayed_work watch;	/* likewise, every half second */
	struct tcp_sm_poller poller;
};

enum tcp_sm_phase {
	TCP_SM_PENDING,		/* client: the SYN-ACK is awaited */
	TCP_SM_RING,		/* agreed; each direction leaves on its own */
	TCP_SM_TCP,		/* restored; the socket is TCP's again */
};

enum tcp_sm_end_side { TCP_SM_IS_CLIENT, TCP_SM_IS_SERVER };

/*
 * A socket of the ring channel. The socket's ULP holds a reference and is the
 * only way from sk to conn; `sk` is valid for whoever holds the socket's lock
 * and for lookups that take a reference on the socket first.
 */
struct tcp_sm_conn {
	refcount_t refs;
	struct rcu_head rcu;
	struct hlist_node node;
	struct tcp_sm_region *region;
	bool holds_region;			/* as long as it has a slot */
	struct sock *sk;
	void (*data_ready)(struct sock *sk);	/* what sk_data_ready was */
	struct proto *base;			/* what sk_prot was */
	const struct proto_ops *base_ops;	/* what socket->ops was, or NULL */
	enum tcp_sm_phase phase;
	enum tcp_sm_end_side side;
	u32 chunk;				/* whose slot it is */
	u32 chunk_epoch;
	u32 slot;
	u32 ring_size;				/* half[].size, where no program can write */
	u32 nonce;
	u32 peer;
	u32 peer_epoch;
	unsigned long settled;			/* jiffies; client */
	unsigned long shown;			/* jiffies: when the network last saw an ACK... */
	u64 shown_bytes;			/* ...and how much had been moved then */
	bool broken;				/* the ring may not be touched any more */
	int spin_rest;				/* receives that sleep at once, until one spins */
	int spin_step;				/* how many they were last time */
	struct tcp_sm_slot *shm;		/* NULL once the slot was left */
	struct tcp_sm_chunk_header *peer_header;
	void *stash;				/* what was unread when the slot was left */
	struct tcp_sm_lane own_lane[2];		/* lanes of a connection without a slot */
	u8 *data[2];				/* by enum tcp_sm_direction */
	struct tcp_sm_lane *lane[2];
	struct tcp_sm_half half[2];
	struct work_struct abort;
	struct work_struct leave;
};

/* One call of sendmsg or recvmsg; read by programs. */
struct tcp_sm_io {
	u32 len;		/* bytes still wanted */
	u32 flags;		/* enum tcp_sm_io_flags */
	u32 skip;		/* PEEK: unread bytes to pass over */
	struct iov_iter *iter;
};

/* The policy of the data path. Returns: bytes, 0 full or empty, or an error. */
struct tcp_sm_ops {
	int (*sendmsg)(struct tcp_sm_conn *conn, struct tcp_sm_io *io);
	int (*recvmsg)(struct tcp_sm_conn *conn, struct tcp_sm_io *io);
	/* of enum tcp_sm_events */
	u32 (*poll)(struct tcp_sm_conn *conn, u32 lowat);
	void (*close)(struct tcp_sm_conn *conn);
};

/* region.c */
struct tcp_sm_region *tcp_sm_region_open(const struct tcp_sm_provider *provider, void *data,
					 struct device *dev, void *base, u64 size, int self);
void tcp_sm_region_close(struct tcp_sm_region *region);
struct tcp_sm_region *tcp_sm_region_get(void);
void tcp_sm_region_put(struct tcp_sm_region *region);
int tcp_sm_region_chunk(struct tcp_sm_region *region, u32 index, struct tcp_sm_chunk *chunk);
bool tcp_sm_region_own_alive(struct tcp_sm_region *region);
bool tcp_sm_region_ready(struct tcp_sm_region *region);
bool tcp_sm_region_alive(struct tcp_sm_region *region, u32 index, u32 epoch);
bool tcp_sm_region_kept(struct tcp_sm_region *region, u32 index, u32 epoch);
bool tcp_sm_region_silent(struct tcp_sm_region *region, u32 index);
void tcp_sm_region_event(struct tcp_sm_region *region);
bool tcp_sm_region_pending(struct tcp_sm_region *region);
bool tcp_sm_region_look(struct tcp_sm_region *region);
int tcp_sm_region_drain(struct tcp_sm_region *region, unsigned int timeout_ms);

/* poller.c */
u64 tcp_sm_spin_ns(void);
int tcp_sm_spin_in_vain(int rest);
int tcp_sm_poller_start(struct tcp_sm_region *region);
void tcp_sm_poller_stop(struct tcp_sm_region *region);
void tcp_sm_poller_busy(struct tcp_sm_region *region);
void tcp_sm_poller_rung(struct tcp_sm_region *region);

/* slot.c */
int tcp_sm_slots_init(struct tcp_sm_region *region);
void tcp_sm_slots_free(struct tcp_sm_region *region);
int tcp_sm_slot_take(struct tcp_sm_region *region, u32 nonce);
void tcp_sm_slot_sweep(struct tcp_sm_region *region);
void tcp_sm_slot_leave(struct tcp_sm_conn *conn);
void tcp_sm_slot_return(struct tcp_sm_region *region, u32 slot, u32 nonce);
u64 tcp_sm_slot_peer_left(const struct tcp_sm_conn *conn);
bool tcp_sm_slot_intact(struct tcp_sm_conn *conn, u64 word);
bool tcp_sm_slot_move(struct tcp_sm_slot *slot, u32 nonce, u32 from, u32 to);
struct tcp_sm_slot *tcp_sm_slot_at(const struct tcp_sm_chunk *chunk, u32 slot);
u8 *tcp_sm_slot_ring(const struct tcp_sm_chunk *chunk, u32 slot, u32 lane);

/* conn.c */
int tcp_sm_conns_init(struct tcp_sm_region *region);
void tcp_sm_conns_free(struct tcp_sm_region *region);
bool tcp_sm_conns_row(struct tcp_sm_region *region, u32 *chunk);
u64 tcp_sm_conns_live(struct tcp_sm_region *region, u32 chunk, u32 word);
struct tcp_sm_conn *tcp_sm_conn_new(struct tcp_sm_region *region, struct sock *sk,
				    const struct tcp_sm_chunk *chunk, u32 slot, u32 nonce,
				    enum tcp_sm_end_side side);
void tcp_sm_conn_hold(struct tcp_sm_conn *conn);
void tcp_sm_conn_put(struct tcp_sm_conn *conn);
void tcp_sm_conn_install(struct tcp_sm_conn *conn);
void tcp_sm_conn_restore(struct tcp_sm_conn *conn);
void tcp_sm_conn_break(struct tcp_sm_conn *conn);
void tcp_sm_conn_break_soon(struct tcp_sm_conn *conn, struct sock *sk);
void tcp_sm_conn_reset(struct tcp_sm_conn *conn, struct sock *sk);
void tcp_sm_conn_leave_tx(struct tcp_sm_conn *conn);
void tcp_sm_conn_leave(struct tcp_sm_conn *conn);
void tcp_sm_conn_notify(struct tcp_sm_conn *conn);
bool tcp_sm_conn_intact(struct tcp_sm_conn *conn);
void tcp_sm_conns_wake(struct tcp_sm_region *region, u32 chunk, u32 slot);
void tcp_sm_conns_check(struct tcp_sm_region *region);
void tcp_sm_conn_leave_soon(struct tcp_sm_conn *conn);
void tcp_sm_conns_withdraw(struct tcp_sm_region *region);
void tcp_sm_conns_confirm(struct tcp_sm_region *region);
void tcp_sm_conns_arm(struct tcp_sm_region *region);
void tcp_sm_conns_give(struct tcp_sm_region *region);
void tcp_sm_conns_show(struct tcp_sm_region *region);
void tcp_sm_conns_mistrust(struct tcp_sm_region *region);
void tcp_sm_conns_leave(struct tcp_sm_region *region);
void tcp_sm_conns_abort(struct tcp_sm_region *region);
extern const struct tcp_ulp_ops tcp_sm_ulp;

/* The connection of a socket, or NULL. The caller holds the socket's lock or RCU. */
static inline struct tcp_sm_conn *tcp_sm_conn_of(const struct sock *sk)
{
	const struct inet_connection_sock *icsk = inet_csk(sk);

	struct tcp_sm_conn *conn = rcu_dereference_raw(icsk->icsk_ulp_data);

	/*
	 * Polls hold no lock: whoever reads the data of the next protocol (kTLS)
	 * must not read the operations of this one after it.
	 */
	smp_rmb();
	return READ_ONCE(icsk->icsk_ulp_ops) == &tcp_sm_ulp ? conn : NULL;
}

/* proto.c */
void tcp_sm_proto_init(void);
void tcp_sm_proto_exit(void);
struct proto *tcp_sm_proto_for(struct proto *base);
bool tcp_sm_proto_ops_install(struct tcp_sm_conn *conn);
void tcp_sm_proto_ops_restore(struct tcp_sm_conn *conn);

/* ring.c */
int tcp_sm_ring_sendmsg(struct tcp_sm_conn *conn, struct tcp_sm_io *io);
int tcp_sm_ring_recvmsg(struct tcp_sm_conn *conn, struct tcp_sm_io *io);
u32 tcp_sm_ring_poll(struct tcp_sm_conn *conn, u32 lowat);
int tcp_sm_ring_used(struct tcp_sm_conn *conn, u32 dir);
int tcp_sm_ring_copy_in(struct tcp_sm_conn *conn, struct tcp_sm_io *io, u32 at, u32 len);
int tcp_sm_ring_copy_out(struct tcp_sm_conn *conn, struct tcp_sm_io *io, u32 at, u32 len);

/* ops.c */
int tcp_sm_ops_init(void);
int tcp_sm_ops_sendmsg(struct tcp_sm_conn *conn, struct tcp_sm_io *io);
int tcp_sm_ops_recvmsg(struct tcp_sm_conn *conn, struct tcp_sm_io *io);
u32 tcp_sm_ops_poll(struct tcp_sm_conn *conn, u32 lowat);
void tcp_sm_ops_close(struct tcp_sm_conn *conn);
bool tcp_sm_ops_attached(void);

/* handshake.c */
int tcp_sm_handshake_init(void);

/* ivshmem.c */
int tcp_sm_ivshmem_init(void);
void tcp_sm_ivshmem_exit(void);

#endif
