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
#define FLAGS_IN_RFLAGS (CC_O | CC_S | CC_Z | CC_A | CC_P | CC_C)

struct image { /* of FNSAVE in 32-bit form */
    uint32_t control, status, tags, pointers[4];
    uint8_t registers[8][10];
} QEMU_PACKED;

/* Moves within the stack, and constants: no arithmetic, and no flags but C1. */
enum move { MOVE_NONE, MOVE_EXCHANGE, MOVE_PUSH, MOVE_STORE, MOVE_SIGN, MOVE_CONSTANT };

typedef uint64_t whole_stub(struct image *image, void *memory, uint64_t flags);
typedef uint64_t small_stub(void *a, void *b, void *memory);

/* What an instruction does to the stack and to memory; see describe(). */
struct swtdx_x87 {
    bool known;
    bool two;             /* needs ST(i), or ST(1) */
    bool none;            /* needs no register */
    uint8_t other;        /* i */
    uint8_t pops, pushes;
    uint8_t loads, stores; /* bytes of memory */
    bool flags;           /* RFLAGS in or out */
    bool whole;           /* always by way of the whole state */
    bool converts;        /* FLD or FST(P) of 4 or 8 bytes */
    bool compares;        /* leaves the registers as they are */
    uint8_t opcode, second;
    uint8_t move;
    uint16_t conditions;  /* those that it sets */
    whole_stub *whole_code;
    small_stub *small_code;
};

static struct swtdx_x87 operations[8][256];
static pthread_once_t operations_once = PTHREAD_ONCE_INIT;

static struct swtdx_x87 describe_memory(unsigned opcode, unsigned reg)
{
    static const uint8_t arithmetic_bytes[4] = { 4, 4, 8, 2 }, integer_bytes[4] = { 4, 4, 8, 2 };
    struct swtdx_x87 op = { .known = true };
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

static struct swtdx_x87 describe_d9(unsigned second)
{
    struct swtdx_x87 op = { .known = true };

