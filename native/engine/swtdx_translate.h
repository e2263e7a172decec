/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Part of target/i386/translate.c: how instructions that the host's processor executes are translated. What their
 * operands are says the table of swtdx_host.c.
 */

/* The memory operand's bytes into env->xmm_t0. */
static void swtdx_gen_operand(CPUX86State *env, DisasContext *s, int modrm, const struct host_instruction *instruction)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;
    int offset = offsetof(CPUX86State, xmm_t0);

    s->rip_offset = instruction->flags & HOST_IMMEDIATE ? 1 : 0;
    gen_lea_modrm(env, s, modrm);
    if (instruction->bytes == 16) {
        gen_ldo_env_A0(s, offset, instruction->flags & HOST_ALIGNED ? MO_ALIGN_16 : 0);
        return;
    }
    tcg_gen_qemu_ld_i64(tcg_ctx, s->tmp1_i64, s->A0, s->mem_index, ctz32(instruction->bytes) | MO_LE | s->alignment);
    tcg_gen_st_i64(tcg_ctx, s->tmp1_i64, tcg_ctx->cpu_env, offset + offsetof(ZMMReg, ZMM_Q(0)));
}

static void swtdx_gen_flags(DisasContext *s, TCGv_i64 flags)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;

    set_cc_op(s, CC_OP_EFLAGS);
    tcg_gen_andi_i64(tcg_ctx, tcg_ctx->cpu_cc_src, flags, CC_O | CC_S | CC_Z | CC_A | CC_P | CC_C);
}

/* The call of the stub, with s->ptr0 and s->ptr1 as its vector operands and T0 as its general one. */
static void swtdx_gen_call(DisasContext *s, const struct host_instruction *instruction, host_stub *code, int reg,
                           MemOp general)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;
    TCGv_ptr stub = tcg_const_ptr(tcg_ctx, (uintptr_t)code);

    switch (instruction->form) {
    case HOST_FROM_GENERAL:
        gen_helper_swtdx_float_from(tcg_ctx, tcg_ctx->cpu_env, s->ptr0, s->T0, stub);
        break;
    case HOST_TO_GENERAL:
        gen_helper_swtdx_float_value(tcg_ctx, s->T0, tcg_ctx->cpu_env, s->ptr0, s->ptr1, stub);
        gen_op_mov_reg_v(s, general, reg, s->T0);
        break;
    case HOST_FLAGS:
        if (instruction->flags & HOST_FLOAT) {
            gen_helper_swtdx_float_value(tcg_ctx, s->T0, tcg_ctx->cpu_env, s->ptr0, s->ptr1, stub);
        } else {
            gen_helper_swtdx_host_value(tcg_ctx, s->T0, tcg_ctx->cpu_env, s->ptr0, s->ptr1, stub);
        }
        swtdx_gen_flags(s, s->T0);
        break;
    case HOST_INDEX:
    case HOST_MASK:
        gen_helper_swtdx_host_value(tcg_ctx, s->T0, tcg_ctx->cpu_env, s->ptr0, s->ptr1, stub);
        swtdx_gen_flags(s, s->T0);
        if (instruction->form == HOST_INDEX) {
            tcg_gen_shri_i64(tcg_ctx, tcg_ctx->cpu_regs[R_ECX], s->T0, 32);
        }
        break;
    default:
        if (instruction->flags & HOST_FLOAT) {
            gen_helper_swtdx_float(tcg_ctx, tcg_ctx->cpu_env, s->ptr0, s->ptr1, stub);
        } else {
            gen_helper_swtdx_host(tcg_ctx, tcg_ctx->cpu_env, s->ptr0, s->ptr1, stub);
        }
        break;
    }
    tcg_temp_free_ptr(tcg_ctx, stub);
}

/*
 * Translate an instruction of this table; false: it is none of it, and nothing has been read or generated. b is the
 * opcode as disas_insn() has it, prefix the mandatory one.
 */
