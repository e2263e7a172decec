/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The architectural state of a virtual CPU: loading it into TCG's CPUX86State, and reading and writing it from outside.
 *
 * TCG keeps one CPUX86State. The engine leaves the state of the last virtual CPU in it and exchanges it only when
 * another one is wanted; the general registers and RIP are copied at each entry and exit, so that the common exits need
 * nothing else.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/helper-proto.h"
#include "swtdx_internal.h"

void cpu_get_fp80(uint64_t *mantissa, uint16_t *exponent, floatx80 value);
floatx80 cpu_set_fp80(uint64_t mantissa, uint16_t exponent);

#define SAVED_BYTES offsetof(CPUX86State, end_reset_fields)

void swtdx_make_current(swtdx_engine *engine, swtdx_cpu *cpu)
{
    CPUState *cs = engine->uc->cpu;
    CPUX86State *env = cs->env_ptr;
    target_ulong dr7;

    if (engine->current == cpu) {
        return;
    }
    /* TCG's breakpoints stand for DR0-3: take the old ones out and put the new ones in */
    dr7 = env->dr[7];
    cpu_x86_update_dr7(env, DR7_FIXED_1);
    env->dr[7] = dr7;
    if (engine->current) {
        memcpy(engine->current->saved, env, SAVED_BYTES);
    }
    memcpy(env, cpu->saved, SAVED_BYTES);
    dr7 = env->dr[7];
    env->dr[7] = DR7_FIXED_1;
    cpu_x86_update_dr7(env, dr7);
    cs->interrupt_request = 0;
    cs->exception_index = -1;
    engine->current = cpu;
    tlb_flush(cs);
}

swtdx_cpu *swtdx_cpu_new(swtdx_package *package)
{
    swtdx_cpu *cpu = calloc(1, sizeof(*cpu));
    swtdx_engine *engine;

    if (!cpu || !(cpu->saved = malloc(SAVED_BYTES))) {
        free(cpu);
        return NULL;
    }
    engine = swtdx_take_engine(package);
    memcpy(cpu->saved, engine->reset_state, SAVED_BYTES);
    cpu->engine = engine;
    cpu->tsc_multiplier = 1ull << 48;
    cpu->rip = cpu->exit_rip = SWTDX_RESET_RIP;
    return cpu;
}

void swtdx_cpu_free(swtdx_cpu *cpu)
{
    if (cpu) {
        swtdx_engine *engine = cpu->engine;

        swtdx_acquire(engine);
        if (engine->current == cpu) {
            engine->current = NULL;
        }
        engine->slice_owner = NULL;
        swtdx_release(engine);
        swtdx_leave_engine(engine);
        free(cpu->saved);
        free(cpu);
    }
}

/*
 * The flags that TCG derives from the state. It adds TF, IOPL and VM of RFLAGS to them when it looks for a block, so
 * they must not be here as well: the guest's own changes of RFLAGS would not clear them, and every block would
 * single-step.
 */
static void update_hflags(CPUX86State *env)
{
    x86_update_hflags(env);
    cpu_sync_bndcs_hflags(env); /* whether CR4 and XCR0 enable AVX */
    env->hflags &= ~(HF_TF_MASK | HF_IOPL_MASK | HF_VM_MASK);
}

static CPUX86State *load(swtdx_cpu *cpu)
{
    swtdx_acquire(cpu->engine);
    swtdx_make_current(cpu->engine, cpu);
    return cpu->engine->uc->cpu->env_ptr;
}

uint64_t swtdx_get(swtdx_cpu *cpu, uint32_t reg)
{
    CPUX86State *env = load(cpu);
    uint64_t value = 0;

    switch (reg) {
    case SWTDX_RFLAGS:
        value = cpu_compute_eflags(env);
        break;
    case SWTDX_CR0:
    case SWTDX_CR0 + 2:
    case SWTDX_CR0 + 3:
    case SWTDX_CR0 + 4:
        value = env->cr[reg - SWTDX_CR0];
        break;
    case SWTDX_CR0 + 8:
        value = cpu->vapic[0x80] >> 4;
        break;
    case SWTDX_DR0:
    case SWTDX_DR0 + 1:
    case SWTDX_DR0 + 2:
    case SWTDX_DR0 + 3:
    case SWTDX_DR0 + 6:
    case SWTDX_DR0 + 7:
        value = env->dr[reg - SWTDX_DR0];
        break;
    case SWTDX_XCR0:
        value = env->xcr0;
        break;
    case SWTDX_PKRU:
        value = env->pkru;
        break;
    case SWTDX_INTERRUPTIBILITY:
        value = (env->hflags & HF_MOV_SS_MASK        ? 2
                 : env->hflags & HF_INHIBIT_IRQ_MASK ? 1
                                                     : 0) |
                (env->hflags2 & HF2_NMI_MASK ? 8 : 0);
        break;
    }
    swtdx_release(cpu->engine);
    return value;
}

