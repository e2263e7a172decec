/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * x87 instructions of a guest, executed by the host's x87 unit.
 *
 * The common case, in which the guest masks all exceptions and all registers that an instruction needs are valid, moves
 * only those: one or two are pushed, the instruction runs on them under the guest's control word, and what is left is
 * popped. Everything else takes the whole state there and back (FRSTOR, FNSAVE), so that stack faults, unmasked
 * exceptions and their deferred delivery are the processor's own. Memory is read before and written before the guest's
 * state changes, with the guest's faults.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/cpu_ldst.h"
#include "exec/helper-proto.h"
#include "swtdx_internal.h"
#include "swtdx_host.h"

#define STATUS_SUMMARY 0x80
#define STATUS_BUSY 0x8000
#define STATUS_TOP 0x3800
#define STATUS_CONDITIONS 0x4700
#define STATUS_FLAGS 0x7f
#define STATUS_C1 0x200
#define STATUS_C2 0x400
#define MASKS 0x3f
#define NOT_STORED 0x19 /* invalid, overflow, underflow: when unmasked, nothing reaches memory */
#define HOST_CONTROL 0x37f
#define FLAGS_IN_RFLAGS (CC_O | CC_S | CC_Z | CC_A | CC_P | CC_C)

struct image { /* of FNSAVE in 32-bit form */
    uint32_t control, status, tags, pointers[4];
    uint8_t registers[8][10];
} QEMU_PACKED;

/* What an instruction does to the stack and to memory; see describe(). */
struct operation {
    bool known;
    bool two;             /* needs ST(i), or ST(1) */
    bool none;            /* needs no register */
    uint8_t other;        /* i */
    uint8_t pops, pushes;
    uint8_t loads, stores; /* bytes of memory */
    bool flags;           /* RFLAGS in or out */
    bool whole;           /* always by way of the whole state */
};

typedef uint64_t whole_stub(struct image *image, void *memory, uint64_t flags);
typedef uint64_t small_stub(void *a, void *b, void *memory, uint16_t *status, const uint16_t *control);

static whole_stub *whole_stubs[8][256];
static small_stub *small_stubs[8][256];

static struct operation describe_memory(unsigned opcode, unsigned reg)
{
    static const uint8_t arithmetic_bytes[4] = { 4, 4, 8, 2 }, integer_bytes[4] = { 4, 4, 8, 2 };
    struct operation op = { .known = true };
    unsigned kind = opcode >> 1 & 3;

    if (!(opcode & 1)) { /* D8, DA, DC, DE */
        op.loads = arithmetic_bytes[kind];
        op.pops = reg == 3;
        return op;
    }
    if (reg == 0) {
        op.loads = integer_bytes[kind];
    } else if (opcode == 3 && reg == 5) {
        op.loads = 10;
    } else if (opcode == 7 && (reg == 4 || reg == 5)) {
        op.loads = reg == 4 ? 10 : 8;
    }
    if (op.loads) {
        op.none = true;
        op.pushes = 1;
        return op;
    }
    op.pops = reg != 2;
    if (reg <= 3 && !(opcode == 1 && reg == 1)) {
        op.stores = integer_bytes[kind];
    } else if ((opcode == 3 && reg == 7) || (opcode == 7 && reg == 6)) {
        op.stores = 10;
    } else if (opcode == 7 && reg == 7) {
        op.stores = 8;
    } else {
        op.known = false;
    }
    return op;
}

static struct operation describe_d9(unsigned second)
{
    struct operation op = { .known = true };

    switch (second) {
    case 0xe0: case 0xe1: case 0xe4: case 0xf0: case 0xfa: case 0xfc: case 0xfe: case 0xff:
        break;
    case 0xe5: /* FXAM looks at the tag */
        op.whole = true;
        break;
    case 0xe8: case 0xe9: case 0xea: case 0xeb: case 0xec: case 0xed: case 0xee:
        op.none = true;
        op.pushes = 1;
        break;
    case 0xf1: case 0xf3: case 0xf9:
        op.two = true;
        op.other = 1;
        op.pops = 1;
        break;
    case 0xfd:
        op.two = true;
        op.other = 1;
        break;
    case 0xf2: case 0xf4: case 0xfb: /* FPTAN, FXTRACT, FSINCOS: push or not */
    case 0xf5: case 0xf8:            /* FPREM1, FPREM: set condition codes or not */
        op.whole = true;
        break;
    default: /* FLD ST(i), FXCH, an alias of FSTP, FDECSTP, FINCSTP */
        op.whole = second < 0xd0 || (second >= 0xd8 && second < 0xe0) || second == 0xf6 || second == 0xf7;
        op.known = op.whole;
    }
    return op;
}

