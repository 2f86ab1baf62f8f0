// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * struct proto and struct proto_ops of a socket of the ring channel.
 *
 * All calls keep TCP's meaning. Waiting, flags and error codes are here, under
 * the socket's lock; moving bytes is the programs' (ops.c). TCP itself carries
 * nothing while both directions are in the ring, so its state, its FIN and its
 * RST mean what they always mean; a reader takes them as the end of the stream
 * only when it saw them *before* it found the ring empty: the peer published
 * its last byte before it sent a FIN.
 */
#include <asm/ioctls.h>
#include <linux/module.h>
#include <linux/sched/stat.h>
#include <linux/sockios.h>
#include <linux/splice.h>
#include <net/inet_common.h>
#include <net/ipv6.h>
#include <net/transp_v6.h>

#include "channel.h"

struct ring_proto {
	struct proto *base;
	struct proto prot;
};

struct ring_proto_ops {
	const struct proto_ops *base;
	struct proto_ops ops;
};

/*
 * Whoever is in one of these functions. A call that slept for the socket's lock
 * may find that the connection is TCP's and nothing of it holds the module; its
 * code must stay all the same.
 */
DEFINE_STATIC_SRCU(calls);

static struct ring_proto protos[2];		/* IPv4, IPv6 */
static struct ring_proto_ops stream_ops[4];	/* as many as are met */
static DEFINE_SPINLOCK(stream_ops_lock);

/* TCP's proto of a socket that may go back to it at any moment. */
static struct proto *base_of(const struct sock *sk)
{
	struct proto *prot = READ_ONCE(sk->sk_prot);
	int i;

	for (i = 0; i < ARRAY_SIZE(protos); i++)
		if (prot == &protos[i].prot)
			return protos[i].base;
	return prot;
}

static const struct proto_ops *base_ops_of(const struct socket *sock)
{
	const struct proto_ops *ops = READ_ONCE(sock->ops);
	int i;

	for (i = 0; i < ARRAY_SIZE(stream_ops); i++)
		if (ops == &stream_ops[i].ops)
			return stream_ops[i].base;
	return ops;
}

/* Does the connection still write to its ring? Lock held. */
static bool tx_in_ring(struct tcp_sm_conn *conn)
{
	return conn && conn->phase == TCP_SM_RING && !conn->half[TCP_SM_TX].left;
}

static bool rx_in_ring(struct tcp_sm_conn *conn)
{
	return conn && conn->phase == TCP_SM_RING;
}

/* For calls that may sleep long: unloading is refused meanwhile, and does not wait. */
static int enter(void)
	__acquires(&calls)
{
	int call = srcu_read_lock(&calls);

	__module_get(THIS_MODULE);
	return call;
}

static void leave(int call)
	__releases(&calls)
{
	module_put(THIS_MODULE);
	srcu_read_unlock(&calls, call);
}

static bool connecting(const struct sock *sk)
{
	return (1 << sk->sk_state) & (TCPF_SYN_SENT | TCPF_SYN_RECV);
}

/*
 * A client must know the outcome of the offer before it moves a byte. Not
 * sk_stream_wait_connect(), which makes TCP delay the last ACK of the handshake
 * for data that will not come. Returns 0 or what a socket call returns.
 */
static int wait_settled(struct sock *sk, struct tcp_sm_conn *conn, long timeo)
{
	DEFINE_WAIT_FUNC(wait, woken_wake_function);
	int err = 0;

	add_wait_queue(sk_sleep(sk), &wait);
	while (conn->phase == TCP_SM_PENDING && connecting(sk) && !sk->sk_err) {
		if (!timeo)
			err = -EAGAIN;
		else if (signal_pending(current))
			err = sock_intr_errno(timeo);
		if (err)
			break;
		/* Somebody disconnected it, and may have connected it anew. */
		if (sk_wait_event(sk, &timeo, conn->phase != TCP_SM_PENDING || !connecting(sk) ||
				  sk->sk_err, &wait) < 0) {
			err = -EPIPE;
			break;
		}
	}
	remove_wait_queue(sk_sleep(sk), &wait);
	/* Refused, or established while no program watched: TCP it is. */
	if (!err && conn->phase == TCP_SM_PENDING && tcp_sm_conn_of(sk) == conn)
		tcp_sm_conn_restore(conn);
	return err;
}

/*
 * Large calls move the ring in pieces and publish each, so that the peer wakes up
 * and works on the first while this end works on the next. Waking takes longer
 * than copying.
 */
static u32 piece(const struct tcp_sm_conn *conn)
{
	return conn->ring_size / 4;
}

