/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A kernel in the sense of the 64-bit boot protocol, for tests: it prints its command line and its initrd, reads the
 * first and last bytes of every page of RAM that it is told of, wakes the other processors through the mailbox that
 * MAILBOX names (0: there is none), each of which prints its letter and goes off line through COME_BACK, asks each
 * whether it is back, wakes them all once more, and powers off. With TD defined it talks by
 * TDVMCALLs, else by OUT. Position-independent; it begins at the 64-bit entry point.
 */

#define COM1		0x3f8
#define PM1_CNT		0x604
#define SLEEP_S5	0x2000

.macro tdvmcall_out size, port
	/* RDI: what; clobbers all but RBX, RSI, RBP, R8, R9 */
	xorl	%eax, %eax
	movl	$0xfc00, %ecx
	xorl	%r10d, %r10d
	movl	$30, %r11d
	movl	$\size, %r12d
	movl	$1, %r13d
	movl	$\port, %r14d
	movq	%rdi, %r15
	.byte	0x66, 0x0f, 0x01, 0xcc
.endm

	.text
	.code64
start:
	movq	%rsi, %r8			/* boot_params */
	leaq	stack_end(%rip), %rsp
	movl	0x228(%r8), %esi
1:	movzbl	(%rsi), %edi
	testl	%edi, %edi
	jz	2f
	call	print
	incq	%rsi
	jmp	1b
2:	movl	$'|', %edi
	call	print
	movl	0x218(%r8), %esi
	movl	0x21c(%r8), %ebx
1:	testl	%ebx, %ebx
	jz	2f
	movzbl	(%rsi), %edi
	call	print
	incq	%rsi
	decl	%ebx
	jmp	1b
2:	movl	$'|', %edi
	call	print

	/* Every page of every range of RAM below 4 GiB. */
	movzbl	0x1e8(%r8), %ebx
	leaq	0x2d0(%r8), %r9
range:	cmpl	$1, 16(%r9)
	jne	next_range
	movq	(%r9), %rsi
	movq	8(%r9), %rdx
	addq	%rsi, %rdx
	movabsq	$0x100000000, %rax
	cmpq	%rax, %rsi
	jae	next_range
1:	movb	(%rsi), %al
	movb	4095(%rsi), %al
	addq	$4096, %rsi
	cmpq	%rdx, %rsi
	jb	1b
	movl	$'r', %edi
	call	print
next_range:
	addq	$20, %r9
	decl	%ebx
	jnz	range
	movl	$'|', %edi
	call	print

	/* The others, one after the other: APIC ids 1 to CPUS - 1. */
#if MAILBOX
	xorl	%ebp, %ebp
again:	movl	$1, %ebx
wake:	cmpl	$CPUS, %ebx
	jae	test
	movl	$MAILBOX, %esi
	movl	%ebx, 4(%rsi)
	leaq	other(%rip), %rax
	movq	%rax, 8(%rsi)
	movw	$1, (%rsi)
1:	pause
	cmpw	$0, (%rsi)
	jne	1b
	incl	%ebx
1:	pause
	cmpl	%ebx, running(%rip)		/* so that letters come in order */
	jne	1b
	jmp	wake
test:	testl	%ebp, %ebp
	jnz	done
	incl	%ebp
	movl	$1, %ebx
2:	cmpl	$CPUS, %ebx
	jae	3f
	movl	%ebx, 4(%rsi)
	movw	$2, (%rsi)
1:	pause
	cmpw	$0, (%rsi)
	jne	1b
	movl	$'t', %edi
	call	print
	incl	%ebx
	jmp	2b
3:	movl	$1, running(%rip)
	jmp	again
done:
#endif
	movl	$SLEEP_S5, %edi
#ifdef TD
	tdvmcall_out 2, PM1_CNT
#else
	movl	$PM1_CNT, %edx
	movl	%edi, %eax
	outw	%ax, %dx
#endif
	jmp	.

other:
	movl	$1, %eax
	cpuid
	shrl	$24, %ebx
	leal	'a'(%rbx), %edi
	movq	%cr3, %rax			/* paging is on, and what vCPU 0 writes is seen */
	testq	%rax, %rax
	jz	.
	leaq	stack_end(%rip), %rsp		/* one at a time */
	subq	$512, %rsp
	call	print
	movl	$COME_BACK, %ecx
	incl	running(%rip)
	jmp	*%rcx

print:	/* RDI: a character; keeps RBX, RSI, R8, R9 */
#ifdef TD
	tdvmcall_out 1, COM1
#else
	movl	$COM1, %edx
	movl	%edi, %eax
	outb	%al, %dx
#endif
	ret

	.balign	4
running:
	.long	1
	.fill	1024, 1, 0
stack_end:
