/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Part of target/i386/translate.c: how instructions with a VEX prefix are translated. What their operands are says the
 * table of swtdx_vex.c.
 */

/* What an instruction's bytes say, behind the table's row. */
struct vex_operands {
    int modrm, reg, rm, immediate;
    bool memory;
    uint32_t what; /* for masked and gathered elements */
};

static int swtdx_vex_place(int reg)
{
    return offsetof(CPUX86State, xmm_regs[reg]);
}

/* The memory operand's bytes, a power of two, into env->xmm_t0. */
static void swtdx_gen_vex_load(DisasContext *s, unsigned bytes)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;
    int offset = offsetof(CPUX86State, xmm_t0);
    unsigned i;

    if (bytes <= 8) {
        tcg_gen_qemu_ld_i64(tcg_ctx, s->tmp1_i64, s->A0, s->mem_index, ctz32(bytes) | MO_LE | s->alignment);
        tcg_gen_st_i64(tcg_ctx, s->tmp1_i64, tcg_ctx->cpu_env, offset);
        return;
    }
    for (i = 0; i < bytes; i += 8) {
        tcg_gen_addi_tl(tcg_ctx, s->tmp0, s->A0, i);
        tcg_gen_qemu_ld_i64(tcg_ctx, s->tmp1_i64, s->tmp0, s->mem_index, MO_LEQ);
        tcg_gen_st_i64(tcg_ctx, s->tmp1_i64, tcg_ctx->cpu_env, offset + i);
    }
}

/* Bytes of env to memory. Over two pages, all or nothing is stored. */
static void swtdx_gen_vex_store(DisasContext *s, int offset, unsigned bytes, MemOp alignment)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;
    unsigned i;

    if (bytes <= 8) {
        tcg_gen_ld_i64(tcg_ctx, s->tmp1_i64, tcg_ctx->cpu_env, offset);
        tcg_gen_qemu_st_i64(tcg_ctx, s->tmp1_i64, s->A0, s->mem_index, ctz32(bytes) | MO_LE | s->alignment);
        return;
    }
    if (bytes == 16) {
        gen_sto_env_A0(s, offset, alignment);
        return;
    }
    if (!alignment) {
        gen_probe_store(s, bytes);
    }
    for (i = 0; i < bytes; i += 8) {
        tcg_gen_ld_i64(tcg_ctx, s->tmp1_i64, tcg_ctx->cpu_env, offset + i);
        tcg_gen_addi_tl(tcg_ctx, s->tmp0, s->A0, i);
        tcg_gen_qemu_st_i64(tcg_ctx, s->tmp1_i64, s->tmp0, s->mem_index, MO_LEQ | (i ? 0 : alignment));
    }
}

/* Load a whole register, which changes only when no part of the memory faults. */
static void swtdx_gen_vex_fetch(DisasContext *s, int reg, unsigned bytes, MemOp alignment)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;
    TCGv_i64 parts[4];
    unsigned i;

    if (bytes == 16 && swtdx_is_one_access(s, swtdx_vex_place(reg), alignment)) {
        swtdx_gen_one_access(s, gen_helper_swtdx_load_16, swtdx_vex_place(reg));
        tcg_gen_movi_i64(tcg_ctx, s->tmp1_i64, 0);
        for (i = 16; i < 32; i += 8) {
            tcg_gen_st_i64(tcg_ctx, s->tmp1_i64, tcg_ctx->cpu_env, swtdx_vex_place(reg) + i);
        }
        return;
    }
    for (i = 0; i < 4; i++) {
        parts[i] = tcg_temp_new_i64(tcg_ctx);
        if (8 * i < bytes) {
            tcg_gen_addi_tl(tcg_ctx, s->tmp0, s->A0, 8 * i);
            tcg_gen_qemu_ld_i64(tcg_ctx, parts[i], s->tmp0, s->mem_index, MO_LEQ | (i ? 0 : alignment));
        } else {
            tcg_gen_movi_i64(tcg_ctx, parts[i], 0);
        }
    }
    for (i = 0; i < 4; i++) {
        tcg_gen_st_i64(tcg_ctx, parts[i], tcg_ctx->cpu_env, swtdx_vex_place(reg) + 8 * i);
        tcg_temp_free_i64(tcg_ctx, parts[i]);
    }
}

