/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Instructions that the host's processor executes for a guest: see swtdx_host.c. */
#ifndef SWTDX_HOST_H
#define SWTDX_HOST_H

#include <stdbool.h>
#include <stdint.h>

enum host_form {
    HOST_NONE,
    HOST_VECTOR,       /* xmm, xmm/m */
    HOST_XMM0,         /* xmm, xmm/m, with a third operand in XMM0 */
    HOST_FLAGS,        /* RFLAGS from xmm, xmm/m */
    HOST_INDEX,        /* RCX and RFLAGS from xmm, xmm/m */
    HOST_MASK,         /* XMM0 and RFLAGS from xmm, xmm/m */
    HOST_TO_GENERAL,   /* r32 or r64, xmm/m */
    HOST_FROM_GENERAL, /* xmm, r/m32 or r/m64 */
    HOST_TO_MMX,       /* mm, xmm/m */
    HOST_FROM_MMX,     /* xmm, mm/m */
    HOST_MMX,          /* mm, mm/m */
};

enum { HOST_FLOAT = 1, HOST_ALIGNED = 2, HOST_IMMEDIATE = 4 };
enum { HOST_SSE, HOST_SSE2, HOST_SSE3, HOST_SSSE3, HOST_SSE4_1, HOST_SSE4_2, HOST_AES, HOST_PCLMULQDQ, HOST_SHA };

struct host_instruction {
    uint8_t map, opcode, prefix; /* 0F, 0F38, 0F3A; none, 66, F3, F2 */
    uint8_t form, bytes, flags, feature;
};

/* What a stub is called with: destination, source, two general operands, the guest's XMM0. */
typedef uint64_t host_stub(void *destination, const void *source, uint64_t a, uint64_t b, void *xmm0);

/* The instruction with this opcode, or NULL where the host has none or TCG executes it as well. */
const struct host_instruction *swtdx_host_instruction(unsigned map, unsigned opcode, unsigned prefix);

bool swtdx_host_has_sha(void);

/* The code that executes it, made at the first use; NULL when there is no memory for it. */
host_stub *swtdx_host_code(const struct host_instruction *instruction, unsigned immediate, bool wide);

/* Room for this much code, written with swtdx_host_write(); NULL when there is none. */
struct host_code {
    uint8_t bytes[96];
    unsigned length;
};
void swtdx_host_emit(struct host_code *code, const char *bytes, unsigned length);
void *swtdx_host_place(const struct host_code *code);
void **swtdx_host_slots(void ***place, unsigned count);

/* A floating-point exception that the host's processor raises in here goes to the handler of this thread. */
void swtdx_catch_float_traps(void);

/* x87 instructions: see swtdx_x87.c. */
struct swtdx_x87;
const struct swtdx_x87 *swtdx_x87_instruction(unsigned opcode, unsigned second, bool *failed);
bool swtdx_x87_flags(const struct swtdx_x87 *instruction);

/* Around TCG, in one thread: what a guest does to the floating-point registers stays between the two. */
#define HOST_CONTROL 0x37f
typedef struct CPUX86State CPUX86State;
void swtdx_enter_float(CPUX86State *env);
void swtdx_leave_float(CPUX86State *env);
void swtdx_drop_mxcsr(CPUX86State *env);

/* Execute a stub with the guest's MXCSR; an exception that the guest has unmasked does not return. */
uint64_t swtdx_run_float(CPUX86State *env, void *destination, void *source, uint64_t a, host_stub *stub,
                         uintptr_t retaddr);

#endif