void swtdx_set(swtdx_cpu *cpu, uint32_t reg, uint64_t value)
{
    CPUX86State *env = load(cpu);
    bool flush = false;

    switch (reg) {
    case SWTDX_RFLAGS:
        cpu_load_eflags(env, value, ~0); /* outside its loop TCG keeps all flags in env->eflags */
        break;
    case SWTDX_CR0:
        env->cr[0] = value | CR0_ET_MASK;
        flush = true;
        break;
    case SWTDX_CR0 + 2:
        env->cr[2] = value;
        break;
    case SWTDX_CR0 + 3:
        env->cr[3] = value;
        flush = true;
        break;
    case SWTDX_CR0 + 4:
        cpu_x86_update_cr4(env, value);
        flush = true;
        break;
    case SWTDX_CR0 + 8:
        cpu->vapic[0x80] = (value & 15) << 4;
        break;
    case SWTDX_DR0:
    case SWTDX_DR0 + 1:
    case SWTDX_DR0 + 2:
    case SWTDX_DR0 + 3: {
        target_ulong dr7 = env->dr[7];

        cpu_x86_update_dr7(env, DR7_FIXED_1);
        env->dr[reg - SWTDX_DR0] = value;
        cpu_x86_update_dr7(env, dr7);
    } break;
    case SWTDX_DR0 + 6:
        env->dr[6] = value;
        break;
    case SWTDX_DR0 + 7:
        cpu_x86_update_dr7(env, value | DR7_FIXED_1);
        break;
    case SWTDX_XCR0:
        env->xcr0 = value;
        break;
    case SWTDX_PKRU:
        env->pkru = value;
        flush = true;
        break;
    case SWTDX_INTERRUPTIBILITY:
        env->hflags &= ~HF_SHADOW_MASK;
        env->hflags |= value & 2 ? HF_SHADOW_MASK : value & 1 ? HF_INHIBIT_IRQ_MASK : 0;
        env->hflags2 = (env->hflags2 & ~HF2_NMI_MASK) | (value & 8 ? HF2_NMI_MASK : 0);
        cpu->exit_rip = cpu->rip; /* the shadow covers the instruction at RIP */
        break;
    }
    update_hflags(env);
    if (flush) {
        tlb_flush(env_cpu(env));
    }
    swtdx_release(cpu->engine);
}

/* The task register reads as busy, as VMX has it; TCG keeps it as LTR found it, and aborts over a busy one. */
#define TASK_REGISTER 7
#define TSS_BUSY 2u

static SegmentCache *segment_cache(CPUX86State *env, uint32_t index)
{
    /* clang-format off */
    switch (index) {
    case 6: return &env->ldt;
    case 7: return &env->tr;
    case 8: return &env->gdt;
    case 9: return &env->idt;
    default: return &env->segs[index % 6];
    }
    /* clang-format on */
}

/* VMX access rights: descriptor bits 47:40 and 55:52, i.e. bits 15:8 and 23:20 of the second word; 16: unusable. */
void swtdx_get_segment(swtdx_cpu *cpu, uint32_t index, struct swtdx_segment *segment)
{
    SegmentCache *cache = segment_cache(load(cpu), index);

    segment->selector = cache->selector;
    segment->base = cache->base;
    segment->limit = cache->limit;
    segment->access_rights = (cache->flags >> 8 & 0xff) | (cache->flags >> 8 & 0xf000);
    if (index < 8 && !(cache->flags & DESC_P_MASK)) {
        segment->access_rights |= 1u << 16;
    }
    if (index == TASK_REGISTER) {
        segment->access_rights |= TSS_BUSY;
    }
    swtdx_release(cpu->engine);
}

void swtdx_set_segment(swtdx_cpu *cpu, uint32_t index, const struct swtdx_segment *segment)
{
    CPUX86State *env = load(cpu);
    SegmentCache *cache = segment_cache(env, index);

    cache->selector = segment->selector;
    cache->base = segment->base;
    cache->limit = segment->limit;
    cache->flags = segment->access_rights >> 16 & 1
                       ? 0
                       : (segment->access_rights & 0xff) << 8 | (segment->access_rights & 0xf000) << 8;
    if (index == TASK_REGISTER) {
        uint32_t kind = segment->access_rights & 0x1009d; /* unusable, present, system, type but for the busy bit */

        if (kind != 0x81 && kind != 0x89) { /* none: TCG would abort over it, so an empty one */
            cache->flags = 0x8900;
            cache->limit = 0;
        }
        cache->flags &= ~(TSS_BUSY << 8);
    }
    update_hflags(env);
    swtdx_release(cpu->engine);
}

