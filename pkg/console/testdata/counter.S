# A guest that prints numbered lines on its first serial port as fast as it can:
# eight decimal digits, carriage return, newline.
	.code16
	.globl _start
_start:
	cli
	xorw %ax, %ax
	movw %ax, %ds
	movw %ax, %ss
	movw $0x7c00, %sp

line:	movw $number, %si
next:	lodsb
	testb %al, %al
	jz count
	movb %al, %bl
	movw $0x3fd, %dx		# line status of COM1
wait:	inb %dx, %al
	testb $0x20, %al		# room for a byte
	jz wait
	movw $0x3f8, %dx
	movb %bl, %al
	outb %al, %dx
	jmp next

count:	movw $number+7, %di		# add one, from the last digit on
carry:	incb (%di)
	cmpb $'9', (%di)
	jbe line
	movb $'0', (%di)
	decw %di
	jmp carry

number:	.asciz "00000000\r\n"

	.org 510
	.word 0xaa55
