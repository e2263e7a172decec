/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a TD runs instead of firmware: from the reset vector to a Linux kernel's 64-bit entry point.
 *
 * One page, the last below 4 GiB. The VMM has put everything where it belongs and has had it measured: boot_params with
 * the memory map, command line, ACPI tables, kernel and initrd. Left to do is what only the TD can do:
 *
 *	vCPU 0		page tables, long mode; accept the memory that the TD HOB calls unaccepted; enter the kernel
 *	the others	wait at the mailbox of ACPI's multiprocessor wake-up structure (ACPI 6.6, 5.2.12.19), and come
 *			back there, through its reset vector, when the system puts them off line
 *
 * A TD's vCPU starts (TDH.VP.INIT) in flat 32-bit protected mode without paging, EFER.LME and CR4.MCE already set:
 * ECX the address of the TD HOB, ESI the number of the vCPU. There is no stack here, and no IDT: nothing that is
 * executed here gives a #VE.
 *
 * Addresses come from the command line of the assembler (swtdx.image.shim.assemble): MAILBOX, PAGE_TABLES (seven zeroed
 * pages), BOOT_PARAMS, PAGE_SIZE, METADATA_ROOM. The reset vector of the wake-up structure is where the metadata end.
 */

#define TDG_VP_VMCALL		0
#define TDG_MEM_PAGE_ACCEPT	6
#define TDVMCALL_FATAL_ERROR	0x10003

/* Upper halves of status codes. */
#define TDX_OPERAND_BUSY		0x80000200
#define TDX_OPERAND_BUSY_HOST_PRIORITY	0x80000204
#define TDX_PAGE_SIZE_MISMATCH		0xc0000b0b

#define HOB_RESOURCE_DESCRIPTOR	0x0003
#define HOB_END			0xffff
#define RESOURCE_UNACCEPTED	7

#define MAILBOX_WAKE_UP		1
#define MAILBOX_TEST		2

#define CODE_SEGMENT		0x10	/* __BOOT_CS and __BOOT_DS of the boot protocol */
#define DATA_SEGMENT		0x18
#define CODE32_START		0x214	/* in boot_params: where the protected-mode kernel is */
#define ENTRY_64		0x200

#define FIFTH_LEVEL		(PAGE_TABLES + 6 * PAGE_SIZE)
#define LARGE_PAGE		0x200000
#define PRESENT_WRITABLE	0x003
#define PRESENT_WRITABLE_LARGE	0x083
#define CR4_PAE			0x20
#define CR4_LA57		0x1000
#define CR0_PG			0x80000000

.macro tdcall
	.byte	0x66, 0x0f, 0x01, 0xcc
.endm

.macro long_mode target
	movl	%cr4, %eax
	orl	$CR4_PAE, %eax
	movl	%eax, %cr4
	movl	$PAGE_TABLES, %eax
	movl	%eax, %cr3
	movl	%cr0, %eax
	orl	$CR0_PG, %eax
	movl	%eax, %cr0
	lgdt	gdt_pointer
	ljmp	$CODE_SEGMENT, $\target
.endm

.macro data_segments
	movl	$DATA_SEGMENT, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	%eax, %fs
	movl	%eax, %gs
.endm

	.text
page:
	/* Here the VMM writes the TDVF metadata. */
	.fill	METADATA_ROOM, 1, 0

	/*
	 * The reset vector of the wake-up structure. A vCPU that comes back from the system is in 64-bit mode, with interrupts
	 * off, and has of our memory nothing mapped but this page.
	 */
	.code64
come_back:
	cli
	cld
	movl	$PAGE_TABLES, %ecx
	movq	%cr4, %rax
	testl	$CR4_LA57, %eax
	jz	1f
	movl	$FIFTH_LEVEL, %ecx
1:	movq	%rcx, %cr3
	lgdt	gdt_pointer(%rip)
	ljmpl	*waiting(%rip)

	.code32
start:
	cli
	cld
	testl	%esi, %esi
	jnz	other_vcpu

	/* The first 4 GiB, one to one, in pages of 2 MiB: a root, a second level, four third levels; a root above it. */
	movl	$(PAGE_TABLES + PRESENT_WRITABLE), FIFTH_LEVEL
	movl	$(PAGE_TABLES + PAGE_SIZE), %edi
	movl	$(PAGE_TABLES + 2 * PAGE_SIZE + PRESENT_WRITABLE), %eax
1:	movl	%eax, (%edi)
	addl	$8, %edi
	addl	$PAGE_SIZE, %eax
	cmpl	$(PAGE_TABLES + PAGE_SIZE + 4 * 8), %edi
	jb	1b
	movl	$(PAGE_TABLES + 2 * PAGE_SIZE), %edi
	movl	$PRESENT_WRITABLE_LARGE, %eax
1:	movl	%eax, (%edi)
	addl	$8, %edi
	addl	$LARGE_PAGE, %eax
	jnc	1b
	movl	$(PAGE_TABLES + PAGE_SIZE + PRESENT_WRITABLE), PAGE_TABLES	/* last: the others wait for it */
	long_mode first_vcpu_64

other_vcpu:
	pause
	cmpl	$0, PAGE_TABLES
	je	other_vcpu
	long_mode other_vcpu_64

	.code64