static uint64_t *plain_msr(CPUX86State *env, uint32_t index)
{
    /* clang-format off */
    switch (index) {
    case MSR_IA32_SYSENTER_ESP: return &env->sysenter_esp;
    case MSR_IA32_SYSENTER_EIP: return &env->sysenter_eip;
    case MSR_STAR: return &env->star;
    case MSR_LSTAR: return &env->lstar;
    case MSR_CSTAR: return &env->cstar;
    case MSR_FMASK: return &env->fmask;
    case MSR_FSBASE: return &env->segs[R_FS].base;
    case MSR_GSBASE: return &env->segs[R_GS].base;
    case MSR_KERNELGSBASE: return &env->kernelgsbase;
    case MSR_TSC_AUX: return &env->tsc_aux;
    case MSR_PAT: return &env->pat;
    case MSR_IA32_SPEC_CTRL: return &env->spec_ctrl;
    case MSR_IA32_MISC_ENABLE: return &env->msr_ia32_misc_enable;
    default: return NULL;
    }
    /* clang-format on */
}

static bool get_msr(CPUX86State *env, uint32_t index, uint64_t *value)
{
    uint64_t *plain = plain_msr(env, index);

    if (plain) {
        *value = *plain;
    } else if (index == MSR_EFER) {
        *value = env->efer;
    } else if (index == MSR_IA32_SYSENTER_CS) {
        *value = env->sysenter_cs;
    } else {
        return false;
    }
    return true;
}

static bool set_msr(CPUX86State *env, uint32_t index, uint64_t value)
{
    uint64_t *plain = plain_msr(env, index);

    if (plain) {
        *plain = value;
    } else if (index == MSR_EFER) {
        env->efer = value & ~(uint64_t)MSR_EFER_SVME;
        update_hflags(env);
        tlb_flush(env_cpu(env));
    } else if (index == MSR_IA32_SYSENTER_CS) {
        env->sysenter_cs = value;
    } else {
        return false;
    }
    return true;
}

bool swtdx_get_msr(swtdx_cpu *cpu, uint32_t index, uint64_t *value)
{
    bool known;

    if (cpu->engine->running == cpu) { /* the guest's own RDMSR: the processor is ours already */
        return get_msr(cpu->engine->uc->cpu->env_ptr, index, value);
    }
    known = get_msr(load(cpu), index, value);
    swtdx_release(cpu->engine);
    return known;
}

bool swtdx_set_msr(swtdx_cpu *cpu, uint32_t index, uint64_t value)
{
    bool known;

    if (cpu->engine->running == cpu) {
        return set_msr(cpu->engine->uc->cpu->env_ptr, index, value);
    }
    known = set_msr(load(cpu), index, value);
    swtdx_release(cpu->engine);
    return known;
}

/* The 512-byte FXSAVE image in its 64-bit form (SDM volume 1, table 10-2). */
void swtdx_get_fxsave(swtdx_cpu *cpu, uint8_t image[512])
{
    CPUX86State *env = load(cpu);
    uint16_t status = (env->fpus & ~0x3800) | (env->fpstt & 7) << 11, exponent;
    uint32_t mask = 0xffff;
    uint8_t tags = 0;
    uint64_t mantissa;
    int i;

    memset(image, 0, 512);
    for (i = 0; i < 8; i++) {
        tags |= (!env->fptags[i]) << i;
        cpu_get_fp80(&mantissa, &exponent, env->fpregs[(env->fpstt + i) & 7].d);
        memcpy(image + 32 + 16 * i, &mantissa, 8);
        memcpy(image + 40 + 16 * i, &exponent, 2);
    }
    memcpy(image, &env->fpuc, 2);
    memcpy(image + 2, &status, 2);
    image[4] = tags;
    memcpy(image + 6, &env->fpop, 2);
    memcpy(image + 8, &env->fpip, 8);
    memcpy(image + 16, &env->fpdp, 8);
    memcpy(image + 24, &env->mxcsr, 4);
    memcpy(image + 28, &mask, 4);
    for (i = 0; i < 16; i++) {
        memcpy(image + 160 + 16 * i, &env->xmm_regs[i].ZMM_Q(0), 8);
        memcpy(image + 168 + 16 * i, &env->xmm_regs[i].ZMM_Q(1), 8);
    }
    swtdx_release(cpu->engine);
}