/* Did the peer close, or shut down both directions? Then it reads nothing any more. */
static bool tx_closed(struct tcp_sm_conn *conn)
{
	return READ_ONCE(READ_ONCE(conn->lane[TCP_SM_TX])->closed);
}

/*
 * What the programs' poll finds, without the lock, in RCU. A ring that is broken
 * is reported whatever was asked, and reset: a reader that never writes would
 * otherwise poll a bad tail for ever.
 */
static u32 poll_ring(struct sock *sk, struct tcp_sm_conn *conn, u32 lowat)
{
	u32 mask = READ_ONCE(conn->broken) ? TCP_SM_BROKEN : tcp_sm_ops_poll(conn, lowat);

	if ((mask & TCP_SM_BROKEN) && !READ_ONCE(conn->broken))
		tcp_sm_conn_break_soon(conn, sk);
	return mask & TCP_SM_BROKEN ? ~0U : mask;
}

/* Without the lock too, so in RCU: whoever breaks the connection waits for polls. */
static bool tx_ready(struct sock *sk, struct tcp_sm_conn *conn)
{
	bool ready;

	rcu_read_lock();
	ready = sk->sk_err || (sk->sk_shutdown & SEND_SHUTDOWN) || conn->phase != TCP_SM_RING ||
		conn->half[TCP_SM_TX].left || tx_closed(conn) ||
		(poll_ring(sk, conn, 1) & TCP_SM_WRITABLE);
	rcu_read_unlock();
	return ready;
}

/* Sleep until the ring has room or something ended. 0 or -EAGAIN, -EINTR... */
static int wait_space(struct sock *sk, struct tcp_sm_conn *conn, long *timeo)
{
	DEFINE_WAIT_FUNC(wait, woken_wake_function);
	int err = 0;

	if (!*timeo) {
		set_bit(SOCK_NOSPACE, &sk->sk_socket->flags);
		return tx_ready(sk, conn) ? 0 : -EAGAIN;
	}
	if (signal_pending(current))
		return sock_intr_errno(*timeo);
	add_wait_queue(sk_sleep(sk), &wait);
	set_bit(SOCK_NOSPACE, &sk->sk_socket->flags);
	if (sk_wait_event(sk, timeo, tx_ready(sk, conn), &wait) < 0)
		err = -EPIPE;
	remove_wait_queue(sk_sleep(sk), &wait);
	return err;
}

/*
 * Send by the ring as long as it lasts, the rest by TCP. Lock held. Returns
 * what sendmsg does, or -EPROTO: the ring is broken.
 */
static int ring_send(struct sock *sk, struct tcp_sm_conn *conn, struct msghdr *msg, size_t size)
{
	long timeo = sock_sndtimeo(sk, msg->msg_flags & MSG_DONTWAIT);
	int copied = 0, err = 0, n;

	sk_clear_bit(SOCKWQ_ASYNC_NOSPACE, sk);
	do {
		struct tcp_sm_io io = {
			.len = min_t(size_t, msg_data_left(msg), piece(conn)),
			.iter = &msg->msg_iter,
		};

		err = -EPIPE;
		if (sk->sk_err || (sk->sk_shutdown & SEND_SHUTDOWN))
			break;
		err = -EPROTO;
		if (conn->broken)
			break;
		/* Nobody reads any more: TCP finds out, and answers as it does. */
		if (tx_closed(conn)) {
			tcp_sm_conn_leave_tx(conn);
			if (tx_in_ring(conn))
				break;	/* a server that did not join says nothing of the kind */
		}
		err = 0;
		if (!io.len)
			break;
		if (!tx_in_ring(conn)) {
			err = tcp_sendmsg_locked(sk, msg, msg_data_left(msg));
			if (err > 0)
				copied += err;
			break;
		}
		n = tcp_sm_ops_sendmsg(conn, &io);
		err = n;
		if (n < 0)
			break;
		copied += n;
		err = n ? 0 : wait_space(sk, conn, &timeo);
	} while (!err && msg_data_left(msg));
	if (err == -EPROTO)
		tcp_sm_conn_break(conn);
	if (copied || err == -EPROTO)
		return copied ?: err;
	return err < 0 ? sk_stream_error(sk, msg->msg_flags, err) : 0;
}

/*
 * Bytes are copied, so a MSG_ZEROCOPY caller has its buffer back at once. The
 * notification is made first: once bytes are out, nothing may fail any more.
 */
