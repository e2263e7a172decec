/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The ways to a descriptor of /dev/kvm, and what may be done with one. Prints a line for each. */
#include "kvm.h"
#include "rights.h"
#include <linux/close_range.h>
#include <poll.h>
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/syscall.h>

extern char **environ;

#define SHOW(what, value) printf("%s: %d\n", what, (int)(value))

static int by_openat2(void)
{
    uint64_t how[3] = { O_RDWR | O_CLOEXEC };

    return syscall(437, AT_FDCWD, "/dev/kvm", how, sizeof(how));
}

static void ways_to_open(void)
{
    int directory = open("/dev", O_RDONLY | O_DIRECTORY), fd;
    FILE *stream;

    SHOW("open", usable(open("/dev/kvm", O_RDWR)));
    SHOW("open read-only", usable(open("/dev/kvm", O_RDONLY)));
    SHOW("open write-only", usable(open("/dev/kvm", O_WRONLY)));
    SHOW("openat", usable(openat(directory, "kvm", O_RDWR)));
    SHOW("openat absolute", usable(openat(-1, "/dev/kvm", O_RDWR)));
    SHOW("syscall(SYS_open)", usable(syscall(SYS_open, "/dev/kvm", O_RDWR)));
    SHOW("syscall(SYS_openat)", usable(syscall(SYS_openat, directory, "./kvm", O_RDWR)));
    SHOW("syscall(SYS_openat2)", usable(by_openat2()));
    SHOW("dots", usable(open("/dev/../dev/./kvm", O_RDWR)));
    SHOW("double slash", usable(open("//dev//kvm", O_RDWR)));
    if (chdir("/dev/shm")) {
        exit(2);
    }
    SHOW("relative", usable(open("../kvm", O_RDWR)));
    if (chdir("/dev")) {
        exit(2);
    }
    SHOW("relative in /dev", usable(open("kvm", O_RDWR)));
    fd = open("/dev/kvm", O_RDWR);
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    SHOW("/proc/self/fd", usable(open(path, O_RDWR)));
    stream = fopen("/dev/kvm", "r+");
    SHOW("fopen", stream ? usable(fileno(stream)) : -errno);
    SHOW("O_DIRECTORY", open("/dev/kvm", O_RDWR | O_DIRECTORY) < 0 ? -errno : 0);
    SHOW("O_CREAT|O_EXCL", open("/dev/kvm", O_RDWR | O_CREAT | O_EXCL, 0600) < 0 ? -errno : 0);
    SHOW("O_CREAT", usable(open("/dev/kvm", O_RDWR | O_CREAT, 0600)));
    SHOW("trailing slash", open("/dev/kvm/", O_RDWR) < 0 ? -errno : 0);
    SHOW("another name", open("/dev/kvm_", O_RDWR) < 0 ? -errno : 0);
}

static void duplicates(void)
{
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC), other, vm;

    SHOW("close-on-exec", fcntl(fd, F_GETFD));
    SHOW("not close-on-exec", fcntl(open("/dev/kvm", O_RDWR), F_GETFD));
    SHOW("dup", usable(dup(fd)));
    SHOW("dup2", usable(dup2(fd, 100)));
    SHOW("dup3", usable(dup3(fd, 101, O_CLOEXEC)));
    SHOW("dup3 close-on-exec", fcntl(101, F_GETFD));
    SHOW("dup2 itself", dup2(fd, fd) == fd);
    other = fcntl(fd, F_DUPFD, 200);
    SHOW("F_DUPFD", other);
    SHOW("F_DUPFD usable", usable(other));
    close(fd);
    SHOW("after close of the first", usable(other));
    SHOW("closed", usable(fd));
    vm = ioctl(other, KVM_CREATE_VM, 0L);
    SHOW("VM close-on-exec", fcntl(vm, F_GETFD));
    SHOW("dup2 over a VM", dup2(STDOUT_FILENO, vm) == vm);
    SHOW("no VM any more", ioctl(vm, KVM_CREATE_VCPU, 0L) < 0 ? -errno : 0);
    SHOW("close_range", close_range(100, 300, 0));
    SHOW("closed by range", usable(other));
    SHOW("bad descriptor", usable(-1));
}