static struct operation describe_register(unsigned opcode, unsigned second)
{
    struct operation op = { .known = true, .two = true, .other = second & 7 };
    unsigned reg = second >> 3 & 7;

    switch (opcode) {
    case 0: /* D8 */
        op.pops = reg == 3;
        break;
    case 1:
        return describe_d9(second);
    case 2: /* DA: FCMOVcc, FUCOMPP */
    case 3: /* DB: FCMOVNcc, FUCOMI, FCOMI */
        op.flags = op.whole = true;
        op.known = reg < 4 || (opcode == 2 ? second == 0xe9 : reg == 5 || reg == 6);
        if (opcode == 3 && reg >= 5) {
            op.whole = false;
        }
        break;
    case 4: /* DC */
    case 6: /* DE */
        op.pops = opcode == 6;
        if (reg == 2 || reg == 3) {
            op.whole = true;
            op.known = opcode == 4 || reg == 2 || second == 0xd9;
        }
        break;
    case 5: /* DD: FFREE, FST, FSTP, FUCOM, FUCOMP */
        op.whole = reg < 4;
        op.pops = reg == 5;
        op.known = reg < 6;
        break;
    default: /* DF: FUCOMIP, FCOMIP, aliases of FFREE, FXCH and FSTP */
        op.flags = true;
        op.whole = reg < 4;
        op.pops = 1;
        op.known = reg < 4 || reg == 5 || reg == 6;
        break;
    }
    return op;
}

static struct operation describe(unsigned opcode, unsigned second)
{
    return second < 0xc0 ? describe_memory(opcode, second >> 3 & 7) : describe_register(opcode, second);
}

bool swtdx_x87_known(unsigned opcode, unsigned second)
{
    return describe(opcode & 7, second).known;
}

/* ---- code ---- */

#define EMIT(code, bytes) swtdx_host_emit(code, bytes, sizeof(bytes) - 1)

static void emit_bytes(struct host_code *code, unsigned opcode, unsigned second)
{
    char bytes[2] = { 0xd8 | opcode, second };

    swtdx_host_emit(code, bytes, 2);
}

/* (image, memory, flags): the instruction on the whole state. Returns RFLAGS. */
static whole_stub *whole_code(unsigned opcode, unsigned second)
{
    unsigned index = second < 0xc0 ? second & 0x38 : second;
    struct host_code code = { .length = 0 };
    whole_stub *stub = __atomic_load_n(&whole_stubs[opcode][index], __ATOMIC_ACQUIRE);

    if (!stub) {
        EMIT(&code, "\xdd\x27\x52\x9d"); /* frstor [rdi]; push rdx; popfq */
        emit_bytes(&code, opcode, second < 0xc0 ? (second & 0x38) | 6 : second); /* [rsi] */
        EMIT(&code, "\x9c\x58\xdd\x37\xc3"); /* pushfq; pop rax; fnsave [rdi]; ret */
        stub = swtdx_host_place(&code);
        __atomic_store_n(&whole_stubs[opcode][index], stub, __ATOMIC_RELEASE);
    }
    return stub;
}

/* (a, b, memory, status, control): the instruction on ST(0) = a and ST(1) = b. Returns RFLAGS. */
static small_stub *small_code(unsigned opcode, unsigned second, const struct operation *op)
{
    bool memory = second < 0xc0, two = op->two && op->other;
    unsigned index = memory ? second & 0x38 : second;
    struct host_code code = { .length = 0 };
    small_stub *stub = __atomic_load_n(&small_stubs[opcode][index], __ATOMIC_ACQUIRE);
    int left, slot;

    if (stub) {
        return stub;
    }
    EMIT(&code, "\x41\xd9\x28"); /* fldcw [r8] */
    if (two) {
        EMIT(&code, "\xdb\x2e"); /* fld tbyte [rsi] */
    }
    if (!op->none) {
        EMIT(&code, "\xdb\x2f"); /* fld tbyte [rdi] */
    }
    if (memory) {
        emit_bytes(&code, opcode, (second & 0x38) | 2); /* [rdx] */
    } else {
        emit_bytes(&code, opcode, op->two && !(opcode == 1) ? (second & 0xf8) | (two ? 1 : 0) : second);
    }
    EMIT(&code, "\xdd\x39\x9c\x58"); /* fnstsw [rcx]; pushfq; pop rax */
    left = (op->none ? 0 : 1 + two) - op->pops + op->pushes;
    for (slot = two && op->pops ? 1 : 0; left > 0; left--, slot++) {
        swtdx_host_emit(&code, slot ? "\xdb\x3e" : "\xdb\x3f", 2); /* fstp tbyte [rdi], [rsi] */
    }
    EMIT(&code, "\xc3");
    stub = swtdx_host_place(&code);
    __atomic_store_n(&small_stubs[opcode][index], stub, __ATOMIC_RELEASE);
    return stub;
}

