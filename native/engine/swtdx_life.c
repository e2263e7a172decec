/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The engine's life: how the processor is made, what it can do, its state after reset, how it goes.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "swtdx_internal.h"
#include "swtdx_vex.h"

#ifndef CODE_BUFFER_BYTES
#define CODE_BUFFER_BYTES (256u << 20)
#endif

/* TCG executes what src/swtdx/cpu/cpuid.py offers. All else is #UD, whatever model TCG was started with. */
static void offer_features(CPUX86State *env)
{
    memset(env->features, 0, sizeof(env->features));
    env->features[FEAT_1_EDX] = CPUID_FP87 | CPUID_VME | CPUID_DE | CPUID_PSE | CPUID_TSC | CPUID_MSR | CPUID_PAE |
                                CPUID_MCE | CPUID_CX8 | CPUID_APIC | CPUID_SEP | CPUID_MTRR | CPUID_PGE | CPUID_MCA |
                                CPUID_CMOV | CPUID_PAT | CPUID_PSE36 | CPUID_CLFLUSH | CPUID_MMX | CPUID_FXSR |
                                CPUID_SSE | CPUID_SSE2 | CPUID_SS;
    env->features[FEAT_1_ECX] = CPUID_EXT_SSE3 | CPUID_EXT_PCLMULQDQ | CPUID_EXT_SSSE3 | CPUID_EXT_CX16 |
                                CPUID_EXT_SSE41 | CPUID_EXT_SSE42 | CPUID_EXT_POPCNT | CPUID_EXT_MOVBE | CPUID_EXT_AES |
                                CPUID_EXT_XSAVE | CPUID_EXT_RDRAND | CPUID_EXT_X2APIC | CPUID_EXT_MONITOR;
    env->features[FEAT_7_0_EBX] = CPUID_7_0_EBX_FSGSBASE | CPUID_7_0_EBX_SMEP | CPUID_7_0_EBX_ERMS | CPUID_7_0_EBX_ADX |
                                  CPUID_7_0_EBX_SMAP | CPUID_7_0_EBX_CLFLUSHOPT | CPUID_7_0_EBX_CLWB |
                                  CPUID_7_0_EBX_RDSEED | CPUID_7_0_EBX_BMI1 | CPUID_7_0_EBX_BMI2;
    env->features[FEAT_7_0_ECX] = CPUID_7_0_ECX_LA57 | CPUID_7_0_ECX_PKU;
    env->features[FEAT_8000_0001_EDX] =
        CPUID_EXT2_SYSCALL | CPUID_EXT2_NX | CPUID_EXT2_PDPE1GB | CPUID_EXT2_RDTSCP | CPUID_EXT2_LM;
    env->features[FEAT_8000_0001_ECX] = CPUID_EXT3_LAHF_LM | CPUID_EXT3_ABM;
    env->features[FEAT_XSAVE] = CPUID_XSAVE_XSAVEOPT | CPUID_XSAVE_XSAVEC | CPUID_XSAVE_XGETBV1 | CPUID_XSAVE_XSAVES;
    env->features[FEAT_XSAVE_COMP_LO] =
        XSTATE_FP_MASK | XSTATE_SSE_MASK | XSTATE_PKRU_MASK | (swtdx_vex_offers(VEX_AVX) ? XSTATE_YMM_MASK : 0);
    env->cpuid_level = 0x24;
    env->cpuid_vendor1 = CPUID_VENDOR_INTEL_1;
    env->cpuid_vendor2 = CPUID_VENDOR_INTEL_2;
    env->cpuid_vendor3 = CPUID_VENDOR_INTEL_3;
}

