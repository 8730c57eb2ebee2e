/*
 * pgkeeper - last words: the ledger says of which signal we died.
 *
 * A hanger that is our parent hears it from the kernel; one that is not, as
 * beside a container, would take a crash for an operator's SIGKILL.  Neither
 * hears whether somebody sent it: kill -ABRT for the sake of a core dump is
 * not the fault of the session whose event was being handled.
 */
#include "bouncer.h"

#include <signal.h>

#include "keeper/internal.h"

#define LAST_STACK	(64 * 1024)

static volatile uint32_t *died_of;

static void last_words(int signal_number, siginfo_t *info, void *context)
{
	/* sigaction(2): si_code is positive where the kernel sends it; abort() sends it by itself */
	bool sent = info->si_code <= 0 && info->si_pid != getpid();

	(void) context;
	*died_of = signal_number | (sent ? KEEPER_DIED_SENT : 0);
	/* SA_RESETHAND: the second time it does what it would have done without us */
	raise(signal_number);
}

void keeper_last_words(void)
{
#ifndef __SANITIZE_ADDRESS__	/* which has last words of its own */
	static const int numbers[] = { SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE, SIGSYS };
	/* the stack may be what has run out */
	static uint8_t stack[LAST_STACK];
	const stack_t place = { .ss_sp = stack, .ss_size = sizeof(stack) };
	struct sigaction action;
	unsigned i;

	died_of = &keeper_store.header->died_of;
	*died_of = 0;
	memset(&action, 0, sizeof(action));
	sigemptyset(&action.sa_mask);
	action.sa_sigaction = last_words;
	action.sa_flags = SA_SIGINFO | SA_RESETHAND | SA_NODEFER | SA_ONSTACK;
	sigaltstack(&place, NULL);
	for (i = 0; i < ARRAY_NELEM(numbers); i++)
		sigaction(numbers[i], &action, NULL);
#endif
}
