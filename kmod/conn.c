// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Connections of the ring channel: life, lookup, waking, leaving.
 *
 * Life. A socket takes the ULP slot (so that kTLS, MPTCP and sockmap keep out),
 * its ULP data is the conn. The reference goes when TCP destroys the socket or
 * when both directions went back to TCP. A conn pins the module and the region.
 *
 * Leaving. A producer goes on by TCP after it published its last byte and set
 * `left` in its lane; from then on it writes nothing to the ring, and it sets
 * `left` before its first TCP byte leaves. So a reader that
 *
 *   reads `left` as 0 has nothing of this peer in TCP before what the ring holds;
 *   reads `left` as 1 (acquire) sees the final head, and when the ring is empty
 *   after that, the rest of the stream is TCP's.
 *
 * Both ends do this, each for its own direction, as soon as one does. What is
 * unread then is copied to memory of our own (the stash) which stands in for
 * the ring, and the slot is left. When the stash is read, the socket is TCP's.
 *
 * Dying. If the peer machine's life ends, or the peer breaks the ring, the
 * connection is reset: `broken` is set under the socket's lock, and nobody
 * touches the slot afterwards. The socket is then TCP's, so a program that
 * never closes it holds no region.
 */
#include <linux/module.h>
#include <linux/vmalloc.h>

#include "channel.h"

/* More than a server keeps a request, with the default of tcp_synack_retries. */
#define UNJOINED_MAX (90 * HZ)

static unsigned int show_s = 60;
module_param(show_s, uint, 0644);
MODULE_PARM_DESC(show_s, "How often the network sees an ACK of a connection that moves bytes (s)");

static u32 conn_key(u32 chunk, u32 slot)
{
	return chunk * TCP_SM_SLOTS_MAX + slot;
}

int tcp_sm_conns_init(struct tcp_sm_region *region)
{
	spin_lock_init(&region->conn_lock);
	hash_init(region->conns);
	region->live = kvzalloc(TCP_SM_CHUNKS_MAX * TCP_SM_INBOX_ROW, GFP_KERNEL);
	return region->live ? 0 : -ENOMEM;
}

void tcp_sm_conns_free(struct tcp_sm_region *region)
{
	kvfree(region->live);
}

/*
 * Slots of `chunk` in which this machine has connections, 64 from 64 * word on.
 * Bits of an inbox are worth a search only there: whoever fills it with others
 * costs a machine no more than reading them.
 */
u64 tcp_sm_conns_live(struct tcp_sm_region *region, u32 chunk, u32 word)
{
	return READ_ONCE(region->live[conn_key(chunk, word * 64) / 64]);
}

/* Moves *chunk to the next one, from itself on, in which there are connections, if any. */
bool tcp_sm_conns_row(struct tcp_sm_region *region, u32 *chunk)
{
	u32 end = TCP_SM_CHUNKS_MAX * TCP_SM_SLOTS_MAX;
	u32 key = find_next_bit(region->live, end, conn_key(*chunk, 0));

	*chunk = key / TCP_SM_SLOTS_MAX;
	return key < end;
}

static void abort_work(struct work_struct *work);
static void leave_work(struct work_struct *work);

/*
 * Make the end of a connection in slot `slot` of `chunk`. GFP_ATOMIC: called
 * in softirq. Takes references on the module and the region; the caller's
 * reference on the region stays the caller's.
 */
struct tcp_sm_conn *tcp_sm_conn_new(struct tcp_sm_region *region, struct sock *sk,
				    const struct tcp_sm_chunk *chunk, u32 slot, u32 nonce,
				    enum tcp_sm_end_side side)
{
	struct tcp_sm_conn *conn = kzalloc(sizeof(*conn), GFP_ATOMIC);
	u32 tx = side == TCP_SM_IS_CLIENT ? 0 : 1;

