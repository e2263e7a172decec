/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the command has settled. It lies in a file beside the library and not in the environment, because tools that
 * start VMMs (libvirt, sandboxes) clear the environment; LD_PRELOAD itself survives by spawn.c.
 */
#include "preload.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <fcntl.h>

char settings[PATH_MAX], library[PATH_MAX];

__attribute__((constructor)) static void find_settings(void)
{
    char *slash;
    Dl_info info;

    if (!dladdr(settings, &info) || !info.dli_fname || strlen(info.dli_fname) >= sizeof(library)) {
        return;
    }
    strcpy(library, info.dli_fname); /* as LD_PRELOAD names it: the link beside the settings, not what it points to */
    strcpy(settings, library);
    slash = strrchr(settings, '/');
    if (slash) {
        *slash = 0;
    } else {
        *settings = 0;
    }
}

/* The line NAME=VALUE of the settings. Uses no memory but the stack: called between vfork() and exec(). */
bool setting(const char *name, char *value, size_t size)
{
    char path[PATH_MAX + 16], text[8192], *line, *rest = text;
    size_t length = strlen(name);
    long fd, got;

    snprintf(path, sizeof(path), "%s/settings", settings);
    fd = RAW(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    got = RAW(SYS_read, fd, text, sizeof(text) - 1);
    RAW(SYS_close, fd);
    text[got < 0 ? 0 : got] = 0;
    while ((line = strsep(&rest, "\n"))) {
        if (!strncmp(line, name, length) && line[length] == '=' && strlen(line + length + 1) < size) {
            strcpy(value, line + length + 1);
            return true;
        }
    }
    return false;
}

/* One sentence for the person, whatever --quiet says: something does not work. */
void say(const char *format, ...)
{
    char text[2 * PATH_MAX];
    va_list list;
    int length;

    va_start(list, format);
    length = vsnprintf(text, sizeof(text) - 1, format, list);
    va_end(list);
    if (length >= (int)sizeof(text) - 1) {
        length = sizeof(text) - 2;
    }
    text[length++] = '\n';
    RAW(SYS_write, STDERR_FILENO, text, length);
}
