package accel

// For tests of package accel_test.
var (
	Payload   = payload
	MayOpen   = mayOpen
	ProbeWork = probeWork
)

// Places in the guest's memory.
const (
	AddrCode   = addrCode
	AddrResult = addrArgs + 8
	AddrEnd    = addrEnd
	MemorySize = memorySize
)

// Fill is fill with the work of a probe.
func Fill(memory []byte) { fill(memory, probeWork) }
