package cluster

import (
	"context"
	_ "embed" // the manifests
	"encoding/base64"
	"fmt"
	"os"
	"strings"
)

// metricsManifests are metrics-server's rights and its place in the API.
//
//go:embed manifests/metrics-server.yaml
var metricsManifests string

// registerMetrics makes the API server answer for metrics.k8s.io what
// metrics-server says.
func (c *Cluster) registerMetrics(ctx context.Context) error {
	ca, err := os.ReadFile(c.certificate(authority))
	if err != nil {
		return fmt.Errorf("register metrics-server: %w", err)
	}
	fill := strings.NewReplacer("$ADDRESS", c.node.IP().String(), "$PORT", metricsPort,
		"$CA", base64.StdEncoding.EncodeToString(ca))
	const file = "metrics-server.yaml"
	if err := c.write(file, []byte(fill.Replace(metricsManifests))); err != nil {
		return err
	}
	_, err = c.Kubectl(ctx, "apply", "-f", c.path(file))
	return err
}
