/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * tdreport: 64 bytes of REPORTDATA from stdin (fewer are padded with zeroes; from a terminal none are read), a TDREPORT
 * of 1024 bytes to stdout (in hexadecimal to a terminal), by TDX_CMD_GET_REPORT0 of /dev/tdx_guest (Linux, Documentation/virt/coco/tdx-guest.rst). Without a C library, so that it
 * needs none in the initrd; exits with 1 where the device or the call fails.
 */
#define SYS_READ 0
#define SYS_WRITE 1
#define SYS_OPEN 2
#define SYS_IOCTL 16
#define SYS_EXIT 60
#define TCGETS 0x5401ul
#define LINE 32 /* bytes */
#define TDX_CMD_GET_REPORT0 0xc4405401ul /* _IOWR('T', 1, 64 + 1024 bytes) */

static struct {
    unsigned char reportdata[64];
    unsigned char tdreport[1024];
} request;

static long call(long number, long first, const void *second, long third)
{
    long result;

    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(first), "S"(second), "d"(third)
                     : "rcx", "r11", "memory");
    return result;
}

static int is_terminal(long fd)
{
    static unsigned char termios[64];

    return call(SYS_IOCTL, fd, (void *)TCGETS, (long)termios) == 0;
}

static void show(const unsigned char *data, long size)
{
    static const char digits[] = "0123456789abcdef";
    char line[2 * LINE + 1];
    long at, byte;

    for (at = 0; at < size; at += LINE) {
        for (byte = 0; byte < LINE; byte++) {
            line[2 * byte] = digits[data[at + byte] >> 4];
            line[2 * byte + 1] = digits[data[at + byte] & 15];
        }
        line[2 * LINE] = '\n';
        call(SYS_WRITE, 1, line, sizeof(line));
    }
}

void _start(void)
{
    static const char device[] = "/dev/tdx_guest";
    long got = 0, step, fd;

    while (!is_terminal(0) && got < 64 && (step = call(SYS_READ, 0, request.reportdata + got, 64 - got)) > 0) {
        got += step;
    }
    fd = call(SYS_OPEN, (long)device, (void *)2 /* O_RDWR */, 0);
    if (fd < 0 || call(SYS_IOCTL, fd, (void *)TDX_CMD_GET_REPORT0, (long)&request) < 0) {
        call(SYS_EXIT, 1, 0, 0);
    }
    if (is_terminal(1)) {
        show(request.tdreport, sizeof(request.tdreport));
        call(SYS_EXIT, 0, 0, 0);
    }
    call(SYS_EXIT, call(SYS_WRITE, 1, request.tdreport, sizeof(request.tdreport)) != sizeof(request.tdreport), 0, 0);
}
