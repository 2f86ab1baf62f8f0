// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A region: its geometry, copied and checked; its doorbells and inboxes; its
 * life from open to close. One region a guest: a machine belongs to one trust
 * domain.
 *
 * Starting clean. When this machine takes its chunk, connections of a former
 * life may still exist at the peers, and would write into slots that are used
 * again. So the new life gets another epoch, everybody is told, and no slot is
 * offered before each living peer wrote that epoch into its `seen` array,
 * which it does after the last of its old connections to us stopped touching
 * memory (conns_check). A peer that starts later has no old connections.
 */
#include <linux/delay.h>

#include "channel.h"

#define WATCH_INTERVAL (HZ / 2)

static unsigned int silence_s = 15;
module_param(silence_s, uint, 0644);
MODULE_PARM_DESC(silence_s, "After how long connections to a machine that hangs go on by TCP (s)");

static DEFINE_SPINLOCK(current_lock);
static struct tcp_sm_region *current_region;

static struct tcp_sm_superblock *superblock(struct tcp_sm_region *region)
{
	return region->base;
}

static struct tcp_sm_chunk_entry *table_entry(struct tcp_sm_region *region, u32 index)
{
	return region->base + TCP_SM_TABLE_OFFSET + index * sizeof(struct tcp_sm_chunk_entry);
}

struct tcp_sm_region *tcp_sm_region_get(void)
{
	struct tcp_sm_region *region;

	spin_lock_bh(&current_lock);
	region = current_region;
	if (region && !refcount_inc_not_zero(&region->refs))
		region = NULL;
	spin_unlock_bh(&current_lock);
	return region;
}

void tcp_sm_region_put(struct tcp_sm_region *region)
{
	if (refcount_dec_and_test(&region->refs))
		complete(&region->unused);
}

/* Bytes that a chunk of this geometry takes. */
static u64 chunk_needs(u32 slots, u32 ring_size)
{
	return ALIGN(TCP_SM_SLOTS_OFFSET + (u64)slots * TCP_SM_SLOT_SIZE, 4096) +
	       (u64)slots * 2 * ring_size;
}

/* Copy entry `index` of the table and check it. -ENOENT: nobody owns it. */
int tcp_sm_region_chunk(struct tcp_sm_region *region, u32 index, struct tcp_sm_chunk *chunk)
{
	struct tcp_sm_chunk_entry *entry;
	u64 offset, size;

	if (index >= TCP_SM_CHUNKS_MAX)
		return -EINVAL;
	entry = table_entry(region, index);
	if (READ_ONCE(entry->state) != TCP_SM_CHUNK_ASSIGNED)
		return -ENOENT;
	chunk->index = index;
	chunk->epoch = READ_ONCE(entry->epoch);
	chunk->ring_size = READ_ONCE(entry->ring_size);
	chunk->slots = READ_ONCE(entry->slots);
	offset = READ_ONCE(entry->offset);
	size = READ_ONCE(entry->size);

	if (!IS_ALIGNED(offset | size, 4096) || offset < TCP_SM_CHUNKS_OFFSET ||
	    offset > region->size || size > region->size - offset)
		return -EINVAL;
	if (!is_power_of_2(chunk->ring_size) || chunk->ring_size < TCP_SM_RING_MIN ||
	    chunk->ring_size > TCP_SM_RING_MAX)
		return -EINVAL;
	if (!chunk->slots || chunk->slots > TCP_SM_SLOTS_MAX ||
	    chunk_needs(chunk->slots, chunk->ring_size) > size)
		return -EINVAL;
	chunk->base = region->base + offset;
	return 0;
}

/* Is that life of chunk `index` still going on? */
bool tcp_sm_region_alive(struct tcp_sm_region *region, u32 index, u32 epoch)
{
	struct tcp_sm_chunk_entry *entry = table_entry(region, index);

	return READ_ONCE(entry->state) == TCP_SM_CHUNK_ASSIGNED &&
	       READ_ONCE(entry->epoch) == epoch;
}

