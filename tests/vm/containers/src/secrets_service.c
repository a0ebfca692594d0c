// SPDX-License-Identifier: Apache-2.0
//
// A small secrets service, standing for the real ones: a native process, its secret files on a volume, its port on the loopback.
//
//   secrets_service serve DIRECTORY PORT AUDIT_LOG     GET /v1/secret/NAME, GET /healthz; opens files anew at each request
//   secrets_service get URL [CONNECT_SECONDS]          http://127.0.0.1:PORT/PATH; body to stdout; status 0 for 200, 1 for another answer, 2 for none
//
// The service answers 403 when it may not read the secret itself and 500 when it cannot append to its audit log: no answer without a record.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static void send_all(int fd, const char *data, size_t length)
{
	while (length > 0) {
		ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
		if (sent <= 0)
			return;
		data += sent;
		length -= (size_t)sent;
	}
}

static void reply(int fd, const char *status, const char *body, size_t length)
{
	char head[160];
	int size = snprintf(head, sizeof head, "HTTP/1.1 %s\r\nContent-Type: application/octet-stream\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", status, length);
	send_all(fd, head, (size_t)size);
	send_all(fd, body, length);
}

static void reply_text(int fd, const char *status, const char *body)
{
	reply(fd, status, body, strlen(body));
}

static bool record(const char *log, const char *request)
{
	char line[256];
	int fd = open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0) {
		fprintf(stderr, "secrets_service: audit log %s: %s\n", log, strerror(errno));
		return false;
	}
	int length = snprintf(line, sizeof line, "%lld %.200s\n", (long long)time(NULL), request);
	bool written = write(fd, line, (size_t)length) == length;
	close(fd);
	return written;
}

static void answer(int client, int directory, const char *log)
{
	char request[2048], name[128], body[65536];
	size_t have = 0;
	struct timeval patience = { .tv_sec = 5 };
	setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	do {
		ssize_t length = recv(client, request + have, sizeof request - 1 - have, 0);
		if (length <= 0)
			return;
		have += (size_t)length;
		request[have] = 0;
	} while (strstr(request, "\r\n\r\n") == NULL && have < sizeof request - 1);
	request[strcspn(request, "\r\n")] = 0;
	if (!record(log, request)) {
		reply_text(client, "500 Internal Server Error", "cannot write the audit log\n");
		return;
	}
	if (strncmp(request, "GET /healthz ", 13) == 0) {
		reply_text(client, "200 OK", "ok\n");
		return;
	}
	if (sscanf(request, "GET /v1/secret/%127[A-Za-z0-9_.-] HTTP/1.", name) != 1 || name[0] == '.') {
		reply_text(client, "404 Not Found", "no such thing\n");
		return;
	}
	int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0) {
		int error = errno;
		fprintf(stderr, "secrets_service: %s: %s\n", name, strerror(error));
		reply_text(client, error == ENOENT ? "404 Not Found" : "403 Forbidden", "cannot read it\n");
		return;
	}
	ssize_t length = read(fd, body, sizeof body);
	close(fd);
	if (length < 0)
		reply_text(client, "500 Internal Server Error", "cannot read it\n");
	else
		reply(client, "200 OK", body, (size_t)length);
}

static int serve(const char *secrets, const char *port, const char *log)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int one = 1, directory = open(secrets, O_PATH | O_DIRECTORY | O_CLOEXEC), listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (directory < 0 || listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0 ||
	    bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 64) < 0) {
		perror("secrets_service: cannot start");
		return 2;
	}
	printf("secrets_service: listening on 127.0.0.1:%s\n", port);
	fflush(stdout);
	for (;;) {
		int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (client < 0) {
			if (errno == EINTR || errno == ECONNABORTED)
				continue;
			perror("secrets_service: accept");
			return 2;
		}
		answer(client, directory, log);
		close(client);
	}
}

static int get(const char *url, double patience)
{
	char path[1024] = "/", host[64], request[1200], block[4096];
	unsigned port = 80;
	if (sscanf(url, "http://%63[0-9.]:%u%1023s", host, &port, path) < 2 || port > 65535) {
		fprintf(stderr, "secrets_service: %s: expected http://ADDRESS:PORT/PATH\n", url);
		return 2;
	}
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
		return 2;
	int fd = -1;
	for (int left = (int)(patience * 20);; left--) { // the service may only be starting
		fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
			break;
		if (fd < 0 || errno != ECONNREFUSED || left <= 0) {
			perror("secrets_service: cannot connect");
			return 2;
		}
		close(fd);
		usleep(50000);
	}
	int length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, host);
	send_all(fd, request, (size_t)length);
	FILE *stream = fdopen(fd, "r");
	int status = 0;
	if (stream == NULL || fgets(block, sizeof block, stream) == NULL || sscanf(block, "HTTP/1.%*d %d", &status) != 1) {
		fputs("secrets_service: no answer\n", stderr);
		return 2;
	}
	fprintf(stderr, "%s", block);
	while (fgets(block, sizeof block, stream) != NULL && strcmp(block, "\r\n") != 0)
		continue;
	size_t size;
	while ((size = fread(block, 1, sizeof block, stream)) > 0)
		fwrite(block, 1, size, stdout);
	return status == 200 ? 0 : 1;
}

int main(int count, char **arguments)
{
	signal(SIGPIPE, SIG_IGN);
	if (count == 5 && strcmp(arguments[1], "serve") == 0)
		return serve(arguments[2], arguments[3], arguments[4]);
	if ((count == 3 || count == 4) && strcmp(arguments[1], "get") == 0)
		return get(arguments[2], count == 4 ? atof(arguments[3]) : 0);
	fputs("usage: secrets_service serve DIRECTORY PORT AUDIT_LOG | get URL [CONNECT_SECONDS]\n", stderr);
	return 2;
}