static void swtdx_gen_vex_move(DisasContext *s, const struct vex_instruction *row, const struct vex_operands *operands,
                               bool is_long)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;
    bool stores = row->flags & VEX_STORES;
    MemOp alignment = !(row->flags & VEX_ALIGNED) ? 0 : is_long ? MO_ALIGN_32 : MO_ALIGN_16;
    int from = stores ? operands->reg : operands->rm, to = stores ? operands->rm : operands->reg;
    unsigned i, bytes = is_long ? 32 : 16;

    if (operands->memory && stores) {
        swtdx_gen_vex_store(s, swtdx_vex_place(operands->reg), bytes, alignment);
        return;
    }
    if (operands->memory) {
        swtdx_gen_vex_fetch(s, operands->reg, bytes, alignment);
        return;
    }
    for (i = 0; i < 32; i += 8) {
        if (i < bytes) {
            tcg_gen_ld_i64(tcg_ctx, s->tmp1_i64, tcg_ctx->cpu_env, swtdx_vex_place(from) + i);
        } else {
            tcg_gen_movi_i64(tcg_ctx, s->tmp1_i64, 0);
        }
        tcg_gen_st_i64(tcg_ctx, s->tmp1_i64, tcg_ctx->cpu_env, swtdx_vex_place(to) + i);
    }
}

/* Call the stub. */
static void swtdx_gen_vex_call(DisasContext *s, const struct vex_instruction *row, const struct vex_operands *operands,
                               host_stub *code)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;
    bool buffer = operands->memory || row->form == VEX_FROM_GENERAL || row->form == VEX_STORE_GENERAL;
    uint64_t rm = buffer ? offsetof(CPUX86State, xmm_t0) : swtdx_vex_place(operands->rm);
    uint64_t fourth = swtdx_vex_place(operands->immediate >> 4 & (CODE64(s) ? 15 : 7));
    TCGv_i64 places = tcg_const_i64(tcg_ctx, swtdx_vex_place(operands->reg) | rm << 16 |
                                                 (uint64_t)swtdx_vex_place(s->vex_v) << 32 | fourth << 48);
    TCGv_ptr stub = tcg_const_ptr(tcg_ctx, (uintptr_t)code);

    if (row->flags & VEX_FLOAT) {
        gen_helper_swtdx_vex_float(tcg_ctx, s->T0, tcg_ctx->cpu_env, places, stub);
    } else if (row->form != VEX_OPERATION && row->form != VEX_SHIFT && row->form != VEX_STORE &&
               row->form != VEX_FROM_GENERAL && row->form != VEX_STORE_GENERAL) {
        gen_helper_swtdx_vex_value(tcg_ctx, s->T0, tcg_ctx->cpu_env, places, stub);
    } else {
        gen_helper_swtdx_vex(tcg_ctx, tcg_ctx->cpu_env, places, stub);
    }
    tcg_temp_free_ptr(tcg_ctx, stub);
    tcg_temp_free_i64(tcg_ctx, places);
}

/* An instruction that a stub executes: operands into the buffer before it, results out of it after. */
static void swtdx_gen_vex_operation(CPUX86State *env, DisasContext *s, const struct vex_instruction *row,
                                    const struct vex_operands *operands, bool wide)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;
    bool stores = row->form == VEX_STORE || row->form == VEX_STORE_GENERAL;
    bool buffer = operands->memory || row->form == VEX_FROM_GENERAL || row->form == VEX_STORE_GENERAL;
    MemOp general = wide && CODE64(s) ? MO_64 : MO_32;
    int temporary = offsetof(CPUX86State, xmm_t0);
    host_stub *code = swtdx_vex_code(row, buffer, operands->immediate);

    if (!code) { /* no memory for it */
        gen_illegal_opcode(s);
        return;
    }
    if (operands->memory && !stores) {
        swtdx_gen_vex_load(s, row->bytes);
    } else if (row->form == VEX_FROM_GENERAL) {
        tcg_gen_st_i64(tcg_ctx, tcg_ctx->cpu_regs[operands->rm], tcg_ctx->cpu_env, temporary);
    } else if (operands->memory && (row->flags & VEX_FLOAT)) {
        TCGv_i32 size = tcg_const_i32(tcg_ctx, row->bytes);

        gen_helper_swtdx_probe_range(tcg_ctx, tcg_ctx->cpu_env, s->A0, size);
        tcg_temp_free_i32(tcg_ctx, size);
    }
    swtdx_gen_vex_call(s, row, operands, code);
    if (operands->memory && stores) {
        swtdx_gen_vex_store(s, temporary, row->bytes, 0);
    } else if (row->form == VEX_STORE_GENERAL) {
        tcg_gen_ld_i64(tcg_ctx, s->T0, tcg_ctx->cpu_env, temporary);
        if (row->bytes < 8) {
            tcg_gen_andi_i64(tcg_ctx, s->T0, s->T0, (1ull << 8 * row->bytes) - 1);
        }
        gen_op_mov_reg_v(s, general, operands->rm, s->T0);
    } else if (row->form == VEX_TO_GENERAL) {
        gen_op_mov_reg_v(s, general, operands->reg, s->T0);
    } else if (row->form == VEX_FLAGS || row->form == VEX_INDEX || row->form == VEX_MASK) {
        swtdx_gen_flags(s, s->T0);
        if (row->form == VEX_INDEX) {
            tcg_gen_shri_i64(tcg_ctx, tcg_ctx->cpu_regs[R_ECX], s->T0, 32);
        }
    }
}

