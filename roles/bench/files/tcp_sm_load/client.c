// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright (c) 2026, the colocated.tcp_sm authors
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "wire.h"

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void pause_for(struct conn *c, int write)
{
	struct epoll_event ev;
	int n;

	if (c->hello.blocking)
		return;
	want_write(c, write);
	do
		n = epoll_wait(ep, &ev, 1, STALL_S * 1000);
	while (n < 0 && errno == EINTR);
	if (!n) {
		errno = ETIMEDOUT;
		die("no progress");
	}
}

static void open_conn(struct conn *c, struct target *target, struct hello hello)
{
	int err = 0;
	socklen_t size = sizeof(err);

	memset(c, 0, sizeof(*c));
	c->fd = socket(target->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	no_delay(c->fd, hello.mode);
	if (connect(c->fd, (void *)&target->address, target->len) && errno != EINPROGRESS)
		die("connect");
	watch(c, EPOLL_CTL_ADD, EPOLLIN);
	pause_for(c, 1);
	getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &err, &size);
	errno = err;
	if (err || send(c->fd, &hello, sizeof(hello), MSG_NOSIGNAL) != sizeof(hello))
		die("connect");
	c->hello = hello;
	if (hello.blocking)
		make_blocking(c);
}

static void exchange(struct conn *c, size_t size)
{
	int done;

	c->put = c->got = 0;
	while ((done = put(c, size)) == 0)
		pause_for(c, 1);
	if (done < 0)
		die("send");
	while (c->got < size) {
		ssize_t n;

		pause_for(c, 0);
		n = get(c, in, size - c->got);
		if (n == 0)
			die("the server closed in the middle of an answer");
		c->got += n > 0 ? n : 0;
	}
}

/* Streams until `end`, one write at least; returns the bytes that the server says it received. */
static uint64_t stream_up(struct conn *c, size_t size, double end)
{
	uint64_t seen = 0;

	do {
		int done = put(c, size);

		if (done < 0)
			die("send");
		if (done == 0)
			pause_for(c, 1);
		else
			c->put = 0;
	} while (now() < end || c->put);
	shutdown(c->fd, SHUT_WR);
	do
		pause_for(c, 0);
	while (get(c, &seen, sizeof(seen)) < 0);
	return seen;
}

static uint64_t stream_down(struct conn *c, double end)
{
	uint64_t seen = 0;
	int stopped = 0;

	for (;;) {
		ssize_t n;

		pause_for(c, 0);
		n = get(c, in, sizeof(in));
		if (n == 0)
			return seen;
		seen += n > 0 ? n : 0;
		if (!stopped && now() >= end) {
			stopped = 1;
			if (send(c->fd, "", 1, MSG_NOSIGNAL) != 1)
				die("send");
		}
	}
}

static uint64_t repeat(struct target *target, struct hello hello, double end)
{
	struct conn c;
	uint64_t ops = 0;

	if (hello.mode == PINGPONG)
		open_conn(&c, target, hello);
	do {
		if (hello.mode == SHORT)
			open_conn(&c, target, hello);
		exchange(&c, hello.size);
		if (hello.mode == SHORT) {
			pause_for(&c, 0);
			if (get(&c, in, 1) != 0)
				die("the server sent more than the answer");
			close(c.fd);
		}
		ops++;
	} while (now() < end);
	return ops;
}

static uint64_t stream(struct target *target, struct hello hello, double end)
{
	struct conn c;
	uint64_t seen;

	open_conn(&c, target, hello);
	if (hello.mode == DOWN)
		return stream_down(&c, end);
	seen = stream_up(&c, hello.size, end);
	if (seen != c.bytes) {
		fprintf(stderr, "tcp_sm_load: sent %lu bytes, the server received %lu\n",
			c.bytes, seen);
		exit(1);
	}
	return seen;
}

void load(struct target *target, struct hello hello, double seconds)
{
	double start = now();
	uint64_t ops, bytes;

	if (hello.mode == UP || hello.mode == DOWN) {
		bytes = stream(target, hello, start + seconds);
		ops = bytes / hello.size;
	} else {
		ops = repeat(target, hello, start + seconds);
		bytes = 2 * ops * hello.size;
	}
	printf("{\"ops\": %lu, \"bytes\": %lu, \"seconds\": %.6f}\n", ops, bytes, now() - start);
}
