# Boots the payload of the KVM probe on any PC: loads its 128 KiB from the sectors
# after this one to where they belong, and enters long mode as setRegisters does.
	.code16
	.globl _start
_start:	cli
	xorw %ax, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	movw $0x7c00, %sp
	movb %dl, drive
1:	movw $packet, %si
	movb $0x42, %ah			# read by block number
	movb drive, %dl
	int $0x13
	jc stop
	addw $0x800, segment		# 32 KiB on
	addl $64, block
	decw left
	jnz 1b

	movb $2, %al			# address line 20
	outb %al, $0x92
	lgdt gdt
	lidt idt
	movl $0x620, %eax		# PAE OSFXSR OSXMMEXCPT
	movl %eax, %cr4
	movl $0x18000, %eax		# root A
	movl %eax, %cr3
	movl $0xc0000080, %ecx		# EFER
	xorl %edx, %edx
	movl $0x900, %eax		# NXE LME
	wrmsr
	movl $0x80010033, %eax		# PG WP NE ET MP PE
	movl %eax, %cr0
	ljmpl $0x08, $0x10000
stop:	hlt
	jmp stop

	.balign 4
packet:	.word 16, 64, 0
segment: .word 0x1000
block:	.long 1, 0
left:	.word 4
drive:	.byte 0
	.balign 4
gdt:	.word 63
	.long 0x14000
idt:	.word 4095
	.long 0x15000
	.org 510
	.word 0xaa55
