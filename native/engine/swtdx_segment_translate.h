/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Part of target/i386/translate.c: the checks of swtdx_segments.c, in blocks whose flags ask for them.
 */

/* Before an access by the address that gen_lea_v_seg() has computed. */
static void gen_check_segment(DisasContext *s, TCGv address, unsigned bytes, bool store)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;
    uint32_t flag = s->segment == R_FS ? HF_FS_LIMIT_MASK : s->segment == R_GS ? HF_GS_LIMIT_MASK : HF_DATA_LIMIT_MASK;

    if (s->segment < 0 || (!(s->flags & flag) && !(s->segment == R_CS && store))) {
        return;
    }
    gen_helper_swtdx_check_segment(tcg_ctx, tcg_ctx->cpu_env, address,
                                   tcg_const_i32(tcg_ctx, s->segment | store << 3 | bytes << 4));
}

/* Every access that is translated goes this way: what follows calls these by the names of TCG's functions. */
static void gen_checked_ld_i32(DisasContext *s, TCGv_i32 value, TCGv address, TCGArg index, MemOp op)
{
    gen_check_segment(s, address, 1 << (op & MO_SIZE), false);
    tcg_gen_qemu_ld_i32(s->uc->tcg_ctx, value, address, index, op);
}

static void gen_checked_ld_i64(DisasContext *s, TCGv_i64 value, TCGv address, TCGArg index, MemOp op)
{
    gen_check_segment(s, address, 1 << (op & MO_SIZE), false);
    tcg_gen_qemu_ld_i64(s->uc->tcg_ctx, value, address, index, op);
}

static void gen_checked_st_i32(DisasContext *s, TCGv_i32 value, TCGv address, TCGArg index, MemOp op)
{
    gen_check_segment(s, address, 1 << (op & MO_SIZE), true);
    tcg_gen_qemu_st_i32(s->uc->tcg_ctx, value, address, index, op);
}

static void gen_checked_st_i64(DisasContext *s, TCGv_i64 value, TCGv address, TCGArg index, MemOp op)
{
    gen_check_segment(s, address, 1 << (op & MO_SIZE), true);
    tcg_gen_qemu_st_i64(s->uc->tcg_ctx, value, address, index, op);
}

#undef tcg_gen_qemu_ld_i32
#undef tcg_gen_qemu_ld_i64
#undef tcg_gen_qemu_st_i32
#undef tcg_gen_qemu_st_i64
#define tcg_gen_qemu_ld_i32(ctx, ...) gen_checked_ld_i32(s, __VA_ARGS__)
#define tcg_gen_qemu_ld_i64(ctx, ...) gen_checked_ld_i64(s, __VA_ARGS__)
#define tcg_gen_qemu_st_i32(ctx, ...) gen_checked_st_i32(s, __VA_ARGS__)
#define tcg_gen_qemu_st_i64(ctx, ...) gen_checked_st_i64(s, __VA_ARGS__)

static inline bool swtdx_may_be_canonical(target_ulong address)
{
    return (int64_t)(address << 16) >> 16 == (int64_t)address;
}

/* Whether a branch to this address needs to be asked about when it is taken. */
static bool swtdx_is_doubtful(DisasContext *s, target_ulong target)
{
    return CODE64(s) ? !swtdx_may_be_canonical(target) : (s->flags & HF_CODE_LIMIT_MASK) != 0;
}

/* Before a direct branch changes anything. */
static void gen_check_direct(DisasContext *s, target_ulong target)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;

    if (swtdx_is_doubtful(s, target)) {
        gen_helper_swtdx_check_target(tcg_ctx, tcg_ctx->cpu_env, tcg_const_tl(tcg_ctx, target));
    }
}

/*
 * Before JMP or RET to the address in T0 changes anything. Where 64-bit code looks for a block next, that finds a
 * target which is not canonical: see swtdx_check_branch().
 */