static void other_calls(void)
{
    struct machine m = new_machine(0);
    struct pollfd poll_kvm = { .fd = m.vcpu, .events = POLLIN | POLLOUT };
    struct epoll_event event = { .events = EPOLLIN };
    struct stat status;
    int epoll = epoll_create1(0);

    SHOW("poll a vCPU", poll(&poll_kvm, 1, 0));
    SHOW("poll events", poll_kvm.revents);
    SHOW("epoll", epoll_ctl(epoll, EPOLL_CTL_ADD, m.vcpu, &event) ? -errno : 0);
    SHOW("stat is a character device", !stat("/dev/kvm", &status) && S_ISCHR(status.st_mode));
    SHOW("stat number", status.st_rdev);
    SHOW("fstat is a character device", !fstat(m.kvm, &status) && S_ISCHR(status.st_mode));
    SHOW("fstat number", status.st_rdev);
    SHOW("access", access("/dev/kvm", R_OK | W_OK));
    SHOW("faccessat", faccessat(AT_FDCWD, "/dev/kvm", R_OK | W_OK, 0));
    SHOW("a terminal's ioctl", isatty(m.kvm));
    SHOW("FIOCLEX", ioctl(m.kvm, FIOCLEX));
    SHOW("unknown ioctl of the device", ioctl(m.kvm, 0xaeff, 0L) < 0 ? -errno : 0);
    SHOW("unknown ioctl of a VM", ioctl(m.vm, 0xaeff, 0L) < 0 ? -errno : 0);
    SHOW("unknown ioctl of a vCPU", ioctl(m.vcpu, 0xaeff, 0L) < 0 ? -errno : 0);
    SHOW("KVM ioctl of another file", ioctl(epoll, KVM_GET_API_VERSION, 0L) < 0 ? -errno : 0);
    SHOW("mmap of the device", mmap(NULL, 4096, PROT_READ, MAP_SHARED, m.kvm, 0) == MAP_FAILED ? -errno : 0);
    SHOW("mmap of a VM", mmap(NULL, 4096, PROT_READ, MAP_SHARED, m.vm, 0) == MAP_FAILED ? -errno : 0);
}

static int status_of(pid_t child)
{
    int status;

    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static void processes(const char *self)
{
    struct machine m = new_machine(0);
    int ends[2], inherited = open("/dev/kvm", O_RDWR);
    char number[16];
    pid_t child;

    fflush(stdout);
    child = fork();
    if (!child) { /* the parent's VM is another process's; /dev/kvm is not */
        struct machine own;

        SHOW("child, parent's VM", ioctl(m.vm, KVM_CREATE_VCPU, 7L) < 0 ? -errno : 0);
        SHOW("child, parent's vCPU", ioctl(m.vcpu, KVM_RUN, 0L) < 0 ? -errno : 0);
        SHOW("child, parent's /dev/kvm", usable(m.kvm));
        own = new_machine(0);
        START(&own, 0x1000, OUT_HLT);
        printf("child, its own: %s\n", run(&own));
        fflush(stdout);
        _exit(3);
    }
    SHOW("child's status", status_of(child));
    START(&m, 0x1000, OUT_HLT);
    printf("parent after fork: %s\n", run(&m));
    fflush(stdout);

    child = vfork();
    if (!child) {
        close(m.vm);
        execl("/bin/true", "true", NULL);
        _exit(4);
    }
    SHOW("vfork's status", status_of(child));
    SHOW("VM after vfork", ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY));
    fflush(stdout);

    snprintf(number, sizeof(number), "%d", inherited);
    char *arguments[] = { (char *)self, "inherited", number, NULL }, *empty[] = { "A=B", NULL };
    must(-posix_spawn(&child, self, NULL, NULL, arguments, environ), "posix_spawn");
    SHOW("spawned", status_of(child));
    fflush(stdout);
    must(-posix_spawn(&child, self, NULL, NULL, arguments, empty), "posix_spawn");
    SHOW("spawned with a cleared environment", status_of(child));

    must(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), "socketpair");
    send_fd(ends[0], m.kvm);
    SHOW("sent to itself", usable(receive_fd(ends[1])));
    fflush(stdout);
    child = fork();
    if (!child) {
        SHOW("VM sent to another process", ioctl(receive_fd(ends[1]), KVM_CREATE_VCPU, 7L) < 0 ? -errno : 0);
        SHOW("/dev/kvm sent to another process", usable(receive_fd(ends[1])));
        fflush(stdout);
        _exit(0);
    }
    send_fd(ends[0], m.vm);
    send_fd(ends[0], m.kvm);
    status_of(child);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";

    if (!strcmp(what, "open")) {
        ways_to_open();
    } else if (!strcmp(what, "duplicates")) {
        duplicates();
    } else if (!strcmp(what, "calls")) {
        other_calls();
    } else if (!strcmp(what, "processes")) {
        processes(argv[0]);
    } else if (!strcmp(what, "inherited")) { /* executed by processes(): 0 if both its descriptor and a new one work */
        return usable(atoi(argv[2])) != 12 || usable(open("/dev/kvm", O_RDWR)) != 12;
    }
    return 0;
}