/*
 * Is chunk `index` as that life left it, though its owner may be gone? The agent
 * declares it dead under the next epoch, and gives it away under one after that.
 */
bool tcp_sm_region_kept(struct tcp_sm_region *region, u32 index, u32 epoch)
{
	struct tcp_sm_chunk_entry *entry = table_entry(region, index);
	u32 now = READ_ONCE(entry->epoch);

	return now == epoch || (now == epoch % U32_MAX + 1 &&
				READ_ONCE(entry->state) == TCP_SM_CHUNK_DEAD);
}

/* Otherwise somebody else may have the own chunk, and nothing in it may be touched. */
bool tcp_sm_region_own_alive(struct tcp_sm_region *region)
{
	return tcp_sm_region_alive(region, region->own.index, region->own.epoch);
}

static struct tcp_sm_chunk_header *header_of(const struct tcp_sm_chunk *chunk)
{
	return chunk->base;
}

/* Has every living peer let go of our former lives? Asked until it is so. */
bool tcp_sm_region_ready(struct tcp_sm_region *region)
{
	struct tcp_sm_chunk chunk;
	u32 i;

	if (!tcp_sm_region_own_alive(region))
		return false;
	if (READ_ONCE(region->ready))
		return true;
	for (i = 0; i < TCP_SM_CHUNKS_MAX; i++) {
		if (i == region->own.index || tcp_sm_region_chunk(region, i, &chunk))
			continue;
		if (READ_ONCE(header_of(&chunk)->magic) != TCP_SM_CHUNK_MAGIC ||
		    READ_ONCE(header_of(&chunk)->epoch) != chunk.epoch)
			continue;	/* its module has not started: no connections */
		if (READ_ONCE(header_of(&chunk)->seen[region->own.index]) != region->own.epoch)
			return false;
	}
	WRITE_ONCE(region->ready, true);
	return true;
}

/* Tell all peers that the table changed. */
static void call_attention(struct tcp_sm_region *region)
{
	struct tcp_sm_chunk chunk;
	u32 i;

	for (i = 0; i < TCP_SM_CHUNKS_MAX; i++) {
		if (i == region->own.index || tcp_sm_region_chunk(region, i, &chunk))
			continue;
		WRITE_ONCE(header_of(&chunk)->attention, 1);
		region->provider->doorbell(region, i);
	}
}

/* Empty row `chunk` of the inbox. Bits are only hints: whom they name is checked. BH off. */
static void inbox_row(struct tcp_sm_region *region, u32 chunk)
{
	u64 *row = region->own.base + TCP_SM_INBOX_OFFSET + chunk * TCP_SM_INBOX_ROW;
	u32 word;

	for (word = 0; word < TCP_SM_INBOX_ROW / sizeof(u64); word++) {
		unsigned long bits;

		if (!READ_ONCE(row[word]))
			continue;
		bits = xchg(&row[word], 0);
		bits &= tcp_sm_conns_live(region, chunk, word);
		while (bits) {
			u32 bit = __ffs(bits);

			bits &= bits - 1;
			tcp_sm_conns_wake(region, chunk, word * 64 + bit);
		}
	}
}

/*
 * A machine that died between setting its bit and telling leaves a bit behind
 * that no bell will follow. Bits of a client's slots are in the client's row.
 */
static void inbox_catch_up(struct tcp_sm_region *region, u32 dead)
{
	local_bh_disable();
	inbox_row(region, dead);
	inbox_row(region, region->own.index);
	local_bh_enable();
}

/*
 * Rows of all connections, whatever the summary says: a bit that somebody set
 * without telling would keep its slot's bell silent for ever.
 */
static void inbox_all(struct tcp_sm_region *region)
{
	u32 row = 0;

	for (; tcp_sm_conns_row(region, &row); row++) {
		local_bh_disable();
		inbox_row(region, row);
		local_bh_enable();
	}
}