	if (!conn)
		return NULL;
	refcount_set(&conn->refs, 1);
	refcount_inc(&region->refs);
	__module_get(THIS_MODULE);
	conn->region = region;
	conn->holds_region = true;
	conn->sk = sk;
	conn->data_ready = sk->sk_data_ready;
	conn->base = sk->sk_prot;
	conn->side = side;
	conn->spin_rest = 1;
	conn->shown = jiffies;
	conn->chunk = chunk->index;
	conn->chunk_epoch = chunk->epoch;
	conn->slot = slot;
	conn->nonce = nonce;
	conn->shm = tcp_sm_slot_at(chunk, slot);
	conn->lane[TCP_SM_TX] = &conn->shm->lane[tx];
	conn->lane[TCP_SM_RX] = &conn->shm->lane[!tx];
	conn->data[TCP_SM_TX] = tcp_sm_slot_ring(chunk, slot, tx);
	conn->data[TCP_SM_RX] = tcp_sm_slot_ring(chunk, slot, !tx);
	conn->ring_size = chunk->ring_size;
	conn->half[TCP_SM_TX].size = chunk->ring_size;
	conn->half[TCP_SM_RX].size = chunk->ring_size;
	INIT_WORK(&conn->abort, abort_work);
	INIT_WORK(&conn->leave, leave_work);
	return conn;
}

void tcp_sm_conn_hold(struct tcp_sm_conn *conn)
{
	refcount_inc(&conn->refs);
}

/* Called once with the socket's lock or as the last. The region may be closed from here on. */
static void conn_put_region(struct tcp_sm_conn *conn)
{
	if (!conn->holds_region)
		return;
	conn->holds_region = false;
	tcp_sm_region_put(conn->region);
}

static void conn_free(struct rcu_head *rcu)
{
	struct tcp_sm_conn *conn = container_of(rcu, struct tcp_sm_conn, rcu);

	kvfree(conn->stash);
	conn_put_region(conn);
	kfree(conn);
	module_put(THIS_MODULE);
}

void tcp_sm_conn_put(struct tcp_sm_conn *conn)
{
	if (refcount_dec_and_test(&conn->refs))
		call_rcu(&conn->rcu, conn_free);
}

/* Socket and conn belong together from here; the caller holds the socket's lock. */
void tcp_sm_conn_install(struct tcp_sm_conn *conn)
{
	struct inet_connection_sock *icsk = inet_csk(conn->sk);
	struct tcp_sm_region *region = conn->region;

	__module_get(THIS_MODULE);	/* tcp_cleanup_ulp() puts it */
	rcu_assign_pointer(icsk->icsk_ulp_data, conn);
	icsk->icsk_ulp_ops = &tcp_sm_ulp;
	WRITE_ONCE(conn->sk->sk_prot, tcp_sm_proto_for(conn->base));
	spin_lock_bh(&region->conn_lock);
	hash_add_rcu(region->conns, &conn->node, conn_key(conn->chunk, conn->slot));
	__set_bit(conn_key(conn->chunk, conn->slot), region->live);
	region->opened++;
	spin_unlock_bh(&region->conn_lock);
	atomic_inc(&region->nconns);
	tcp_sm_poller_busy(region);
}

/*
 * Nobody finds the conn by its slot any more, and the slot is left. Whoever looks
 * at the slot or the region without the socket's lock does so in RCU, for which a
 * region that closes waits.
 */
static void conn_unhash(struct tcp_sm_conn *conn)
{
	struct tcp_sm_region *region = conn->region;

	if (!conn->shm)
		return;
	spin_lock_bh(&region->conn_lock);
	hash_del_rcu(&conn->node);
	__clear_bit(conn_key(conn->chunk, conn->slot), region->live);
	spin_unlock_bh(&region->conn_lock);
	tcp_sm_slot_leave(conn);
	atomic_dec(&region->nconns);
	conn_put_region(conn);
}

/* TCP destroys the socket. May run in softirq. */
static void ulp_release(struct sock *sk)
{
	struct inet_connection_sock *icsk = inet_csk(sk);
	struct tcp_sm_conn *conn = rcu_dereference_raw(icsk->icsk_ulp_data);

	if (!conn)
		return;
	rcu_assign_pointer(icsk->icsk_ulp_data, NULL);
	WRITE_ONCE(sk->sk_prot, conn->base);
	conn_unhash(conn);
	tcp_sm_conn_put(conn);
}

