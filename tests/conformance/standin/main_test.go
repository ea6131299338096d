package main

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestItTellsItsEffectiveUser(t *testing.T) {
	var out bytes.Buffer
	if err := run("/nonewprivs", &out); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("Effective uid: %d\n", os.Geteuid()); out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestAnotherNameIsAnError(t *testing.T) {
	if err := run("/bin/apache", new(bytes.Buffer)); err == nil {
		t.Error("a name that it does not play was accepted")
	}
}
