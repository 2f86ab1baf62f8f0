/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright (c) 2026, the colocated.tcp_sm authors */
/*
 * uring probe             exit 77 when the kernel refuses io_uring
 * uring echo FD N         echo by RECV and SEND until EOF; N is the least number of
 *                         reads expected
 * uring accept FD N       the same on a connection that ACCEPT takes from the listener FD
 * uring multishot FD N    echo what one RECV delivers again and again into given buffers
 * uring poll FD N         echo whenever one POLL_ADD of many shots says so
 *
 * Prints the final result of receiving. Raw system calls, so that no liburing is
 * needed. A non-blocking descriptor makes RECV and ACCEPT complete with -EAGAIN; then
 * a POLL_ADD is submitted, as liburing programs do.
 */
#include <errno.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

struct completion {
	unsigned long long user_data;
	int res;
	unsigned int flags;
};

#define BUFFERS 8
#define BUFFER_SIZE 4096

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

static struct io_uring_sqe *ring_next(struct ring *r, int op, int fd, void *data,
				      unsigned int len)
{
	struct io_uring_sqe *sqe = &r->sqes[*r->sq_tail & *r->sq_mask];

	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = op;
	sqe->fd = fd;
	sqe->addr = (unsigned long)data;
	sqe->len = len;
	return sqe;
}

/* Submit the request of ring_next(), and wait for so many completions. */
static int ring_submit(struct ring *r, unsigned int wait)
{
	unsigned int tail = *r->sq_tail;

	r->sq_array[tail & *r->sq_mask] = tail & *r->sq_mask;
	__atomic_store_n(r->sq_tail, tail + 1, __ATOMIC_RELEASE);
	while (syscall(__NR_io_uring_enter, r->fd, 1, wait, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

/* The next completion, waiting for it. */
static struct completion ring_wait(struct ring *r)
{
	unsigned int head = *r->cq_head;
	const struct io_uring_cqe *cqe = &r->cqes[head & *r->cq_mask];
	struct completion done;

	while (head == __atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE))
		syscall(__NR_io_uring_enter, r->fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
	done.user_data = cqe->user_data;
	done.res = cqe->res;
	done.flags = cqe->flags;
	__atomic_store_n(r->cq_head, head + 1, __ATOMIC_RELEASE);
	return done;
}

/* Submit one request, wait for its completion, return its result. */
static int ring_do(struct ring *r, int op, int fd, void *data, unsigned int len)
{
	struct io_uring_sqe *sqe = ring_next(r, op, fd, data, len);
	int err;

	if (op == IORING_OP_POLL_ADD)
		sqe->poll32_events = POLLIN;
	err = ring_submit(r, 1);
	return err ? err : ring_wait(r).res;
}

static int send_all(struct ring *r, int fd, char *data, int len)
{
	int done, sent;

	for (done = 0; done < len; done += sent) {
		sent = ring_do(r, IORING_OP_SEND, fd, data + done, len - done);
		if (sent == -EAGAIN)
			sent = 0;
		else if (sent < 0)
			return sent;
	}
	return 0;
}

static int finish(int last, long reads, long least)
{
	printf("last %d\n", last);
	return reads >= least ? 0 : 2;
}

static int echo(struct ring *r, int fd, long least)
{
	static char data[65536];
	long reads = 0;
	int got;

	for (;;) {
		got = ring_do(r, IORING_OP_RECV, fd, data, sizeof(data));
		if (got == -EAGAIN) {
			ring_do(r, IORING_OP_POLL_ADD, fd, NULL, 0);
			continue;
		}
		if (got <= 0)
			return finish(got, reads, least);
		reads++;
		if (send_all(r, fd, data, got))
			return 1;
	}
}

static int accept_one(struct ring *r, int door)
{
	int fd;

	do {
		fd = ring_do(r, IORING_OP_ACCEPT, door, NULL, 0);
		if (fd == -EAGAIN)
			ring_do(r, IORING_OP_POLL_ADD, door, NULL, 0);
	} while (fd == -EAGAIN);
	return fd;
}

static char buffers[BUFFERS][BUFFER_SIZE];

static int provide(struct ring *r, int first, int count)
{
	struct io_uring_sqe *sqe = ring_next(r, IORING_OP_PROVIDE_BUFFERS, count,
					     buffers[first], BUFFER_SIZE);

	sqe->off = first;
	sqe->user_data = 1;
	return ring_submit(r, 0);
}

static int arm_multishot(struct ring *r, int fd)
{
	struct io_uring_sqe *sqe = ring_next(r, IORING_OP_RECV, fd, NULL, 0);

	sqe->ioprio = IORING_RECV_MULTISHOT;
	sqe->flags = IOSQE_BUFFER_SELECT;
	return ring_submit(r, 0);
}

/* One request for all reads, so a second ring for what is written. */
static int multishot(struct ring *r, struct ring *writes, int fd, long least)
{
	struct completion cqe;
	long reads = 0;
	int id;

	if (provide(r, 0, BUFFERS) || arm_multishot(r, fd))
		return 1;
	for (;;) {
		cqe = ring_wait(r);
		if (cqe.user_data)
			continue; /* buffers were taken */
		if (cqe.res <= 0 && cqe.res != -ENOBUFS)
			return finish(cqe.res, reads, least);
		if (cqe.res > 0) {
			reads++;
			id = cqe.flags >> IORING_CQE_BUFFER_SHIFT;
			if (send_all(writes, fd, buffers[id], cqe.res) || provide(r, id, 1))
				return 1;
		}
		if (!(cqe.flags & IORING_CQE_F_MORE) && arm_multishot(r, fd))
			return 1;
	}
}

static int poll_multishot(struct ring *r, struct ring *writes, int fd, long least)
{
	struct completion cqe = { 0 };
	struct io_uring_sqe *sqe;
	long reads = 0;
	int got;

	for (;;) {
		if (!(cqe.flags & IORING_CQE_F_MORE)) {
			sqe = ring_next(r, IORING_OP_POLL_ADD, fd, NULL, IORING_POLL_ADD_MULTI);
			sqe->poll32_events = POLLIN;
			if (ring_submit(r, 0))
				return 1;
		}
		cqe = ring_wait(r);
		if (cqe.res < 0)
			return finish(cqe.res, reads, least);
		while ((got = recv(fd, buffers, sizeof(buffers), MSG_DONTWAIT)) > 0) {
			reads++;
			if (send_all(writes, fd, buffers[0], got))
				return 1;
		}
		if (!got || errno != EAGAIN)
			return finish(got ? -errno : 0, reads, least);
	}
}

int main(int argc, char **argv)
{
	struct ring r, writes;
	int fd, err = ring_open(&r);
	long least;

	if (!err)
		err = ring_open(&writes);
	if (err < 0) {
		printf("io_uring_setup: %s\n", strerror(-err));
		return 77;
	}
	if (argc != 4)
		return 0;
	fd = atoi(argv[2]);
	least = atol(argv[3]);
	if (!strcmp(argv[1], "accept"))
		fd = accept_one(&r, fd);
	if (!strcmp(argv[1], "multishot"))
		return multishot(&r, &writes, fd, least);
	if (!strcmp(argv[1], "poll"))
		return poll_multishot(&r, &writes, fd, least);
	return echo(&r, fd, least);
}