const struct tcp_ulp_ops tcp_sm_ulp = {
	.name = "tcp_sm",
	.owner = THIS_MODULE,
	.release = ulp_release,
};

/* The socket is TCP's again. The caller holds its lock. */
void tcp_sm_conn_restore(struct tcp_sm_conn *conn)
{
	struct sock *sk = conn->sk;

	conn->phase = TCP_SM_TCP;
	tcp_sm_proto_ops_restore(conn);
	WRITE_ONCE(sk->sk_prot, conn->base);
	inet_csk(sk)->icsk_ulp_ops = NULL;
	rcu_assign_pointer(inet_csk(sk)->icsk_ulp_data, NULL);
	conn_unhash(conn);
	tcp_sm_conn_put(conn);
	module_put(THIS_MODULE);
}

/* Ring the peer's bell: something happened to this connection. */
void tcp_sm_conn_notify(struct tcp_sm_conn *conn)
{
	struct tcp_sm_chunk_header *header = conn->peer_header;
	unsigned long *row;

	if (!header || !conn->shm || conn->broken)
		return;
	row = (void *)header + TCP_SM_INBOX_OFFSET + conn->chunk * TCP_SM_INBOX_ROW;
	/* A bit that is set already was followed by a doorbell, or will be. */
	if (sync_test_and_set_bit(conn->slot, row))
		return;
	sync_set_bit(conn->chunk, (unsigned long *)header->summary);
	virt_mb();	/* the bit before the look at `awake`, see poller.c */
	if (!READ_ONCE(header->awake))
		conn->region->provider->doorbell(conn->region, conn->peer);
}

/* The peer's FIN or RST came: it published its last byte before, and may be gone. */
static bool peer_ended(const struct sock *sk)
{
	return (1 << sk->sk_state) & (TCPF_CLOSE | TCPF_CLOSE_WAIT | TCPF_LAST_ACK | TCPF_CLOSING);
}

/* A client that is in the ring, and whose server is not. */
static bool unjoined(struct tcp_sm_conn *conn, u64 word)
{
	return conn->side == TCP_SM_IS_CLIENT &&
	       word == TCP_SM_SLOT_WORD(conn->nonce, TCP_SM_SLOT_ACTIVE);
}

/*
 * Is what was just read of the slot still this connection's? Whoever gets the chunk
 * next finds another epoch there, or makes it, before it empties anything.
 */
bool tcp_sm_conn_intact(struct tcp_sm_conn *conn)
{
	virt_rmb();	/* what was read before the look at the epoch */
	return !conn->shm || (tcp_sm_slot_intact(conn, READ_ONCE(conn->shm->word)) &&
			      tcp_sm_region_kept(conn->region, conn->chunk, conn->chunk_epoch));
}

/* Runs `work` of conn later, which holds the conn and the socket meanwhile. */
static void conn_queue(struct tcp_sm_conn *conn, struct sock *sk, struct work_struct *work)
{
	if (!refcount_inc_not_zero(&conn->refs))
		return;
	sock_hold(sk);
	if (!schedule_work(work)) {
		sock_put(sk);
		tcp_sm_conn_put(conn);
	}
}

/*
 * The ring or its peer is not to be trusted: reset the connection, and touch
 * nothing of the slot any more. The caller holds the socket's lock.
 */
void tcp_sm_conn_break(struct tcp_sm_conn *conn)
{
	if (conn->broken)
		return;
	WRITE_ONCE(conn->broken, true);
	if (conn->shm)
		conn->region->aborted++;
	conn_queue(conn, conn->sk, &conn->abort);
}

/* A poll found the ring broken. In RCU, without the lock. */
void tcp_sm_conn_break_soon(struct tcp_sm_conn *conn, struct sock *sk)
{
	conn_queue(conn, sk, &conn->abort);
}

/* Has the application all that came by the ring? */
static bool rx_done(struct tcp_sm_conn *conn)
{
	return conn->half[TCP_SM_RX].left && !tcp_sm_ring_used(conn, TCP_SM_RX) &&
	       tcp_sm_conn_intact(conn);
}

