// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright (c) 2026, the colocated.tcp_sm authors
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/un.h>
#include <unistd.h>

#include "wire.h"

#define BURST 16		/* writes per turn of the event loop */

/* Each server_… returns 0 when the connection is over. */
static int server_echo(struct conn *c)
{
	uint32_t size = c->hello.size;
	int done;

	if (c->got < size) {
		ssize_t n = get(c, in, size - c->got);

		if (n == 0)
			return 0;
		if (n > 0)
			c->got += n;
		if (c->got < size)
			return 1;
	}
	done = put(c, size);
	if (done == 1)
		c->got = c->put = 0;
	want_write(c, done == 0);
	return done >= 0 && !(done == 1 && c->hello.mode == SHORT);
}

static int server_sink(struct conn *c)
{
	ssize_t n = get(c, in, sizeof(in));

	if (n > 0)
		c->bytes += n;
	if (n != 0)
		return 1;
	if (send(c->fd, &c->bytes, sizeof(c->bytes), MSG_NOSIGNAL) < 0)
		perror("tcp_sm_load: cannot report the byte count");
	return 0;
}

static int server_source(struct conn *c)
{
	char stop;
	int done = 1;

	/* A byte or the end; nothing yet is the one error to be expected. */
	if (recv(c->fd, &stop, 1, MSG_DONTWAIT) >= 0 || errno != EAGAIN)
		c->stopping = 1;
	for (int i = 0; i < BURST && done == 1 && !(c->stopping && !c->put); i++) {
		done = put(c, c->hello.size);
		if (done == 1)
			c->put = 0;
	}
	want_write(c, 1);
	return done >= 0 && !(c->stopping && !c->put);
}

static int server_turn(struct conn *c)
{
	if (c->hello_got < sizeof(c->hello)) {
		ssize_t n = get(c, (char *)&c->hello + c->hello_got,
				sizeof(c->hello) - c->hello_got);

		c->hello_got += n > 0 ? n : 0;
		if (c->hello_got < sizeof(c->hello))
			return n != 0;
		if (c->hello.mode >= MODES || !c->hello.size || c->hello.size > MAX_SIZE)
			return 0;
		no_delay(c->fd, c->hello.mode);
		if (c->hello.blocking)
			make_blocking(c);
		else if (c->hello.mode != DOWN)
			return 1;	/* level-triggered: the rest is reported again */
	}
	switch (c->hello.mode) {
	case UP:
		return server_sink(c);
	case DOWN:
		return server_source(c);
	default:
		return server_echo(c);
	}
}

/* A turn, or with blocking calls the whole connection: there is one at a time. */
static int server_serve(struct conn *c)
{
	int more = server_turn(c);

	while (more && c->hello.blocking && c->hello_got == sizeof(c->hello))
		more = server_turn(c);
	return more;
}

void serve(struct target *target)
{
	sa_family_t family = target->address.ss_family;
	struct conn listener = { .fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0) };
	struct epoll_event events[64];
	int one = 1;

	setsockopt(listener.fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (family == AF_UNIX)
		unlink(((struct sockaddr_un *)&target->address)->sun_path);
	if (bind(listener.fd, (void *)&target->address, target->len) || listen(listener.fd, 1024))
		die("listen");
	watch(&listener, EPOLL_CTL_ADD, EPOLLIN);
	for (;;) {
		int n = epoll_wait(ep, events, 64, -1);

		for (int i = 0; i < n; i++) {
			struct conn *c = events[i].data.ptr;
			int fd;

			if (c != &listener) {
				if (server_serve(c))
					continue;
				close(c->fd);
				free(c);
				continue;
			}
			fd = accept4(listener.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
			if (fd < 0)
				continue;
			c = calloc(1, sizeof(*c));
			if (!c)
				die("calloc");
			c->fd = fd;
			watch(c, EPOLL_CTL_ADD, EPOLLIN);
		}
	}
}
