# What a guest of the KVM probe executes, in long mode and kernel mode, at 0x10000.
# It does, in small, what any operating system does all the time, checks each
# result by itself and reports by bytes on port 0xf4: one letter after each part,
# 'D' at the end, 'X' when anything is not as it must be. Go prepares page tables,
# descriptors and the numbers at "args", see guest.go. Build: see payload_test.go.
	.set PORT, 0xf4
	.set APIC, 0xfee00000
	.set STACK, 0x2a000
	.set ROOT_A, 0x18000
	.set ROOT_B, 0x20000
	.set TABLE_A, 0x1b000		# last level of root A, maps the first 2 MiB
	.set PAGES, 0x100000		# the pages to fault in …
	.set COUNT, 255			# … but for the last one
	.set ALIAS, 0x1ff000		# which is another page in root B

	.code64
	.globl _start
_start:	jmp main
	.org 8
args:	.quad 0				# multiplications to do
	.quad 0				# their result
	.quad 0				# rounds of everything else

main:	movq $STACK, %rsp
	xorl %r14d, %r14d		# interrupts counted by "count"
	movq args+16(%rip), %r13

	# Plain arithmetic. Each step needs the one before it.
	movq args(%rip), %rcx
	movabsq $6364136223846793005, %rbx
	movl $1, %eax
1:	imulq %rbx, %rax
	incq %rax
	decq %rcx
	jnz 1b
	cmpq args+8(%rip), %rax
	jne wrong
	movb $'C', %al
	outb %al, $PORT

	# Interrupts and returns from them.
	movq %r13, %rcx
2:	int $0x40
	decq %rcx
	jnz 2b
	cmpq %r13, %r14
	jne wrong
	movb $'I', %al
	outb %al, $PORT

	# System calls from user mode, which needs model-specific registers.
	movl $0xc0000080, %ecx		# EFER
	rdmsr
	orl $1, %eax
	wrmsr
	movl $0xc0000081, %ecx		# STAR
	xorl %eax, %eax
	movl $0x00180008, %edx
	wrmsr
	movl $0xc0000082, %ecx		# LSTAR
	leaq syscalled(%rip), %rax
	movq %rax, %rdx
	shrq $32, %rdx
	wrmsr
	movl $0xc0000084, %ecx		# SFMASK
	movl $0x200, %eax
	xorl %edx, %edx
	wrmsr
	movq %r13, %r12
3:	leaq user(%rip), %rcx
	movl $0x2, %r11d
	sysretq
user:	syscall
	jmp wrong			# nobody returns here
syscalled:
	decq %r12
	jnz 3b
	movb $'S', %al
	outb %al, $PORT

	# Page faults, mended by the handler, twice over.
	movl $2, %ebp
4:	xorl %r14d, %r14d
	movq $PAGES, %rsi
	movq $COUNT, %rcx
5:	movq %rsi, %rax
	shrq $9, %rax			# eight bytes for each page
	andq $-2, TABLE_A(%rax)
	invlpg (%rsi)
	incq (%rsi)
	addq $4096, %rsi
	decq %rcx
	jnz 5b
	cmpq $COUNT, %r14
	jne wrong
	decl %ebp
	jnz 4b
	movb $'P', %al
	outb %al, $PORT

	# Changes of the address space.
	movq $ROOT_A, %r8
	movq $ROOT_B, %r9
	movq $0, ALIAS
	movq %r13, %rcx
6:	movq %r9, %cr3
	movq %rcx, ALIAS
	movq %r8, %cr3
	cmpq $0, ALIAS
	jne wrong
	decq %rcx
	jnz 6b
	movq %r9, %cr3
	movq ALIAS, %rax
	movq %r8, %cr3
	cmpq $1, %rax
	jne wrong
	movb $'R', %al
	outb %al, $PORT

	# Three ticks of the local timer, slept for.
	movb $0xff, %al
	outb %al, $0x21			# no interrupts from the old controllers
	outb %al, $0xa1
	xorl %r14d, %r14d
	movl $APIC, %ebx
	movl $0x1ff, 0xf0(%rbx)		# on; spurious ones are vector 0xff
	movl $0xb, 0x3e0(%rbx)		# count every bus clock
	movl $0x20050, 0x320(%rbx)	# periodic, vector 0x50
	movl $1000000, 0x380(%rbx)
7:	sti
	hlt
	cli
	cmpq $3, %r14
	jb 7b
	movl $0x10050, 0x320(%rbx)	# off
	movb $'T', %al
	outb %al, $PORT

	movb $'D', %al
	outb %al, $PORT
stop:	hlt
	jmp stop

wrong:	movb $'X', %al
	outb %al, $PORT
	jmp stop

	# Handlers, at addresses that guest.go knows.
	.org 0x400
count:	incq %r14
	iretq

	.org 0x420
tick:	incq %r14
	movl $0, 0xb0(%rbx)		# end of interrupt
	iretq

	.org 0x440
fault:	pushq %rax
	movq %cr2, %rax
	cmpq %rsi, %rax
	jne wrong
	shrq $9, %rax
	orq $1, TABLE_A(%rax)
	popq %rax
	addq $8, %rsp			# the error code
	incq %r14
	iretq

	.org 0x480
other:	jmp wrong

	.org 0x4a0
spurious:
	iretq

	.org 0x500