/*
 * What TCP has queued, if only its end, comes after bytes of the ring that nobody
 * gets any more, so the application must not get it either: it is told of a reset.
 * Lock held, the connection is closed.
 */
static void drop_rest(struct sock *sk)
{
	__skb_queue_purge(&sk->sk_receive_queue);
	WRITE_ONCE(tcp_sk(sk)->copied_seq, tcp_sk(sk)->rcv_nxt);
	sock_reset_flag(sk, SOCK_DONE);
}

/*
 * Does this connection stand or fall with its slot? Not if what is unread is in
 * memory of our own: a poll may have looked at what the slot is used for now. Nor
 * if the peer ended its stream before its life ended, and all of it is still in
 * the ring: then it goes on as if that machine had not died. Lock held.
 */
static bool lost(struct tcp_sm_conn *conn)
{
	if (conn->broken)
		return true;
	if (conn->shm && conn->phase == TCP_SM_RING && peer_ended(conn->sk) &&
	    tcp_sm_conn_intact(conn))
		tcp_sm_conn_leave(conn);
	return tcp_sm_conn_of(conn->sk) == conn && conn->shm;
}

/* Reset the connection, and give back the socket, which somebody may keep for ever. No lock. */
void tcp_sm_conn_reset(struct tcp_sm_conn *conn, struct sock *sk)
{
	bool ours, closed;

	lock_sock(sk);
	ours = tcp_sm_conn_of(sk) == conn && lost(conn);
	if (ours && !conn->broken) {
		WRITE_ONCE(conn->broken, true);
		conn->region->aborted++;
	}
	release_sock(sk);
	if (!ours)
		return;
	closed = tcp_abort(sk, ECONNRESET);
	lock_sock(sk);
	if (tcp_sm_conn_of(sk) == conn) {
		if (!rx_done(conn)) {
			drop_rest(sk);
			/* tcp_abort() says nothing to a socket that TCP has closed. */
			if (closed)
				WRITE_ONCE(sk->sk_err, ECONNRESET);
		}
		tcp_sm_conn_restore(conn);
	}
	release_sock(sk);
}

static void abort_work(struct work_struct *work)
{
	struct tcp_sm_conn *conn = container_of(work, struct tcp_sm_conn, abort);
	struct sock *sk = conn->sk;

	tcp_sm_conn_reset(conn, sk);
	sock_put(sk);
	tcp_sm_conn_put(conn);
}

/*
 * A client in the ring whose server is not, and may never be: then what comes by
 * TCP would be the stream's beginning for it. Lock held.
 */
static bool waits_for_server(struct tcp_sm_conn *conn)
{
	return conn->shm && unjoined(conn, READ_ONCE(conn->shm->word)) &&
	       conn->sk->sk_state != TCP_CLOSE;
}

/*
 * The last TCP byte from here comes after the last ring byte. Not yet, if nobody
 * may ever read that; whoever wants it comes again. Lock held.
 */
void tcp_sm_conn_leave_tx(struct tcp_sm_conn *conn)
{
	struct tcp_sm_half *tx = &conn->half[TCP_SM_TX];

	if (tx->left || conn->broken || waits_for_server(conn))
		return;
	tx->left = 1;
	/* `left` after the last byte: the reader's acquire sees the final head. */
	virt_store_release(&conn->lane[TCP_SM_TX]->left, 1);
	virt_mb();	/* `left` before the bell, and before any TCP segment */
	tcp_sm_conn_notify(conn);
}

