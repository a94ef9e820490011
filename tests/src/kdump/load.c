/* Loads a crash kernel: load KERNEL INITRAMFS COMMAND-LINE. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kexec.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int count, char **words)
{
	int kernel, initramfs;

	if (count != 4)
		return 2;
	kernel = open(words[1], O_RDONLY);
	initramfs = open(words[2], O_RDONLY);
	if (kernel < 0 || initramfs < 0 ||
	    syscall(SYS_kexec_file_load, kernel, initramfs, strlen(words[3]) + 1, words[3],
		    KEXEC_FILE_ON_CRASH)) {
		printf("NO CRASH KERNEL: %s\n", strerror(errno));
		return 1;
	}
	printf("CRASH KERNEL LOADED\n");
	return 0;
}
