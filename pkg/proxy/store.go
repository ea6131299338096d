package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/ambipod/ambipod/pkg/layout"
)

// saveInterval is how often a backend's lists are written at most.
const saveInterval = time.Second

// storeMagic begins every file; another format gets another number.
const storeMagic = "ambipod-known-1\n"

// store keeps last known lists in files, so that a restarted proxy knows what
// the old one knew. There is one file per list, <dir>/known/<backend>.<method>:
// the magic, the boot's ID, the backend's ID prefix, a CRC-32C of the list, and
// the list as a protobuf answer whose IDs have that prefix. A file of an earlier
// boot describes nothing that still exists.
type store struct {
	dir  string
	boot []byte
}

func newStore(stateDir string) (*store, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read the boot's ID: %w", err)
	}
	s := &store{dir: layout.Layout{Run: stateDir}.KnownLists(), boot: boot}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the folder for last known lists: %w", err)
	}
	return s, nil
}

func (s *store) path(of identity, method string) string {
	return filepath.Join(s.dir, of.name+"."+method)
}

// errForeign is of a file that this proxy cannot or must not use.
var errForeign = errors.New("is damaged, of another version, another ID prefix or an earlier boot")

// header is what a file of a backend begins with.
func (s *store) header(of identity) []byte {
	return fmt.Appendf(nil, "%s%s%q\n", storeMagic, s.boot, of.idPrefix)
}

// load reads a list; nil without error means that there is none.
func (s *store) load(of identity, method string) ([]byte, error) {
	path := s.path(of, method)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read last known list: %w", err)
	}
	rest, ok := bytes.CutPrefix(text, s.header(of))
	if !ok || len(rest) < crc32.Size {
		return nil, fmt.Errorf("last known list %s %w", path, errForeign)
	}
	sum, list := binary.BigEndian.Uint32(rest), rest[crc32.Size:]
	if sum != frameOf(list).checksum() {
		return nil, fmt.Errorf("last known list %s %w", path, errForeign)
	}
	return list, nil
}

// save writes a list so that a reader sees the old one or the new one.
func (s *store) save(of identity, method string, list []byte, sum uint32) error {
	path := s.path(of, method)
	text := binary.BigEndian.AppendUint32(s.header(of), sum)
	text = append(text, list...)
	temporary := path + ".new"
	if err := os.WriteFile(temporary, text, 0o600); err != nil {
		return fmt.Errorf("write last known list: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("replace last known list: %w", err)
	}
	return nil
}

// checksum is the CRC-32C of the frame's message.
func (f *frame) checksum() uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	var sum uint32
	for _, part := range f.data {
		sum = crc32.Update(sum, table, part.ReadOnlyData())
	}
	return sum
}

// recallSaved fills the memories of the lists that are kept in files.
func (b *backend) recallSaved() {
	for _, r := range b.node.rules.kept {
		list, err := b.node.store.load(b.identity, r.method)
		if err != nil {
			b.log.Warn("go on without a saved list", "error", err)
		}
		if list != nil {
			b.source(r).memory.remember(frameOf(list), time.Time{})
		}
	}
}

// needsSaving wakes save.
func (b *backend) needsSaving() {
	select {
	case b.unsaved <- struct{}{}:
	default: // it is awake
	}
}

// save writes the backend's lists whenever they have changed, until it closes.
func (b *backend) save() {
	written := map[string]uint32{}
	for {
		select {
		case <-b.unsaved:
		case <-b.ctx.Done():
			b.saveChanged(written)
			return
		}
		b.saveChanged(written)
		pause(b.ctx, saveInterval)
	}
}

// saveChanged writes the lists whose content differs from what was written last.
func (b *backend) saveChanged(written map[string]uint32) {
	for _, r := range b.node.rules.kept {
		list, _, err := b.source(r).memory.recall()
		if err != nil {
			b.log.Warn("a remembered list cannot be saved", "method", r.method, "error", err)
		}
		if list == nil {
			continue
		}
		sum := list.checksum()
		if last, ok := written[r.method]; ok && last == sum {
			list.free()
			continue
		}
		if err := b.node.store.save(b.identity, r.method, list.bytes(), sum); err != nil {
			b.log.Error("last known objects will be forgotten by a restart", "error", err)
		} else {
			written[r.method] = sum
		}
		list.free()
	}
}
