// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Slots of the own chunk, and the state word by which both ends agree.
 *
 * Only the owner of a chunk takes and frees its slots, by bitmaps in its own
 * memory. A slot is
 *
 *   used        a connection of this kernel lives in it
 *   lingering   that connection is gone, the server's end is not: it may still
 *               read what was sent. Free again when the server's end sets
 *               SERVER_LEFT, or when that machine's life ended (its epoch).
 *
 * The word is changed by compare-and-swap alone from the offer on. It holds
 * the connection's nonce, so whoever comes late with an old nonce changes
 * nothing.
 */
#include <linux/bitmap.h>

#include "channel.h"

/* Lingering slots looked at when a slot is taken, to bound the work. */
#define SWEEP_BATCH 16

/* By then both ends have noticed that somebody wrote over the word: conns_confirm() looks. */
#define SPOILT_MAX (5 * HZ)

int tcp_sm_slots_init(struct tcp_sm_region *region)
{
	u32 slots = region->own.slots;

	spin_lock_init(&region->slot_lock);
	region->slots_used = bitmap_zalloc(slots, GFP_KERNEL);
	region->slots_lingering = bitmap_zalloc(slots, GFP_KERNEL);
	region->linger = kvcalloc(slots, sizeof(*region->linger), GFP_KERNEL);
	if (!region->slots_used || !region->slots_lingering || !region->linger) {
		tcp_sm_slots_free(region);
		return -ENOMEM;
	}
	return 0;
}

void tcp_sm_slots_free(struct tcp_sm_region *region)
{
	bitmap_free(region->slots_used);
	bitmap_free(region->slots_lingering);
	kvfree(region->linger);
}

struct tcp_sm_slot *tcp_sm_slot_at(const struct tcp_sm_chunk *chunk, u32 slot)
{
	return chunk->base + TCP_SM_SLOTS_OFFSET + (u64)slot * TCP_SM_SLOT_SIZE;
}

/* Ring `lane` of a slot: 0 client to server, 1 back. */
u8 *tcp_sm_slot_ring(const struct tcp_sm_chunk *chunk, u32 slot, u32 lane)
{
	u64 rings = ALIGN(TCP_SM_SLOTS_OFFSET + (u64)chunk->slots * TCP_SM_SLOT_SIZE, 4096);

	return chunk->base + rings + ((u64)slot * 2 + lane) * chunk->ring_size;
}

bool tcp_sm_slot_move(struct tcp_sm_slot *slot, u32 nonce, u32 from, u32 to)
{
	u64 old = TCP_SM_SLOT_WORD(nonce, from);

	return sync_cmpxchg(&slot->word, old, TCP_SM_SLOT_WORD(nonce, to)) == old;
}

static void slot_release(struct tcp_sm_region *region, u32 slot)
{
	if (__test_and_clear_bit(slot, region->slots_lingering))
		region->lingering--;
	__clear_bit(slot, region->slots_used);
	region->slots_busy--;
}

/* The flag by which the peer of this end lets go of the slot. */
u64 tcp_sm_slot_peer_left(const struct tcp_sm_conn *conn)
{
	return conn->side == TCP_SM_IS_CLIENT ? TCP_SM_SLOT_SERVER_LEFT : TCP_SM_SLOT_CLIENT_LEFT;
}

/*
 * May `word` be what both ends of a joined or settled connection made of it?
 * Otherwise somebody wrote over it, and they must not agree by it any more.
 */
bool tcp_sm_slot_intact(struct tcp_sm_conn *conn, u64 word)
{
	if (conn->side == TCP_SM_IS_CLIENT &&
	    word == TCP_SM_SLOT_WORD(conn->nonce, TCP_SM_SLOT_ACTIVE))
		return true;
	return (word & ~tcp_sm_slot_peer_left(conn)) ==
	       TCP_SM_SLOT_WORD(conn->nonce, TCP_SM_SLOT_JOINED);
}

/*
 * Has the server's end of a lingering slot let go? It cannot say so by a word
 * that is not this connection's, but lets go soon.
 */
static bool slot_over(struct tcp_sm_region *region, u32 slot)
{
	u64 word = READ_ONCE(tcp_sm_slot_at(&region->own, slot)->word);
	const struct tcp_sm_linger *linger = &region->linger[slot];
	u64 left = TCP_SM_SLOT_WORD(linger->nonce, TCP_SM_SLOT_JOINED | TCP_SM_SLOT_CLIENT_LEFT);

	if (!tcp_sm_region_alive(region, linger->peer, linger->epoch))
		return true;
	if (word == (left | TCP_SM_SLOT_SERVER_LEFT))
		return true;
	return word != left && time_after(jiffies, linger->since + SPOILT_MAX);
}

