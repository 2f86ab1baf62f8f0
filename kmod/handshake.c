// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The handshake: kfuncs that the sockops programs call, in this order.
 *
 *   client, TCP_CONNECT_CB       tcp_sm_offer()    takes a slot, the socket pends
 *   client, SYN is written       tcp_sm_option()   what the SYN carries
 *   server, SYN-ACK is written   tcp_sm_accept()   checks all that can fail
 *   client, ACTIVE_ESTABLISHED   tcp_sm_settle()   OFFERED -> ACTIVE, or TCP
 *   server, PASSIVE_ESTABLISHED  tcp_sm_join()     ACTIVE -> JOINED, or TCP
 *
 * Why both ends always agree. The client goes ACTIVE before its ACK leaves, and
 * the server decides when that ACK arrives, so what it finds is final:
 *
 *   ACTIVE with this nonce   the client uses the ring; the server joins, or if
 *                            it cannot: -> REJECTED, and the client resets the
 *                            connection
 *   OFFERED                  the client did not settle (its programs are gone);
 *                            -> REJECTED, after which it cannot go ACTIVE
 *   anything else            the client stayed on TCP and freed the slot
 *
 * A lost, delayed or repeated segment changes only when these steps run: a
 * repeated SYN carries the same nonce, ACTIVE_ESTABLISHED runs once, and a slot
 * that was taken again has another nonce.
 *
 * Each step answers 0 or the reason for TCP, enum tcp_sm_reason.
 */
#include <linux/bpf.h>
#include <linux/btf_ids.h>
#include <linux/filter.h>
#include <linux/module.h>
#include <linux/unaligned.h>
#include <net/mptcp.h>
#include <net/request_sock.h>

#include "channel.h"
#include "kfuncs.h"
#include "tcp_sm.h"

#ifdef TCP_SM_FAULTS
/* Bits: what goes wrong in tests of the agreement. */
enum { FAULT_NO_SETTLE = 1, FAULT_NO_JOIN = 2, FAULT_NO_SLOT = 4, FAULT_NO_TAG = 8 };
static unsigned int faults;
module_param(faults, uint, 0644);
MODULE_PARM_DESC(faults,
		 "1 client ignores acceptance, 2 server fails to join, 4 no slot, 8 bad tag");
#define FAULT(bit) (READ_ONCE(faults) & (bit))
#else
#define FAULT(bit) false
#endif

/* SYNs that carry an offer besides the first; what comes later is more important than a ring. */
#define OFFERS_MAX 1

static u64 option_tag(struct tcp_sm_region *region, u8 type, u8 chunk, u16 slot, u32 nonce)
{
	return siphash_1u64(type | chunk << 8 | (u64)slot << 16 | (u64)nonce << 32, &region->key);
}

static void option_fill(struct tcp_sm_region *region, struct tcp_sm_option *option, u8 type,
			u8 chunk, u16 slot, u32 nonce)
{
	option->kind = TCP_SM_OPTION_KIND;
	option->len = TCP_SM_OPTION_LEN;
	option->exid[0] = TCP_SM_OPTION_EXID_0;
	option->exid[1] = TCP_SM_OPTION_EXID_1;
	option->type = type;
	option->chunk = chunk;
	put_unaligned_le16(slot, option->slot);
	put_unaligned_le32(nonce, option->nonce);
	put_unaligned_le64(option_tag(region, type, chunk, slot, nonce), option->tag);
	if (FAULT(FAULT_NO_TAG))
		option->tag[0] ^= 1;
}

/* Is this option of type `type` and made by somebody who knows the region? 0 or a reason. */
static int option_check(struct tcp_sm_region *region, const struct tcp_sm_option *option, u8 type)
{
	u64 tag = option_tag(region, type, option->chunk, get_unaligned_le16(option->slot),
			     get_unaligned_le32(option->nonce));

	if (option->kind != TCP_SM_OPTION_KIND || option->len != TCP_SM_OPTION_LEN ||
	    option->exid[0] != TCP_SM_OPTION_EXID_0 || option->exid[1] != TCP_SM_OPTION_EXID_1 ||
	    option->type != type)
		return TCP_SM_R_NO_OFFER;
	return tag == get_unaligned_le64(option->tag) ? 0 : TCP_SM_R_OTHER_REGION;
}