static bool swtdx_gen_host(CPUX86State *env, DisasContext *s, int b, int prefix, target_ulong pc_start, int rex_r)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;
    int map = b == 0x138 ? 1 : b == 0x13a ? 2 : 0;
    const struct host_instruction *instruction =
        swtdx_host_instruction(map, map ? x86_ldub_code(env, s) : b & 0xff, prefix);
    MemOp general = mo_64_32(s->dflag);
    int modrm, reg, rm, immediate = 0, destination, source;
    bool mmx_operand, mmx_result;
    host_stub *code;

    if (!instruction || (s->prefix & PREFIX_VEX)) {
        s->pc -= map != 0;
        return false;
    }
    if ((s->prefix & PREFIX_LOCK) || (s->flags & HF_EM_MASK) ||
        (!(s->flags & HF_OSFXSR_MASK) && instruction->form != HOST_MMX)) {
        gen_illegal_opcode(s);
        return true;
    }
    if (s->flags & HF_TS_MASK) {
        gen_exception(s, EXCP07_PREX, pc_start - s->cs_base);
        return true;
    }
    modrm = x86_ldub_code(env, s);
    reg = (modrm >> 3 & 7) | rex_r;
    rm = (modrm & 7) | REX_B(s);
    destination = offsetof(CPUX86State, xmm_regs[reg]);
    source = offsetof(CPUX86State, xmm_t0);
    mmx_result = instruction->form == HOST_TO_MMX || instruction->form == HOST_MMX;
    mmx_operand = mmx_result || (instruction->form == HOST_FROM_MMX && modrm >= 0xc0);
    if (mmx_operand) {
        gen_helper_swtdx_check_x87(tcg_ctx, tcg_ctx->cpu_env);
        s->mmx_result = mmx_result ? reg & 7 : MMX_NO_RESULT;
    }
    if (instruction->form == HOST_FROM_GENERAL) {
        gen_ldst_modrm(env, s, modrm, general, OR_TMP0, 0);
    } else if (modrm < 0xc0) {
        swtdx_gen_operand(env, s, modrm, instruction);
    } else if (instruction->form == HOST_FROM_MMX || instruction->form == HOST_MMX) {
        source = offsetof(CPUX86State, fpregs[modrm & 7].mmx);
    } else {
        source = offsetof(CPUX86State, xmm_regs[rm]);
    }
    if (instruction->flags & HOST_IMMEDIATE) {
        immediate = x86_ldub_code(env, s);
        if (map == 2 && instruction->opcode == 0x21 && modrm < 0xc0) {
            immediate &= 0x3f; /* INSERTPS takes the one element that there is in memory */
        }
    }
    if (mmx_result) {
        destination = offsetof(CPUX86State, fpregs[reg & 7].mmx);
    }
    code = swtdx_host_code(instruction, immediate, general == MO_64);
    if (!code) { /* no memory for it */
        gen_illegal_opcode(s);
        return true;
    }
    tcg_gen_addi_ptr(tcg_ctx, s->ptr0, tcg_ctx->cpu_env, destination);
    tcg_gen_addi_ptr(tcg_ctx, s->ptr1, tcg_ctx->cpu_env, source);
    swtdx_gen_call(s, instruction, code, reg, general);
    return true;
}

#define X87_DONE 0x100

/* An x87 instruction that swtdx_x87.c executes, if it is one; address is that of its memory operand, if it has one. */
static bool swtdx_gen_x87(DisasContext *s, int b, int modrm, TCGv address)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;
    bool failed;
    const struct swtdx_x87 *instruction = swtdx_x87_instruction(b & 7, modrm, &failed);
    TCGv_ptr operation;

    if (!instruction) {
        return false;
    }
    if (failed) { /* no memory for it */
        gen_illegal_opcode(s);
        return true;
    }
    operation = tcg_const_ptr(tcg_ctx, (uintptr_t)instruction);
    if (modrm < 0xc0) {
        tcg_ctx->swtdx_stores = true; /* or loads, which is rare in a loop that waits */
    } else {
        tcg_gen_movi_tl(tcg_ctx, s->T0, 0);
        address = s->T0;
    }
    if (swtdx_x87_flags(instruction)) { /* FCOMI and its like set RFLAGS, FCMOVcc looks at them */
        gen_update_cc_op(s);
        gen_helper_swtdx_x87_flags(tcg_ctx, tcg_ctx->cpu_env, operation, address);
        set_cc_op(s, CC_OP_EFLAGS);
    } else {
        gen_helper_swtdx_x87(tcg_ctx, tcg_ctx->cpu_env, operation, address);
    }
    tcg_temp_free_ptr(tcg_ctx, operation);
    return true;
}

/* The alignment of a memory operand, as a power of two (SDM volume 3, table 6-7). op: opcode and reg of ModRM. */
static unsigned swtdx_x87_alignment(unsigned op, MemOp dflag)
{
    unsigned reg = op & 7, environment = dflag == MO_16 ? MO_16 : MO_32;

    switch (op >> 3) {
    case 0: /* D8 */
    case 2: /* DA */
        return MO_32;
    case 1: /* D9 */
        return reg < 4 ? MO_32 : reg & 1 ? MO_16 : environment;
    case 3: /* DB */
        return reg < 4 ? MO_32 : MO_64;
    case 4: /* DC */
        return MO_64;
    case 5: /* DD */
        return reg < 4 ? MO_64 : reg & 1 ? MO_16 : environment;
    case 6: /* DE */
        return MO_16;
    default: /* DF */
        return reg < 4 ? MO_16 : MO_64;
    }
}
