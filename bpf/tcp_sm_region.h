/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The ABI of the ring channel in shared memory and on the wire.
 *
 * Shared by the guest module (kmod/), the BPF programs, the hypervisor's
 * agent and the Ansible modules; plugins/module_utils/_model/region.py mirrors
 * it and tests/unit checks the two against each other.
 *
 * A region is one power-of-two shared file, one per trust domain:
 *
 *   0        superblock: identity and geometry        (written by the agent)
 *   4096     chunk table, TCP_SM_CHUNKS_MAX entries   (written by the agent)
 *   65536    chunks, each owned by one virtual machine
 *
 * A chunk:
 *
 *   0        chunk header
 *   4096     inbox: TCP_SM_CHUNKS_MAX rows of TCP_SM_SLOTS_MAX bits. Row i
 *            holds a bit for each slot of chunk i (in the row of the owner
 *            itself, its own slots): "somebody did something to this connection"
 *   135168   slots, 512 bytes each
 *   aligned  rings: for slot i two of ring_size bytes, client's data first
 *   to 4096
 *
 * A connection lives in a slot of the *client's* chunk. Whoever allocates,
 * frees: a slot is free again when both ends left it.
 *
 * Little endian, fixed width. Nothing in a region is trusted by a reader: each
 * value is copied once and checked before use. Offsets into a chunk are never
 * read from memory that another machine writes but computed from the geometry
 * that was copied and checked when the connection began.
 */
#ifndef TCP_SM_REGION_H
#define TCP_SM_REGION_H

#ifdef __KERNEL__
#include <linux/types.h>
#endif

#define TCP_SM_REGION_MAGIC	0x4e474552534d5354ULL	/* "TSMSREGN" */
#define TCP_SM_CHUNK_MAGIC	0x4b4e4843534d5354ULL	/* "TSMSCHNK" */
#define TCP_SM_REGION_VERSION	1

#define TCP_SM_CHUNKS_MAX	256
#define TCP_SM_SLOTS_MAX	4096
#define TCP_SM_RING_MIN		4096
#define TCP_SM_RING_MAX		(4U << 20)

#define TCP_SM_TABLE_OFFSET	4096
#define TCP_SM_CHUNKS_OFFSET	65536
#define TCP_SM_INBOX_OFFSET	4096
#define TCP_SM_INBOX_ROW	(TCP_SM_SLOTS_MAX / 8)
#define TCP_SM_SLOTS_OFFSET	(TCP_SM_INBOX_OFFSET + \
				 TCP_SM_CHUNKS_MAX * TCP_SM_INBOX_ROW)
#define TCP_SM_SLOT_SIZE	512

struct tcp_sm_superblock {
	__u64 magic;
	__u32 version;
	__u32 chunks;		/* entries of the table in use, at most TCP_SM_CHUNKS_MAX */
	__u64 size;		/* of the region, bytes, a power of two */
	__u8 id[16];		/* the region's identity: random, never on the wire */
	char name[64];		/* for people; NUL-terminated */
	char host[64];		/* the hypervisor's name or address; likewise */
};

enum tcp_sm_chunk_state {
	TCP_SM_CHUNK_FREE = 0,
	TCP_SM_CHUNK_ASSIGNED = 1,	/* `owner` may use it */
	TCP_SM_CHUNK_DEAD = 2,		/* the owner is gone; peers let go */
};

/* Index i of the table is chunk i, and i is also the IVSHMEM peer id. */
struct tcp_sm_chunk_entry {
	__u32 state;		/* enum tcp_sm_chunk_state */
	__u32 epoch;		/* another one for each life of the owner */
	__u64 offset;		/* in the region, multiple of 4096 */
	__u64 size;		/* bytes, multiple of 4096 */
	__u32 ring_size;	/* of one direction, a power of two */
	__u32 slots;		/* at most TCP_SM_SLOTS_MAX */
	char owner[64];		/* domain name or UUID; NUL-terminated */
	__u8 reserved[32];
};