static void gen_check_indirect(DisasContext *s)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;

    if (CODE64(s) ? !s->jmp_opt : (s->flags & HF_CODE_LIMIT_MASK) != 0) {
        gen_helper_swtdx_check_target(tcg_ctx, tcg_ctx->cpu_env, s->T0);
    }
}

/* Before CALL to the address in T0 stores anything. */
static void gen_check_call(DisasContext *s)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;
    TCGLabel *canonical;
    TCGv target;

    if (!CODE64(s) || !s->jmp_opt) {
        gen_check_indirect(s);
        return;
    }
    canonical = gen_new_label(tcg_ctx);
    target = tcg_temp_local_new(tcg_ctx);
    tcg_gen_mov_tl(tcg_ctx, target, s->T0);
    tcg_gen_sari_tl(tcg_ctx, s->tmp0, s->T0, 47);
    tcg_gen_addi_tl(tcg_ctx, s->tmp0, s->tmp0, 1);
    tcg_gen_brcondi_tl(tcg_ctx, TCG_COND_LEU, s->tmp0, 1, canonical);
    gen_helper_swtdx_check_target(tcg_ctx, tcg_ctx->cpu_env, target);
    gen_set_label(tcg_ctx, canonical);
    tcg_gen_mov_tl(tcg_ctx, s->T0, target);
    tcg_temp_free(tcg_ctx, target);
}

static void gen_op_jz_ecx(DisasContext *s, MemOp size, TCGLabel *label);
static void gen_op_jnz_ecx(DisasContext *s, MemOp size, TCGLabel *label);
static void gen_jcc1(DisasContext *s, int b, TCGLabel *label);

/* Before LOOPNZ, LOOPZ, LOOP or JCXZ (operation 0 to 3) counts down. */
static void gen_check_loop(DisasContext *s, int operation, target_ulong target)
{
    TCGContext *tcg_ctx = s->uc->tcg_ctx;
    TCGLabel *stays;

    if (!swtdx_is_doubtful(s, target)) {
        return;
    }
    stays = gen_new_label(tcg_ctx);
    if (operation == 3) {
        gen_op_jnz_ecx(s, s->aflag, stays);
    } else {
        tcg_gen_subi_tl(tcg_ctx, s->tmp0, tcg_ctx->cpu_regs[R_ECX], 1);
        if (s->aflag != MO_64) {
            tcg_gen_andi_tl(tcg_ctx, s->tmp0, s->tmp0, s->aflag == MO_16 ? 0xffff : 0xffffffff);
        }
        tcg_gen_brcondi_tl(tcg_ctx, TCG_COND_EQ, s->tmp0, 0, stays);
        if (operation < 2) {
            gen_jcc1(s, JCC_Z << 1 | operation, stays); /* LOOPNZ stays if ZF is set */
        }
    }
    gen_check_direct(s, target);
    gen_set_label(tcg_ctx, stays);
}

/* The bytes of an x87 instruction's memory operand, and whether it is stored. op: opcode and reg of ModRM. */
static unsigned swtdx_x87_bytes(unsigned op, MemOp dflag, bool *store)
{
    static const uint8_t bytes[8][8] = {
        { 4, 4, 4, 4, 4, 4, 4, 4 },     { 4, 4, 4, 4, 28, 2, 28, 2 }, { 4, 4, 4, 4, 4, 4, 4, 4 },
        { 4, 4, 4, 4, 10, 10, 10, 10 }, { 8, 8, 8, 8, 8, 8, 8, 8 },   { 8, 8, 8, 8, 108, 2, 108, 2 },
        { 2, 2, 2, 2, 2, 2, 2, 2 },     { 2, 2, 2, 2, 10, 8, 10, 8 },
    };
    static const uint8_t stores[8] = { 0, 0xcc, 0, 0x8e, 0, 0xce, 0, 0xce };
    unsigned opcode = op >> 3, reg = op & 7, size = bytes[opcode][reg];

    *store = stores[opcode] >> reg & 1;
    return size > 10 && dflag == MO_16 ? size - 14 : size;
}
