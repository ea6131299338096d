package cloudinit

import (
	"encoding/json"
	"fmt"
	"maps"
)

// Files are documents by their path in the image, with '/' between folders.
type Files map[string][]byte

// LabelNoCloud is the volume label by which a guest finds a NoCloud image.
const LabelNoCloud = "cidata"

// NoCloud renders the documents of the NoCloud data source: meta-data and
// user-data, plus network-config and vendor-data where there is something to say.
// A Config that a guest could not use yields ErrInvalidArgument, a network that
// version 1 cannot describe ErrNotImplemented.
func NoCloud(c Config) (Files, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	metaData, err := c.metaData()
	if err != nil {
		return nil, err
	}
	userData, vendorData, err := c.userAndVendorData()
	if err != nil {
		return nil, err
	}
	files := Files{"meta-data": metaData, "user-data": userData}
	if vendorData != nil {
		files["vendor-data"] = vendorData
	}
	if c.Network != nil {
		render := c.Network.v2
		if c.NetworkV1 {
			render = c.Network.v1
		}
		if files["network-config"], err = render(); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// metaData is JSON, which is YAML too: simple readers know only one of them.
func (c Config) metaData() ([]byte, error) {
	data := map[string]any{
		"instance-id":    c.InstanceID,
		"local-hostname": c.Hostname,
	}
	if len(c.SSHKeys) > 0 {
		data["public-keys"] = c.SSHKeys
	}
	maps.Copy(data, c.MetaData)
	return marshalJSON(data)
}

func marshalJSON(value any) ([]byte, error) {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return nil, invalid("meta-data cannot be written as JSON: %w", err)
	}
	return fmt.Appendf(nil, "%s\n", text), nil
}