static void slot_sweep(struct tcp_sm_region *region, u32 batch)
{
	u32 slot;

	for_each_set_bit(slot, region->slots_lingering, region->own.slots) {
		if (!batch--)
			break;
		if (slot_over(region, slot))
			slot_release(region, slot);
	}
}

void tcp_sm_slot_sweep(struct tcp_sm_region *region)
{
	spin_lock_bh(&region->slot_lock);
	slot_sweep(region, region->own.slots);
	spin_unlock_bh(&region->slot_lock);
}

/*
 * Take the lowest free slot, so that few pages are ever touched, and offer it
 * under `nonce`. Returns the slot or -ENOSPC.
 */
int tcp_sm_slot_take(struct tcp_sm_region *region, u32 nonce)
{
	u32 slots = region->own.slots;
	struct tcp_sm_slot *shm;
	u32 slot;

	spin_lock_bh(&region->slot_lock);
	slot_sweep(region, SWEEP_BATCH);
	slot = find_first_zero_bit(region->slots_used, slots);
	if (slot >= slots && region->lingering) {
		slot_sweep(region, slots);
		slot = find_first_zero_bit(region->slots_used, slots);
	}
	if (slot >= slots || region->closing) {
		spin_unlock_bh(&region->slot_lock);
		return -ENOSPC;
	}
	__set_bit(slot, region->slots_used);
	region->slots_busy++;
	spin_unlock_bh(&region->slot_lock);

	shm = tcp_sm_slot_at(&region->own, slot);
	memset(shm->lane, 0, sizeof(shm->lane));
	shm->lane[0].want_data = 1;
	shm->lane[1].want_data = 1;
	/* Whoever finds the offer finds empty lanes. */
	virt_store_release(&shm->word, TCP_SM_SLOT_WORD(nonce, TCP_SM_SLOT_OFFERED));
	return slot;
}

/*
 * The client's end goes: returns true if the server's end is still there. A
 * server that comes after FREE finds no offer and stays on TCP, whose own reset
 * or FIN it gets. The bound is for a peer that scribbles over the word.
 */
static bool slot_server_stays(struct tcp_sm_conn *conn)
{
	u64 *word = &conn->shm->word;
	int tries;

	for (tries = 0; tries < 16; tries++) {
		u64 old = READ_ONCE(*word);
		bool joined = (old & TCP_SM_SLOT_FLAGS) == TCP_SM_SLOT_JOINED;
		u64 new = joined ? old | TCP_SM_SLOT_CLIENT_LEFT :
				   TCP_SM_SLOT_WORD(conn->nonce, TCP_SM_SLOT_FREE);

		if (old >> 32 != conn->nonce)
			return false;	/* somebody wrote over it, or has the chunk now */
		if (sync_cmpxchg(word, old, new) == old)
			return joined;
	}
	return false;
}

static void slot_leave_client(struct tcp_sm_conn *conn)
{
	struct tcp_sm_region *region = conn->region;
	bool stays = slot_server_stays(conn);

	spin_lock_bh(&region->slot_lock);
	if (stays) {
		region->linger[conn->slot] = (struct tcp_sm_linger){
			.peer = conn->peer,
			.epoch = conn->peer_epoch,
			.nonce = conn->nonce,
			.since = jiffies,
		};
		__set_bit(conn->slot, region->slots_lingering);
		region->lingering++;
	} else {
		slot_release(region, conn->slot);
	}
	spin_unlock_bh(&region->slot_lock);
}

/* This end will not touch the slot any more. Called once, the sender of the last byte first. */
void tcp_sm_slot_leave(struct tcp_sm_conn *conn)
{
	const u32 joined = TCP_SM_SLOT_JOINED, alone = joined | TCP_SM_SLOT_CLIENT_LEFT;
	const u32 left = TCP_SM_SLOT_SERVER_LEFT;

	if (!conn->shm)
		return;
	if (conn->side == TCP_SM_IS_CLIENT)
		slot_leave_client(conn);
	else if (!tcp_sm_slot_move(conn->shm, conn->nonce, joined, joined | left))
		tcp_sm_slot_move(conn->shm, conn->nonce, alone, alone | left);
	conn->shm = NULL;
}

/* A slot that was taken and never offered to anybody. */
void tcp_sm_slot_return(struct tcp_sm_region *region, u32 slot, u32 nonce)
{
	struct tcp_sm_slot *shm = tcp_sm_slot_at(&region->own, slot);

	WRITE_ONCE(shm->word, TCP_SM_SLOT_WORD(nonce, TCP_SM_SLOT_FREE));
	spin_lock_bh(&region->slot_lock);
	slot_release(region, slot);
	spin_unlock_bh(&region->slot_lock);
}
