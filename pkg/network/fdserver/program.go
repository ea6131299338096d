package fdserver

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
)

// checkProgram refuses a process that runs another program than the file want, or a
// copy of it; with an empty want it refuses none.
func checkProgram(pid int, want string) error {
	if want == "" {
		return nil
	}
	same, err := sameProgram("/proc/"+strconv.Itoa(pid)+"/exe", want)
	if err != nil {
		return fmt.Errorf("look at the caller's program: %w", err)
	}
	if !same {
		return fmt.Errorf("process %d does not run %s", pid, want)
	}
	return nil
}

func sameProgram(have, want string) (same bool, err error) {
	var files [2]*os.File
	var infos [2]os.FileInfo
	for i, path := range []string{have, want} {
		if files[i], err = os.Open(path); err != nil {
			return false, err
		}
		defer func() { err = errors.Join(err, files[i].Close()) }()
		if infos[i], err = files[i].Stat(); err != nil {
			return false, err
		}
	}
	if os.SameFile(infos[0], infos[1]) {
		return true, nil
	}
	if infos[0].Size() != infos[1].Size() {
		return false, nil
	}
	var sums [2][]byte
	for i, f := range files {
		hash := sha256.New()
		if _, err := io.Copy(hash, f); err != nil {
			return false, err
		}
		sums[i] = hash.Sum(nil)
	}
	return bytes.Equal(sums[0], sums[1]), nil
}
