// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright (c) 2026, the colocated.tcp_sm authors
/*
 * Load generator of the benchmark: non-blocking sockets and epoll on both ends,
 * as in nginx, redis or envoy, over TCP or AF_UNIX.  Debian's ping-pong tools
 * use blocking sockets or spin, so neither shows what a server would gain.
 *
 *   tcp_sm_load serve  ADDRESS PORT
 *   tcp_sm_load MODE   ADDRESS PORT SIZE SECONDS
 *
 * An ADDRESS with a slash is an AF_UNIX path (PORT is ignored).  MODE is
 *   pingpong  SIZE bytes there and back, one at a time on one connection
 *   up        a stream of SIZE-byte writes to the server
 *   down      the same from the server
 *   short     connect, SIZE bytes there and back, server closes; repeated
 *
 * The client prints one JSON line: operations, payload bytes moved, seconds,
 * median and 99th percentile of one operation in microseconds (0 for streams).
 * It fails when the two ends do not agree about the number of bytes.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MAX_SIZE (1u << 20)
#define BURST 16		/* writes per turn of the event loop */
#define SAMPLES (1u << 20)
#define STALL_MS 10000		/* longer silence is a lost wake-up or lost bytes */

enum mode { PINGPONG, UP, DOWN, SHORT, MODES };
static const char *const mode_names[MODES] = { "pingpong", "up", "down", "short" };

/* The first 8 bytes of every connection; both ends share one machine. */
struct hello {
	uint32_t mode;
	uint32_t size;
};

struct conn {
	int fd;
	int writing;		/* EPOLLOUT is armed */
	struct hello hello;
	size_t hello_got;
	size_t got, put;	/* of the message being read or written */
	uint64_t bytes;
	int stopping;
};

static char in[MAX_SIZE], out[MAX_SIZE];
static double samples[SAMPLES];
static int ep;

