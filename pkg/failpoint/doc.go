// Package failpoint lets tests end vmruntime at a chosen step of an operation, as a
// kill at that instant would, and move its clock.
//
// A fail point is a call of Hit between two steps of an operation that must survive
// the end of the process there. Its name is OPERATION/WHAT-HAS-JUST-BEEN-DONE.
// tests/faults drives every one of them.
//
// The programs that are shipped know nothing of this: without the build tag
// failpoints, Hit is empty and Now is time.Now, and both are inlined.
//
// All functions may be called from anywhere.
package failpoint

// EnvFile names the file that arms a fail point by containing its name. The process
// removes the file before it ends, so that its successor does not end there as well.
// After the name and a space, the word "freeze" makes it stop (SIGSTOP) instead.
const EnvFile = "AMBIPOD_FAILPOINT_FILE"

// EnvClock is by how much the wall clock is wrong, in time.ParseDuration's format.
const EnvClock = "AMBIPOD_FAILPOINT_CLOCK"