/* ---- state ---- */

static void save(CPUX86State *env, struct image *image)
{
    int i;

    *image = (struct image){
        .control = env->fpuc, .status = (env->fpus & ~(STATUS_TOP | STATUS_SUMMARY | STATUS_BUSY)) | env->fpstt << 11,
    };
    for (i = 0; i < 8; i++) {
        image->tags |= (env->fptags[i] ? 3u : 0) << 2 * i;
        memcpy(image->registers[i], &env->fpregs[(env->fpstt + i) & 7], 10);
    }
}

static void restore(CPUX86State *env, const struct image *image)
{
    int i;

    env->fpus = image->status & 0xffff & ~STATUS_TOP;
    env->fpstt = image->status >> 11 & 7;
    for (i = 0; i < 8; i++) {
        env->fptags[i] = (image->tags >> 2 * i & 3) == 3;
        memcpy(&env->fpregs[(env->fpstt + i) & 7], image->registers[i], 10);
    }
}

static void load_memory(CPUX86State *env, uint8_t *buffer, unsigned bytes, target_ulong address, uintptr_t retaddr)
{
    uint64_t low = bytes == 2 ? cpu_lduw_data_ra(env, address, retaddr) :
        bytes == 4 ? cpu_ldl_data_ra(env, address, retaddr) : cpu_ldq_data_ra(env, address, retaddr);
    uint16_t high = bytes == 10 ? cpu_lduw_data_ra(env, address + 8, retaddr) : 0;

    memcpy(buffer, &low, 8);
    memcpy(buffer + 8, &high, 2);
}

static void store_memory(CPUX86State *env, const uint8_t *buffer, unsigned bytes, target_ulong address, uintptr_t retaddr)
{
    uint64_t low;
    uint16_t high;

    memcpy(&low, buffer, 8);
    memcpy(&high, buffer + 8, 2);
    switch (bytes) {
    case 2:
        cpu_stw_data_ra(env, address, low, retaddr);
        break;
    case 4:
        cpu_stl_data_ra(env, address, low, retaddr);
        break;
    case 10:
        cpu_stw_data_ra(env, address + 8, high, retaddr);
        /* fall through */
    default:
        cpu_stq_data_ra(env, address, low, retaddr);
        break;
    }
}

static void set_flags(CPUX86State *env, uint64_t flags)
{
    CC_SRC = flags & FLAGS_IN_RFLAGS;
    env->cc_op = CC_OP_EFLAGS;
}

static void run_whole(CPUX86State *env, unsigned opcode, unsigned second, const struct operation *op, uint8_t *memory,
                      target_ulong address, uintptr_t retaddr)
{
    whole_stub *stub = whole_code(opcode, second);
    uint64_t flags = op->flags ? (cpu_cc_compute_all(env, env->cc_op) & FLAGS_IN_RFLAGS) | 2 : 2;
    struct image image;

    save(env, &image);
    flags = stub(&image, memory, flags);
    if (op->stores && !(image.status & ~env->fpuc & NOT_STORED)) {
        store_memory(env, memory, op->stores, address, retaddr);
    }
    restore(env, &image);
    if (op->flags) {
        set_flags(env, flags);
    }
}

/* The condition codes that an instruction sets; the others keep their values. */
static unsigned condition_mask(unsigned opcode, unsigned second)
{
    unsigned reg = second >> 3 & 7;

    if (opcode == 1 && second >= 0xc0) {
        switch (second) {
        case 0xe4: return STATUS_CONDITIONS;                       /* FTST */
        case 0xfe: case 0xff: return STATUS_C1 | STATUS_C2;        /* FSIN, FCOS */
        default: return STATUS_C1;
        }
    }
    if ((!(opcode & 1) && (reg == 2 || reg == 3)) || (opcode == 5 && second >= 0xe0)) {
        return STATUS_CONDITIONS; /* FCOM, FICOM, FUCOM */
    }
    return opcode == 3 || opcode == 7 ? (second < 0xc0 ? STATUS_C1 : 0) : STATUS_C1; /* FCOMI leaves all alone */
}

