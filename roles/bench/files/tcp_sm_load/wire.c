// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright (c) 2026, the colocated.tcp_sm authors
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/time.h>
#include <sys/un.h>

#include "wire.h"

int ep;
char in[MAX_SIZE];
static char out[MAX_SIZE];

void die(const char *what)
{
	fprintf(stderr, "tcp_sm_load: %s: %s\n", what, strerror(errno));
	exit(1);
}

void parse_target(const char *text, const char *port, struct target *target)
{
	struct sockaddr_in *in4 = (void *)&target->address;
	struct sockaddr_un *un = (void *)&target->address;

	memset(target, 0, sizeof(*target));
	if (strchr(text, '/')) {
		un->sun_family = AF_UNIX;
		snprintf(un->sun_path, sizeof(un->sun_path), "%s", text);
		target->len = sizeof(*un);
		return;
	}
	in4->sin_family = AF_INET;
	in4->sin_port = htons(atoi(port));
	target->len = sizeof(*in4);
	if (inet_pton(AF_INET, text, &in4->sin_addr) != 1) {
		errno = EINVAL;
		die(text);
	}
}

void watch(struct conn *c, int op, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.ptr = c };

	if (epoll_ctl(ep, op, c->fd, &ev) < 0)
		die("epoll_ctl");
}

void want_write(struct conn *c, int on)
{
	if (c->hello.blocking)
		return;
	if (c->writing != on)
		watch(c, EPOLL_CTL_MOD, EPOLLIN | (on ? EPOLLOUT : 0));
	c->writing = on;
}

void no_delay(int fd, uint32_t mode)
{
	int one = 1;

	if (mode == PINGPONG || mode == SHORT)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

void make_blocking(struct conn *c)
{
	struct timeval stall = { .tv_sec = STALL_S };

	if (fcntl(c->fd, F_SETFL, fcntl(c->fd, F_GETFL) & ~O_NONBLOCK) < 0 ||
	    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &stall, sizeof(stall)) ||
	    setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &stall, sizeof(stall)))
		die("cannot make a socket blocking");
	epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, NULL);
}

/* After a failed call: may it be repeated? A blocking one that gave up may not. */
static int again(const struct conn *c)
{
	if (errno == EAGAIN && c->hello.blocking)
		errno = ETIMEDOUT;
	return errno == EAGAIN || errno == EINTR;
}

ssize_t get(struct conn *c, void *to, size_t size)
{
	ssize_t n = recv(c->fd, to, size, 0);

	if (n < 0)
		return again(c) ? -1 : 0;
	return n;
}

int put(struct conn *c, size_t size)
{
	while (c->put < size) {
		ssize_t n = send(c->fd, out + c->put, size - c->put, MSG_NOSIGNAL);

		if (n < 0 && again(c))
			return 0;
		if (n < 0)
			return -1;
		c->put += n;
		c->bytes += n;
	}
	return 1;
}
