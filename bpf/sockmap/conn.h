/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The life of a connection's shared entry, in one word.
 *
 *   STARTING -> JOINING -> OPEN -> LEAVING -> LEFT
 *       \_____________________________/
 *
 * The word holds a tag of the pair, the phase, whether the server's end
 * joined, and which ends reached TCP_CLOSE; it changes by compare-and-swap
 * only. The kernel hands a deleted entry's memory out again at once: whoever
 * still holds its address fails on the tag and writes nothing. The one who
 * sets the last bit deletes: the second end that closes, or the client's where
 * the server's never joined, which DEAD then keeps from joining.
 */
#ifndef TCP_SM_CONN_H
#define TCP_SM_CONN_H

#include "maps.h"

#define PHASE 0x07ULL
#define SERVER_IN 0x08ULL
#define CLOSED(side) (0x10ULL << ((side) & 1))
#define TRIES 8		/* at most three parties change a word */

static __always_inline __u64 word_of(const struct tcp_sm_pair *pair)
{
	return (__u64)pair->client_isn << 32 | pair->server_isn;
}

static __always_inline __u64 hash_of(const struct tcp_sm_pair *pair)
{
	return word_of(pair) * 0x9e3779b97f4a7c15ULL;
}

static __always_inline __u64 first_word(const struct tcp_sm_pair *pair)
{
	return hash_of(pair) << 8 | CONN_STARTING;
}

static __always_inline bool is_of(__u64 word, const struct tcp_sm_pair *pair)
{
	return (word ^ hash_of(pair) << 8) < 256;
}

static __always_inline enum conn_phase phase_of(const struct conn *conn,
						const struct tcp_sm_pair *pair)
{
	__u64 word = READ_ONCE(conn->word);

	return is_of(word, pair) ? (enum conn_phase)(word & PHASE) : CONN_DEAD;
}

/* Moves from one phase to another; a full barrier where it succeeds. */
static __always_inline bool advance(struct conn *conn, const struct tcp_sm_pair *pair,
				    enum conn_phase from, enum conn_phase to, __u64 bits)
{
	for (int i = 0; i < TRIES; i++) {
		__u64 word = READ_ONCE(conn->word), next = (word & ~PHASE) | to | bits;

		if (!is_of(word, pair) || (word & PHASE) != from)
			return false;
		if (__sync_val_compare_and_swap(&conn->word, word, next) == word)
			return true;
	}
	return false;
}

/* The server's end cannot enter the sockhash after all. */
static __always_inline void unjoin(struct conn *conn, const struct tcp_sm_pair *pair)
{
	for (int i = 0; i < TRIES; i++) {
		__u64 word = READ_ONCE(conn->word);
		bool last = word & CLOSED(TCP_SM_CLIENT);
		__u64 next = (word & ~(PHASE | SERVER_IN)) | (last ? CONN_DEAD : CONN_LEAVING);

		if (!is_of(word, pair))
			return;
		if (__sync_val_compare_and_swap(&conn->word, word, next) != word)
			continue;
		if (last)
			bpf_map_delete_elem(&tcp_sm_conns, pair);
		return;
	}
}

/* @side reached TCP_CLOSE. Returns false if it had before. */
static __always_inline bool close_side(struct conn *conn, const struct tcp_sm_pair *pair,
				       __u8 side)
{
	for (int i = 0; i < TRIES; i++) {
		__u64 word = READ_ONCE(conn->word), next = word | CLOSED(side);
		bool last = word & CLOSED(other(side)) ||
			    (side == TCP_SM_CLIENT && !(word & SERVER_IN));

		if (!is_of(word, pair) || word & CLOSED(side))
			return false;
		if (last)
			next = (next & ~PHASE) | CONN_DEAD;
		if (__sync_val_compare_and_swap(&conn->word, word, next) != word)
			continue;
		if (last)
			bpf_map_delete_elem(&tcp_sm_conns, pair);
		return true;
	}
	return false;
}

#endif
