package cloudinit

import (
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

func TestConfigDriveGolden(t *testing.T) {
	full := everything(t)
	full.Network.Interfaces[1].Routes = nil // of no use to a config drive
	full.Network.Interfaces[0].Addresses = append(full.Network.Interfaces[0].Addresses, netip.MustParsePrefix("10.244.9.7/20"))
	raw := everything(t)
	raw.UserData = UserData{Raw: []byte("#ps1_sysnative\r\nhostname\r\n")}
	raw.Network = nil
	raw.MetaData = map[string]any{"instance-id": "given", "public-keys": []any{"ssh-rsa AAAA"}}
	for name, c := range map[string]Config{"minimal": minimal(), "everything": full, "raw": raw} {
		t.Run(name, func(t *testing.T) {
			files, err := ConfigDrive(c)
			if err != nil {
				t.Fatal(err)
			}
			compareGolden(t, filepath.Join("testdata", "configdrive", name), files)
		})
	}
}

func TestConfigDriveRefusals(t *testing.T) {
	if _, err := ConfigDrive(Config{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got error %v, want an invalid argument", err)
	}
	for _, r := range []Route{
		{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("169.254.1.1")},
		{To: netip.MustParsePrefix("192.0.2.0/24")},
	} {
		c := minimal()
		c.Network = &NetworkConfig{Interfaces: []Interface{{
			MAC: mac(t, "52:54:00:aa:00:01"), Name: "eth0", Addresses: prefixes("10.0.0.2/24"), Routes: []Route{r},
		}}}
		if _, err := ConfigDrive(c); !errdefs.IsNotImplemented(err) {
			t.Errorf("route to %s via %s: got error %v, want that it is not possible", r.To, r.Via, err)
		}
		c.NetworkV1 = true
		if _, err := NoCloud(c); !errdefs.IsNotImplemented(err) {
			t.Errorf("route to %s via %s in version 1: got error %v, want that it is not possible", r.To, r.Via, err)
		}
	}
}
