/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/helper-proto.h"
#include "swtdx_internal.h"

#define STATUS_SUMMARY 0x80

void helper_swtdx_check_x87(CPUX86State *env)
{
    if ((env->fpus & STATUS_SUMMARY) && (env->cr[0] & CR0_NE_MASK)) {
        raise_exception_ra(env, EXCP10_COPR, GETPC());
    }
}