/* Put what is unread into memory of our own, in the ring's place. */
static bool conn_stash(struct tcp_sm_conn *conn, u32 unread)
{
	struct tcp_sm_half *rx = &conn->half[TCP_SM_RX];
	u32 written = conn->half[TCP_SM_TX].index;
	void *stash = kvmalloc(conn->ring_size, GFP_KERNEL);
	u32 dir;

	if (!stash)
		return false;
	memcpy(stash, conn->data[TCP_SM_RX], conn->ring_size);
	if (!tcp_sm_conn_intact(conn)) {
		kvfree(stash);
		return false;
	}
	for (dir = 0; dir < 2; dir++)
		conn->own_lane[dir] = *conn->lane[dir];
	/* What was copied; a peer that has not heard of the end yet may have written more. */
	conn->own_lane[TCP_SM_RX].head = rx->index + unread;
	conn->own_lane[TCP_SM_RX].tail = rx->index;
	conn->own_lane[TCP_SM_RX].left |= rx->left;
	/* What the peer did not read is in its stash, so its kernel has it. */
	conn->own_lane[TCP_SM_TX].head = written;
	conn->own_lane[TCP_SM_TX].tail = written;
	for (dir = 0; dir < 2; dir++) {
		/* Polls hold no lock: whoever finds the lane finds what is in it. */
		smp_store_release(&conn->lane[dir], &conn->own_lane[dir]);
	}
	conn->stash = stash;
	conn->data[TCP_SM_RX] = stash;
	conn->data[TCP_SM_TX] = NULL;
	return true;
}

/* Both directions of a connection in the ring, as far as the peer lets them. */
static void leave_ring(struct tcp_sm_conn *conn)
{
	struct tcp_sm_half *rx = &conn->half[TCP_SM_RX];
	int unread;

	/* A server that comes now finds no client in the ring, and misses nothing. */
	if (waits_for_server(conn) && !conn->half[TCP_SM_TX].index &&
	    tcp_sm_slot_move(conn->shm, conn->nonce, TCP_SM_SLOT_ACTIVE, TCP_SM_SLOT_FREE)) {
		tcp_sm_conn_restore(conn);
		return;
	}
	if (waits_for_server(conn))
		return;
	tcp_sm_conn_leave_tx(conn);
	if (!rx->left && !peer_ended(conn->sk)) {
		/* `left` before head, as its writer has it. */
		if (!virt_load_acquire(&conn->lane[TCP_SM_RX]->left)) {
			/* A bell that came before it joined told it nothing. */
			tcp_sm_conn_notify(conn);
			return;
		}
		rx->left = 1;
	}
	unread = tcp_sm_ring_used(conn, TCP_SM_RX);
	if (unread < 0 || !tcp_sm_conn_intact(conn))
		tcp_sm_conn_break(conn);
	else if (!unread)
		tcp_sm_conn_restore(conn);
	else if (conn->shm && conn_stash(conn, unread))
		conn_unhash(conn);
}

/*
 * Both directions left or are about to: leave ours, and when the peer's is
 * left or over, let go of the slot. An offer without an answer is withdrawn: the
 * server that accepts it finds no client in the ring. Whoever waits for the ring
 * waits for TCP now, so is woken: no bell of the peer's does that any more. The
 * caller holds the socket's lock, and a reference to conn if it uses it afterwards.
 */
void tcp_sm_conn_leave(struct tcp_sm_conn *conn)
{
	struct sock *sk = conn->sk;

	if (conn->phase == TCP_SM_PENDING)
		tcp_sm_conn_restore(conn);
	else if (conn->phase == TCP_SM_RING && !conn->broken)
		leave_ring(conn);
	else
		return;
	sk->sk_data_ready(sk);
	sk->sk_write_space(sk);
}

static void leave_work(struct work_struct *work)
{
	struct tcp_sm_conn *conn = container_of(work, struct tcp_sm_conn, leave);
	struct sock *sk = conn->sk;

	lock_sock(sk);
	if (tcp_sm_conn_of(sk) == conn)
		tcp_sm_conn_leave(conn);
	release_sock(sk);
	sock_put(sk);
	tcp_sm_conn_put(conn);
}

/* As TCP: who never found the ring full is not told of room. In RCU, for the struct socket. */
static void wake_writer(struct sock *sk)
{
	struct socket *sock = READ_ONCE(sk->sk_socket);

	if (sock && test_bit(SOCK_NOSPACE, &sock->flags))
		sk->sk_write_space(sk);
}

