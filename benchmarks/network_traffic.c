/* SPDX-License-Identifier: Apache-2.0 */
/* Traffic for the benchmark of network policies: one way, it costs as little as it can beside the packets.
 *
 *   flood SOURCE/16 DESTINATION PORT COUNT   UDP packets of 64 bytes, each a flow of its own: nanoseconds a packet, of
 *                                            the clock and of the processor ("4100 3900")
 *   echo PORT                                send back what comes, from the address it came to
 *   trips DESTINATION/16 PORT COUNT          UDP there and back, each a flow of its own: nanoseconds a trip, losses
 *   accept PORT                              take TCP connections and end them
 *   connect DESTINATION PORT COUNT           make TCP connections and end them: nanoseconds a connection
 *   sink PORT                                take one TCP connection after another and read it to its end
 *   stream DESTINATION PORT MILLISECONDS     write to a TCP connection: bytes a second
 *
 * Servers write "ready" when they are. Sources of a flood are made up, so it needs a raw socket.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { PACKET = 64, BATCH = 64, SOCKETS = 64, CHUNK = 1 << 17 };

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t nanoseconds(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* xorshift: the same numbers each time. */
static uint32_t some(void)
{
	static uint64_t state = 88172645463325252;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state >> 16;
}

static struct sockaddr_in place(const char *address, const char *port)
{
	struct sockaddr_in found = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};

	if (inet_pton(AF_INET, address, &found.sin_addr) != 1) {
		fprintf(stderr, "found %s, expected an IPv4 address\n", address);
		exit(2);
	}
	return found;
}

static int listening(int kind, const char *port)
{
	struct sockaddr_in any = place("0.0.0.0", port);
	int one = 1, made = socket(AF_INET, kind, 0);

	setsockopt(made, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(made, (struct sockaddr *)&any, sizeof any))
		fail("bind");
	if (kind == SOCK_STREAM && listen(made, 4096))
		fail("listen");
	return made;
}

static void ready(void)
{
	puts("ready");
	fflush(stdout);
}

