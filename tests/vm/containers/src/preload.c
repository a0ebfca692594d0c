// SPDX-License-Identifier: Apache-2.0
// The library an attacker asks the loader to put into a trusted program. Status: 200 + errno if the open fails, else the secret on fd 1 and 42.
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

__attribute__((constructor)) static void borrow(void)
{
	const char *secret = getenv("ATTACK_SECRET");
	if (secret == NULL)
		return;
	int fd = open(secret, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		_exit(errno < 50 ? 200 + errno : 255);
	char text[256];
	ssize_t length = read(fd, text, sizeof text);
	_exit(length > 0 && write(1, text, (size_t)length) == length ? 42 : 255);
}