/*
 * Something happened in slot `slot` of `chunk`: wake whoever sleeps on it.
 * A hint from another machine; an unknown slot is nobody's. Softirq.
 */
void tcp_sm_conns_wake(struct tcp_sm_region *region, u32 chunk, u32 slot)
{
	u32 key = conn_key(chunk, slot);
	struct tcp_sm_conn *conn;

	rcu_read_lock();
	hash_for_each_possible_rcu(region->conns, conn, node, key) {
		struct sock *sk = conn->sk;

		if (conn->chunk != chunk || conn->slot != slot)
			continue;
		/* The slab is type-safe by RCU: at worst another socket is woken. */
		if (!refcount_inc_not_zero(&sk->sk_refcnt))
			continue;
		/* Or another part of the kernel took the socket, and reads TCP's queue alone. */
		if (READ_ONCE(conn->lane[TCP_SM_RX]->left) ||
		    READ_ONCE(sk->sk_data_ready) != conn->data_ready)
			conn_queue(conn, sk, &conn->leave);
		sk->sk_data_ready(sk);
		wake_writer(sk);
		sock_put(sk);
	}
	rcu_read_unlock();
}

/*
 * Call `act` for connections for which `pick` says so, outside of RCU and with
 * references held. A bucket that does not fit is not finished, so a caller that
 * must meet all of them repeats until it meets none. Returns how many it met.
 */
static int conns_each(struct tcp_sm_region *region, bool (*pick)(struct tcp_sm_conn *conn),
		      void (*act)(struct tcp_sm_conn *conn, struct sock *sk))
{
	struct tcp_sm_conn *conn, *batch[32];
	struct sock *sks[ARRAY_SIZE(batch)];
	int bucket = 0, met = 0, n, i;

	while (bucket < HASH_SIZE(region->conns)) {
		n = 0;
		rcu_read_lock();
		for (; bucket < HASH_SIZE(region->conns); bucket++) {
			hlist_for_each_entry_rcu(conn, &region->conns[bucket], node) {
				if (n == ARRAY_SIZE(batch) || !pick(conn))
					continue;
				if (!refcount_inc_not_zero(&conn->sk->sk_refcnt))
					continue;
				if (!refcount_inc_not_zero(&conn->refs)) {
					sock_put(conn->sk);
					continue;
				}
				sks[n] = conn->sk;
				batch[n++] = conn;
			}
			if (n > ARRAY_SIZE(batch) / 2)
				break;
		}
		rcu_read_unlock();
		if (n > ARRAY_SIZE(batch) / 2)
			bucket++;
		for (i = 0; i < n; i++) {
			act(batch[i], sks[i]);
			sock_put(sks[i]);
			tcp_sm_conn_put(batch[i]);
		}
		met += n;
	}
	return met;
}

/*
 * Calls `act` with the socket's lock, in BH, if no process has it. One that keeps
 * it, say because the memory it receives into is slow to come, must not stop
 * those who look after all connections; they come again.
 */
static void try_locked(struct tcp_sm_conn *conn, struct sock *sk,
		       void (*act)(struct tcp_sm_conn *conn, struct sock *sk))
{
	local_bh_disable();
	bh_lock_sock(sk);
	if (!sock_owned_by_user(sk) && tcp_sm_conn_of(sk) == conn)
		act(conn, sk);
	bh_unlock_sock(sk);
	local_bh_enable();
}

static bool pick_all(struct tcp_sm_conn *conn)
{
	return true;
}

static bool pick_orphaned(struct tcp_sm_conn *conn)
{
	return conn->phase == TCP_SM_RING && !READ_ONCE(conn->broken) &&
	       (!tcp_sm_region_alive(conn->region, conn->peer, conn->peer_epoch) ||
		!tcp_sm_region_own_alive(conn->region));
}

static void act_abort(struct tcp_sm_conn *conn, struct sock *sk)
{
	conn_queue(conn, sk, &conn->abort);
}

static void act_leave(struct tcp_sm_conn *conn, struct sock *sk)
{
	conn_queue(conn, sk, &conn->leave);
}