/* Nothing old of the lives before `epochs` is left; our own memory of it is not the peers'. */
static void say_seen(struct tcp_sm_region *region, u32 first, const u32 *epochs, u32 count)
{
	u32 i;

	for (i = 0; i < count; i++) {
		if (epochs[i] != region->seen[first + i])
			inbox_catch_up(region, first + i);
		region->seen[first + i] = epochs[i];
		if (!tcp_sm_region_own_alive(region))
			continue;
		/* After the last access to a slot of that life. */
		virt_store_release(&region->header->seen[first + i], epochs[i]);
	}
}

/*
 * Let go of connections whose peer's life ended, then say so. Not only on
 * request: a lost doorbell may cost half a second, not the connection.
 */
static void look_at_table(struct tcp_sm_region *region)
{
	u32 epochs[8];
	u32 i, j;

	for (i = 0; i < TCP_SM_CHUNKS_MAX; i += ARRAY_SIZE(epochs)) {
		bool changed = false, lost = false;

		for (j = 0; j < ARRAY_SIZE(epochs); j++) {
			epochs[j] = READ_ONCE(table_entry(region, i + j)->epoch);
			changed |= epochs[j] != region->seen[i + j];
			lost |= epochs[j] != READ_ONCE(region->header->seen[i + j]);
		}
		if (changed)
			tcp_sm_conns_check(region);
		if (changed || lost)
			say_seen(region, i, epochs, ARRAY_SIZE(epochs));
	}
}

/* Has machine `index` hung, or been suspended, for long? It may come back. */
bool tcp_sm_region_silent(struct tcp_sm_region *region, u32 index)
{
	return time_after(jiffies, READ_ONCE(region->beaten[index]) + READ_ONCE(silence_s) * HZ);
}

/* Show the peers that this machine runs, and note which of them do. */
static void beat(struct tcp_sm_region *region)
{
	/* A machine that did not run itself knows nothing of the others yet. */
	bool slept = time_after(jiffies, region->watched + 4 * WATCH_INTERVAL);
	struct tcp_sm_chunk chunk;
	u32 i, seen;

	WRITE_ONCE(region->header->beat, ++region->beat);
	for (i = 0; i < TCP_SM_CHUNKS_MAX; i++) {
		seen = region->beats[i];
		if (!tcp_sm_region_chunk(region, i, &chunk))
			seen = READ_ONCE(header_of(&chunk)->beat);
		if (slept || seen != region->beats[i])
			WRITE_ONCE(region->beaten[i], jiffies);
		region->beats[i] = seen;
	}
	region->watched = jiffies;
}

/* What tells peers that this life goes on, if somebody wrote over it. */
static void repair_header(struct tcp_sm_region *region)
{
	struct tcp_sm_chunk_header *header = region->header;

	WRITE_ONCE(header->awake, 0);	/* if it is true, the poller says so again */
	if (READ_ONCE(header->magic) == TCP_SM_CHUNK_MAGIC &&
	    READ_ONCE(header->epoch) == region->own.epoch)
		return;
	WRITE_ONCE(header->index, region->own.index);
	WRITE_ONCE(header->epoch, region->own.epoch);
	/* Peers look at the rest only behind the magic number. */
	virt_store_release(&header->magic, TCP_SM_CHUNK_MAGIC);
}

static void attention_work(struct work_struct *work)
{
	look_at_table(container_of(work, struct tcp_sm_region, attention));
}

static void watch_work(struct work_struct *work)
{
	struct tcp_sm_region *region = container_of(work, struct tcp_sm_region, watch.work);

	/* It may wait for the lock of a socket, which somebody may keep for long. */
	schedule_work(&region->attention);
	if (tcp_sm_region_own_alive(region)) {
		repair_header(region);
		beat(region);
		tcp_sm_region_event(region);	/* whatever bell was lost */
		inbox_all(region);
	}
	tcp_sm_conns_withdraw(region);
	tcp_sm_conns_confirm(region);
	tcp_sm_conns_arm(region);
	tcp_sm_conns_give(region);
	tcp_sm_conns_show(region);
	tcp_sm_conns_mistrust(region);
	tcp_sm_slot_sweep(region);
	schedule_delayed_work(&region->watch, WATCH_INTERVAL);
}