/* What keeps any socket from the ring. 0 or a reason. */
static int socket_check(struct sock *sk)
{
	const struct tcp_sock *tp = tcp_sk(sk);

	if (sk_is_mptcp(sk))
		return TCP_SM_R_MPTCP;
	if (rcu_access_pointer(tp->fastopen_rsk))
		return TCP_SM_R_TFO;
	if (inet_csk_has_ulp(sk) || !tcp_sm_proto_for(sk->sk_prot))
		return TCP_SM_R_ULP;
	if (tp->repair)
		return TCP_SM_R_REPAIR;
	if (sock_flag(sk, SOCK_RCVTSTAMP) || READ_ONCE(sk->sk_tsflags))
		return TCP_SM_R_TIMESTAMP;
	return 0;
}

/* A client that must stay TCP, or goes where no other machine is. 0 or a reason. */
static int client_check(struct sock *sk)
{
	const struct tcp_sock *tp = tcp_sk(sk);
	const struct dst_entry *dst = __sk_dst_get(sk);

	if (tp->fastopen_connect || tp->fastopen_req)
		return TCP_SM_R_TFO;
	if (sk_is_mptcp(sk))
		return TCP_SM_R_MPTCP;	/* its subflows are the kernel's own sockets */
	if (sk->sk_kern_sock || !sk->sk_socket)
		return TCP_SM_R_BUSY;
	if (dst && (dst->dev->flags & IFF_LOOPBACK))
		return TCP_SM_R_SAME_GUEST;
	return socket_check(sk);
}

static int offer(struct tcp_sm_region *region, struct sock *sk)
{
	u32 nonce = get_random_u32();
	struct tcp_sm_conn *conn;
	int slot;

	if (!tcp_sm_region_ready(region) || READ_ONCE(region->closing))
		return TCP_SM_R_STARTING;
	slot = FAULT(FAULT_NO_SLOT) ? -ENOSPC : tcp_sm_slot_take(region, nonce);
	if (slot < 0)
		return TCP_SM_R_SLOTS;
	conn = tcp_sm_conn_new(region, sk, &region->own, slot, nonce, TCP_SM_IS_CLIENT);
	if (!conn) {
		tcp_sm_slot_return(region, slot, nonce);
		return TCP_SM_R_NO_MEMORY;
	}
	conn->phase = TCP_SM_PENDING;
	tcp_sm_conn_install(conn);
	if (!tcp_sm_proto_ops_install(conn)) {
		tcp_sm_conn_restore(conn);
		return TCP_SM_R_BUSY;
	}
	return 0;
}

/* The chunk of an option's sender, if that machine is alive and not us. 0 or a reason. */
static int peer_chunk(struct tcp_sm_region *region, const struct tcp_sm_option *option,
		      struct tcp_sm_chunk *chunk)
{
	struct tcp_sm_chunk_header *header;

	if (option->chunk == region->own.index)
		return TCP_SM_R_SAME_GUEST;
	if (tcp_sm_region_chunk(region, option->chunk, chunk))
		return TCP_SM_R_OTHER_REGION;
	header = chunk->base;
	if (READ_ONCE(header->magic) != TCP_SM_CHUNK_MAGIC ||
	    READ_ONCE(header->epoch) != chunk->epoch)
		return TCP_SM_R_OTHER_REGION;
	return 0;
}

/* A valid offer, and where it is. 0 or a reason. */
static int offer_find(struct tcp_sm_region *region, const struct tcp_sm_option *option,
		      struct tcp_sm_chunk *chunk)
{
	int reason = option_check(region, option, TCP_SM_OPTION_OFFER);

	reason = reason ?: peer_chunk(region, option, chunk);
	if (!reason && get_unaligned_le16(option->slot) >= chunk->slots)
		reason = TCP_SM_R_OTHER_REGION;
	return reason;
}