/* Goes back to TCP on its own account: the region closed while it was made. Softirq. */
void tcp_sm_conn_leave_soon(struct tcp_sm_conn *conn)
{
	conn_queue(conn, conn->sk, &conn->leave);
}

/*
 * Reset connections whose peer's life is over, or the own one: the hypervisor may
 * say so of a machine that runs, and the others believe it. On return none of them
 * touches its slot any more: who holds a socket's lock looks at `broken` first, and
 * polls, which hold none, are waited for. So are first of all the steps of a
 * handshake that read the table before it changed; programs run them in RCU.
 */
void tcp_sm_conns_check(struct tcp_sm_region *region)
{
	synchronize_rcu();
	/* All at once first: one whose lock is held must not keep the others waiting. */
	conns_each(region, pick_orphaned, act_abort);
	while (conns_each(region, pick_orphaned, tcp_sm_conn_reset))
		;
	synchronize_rcu();
}

/* A client whose connect failed, and whose program keeps the socket. */
static bool pick_failed(struct tcp_sm_conn *conn)
{
	return conn->phase == TCP_SM_PENDING && conn->sk->sk_state == TCP_CLOSE;
}

static void withdraw(struct tcp_sm_conn *conn, struct sock *sk)
{
	if (pick_failed(conn))
		tcp_sm_conn_restore(conn);
}

static void act_withdraw(struct tcp_sm_conn *conn, struct sock *sk)
{
	try_locked(conn, sk, withdraw);
}

/* Offers that nobody will answer any more hold no slot. */
void tcp_sm_conns_withdraw(struct tcp_sm_region *region)
{
	conns_each(region, pick_failed, act_withdraw);
}

/* The peer let go of the slot, and TCP has heard nothing of an end. */
static bool deserted(struct tcp_sm_conn *conn, u64 word)
{
	return (word & tcp_sm_slot_peer_left(conn)) && conn->sk->sk_state == TCP_ESTABLISHED;
}

static bool pick_doubtful(struct tcp_sm_conn *conn)
{
	struct tcp_sm_slot *shm = READ_ONCE(conn->shm);
	u64 word;

	if (!shm || conn->phase != TCP_SM_RING || READ_ONCE(conn->broken) ||
	    conn->sk->sk_state == TCP_CLOSE)
		return false;
	word = READ_ONCE(shm->word);
	return !tcp_sm_slot_intact(conn, word) || unjoined(conn, word) || deserted(conn, word);
}

static void confirm(struct tcp_sm_conn *conn, struct sock *sk)
{
	u64 word;

	if (!pick_doubtful(conn))
		return;
	word = READ_ONCE(conn->shm->word);
	/* A server says its end after it joined. */
	if (!tcp_sm_slot_intact(conn, word) ||
	    (unjoined(conn, word) && (peer_ended(sk) ||
				      time_after(jiffies, conn->settled + UNJOINED_MAX))))
		tcp_sm_conn_break(conn);
	else
		__tcp_send_ack(sk, tcp_sk(sk)->rcv_nxt, 0);
}

static void act_confirm(struct tcp_sm_conn *conn, struct sock *sk)
{
	try_locked(conn, sk, confirm);
}

static u64 bytes_moved(const struct tcp_sm_conn *conn)
{
	return READ_ONCE(conn->half[TCP_SM_TX].bytes) + READ_ONCE(conn->half[TCP_SM_RX].bytes);
}

/*
 * Whoever counts connections on the way, such as a firewall, must not forget one
 * whose bytes it does not see. One that is idle it may forget, as it may TCP's.
 */
static bool pick_unseen(struct tcp_sm_conn *conn)
{
	int state = conn->sk->sk_state;
	/* One that is half closed they forget sooner. */
	unsigned long interval = READ_ONCE(show_s) * HZ / (state == TCP_ESTABLISHED ? 1 : 3);

	return conn->phase == TCP_SM_RING && !READ_ONCE(conn->broken) &&
	       ((1 << state) & (TCPF_ESTABLISHED | TCPF_FIN_WAIT2 | TCPF_CLOSE_WAIT)) &&
	       bytes_moved(conn) != conn->shown_bytes &&
	       time_after(jiffies, conn->shown + interval);
}