static int ring_send_notify(struct sock *sk, struct tcp_sm_conn *conn, struct msghdr *msg,
			    size_t size)
{
	struct ubuf_info *uarg = NULL;
	int ret;

	if ((msg->msg_flags & MSG_ZEROCOPY) && !msg->msg_ubuf && size &&
	    sock_flag(sk, SOCK_ZEROCOPY)) {
		uarg = tcp_sm_zerocopy_alloc(sk, size);
		if (!uarg)
			return -ENOBUFS;
		uarg_to_msgzc(uarg)->zerocopy = 0;
		msg->msg_flags &= ~MSG_ZEROCOPY;	/* what TCP may send of it: no second one */
	}
	ret = ring_send(sk, conn, msg, size);
	if (ret > 0)
		net_zcopy_put(uarg);
	else
		net_zcopy_put_abort(uarg, true);
	return ret;
}

/* Leave the ring, if need be after the server joined. Lock held. 0 or an error. */
static int leave_for_good(struct sock *sk, struct tcp_sm_conn *conn, int flags)
{
	long timeo = sock_sndtimeo(sk, flags & MSG_DONTWAIT);

	for (;;) {
		tcp_sm_conn_leave(conn);
		if (!tx_in_ring(conn) || conn->broken || sk->sk_err)
			return 0;
		if (!timeo)
			return -EAGAIN;
		if (signal_pending(current))
			return sock_intr_errno(timeo);
		release_sock(sk);
		schedule_timeout_interruptible(1);
		timeo -= timeo != MAX_SCHEDULE_TIMEOUT;
		lock_sock(sk);
	}
}

static int ring_sendmsg(struct sock *sk, struct msghdr *msg, size_t size)
{
	int call = srcu_read_lock(&calls);
	struct tcp_sm_conn *conn;
	int ret = 0;

	lock_sock(sk);
	conn = tcp_sm_conn_of(sk);
	if (conn)
		tcp_sm_conn_hold(conn);
	else
		__module_get(THIS_MODULE);
	if (conn && conn->phase == TCP_SM_PENDING) {
		ret = wait_settled(sk, conn, sock_sndtimeo(sk, msg->msg_flags & MSG_DONTWAIT));
		if (ret)
			ret = sk_stream_error(sk, msg->msg_flags, ret);
	}
	if (!ret && tx_in_ring(conn) && (msg->msg_flags & MSG_OOB))
		ret = leave_for_good(sk, conn, msg->msg_flags);	/* urgent data is TCP's */
	if (!ret && tx_in_ring(conn))
		ret = ring_send_notify(sk, conn, msg, size);
	else if (!ret)
		ret = tcp_sendmsg_locked(sk, msg, size);
	release_sock(sk);
	if (ret == -EPROTO) {
		/* The reset first, so that its error is told once. */
		tcp_sm_conn_reset(conn, sk);
		ret = sk_stream_error(sk, msg->msg_flags, -EPIPE);
	}
	if (conn)
		tcp_sm_conn_put(conn);
	else
		module_put(THIS_MODULE);
	srcu_read_unlock(&calls, call);
	return ret;
}

/* Bytes that wait for a reader in the ring; a broken one counts as some. */
static int rx_unread(struct tcp_sm_conn *conn)
{
	int used = conn->broken ? 1 : tcp_sm_ring_used(conn, TCP_SM_RX);

	return used < 0 ? 1 : used;
}

static bool rx_ended(const struct sock *sk)
{
	return sk->sk_err || sk->sk_state == TCP_CLOSE || (sk->sk_shutdown & RCV_SHUTDOWN);
}

/* Without the lock too, so in RCU, as tx_ready(). */
static bool rx_ready(struct sock *sk, struct tcp_sm_conn *conn, int unread)
{
	bool ready;

	rcu_read_lock();
	ready = rx_ended(sk) || conn->phase != TCP_SM_RING || rx_unread(conn) > unread ||
		READ_ONCE(READ_ONCE(conn->lane[TCP_SM_RX])->left);
	rcu_read_unlock();
	return ready;
}

/*
 * May this receive do without a bell for the bytes that come after it? It may
 * when it blocks, for it asks for one in wait_data(), and when nobody else waits
 * for the socket: whoever begins to do so later is in the queue first, and then
 * polls, which asks for a bell that no receive takes back. A signal (O_ASYNC)
 * that is wanted later is asked for by nobody; tcp_sm_conns_arm() finds it.
 */
static bool rx_alone(struct sock *sk, struct tcp_sm_conn *conn, long timeo)
{
	bool alone;

	rcu_read_lock();
	alone = timeo && !sock_flag(sk, SOCK_FASYNC) && sk->sk_data_ready == conn->data_ready &&
		!skwq_has_sleeper(rcu_dereference(sk->sk_wq));
	rcu_read_unlock();
	return alone;
}