/* An offer that may be accepted. 0 or a reason. */
static int offer_check(struct tcp_sm_region *region, const struct tcp_sm_option *option,
		       struct tcp_sm_chunk *chunk)
{
	int reason = offer_find(region, option, chunk);

	if (!reason && (!tcp_sm_region_ready(region) || READ_ONCE(region->closing)))
		reason = TCP_SM_R_STARTING;
	return reason;
}

/*
 * What keeps a listener's children from the ring. 0 or a reason. Without the SYN
 * nobody joins, and a SYN cookie has neither that nor a listener. And somebody on
 * the way may drop what it does not know: repeated often, the answer is plain.
 */
static int listener_check(const struct request_sock *req)
{
	struct sock *listener = req->rsk_listener;

	if (!req->saved_syn || !listener)
		return TCP_SM_R_BUSY;
	if (req->num_timeout)
		return TCP_SM_R_UNCONFIRMED;
	if (tcp_rsk(req)->tfo_listener)
		return TCP_SM_R_TFO;
	if (rsk_is_mptcp(req))
		return TCP_SM_R_MPTCP;
	if (READ_ONCE(inet_csk(listener)->icsk_accept_queue.rskq_defer_accept))
		return TCP_SM_R_DEFER_ACCEPT;
	if (listener->sk_kern_sock)
		return TCP_SM_R_BUSY;
	return socket_check(listener);
}

/* The client got the acceptance: the ring is used from here on. */
static int settle(struct tcp_sm_region *region, struct tcp_sm_conn *conn,
		  const struct tcp_sm_option *option)
{
	struct tcp_sm_chunk chunk;
	int reason = option_check(region, option, TCP_SM_OPTION_ACCEPT);

	reason = reason ?: peer_chunk(region, option, &chunk);
	if (reason)
		return reason;
	if (get_unaligned_le16(option->slot) != conn->slot ||
	    get_unaligned_le32(option->nonce) != conn->nonce)
		return TCP_SM_R_OTHER_REGION;
	if (!tcp_sm_region_ready(region) || READ_ONCE(region->closing))
		return TCP_SM_R_STARTING;
	if (FAULT(FAULT_NO_SETTLE))
		return TCP_SM_R_UNCONFIRMED;
	conn->peer = chunk.index;
	conn->peer_epoch = chunk.epoch;
	conn->peer_header = chunk.base;
	if (!tcp_sm_slot_move(conn->shm, conn->nonce, TCP_SM_SLOT_OFFERED, TCP_SM_SLOT_ACTIVE))
		return TCP_SM_R_UNCONFIRMED;
	conn->settled = jiffies;
	WRITE_ONCE(conn->phase, TCP_SM_RING);
	inet_csk_exit_pingpong_mode(conn->sk);
	return 0;
}

/*
 * The client is in the ring and this end cannot be: whoever uses the socket is
 * told of a reset. The client finds the word, and sends it. Not SEND_SHUTDOWN: a
 * child that has it as it is established sends a FIN, and the client takes that
 * for a good end of what it never got.
 */
static void fail_child(struct sock *sk, struct tcp_sm_slot *shm, u32 nonce)
{
	tcp_sm_slot_move(shm, nonce, TCP_SM_SLOT_ACTIVE, TCP_SM_SLOT_REJECTED);
	sock_set_flag(sk, SOCK_LINGER);
	sk->sk_lingertime = 0;
	WRITE_ONCE(sk->sk_err, ECONNRESET);
	WRITE_ONCE(sk->sk_shutdown, RCV_SHUTDOWN);
}

/*
 * The client is there already, so even a region that closes takes the
 * connection, which leaves at once.
 */