static void show(struct tcp_sm_conn *conn, struct sock *sk)
{
	if (!pick_unseen(conn))
		return;
	conn->shown = jiffies;
	conn->shown_bytes = bytes_moved(conn);
	__tcp_send_ack(sk, tcp_sk(sk)->rcv_nxt, 0);
}

static void act_show(struct tcp_sm_conn *conn, struct sock *sk)
{
	try_locked(conn, sk, show);
}

void tcp_sm_conns_show(struct tcp_sm_region *region)
{
	conns_each(region, pick_unseen, act_show);
}

/*
 * Clients whose server did not join. TCP would send the first bytes again and
 * again, until the server has room in its accept queue, or no request any more
 * and resets. Bytes of the ring do neither, so ACKs without any stand in for
 * them. A server that went on by TCP, because its programs or its device went in
 * between, takes those ACKs; it would never read what is in the ring.
 *
 * Likewise ends whose peer is gone with its reset lost on the way, which nobody
 * sends twice: TCP's next bytes would be answered with another, so an ACK is.
 *
 * And words that are no joined connection's. A server that could not join says
 * REJECTED, and its client is reset. Ends whose word somebody wrote over could not
 * agree who leaves the slot, and its next connection would meet them.
 */
void tcp_sm_conns_confirm(struct tcp_sm_region *region)
{
	conns_each(region, pick_doubtful, act_confirm);
}

/* O_ASYNC, and no wish for a bell: set after a receive that did without, see proto.c. */
static bool pick_unarmed(struct tcp_sm_conn *conn)
{
	return conn->phase == TCP_SM_RING && !READ_ONCE(conn->broken) &&
	       sock_flag(conn->sk, SOCK_FASYNC) &&
	       !READ_ONCE(READ_ONCE(conn->lane[TCP_SM_RX])->want_data);
}

static void arm(struct tcp_sm_conn *conn, struct sock *sk)
{
	if (pick_unarmed(conn) && (tcp_sm_ops_poll(conn, 1) & TCP_SM_READABLE))
		sk->sk_data_ready(sk);
}

static void act_arm(struct tcp_sm_conn *conn, struct sock *sk)
{
	try_locked(conn, sk, arm);
}

/* Programs that wait for a signal ask nobody for it, so the module looks for them. */
void tcp_sm_conns_arm(struct tcp_sm_region *region)
{
	conns_each(region, pick_unarmed, act_arm);
}

/* Another part of the kernel took the socket, which reads TCP's queue alone. */
static bool pick_taken(struct tcp_sm_conn *conn)
{
	return conn->phase == TCP_SM_RING && !READ_ONCE(conn->broken) &&
	       READ_ONCE(conn->sk->sk_data_ready) != conn->data_ready;
}

/* A bell tells of that as well, see tcp_sm_conns_wake(), if there comes one. */
void tcp_sm_conns_give(struct tcp_sm_region *region)
{
	conns_each(region, pick_taken, act_leave);
}

static bool pick_silent(struct tcp_sm_conn *conn)
{
	return conn->phase == TCP_SM_RING && !READ_ONCE(conn->broken) &&
	       !READ_ONCE(conn->half[TCP_SM_TX].left) &&
	       tcp_sm_region_silent(conn->region, conn->peer);
}

/*
 * Connections to a machine that has hung go back to TCP, which knows what to do
 * when nobody answers: a sender would wait for room in the ring for ever. If the
 * machine comes back, so does the peer's end.
 */
void tcp_sm_conns_mistrust(struct tcp_sm_region *region)
{
	conns_each(region, pick_silent, act_leave);
}

void tcp_sm_conns_leave(struct tcp_sm_region *region)
{
	conns_each(region, pick_all, act_leave);
}

void tcp_sm_conns_abort(struct tcp_sm_region *region)
{
	while (atomic_read(&region->nconns)) {
		conns_each(region, pick_all, tcp_sm_conn_reset);
		schedule_timeout_uninterruptible(HZ / 50);
	}
}
