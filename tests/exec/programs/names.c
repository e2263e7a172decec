/* SPDX-License-Identifier: GPL-2.0-or-later */
/* /dev/kvm by other names and by other calls than open(2). Says of each whose device it is. The argument is a folder. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define TDX 0x20 /* of KVM_CAP_VM_TYPES: the emulated machine has it */

static const char *whose(int fd)
{
    static char text[64];
    int types, number = errno;

    if (fd < 0) {
        snprintf(text, sizeof(text), "no device: %s", strerror(number));
        return text;
    }
    if (ioctl(fd, KVM_GET_API_VERSION, 0L) != 12) {
        snprintf(text, sizeof(text), "no use: %s", strerror(errno));
        return text;
    }
    types = ioctl(fd, KVM_CHECK_EXTENSION, 235L);
    return types & TDX && ioctl(fd, KVM_CREATE_VM, 0L) >= 0 ? "emulated" : "the machine's";
}

static void show(const char *name, int fd)
{
    printf("%s: %s\n", name, whose(fd));
    fflush(stdout);
}

static int by_path_descriptor(const char *path)
{
    int fd = open(path, O_PATH | O_CLOEXEC);
    char link[64];

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    return fd < 0 ? -1 : open(link, O_RDWR);
}

static int by_handle(void)
{
    struct {
        struct file_handle handle;
        unsigned char room[128];
    } named = { .handle.handle_bytes = 128 };
    int mount_id, folder = open("/dev", O_RDONLY | O_DIRECTORY);

    if (name_to_handle_at(AT_FDCWD, "/dev/kvm", &named.handle, &mount_id, 0)) {
        return -2;
    }
    return open_by_handle_at(folder, &named.handle, O_RDWR);
}

static int by_stream(const char *mode)
{
    FILE *stream = fopen("/dev/kvm", mode);

    return stream ? fileno(stream) : -1;
}

static int by_freopen(void)
{
    FILE *stream = freopen("/dev/kvm", "r+", fopen("/dev/null", "r"));

    return stream ? fileno(stream) : -1;
}

static int linked(const char *folder, const char *name, const char *target)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    unlink(path);
    return symlink(target, path) ? -1 : open(path, O_RDWR);
}

static int below_a_link(const char *folder)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s/devices", folder);
    unlink(path);
    symlink("/dev", path);
    strcat(path, "/kvm");
    return open(path, O_RDWR);
}

static int second_node(const char *folder, const char *name)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    unlink(path);
    return mknod(path, S_IFCHR | 0666, makedev(10, 232)) ? -2 : open(path, O_RDWR);
}

static int bound(const char *folder)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s/bound", folder);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    if (unshare(0x20000) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("/dev/kvm", path, NULL, MS_BIND, NULL)) {
        return -2;
    }
    return open(path, O_RDWR);
}

int main(int count, char **words)
{
    const char *folder = words[1];
    uint64_t how[3] = { O_RDWR };

    show("open", open("/dev/kvm", O_RDWR));
    show("read-only", open("/dev/kvm", O_RDONLY));
    show("creat", creat("/dev/kvm", 0600));
    show("fopen r+", by_stream("r+"));
    show("fopen rbe", by_stream("rbe"));
    show("freopen", by_freopen());
    show("openat2", syscall(437, AT_FDCWD, "/dev/kvm", how, sizeof(how)));
    show("/proc/self/root", open("/proc/self/root/dev/kvm", O_RDWR));
    show("below a link to /dev", below_a_link(folder));
    show("a link", linked(folder, "link", "/dev/kvm"));
    show("a relative link", linked("/dev/shm", "swtdx-link", "../kvm"));
    unlink("/dev/shm/swtdx-link");
    show("a link to a link", linked(folder, "second", "link"));
    show("a link named kvm", linked(folder, "kvm", "/dev/kvm"));
    show("O_PATH and again", by_path_descriptor("/dev/kvm"));
    if (count > 2) { /* what takes root and a device of the machine's */
        show("a second node", second_node(folder, "node"));
        show("a second node named kvm", second_node(folder, "kvm"));
        show("by handle", by_handle());
        show("bound elsewhere", bound(folder));
    }
    return 0;
}