/* Elements that a mask selects; s->A0 is the address, or that without the indices and the segment. */
static void swtdx_gen_vex_elements(DisasContext *s, const struct vex_instruction *row, uint32_t what)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;
    TCGv_i32 description = tcg_const_i32(tcg_ctx, what);

    if (row->form == VEX_GATHER) {
        gen_helper_swtdx_gather(tcg_ctx, tcg_ctx->cpu_env, s->A0, description);
    } else if (row->flags & VEX_STORES) {
        gen_helper_swtdx_masked_store(tcg_ctx, tcg_ctx->cpu_env, s->A0, description);
    } else {
        gen_helper_swtdx_masked_load(tcg_ctx, tcg_ctx->cpu_env, s->A0, description);
    }
    tcg_temp_free_i32(tcg_ctx, description);
    tcg_ctx->swtdx_stores = true;
}

/* The address of a gather without its indices into s->A0, and the rest into what; false: no such instruction. */
static bool swtdx_gen_vex_indices(CPUX86State *env, DisasContext *s, struct vex_operands *operands)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;
    AddressParts parts;
    int segment, indices;

    if ((operands->modrm & 7) != 4 || s->aflag == MO_16) {
        return false;
    }
    parts = gen_lea_modrm_0(env, s, operands->modrm);
    indices = parts.index < 0 ? 4 : parts.index;
    if (indices == operands->reg || indices == s->vex_v || operands->reg == s->vex_v) {
        return false;
    }
    segment = s->override >= 0 ? s->override : s->addseg ? parts.def_seg : 7;
    operands->what |= indices << VEX_INDICES | parts.scale << VEX_SCALE | segment << VEX_SEGMENT |
                      (s->aflag == MO_32) << VEX_ADDRESS_32;
    parts.index = -1;
    tcg_gen_mov_tl(tcg_ctx, s->A0, gen_lea_modrm_1(s, parts));
    return true;
}

/* LDMXCSR and STMXCSR with VEX. */
static void swtdx_gen_vex_mxcsr(DisasContext *s, bool load)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;

    if (load) {
        tcg_gen_qemu_ld_i32(tcg_ctx, s->tmp2_i32, s->A0, s->mem_index, MO_LEUL | s->alignment);
        gen_helper_swtdx_ldmxcsr(tcg_ctx, tcg_ctx->cpu_env, s->tmp2_i32);
    } else {
        gen_helper_swtdx_sync_mxcsr(tcg_ctx, tcg_ctx->cpu_env);
        tcg_gen_ld32u_tl(tcg_ctx, s->T0, tcg_ctx->cpu_env, offsetof(CPUX86State, mxcsr));
        gen_op_st_v(s, MO_32, s->T0, s->A0);
    }
}

static void swtdx_gen_vex_zero(DisasContext *s, unsigned kept_bytes)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;
    TCGv_i32 kept = tcg_const_i32(tcg_ctx, kept_bytes);

    gen_helper_swtdx_zero(tcg_ctx, tcg_ctx->cpu_env, kept);
    tcg_temp_free_i32(tcg_ctx, kept);
}