other_vcpu_64:
	data_segments
	movl	$1, %eax
	cpuid
	shrl	$24, %ebx		/* EBX: the APIC id, which for a TD is the number of the vCPU */
	movl	$MAILBOX, %esi
1:	pause
	movq	(%rsi), %rax		/* command and APIC id at once: the next one's are not to be mixed with these */
	movq	%rax, %rcx
	shrq	$32, %rcx
	cmpl	%ebx, %ecx		/* me? */
	jne	1b
	movzwl	%ax, %eax
	cmpl	$MAILBOX_WAKE_UP, %eax
	je	2f
	cmpl	$MAILBOX_TEST, %eax
	jne	1b
	movw	$0, (%rsi)		/* "here I am" */
	jmp	1b
2:	movq	8(%rsi), %rax		/* wake-up vector */
	movw	$0, (%rsi)		/* "taken": the system may use the mailbox for the next one */
	jmp	*%rax

first_vcpu_64:
	data_segments
	movl	%ecx, %ebx		/* RBX: the HOB at hand */
next_hob:
	movzwl	(%rbx), %eax
	movzwl	2(%rbx), %edx		/* EDX: its length */
	cmpl	$HOB_END, %eax
	je	enter_kernel
	cmpl	$HOB_RESOURCE_DESCRIPTOR, %eax
	jne	hob_done
	cmpl	$RESOURCE_UNACCEPTED, 24(%rbx)
	jne	hob_done
	movq	32(%rbx), %rsi		/* RSI: the next page to accept */
	movq	40(%rbx), %rdi
	addq	%rsi, %rdi		/* RDI: the end of the range */
accept:
	cmpq	%rdi, %rsi
	jae	hob_done
	testl	$(LARGE_PAGE - 1), %esi
	jnz	accept_small
	leaq	LARGE_PAGE(%rsi), %rax
	cmpq	%rdi, %rax
	ja	accept_small
	leaq	1(%rsi), %rcx		/* level 1 */
	movl	$TDG_MEM_PAGE_ACCEPT, %eax
	tdcall
	shrq	$32, %rax
	jz	large_accepted
	cmpl	$TDX_OPERAND_BUSY, %eax
	je	accept
	cmpl	$TDX_OPERAND_BUSY_HOST_PRIORITY, %eax
	je	accept
	cmpl	$TDX_PAGE_SIZE_MISMATCH, %eax
	jne	refused
accept_small:				/* and the next 511 too: they are not aligned */
	movq	%rsi, %rcx		/* level 0 */
	movl	$TDG_MEM_PAGE_ACCEPT, %eax
	tdcall
	shrq	$32, %rax
	jz	small_accepted
	cmpl	$TDX_OPERAND_BUSY, %eax
	je	accept_small
	cmpl	$TDX_OPERAND_BUSY_HOST_PRIORITY, %eax
	je	accept_small
	/* What is accepted already has been tampered with: only this loop accepts, each page once. */
refused:
	movl	%eax, %r12d
	movq	message(%rip), %r14
	movq	message + 8(%rip), %r15
	movq	message + 16(%rip), %rbx
	movq	message + 24(%rip), %rdi
	movq	message + 32(%rip), %rsi
	movq	message + 40(%rip), %r8
	movq	message + 48(%rip), %r9
	movq	message + 56(%rip), %rdx
	xorl	%r13d, %r13d
	xorl	%r10d, %r10d
	movl	$TDVMCALL_FATAL_ERROR, %r11d
	movl	$0xffcc, %ecx		/* RDX, RBX, RSI, RDI, R8 to R15 */
	movl	$TDG_VP_VMCALL, %eax
	tdcall
	jmp	refused
large_accepted:
	addq	$LARGE_PAGE, %rsi
	jmp	accept
small_accepted:
	addq	$PAGE_SIZE, %rsi
	jmp	accept
hob_done:
	addq	%rdx, %rbx
	jmp	next_hob

enter_kernel:
	movl	$BOOT_PARAMS, %esi
	movl	CODE32_START(%rsi), %eax
	addq	$ENTRY_64, %rax
	xorl	%ebx, %ebx
	xorl	%edi, %edi
	xorl	%ebp, %ebp
	jmp	*%rax

	.balign	8, 0
gdt:
	.quad	0
	.quad	0
	.quad	0x00af9b000000ffff	/* 64-bit code, flat */
	.quad	0x00cf93000000ffff	/* data, flat */
gdt_pointer:
	.word	gdt_pointer - gdt - 1
	.quad	gdt
waiting:
	.long	other_vcpu_64
	.word	CODE_SEGMENT
message:
	.ascii	"swtdx shim: TDG.MEM.PAGE.ACCEPT failed"
	.fill	64 - (. - message), 1, 0

	/* The table that ends 32 bytes below 4 GiB: where in the page the TDVF metadata are; the footer. */
	.fill	PAGE_SIZE - 32 - 40 - (. - page), 1, 0
	.long	PAGE_SIZE
	.word	22
	.long	0xe47a6535		/* e47a6535-984a-4798-865e-4685a7bf8ec2 */
	.word	0x984a, 0x4798
	.byte	0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2
	.word	40
	.long	0x96b582de		/* 96b582de-1fb2-45f7-baea-a366c55a082d */
	.word	0x1fb2, 0x45f7
	.byte	0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d

	.code32
	.fill	16, 1, 0
reset_vector:
	jmp	start
	.fill	PAGE_SIZE - (. - page), 1, 0
