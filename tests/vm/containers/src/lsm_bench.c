// SPDX-License-Identifier: Apache-2.0
//
// Times what a policy engine sits in the way of, inside a container: lsm_bench OPERATION COUNT PATH prints nanoseconds for one.
//   open  open(PATH) and close     stat  stat(PATH)     exec  vfork, execve(PATH), wait
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int once(const char *operation, char *path)
{
	struct stat status;
	int fd, child, result = 0;

	switch (operation[0]) {
	case 'o':
		fd = open(path, O_RDONLY | O_CLOEXEC);
		return fd < 0 || close(fd) < 0;
	case 's':
		return stat(path, &status);
	case 'e':
		child = vfork();
		if (child == 0) {
			char *arguments[] = {path, NULL}, *environment[] = {NULL};
			execve(path, arguments, environment);
			_exit(127);
		}
		return child < 0 || waitpid(child, &result, 0) < 0 || result != 0;
	}
	return 1;
}

int main(int argc, char **argv)
{
	if (argc == 1)
		return 0; // what `exec` starts
	if (argc != 4 || !strchr("ose", argv[1][0])) {
		fprintf(stderr, "usage: lsm_bench open|stat|exec COUNT PATH\n");
		return 2;
	}
	long count = atol(argv[2]);
	long long start = now();
	for (long i = 0; i < count; i++)
		if (once(argv[1], argv[3])) {
			perror(argv[3]);
			return 1;
		}
	printf("%lld\n", (now() - start) / count);
	return 0;
}