/*
 * Look at the ring for a moment: an answer may be quicker than going to sleep.
 * Only on a CPU that has nothing else to do, the poller aside, and without the
 * lock, which a sender on another one may want. Nobody asked for a bell yet, so
 * the answer costs its sender none. Only a hint: what is there is looked at again.
 */
static bool rx_look(struct sock *sk, struct tcp_sm_conn *conn, int unread)
{
	u64 end = ktime_get_ns() + tcp_sm_spin_ns();
	bool ready;

	release_sock(sk);
	do {
		ready = rx_ready(sk, conn, unread);
		cpu_relax();
	} while (!ready && ktime_get_ns() < end && !need_resched() && !signal_pending(current) &&
		 (single_task_running() || READ_ONCE(conn->region->poller.wanted)));
	lock_sock(sk);
	return ready;
}

/*
 * Spin, if that helped lately: after each attempt in vain twice as many receives
 * sleep at once, and one success forgets them. The first receive that waits never
 * spins, so connections of one request cost nothing. Lock held, let go between.
 */
static bool rx_spin(struct sock *sk, struct tcp_sm_conn *conn, int unread)
{
	if (!tcp_sm_spin_ns())
		return false;
	if (conn->spin_rest) {
		conn->spin_rest--;
		return false;
	}
	if (rx_look(sk, conn, unread)) {
		conn->spin_step = 0;
		return true;
	}
	conn->spin_step = tcp_sm_spin_in_vain(conn->spin_step);
	conn->spin_rest = conn->spin_step;
	return false;
}

/*
 * Sleep until more than `unread` bytes are there or something ended. Asks for a
 * bell before the last look, which the receive did not if it was alone.
 */
static int wait_data(struct sock *sk, struct tcp_sm_conn *conn, int unread, long *timeo)
{
	DEFINE_WAIT_FUNC(wait, woken_wake_function);
	int disconnects = sk->sk_disconnects;
	bool ready;
	int err = 0;

	if (!*timeo)
		return -EAGAIN;
	if (signal_pending(current))
		return sock_intr_errno(*timeo);
	ready = rx_spin(sk, conn, unread);
	if (disconnects != sk->sk_disconnects)
		return -EPIPE;
	if (ready)
		return 0;
	add_wait_queue(sk_sleep(sk), &wait);
	if (!conn->broken && conn->phase == TCP_SM_RING)
		tcp_sm_ops_poll(conn, 1);
	if (sk_wait_event(sk, timeo, rx_ready(sk, conn, unread), &wait) < 0)
		err = -EPIPE;
	remove_wait_queue(sk_sleep(sk), &wait);
	return err;
}

/* What recv returns when the stream ended before the first byte. */
static int rx_end(struct sock *sk)
{
	if (sock_flag(sk, SOCK_DONE))
		return 0;
	if (sk->sk_err)
		return sock_error(sk);
	if (sk->sk_shutdown & RCV_SHUTDOWN)
		return 0;
	return -ENOTCONN;
}

/* TCP bytes of a peer that did not say `left` are against the protocol. */
static bool rx_stray(struct sock *sk, struct tcp_sm_conn *conn)
{
	const struct sk_buff *skb = skb_peek(&sk->sk_receive_queue);

	/* `left` after the bytes were seen: their sender wrote it before them. */
	return skb && skb->len && !virt_load_acquire(&conn->lane[TCP_SM_RX]->left);
}

/*
 * Receive from the ring. Sets *rest when what follows is TCP's. Lock held.
 * Returns bytes or an error; -EPROTO: the ring is broken.
 */
