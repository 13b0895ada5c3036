// SPDX-License-Identifier: GPL-2.0
/*
 * Division of 64-bit numbers on 32-bit ARM. The compiler calls a function of the ABI, which the
 * kernel leaves out so that such divisions are noticed. Few divisions of this module are on an I/O
 * path, and those divide sectors.
 */
#include <linux/math64.h>

#include "helpers/helpers.h"

u64 dmr_divide(u64 dividend, u64 divisor, u64 *remainder)
{
	return div64_u64_rem(dividend, divisor, remainder);
}

/* Returns the quotient in r0 and r1 and the remainder in r2 and r3, which C cannot express. */
asm(
"	.text\n"
"	.balign	4\n"
"	.globl	__aeabi_uldivmod\n"
"	.type	__aeabi_uldivmod, %function\n"
"__aeabi_uldivmod:\n"
"	push	{r4, lr}\n"
"	sub	sp, sp, #16\n"
"	add	r4, sp, #8\n"
"	str	r4, [sp]\n"
"	bl	dmr_divide\n"
"	ldrd	r2, r3, [sp, #8]\n"
"	add	sp, sp, #16\n"
"	pop	{r4, pc}\n"
"	.size	__aeabi_uldivmod, . - __aeabi_uldivmod\n"
);