/* False: this is not the common case. */
static bool run_small(CPUX86State *env, unsigned opcode, unsigned second, const struct operation *op, uint8_t *memory,
                      target_ulong address, uintptr_t retaddr)
{
    unsigned top = env->fpstt, i, target, conditions;
    uint8_t a[16], b[16];
    uint16_t status, control = env->fpuc;
    small_stub *stub;
    uint64_t flags;

    if (op->whole || (control & MASKS) != MASKS || (!op->none && env->fptags[top]) ||
        (op->two && env->fptags[(top + op->other) & 7]) || (op->pushes && !env->fptags[(top - 1) & 7]) ||
        (op->pops && op->two && !op->other) || op->pops > 1) {
        return false;
    }
    stub = small_code(opcode, second, op);
    if (!stub) {
        return false;
    }
    memcpy(a, &env->fpregs[top], 10);
    memcpy(b, &env->fpregs[(top + op->other) & 7], 10);
    asm volatile("fnstsw %0" : "=a"(status));
    if (status & ~env->fpus & STATUS_FLAGS) { /* flags are sticky, and these are not the guest's; FNCLEX is slow */
        asm volatile("fnclex");
    }
    flags = stub(a, b, memory, &status, &control);
    asm volatile("fldcw %0" : : "m"((uint16_t){HOST_CONTROL}));
    if (op->stores) {
        store_memory(env, memory, op->stores, address, retaddr);
    }
    if (op->pushes) {
        env->fpstt = top = (top - 1) & 7;
        env->fptags[top] = 0;
    }
    target = op->pops ? (top + op->other) & 7 : top;
    if (op->two && op->other) {
        memcpy(&env->fpregs[(top + op->other) & 7], b, 10);
    }
    if (!op->pops || op->pushes) {
        memcpy(&env->fpregs[target], a, 10);
    }
    for (i = 0; i < op->pops; i++) {
        env->fptags[env->fpstt] = 1;
        env->fpstt = (env->fpstt + 1) & 7;
    }
    conditions = condition_mask(opcode, second);
    env->fpus = (env->fpus & ~conditions) | (status & (conditions | STATUS_FLAGS));
    if (op->flags) {
        set_flags(env, flags);
    }
    return true;
}

/* Copies within the stack, which compilers use most and which need no arithmetic. False: none of them, or a stack fault. */
static bool run_copy(CPUX86State *env, unsigned opcode, unsigned second)
{
    unsigned top = env->fpstt, other = (top + (second & 7)) & 7, kind = second & 0xf8;
    FPReg held;

    if (env->fptags[top] || (second & 0xc0) != 0xc0) {
        return false;
    }
    if (opcode == 1 && kind == 0xc8 && !env->fptags[other]) { /* FXCH */
        held = env->fpregs[top];
        env->fpregs[top] = env->fpregs[other];
        env->fpregs[other] = held;
    } else if (opcode == 1 && kind == 0xc0 && !env->fptags[other] && env->fptags[(top - 1) & 7]) { /* FLD ST(i) */
        env->fpstt = (top - 1) & 7;
        env->fpregs[env->fpstt] = env->fpregs[other];
        env->fptags[env->fpstt] = 0;
    } else if (opcode == 5 && (kind == 0xd0 || kind == 0xd8)) { /* FST, FSTP ST(i) */
        env->fpregs[other] = env->fpregs[top];
        env->fptags[other] = 0;
        if (kind == 0xd8) {
            env->fptags[top] = 1;
            env->fpstt = (top + 1) & 7;
        }
    } else {
        return false;
    }
    env->fpus &= ~STATUS_C1;
    return true;
}

/* ---- what translated code calls ---- */

void helper_swtdx_check_x87(CPUX86State *env)
{
    if ((env->fpus & STATUS_SUMMARY) && (env->cr[0] & CR0_NE_MASK)) {
        raise_exception_ra(env, EXCP10_COPR, GETPC());
    }
}

/* code: the two bytes of the instruction, ModRM above; address: of its memory operand, if it has one. */
void helper_swtdx_x87(CPUX86State *env, uint32_t code, target_ulong address)
{
    unsigned opcode = code & 7, second = code >> 8 & 0xff;
    struct operation op = describe(opcode, second);
    uint8_t memory[16];

    if ((env->fpus & STATUS_SUMMARY) && (env->cr[0] & CR0_NE_MASK)) {
        raise_exception_ra(env, EXCP10_COPR, GETPC());
    }
    if (run_copy(env, opcode, second)) {
        return;
    }
    if (op.loads) {
        load_memory(env, memory, op.loads, address, GETPC());
    }
    if (!run_small(env, opcode, second, &op, memory, address, GETPC())) {
        run_whole(env, opcode, second, &op, memory, address, GETPC());
    }
}