static int join(struct tcp_sm_region *region, struct sock *sk, const struct tcp_sm_option *option)
{
	u32 nonce = get_unaligned_le32(option->nonce);
	u32 slot = get_unaligned_le16(option->slot);
	struct tcp_sm_conn *conn;
	struct tcp_sm_chunk chunk;
	struct tcp_sm_slot *shm;
	int reason = offer_find(region, option, &chunk);
	int check = reason ?: socket_check(sk);

	if (reason)
		return reason;
	shm = tcp_sm_slot_at(&chunk, slot);
	if (tcp_sm_slot_move(shm, nonce, TCP_SM_SLOT_OFFERED, TCP_SM_SLOT_REJECTED))
		return check ?: TCP_SM_R_UNCONFIRMED;
	if (READ_ONCE(shm->word) != TCP_SM_SLOT_WORD(nonce, TCP_SM_SLOT_ACTIVE))
		return check ?: TCP_SM_R_UNCONFIRMED;
	conn = check || FAULT(FAULT_NO_JOIN) ? NULL :
	       tcp_sm_conn_new(region, sk, &chunk, slot, nonce, TCP_SM_IS_SERVER);
	if (!conn) {
		fail_child(sk, shm, nonce);
		return check ?: TCP_SM_R_NO_MEMORY;
	}
	conn->peer = chunk.index;
	conn->peer_epoch = chunk.epoch;
	conn->peer_header = chunk.base;
	if (!tcp_sm_slot_move(shm, nonce, TCP_SM_SLOT_ACTIVE, TCP_SM_SLOT_JOINED)) {
		u64 word = READ_ONCE(shm->word);

		conn->shm = NULL;
		tcp_sm_conn_put(conn);
		/* Free, or taken again: the client goes on by TCP, or its reset comes. */
		if (word >> 32 == nonce && word != TCP_SM_SLOT_WORD(nonce, TCP_SM_SLOT_FREE))
			fail_child(sk, shm, nonce);
		return TCP_SM_R_UNCONFIRMED;
	}
	conn->phase = TCP_SM_RING;
	tcp_sm_conn_install(conn);
	/*
	 * The count of connections before `closing`, which a drain here has
	 * reversed, and the place in the inbox before the client's `left`: its bell
	 * may have come too early.
	 */
	virt_mb();
	if (READ_ONCE(region->closing) || READ_ONCE(conn->lane[TCP_SM_RX]->left))
		tcp_sm_conn_leave_soon(conn);
	return 0;
}

__bpf_kfunc_start_defs();

/*
 * The verifier knows a program's context by the name of the type that programs
 * see; what is passed is the kernel's.
 */

/* Client, before the SYN. */
__bpf_kfunc int tcp_sm_offer(struct bpf_sock_ops *skops)
{
	struct bpf_sock_ops_kern *ctx = (struct bpf_sock_ops_kern *)skops;
	struct tcp_sm_region *region;
	struct sock *sk = ctx->sk;
	int reason;

	if (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB || sk->sk_state != TCP_SYN_SENT)
		return TCP_SM_R_BUSY;
	if (tcp_sm_conn_of(sk))
		tcp_sm_conn_restore(tcp_sm_conn_of(sk));	/* of an attempt that failed */
	region = tcp_sm_region_get();
	if (!region)
		return TCP_SM_R_NO_REGION;
	reason = client_check(sk) ?: offer(region, sk);
	tcp_sm_region_put(region);
	return reason;
}

/* Client, what its SYN carries. */
__bpf_kfunc int tcp_sm_option(struct bpf_sock_ops *skops, struct tcp_sm_option *option,
			      u32 option__sz)
{
	struct bpf_sock_ops_kern *ctx = (struct bpf_sock_ops_kern *)skops;
	struct tcp_sm_conn *conn;

	if (!ctx->is_fullsock || option__sz != sizeof(*option))
		return TCP_SM_R_BUSY;
	conn = tcp_sm_conn_of(ctx->sk);
	if (!conn || conn->phase != TCP_SM_PENDING)
		return TCP_SM_R_NO_OFFER;
	/* Somebody on the way may drop what it does not know. */
	if (inet_csk(ctx->sk)->icsk_retransmits > OFFERS_MAX)
		return TCP_SM_R_NO_OFFER;
	option_fill(conn->region, option, TCP_SM_OPTION_OFFER, conn->chunk, conn->slot,
		    conn->nonce);
	return 0;
}

