// SPDX-License-Identifier: Apache-2.0
// A dynamic program that a policy trusts with the secret. It does nothing itself: what a preloaded library does in it is the question.
int main(void)
{
	return 0;
}