static int ring_recv(struct sock *sk, struct tcp_sm_conn *conn, struct msghdr *msg, size_t len,
		     int flags, bool *rest)
{
	struct tcp_sm_half *rx = &conn->half[TCP_SM_RX];
	long timeo = sock_rcvtimeo(sk, flags & MSG_DONTWAIT);
	int target = sock_rcvlowat(sk, flags & MSG_WAITALL, len);
	int skip = max(sk_peek_offset(sk, flags), 0);
	int copied = 0, err = 0;

	if (flags & MSG_PEEK)
		target = clamp_t(int, conn->ring_size - skip, 1, target);
	for (;;) {
		bool ended = rx_ended(sk);
		/* Both ends of the stream are looked at before the ring: see above. */
		bool left = virt_load_acquire(&conn->lane[TCP_SM_RX]->left);
		/* Then the next piece is this call's, too, and nobody sleeps before it. */
		bool more = len - copied > piece(conn) &&
			    !(flags & MSG_PEEK) &&
			    tcp_sm_ring_used(conn, TCP_SM_RX) > (int)piece(conn);
		struct tcp_sm_io io = {
			.len = min_t(size_t, len - copied, more ? piece(conn) : INT_MAX),
			.iter = &msg->msg_iter,
		};
		int n;

		if (flags & MSG_PEEK) {
			io.flags |= TCP_SM_IO_PEEK;
			io.skip = skip + copied;
		}
		if (flags & MSG_TRUNC)
			io.flags |= TCP_SM_IO_DISCARD;
		if (more || rx_alone(sk, conn, timeo))
			io.flags |= TCP_SM_IO_ALONE;
		n = conn->broken ? -EPROTO : tcp_sm_ops_recvmsg(conn, &io);
		if (!n && !left && rx_stray(sk, conn))
			n = -EPROTO;
		/* Who emptied the ring may be its chunk's next life: no end, an error. */
		if (n >= 0 && !tcp_sm_conn_intact(conn))
			n = -EPROTO;
		if (n == -EPROTO)
			tcp_sm_conn_break(conn);
		err = n;
		if (n < 0) {
			if (more && !conn->broken)
				tcp_sm_ops_poll(conn, 1);	/* the wish that it left out */
			break;
		}
		copied += n;
		if (more && n)
			continue;
		if (copied >= target || (len ? copied == len : rx_unread(conn)))
			break;
		if (n)
			continue;
		if (left) {
			rx->left = 1;
			*rest = true;
			break;
		}
		if (ended) {
			/* After a short read the error is the next call's. */
			err = copied ? 0 : rx_end(sk);
			break;
		}
		err = wait_data(sk, conn, flags & MSG_PEEK ? skip + copied : 0, &timeo);
		if (err)
			break;
		if (conn->phase != TCP_SM_RING) {
			*rest = true;
			break;
		}
	}
	if (flags & MSG_PEEK)
		sk_peek_offset_fwd(sk, copied);
	else
		sk_peek_offset_bwd(sk, copied);
	return copied ?: err;
}

static int total_inq(struct sock *sk)
{
	struct tcp_sm_conn *conn = tcp_sm_conn_of(sk);
	int inq = tcp_inq(sk);

	if (rx_in_ring(conn) && !conn->broken)
		inq += max(tcp_sm_ring_used(conn, TCP_SM_RX), 0);
	return inq ?: sock_flag(sk, SOCK_DONE);
}

static void put_inq(struct sock *sk, struct msghdr *msg, int inq)
{
	msg->msg_inq = inq;
	if (tcp_sk(sk)->recvmsg_inq)
		put_cmsg(msg, SOL_TCP, TCP_CM_INQ, sizeof(inq), &inq);
}

static int recvmsg(TCP_SM_RECVMSG_ARGS)
{
	int ret = 0, inq = 0, hidden = 0, more;
	struct tcp_sm_conn *conn;
	struct proto *base;
	bool rest;

	lock_sock(sk);
	conn = tcp_sm_conn_of(sk);
	if (!conn) {
		base = sk->sk_prot;
		release_sock(sk);
		__module_get(THIS_MODULE);
		ret = base->recvmsg(TCP_SM_RECVMSG_PASS(sk, msg, len, flags));
		module_put(THIS_MODULE);
		return ret;
	}
	tcp_sm_conn_hold(conn);
	base = conn->base;
	if (conn->phase == TCP_SM_PENDING)
		ret = wait_settled(sk, conn, sock_rcvtimeo(sk, flags & MSG_DONTWAIT));
	rest = !rx_in_ring(conn) || (flags & MSG_OOB);
	if (!ret && !rest) {
		ret = ring_recv(sk, conn, msg, len, flags, &rest);
		inq = total_inq(sk);
		/* Nothing of the ring is left to read: the socket is TCP's. */
		if ((rest || (conn->stash && !rx_unread(conn))) && tcp_sm_conn_of(sk) == conn)
			tcp_sm_conn_leave(conn);
		/* A peek that went past the ring. */
		if (rest && (flags & MSG_PEEK) && rx_in_ring(conn))
			hidden = rx_unread(conn);
		rest = rest && (!ret || (ret > 0 && (flags & MSG_WAITALL) && !(flags & MSG_PEEK)));
	} else if (ret) {
		rest = false;
	}
	release_sock(sk);

	if (ret == -EPROTO) {
		/* The reset first, so that its error is told once. */
		tcp_sm_conn_reset(conn, sk);
		ret = sock_error(sk);
	} else if (rest) {
		/* An offset for peeks (SO_PEEK_OFF) counts the ring's bytes, TCP only its own. */
		if (hidden)
			sk_peek_offset_bwd(sk, hidden);
		more = base->recvmsg(TCP_SM_RECVMSG_PASS(sk, msg, len - ret, flags));
		if (hidden)
			sk_peek_offset_fwd(sk, hidden);
		/* After a short read the error is the next call's. */
		if (ret && more < 0 && sk->sk_state == TCP_CLOSE && more != -ENOTCONN &&
		    more != -EFAULT)
			WRITE_ONCE(sk->sk_err, -more);
		ret = ret ? ret + max(more, 0) : more;
	} else if (ret >= 0 && (msg->msg_get_inq || tcp_sk(sk)->recvmsg_inq)) {
		put_inq(sk, msg, inq);
	}
	tcp_sm_conn_put(conn);
	return ret;
}