/* Server, before the SYN-ACK: turns the SYN's option into the answer, in place. */
__bpf_kfunc int tcp_sm_accept(struct bpf_sock_ops *skops, struct tcp_sm_option *option,
			      u32 option__sz)
{
	struct bpf_sock_ops_kern *ctx = (struct bpf_sock_ops_kern *)skops;
	struct tcp_sm_region *region;
	struct tcp_sm_chunk chunk;
	int reason;

	if (ctx->is_fullsock || !ctx->sk || ctx->sk->sk_state != TCP_NEW_SYN_RECV ||
	    option__sz != sizeof(*option))
		return TCP_SM_R_BUSY;
	region = tcp_sm_region_get();
	if (!region)
		return TCP_SM_R_NO_REGION;
	reason = offer_check(region, option, &chunk) ?: listener_check(inet_reqsk(ctx->sk));
	if (!reason)
		option_fill(region, option, TCP_SM_OPTION_ACCEPT, region->own.index,
			    get_unaligned_le16(option->slot), get_unaligned_le32(option->nonce));
	tcp_sm_region_put(region);
	return reason;
}

/* Client, with the SYN-ACK's option; without one pass zeroes. */
__bpf_kfunc int tcp_sm_settle(struct bpf_sock_ops *skops, struct tcp_sm_option *option,
			      u32 option__sz)
{
	struct bpf_sock_ops_kern *ctx = (struct bpf_sock_ops_kern *)skops;
	struct tcp_sm_conn *conn;
	int reason;

	if (ctx->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB || option__sz != sizeof(*option))
		return TCP_SM_R_BUSY;
	conn = tcp_sm_conn_of(ctx->sk);
	if (!conn || conn->phase != TCP_SM_PENDING)
		return TCP_SM_R_STARTING;	/* withdrawn, as the region closes */
	reason = settle(conn->region, conn, option);
	if (reason)
		tcp_sm_conn_restore(conn);
	return reason;
}

/* Server, with the SYN's option, as the connection is established. */
__bpf_kfunc int tcp_sm_join(struct bpf_sock_ops *skops, struct tcp_sm_option *option,
			    u32 option__sz)
{
	struct bpf_sock_ops_kern *ctx = (struct bpf_sock_ops_kern *)skops;
	struct tcp_sm_region *region;
	int reason;

	if (ctx->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB || option__sz != sizeof(*option))
		return TCP_SM_R_BUSY;
	region = tcp_sm_region_get();
	if (!region)
		return TCP_SM_R_NO_REGION;
	reason = join(region, ctx->sk, option);
	tcp_sm_region_put(region);
	return reason;
}

__bpf_kfunc_end_defs();

BTF_KFUNCS_START(handshake_kfuncs)
BTF_ID_FLAGS(func, tcp_sm_offer)
BTF_ID_FLAGS(func, tcp_sm_option)
BTF_ID_FLAGS(func, tcp_sm_accept)
BTF_ID_FLAGS(func, tcp_sm_settle)
BTF_ID_FLAGS(func, tcp_sm_join)
BTF_KFUNCS_END(handshake_kfuncs)

/*
 * By program type alone: a filter that compares BTF ids does nothing in a
 * module, whose ids are relocated.
 */
static int only_sockops(const struct bpf_prog *prog, u32 kfunc_id)
{
	return prog->type == BPF_PROG_TYPE_SOCK_OPS ? 0 : -EACCES;
}

static const struct btf_kfunc_id_set handshake_kfunc_set = {
	.owner = THIS_MODULE,
	.set = &handshake_kfuncs,
	.filter = only_sockops,
};

int tcp_sm_handshake_init(void)
{
	/* No hook of its own for sockops programs: all types, filtered. */
	return register_btf_kfunc_id_set(BPF_PROG_TYPE_UNSPEC, &handshake_kfunc_set);
}
