/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright (c) 2026, the colocated.tcp_sm authors */
/*
 * uring probe        exit 77 when the kernel refuses io_uring
 * uring echo FD N    echo by io_uring RECV and SEND until EOF; N is the least
 *                    number of reads expected. Prints the final result of RECV.
 *
 * Raw system calls, so that no liburing is needed. A non-blocking descriptor makes
 * RECV complete with -EAGAIN; then a POLL_ADD is submitted, as liburing programs do.
 */
#include <errno.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct ring {
	int fd;
	unsigned int *sq_tail, *sq_mask, *sq_array;
	unsigned int *cq_head, *cq_tail, *cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
};

static int ring_open(struct ring *r)
{
	struct io_uring_params p = { 0 };
	char *sq, *cq;

	r->fd = syscall(__NR_io_uring_setup, 4, &p);
	if (r->fd < 0)
		return -errno;
	sq = mmap(NULL, p.sq_off.array + p.sq_entries * sizeof(unsigned int),
		  PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQ_RING);
	cq = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof(*r->cqes),
		  PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_CQ_RING);
	r->sqes = mmap(NULL, p.sq_entries * sizeof(*r->sqes), PROT_READ | PROT_WRITE,
		       MAP_SHARED, r->fd, IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || r->sqes == MAP_FAILED)
		return -errno;
	r->sq_tail = (unsigned int *)(sq + p.sq_off.tail);
	r->sq_mask = (unsigned int *)(sq + p.sq_off.ring_mask);
	r->sq_array = (unsigned int *)(sq + p.sq_off.array);
	r->cq_head = (unsigned int *)(cq + p.cq_off.head);
	r->cq_tail = (unsigned int *)(cq + p.cq_off.tail);
	r->cq_mask = (unsigned int *)(cq + p.cq_off.ring_mask);
	r->cqes = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
	return 0;
}

/* Submit one request, wait for its completion, return its result. */
static int ring_do(struct ring *r, int op, int fd, void *data, unsigned int len)
{
	unsigned int tail = *r->sq_tail, slot = tail & *r->sq_mask, head;
	struct io_uring_sqe *sqe = &r->sqes[slot];
	int result;

	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = op;
	sqe->fd = fd;
	sqe->addr = (unsigned long)data;
	sqe->len = len;
	if (op == IORING_OP_POLL_ADD)
		sqe->poll32_events = POLLIN;
	r->sq_array[slot] = slot;
	__atomic_store_n(r->sq_tail, tail + 1, __ATOMIC_RELEASE);
	while (syscall(__NR_io_uring_enter, r->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		if (errno != EINTR)
			return -errno;
	head = *r->cq_head;
	while (head == __atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE))
		syscall(__NR_io_uring_enter, r->fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
	result = r->cqes[head & *r->cq_mask].res;
	__atomic_store_n(r->cq_head, head + 1, __ATOMIC_RELEASE);
	return result;
}

static int echo(struct ring *r, int fd, long least)
{
	static char data[65536];
	long reads = 0;
	int got, sent, done;

	for (;;) {
		got = ring_do(r, IORING_OP_RECV, fd, data, sizeof(data));
		if (got == -EAGAIN) {
			ring_do(r, IORING_OP_POLL_ADD, fd, NULL, 0);
			continue;
		}
		if (got <= 0)
			break;
		reads++;
		for (done = 0; done < got; done += sent) {
			sent = ring_do(r, IORING_OP_SEND, fd, data + done, got - done);
			if (sent < 0)
				return 1;
		}
	}
	printf("last %d\n", got);
	return reads >= least ? 0 : 2;
}

int main(int argc, char **argv)
{
	struct ring r;
	int err = ring_open(&r);

	if (err < 0) {
		printf("io_uring_setup: %s\n", strerror(-err));
		return 77;
	}
	if (argc == 4 && !strcmp(argv[1], "echo"))
		return echo(&r, atoi(argv[2]), atol(argv[3]));
	return 0;
}
