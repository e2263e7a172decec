/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Gives an eventfd to KVM_IRQFD, and says what became of it. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

int main(void)
{
    int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0);
    struct kvm_irqfd irqfd = {.fd = eventfd(0, 0), .gsi = 4};

    if (vm < 0 || ioctl(vm, KVM_CREATE_IRQCHIP, 0))
        return 1;
    printf("%s\n", ioctl(vm, KVM_IRQFD, &irqfd) ? strerror(errno) : "taken");
    return 0;
}
