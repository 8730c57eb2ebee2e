/*
 * pgkeeper - recv and send as the kernel has them.
 *
 * In place of libc's functions: their cancellation points cost more than all
 * that the keeper does around them, and nobody cancels PgBouncer's thread.
 * Inline, because after the kernel's work each return is mispredicted.
 */
#ifndef KEEPER_SYSTEM_H
#define KEEPER_SYSTEM_H

#include <errno.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

/*
 * The number of bytes, or a negative errno.  Never waits: O_NONBLOCK is shared
 * with all duplicates, and set again only some time after an adoption.
 */
static inline long keeper_system_call(long number, int fd, const void *data, size_t len)
{
#if defined(__x86_64__) && defined(__LP64__)
	register long flags __asm__("r10") = MSG_DONTWAIT;
	register long address __asm__("r8") = 0;
	register long address_len __asm__("r9") = 0;
	long res;

	__asm__ volatile ("syscall"
			  : "=a" (res)
			  : "a" (number), "D" ((long)fd), "S" (data), "d" (len), "r" (flags), "r" (address), "r" (address_len)
			  : "rcx", "r11", "memory");
	return res;
#elif defined(__aarch64__) && defined(__LP64__)
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = fd;
	register const void *x1 __asm__("x1") = data;
	register size_t x2 __asm__("x2") = len;
	register long flags __asm__("x3") = MSG_DONTWAIT;
	register long address __asm__("x4") = 0;
	register long address_len __asm__("x5") = 0;

	__asm__ volatile ("svc 0"
			  : "+r" (x0)
			  : "r" (x8), "r" (x1), "r" (x2), "r" (flags), "r" (address), "r" (address_len)
			  : "memory");
	return x0;
#else
	long res = syscall(number, fd, data, len, MSG_DONTWAIT, NULL, NULL);

	return res < 0 ? -errno : res;
#endif
}

/* again after a signal, as safe_recv() and safe_send() */
static inline ssize_t keeper_call_patiently(long number, int fd, const void *data, size_t len)
{
	long res;

	do {
		res = keeper_system_call(number, fd, data, len);
	} while (unlikely(res == -EINTR));
	if (unlikely(res < 0)) {
		errno = -res;
		return -1;
	}
	return res;
}

static inline ssize_t keeper_system_recv(int fd, void *dst, size_t len)
{
	return keeper_call_patiently(SYS_recvfrom, fd, dst, len);
}

static inline ssize_t keeper_system_send(int fd, const void *data, size_t len)
{
	return keeper_call_patiently(SYS_sendto, fd, data, len);
}

#endif