    /* clang-format off */
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
    /* clang-format on */
    return op;
}

static struct swtdx_x87 describe_register(unsigned opcode, unsigned second)
{
    struct swtdx_x87 op = { .known = true, .two = true, .other = second & 7 };
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

/* The condition codes that an instruction sets; the others keep their values. */
static unsigned condition_mask(unsigned opcode, unsigned second)
{
    unsigned reg = second >> 3 & 7;

    if (opcode == 1 && second >= 0xc0) {
        /* clang-format off */
        switch (second) {
        case 0xe4: return STATUS_CONDITIONS;                       /* FTST */
        case 0xfe: case 0xff: return STATUS_C1 | STATUS_C2;        /* FSIN, FCOS */
        default: return STATUS_C1;
        }
        /* clang-format on */
    }
    if ((!(opcode & 1) && (reg == 2 || reg == 3)) || (opcode == 5 && second >= 0xe0)) {
        return STATUS_CONDITIONS; /* FCOM, FICOM, FUCOM */
    }
    return opcode == 3 || opcode == 7 ? (second < 0xc0 ? STATUS_C1 : 0) : STATUS_C1; /* FCOMI leaves all alone */
}

/* What leaves both registers as they are: comparisons, and stores to memory. */
static bool compares(unsigned opcode, unsigned second, const struct swtdx_x87 *op)
{
    unsigned reg = second >> 3 & 7;

    if (second < 0xc0) {
        return op->stores || (!(opcode & 1) && (reg == 2 || reg == 3));
    }
    switch (opcode) {
    case 1:
        return second == 0xe4;
    case 0:
    case 4:
    case 6:
        return reg == 2 || reg == 3;
    default: /* FUCOM, FCOMI and their like: all that does not take the whole state */
        return true;
    }
}

static enum move move_of(unsigned opcode, unsigned second)
{
    if (opcode == 1 && second >= 0xc0) {
        return second < 0xc8                      ? MOVE_PUSH
               : second < 0xd0                    ? MOVE_EXCHANGE
               : second == 0xe0 || second == 0xe1 ? MOVE_SIGN
               : second == 0xe8 || second == 0xee ? MOVE_CONSTANT
                                                  : MOVE_NONE;
    }
    return opcode == 5 && second >= 0xd0 && second < 0xe0 ? MOVE_STORE : MOVE_NONE;
}

static void describe_all(void)
{
    unsigned opcode, second;

    for (opcode = 0; opcode < 8; opcode++) {
        for (second = 0; second < 256; second++) {
            struct swtdx_x87 *op = &operations[opcode][second];

            *op = second < 0xc0 ? describe_memory(opcode, second >> 3 & 7) : describe_register(opcode, second);
            op->opcode = opcode;
            op->second = second; /* whole, for FOP: the code does not depend on the kind of address */
            op->converts = second < 0xc0 && (opcode == 1 || opcode == 5) &&
                           (op->pushes ? op->loads : op->stores) >= 4 && (second >> 3 & 7) != 1;
            op->move = move_of(opcode, second);
            op->conditions = condition_mask(opcode, second);
            op->compares = compares(opcode, second, op);
        }
    }
}

/* ---- code ---- */

#define EMIT(code, bytes) swtdx_host_emit(code, bytes, sizeof(bytes) - 1)

static void emit_bytes(struct host_code *code, unsigned opcode, unsigned second)
{
    char bytes[2] = { 0xd8 | opcode, second };

    swtdx_host_emit(code, bytes, 2);
}

/* (image, memory, flags): the instruction on the whole state. Returns RFLAGS. */
static whole_stub *make_whole_code(unsigned opcode, unsigned second)
{
    struct host_code code = { .length = 0 };

    EMIT(&code, "\xdd\x27\x52\x9d"); /* frstor [rdi]; push rdx; popfq */
    emit_bytes(&code, opcode, second < 0xc0 ? (second & 0x38) | 6 : second); /* [rsi] */
    EMIT(&code, "\x9c\x58\xdd\x37\xc3"); /* pushfq; pop rax; fnsave [rdi]; ret */
    return swtdx_host_place(&code);
}

/* (a, b, memory): the instruction on ST(0) = a and ST(1) = b. Returns the status word, and RFLAGS 16 bits above. */
static small_stub *make_small_code(unsigned opcode, unsigned second, const struct swtdx_x87 *op)
{
    bool memory = second < 0xc0, two = op->two && op->other;
    struct host_code code = { .length = 0 };
    int left, slot, result;

    if (two) {
        EMIT(&code, "\xdb\x2e"); /* fld tbyte [rsi] */
    }
    if (!op->none) {
        EMIT(&code, "\xdb\x2f"); /* fld tbyte [rdi] */
    }
    if (memory) {
        emit_bytes(&code, opcode, (second & 0x38) | 2); /* [rdx] */
    } else {
        emit_bytes(&code, opcode, op->two && opcode != 1 ? (second & 0xf8) | (two ? 1 : 0) : second);
    }
    EMIT(&code, "\xdf\xe0\x0f\xb7\xc0"); /* fnstsw ax; movzx eax, ax */
    if (op->flags) {
        EMIT(&code, "\x9c\x5a\x48\xc1\xe2\x10\x48\x09\xd0"); /* pushfq; pop rdx; shl rdx, 16; or rax, rdx */
    }
    left = (op->none ? 0 : 1 + two) - op->pops + op->pushes;
    result = two && (op->pops || opcode == 4) ? 1 : 0;
    for (slot = two && op->pops ? 1 : 0; left > 0; left--, slot++) {
        if (slot != result || op->compares) {
            EMIT(&code, "\xdd\xd8"); /* fstp st(0) */
        } else {
            swtdx_host_emit(&code, slot ? "\xdb\x3e" : "\xdb\x3f", 2); /* fstp tbyte [rdi], [rsi] */
        }
    }
    EMIT(&code, "\xc3");
    return swtdx_host_place(&code);
}

/* The instruction with these bytes and its code; NULL: TCG executes it. *failed: there is no memory for the code. */
const struct swtdx_x87 *swtdx_x87_instruction(unsigned opcode, unsigned second, bool *failed)
{
    struct swtdx_x87 *op;

    pthread_once(&operations_once, describe_all);
    op = &operations[opcode][second];
    if (!op->known) {
        return NULL;
    }
    /* Two threads at once make it twice, which does no harm. */
    if (!__atomic_load_n(&op->whole_code, __ATOMIC_ACQUIRE)) {
        if (!op->whole) {
            __atomic_store_n(&op->small_code, make_small_code(opcode, op->second, op), __ATOMIC_RELEASE);
        }
        __atomic_store_n(&op->whole_code, make_whole_code(opcode, op->second), __ATOMIC_RELEASE);
    }
    *failed = !op->whole_code || (!op->whole && !op->small_code);
    return op;
}

/* ---- state ---- */

static void save(CPUX86State *env, struct image *image)
{
    int i;

    *image = (struct image){
        .control = env->fpuc,
        .status = (env->fpus & ~(STATUS_TOP | STATUS_SUMMARY | STATUS_BUSY)) | env->fpstt << 11,
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

/*
 * The last four items of FNSTENV's image: the instruction's and the operand's pointers (SDM volume 1, figures 8-9 to
 * 8-12). Where there are no segments' selectors, in real and virtual-8086 mode, a linear address is in two parts.
 */
static bool linear_pointers(CPUX86State *env)
{
    return !(env->cr[0] & CR0_PE_MASK) || (env->eflags & VM_MASK);
}

void swtdx_fpu_pointers(CPUX86State *env, bool wide, uint32_t pointers[4])
{
    if (linear_pointers(env)) {
        uint32_t ip = (env->fpcs << 4) + env->fpip, dp = (env->fpds << 4) + env->fpdp;

        pointers[0] = (ip & 0xffff) | (wide ? 0xffff0000 : 0);
        pointers[1] = (wide ? ip >> 16 << 12 : ip >> 4 & 0xf000) | env->fpop;
        pointers[2] = (dp & 0xffff) | (wide ? 0xffff0000 : 0);
        pointers[3] = wide ? dp >> 16 << 12 : dp >> 4 & 0xf000;
    } else {
        pointers[0] = env->fpip;
        pointers[1] = env->fpcs | env->fpop << 16;
        pointers[2] = env->fpdp;
        pointers[3] = env->fpds | (wide ? 0xffff0000 : 0);
    }
}

void swtdx_set_fpu_pointers(CPUX86State *env, bool wide, const uint32_t pointers[4])
{
    if (linear_pointers(env)) {
        env->fpip = (pointers[0] & 0xffff) | (pointers[1] >> 12 & 0xffff) << 16;
        env->fpdp = (pointers[2] & 0xffff) | (pointers[3] >> 12 & 0xffff) << 16;
        env->fpcs = env->fpds = 0;
        env->fpop = pointers[1] & 0x7ff;
    } else {
        env->fpip = pointers[0];
        env->fpcs = pointers[1];
        env->fpdp = pointers[2];
        env->fpds = pointers[3];
        env->fpop = wide ? pointers[1] >> 16 & 0x7ff : env->fpop; /* the 16-bit image has no room for it */
    }
}

/* Where these bytes of guest memory are in this process; NULL unless the TLB says that plain accesses reach them. */
static inline void *direct(CPUX86State *env, target_ulong address, unsigned bytes, bool store)
{
    CPUTLBEntry *entry = tlb_entry(env, cpu_mmu_index(env, false), address);
    target_ulong page = store ? tlb_addr_write(entry) : entry->addr_read;

    if ((address & TARGET_PAGE_MASK) != page || (address & ~TARGET_PAGE_MASK) > TARGET_PAGE_SIZE - bytes) {
        return NULL;
    }
    return (void *)(uintptr_t)(address + entry->addend);
}

static inline void load_memory(CPUX86State *env, uint8_t *buffer, unsigned bytes, target_ulong address,
                               uintptr_t retaddr)
{
    const uint8_t *place = direct(env, address, bytes, false);
    uint64_t low;
    uint16_t high = 0;

    if (likely(place)) { /* in pieces that a processor takes at once: another one may be storing there */
        low = bytes == 2 ? lduw_le_p(place) : bytes == 4 ? (uint32_t)ldl_le_p(place) : ldq_le_p(place);
        high = bytes == 10 ? lduw_le_p(place + 8) : 0;
    } else {
        low = bytes == 2   ? cpu_lduw_data_ra(env, address, retaddr)
              : bytes == 4 ? cpu_ldl_data_ra(env, address, retaddr)
                           : cpu_ldq_data_ra(env, address, retaddr);
        high = bytes == 10 ? cpu_lduw_data_ra(env, address + 8, retaddr) : 0;
    }
    memcpy(buffer, &low, 8);
    memcpy(buffer + 8, &high, 2);
}

static inline void store_memory(CPUX86State *env, const uint8_t *buffer, unsigned bytes, target_ulong address,
                                uintptr_t retaddr)
{
    uint8_t *place = direct(env, address, bytes, true);
    uint64_t low = bytes == 2 ? lduw_le_p(buffer) : bytes == 4 ? (uint32_t)ldl_le_p(buffer) : ldq_le_p(buffer);

    if (likely(place)) {
        if (bytes == 2) {
            stw_le_p(place, low);
        } else if (bytes == 4) {
            stl_le_p(place, low);
        } else {
            stq_le_p(place, low);
        }
        if (bytes == 10) {
            stw_le_p(place + 8, lduw_le_p(buffer + 8));
        }
        return;
    }
    switch (bytes) {
    case 2:
        cpu_stw_data_ra(env, address, low, retaddr);
        break;
    case 4:
        cpu_stl_data_ra(env, address, low, retaddr);
        break;
    case 10:
        swtdx_probe_store(env, address, 10, retaddr);
        cpu_stw_data_ra(env, address + 8, lduw_le_p(buffer + 8), retaddr);
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

static void run_whole(CPUX86State *env, const struct swtdx_x87 *op, uint8_t *memory, target_ulong address,
                      uintptr_t retaddr)
{
    uint64_t flags = op->flags ? (cpu_cc_compute_all(env, env->cc_op) & FLAGS_IN_RFLAGS) | 2 : 2;
    struct image image;

    save(env, &image);
    flags = op->whole_code(&image, memory, flags);
    env->swtdx_status = 0;
    if (op->stores && !(image.status & ~env->fpuc & NOT_STORED)) {
        store_memory(env, memory, op->stores, address, retaddr);
    }
    restore(env, &image);
    if (image.status & ~env->fpuc & MASKS) { /* only then (SDM volume 1, 8.1.9.1) */
        env->fpop = op->opcode << 8 | op->second;
    }
    if (op->flags) {
        set_flags(env, flags);
    }
}

/* False: this is not the common case. */
static bool run_small(CPUX86State *env, const struct swtdx_x87 *op, uint8_t *memory, target_ulong address,
                      uintptr_t retaddr)
{
    unsigned top = env->fpstt, other = (top + op->other) & 7, below = (top - 1) & 7;
    uint16_t control = env->fpuc;
    uint64_t status;

    if (op->whole || (control & MASKS) != MASKS || (!op->none && env->fptags[top]) || (op->two && env->fptags[other]) ||
        (op->pushes && !env->fptags[below]) || (op->pops && op->two && !op->other) || op->pops > 1) {
        return false;
    }
    /* Flags are sticky, and these are not the guest's. Only then: FNCLEX is slow. */
    if (env->swtdx_status & ~env->fpus & STATUS_FLAGS) {
        asm volatile("fnclex");
    }
    if (likely(control == HOST_CONTROL)) {
        status = op->small_code(&env->fpregs[op->pushes ? below : top], &env->fpregs[other], memory);
    } else {
        asm volatile("fldcw %0" : : "m"(control));
        status = op->small_code(&env->fpregs[op->pushes ? below : top], &env->fpregs[other], memory);
        asm volatile("fldcw %0" : : "m"((uint16_t){ HOST_CONTROL }));
    }
    env->swtdx_status = status;
    if (op->stores) { /* it may fault, and nothing has changed */
        store_memory(env, memory, op->stores, address, retaddr);
    }
    if (op->pushes) {
        env->fpstt = below;
        env->fptags[below] = 0;
    } else if (op->pops) {
        env->fptags[top] = 1;
        env->fpstt = (top + 1) & 7;
    }
    env->fpus = (env->fpus & ~op->conditions) | (status & (op->conditions | STATUS_FLAGS));
    if (op->flags) {
        set_flags(env, status >> 16);
    }
    return true;
}

/* In two pieces, as they are stored: a load of all 16 bytes would wait for both stores. */
static inline void put(CPUX86State *env, unsigned index, uint64_t mantissa, uint16_t exponent)
{
    env->fpregs[index].d.low = mantissa;
    env->fpregs[index].d.high = exponent;
    asm volatile("" : : : "memory"); /* the compiler would make one move of two */
}

static inline void push(CPUX86State *env, uint64_t mantissa, uint16_t exponent)
{
    env->fpstt = (env->fpstt - 1) & 7;
    env->fptags[env->fpstt] = 0;
    put(env, env->fpstt, mantissa, exponent);
    env->fpus &= ~STATUS_C1;
}

/* What needs no arithmetic, and what compilers use most. False: a stack fault. */
static bool run_move(CPUX86State *env, const struct swtdx_x87 *op)
{
    unsigned top = env->fpstt, other = (top + (op->second & 7)) & 7;
    bool room = env->fptags[(top - 1) & 7];
    uint64_t mantissa = env->fpregs[top].d.low;
    uint16_t exponent = env->fpregs[top].d.high;

    if (op->move == MOVE_CONSTANT) { /* FLD1, FLDZ */
        if (room) {
            push(env, op->second == 0xe8 ? 1ull << 63 : 0, op->second == 0xe8 ? 0x3fff : 0);
        }
        return room;
    }
    if (op->move == MOVE_PUSH) { /* FLD ST(i) */
        room = room && !env->fptags[other];
        if (room) {
            push(env, env->fpregs[other].d.low, env->fpregs[other].d.high);
        }
        return room;
    }
    if (env->fptags[top] || (op->move == MOVE_EXCHANGE && env->fptags[other])) {
        return false;
    }
    if (op->move == MOVE_SIGN) { /* FCHS, FABS */
        env->fpregs[top].d.high = op->second == 0xe0 ? exponent ^ 0x8000 : exponent & 0x7fff;
    } else if (op->move == MOVE_EXCHANGE) {
        put(env, top, env->fpregs[other].d.low, env->fpregs[other].d.high);
        put(env, other, mantissa, exponent);
    } else { /* FST, FSTP ST(i) */
        put(env, other, mantissa, exponent);
        env->fptags[other] = 0;
        if (op->second >= 0xd8) {
            env->fptags[top] = 1;
            env->fpstt = (top + 1) & 7;
        }
    }
    env->fpus &= ~STATUS_C1;
    return true;
}

/* ---- numbers that change their format without rounding: most of what moves between memory and the stack ---- */

/* FLD of a normal number or zero. */
static inline bool load_exactly(CPUX86State *env, uint64_t value, unsigned bytes)
{
    unsigned digits = bytes == 8 ? 52 : 23, largest = bytes == 8 ? 0x7ff : 0xff, exponent = value >> digits & largest;
    uint16_t sign = (value >> (bytes * 8 - 1) & 1) << 15;

    value &= (1ull << digits) - 1;
    if (exponent == largest || !env->fptags[(env->fpstt - 1) & 7] || (!exponent && value)) {
        return false;
    }
    if (exponent) {
        push(env, value << (63 - digits) | 1ull << 63, (exponent + 0x3fff - largest / 2) | sign);
    } else {
        push(env, 0, sign);
    }
    return true;
}

/* The bits that FST stores of a normal number that fits, or of zero. */
static inline bool store_exactly(CPUX86State *env, uint64_t *value, unsigned bytes)
{
    unsigned digits = bytes == 8 ? 52 : 23, largest = bytes == 8 ? 0x7ff : 0xff;
    uint64_t mantissa = env->fpregs[env->fpstt].d.low;
    uint16_t high = env->fpregs[env->fpstt].d.high;
    int exponent = (high & 0x7fff) - 0x3fff + (int)(largest / 2);

    if (env->fptags[env->fpstt]) {
        return false;
    }
    *value = (uint64_t)(high >> 15) << (bytes * 8 - 1);
    if (mantissa || (high & 0x7fff)) {
        if (!(mantissa >> 63) || mantissa << (digits + 1) || exponent <= 0 || exponent >= (int)largest) {
            return false;
        }
        *value |= (uint64_t)exponent << digits | (mantissa << 1 >> (64 - digits));
    }
    return true;
}

/* False: not done; what FLD loads is in memory then. */
static inline bool run_exactly(CPUX86State *env, const struct swtdx_x87 *op, uint8_t *memory, target_ulong address,
                               uintptr_t retaddr, unsigned bytes)
{
    uint64_t value;

    if (op->pushes) {
        load_memory(env, memory, bytes, address, retaddr);
        memcpy(&value, memory, 8);
        return load_exactly(env, value, bytes);
    }
    if (!store_exactly(env, &value, bytes)) {
        return false;
    }
    store_memory(env, (uint8_t *)&value, bytes, address, retaddr);
    if (op->pops) {
        env->fptags[env->fpstt] = 1;
        env->fpstt = (env->fpstt + 1) & 7;
    }
    env->fpus &= ~STATUS_C1;
    return true;
}

/* ---- what translated code calls ---- */

/*
 * An exception that is pending arrives at the next waiting instruction, whatever CR0.NE says: VMX fixes it to 1 while a
 * guest runs. The flags decide, not the summary, since they are what the host's processor would look at.
 */
static inline void check_pending(CPUX86State *env, uintptr_t retaddr)
{
    if (unlikely(env->fpus & ~env->fpuc & MASKS)) {
        raise_exception_ra(env, EXCP10_COPR, retaddr);
    }
}

void helper_swtdx_check_x87(CPUX86State *env)
{
    check_pending(env, GETPC());
}

static inline void execute(CPUX86State *env, const struct swtdx_x87 *op, target_ulong address, uintptr_t retaddr)
{
    uint8_t memory[16];

    check_pending(env, retaddr);
    if (op->move && run_move(env, op)) {
        return;
    }
    if (op->converts) {
        if (op->loads == 8 || op->stores == 8 ? run_exactly(env, op, memory, address, retaddr, 8)
                                              : run_exactly(env, op, memory, address, retaddr, 4)) {
            return;
        }
    } else if (op->loads) {
        load_memory(env, memory, op->loads, address, retaddr);
    }
    if (!run_small(env, op, memory, address, retaddr)) {
        run_whole(env, op, memory, address, retaddr);
    }
}

/* address: of the memory operand, if there is one. */
void helper_swtdx_x87(CPUX86State *env, void *op, target_ulong address)
{
    execute(env, op, address, GETPC());
}

/* The same for those that read or write RFLAGS. */
void helper_swtdx_x87_flags(CPUX86State *env, void *op, target_ulong address)
{
    execute(env, op, address, GETPC());
}

bool swtdx_x87_flags(const struct swtdx_x87 *op)
{
    return op->flags;
}
