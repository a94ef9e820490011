/*
 * hypervisor: a guest of a test guest. It has one vCPU in real mode and a page of memory, and spins there for
 * good with interrupts off: its own timer never ends that, and the host's goes on.
 *
 * All of a QEMU that matters here. Says `hypervisor: its guest spins` right before, and else what failed.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define MEMORY_AT 0x1000
#define MEMORY_BYTES 0x1000

/* cli; jmp to itself */
static const uint8_t code[] = { 0xfa, 0xeb, 0xfe };

static int sound(int result, const char *what)
{
	if (result < 0) {
		printf("hypervisor: ");
		fflush(stdout);
		perror(what);
		exit(1);
	}
	return result;
}

int main(void)
{
	struct kvm_userspace_memory_region region = {
		.guest_phys_addr = MEMORY_AT,
		.memory_size = MEMORY_BYTES,
	};
	struct kvm_sregs segments;
	struct kvm_regs registers = { .rip = MEMORY_AT, .rflags = 2 };
	int kvm, vm, vcpu;
	void *memory;

	memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	sound(memory == MAP_FAILED ? -1 : 0, "mmap");
	memcpy(memory, code, sizeof(code));
	region.userspace_addr = (uintptr_t)memory;

	kvm = sound(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	vm = sound(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	sound(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	vcpu = sound(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	sound(mmap(NULL, sound(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE"),
		   PROT_READ, MAP_SHARED, vcpu, 0) == MAP_FAILED ? -1 : 0, "mmap of the vCPU");
	sound(ioctl(vcpu, KVM_GET_SREGS, &segments), "KVM_GET_SREGS");
	segments.cs.base = 0;
	segments.cs.selector = 0;
	sound(ioctl(vcpu, KVM_SET_SREGS, &segments), "KVM_SET_SREGS");
	sound(ioctl(vcpu, KVM_SET_REGS, &registers), "KVM_SET_REGS");

	printf("hypervisor: its guest spins\n");
	fflush(stdout);
	/* It never returns, but for a signal. */
	sound(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
	printf("hypervisor: its guest stopped\n");
	return 1;
}
