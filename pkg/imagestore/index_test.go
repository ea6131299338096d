package imagestore

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// setVersion pretends that another version wrote the index.
func setVersion(x *index, version int) error {
	return x.db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte(bucketMeta)).Put([]byte(keyVersion), []byte(strconv.Itoa(version)))
	})
}

// TestSchemaIsDocumented compares the buckets of a used index with the drawing in
// the package comment.
func TestSchemaIsDocumented(t *testing.T) {
	s := openStore(t)
	var buckets []string
	err := s.index.db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, _ *bolt.Bucket) error {
			buckets = append(buckets, string(name))
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	var drawn []string
	for _, line := range regexp.MustCompile(`(?m)^//\t(\w+) +\S+ +→ `).FindAllSubmatch(doc, -1) {
		drawn = append(drawn, string(line[1]))
	}
	slices.Sort(drawn)
	if !slices.Equal(buckets, drawn) {
		t.Errorf("buckets %q, in doc.go %q", buckets, drawn)
	}
}
