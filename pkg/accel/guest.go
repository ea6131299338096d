package accel

import (
	_ "embed"
	"encoding/binary"
)

// payload is payload.S, assembled; TestPayloadIsAssembled compares the two.
//
//go:embed payload.bin
var payload []byte

// The guest's memory, as payload.S knows it.
const (
	memorySize = 2 << 20
	pageSize   = 4096

	addrCode = 0x10000
	addrArgs = addrCode + 8
	addrGDT  = 0x14000
	addrTSS  = 0x14100
	addrIDT  = 0x15000
	// Each root is followed by its directories, and by its table of 4 KiB pages.
	addrRootA   = 0x18000
	addrDevices = 0x1c000 // directory for the last GiB below 4 GiB, of both roots
	addrRootB   = 0x20000
	addrStack   = 0x2a000
	addrEnd     = 0x30000

	aliasPage = 0x1ff // which is another page …
	otherPage = 0x1fe // … in root B

	addrAPIC = 0xfee00000
)

// Handlers in payload.S.
const (
	handlerCount    = addrCode + 0x400
	handlerTick     = addrCode + 0x420
	handlerFault    = addrCode + 0x440
	handlerOther    = addrCode + 0x480
	handlerSpurious = addrCode + 0x4a0
)

// Selectors in the guest's GDT, in the order that SYSCALL and SYSRET demand.
const (
	selectorCode = 0x08
	selectorData = 0x10
	selectorTSS  = 0x30
)

// Bits of control registers and page tables.
const (
	cr0    = 1<<31 | 1<<16 | 1<<5 | 1<<4 | 1<<1 | 1<<0 // PG WP NE ET MP PE
	cr4    = 1<<5 | 1<<9 | 1<<10                       // PAE OSFXSR OSXMMEXCPT
	efer   = 1<<8 | 1<<10 | 1<<11                      // LME LMA NXE
	rflags = 1 << 1

	present  = 1<<0 | 1<<1 | 1<<2 // writable, for user mode, too
	bigPage  = 1 << 7
	uncached = 1<<3 | 1<<4
)

// work is how much the payload does.
type work struct {
	multiplications uint64
	rounds          uint64
}

// Arithmetic of the payload's first part.
const (
	multiplier = 6364136223846793005
	firstValue = 1
)

// multiply is the first part of the payload, natively.
func (w work) multiply() uint64 {
	value := uint64(firstValue)
	for range w.multiplications {
		value = value*multiplier + 1
	}
	return value
}

// fill writes the guest's memory up to addrEnd: program, tables and arguments.
func fill(memory []byte, w work) {
	copy(memory[addrCode:], payload)
	put := func(address int, value uint64) { binary.LittleEndian.PutUint64(memory[address:], value) }
	for i, arg := range []uint64{w.multiplications, w.multiply(), w.rounds} {
		put(addrArgs+8*i, arg)
	}
	for i, descriptor := range []uint64{
		0,
		0x00af9b000000ffff, // selectorCode
		0x00cf93000000ffff, // selectorData
		0x00cffb000000ffff, // user code, 32 bits, unused
		0x00cff3000000ffff, // user data
		0x00affb000000ffff, // user code
		0x0000890000000067 | addrTSS<<16,
		0,
	} {
		put(addrGDT+8*i, descriptor)
	}
	put(addrTSS+4, addrStack-pageSize) // stack of interrupts in user mode
	for vector := range 256 {
		handler := uint64(handlerOther)
		switch vector {
		case 14:
			handler = handlerFault
		case 0x40:
			handler = handlerCount
		case 0x50:
			handler = handlerTick
		case 0xff:
			handler = handlerSpurious
		}
		const interruptGate = 0x8e
		put(addrIDT+16*vector, handler&0xffff|selectorCode<<16|interruptGate<<40|handler>>16<<48)
		put(addrIDT+16*vector+8, 0)
	}
	fillPages(put, addrRootA, aliasPage)
	fillPages(put, addrRootB, otherPage)
}

// fillPages maps 2 MiB one to one, except that aliasPage leads to the page alias,
// and the interrupt controller.
func fillPages(put func(int, uint64), root int, alias uint64) {
	level3, level2, level1 := root+pageSize, root+2*pageSize, root+3*pageSize
	put(root, uint64(level3)|present)   //nolint:gosec // addresses are below 2 MiB
	put(level3, uint64(level2)|present) //nolint:gosec // the same
	put(level3+8*3, addrDevices|present)
	put(level2, uint64(level1)|present) //nolint:gosec // the same
	for page := range uint64(memorySize / pageSize) {
		put(level1+8*int(page), page*pageSize|present)
	}
	put(level1+8*aliasPage, alias*pageSize|present)
	const bigPageSize = 2 << 20
	put(addrDevices+8*(addrAPIC%(1<<30)/bigPageSize), addrAPIC|present|bigPage|uncached)
}

// setRegisters makes the state in which a 64-bit kernel runs.
func setRegisters(s *systemRegs) {
	s.CS = segment{Limit: 0xffffffff, Selector: selectorCode, Type: 11, Present: 1, S: 1, L: 1, G: 1}
	data := segment{Limit: 0xffffffff, Selector: selectorData, Type: 3, Present: 1, DB: 1, S: 1, G: 1}
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.TR = segment{Base: addrTSS, Limit: 0x67, Selector: selectorTSS, Type: 11, Present: 1}
	s.GDT = descriptorTable{Base: addrGDT, Limit: 8*8 - 1}
	s.IDT = descriptorTable{Base: addrIDT, Limit: 256*16 - 1}
	s.CR0, s.CR3, s.CR4, s.EFER = cr0, addrRootA, cr4, efer
}
