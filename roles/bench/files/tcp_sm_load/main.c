// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright (c) 2026, the colocated.tcp_sm authors
/*
 * Load generator of the benchmark: non-blocking sockets and epoll on both ends,
 * as in nginx, redis or envoy, over TCP or AF_UNIX.  Debian's ping-pong tools
 * use blocking sockets or spin, so neither shows what a server would gain.
 * With `blocking` both ends sleep in send and recv, as a thread per connection
 * does.
 *
 *   tcp_sm_load serve  ADDRESS PORT
 *   tcp_sm_load MODE   ADDRESS PORT SIZE SECONDS [blocking]
 *
 * An ADDRESS with a slash is an AF_UNIX path (PORT is ignored).  MODE is
 *   pingpong  SIZE bytes there and back, one at a time on one connection
 *   up        a stream of SIZE-byte writes to the server
 *   down      the same from the server
 *   short     connect, SIZE bytes there and back, server closes; repeated
 *
 * The client prints one JSON line: operations, payload bytes moved, seconds.
 * It fails when the two ends do not agree about the number of bytes.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "wire.h"

static const char *const mode_names[MODES] = { "pingpong", "up", "down", "short" };

int main(int argc, char **argv)
{
	struct hello hello = { 0 };
	struct target target;

	signal(SIGPIPE, SIG_IGN);
	ep = epoll_create1(EPOLL_CLOEXEC);
	if (argc == 4 && !strcmp(argv[1], "serve")) {
		parse_target(argv[2], argv[3], &target);
		serve(&target);
	}
	hello.blocking = argc == 7 && !strcmp(argv[6], "blocking");
	argc -= hello.blocking;
	while (argc == 6 && hello.mode < MODES && strcmp(argv[1], mode_names[hello.mode]))
		hello.mode++;
	if (argc != 6 || hello.mode == MODES || atol(argv[4]) < 1 || atol(argv[4]) > MAX_SIZE) {
		fprintf(stderr, "usage: tcp_sm_load serve ADDRESS PORT\n"
			"       tcp_sm_load pingpong|up|down|short ADDRESS PORT SIZE SECONDS "
			"[blocking]\n"
			"SIZE is at most %u bytes\n", MAX_SIZE);
		return 2;
	}
	hello.size = atol(argv[4]);
	parse_target(argv[2], argv[3], &target);
	load(&target, hello, atof(argv[5]));
	return 0;
}