/* The state after reset (SDM volume 3, table 10-1): real mode at the reset vector. */
static void power_on(CPUX86State *env)
{
    int i;

    env->hflags = HF_ADDSEG_MASK | HF_GUEST_MASK; /* guest mode is entered once and never left */
    env->hflags2 = HF2_GIF_MASK;
    env->efer = 0;
    memset(env->regs, 0, sizeof(env->regs));
    memset(env->cr, 0, sizeof(env->cr));
    env->cr[0] = 0x60000010;
    env->eip = SWTDX_RESET_RIP;
    env->vm_vmcb = SWTDX_SCRATCH;
    for (i = 0; i < 6; i++) {
        env->segs[i] =
            (SegmentCache){ .limit = 0xffff, .flags = DESC_P_MASK | DESC_S_MASK | DESC_W_MASK | DESC_A_MASK };
    }
    env->segs[R_CS] = (SegmentCache){
        .selector = 0xf000,
        .base = 0xffff0000,
        .limit = 0xffff,
        .flags = DESC_P_MASK | DESC_S_MASK | DESC_CS_MASK | DESC_R_MASK | DESC_A_MASK,
    };
    env->ldt = (SegmentCache){ .limit = 0xffff, .flags = DESC_P_MASK | 2 << DESC_TYPE_SHIFT };
    env->tr = (SegmentCache){ .limit = 0xffff, .flags = DESC_P_MASK | 11 << DESC_TYPE_SHIFT };
    env->gdt = env->idt = (SegmentCache){ .limit = 0xffff };
    env->a20_mask = ~0;
    env->dr[6] = DR6_FIXED_1;
    env->dr[7] = DR7_FIXED_1;
    env->xcr0 = XSTATE_FP_MASK;
    env->pat = 0x0007040600070406ull;
    env->old_exception = -1;
    cpu_load_eflags(env, 2, ~0);
    for (i = 0; i < 8; i++) {
        env->fptags[i] = 1;
    }
    cpu_set_fpuc(env, 0x37f);
    cpu_set_mxcsr(env, 0x1f80);
    x86_update_hflags(env);
}

/* Give back what an engine holds, as far as it was made. */
static void destroy(swtdx_engine *engine)
{
    if (engine->uc) {
        uc_close(engine->uc);
    }
    if (engine->scratch != MAP_FAILED) {
        munmap(engine->scratch, 4096);
    }
    free(engine->reset_state);
    free(engine);
}

/* TCG's memory, and the model whose instructions it knows. False: there is no memory. */
static bool open_tcg(swtdx_engine *engine)
{
    struct uc_struct *uc;

    if (uc_open(UC_ARCH_X86, UC_MODE_64, &engine->uc) != UC_ERR_OK) {
        return false;
    }
    uc = engine->uc;
    return engine->scratch != MAP_FAILED && engine->reset_state &&
           uc_ctl(uc, UC_CTL_WRITE(UC_CTL_CPU_MODEL, 1), UC_CPU_X86_EPYC_ROME) == UC_ERR_OK &&
           uc_ctl(uc, UC_CTL_WRITE(UC_CTL_TCG_BUFFER_SIZE, 1), CODE_BUFFER_BYTES) == UC_ERR_OK &&
           uc_mem_map_ptr(uc, 0, engine->size, UC_PROT_ALL, engine->ram) == UC_ERR_OK &&
           uc_mem_map_ptr(uc, SWTDX_SCRATCH, 4096, UC_PROT_READ | UC_PROT_WRITE, engine->scratch) == UC_ERR_OK;
}

swtdx_engine *swtdx_engine_new(swtdx_package *package, unsigned number)
{
    swtdx_engine *engine = calloc(1, sizeof(*engine));
    CPUX86State *env;

    if (!engine) {
        return NULL;
    }
    engine->package = package;
    engine->number = number;
    engine->ram = package->ram;
    engine->size = package->size;
    engine->tsc_ratio = package->tsc_ratio;
    engine->pkru_offset = package->pkru_offset;
    engine->scratch = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    engine->reset_state = malloc(offsetof(CPUX86State, end_reset_fields));
    if (!open_tcg(engine)) {
        destroy(engine);
        return NULL;
    }
    pthread_spin_init(&engine->letters_lock, PTHREAD_PROCESS_PRIVATE);
    pthread_mutex_init(&engine->mutex, NULL);
    pthread_rwlock_init(&engine->regions_lock, NULL);
    pthread_cond_init(&engine->turn, NULL);
    env = engine->uc->cpu->env_ptr;
    CPU_GET_CLASS(engine->uc->cpu)->do_unaligned_access = swtdx_unaligned_access;
    offer_features(env);
    power_on(env);
    memcpy(engine->reset_state, env, offsetof(CPUX86State, end_reset_fields));
    engine->uc->nested_level = 1; /* one level of emulation, ours, for good */
    engine->uc->swtdx = engine;
    swtdx_join(engine);
    swtdx_catch_host_faults();
    return engine;
}

void swtdx_engine_free(swtdx_engine *engine)
{
    if (engine) {
        swtdx_acquire(engine);
        swtdx_part(engine);
        engine->uc->nested_level = 0;
        engine->uc->swtdx = NULL;
        swtdx_drop_snapshots(engine);
        free(engine->snapshots);
        free(engine->regions);
        free(engine->stops);
        free(engine->looked_at);
        pthread_cond_destroy(&engine->turn);
        pthread_mutex_destroy(&engine->mutex);
        pthread_rwlock_destroy(&engine->regions_lock);
        destroy(engine);
    }
}