static int ring_recvmsg(TCP_SM_RECVMSG_ARGS)
{
	int call = srcu_read_lock(&calls);
	int ret;

	if (unlikely(flags & MSG_ERRQUEUE))
		ret = tcp_sm_inet_recv_error(sk, msg, len);
	else
		ret = recvmsg(TCP_SM_RECVMSG_PASS(sk, msg, len, flags));
	srcu_read_unlock(&calls, call);
	return ret;
}

/* Does epoll or poll find bytes? Without the lock. */
static bool ring_is_readable(struct sock *sk)
{
	int lowat = max(READ_ONCE(sk->sk_rcvlowat), 1);
	const struct tcp_sock *tp = tcp_sk(sk);
	struct tcp_sm_conn *conn;
	bool readable = false;

	rcu_read_lock();
	conn = tcp_sm_conn_of(sk);
	if (conn && READ_ONCE(conn->phase) == TCP_SM_RING) {
		/* Of a peer that left, TCP has bytes too: both together are enough. */
		if (READ_ONCE(READ_ONCE(conn->lane[TCP_SM_RX])->left))
			lowat -= READ_ONCE(tp->rcv_nxt) - READ_ONCE(tp->copied_seq);
		readable = poll_ring(sk, conn, max(lowat, 1)) & TCP_SM_READABLE;
	}
	rcu_read_unlock();
	return readable;
}

static bool ring_memory_free(const struct sock *sk, int wake)
{
	struct tcp_sm_conn *conn;
	bool free = true;

	rcu_read_lock();
	conn = tcp_sm_conn_of(sk);
	if (conn && READ_ONCE(conn->phase) == TCP_SM_RING &&
	    !READ_ONCE(conn->half[TCP_SM_TX].left)) {
		free = tx_closed(conn) ||
		       (poll_ring((struct sock *)sk, conn, 1) & TCP_SM_WRITABLE);
		rcu_read_unlock();
		return free;
	}
	rcu_read_unlock();
	return tcp_prot.stream_memory_free(sk, wake);
}

static int ring_ioctl(struct sock *sk, int cmd, int *karg)
{
	int call = srcu_read_lock(&calls);
	int err = base_of(sk)->ioctl(sk, cmd, karg);
	struct tcp_sm_conn *conn;

	if (!err && (cmd == SIOCINQ || cmd == SIOCOUTQ)) {
		lock_sock(sk);
		conn = tcp_sm_conn_of(sk);
		if (rx_in_ring(conn) && !conn->broken)
			*karg += max(tcp_sm_ring_used(conn, cmd == SIOCINQ ? TCP_SM_RX :
								      TCP_SM_TX), 0);
		release_sock(sk);
	}
	srcu_read_unlock(&calls, call);
	return err;
}

/*
 * Another protocol wants the socket (kTLS): go back to TCP first, if that is
 * possible. Returns true if it was.
 */
static bool give_back(struct sock *sk)
{
	DEFINE_WAIT_FUNC(wait, woken_wake_function);
	struct tcp_sm_conn *conn;
	long timeo = HZ / 5;
	bool given;

	lock_sock(sk);
	conn = tcp_sm_conn_of(sk);
	if (conn) {
		tcp_sm_conn_hold(conn);
		tcp_sm_conn_leave(conn);
		add_wait_queue(sk_sleep(sk), &wait);
		while (timeo && conn->phase == TCP_SM_RING && !conn->stash && !rx_ended(sk) &&
		       !signal_pending(current))
			sk_wait_event(sk, &timeo, conn->phase != TCP_SM_RING || conn->stash ||
				      rx_ended(sk), &wait);
		remove_wait_queue(sk_sleep(sk), &wait);
		tcp_sm_conn_put(conn);
	}
	given = !tcp_sm_conn_of(sk);
	release_sock(sk);
	return given;
}