void swtdx_get_ymm(swtdx_cpu *cpu, uint8_t image[256])
{
    CPUX86State *env = load(cpu);
    int i;

    for (i = 0; i < 16; i++) {
        memcpy(image + 16 * i, &env->xmm_regs[i].ZMM_Q(2), 16);
    }
    swtdx_release(cpu->engine);
}

void swtdx_set_ymm(swtdx_cpu *cpu, const uint8_t image[256])
{
    CPUX86State *env = load(cpu);
    int i;

    for (i = 0; i < 16; i++) {
        memcpy(&env->xmm_regs[i].ZMM_Q(2), image + 16 * i, 16);
    }
    swtdx_release(cpu->engine);
}

uint32_t swtdx_pkru_offset(CPUX86State *env)
{
    return ((swtdx_engine *)env_cpu(env)->uc->swtdx)->pkru_offset;
}

void swtdx_set_fxsave(swtdx_cpu *cpu, const uint8_t image[512])
{
    CPUX86State *env = load(cpu);
    uint16_t control, status, exponent;
    uint32_t mxcsr;
    uint64_t mantissa;
    int i;

    memcpy(&control, image, 2);
    memcpy(&status, image + 2, 2);
    memcpy(&mxcsr, image + 24, 4);
    memcpy(&env->fpop, image + 6, 2);
    env->fpop &= 0x7ff;
    memcpy(&env->fpip, image + 8, 8);
    memcpy(&env->fpdp, image + 16, 8);
    env->fpcs = env->fpds = 0;
    cpu_set_fpuc(env, control);
    env->fpstt = status >> 11 & 7;
    env->fpus = status & ~0x3800;
    for (i = 0; i < 8; i++) {
        env->fptags[i] = !(image[4] >> i & 1);
        memcpy(&mantissa, image + 32 + 16 * i, 8);
        memcpy(&exponent, image + 40 + 16 * i, 2);
        env->fpregs[(env->fpstt + i) & 7].d = cpu_set_fp80(mantissa, exponent);
    }
    cpu_set_mxcsr(env, mxcsr & 0xffff);
    for (i = 0; i < 16; i++) {
        memcpy(&env->xmm_regs[i].ZMM_Q(0), image + 160 + 16 * i, 8);
        memcpy(&env->xmm_regs[i].ZMM_Q(1), image + 168 + 16 * i, 8);
    }
    swtdx_release(cpu->engine);
}

/* ---- the whole state, to be kept ---- */

#define SEGMENTS 10
#define SEGMENT_FLAGS 0x00ffff00u
#define XCR0_KNOWN (XSTATE_FP_MASK | XSTATE_SSE_MASK | XSTATE_YMM_MASK | XSTATE_PKRU_MASK)
#define VISIBLE_BYTES offsetof(swtdx_cpu, engine)

static const uint32_t KEPT_MSRS[] = {
    MSR_IA32_SYSENTER_CS,
    MSR_IA32_SYSENTER_ESP,
    MSR_IA32_SYSENTER_EIP,
    MSR_STAR,
    MSR_LSTAR,
    MSR_CSTAR,
    MSR_FMASK,
    MSR_KERNELGSBASE,
    MSR_TSC_AUX,
    MSR_PAT,
    MSR_EFER,
    MSR_IA32_SPEC_CTRL,
    MSR_IA32_MISC_ENABLE,
};

struct kept {
    uint64_t bytes;                 /* of this structure */
    uint8_t visible[VISIBLE_BYTES]; /* what swtdx.h shows of swtdx_cpu */
    uint64_t exit_rip, rflags, cr[4], dr[6], xcr0;
    uint64_t msrs[ARRAY_SIZE(KEPT_MSRS)];
    struct swtdx_segment segments[SEGMENTS]; /* access_rights: as TCG has them, with those of unusable ones */
    struct swtdx_event delivering;
    uint32_t pending_debug, kicked, pkru, shadow, nmi_blocked;
    uint16_t fpcs, fpds;
    uint8_t fxsave[512], ymm[256];
};

size_t swtdx_state_size(void)
{
    return sizeof(struct kept);
}