static int flood(const char *sources, const char *destination, const char *port, long count)
{
	static unsigned char packets[BATCH][PACKET];
	struct sockaddr_in to = place(destination, port);
	uint32_t network = ntohl(place(sources, "0").sin_addr.s_addr);
	struct mmsghdr messages[BATCH] = {0};
	struct iovec parts[BATCH];
	int out = socket(AF_INET, SOCK_RAW, IPPROTO_RAW), room = 8 << 20;
	int64_t clock, processor;
	long sent = 0;

	if (out < 0)
		fail("socket");
	setsockopt(out, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
	for (int i = 0; i < BATCH; i++) {
		struct iphdr *ip = (struct iphdr *)packets[i];
		struct udphdr *udp = (struct udphdr *)(packets[i] + sizeof *ip);

		*ip = (struct iphdr){.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP};
		ip->tot_len = htons(PACKET);
		ip->daddr = to.sin_addr.s_addr;
		udp->dest = to.sin_port;
		udp->len = htons(PACKET - sizeof *ip);
		parts[i] = (struct iovec){packets[i], PACKET};
		messages[i].msg_hdr = (struct msghdr){.msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &parts[i], .msg_iovlen = 1};
	}
	clock = nanoseconds(CLOCK_MONOTONIC);
	processor = nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
	while (sent < count) {
		int wanted = count - sent < BATCH ? count - sent : BATCH, done;

		for (int i = 0; i < wanted; i++) {
			struct iphdr *ip = (struct iphdr *)packets[i];
			struct udphdr *udp = (struct udphdr *)(packets[i] + sizeof *ip);
			uint32_t number = some();

			ip->saddr = htonl(network | (number & 0xffff));
			ip->check = 0; /* the kernel writes it */
			udp->source = htons(1024 + (number >> 16) % 60000);
		}
		done = sendmmsg(out, messages, wanted, 0);
		if (done < 0 && errno != ENOBUFS)
			fail("sendmmsg");
		sent += done > 0 ? done : 0;
	}
	clock = nanoseconds(CLOCK_MONOTONIC) - clock;
	processor = nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - processor;
	printf("%ld %ld\n", (long)(clock / sent), (long)(processor / sent));
	return 0;
}

static _Noreturn void echo(const char *port)
{
	int one = 1, here = listening(SOCK_DGRAM, port);
	char buffer[2048], control[256];

	setsockopt(here, IPPROTO_IP, IP_PKTINFO, &one, sizeof one);
	ready();
	for (;;) {
		struct sockaddr_in from;
		struct iovec part = {buffer, sizeof buffer};
		struct msghdr message = {.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &part, .msg_iovlen = 1,
					 .msg_control = control, .msg_controllen = sizeof control};
		ssize_t size = recvmsg(here, &message, 0);

		if (size < 0)
			continue;
		part.iov_len = size;
		for (struct cmsghdr *one_of = CMSG_FIRSTHDR(&message); one_of; one_of = CMSG_NXTHDR(&message, one_of)) {
			struct in_pktinfo *came = (struct in_pktinfo *)CMSG_DATA(one_of);

			if (one_of->cmsg_level != IPPROTO_IP || one_of->cmsg_type != IP_PKTINFO)
				continue;
			came->ipi_spec_dst = came->ipi_addr;
			came->ipi_ifindex = 0;
		}
		sendmsg(here, &message, 0);
	}
}

static int trips(const char *destinations, const char *port, long count)
{
	uint32_t network = ntohl(place(destinations, "0").sin_addr.s_addr);
	struct sockaddr_in to = place(destinations, port);
	struct timeval patience = {.tv_sec = 1};
	char buffer[PACKET - 28] = {0};
	int ends[SOCKETS];
	long lost = 0;
	int64_t clock;

	for (int i = 0; i < SOCKETS; i++) {
		ends[i] = socket(AF_INET, SOCK_DGRAM, 0);
		setsockopt(ends[i], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	}
	clock = nanoseconds(CLOCK_MONOTONIC);
	for (long i = 0; i < count; i++) {
		to.sin_addr.s_addr = htonl(network | (1 + some() % 65533));
		sendto(ends[i % SOCKETS], buffer, sizeof buffer, 0, (struct sockaddr *)&to, sizeof to);
		lost += recv(ends[i % SOCKETS], buffer, sizeof buffer, 0) < 0;
		if (lost > 5) {
			fprintf(stderr, "%ld of %ld round trips were lost\n", lost, i + 1);
			return 1;
		}
	}
	printf("%ld %ld\n", (long)((nanoseconds(CLOCK_MONOTONIC) - clock) / count), lost);
	return 0;
}

static _Noreturn void accepting(const char *port)
{
	int here = listening(SOCK_STREAM, port);

	ready();
	for (;;) {
		int one = accept(here, NULL, NULL);

		if (one >= 0)
			close(one);
	}
}

static int connecting(const char *destination, const char *port, long count)
{
	struct sockaddr_in to = place(destination, port);
	struct linger at_once = {.l_onoff = 1}; /* no TIME_WAIT: ports would run out */
	int64_t clock = nanoseconds(CLOCK_MONOTONIC);

	for (long i = 0; i < count; i++) {
		int one = socket(AF_INET, SOCK_STREAM, 0);

		setsockopt(one, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
		if (connect(one, (struct sockaddr *)&to, sizeof to))
			fail("connect");
		close(one);
	}
	printf("%ld\n", (long)((nanoseconds(CLOCK_MONOTONIC) - clock) / count));
	return 0;
}

static char chunk[CHUNK];

static _Noreturn void sink(const char *port)
{
	int here = listening(SOCK_STREAM, port);

	ready();
	for (;;) {
		int one = accept(here, NULL, NULL);

		while (one >= 0 && read(one, chunk, sizeof chunk) > 0)
			;
		close(one);
	}
}

static int stream(const char *destination, const char *port, long milliseconds)
{
	struct sockaddr_in to = place(destination, port);
	int one = socket(AF_INET, SOCK_STREAM, 0);
	int64_t begin, now, written = 0;

	if (connect(one, (struct sockaddr *)&to, sizeof to))
		fail("connect");
	begin = nanoseconds(CLOCK_MONOTONIC);
	do {
		ssize_t size = write(one, chunk, sizeof chunk);

		if (size < 0)
			fail("write");
		written += size;
		now = nanoseconds(CLOCK_MONOTONIC);
	} while (now - begin < milliseconds * INT64_C(1000000));
	printf("%.0f\n", written * 1e9 / (now - begin));
	return 0;
}

int main(int count, char **words)
{
	const char *mode = count > 1 ? words[1] : "";

	if (!strcmp(mode, "flood") && count == 6)
		return flood(words[2], words[3], words[4], atol(words[5]));
	if (!strcmp(mode, "echo") && count == 3)
		echo(words[2]);
	if (!strcmp(mode, "trips") && count == 5)
		return trips(words[2], words[3], atol(words[4]));
	if (!strcmp(mode, "accept") && count == 3)
		accepting(words[2]);
	if (!strcmp(mode, "connect") && count == 5)
		return connecting(words[2], words[3], atol(words[4]));
	if (!strcmp(mode, "sink") && count == 3)
		sink(words[2]);
	if (!strcmp(mode, "stream") && count == 5)
		return stream(words[2], words[3], atol(words[4]));
	fprintf(stderr, "usage: %s flood|echo|trips|accept|connect|sink|stream …; see the head of its source\n", words[0]);
	return 2;
}