static int ring_setsockopt(struct sock *sk, int level, int name, sockptr_t value,
			   unsigned int len)
{
	struct proto *base = base_of(sk);
	int err = 0;
	int call;

	call = enter();
	/* A checkpoint must not miss bytes; IPV6_ADDRFORM and TCP_ULP see for themselves. */
	if (level == SOL_TCP && name == TCP_REPAIR)
		err = give_back(sk) ? 0 : -EBUSY;
	else if ((level == SOL_TCP && name == TCP_ULP) ||
		 (level == SOL_IPV6 && name == IPV6_ADDRFORM))
		give_back(sk);
	err = err ?: base->setsockopt(sk, level, name, value, len);
	leave(call);
	return err;
}

/*
 * This end reads nothing any more. Bytes that come from now on must be answered
 * with a reset, so the peer sends them by TCP. A writer that waits for room is
 * woken by the FIN that follows, or by the bell if that was sent before. Lock held.
 */
static void close_rx(struct sock *sk, struct tcp_sm_conn *conn)
{
	if (conn->broken)
		return;
	WRITE_ONCE(conn->lane[TCP_SM_RX]->closed, 1);
	virt_mb();	/* the word before FIN or bell, and before the look at what is unread */
	if (!((1 << sk->sk_state) & (TCPF_ESTABLISHED | TCPF_CLOSE_WAIT)))
		tcp_sm_conn_notify(conn);
}

static void ring_shutdown(struct sock *sk, int how)
{
	struct tcp_sm_conn *conn = tcp_sm_conn_of(sk);

	/* With one direction open TCP takes bytes for a reader that does not want them. */
	if (rx_in_ring(conn) && sk->sk_shutdown == SHUTDOWN_MASK)
		close_rx(sk, conn);
	base_of(sk)->shutdown(sk, how);
}

/*
 * SO_LINGER waits for nothing here: it is about bytes that the peer's kernel
 * does not have, and what is in the ring it has.
 */
static void ring_close(struct sock *sk, long timeout)
{
	struct proto *base = base_of(sk);
	struct tcp_sm_conn *conn;
	int call;

	call = enter();
	lock_sock(sk);
	conn = tcp_sm_conn_of(sk);
	if (rx_in_ring(conn)) {
		tcp_sm_conn_hold(conn);
		tcp_sm_ops_close(conn);
		close_rx(sk, conn);
		if (rx_unread(conn)) {
			/* As TCP does for unread data: a reset, not a FIN. */
			sock_set_flag(sk, SOCK_LINGER);
			sk->sk_lingertime = 0;
		}
		tcp_sm_conn_put(conn);
	}
	release_sock(sk);
	base->close(sk, timeout);
	leave(call);
}

/* Called with the lock held; sk_prot is TCP's when it returns. */
static int ring_disconnect(struct sock *sk, int flags)
{
	int call = srcu_read_lock(&calls);
	struct proto *base = base_of(sk);
	struct tcp_sm_conn *conn = tcp_sm_conn_of(sk);
	int err;

	if (conn)
		tcp_sm_conn_restore(conn);
	err = base->disconnect(sk, flags);
	srcu_read_unlock(&calls, call);
	return err;
}

/* An accepted socket gets its struct socket late: here is the first chance to see it. */
static void ring_release_cb(struct sock *sk)
{
	struct proto *base = base_of(sk);
	struct tcp_sm_conn *conn = tcp_sm_conn_of(sk);

	if (conn && !conn->base_ops && sk->sk_socket && !tcp_sm_proto_ops_install(conn))
		tcp_sm_conn_leave_tx(conn);
	base->release_cb(sk);
}