/* Read the operands behind the opcode, the address into s->A0; false: no such instruction. */
static bool swtdx_gen_vex_operands(CPUX86State *env, DisasContext *s, const struct vex_instruction *row, int rex_r,
                                   bool wide, struct vex_operands *operands)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;
    bool has_immediate = row->flags & (VEX_IMMEDIATE | VEX_IS4);

    operands->modrm = x86_ldub_code(env, s);
    operands->memory = operands->modrm < 0xc0;
    operands->reg = (operands->modrm >> 3 & 7) | rex_r;
    operands->rm = (operands->modrm & 7) | REX_B(s);
    operands->what = operands->reg << VEX_DESTINATION | s->vex_v << VEX_SELECTION | s->vex_l << VEX_YMM |
                     (!CODE64(s)) << VEX_LINEAR_32 | 7u << VEX_SEGMENT;
    s->rip_offset = has_immediate;
    if (row->form == VEX_GATHER) {
        operands->what &= ~(7u << VEX_SEGMENT);
        operands->what |= wide << VEX_QUAD_ELEMENTS | (row->opcode & 1) << VEX_QUAD_INDICES;
        return swtdx_gen_vex_indices(env, s, operands);
    }
    if (row->form == VEX_MASKED) {
        operands->what |= (row->opcode == 0x2d || row->opcode == 0x2f || wide) << VEX_QUAD_ELEMENTS;
    }
    if (row->form == VEX_MASKED_BYTES) {
        gen_lea_v_seg(s, s->aflag, tcg_ctx->cpu_regs[R_EDI], R_DS, s->override);
    } else if (operands->memory) {
        gen_lea_modrm(env, s, operands->modrm);
    }
    operands->immediate = has_immediate ? x86_ldub_code(env, s) : 0;
    return true;
}

/*
 * Translate an instruction with a VEX prefix that is of this table; false: it is none of it, and nothing has been read
 * or generated. b is the opcode as disas_insn() has it.
 */
static bool swtdx_gen_vex(CPUX86State *env, DisasContext *s, int b, bool wide, int rex_r, target_ulong pc_start)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;
    int map = b == 0x138 ? 1 : b == 0x13a ? 2 : 0;
    int prefix = s->prefix & PREFIX_REPNZ ? 3 : s->prefix & PREFIX_REPZ ? 2 : s->prefix & PREFIX_DATA ? 1 : 0;
    target_ulong start = s->pc;
    int opcode = map ? x86_ldub_code(env, s) : b & 0xff;
    int next = map || opcode != 0x77 ? x86_ldub_code(env, s) : 0xc0;
    const struct vex_instruction *row = swtdx_vex_instruction(map, opcode, prefix, wide, s->vex_l, next, CODE64(s));
    struct vex_operands operands = { 0 };
    bool has_modrm = map || opcode != 0x77;

    s->pc = start + (map != 0);
    if (!row) {
        s->pc = start;
        return false;
    }
    if (!(s->flags & HF_AVX_MASK) || (s->vex_v && !(row->flags & VEX_VVVV))) {
        gen_illegal_opcode(s);
        return true;
    }
    if (s->flags & HF_TS_MASK) {
        gen_exception(s, EXCP07_PREX, pc_start - s->cs_base);
        return true;
    }
    if (!CODE64(s)) {
        s->vex_v &= 7;
    }
    if (has_modrm && !swtdx_gen_vex_operands(env, s, row, rex_r, wide, &operands)) {
        gen_illegal_opcode(s);
        return true;
    }
    switch (row->form) {
    case VEX_MOVE:
        swtdx_gen_vex_move(s, row, &operands, s->vex_l);
        break;
    case VEX_MASKED_BYTES: /* MASKMOVDQU */
        tcg_gen_addi_ptr(tcg_ctx, s->ptr0, tcg_ctx->cpu_env, swtdx_vex_place(operands.reg));
        tcg_gen_addi_ptr(tcg_ctx, s->ptr1, tcg_ctx->cpu_env, swtdx_vex_place(operands.rm));
        gen_helper_maskmov_xmm(tcg_ctx, tcg_ctx->cpu_env, s->ptr0, s->ptr1, s->A0);
        tcg_ctx->swtdx_stores = true;
        break;
    case VEX_MASKED:
    case VEX_GATHER:
        swtdx_gen_vex_elements(s, row, operands.what);
        break;
    case VEX_ZERO_UPPER:
    case VEX_ZERO_ALL:
        swtdx_gen_vex_zero(s, row->form == VEX_ZERO_ALL ? 0 : 16);
        break;
    case VEX_LOAD_MXCSR:
    case VEX_STORE_MXCSR:
        swtdx_gen_vex_mxcsr(s, row->form == VEX_LOAD_MXCSR);
        break;
    default:
        swtdx_gen_vex_operation(env, s, row, &operands, wide);
        break;
    }
    return true;
}