void swtdx_get_state(swtdx_cpu *cpu, void *state)
{
    struct kept *kept = state;
    CPUX86State *env = load(cpu);
    size_t i;

    memset(kept, 0, sizeof(*kept));
    kept->bytes = sizeof(*kept);
    memcpy(kept->visible, cpu, VISIBLE_BYTES);
    kept->exit_rip = cpu->exit_rip;
    kept->rflags = cpu_compute_eflags(env);
    for (i = 0; i < ARRAY_SIZE(kept->cr); i++) {
        kept->cr[i] = env->cr[i + (i > 0)];
    }
    for (i = 0; i < ARRAY_SIZE(kept->dr); i++) {
        kept->dr[i] = env->dr[i < 4 ? i : i + 2];
    }
    kept->xcr0 = env->xcr0;
    for (i = 0; i < ARRAY_SIZE(KEPT_MSRS); i++) {
        get_msr(env, KEPT_MSRS[i], &kept->msrs[i]);
    }
    for (i = 0; i < SEGMENTS; i++) {
        SegmentCache *cache = segment_cache(env, i);

        kept->segments[i].selector = cache->selector;
        kept->segments[i].base = cache->base;
        kept->segments[i].limit = cache->limit;
        kept->segments[i].access_rights = cache->flags;
    }
    kept->delivering = cpu->delivering;
    kept->pending_debug = cpu->pending_debug;
    kept->kicked = cpu->kicked;
    kept->pkru = env->pkru;
    kept->shadow = env->hflags & HF_MOV_SS_MASK ? 2 : env->hflags & HF_INHIBIT_IRQ_MASK ? 1 : 0;
    kept->nmi_blocked = env->hflags2 & HF2_NMI_MASK ? 1 : 0;
    kept->fpcs = env->fpcs;
    kept->fpds = env->fpds;
    swtdx_release(cpu->engine);
    swtdx_get_fxsave(cpu, kept->fxsave);
    swtdx_get_ymm(cpu, kept->ymm);
}

static void set_segments(CPUX86State *env, const struct kept *kept)
{
    size_t i;

    for (i = 0; i < SEGMENTS; i++) {
        SegmentCache *cache = segment_cache(env, i);

        cache->selector = kept->segments[i].selector;
        cache->base = kept->segments[i].base;
        cache->limit = kept->segments[i].limit;
        cache->flags = kept->segments[i].access_rights & SEGMENT_FLAGS;
        if (i == TASK_REGISTER && (cache->flags & 0x9d00) != 0x8100 && (cache->flags & 0x9d00) != 0x8900) {
            cache->flags = 0x8900;
            cache->limit = 0;
        }
    }
}

bool swtdx_set_state(swtdx_cpu *cpu, const void *state)
{
    const struct kept *kept = state;
    CPUX86State *env;
    size_t i;

    if (kept->bytes != sizeof(*kept)) {
        return false;
    }
    env = load(cpu);
    memcpy(cpu, kept->visible, VISIBLE_BYTES);
    cpu->activity = cpu->activity ? 1 : 0;
    cpu->pending_debug = kept->pending_debug & 0xf;
    cpu->kicked = kept->kicked ? 1 : 0;
    cpu->delivering = kept->delivering;
    cpu->spins = cpu->next_spin_state = 0;
    memset(cpu->spin_states, 0, sizeof(cpu->spin_states));
    for (i = 0; i < ARRAY_SIZE(KEPT_MSRS); i++) {
        set_msr(env, KEPT_MSRS[i], kept->msrs[i]);
    }
    env->xcr0 = (kept->xcr0 & XCR0_KNOWN) | XSTATE_FP_MASK;
    env->pkru = kept->pkru;
    env->cr[0] = kept->cr[0] | CR0_ET_MASK;
    env->cr[2] = kept->cr[1];
    env->cr[3] = kept->cr[2];
    cpu_x86_update_cr4(env, kept->cr[3]);
    set_segments(env, kept);
    cpu_load_eflags(env, kept->rflags, ~0);
    cpu_x86_update_dr7(env, DR7_FIXED_1);
    for (i = 0; i < 4; i++) {
        env->dr[i] = kept->dr[i];
    }
    env->dr[6] = kept->dr[4];
    cpu_x86_update_dr7(env, kept->dr[5] | DR7_FIXED_1);
    env->hflags &= ~HF_SHADOW_MASK;
    env->hflags |= kept->shadow & 2 ? HF_SHADOW_MASK : kept->shadow & 1 ? HF_INHIBIT_IRQ_MASK : 0;
    env->hflags2 = (env->hflags2 & ~HF2_NMI_MASK) | (kept->nmi_blocked ? HF2_NMI_MASK : 0);
    update_hflags(env);
    tlb_flush(env_cpu(env));
    swtdx_release(cpu->engine);
    swtdx_set_fxsave(cpu, kept->fxsave);
    swtdx_set_ymm(cpu, kept->ymm);
    env = load(cpu);
    env->fpcs = kept->fpcs;
    env->fpds = kept->fpds;
    cpu->exit_rip = kept->exit_rip;
    swtdx_release(cpu->engine);
    return true;
}