static void die(const char *what)
{
	fprintf(stderr, "tcp_sm_load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static socklen_t address(const char *text, const char *port, struct sockaddr_storage *ss)
{
	struct sockaddr_in *in4 = (void *)ss;
	struct sockaddr_un *un = (void *)ss;

	memset(ss, 0, sizeof(*ss));
	if (strchr(text, '/')) {
		un->sun_family = AF_UNIX;
		snprintf(un->sun_path, sizeof(un->sun_path), "%s", text);
		return sizeof(*un);
	}
	in4->sin_family = AF_INET;
	in4->sin_port = htons(atoi(port));
	if (inet_pton(AF_INET, text, &in4->sin_addr) != 1) {
		errno = EINVAL;
		die(text);
	}
	return sizeof(*in4);
}

static void watch(struct conn *c, int op, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.ptr = c };

	if (epoll_ctl(ep, op, c->fd, &ev) < 0)
		die("epoll_ctl");
}

/* Want EPOLLOUT only while there is something that did not fit. */
static void want_write(struct conn *c, int on)
{
	if (c->writing != on)
		watch(c, EPOLL_CTL_MOD, EPOLLIN | (on ? EPOLLOUT : 0));
	c->writing = on;
}

/* Answers and requests leave at once; streams keep the kernel's coalescing. */
static void no_delay(int fd, uint32_t mode)
{
	int one = 1;

	if (mode == PINGPONG || mode == SHORT)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

/* recv: bytes, 0 at the end, -1 when it would block; any error is the end. */
static ssize_t get(struct conn *c, void *to, size_t size)
{
	ssize_t n = recv(c->fd, to, size, 0);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? -1 : 0;
	return n;
}

/* Sends the rest of a `size` byte message; 1 done, 0 blocked, -1 connection lost. */
static int put(struct conn *c, size_t size)
{
	while (c->put < size) {
		ssize_t n = send(c->fd, out + c->put, size - c->put, MSG_NOSIGNAL);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return 0;
		if (n < 0)
			return -1;
		c->put += n;
		c->bytes += n;
	}
	return 1;
}

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

	if (get(c, &stop, 1) >= 0)
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
		if (c->hello.mode != DOWN)
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

static void serve(struct sockaddr_storage *ss, socklen_t len)
{
	struct conn listener = { .fd = socket(ss->ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0) };
	struct epoll_event events[64];
	int one = 1;

	setsockopt(listener.fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (ss->ss_family == AF_UNIX)
		unlink(((struct sockaddr_un *)ss)->sun_path);
	if (bind(listener.fd, (void *)ss, len) || listen(listener.fd, 1024))
		die("listen");
	watch(&listener, EPOLL_CTL_ADD, EPOLLIN);
	for (;;) {
		int n = epoll_wait(ep, events, 64, -1);

		for (int i = 0; i < n; i++) {
			struct conn *c = events[i].data.ptr;
			int fd;

			if (c != &listener) {
				if (server_turn(c))
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

static void pause_for(struct conn *c, int write)
{
	struct epoll_event ev;
	int n;

	want_write(c, write);
	do
		n = epoll_wait(ep, &ev, 1, STALL_MS);
	while (n < 0 && errno == EINTR);
	if (!n) {
		errno = ETIMEDOUT;
		die("no progress");
	}
}

static void open_conn(struct conn *c, struct sockaddr_storage *ss, socklen_t len,
		      struct hello hello)
{
	int err = 0;
	socklen_t size = sizeof(err);

	memset(c, 0, sizeof(*c));
	c->fd = socket(ss->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	no_delay(c->fd, hello.mode);
	if (connect(c->fd, (void *)ss, len) && errno != EINPROGRESS)
		die("connect");
	watch(c, EPOLL_CTL_ADD, EPOLLIN);
	pause_for(c, 1);
	getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &err, &size);
	errno = err;
	if (err || send(c->fd, &hello, sizeof(hello), MSG_NOSIGNAL) != sizeof(hello))
		die("connect");
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

/* Streams until `end`; returns the bytes that the server says it received. */
static uint64_t stream_up(struct conn *c, size_t size, double end)
{
	uint64_t seen = 0;

	while (now() < end || c->put) {
		int done = put(c, size);

		if (done < 0)
			die("send");
		if (done == 0)
			pause_for(c, 1);
		else
			c->put = 0;
	}
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

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void load(struct sockaddr_storage *ss, socklen_t len, struct hello hello, double seconds)
{
	uint64_t ops = 0, bytes = 0;
	double start = now(), end = start + seconds, last, t = start, p50 = 0, p99 = 0;
	struct conn c;

	if (hello.mode != SHORT)
		open_conn(&c, ss, len, hello);
	if (hello.mode == UP) {
		bytes = stream_up(&c, hello.size, end);
		if (bytes != c.bytes) {
			fprintf(stderr, "tcp_sm_load: sent %lu bytes, the server received %lu\n",
				c.bytes, bytes);
			exit(2);
		}
	} else if (hello.mode == DOWN) {
		bytes = stream_down(&c, end);
	} else {
		for (; t < end; ops++, t = last) {
			if (hello.mode == SHORT)
				open_conn(&c, ss, len, hello);
			exchange(&c, hello.size);
			if (hello.mode == SHORT) {
				pause_for(&c, 0);
				if (get(&c, in, 1) != 0)
					die("the server sent more than the answer");
				close(c.fd);
			}
			last = now();
			samples[ops % SAMPLES] = last - t;
		}
		bytes = 2 * ops * hello.size;
		qsort(samples, ops < SAMPLES ? ops : SAMPLES, sizeof(*samples), compare);
		p50 = samples[(ops < SAMPLES ? ops : SAMPLES) / 2] * 1e6;
		p99 = samples[(ops < SAMPLES ? ops : SAMPLES) * 99 / 100] * 1e6;
	}
	if (hello.mode == UP || hello.mode == DOWN) {
		ops = bytes / hello.size;
		t = now();
	}
	printf("{\"ops\": %lu, \"bytes\": %lu, \"seconds\": %.6f, \"p50_us\": %.2f, \"p99_us\": %.2f}\n",
	       ops, bytes, t - start, p50, p99);
}

int main(int argc, char **argv)
{
	struct sockaddr_storage ss;
	struct hello hello = { 0 };
	socklen_t len;

	signal(SIGPIPE, SIG_IGN);
	ep = epoll_create1(EPOLL_CLOEXEC);
	if (argc == 4 && !strcmp(argv[1], "serve")) {
		len = address(argv[2], argv[3], &ss);
		serve(&ss, len);
	}
	while (argc == 6 && hello.mode < MODES && strcmp(argv[1], mode_names[hello.mode]))
		hello.mode++;
	if (argc != 6 || hello.mode == MODES || atol(argv[4]) < 1 || atol(argv[4]) > MAX_SIZE) {
		fprintf(stderr, "usage: tcp_sm_load serve ADDRESS PORT\n"
			"       tcp_sm_load pingpong|up|down|short ADDRESS PORT SIZE SECONDS\n"
			"SIZE is at most %u bytes\n", MAX_SIZE);
		return 2;
	}
	hello.size = atol(argv[4]);
	len = address(argv[2], argv[3], &ss);
	load(&ss, len, hello, atof(argv[5]));
	return 0;
}