/* Is there something for tcp_sm_region_look()? */
bool tcp_sm_region_pending(struct tcp_sm_region *region)
{
	const u64 *summary = region->header->summary;
	u32 word;

	for (word = 0; word < TCP_SM_CHUNKS_MAX / 64; word++) {
		if (READ_ONCE(summary[word]))
			return true;
	}
	return READ_ONCE(region->header->attention);
}

/* Do what the inbox asks for; returns whether it asked for anything. BH off. */
bool tcp_sm_region_look(struct tcp_sm_region *region)
{
	bool found = false;
	u32 word;

	if (READ_ONCE(region->header->attention) && xchg(&region->header->attention, 0))
		schedule_work(&region->attention);
	for (word = 0; word < TCP_SM_CHUNKS_MAX / 64; word++) {
		unsigned long bits;

		if (!READ_ONCE(region->header->summary[word]))
			continue;
		bits = xchg(&region->header->summary[word], 0);
		found |= bits;
		while (bits) {
			u32 bit = __ffs(bits);

			bits &= bits - 1;
			inbox_row(region, word * 64 + bit);
		}
	}
	return found;
}

static void event_work(struct work_struct *work)
{
	struct tcp_sm_region *region = container_of(work, struct tcp_sm_region, event);

	if (tcp_sm_region_own_alive(region) && tcp_sm_region_look(region))
		tcp_sm_poller_rung(region);
}

/* The provider's interrupt. */
void tcp_sm_region_event(struct tcp_sm_region *region)
{
	queue_work(system_bh_wq, &region->event);
}

static int check_superblock(struct tcp_sm_region *region)
{
	struct tcp_sm_superblock *sb = superblock(region);
	u8 id[16];

	if (READ_ONCE(sb->magic) != TCP_SM_REGION_MAGIC) {
		dev_warn(region->dev, "not a region of tcp_sm: no magic number\n");
		return -ENODEV;
	}
	if (READ_ONCE(sb->version) != TCP_SM_REGION_VERSION) {
		dev_err(region->dev, "region has version %u, this module speaks %u\n",
			READ_ONCE(sb->version), TCP_SM_REGION_VERSION);
		return -EPROTONOSUPPORT;
	}
	if (READ_ONCE(sb->size) != region->size) {
		dev_err(region->dev, "region says %llu bytes, the device has %llu\n",
			READ_ONCE(sb->size), region->size);
		return -EINVAL;
	}
	memcpy(id, sb->id, sizeof(id));
	if (!memchr_inv(id, 0, sizeof(id))) {
		dev_err(region->dev, "region has no identity\n");
		return -EINVAL;
	}
	memcpy(&region->key, id, sizeof(region->key));
	return 0;
}

/* Take the own chunk for a new life: another epoch, everything in it empty. */
static int take_chunk(struct tcp_sm_region *region, u32 self)
{
	int err = tcp_sm_region_chunk(region, self, &region->own);

	if (err) {
		dev_err(region->dev, "chunk %u %s\n", self,
			err == -ENOENT ? "is not assigned to anybody" :
					 "has an impossible geometry");
		return err;
	}
	region->own.epoch++;
	WRITE_ONCE(table_entry(region, self)->epoch, region->own.epoch);
	virt_wmb();	/* whoever finds something emptied finds another epoch */
	region->header = region->own.base;
	memset(region->own.base, 0, TCP_SM_SLOTS_OFFSET);
	memset(region->own.base + TCP_SM_SLOTS_OFFSET, 0,
	       (u64)region->own.slots * TCP_SM_SLOT_SIZE);
	region->header->index = self;
	region->header->epoch = region->own.epoch;
	/* Peers look at the rest only behind the magic number. */
	virt_store_release(&region->header->magic, TCP_SM_CHUNK_MAGIC);
	return 0;
}

static int publish(struct tcp_sm_region *region)
{
	int err = 0;

	spin_lock_bh(&current_lock);
	if (current_region)
		err = -EBUSY;
	else
		current_region = region;
	spin_unlock_bh(&current_lock);
	if (err)
		dev_err(region->dev, "another region is in use; one machine has one region\n");
	return err;
}