/* Written by the owner's module when it takes the chunk, and by its peers. */
struct tcp_sm_chunk_header {
	__u64 magic;
	__u32 index;
	__u32 epoch;		/* of the life that wrote this header */
	__u32 beat;		/* counts on while its module looks after the region */
	__u32 awake;		/* 1: its module looks at the inbox all the time; ring no bell */
	__u8 pad[40];
	/* Bit i: row i of the inbox has something. Written by peers, own line. */
	__u64 summary[TCP_SM_CHUNKS_MAX / 64];
	__u32 attention;	/* 1: an epoch changed, look at the table */
	__u8 pad1[28];
	/*
	 * Entry i: the epoch of chunk i to which the owner has nothing old any
	 * more. Nobody uses a chunk before all others have seen its epoch, so
	 * that no connection of a former life writes into a slot of this one.
	 */
	__u32 seen[TCP_SM_CHUNKS_MAX];
};

/*
 * The word that both ends agree by: the connection's nonce above, the state
 * below. Only compare-and-swap after OFFERED was written, so that a recycled
 * slot, which has another nonce, is never mistaken.
 */
#define TCP_SM_SLOT_CLIENT_LEFT	0x10U
#define TCP_SM_SLOT_SERVER_LEFT	0x20U
#define TCP_SM_SLOT_FLAGS	0xffU
#define TCP_SM_SLOT_WORD(nonce, state) (((__u64)(nonce) << 32) | (state))

enum tcp_sm_slot_state {
	TCP_SM_SLOT_FREE = 0,
	TCP_SM_SLOT_OFFERED = 1,	/* the client waits for the SYN-ACK */
	TCP_SM_SLOT_ACTIVE = 2,		/* the client uses the rings */
	TCP_SM_SLOT_JOINED = 3,		/* so does the server */
	TCP_SM_SLOT_REJECTED = 4,	/* the server is not in the ring and will not be */
};

/* One direction. Two cache lines: the producer's and the consumer's. */
struct tcp_sm_lane {
	__u32 head;		/* bytes ever produced, modulo 2^32 */
	__u32 left;		/* 1: the producer goes on by TCP after `head` */
	__u32 want_space;	/* the producer asks for a doorbell */
	__u32 pad0[13];
	__u32 tail;		/* bytes ever consumed, modulo 2^32 */
	__u32 want_data;	/* the consumer asks for a doorbell */
	__u32 closed;		/* 1: the consumer reads nothing any more */
	__u32 pad1[13];
};

struct tcp_sm_slot {
	__u64 word;		/* TCP_SM_SLOT_WORD() */
	__u8 pad[56];
	struct tcp_sm_lane lane[2];	/* client to server, server to client */
	__u8 pad1[192];
};

/*
 * The TCP option of SYN (offer) and SYN-ACK (acceptance): experimental kind
 * 254 with an ExID, RFC 6994. Twenty bytes, all that a default SYN has left.
 * The tag proves knowledge of the region's identity without showing it; the
 * acceptance's is another function of the same nonce, so that a server which
 * echoes unknown options accepts nothing.
 */
#define TCP_SM_OPTION_KIND	254
#define TCP_SM_OPTION_EXID_0	0xc0
#define TCP_SM_OPTION_EXID_1	0x7c
#define TCP_SM_OPTION_LEN	20

enum tcp_sm_option_type {
	TCP_SM_OPTION_OFFER = 1,
	TCP_SM_OPTION_ACCEPT = 2,
};

struct tcp_sm_option {
	__u8 kind;
	__u8 len;
	__u8 exid[2];
	__u8 type;		/* enum tcp_sm_option_type */
	__u8 chunk;		/* of whoever sends the option */
	__u8 slot[2];		/* of the client's chunk, little endian */
	__u8 nonce[4];		/* little endian */
	__u8 tag[8];
};

#ifndef TCP_SM_ASSERT
#define TCP_SM_ASSERT(type, size) \
	_Static_assert(sizeof(type) == (size), #type " has another size")
#endif
TCP_SM_ASSERT(struct tcp_sm_superblock, 168);
TCP_SM_ASSERT(struct tcp_sm_chunk_entry, 128);
TCP_SM_ASSERT(struct tcp_sm_chunk_header, 1152);
TCP_SM_ASSERT(struct tcp_sm_lane, 128);
TCP_SM_ASSERT(struct tcp_sm_slot, TCP_SM_SLOT_SIZE);
TCP_SM_ASSERT(struct tcp_sm_option, TCP_SM_OPTION_LEN);

#endif
