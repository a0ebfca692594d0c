// SPDX-License-Identifier: Apache-2.0
// The program process rules forbid: dynamic, so that the loader can be asked to run it. Says that it ran, by word and by status.
#include <unistd.h>

int main(void)
{
	static const char ran[] = "DENIED-RAN\n";
	return write(1, ran, sizeof ran - 1) == (ssize_t)(sizeof ran - 1) ? 42 : 43;
}