/*
 * Open the region at `base`. `self` is the own chunk's index.
 * Returns the region or an error pointer; the caller owns the memory.
 */
struct tcp_sm_region *tcp_sm_region_open(const struct tcp_sm_provider *provider, void *data,
					 struct device *dev, void *base, u64 size, int self)
{
	struct tcp_sm_region *region;
	int err;

	if (size < TCP_SM_CHUNKS_OFFSET || self < 0)
		return ERR_PTR(-EINVAL);
	region = kzalloc(sizeof(*region), GFP_KERNEL);
	if (!region)
		return ERR_PTR(-ENOMEM);
	region->provider = provider;
	region->provider_data = data;
	region->dev = dev;
	region->base = base;
	region->size = size;
	region->watched = jiffies - 5 * WATCH_INTERVAL;	/* nobody is silent yet */
	refcount_set(&region->refs, 1);
	init_completion(&region->unused);
	INIT_WORK(&region->event, event_work);
	INIT_WORK(&region->attention, attention_work);
	INIT_DELAYED_WORK(&region->watch, watch_work);

	err = check_superblock(region) ?: tcp_sm_conns_init(region);
	if (err)
		goto free_region;
	err = take_chunk(region, self);
	if (err)
		goto free_region;
	err = tcp_sm_slots_init(region);
	if (err)
		goto clear_header;
	err = tcp_sm_poller_start(region);
	if (err)
		goto free_slots;
	err = publish(region);
	if (err)
		goto stop_poller;
	schedule_delayed_work(&region->watch, 0);
	call_attention(region);
	dev_info(region->dev, "chunk %u of region %.63s: %u slots of 2 x %u KiB\n", self,
		 superblock(region)->name, region->own.slots, region->own.ring_size >> 10);
	return region;

stop_poller:
	tcp_sm_poller_stop(region);
free_slots:
	tcp_sm_slots_free(region);
clear_header:
	WRITE_ONCE(region->header->magic, 0);	/* or peers wait for what we have seen */
free_region:
	tcp_sm_conns_free(region);
	kfree(region);
	return ERR_PTR(err);
}

/*
 * Send every connection back to TCP. Returns 0 when none is left and no peer
 * reads our memory any more, -ETIMEDOUT otherwise; new ones are refused either way.
 */
int tcp_sm_region_drain(struct tcp_sm_region *region, unsigned int timeout_ms)
{
	unsigned long end = jiffies + msecs_to_jiffies(timeout_ms);

	spin_lock_bh(&region->slot_lock);
	region->closing = true;
	spin_unlock_bh(&region->slot_lock);
	smp_mb();	/* `closing` before the count of connections; a join has it reversed */
	for (;;) {
		tcp_sm_conns_leave(region);
		tcp_sm_slot_sweep(region);
		if (!atomic_read(&region->nconns) && !READ_ONCE(region->slots_busy))
			return 0;
		if (time_after(jiffies, end))
			return -ETIMEDOUT;
		msleep(20);
	}
}

/* Everybody off, nobody in: afterwards the caller may unmap the memory. */
void tcp_sm_region_close(struct tcp_sm_region *region)
{
	if (tcp_sm_region_drain(region, 2000))
		tcp_sm_conns_abort(region);
	spin_lock_bh(&current_lock);
	current_region = NULL;
	spin_unlock_bh(&current_lock);
	tcp_sm_region_put(region);
	/* Handshakes that were under way when the last one looked. */
	while (!wait_for_completion_timeout(&region->unused, HZ))
		tcp_sm_conns_abort(region);

	region->provider->quiesce(region);
	cancel_delayed_work_sync(&region->watch);
	tcp_sm_poller_stop(region);
	cancel_work_sync(&region->event);
	cancel_work_sync(&region->attention);
	synchronize_rcu();	/* polls that began with the old lanes */
	WRITE_ONCE(region->header->magic, 0);
	tcp_sm_slots_free(region);
	tcp_sm_conns_free(region);
	kfree(region);
}
