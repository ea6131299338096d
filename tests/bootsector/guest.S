# The whole operating system of a test guest: one boot sector. It talks on the
# first serial port and obeys single letters that it reads from there:
#   p  power off          r  reset             t  triple fault
#   k  tell the panic device of a kernel panic
#   w  write a copy of this sector to the boot disk's second sector
#   h  halt for ever with interrupts off, after its echo
#   f  write on the serial port without end
# Every other character is echoed. The ACPI power button powers it off, too.
	.code16
	.globl _start
_start:
	cli
	xorw %ax, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	movw $0x7c00, %sp
	movb %dl, drive
	movw $0x602, %dx		# ACPI PM1a enable, where SeaBIOS puts it
	movw $0x100, %ax		# the power button sets its status bit
	outw %ax, %dx
	movw $ready, %si
	call print
	sti

idle:	hlt				# the PC's timer ends it 18 times a second
	movw $0x600, %dx		# PM1a status
	inw %dx, %ax
	testb $1, %ah
	jnz button
input:	movw $0x3fd, %dx		# line status of COM1
	inb %dx, %al
	testb $1, %al
	jz idle
	movw $0x3f8, %dx
	inb %dx, %al
	cmpb $'p', %al
	je off
	cmpb $'r', %al
	je reset
	cmpb $'t', %al
	je fault
	cmpb $'k', %al
	je panic
	cmpb $'w', %al
	je write
	cmpb $'h', %al
	je deaf
	cmpb $'f', %al
	je flood
	call putc
	jmp input

button:	movw $pressed, %si
	call print
off:	movw $0x604, %dx		# PM1a control
	movw $0x2000, %ax		# sleep now, type 0: soft off
	outw %ax, %dx
	jmp halt

deaf:	call putc
halt:	cli
	hlt
	jmp halt

flood:	movw $wave, %si
	call print
	jmp flood

reset:	movw $0xcf9, %dx
	movb $6, %al
	outb %al, %dx
	jmp halt

fault:	lidt none
	int $3
	jmp halt

panic:	movw $0x505, %dx
	movb $1, %al
	outb %al, %dx
	jmp halt

write:	movw $0x0301, %ax		# one sector
	movw $0x7c00, %bx		# from here
	movw $0x0002, %cx		# to cylinder 0, sector 2
	movb $0, %dh
	movb drive, %dl
	int $0x13
	movw $wrote, %si
	jnc said
	movw $broken, %si
said:	call print
	jmp input

print:	lodsb
	testb %al, %al
	jz 1f
	call putc
	jmp print
1:	ret

putc:	pushw %ax
	movw $0x3fd, %dx
2:	inb %dx, %al
	testb $0x20, %al
	jz 2b
	popw %ax
	movw $0x3f8, %dx
	outb %al, %dx
	ret

ready:	.asciz "READY\r\n"
pressed: .asciz "BUTTON\r\n"
wrote:	.asciz "WROTE\r\n"
wave:	.asciz "FLOOD FLOOD FLOOD FLOOD FLOOD FLOOD\r\n"
broken:	.asciz "WRITE ERROR\r\n"
drive:	.byte 0
none:	.word 0				# an empty interrupt table
	.long 0

	.org 510
	.word 0xaa55