/* splice(2) from the socket: by copying, through recvmsg. */
static ssize_t ring_splice_read(struct socket *sock, loff_t *ppos, struct pipe_inode_info *pipe,
				size_t len, unsigned int flags)
{
	const struct proto_ops *base = base_ops_of(sock);
	struct sock *sk = sock->sk;
	struct tcp_sm_conn *conn;
	bool nonblock = (flags & SPLICE_F_NONBLOCK) || (sock->file->f_flags & O_NONBLOCK);
	bool in_ring;
	ssize_t ret = 0;
	int call;

	call = enter();
	lock_sock(sk);
	conn = tcp_sm_conn_of(sk);
	if (conn && conn->phase == TCP_SM_PENDING) {
		tcp_sm_conn_hold(conn);
		ret = wait_settled(sk, conn, sock_rcvtimeo(sk, nonblock));
		tcp_sm_conn_put(conn);
		conn = tcp_sm_conn_of(sk);
	}
	in_ring = rx_in_ring(conn);
	if (!ret && in_ring && nonblock && !rx_ready(sk, conn, 0))
		ret = -EAGAIN;
	release_sock(sk);
	if (!ret)
		ret = in_ring ? copy_splice_read(sock->file, ppos, pipe, len, flags) :
				base->splice_read(sock, ppos, pipe, len, flags);
	leave(call);
	return ret;
}

/* As TCP: who waits for more bytes than there are is woken when fewer are enough. Lock held. */
static int ring_set_rcvlowat(struct sock *sk, int value)
{
	int err = base_ops_of(sk->sk_socket)->set_rcvlowat(sk, value);

	if (!err && ring_is_readable(sk))
		sk->sk_data_ready(sk);
	return err;
}

/* Mapping the receive queue (TCP_ZEROCOPY_RECEIVE) would bypass the ring. */
static int ring_mmap(struct file *file, struct socket *sock, struct vm_area_struct *vma)
{
	return -ENODEV;
}

static struct ring_proto_ops *stream_ops_for(const struct proto_ops *base)
{
	struct ring_proto_ops *found = NULL;
	int i;

	spin_lock_bh(&stream_ops_lock);
	for (i = 0; i < ARRAY_SIZE(stream_ops) && !found; i++) {
		if (!stream_ops[i].base) {
			stream_ops[i].ops = *base;
			stream_ops[i].ops.splice_read = ring_splice_read;
			stream_ops[i].ops.mmap = ring_mmap;
			if (base->set_rcvlowat)
				stream_ops[i].ops.set_rcvlowat = ring_set_rcvlowat;
			stream_ops[i].base = base;
		}
		if (stream_ops[i].base == base)
			found = &stream_ops[i];
	}
	spin_unlock_bh(&stream_ops_lock);
	return found;
}

/* Lock held. False: this socket's operations are not known here. */
bool tcp_sm_proto_ops_install(struct tcp_sm_conn *conn)
{
	struct socket *sock = conn->sk->sk_socket;
	struct ring_proto_ops *ops;

	if (!sock || !sock->ops || !sock->ops->splice_read)
		return false;
	ops = stream_ops_for(sock->ops);
	if (!ops)
		return false;
	conn->base_ops = sock->ops;
	WRITE_ONCE(sock->ops, &ops->ops);
	return true;
}

void tcp_sm_proto_ops_restore(struct tcp_sm_conn *conn)
{
	struct socket *sock = conn->sk->sk_socket;

	if (conn->base_ops && sock && sock->ops == &stream_ops_for(conn->base_ops)->ops)
		WRITE_ONCE(sock->ops, conn->base_ops);
	conn->base_ops = NULL;
}

/* The ring's proto of a TCP proto, or NULL: somebody else's. */
struct proto *tcp_sm_proto_for(struct proto *base)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(protos); i++)
		if (protos[i].base == base)
			return &protos[i].prot;
	return NULL;
}

static void proto_init(struct ring_proto *proto, struct proto *base)
{
	proto->base = base;
	proto->prot = *base;
	proto->prot.sendmsg = ring_sendmsg;
	proto->prot.recvmsg = ring_recvmsg;
	proto->prot.close = ring_close;
	proto->prot.disconnect = ring_disconnect;
	proto->prot.shutdown = ring_shutdown;
	proto->prot.setsockopt = ring_setsockopt;
	proto->prot.ioctl = ring_ioctl;
	proto->prot.release_cb = ring_release_cb;
	proto->prot.sock_is_readable = ring_is_readable;
	proto->prot.stream_memory_free = ring_memory_free;
	proto->prot.psock_update_sk_prot = NULL;
}

void tcp_sm_proto_init(void)
{
	proto_init(&protos[0], &tcp_prot);
#if IS_ENABLED(CONFIG_IPV6)
	proto_init(&protos[1], &tcpv6_prot);
#endif
}

/* Nothing leads here any more; on return nobody is here. */
void tcp_sm_proto_exit(void)
{
	synchronize_rcu_tasks();	/* whoever was about to enter has entered */
	synchronize_srcu(&calls);
	synchronize_rcu_tasks();	/* whoever left may still be on the way to its caller */
}
